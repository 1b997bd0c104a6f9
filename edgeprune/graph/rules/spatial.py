"""Pooling and resampling: channels pass, spatial dimensions are fixed."""

from __future__ import annotations

from edgeprune.graph.capture import Call
from edgeprune.graph.flow import Flow, refs, rule


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "lp_pool1d", "lp_pool2d", "max_unpool2d",
    "_adaptive_avg_pool2d", "mkldnn_max_pool2d",
)  # fmt: skip
def pool(flow: Flow, call: Call) -> None:
    """Windows slide over the dimensions whose sizes may change: the last one, two or three."""
    spatial = int(next(character for character in call.name if character.isdigit()))
    _pass_channels(flow, call, spatial)


@rule(
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d",
)  # fmt: skip
def resample(flow: Flow, call: Call) -> None:
    """Batch and channels pass; every further dimension is resampled."""
    _pass_channels(flow, call, len(refs(call.args)[0].shape) - 2)


def _pass_channels(flow: Flow, call: Call, spatial: int) -> None:
    source, *others = refs(call.args)
    labels = list(flow.of(source))
    for label in labels[len(labels) - spatial :]:
        flow.pin(label, call, f"{call.name} slides over this dimension")
    for other in others:
        for label in flow.of(other):
            flow.pin(label, call, f"{call.name} reads it as coordinates")
    for result in refs(call.result):
        flow.set(result, [*labels[: len(labels) - spatial], *[None] * spatial])
