"""The graph output: recorded calls with rewritten numbers are the pruned network, at any batch, trained or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact import analyse
from edgeprune.compact.outputs import compact
from edgeprune.compact.program import Captured, Uncapturable, capture
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.capture import record
from edgeprune.graph.structure import output_tensors
from tests.legal import halves, legal
from tests.random_networks import random_network
from tests.test_zoo import CANNOT_TRAIN, other_inputs
from tests.zoo import NETWORKS
from tests.zoo.awkward_blocks import AWKWARD

PRUNABLE = NETWORKS | AWKWARD
ONE_BATCH = {"gru_packed"}  # makes its lengths outside of torch
ROWS = (torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),)
IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x, *more, **named):
        return self.function(self, x, *more, **named)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def captured(model: nn.Module, inputs: tuple[torch.Tensor, ...], graph: ChannelGraph | None = None) -> Captured:
    """Return the network with every second unit of every free group removed, as calls."""
    graph = graph or trace(model, inputs)
    found = compact(model, graph, halves(graph), inputs, "graph")
    assert (found.mode, found.captured) == ("graph", ("",))
    assert isinstance(found.model, Captured)
    return found.model


def close(found: Any, expected: list[torch.Tensor]) -> None:
    for value, reference in zip(output_tensors(found), expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-7, atol=1e-7 * float(reference.abs().max()))


@pytest.mark.parametrize("name", sorted(PRUNABLE))
def test_every_network_as_calls(name: str) -> None:
    """In float64, on other inputs with one more sample; the tensors keep their names, and it trains."""
    model, inputs = PRUNABLE[name].build(), PRUNABLE[name].inputs()
    graph = analyse(model, inputs)
    small = captured(model, inputs, graph)
    other = other_inputs(inputs)
    if name in ONE_BATCH:
        other = tuple(tensor[:-1] for tensor in other)
    masked = masked_copy(model, graph.masks(halves(graph))).double()
    expected = reference_outputs(masked, graph, halves(graph), other)
    with torch.no_grad():
        close(copy.deepcopy(small).double()(*other), expected)
    assert set(small.state_dict()) == set(model.state_dict())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    if name not in CANNOT_TRAIN:
        sum(output.square().mean() for output in output_tensors(small.train()(*inputs))).backward()
        assert any(parameter.grad is not None for parameter in small.parameters())


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 9999), data=st.data())
def test_random_networks_at_random_units_as_calls(seed: int, data: st.DataObject) -> None:
    model, inputs = random_network(seed), (torch.randn(2, 3, 4, 4).double(),)
    graph = trace(model, inputs)
    keep = {}
    for group in graph.free:
        together = next((linked for linked in graph.links if group.name in linked), (group.name,))
        if together[0] in keep:
            keep[group.name] = keep[together[0]]
        elif not set(group.overlaps) & set(keep):
            units = data.draw(st.sets(st.integers(0, group.size - 1), min_size=1))
            keep[group.name] = tuple(sorted(units))
    if keep:
        assert compact(model, graph, legal(graph, keep), inputs, "graph").check.max_rel < 1e-9


BATCHED: dict[str, Callable[..., Any]] = {
    "written_width": lambda m, x: m.b(m.a(x).view(-1, 8)),
    "read_batch": lambda m, x: m.b(m.a(x).view(x.shape[0], 8)),
    "heads": lambda m, x: m.b(m.a(x).view(x.shape[0] * 4, 2).tanh().view(x.shape[0], 8)),
    "half_the_batch": lambda m, x: m.b(torch.cat([m.a(x)] * 2).view(x.shape[0], 2, 8)[:, 1]),
    "repeat": lambda m, x: m.b(m.a(x) + m.a(x[:1]).repeat(x.shape[0], 1)),
    "zeros": lambda m, x: m.b(m.a(x) + torch.zeros(x.shape[0], 8)),
    "plus_one": lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 1)).view(x.shape[0] + 1, 8)[:-1]),
}


@pytest.mark.parametrize("name", sorted(BATCHED))
def test_numbers_follow_the_batch(name: str) -> None:
    model = Net(BATCHED[name], a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    graph = trace(model, ROWS)
    small = captured(model, ROWS, graph)
    masked = masked_copy(model, graph.masks(halves(graph)))
    for count in (1, 2, 5):
        x = torch.randn(count, 6)
        with torch.no_grad():
            torch.testing.assert_close(small(x), masked(x))


def test_a_network_for_one_batch_size_only_keeps_it() -> None:
    """It can be recorded at no other size; the calls hold the numbers of this one."""

    def forward(m, x):
        return m.b(m.a(x).view(3, 8))

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    assert captured(model, ROWS)(*ROWS).shape == (3, 2)


def test_training_switches_dropout_and_batch_norm() -> None:
    def forward(m, x):
        return m.b(m.drop(m.norm(m.a(x).view(-1, 8))))

    model = Net(forward, a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.5), b=nn.Linear(8, 2)).train()
    small = captured(model, ROWS)
    assert small.training
    mean = small.norm.running_mean.clone()
    assert not torch.equal(small(*ROWS), small(*ROWS))
    assert not torch.equal(small.norm.running_mean, mean)
    small.eval()
    assert torch.equal(small(*ROWS), small(*ROWS))


def test_gradients_stop_where_the_user_detaches() -> None:
    def forward(m, x):
        x = m.a(x).view(-1, 8)
        return m.b(x.detach() + torch.zeros(8))

    small = captured(Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval(), ROWS)
    small(*ROWS).sum().backward()
    assert small.a.weight.grad is None
    assert small.b.weight.grad is not None


def test_outputs_keep_their_structure_and_inputs_their_names() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, pixels, scale):
            y = self.b(self.a(pixels).view(-1, 8) * scale)
            return {"logits": y, "all": [y + 1, None], "name": "two"}

    inputs = (*ROWS, torch.rand(3, 1))
    small = captured(Two().eval(), inputs)
    found = small(*inputs)
    assert (list(found), found["all"][1], found["name"]) == (["logits", "all", "name"], None, "two")
    program = torch.export.export(small, inputs)
    assert list(program.graph_signature.user_inputs) == ["pixels", "scale"]
    with pytest.raises(TypeError, match="captured with other arguments"):
        small(*ROWS)


def test_shared_and_unused_tensors_and_buffers_that_are_not_saved_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.spare = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.c = nn.Linear(8, 2)
            self.register_buffer("shift", torch.rand(8), persistent=False)

        def forward(self, x):
            return self.c((self.a(x) + self.b(x)).view(-1, 8) + self.shift)

    model = Tied().eval()
    small = captured(model, ROWS)
    assert small.a.weight is small.b.weight
    assert small.spare.weight.shape == (3, 3)
    assert small.shift.shape == (4,)
    assert "shift" not in small.state_dict()
    again = copy.deepcopy(small)
    again.load_state_dict(small.state_dict())
    assert again.a.weight is again.b.weight
    assert again.a.weight is not small.a.weight
    assert torch.equal(again(*ROWS), small(*ROWS))


def test_code_can_be_read() -> None:
    small = captured(Net(BATCHED["written_width"], a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval(), ROWS)
    assert "torch.ops.aten.view.default(linear_default, [-1, 4])" in small.code
    assert "calls recorded from Net" in repr(small)


def test_an_object_as_output_is_put_together_again() -> None:
    class Result:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    model = Net(lambda m, x: Result(m.b(m.a(x).view(-1, 8))), a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    found = captured(model, ROWS)(*ROWS)
    assert type(found) is Result
    assert found.logits.shape == (3, 2)


def test_an_object_that_cannot_be_copied_cannot_be_captured() -> None:
    class Sealed:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

        def __copy__(self):
            raise TypeError("sealed")

    model = Net(lambda m, x: Sealed(m.a(x)), a=nn.Linear(6, 8)).eval()
    recorded = record(model, ROWS)
    steps = [(call.func, call.args) for call in recorded.calls]
    with pytest.raises(Uncapturable, match="returns Sealed"):
        capture(model, recorded, steps, recorded.spans[-1], None, "Net")


def test_a_module_that_uses_tensors_from_around_it_cannot_be_captured() -> None:
    class Inner(nn.Module):
        def __init__(self, outer: list[torch.Tensor]) -> None:
            super().__init__()
            self.outer = outer

        def forward(self, x):
            return x * self.outer[0]

    outer: list[torch.Tensor] = []

    def forward(m, x):
        m.inner.outer[:] = [m.a(x)]
        return m.inner(x[:, :1])

    model = Net(forward, a=nn.Linear(6, 8), inner=Inner(outer)).eval()
    recorded = record(model, ROWS)
    steps = [(call.func, call.args) for call in recorded.calls]
    with pytest.raises(Uncapturable, match="comes neither from its arguments nor from itself"):
        capture(model.inner, recorded, steps, recorded.spans[1], None, "Inner")
