"""Attribute repair: after a cut, modules say their new sizes, and only sizes that changed are replaced."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.compact.attributes import repair_norms_, repair_sizes_, repair_torch_
from edgeprune.compact.outputs import compact
from edgeprune.graph import trace


def cut(module: nn.Module, **shapes: tuple[int, ...]) -> nn.Module:
    """Give a module smaller tensors, as slicing does, and repair it."""
    for name, shape in shapes.items():
        tensor = torch.zeros(shape)
        setattr(module, name, nn.Parameter(tensor) if isinstance(getattr(module, name), nn.Parameter) else tensor)
    repair_torch_(module)
    return module


CUTS: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "linear": (nn.Linear(8, 6), {"weight": (3, 4)}, {"in_features": 4, "out_features": 3}),
    "conv": (nn.Conv2d(8, 6, 3), {"weight": (3, 4, 3, 3)}, {"in_channels": 4, "out_channels": 3, "groups": 1}),
    "grouped": (
        nn.Conv2d(8, 12, 3, groups=2), {"weight": (6, 3, 3, 3)}, {"in_channels": 6, "out_channels": 6, "groups": 2},
    ),
    "depthwise": (
        nn.Conv2d(8, 8, 3, groups=8), {"weight": (5, 1, 3, 3)}, {"in_channels": 5, "out_channels": 5, "groups": 5},
    ),
    "multiplier": (
        nn.Conv2d(4, 12, 3, groups=4), {"weight": (6, 1, 3, 3)}, {"in_channels": 2, "out_channels": 6, "groups": 2},
    ),
    "transposed": (
        nn.ConvTranspose2d(8, 6, 2), {"weight": (4, 3, 2, 2)}, {"in_channels": 4, "out_channels": 3, "groups": 1},
    ),
    "transposed_grouped": (
        nn.ConvTranspose2d(8, 12, 2, groups=2), {"weight": (6, 4, 2, 2)},
        {"in_channels": 6, "out_channels": 8, "groups": 2},
    ),
    "transposed_depthwise": (
        nn.ConvTranspose2d(8, 8, 2, groups=8), {"weight": (5, 1, 2, 2)},
        {"in_channels": 5, "out_channels": 5, "groups": 5},
    ),
    "conv1d": (nn.Conv1d(4, 6, 3), {"weight": (5, 2, 3)}, {"in_channels": 2, "out_channels": 5}),
    "batch_norm": (nn.BatchNorm2d(8), {"weight": (3,), "running_mean": (3,)}, {"num_features": 3}),
    "batch_norm_without_affine": (nn.BatchNorm1d(8, affine=False), {"running_mean": (3,)}, {"num_features": 3}),
    "instance_norm": (nn.InstanceNorm2d(8, affine=True), {"weight": (3,)}, {"num_features": 3}),
    "group_norm": (nn.GroupNorm(4, 16), {"weight": (8,)}, {"num_groups": 4, "num_channels": 8}),
    "group_norm_per_channel": (nn.GroupNorm(16, 16), {"weight": (5,)}, {"num_groups": 5, "num_channels": 5}),
    "group_norm_fewer_groups": (nn.GroupNorm(4, 16), {"weight": (12,)}, {"num_channels": 12}),
    "group_norm_odd": (nn.GroupNorm(4, 24), {"weight": (18,)}, {"num_groups": 3, "num_channels": 18}),
    "layer_norm": (nn.LayerNorm(8), {"weight": (5,)}, {"normalized_shape": (5,)}),
    "layer_norm_of_two": (nn.LayerNorm([8, 2]), {"weight": (5, 2)}, {"normalized_shape": (5, 2)}),
    "rms_norm": (nn.RMSNorm(8), {"weight": (5,)}, {"normalized_shape": (5,)}),
    "embedding": (nn.Embedding(10, 8), {"weight": (10, 3)}, {"num_embeddings": 10, "embedding_dim": 3}),
    "prelu": (nn.PReLU(8), {"weight": (3,)}, {"num_parameters": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CUTS))
def test_a_layer_says_its_new_sizes(name: str) -> None:
    module, shapes, expected = CUTS[name]
    cut(module, **shapes)
    assert {key: getattr(module, key) for key in expected} == expected


def test_an_untouched_layer_is_left_alone() -> None:
    layers = [
        nn.Conv2d(8, 12, 3, groups=4),
        nn.ConvTranspose2d(8, 12, 3, groups=4),
        nn.GroupNorm(4, 16),
        nn.LayerNorm(3),
    ]
    for layer in layers:
        before = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
        repair_torch_(layer)
        assert {key: value for key, value in vars(layer).items() if not key.startswith("_")} == before


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 8


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.width, self.other, self.flag, self.ratio = 8, 5, True, 8.0
        self.shape, self.sizes, self.names = (8, 4, 5), [8, 8], ("8",)
        self.nested = Inner()


def test_integers_that_equal_a_changed_size_are_replaced() -> None:
    model = Sized()
    before = {"fc.weight": (8, 6), "fc.bias": (8,)}
    cut(model.fc, weight=(3, 6), bias=(3,))
    count = repair_sizes_(model, before, {("fc.weight", 0), ("fc.bias", 0)})
    assert count == 4
    assert (model.width, model.shape, model.sizes, model.nested.width) == (3, (3, 4, 5), [3, 3], 3)
    assert (model.other, model.flag, model.ratio, model.names) == (5, True, 8.0, ("8",))
    assert model.fc.in_features == 6


def test_a_size_that_changed_in_two_ways_is_not_guessed() -> None:
    model = Sized()
    model.more = nn.Linear(6, 8)
    before = {"fc.weight": (8, 6), "more.weight": (8, 6)}
    cut(model.fc, weight=(3, 6))
    cut(model.more, weight=(4, 6))
    assert repair_sizes_(model, before, {("fc.weight", 0), ("more.weight", 0)}) == 0
    assert model.width == 8


def test_nothing_that_changed_means_nothing_to_guess() -> None:
    assert repair_sizes_(Sized(), {}, set()) == 0


def test_an_unflatten_module_is_repaired() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 3, 1), nn.Flatten()
    ).eval()
    inputs = (torch.randn(2, 6),)
    graph = trace(model, inputs)
    (group,) = [group for group in graph.free if group.size == 8]
    small = compact(model, graph, {group.name: (0, 2, 5)}, inputs).model
    assert small[2].unflattened_size == (3, 2, 2)


NORMS: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Any]]] = {
    "instance": (nn.InstanceNorm2d(8), (2, 5, 4, 4), {"num_features": 5}),
    "instance_unbatched": (nn.InstanceNorm2d(8), (5, 4, 4), {"num_features": 5}),
    "layer": (nn.LayerNorm(8, elementwise_affine=False), (2, 5), {"normalized_shape": (5,)}),
    "layer_of_two": (nn.LayerNorm((8, 3), elementwise_affine=False), (2, 5, 3), {"normalized_shape": (5, 3)}),
    "rms": (nn.RMSNorm(8, elementwise_affine=False), (2, 5), {"normalized_shape": (5,)}),
    "group": (nn.GroupNorm(2, 8, affine=False), (2, 4, 3), {"num_groups": 2, "num_channels": 4}),
    "group_per_channel": (nn.GroupNorm(8, 8, affine=False), (2, 5, 3), {"num_groups": 5, "num_channels": 5}),
}


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_norm_without_parameters_learns_its_size_from_its_input(name: str) -> None:
    module, shape, expected = NORMS[name]
    model = nn.Sequential(module)
    repair_norms_(model, lambda trial: trial(torch.randn(shape)))
    assert {key: getattr(module, key) for key in expected} == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(torch.randn(shape)).shape == shape
    assert not module._forward_pre_hooks


def test_networks_without_such_norms_are_not_run() -> None:
    ran: list[nn.Module] = []
    repair_norms_(nn.Sequential(nn.LayerNorm(4), nn.InstanceNorm1d(4, affine=True)), ran.append)
    assert ran == []
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    repair_norms_(model, lambda trial: (ran.append(trial), trial(torch.randn(2, 4))))
    assert len(ran) == 1
    assert ran[0] is not model


def test_cuts_of_a_whole_network_leave_consistent_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(8, 8),
        nn.ConvTranspose2d(8, 6, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.LayerNorm(5), nn.Linear(5, 2),
    )  # fmt: skip
    inputs = (torch.randn(2, 3, 5, 5),)
    model.eval()(*inputs)
    graph = trace(model, inputs)
    keep = {group.name: tuple(np.flatnonzero(np.arange(group.size) % 3 != 1)) for group in graph.free}
    small = compact(model, graph, keep, inputs).model
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert repr(small[3]) == "Conv2d(5, 5, kernel_size=(3, 3), stride=(1, 1), groups=5)"


def test_a_group_norm_knows_how_many_blocks_are_left() -> None:
    """The same width is left where half of the blocks go and where half of every block goes."""
    norm = nn.GroupNorm(8, 16)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), norm, nn.Sigmoid(), nn.Conv2d(16, 2, 1)).eval()
    inputs = (torch.randn(2, 3, 4, 4),)
    graph = trace(model, inputs)
    for group, groups in (("0", 4), ("0#2", 8)):
        keep = {group: tuple(range(0, next(one.size for one in graph.free if one.name == group), 2))}
        found = compact(model, graph, keep, inputs)
        assert found.mode == "eager"
        assert (found.model[1].num_groups, found.model[1].num_channels) == (groups, 8)
