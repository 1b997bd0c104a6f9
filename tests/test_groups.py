"""Groups on networks where it is plain which channels go together, and what is said about those that may not go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.graph import ChannelGraph, Group, trace
from edgeprune.graph.labels import Pin
from tests.zoo import NETWORKS
from tests.zoo.awkward_blocks import AWKWARD

HERE = str(Path(__file__))


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def graph_of(model: nn.Module, *shape: int) -> ChannelGraph:
    return trace(model.eval(), (torch.randn(shape or (2, 3, 6, 6)),))


def by_name(graph: ChannelGraph) -> dict[str, Group]:
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    return {group.name: group for group in graph.groups}


def removed(graph: ChannelGraph, name: str, unit: int) -> dict[tuple[str, int], list[int]]:
    """Return the positions that go with one unit, by parameter and dimension."""
    size = by_name(graph)[name].size
    masks = graph.masks({name: [u for u in range(size) if u != unit]})
    return {dim: np.flatnonzero(~mask).tolist() for dim, mask in masks.items()}


def test_a_chain_of_layers_with_a_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    graph = graph_of(model)
    assert [group.name for group in graph.groups] == ["0", "3"]
    first, last = graph.groups
    assert (first.size, first.channels, first.pinned) == (8, 8, None)
    assert set(first.tensors) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight",
    }  # fmt: skip
    assert first.producer == ("0.weight", 0)
    assert first.params == 8 * 27 + 8 + 4 * 8 + 4 * 8 * 9
    assert last.pinned == "model output"
    assert removed(graph, "0", 5) == {
        ("0.weight", 0): [5], ("0.bias", 0): [5], ("1.weight", 0): [5], ("1.bias", 0): [5],
        ("1.running_mean", 0): [5], ("1.running_var", 0): [5], ("3.weight", 1): [5],
    }  # fmt: skip


def test_flattened_features_go_with_their_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    assert removed(graph_of(model), "0", 1)[("3.weight", 1)] == list(range(16, 32))


def test_an_addition_ties_two_layers() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.a(x) + m.b(x))), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2))
    graph = graph_of(model, 2, 4)
    assert [group.name for group in graph.free] == ["a"]  # named after the first layer that makes the channels
    assert set(removed(graph, "a", 3)) == {
        ("a.weight", 0), ("a.bias", 0), ("b.weight", 0), ("b.bias", 0), ("c.weight", 1),
    }  # fmt: skip


def test_concatenated_channels_sit_behind_one_another() -> None:
    model = Net(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x)), x], 1)),
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 5),
        c=nn.Linear(15, 2),
    )
    graph = graph_of(model, 2, 4)
    assert removed(graph, "a", 3)[("c.weight", 1)] == [3]
    assert removed(graph, "b", 3)[("c.weight", 1)] == [9]


def test_a_depthwise_convolution_follows_its_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 2, 1))
    graph = graph_of(model)
    assert [(group.name, group.size) for group in graph.free] == [("0", 6)]
    assert removed(graph, "0", 2)[("1.weight", 0)] == [4, 5]
    assert removed(graph, "0", 2)[("3.weight", 1)] == [4, 5]


def test_a_pixel_shuffle_unit_is_four_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 3, 1))
    graph = graph_of(model)
    (group,) = graph.free
    assert (group.size, group.channels) == (2, 8)
    assert removed(graph, group.name, 1)[("0.weight", 0)] == [4, 5, 6, 7]


def test_a_shared_tensor_has_one_entry_and_all_its_names() -> None:
    shared = nn.Linear(6, 6)
    graph = graph_of(Net(lambda m, x: m.out(m.b(F.relu(m.a(x)))), a=shared, b=shared, out=nn.Linear(6, 2)), 2, 6)
    assert graph.names["a.weight"] == ("a.weight", "b.weight")
    assert not any(name.startswith("b.") for name, _ in graph.dims)


@pytest.mark.parametrize("name", sorted(NETWORKS | AWKWARD))
def test_every_group_is_consistent(name: str) -> None:
    entry = (NETWORKS | AWKWARD)[name]
    graph = trace(entry.build(), entry.inputs())
    assert graph.free
    by_name(graph)
    units = np.concatenate([group.units for group in graph.free])
    assert len(np.unique(units)) == len(units) == graph.unit_count
    shares = graph.macs_share
    for group in graph.groups:
        assert 0 <= shares[group.name] <= 1
        assert (group.pinned is None) == (len(group.units) > 0)
        if group.pinned is not None:
            assert group.pinned
            assert group.where is None or Path(group.where.rpartition(":")[0]).parent.name == "zoo"
            continue
        assert group.size == len(group.units) <= group.channels
        assert group.params == sum(int(np.prod(graph.shapes[tensor])) for tensor in group.tensors)
        assert group.name not in group.overlaps
        # units of one group never share a position: what is removed adds up
        for label in graph.dims.values():
            assert (np.isin(label, group.units).sum(0) <= 1).all()
    for linked in graph.links:
        assert len({by_name(graph)[member].size for member in linked}) == 1


def test_unit_numbers_read_as_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1))
    for name, size in [(group.name, group.size) for group in graph_of(model).free]:
        first = [removed(graph_of(model), name, unit)[("0.weight", 0)][0] for unit in range(size)]
        assert first == sorted(first)


def seed() -> torch.Generator:
    """Return random numbers that are the same in every forward."""
    return torch.Generator().manual_seed(0)


REASONS: dict[str, tuple[Callable[..., Any], str]] = {
    "output": (lambda m, x: m.a(x), "model output"),
    "topk": (lambda m, x: m.b(m.a(x).topk(8, 1)[0]), "torch.topk runs over this dimension"),
    "unknown": (lambda m, x: m.b(torch.linalg.pinv(m.a(x)).mT), "torch.linalg_pinv is not understood"),
    "position": (lambda m, x: m.b(m.a(x)) + m.a(x)[:, 3:4], "one position of it is cut off"),
    "select": (lambda m, x: m.b(m.a(x)) + m.a(x)[:, 3, None], "one position of it is picked by number"),
    "unbind": (lambda m, x: m.b(torch.stack(m.a(x).unbind(1), 1)), "unbind takes its positions apart"),
    "constant": (lambda m, x: m.b(m.a(x) + torch.arange(8)), "add ties it to something of fixed size"),
    "step": (lambda m, x: m.b(m.a(x)) + m.a(x)[:, ::8], "one position of it is cut off"),
    "cumsum": (lambda m, x: m.b(m.a(x).cumsum(1)), "torch.cumsum runs over this dimension"),
    "sampled": (
        lambda m, x: m.b(m.a(x).uniform_(generator=seed())),
        "torch.uniform makes values that depend on the position",
    ),
    "noise": (lambda m, x: m.b(m.a(x) * torch.rand(8, generator=seed())), "mul ties it to something of fixed size"),
}


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_pinned_group_says_why_and_where(name: str) -> None:
    function, reason = REASONS[name]
    graph = graph_of(Net(function, a=nn.Linear(4, 8), b=nn.Linear(8, 8)), 2, 4)
    (group,) = [group for group in graph.groups if group.pinned and group.producer[0] == "a.weight"]
    assert group.pinned == reason
    assert group.where == f"{HERE}:{function.__code__.co_firstlineno}"
    assert group.channels == (1 if name in ("position", "select", "step") else 8)
    assert graph.masks({group.name: [0]}) == {}  # asking for it changes nothing


def test_weights_that_never_make_channels_are_listed_with_their_reason() -> None:
    def forward(m, x):
        return m.c(F.linear(F.relu(m.a(x)), torch.linalg.pinv(m.b.weight)))

    model = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2))
    pinned = {group.name: group.pinned for group in graph_of(model, 2, 4).groups if group.pinned}
    assert pinned["b"] == "torch.linalg_pinv is not understood"
    lstm = graph_of(Net(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 8, 2, batch_first=True)), 2, 3, 4)
    assert [(group.name, group.pinned) for group in lstm.groups] == [("rnn", "model output")]


def test_statistics_over_channels_are_marked() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    groups = by_name(graph_of(model, 2, 4))
    assert groups["0"].statistics
    assert not groups["2"].statistics


def test_a_norm_of_weights_is_a_statistic_too() -> None:
    def forward(m, x):
        return m.c(F.linear(m.a(x), m.b.weight / torch.linalg.vector_norm(m.b.weight)))

    model = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    assert by_name(graph_of(model, 2, 4))["a"].statistics


def test_square_blocks_are_two_groups_that_overlap() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 2, 1)))
    first, second = graph.free
    assert (first.size, second.size) == (4, 4)
    assert first.overlaps == (second.name,)
    assert second.overlaps == (first.name,)
    sizes = {len(removed(graph, name, 0)[("0.weight", 0)]) for name in (first.name, second.name)}
    assert sizes == {4}


def test_pinning_a_group_pins_its_links() -> None:
    model = Net(
        lambda m, x: sum(part.sum(1) for part in torch.cat([m.a(x), m.b(x)], 1).chunk(2, 1)),
        a=nn.Linear(4, 8),
        b=nn.Linear(4, 8),
    )
    graph = graph_of(model, 2, 4)
    assert graph.links == (("a", "b"),)
    pinned = graph.pin(["b"], Pin(reason="kept", where="here", fix="nothing"))
    assert [(group.pinned, group.where, group.fix) for group in pinned.groups] == [("kept", "here", "nothing")] * 2
    assert pinned.links == ()
    assert graph.free  # the graph itself stays


def test_masks_of_several_groups_multiply_where_they_overlap() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1)))
    blocks, places = sorted(graph.free, key=lambda group: group.size)
    assert (blocks.size, places.size) == (3, 4)
    keep = {blocks.name: [0, 2], places.name: [1, 2, 3]}
    assert np.flatnonzero(graph.masks(keep)[("0.weight", 0)]).tolist() == [1, 2, 3, 9, 10, 11]
    assert graph.masks({blocks.name: range(3)}) == {}


def test_the_macs_share_of_a_group_counts_the_products_of_its_tensors() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), 2, 4)
    assert graph.macs_share == {"0": 1.0, "2": pytest.approx(16 / 48)}
    assert graph.prunable_share == 1.0
    assert graph.pin(["0"], Pin(reason="kept")).prunable_share == 0.0


def test_source_lines_know_the_groups_that_pass() -> None:
    def forward(m, x):
        x = F.relu(m.a(x))
        y = m.b(x)
        return m.c(F.relu(y))

    graph = graph_of(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)), 2, 4)
    first = forward.__code__.co_firstlineno
    assert graph.at_line(f"{HERE}:{first + 2}") == {"a"}
    assert graph.at_line(f"{HERE}:{first + 3}") == {"b"}


def test_parts_that_the_forward_does_not_touch_are_unused() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 8), b=nn.Linear(8, 2), aux=nn.Linear(8, 2))
    assert graph_of(model, 2, 4).unused == ("aux.weight", "aux.bias")


def test_parts_of_a_parameter_that_only_other_inputs_read_are_pinned() -> None:
    """A table of positions is cut to the length at hand: its other rows are for longer inputs."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.table = nn.Parameter(torch.randn(10, 8))

        def forward(self, x):
            return self.b(F.relu(self.a(x) + self.table[: x.shape[1]]))

    graph = graph_of(Positions(), 2, 6, 4)
    assert [(group.name, group.size) for group in graph.free] == [("a", 8)]
    assert ("table", 0) not in graph.dims


TENSORS = torch.randn(4, 8, 3, 3), torch.randn(4, 8), torch.rand(8), torch.rand(5)
UNOWNED: dict[str, Callable[..., torch.Tensor]] = {
    "convolution": lambda net, x: F.conv2d(net.conv(x), TENSORS[0]).flatten(1),
    "linear": lambda net, x: F.linear(net.conv(x).mean((2, 3)), TENSORS[1]),
    "statistics": lambda net, x: net.head(F.batch_norm(net.conv(x), TENSORS[2], TENSORS[2]).mean((2, 3))),
    "bias": lambda net, x: F.linear(net.conv(x).mean((2, 3)), net.head.weight, TENSORS[3]),
}


@pytest.mark.parametrize("name", ["convolution", "linear", "statistics"])
def test_tensors_that_are_no_parameters_hold_what_meets_them(name: str) -> None:
    """Nothing would shrink a tensor that only the code knows."""
    graph = graph_of(Net(UNOWNED[name], conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5)))
    assert by_name(graph)["conv"].pinned is not None


def test_a_bias_that_is_no_parameter_holds_the_rows_and_nothing_else() -> None:
    graph = graph_of(Net(UNOWNED["bias"], conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5)))
    assert by_name(graph)["conv"].pinned is None
    assert by_name(graph)["head"].pinned is not None


def test_a_norm_that_two_layers_share_ties_them() -> None:
    def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.head(torch.cat([net.norm(net.first(x)), net.norm(net.second(x))], 1))

    parts = {"first": nn.Conv2d(3, 8, 1), "second": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(8)}
    graph = graph_of(Net(forward, **parts, head=nn.Conv2d(16, 2, 1)))
    gone = removed(graph, "first", 3)
    assert gone[("first.weight", 0)] == gone[("second.weight", 0)] == gone[("norm.running_var", 0)] == [3]
    assert gone[("head.weight", 1)] == [3, 11]
