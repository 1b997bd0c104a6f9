"""Rehearsal: what does not come out right is pinned before anything is promised, and nothing else.

With the output `eager` that includes what the user's own code does not survive.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import analyse, apply
from edgeprune.compact.rehearse import rehearse
from edgeprune.config import PruneConfig
from edgeprune.errors import TraceError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.pruning import make_plan, score

HERE = str(Path(__file__))
INPUTS = (torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def net(forward: Callable[..., Any]) -> Net:
    torch.manual_seed(0)
    return Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 10), c=nn.Linear(10, 2)).eval()


def pins(graph: ChannelGraph) -> dict[str, tuple[str | None, str | None]]:
    return {group.name: (group.pinned, group.where) for group in graph.groups if group.pinned != "model output"}


def test_a_network_that_survives_is_left_as_traced() -> None:
    model = net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))))
    graph = trace(model, INPUTS)
    assert rehearse(model, graph, INPUTS) is graph
    assert [group.name for group in analyse(model, INPUTS).free] == ["a", "b"]


def test_a_literal_size_pins_its_group_with_its_line() -> None:
    def forward(m, x):
        x = F.relu(m.a(x))
        x = x.view(len(x), 8)
        return m.c(F.relu(m.b(x)))

    graph = analyse(net(forward), INPUTS, "eager")
    line = f"{HERE}:{forward.__code__.co_firstlineno + 2}"
    assert pins(graph) == {"a": ("the code expects the old size here", line), "b": (None, None)}
    (group,) = [group for group in graph.groups if group.name == "a"]
    assert "x.shape" in str(group.fix)


def test_two_literals_pin_two_groups() -> None:
    graph = analyse(net(lambda m, x: m.c(F.relu(m.b(m.a(x).view(-1, 8))).view(-1, 10))), INPUTS, "eager")
    assert {reason for reason, _ in pins(graph).values()} == {"the code expects the old size here"}
    assert graph.free == ()


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.c(F.relu(m.b(m.a(x) * m.a(x).shape[1] ** -0.5))),
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))) * m.a.weight.shape[0],
    ],
)
def test_a_result_that_depends_on_the_width_pins_its_group(forward: Callable[..., Any]) -> None:
    graph = analyse(net(forward), INPUTS, "eager")
    assert pins(graph)["a"][0] == "pruning it changes the result"
    assert [group.name for group in graph.free] == ["b"]


def test_a_failure_that_needs_two_groups_pins_what_flows_through_its_line() -> None:
    def forward(m, x):
        a = F.relu(m.a(x))
        b = F.relu(m.b(a))
        if a.shape[1] + b.shape[1] < 12:
            raise ValueError("too narrow")
        return m.c(b)

    graph = analyse(net(forward), INPUTS, "eager")
    assert graph.free == ()
    assert {where for _, where in pins(graph).values()} == {f"{HERE}:{forward.__code__.co_firstlineno + 4}"}


def test_linked_groups_are_tried_together_and_pinned_together() -> None:
    def forward(m, x):
        first, second = m.a(x).chunk(2, 1)
        return m.d(F.relu(first)) + m.e(F.relu(second).view(-1, 4))

    model = Net(forward, a=nn.Linear(6, 8), d=nn.Linear(4, 2), e=nn.Linear(4, 2)).eval()
    assert trace(model, INPUTS).links == (("a", "a#2"),)
    graph = analyse(model, INPUTS, "eager")
    assert graph.free == ()
    assert graph.links == ()
    assert pins(graph)["a"] == pins(graph)["a#2"]


def test_groups_at_rest_get_their_turn_when_the_finer_ones_are_pinned() -> None:
    """Blocks of GroupNorm can go by block when places in a block cannot; a wrong number of groups is found out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 2, 1)).eval()
    inputs = (torch.randn(2, 3, 4, 4),)
    graph = analyse(model, inputs)
    scores = score(model, graph, "l2", inputs=inputs)
    for ratio in (0.25, 0.5, 0.75):
        plan = make_plan(graph, scores, PruneConfig(ratio=ratio), align=1, model=model, inputs=inputs)
        assert apply(model, plan, inputs, graph).check.passed


def test_code_that_never_survives_pins_everything() -> None:
    def forward(m, x):
        if m.a.weight.shape[0] + m.b.weight.shape[0] != 18:
            raise ValueError("not my weights")
        return m.c(F.relu(m.b(F.relu(m.a(x)))))

    graph = analyse(net(forward), INPUTS, "eager")
    assert graph.free == ()
    assert all(where == f"{HERE}:{forward.__code__.co_firstlineno + 2}" for _, where in pins(graph).values())


def test_randomness_is_refused_instead_of_hanging() -> None:
    with pytest.raises(TraceError, match="returns something else when it runs again"):
        analyse(net(lambda m, x: m.c(F.dropout(m.b(m.a(x)), 0.5, training=True))), INPUTS)


def test_a_trace_error_passes_through() -> None:
    with pytest.raises(TraceError):
        analyse(net(lambda m, x: m.c(m.b(m.a(x))) if x.sum() > 0 else x), INPUTS)


def test_the_network_is_not_changed_by_its_rehearsals() -> None:
    model = net(lambda m, x: m.c(F.relu(m.b(m.a(x).view(-1, 8)))))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    analyse(model, INPUTS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert model.a.out_features == 8


def test_code_that_survives_one_width_only_is_found_at_the_other() -> None:
    class Pairs(nn.Module):
        """Takes its channels for pairs: half of 16 is even, two thirds are not."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3)
            self.head = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).mean((2, 3))
            if x.shape[1] % 2:
                raise ValueError("channels come in pairs")
            return self.head(x)

    graph = analyse(Pairs().eval(), (torch.randn(1, 1, 8, 8),), "eager")
    assert graph.free == ()
    pinned = {group.name: group for group in graph.groups}["conv"]
    assert pinned.pinned == "the code expects the old size here"
    assert pinned.where is not None
    assert "test_rehearse.py" in pinned.where


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.c(F.relu(m.b(m.a(x).view(-1, 8))).view(-1, 10)),
        lambda m, x: m.c(F.relu(m.b(m.a(x) * m.a(x).shape[1] ** -0.5))),
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))) * m.a.weight.shape[0],
    ],
)
def test_numbers_in_the_code_pin_nothing_where_calls_may_be_written_out(forward: Callable[..., Any]) -> None:
    assert [group.name for group in analyse(net(forward), INPUTS).free] == ["a", "b"]
