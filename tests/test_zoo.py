"""The zoo itself: every network is small, repeatable and alive, so that comparing outputs means something."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.zoo import NETWORKS, UNPRUNABLE, UNTRACEABLE

EVERY = NETWORKS | UNPRUNABLE | UNTRACEABLE


def flat(outputs: Any) -> torch.Tensor:
    """Return all outputs of a network as one matrix of shape (N, values)."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    return torch.cat([output.flatten(1) for output in outputs], 1)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_network_is_small_repeatable_and_alive(name: str) -> None:
    entry = EVERY[name]
    model, inputs = entry.build(), entry.inputs()
    assert not model.training
    assert 0 < sum(p.numel() for p in model.parameters()) < 1_000_000
    with torch.no_grad():
        first, again = flat(model(*inputs)), flat(entry.build()(*entry.inputs()))
        other = flat(model(*[value.flip(0) for value in inputs]))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert 1e-3 < float(first.abs().max()) < 1e4
    assert float((first - other).abs().max()) > 1e-4 * float(first.abs().max())


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    NETWORKS["conv2d"].build()
    NETWORKS["conv2d"].inputs()
    assert torch.equal(torch.rand(3), expected)


def test_every_pattern_of_the_supported_list_has_a_network() -> None:
    patterns = (
        "conv1d conv2d depthwise grouped transposed linear_mlp batch_norm group_norm layer_norm activations "
        "pooling residual se_mul cat split_chunk view_attribute permute interpolate pixel_shuffle embedding "
        "channel_shuffle resnet_basic resnet_bottleneck mobilenet_v2 mobilenet_v3 densenet shufflenet_v2 "
        "unet_transposed unet_bilinear inception"
    )
    assert set(patterns.split()) <= set(NETWORKS)
