"""Pooling, resampling and Fourier transforms: channels pass, the dimensions that are worked on are fixed."""

from __future__ import annotations

from edgeprune.graph.capture import Call
from edgeprune.graph.flow import Flow, dims, refs, rule


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "fractional_max_pool2d",
    "fractional_max_pool3d", "lp_pool1d", "lp_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "mkldnn_max_pool2d",
)  # fmt: skip
def pool(flow: Flow, call: Call) -> None:
    """Windows slide over the dimensions whose sizes may change: the last one, two or three."""
    spatial = int(next(character for character in call.name if character.isdigit()))
    _pass_channels(flow, call, spatial)


@rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Flow, call: Call) -> None:
    """Values go back to where their maximum was: channels of the values and of the indices are one."""
    source, indices = call.args["self"], call.args["indices"]
    spatial = int(next(character for character in call.name if character.isdigit()))
    labels = list(flow.of(source))
    channel = len(labels) - spatial
    for place, (mine, other) in enumerate(zip(labels, flow.of(indices), strict=True)):
        if place < channel:
            flow.join(mine, other, call)
        else:
            flow.pin(mine, call, f"{call.name} puts its positions by number")
            flow.pin(other, call, f"{call.name} puts its positions by number")
    flow.set(call.result, [*labels[:channel], *[None] * spatial])


@rule(
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d",
    "grid_sampler_3d",
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


@rule("affine_grid_generator")
def affine_grid(flow: Flow, call: Call) -> None:
    """Coordinates from a matrix per sample: all but the batch is fixed."""
    labels = flow.of(call.args["theta"])
    for label in labels[1:]:
        flow.pin(label, call, "it makes coordinates")
    flow.set(call.result, [labels[0], *[None] * (len(call.result.shape) - 1)])


@rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
    "fft_irfft2", "fft_hfft2", "fft_ihfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn",
    "fft_ihfftn", "_fft_c2c", "_fft_r2c", "_fft_c2r",
)  # fmt: skip
def fourier(flow: Flow, call: Call) -> None:
    """Transformed dimensions are mixed, the others pass."""
    source = call.args["self"]
    labels = list(flow.of(source))
    chosen = call.args["dim"]
    if chosen is None:
        over = call.args.get("s")
        axes = list(range(len(labels)))[-len(over) if over else 0 :]
    else:
        axes = dims(chosen, len(labels))
    for axis in axes:
        flow.pin(labels[axis], call, f"{call.name} transforms this dimension")
        labels[axis] = None
    flow.set(call.result, labels)


@rule("stft", "istft")
def short_time_fourier(flow: Flow, call: Call) -> None:
    """Time and frequency are fixed; a first dimension of several signals passes."""
    source = call.args["self"]
    labels = flow.of(source)
    signals = call.name == "stft" and len(labels) == 2
    for ref in refs(call.args):
        for place, label in enumerate(flow.of(ref)):
            if not (signals and ref is source and place == 0):
                flow.pin(label, call, f"{call.name} transforms this dimension")
    rank = len(call.result.shape)
    flow.set(call.result, [labels[0], *[None] * (rank - 1)] if signals else [None] * rank)
