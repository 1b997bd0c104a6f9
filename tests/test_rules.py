"""Every rule against the operator itself: labels must move exactly as values do.

For operators that only rearrange, a parameter holds its own positions as values; wherever a value arrives, the atoms
of its place must arrive too. Operators that mix values are tried in random networks, compacted at random units.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import edgeprune.graph.rules  # noqa: F401  registers the rules
from edgeprune.compact import analyse, apply
from edgeprune.compact.outputs import compact
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.config import PruneConfig
from edgeprune.errors import NothingToPrune
from edgeprune.graph import trace
from edgeprune.graph.capture import Ref, record
from edgeprune.graph.flow import RULES, Flow
from edgeprune.pruning import make_plan, score
from tests.random_networks import random_network
from tests.rearrangements import CASES, ODD, Draw, Operator, factors, shapes

FAST = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Rearranged(nn.Module):
    """Returns an operator's result on a parameter whose values are 0, 1, 2, ..."""

    def __init__(self, shape: tuple[int, ...], operator: Operator) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.arange(prod(shape), dtype=torch.float64).reshape(shape))
        self.operator = operator

    def forward(self, unused):
        return self.operator(self.x)


def atoms_of_elements(flow: Flow, ref: Ref) -> Any:
    """Return an object array of the shape of a tensor: the atoms that remove each of its elements."""
    per_dim = []
    for label, size in zip(map(flow.atoms.resolve, flow.of(ref)), ref.shape, strict=True):
        rows = np.zeros((1, size), dtype=np.int64) if label is None else label
        per_dim.append([frozenset(rows[:, position].tolist()) - {0} for position in range(size)])
    found = np.empty(ref.shape, dtype=object)
    for place in np.ndindex(*ref.shape):
        found[place] = frozenset().union(*(per_dim[dim][position] for dim, position in enumerate(place)))
    return found


def check_moves(shape: tuple[int, ...], operator: Operator) -> bool:
    """Check that labels arrive where values do; return whether anything stayed removable.

    A value below 0 was filled in: in one dimension it must be fixed, in several it goes with its row.
    """
    network = Rearranged(shape, operator)
    captured = record(network, (torch.zeros(1),))
    flow = Flow(captured)
    flow.propagate()
    key = next(key for key, name in captured.tensors.items() if name == "x")
    source = atoms_of_elements(flow, Ref(key, shape)).reshape(-1)
    own = frozenset().union(*source.tolist()) if source.size else frozenset()
    with torch.no_grad():
        result = network(torch.zeros(1))
    results = result if isinstance(result, tuple | list) else [result]
    for ref, values in zip(captured.outputs, results, strict=True):
        found = atoms_of_elements(flow, ref)
        for place in np.ndindex(*ref.shape):
            value = int(values[place])
            if value >= 0:
                assert found[place] & own == source[value], f"{shape} {place}"
            elif len(shape) == 1:
                assert not found[place] & own, f"{shape} {place}"
    return bool(own)


def check_every_move(
    case: Callable[[Draw], tuple[tuple[int, ...], Operator]], caplog: pytest.LogCaptureFixture
) -> None:
    """Check many draws of a case: labels move as values do, something stays removable, and no rule gives up."""
    free: list[bool] = []

    @FAST
    @given(st.data())
    def check(data: st.DataObject) -> None:
        free.append(check_moves(*case(data.draw)))

    with caplog.at_level(logging.WARNING, "edgeprune"):
        check()
    assert any(free), "the rule pins everything: nothing was tested"
    assert not caplog.records, "a rule failed and gave up"


@pytest.mark.parametrize("name", sorted(CASES))
def test_labels_move_as_values_do(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_every_move(CASES[name], caplog)


@pytest.mark.parametrize("name", sorted(ODD))
def test_operators_without_a_rule_lose_nothing(name: str) -> None:
    check_moves((3, 4), ODD[name])


def draw_step(draw: Draw, shape: tuple[int, ...]) -> Operator | None:
    """Return one rearrangement that fits a shape."""
    axis = draw(st.integers(0, len(shape) - 1))
    size, small = shape[axis], prod(shape) < 120
    order = draw(st.permutations(range(len(shape))))
    after = draw(factors(prod(shape)))
    by = draw(st.integers(0, size - 1))
    options: list[tuple[bool, Operator]] = [
        (True, lambda x: x.reshape(after)),
        (True, lambda x: x.permute(order)),
        (True, lambda x: x.flip(axis)),
        (True, lambda x: torch.cat([x.narrow(axis, by, size - by), x.narrow(axis, 0, by)], axis)),
        (small, lambda x: torch.cat([x, x.flip(axis)], axis)),
        (small, lambda x: x.repeat_interleave(2, axis)),
        (small, lambda x: torch.stack([x, x.flip(axis)], axis)),
        (size % 2 == 0, lambda x: x.chunk(2, axis)[by % 2]),
        (size > 2, lambda x: x.narrow(axis, by // 2, size // 2)),
        (len(shape) > 2 and shape[-3] % 4 == 0, lambda x: F.pixel_shuffle(x, 2)),
        (len(shape) > 2 and shape[-1] % 2 == 0 and shape[-2] % 2 == 0, lambda x: F.pixel_unshuffle(x, 2)),
        (len(shape) > 2 and shape[1] % 2 == 0, lambda x: F.channel_shuffle(x, 2)),
    ]
    return draw(st.sampled_from([operator for fits, operator in options if fits]))


@settings(FAST, max_examples=200)
@given(st.data())
def test_labels_move_as_values_do_through_chains(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3, st.sampled_from([1, 2, 3, 4, 6, 8])))
    steps: list[Operator] = []
    current = torch.zeros(shape)
    for _ in range(data.draw(st.integers(2, 6))):
        steps.append(draw_step(data.draw, tuple(current.shape)))
        current = steps[-1](current)

    def operator(x):
        for step in steps:
            x = step(x)
        return x

    check_moves(shape, operator)


def test_size_one_pieces_of_a_cut_are_pinned() -> None:
    """A dimension of size 1 carries no label, so its position must not be removable at its source."""
    for operator in (lambda x: x.chunk(4, 0), lambda x: x[1:2], lambda x: x.split(1)):
        assert not check_moves((4,), operator)


class Products(nn.Module):
    """A layer, a bare matrix and a bare vector for an operator to multiply with."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.w = nn.Parameter(torch.randn(8, 5))
        self.v = nn.Parameter(torch.randn(8))
        self.operator = operator

    def forward(self, x):
        return self.operator(self, torch.relu(self.a(x)))


PRODUCTS: dict[str, Any] = {
    "addmm": lambda m, x: torch.addmm(m.v[:5], x, m.w),
    "mm": lambda m, x: torch.mm(x, m.w),
    "matmul": lambda m, x: x @ m.w,
    "matmul_left": lambda m, x: m.w.t() @ x.t(),
    "mv": lambda m, x: x @ m.v,
    "mv_left": lambda m, x: m.v @ x.t(),
    "dot": lambda m, x: torch.stack([torch.dot(row, m.v) for row in x]),
    "sequence": lambda m, x: x[:, None].expand(-1, 3, -1) @ m.w,
    "batched": lambda m, x: torch.bmm(x[:, None], m.w.expand(len(x), -1, -1)),
    "batches_by_broadcast": lambda m, x: x[:, None, None] @ m.w[None, None],
    "two_activations": lambda m, x: (x[:, :, None] @ x[:, None]).flatten(1).square() @ m.v.outer(m.v).flatten(),
    "linear_vector": lambda m, x: F.linear(x, m.v),
    "linear_transposed": lambda m, x: F.linear(x, m.w.t()),
    "conv": lambda m, x: F.conv1d(x[:, :, None], m.w.t()[:, :, None]),
    "conv_transposed": lambda m, x: F.conv_transpose1d(x[:, :, None], m.w[:, :, None]),
    "sum_of_products": lambda m, x: (x * m.v).sum(1),
    "where": lambda m, x: torch.where(x > m.v, x, m.v) @ m.w,
    "lerp": lambda m, x: torch.lerp(x, x * 2, m.v.sigmoid()) @ m.w,
    "prelu": lambda m, x: F.prelu(x - 0.3, m.v) @ m.w,
    "clamp": lambda m, x: torch.clamp(x, m.v - 1, m.v + 1) @ m.w,
    "addcmul": lambda m, x: torch.addcmul(x, x, m.v, value=0.5) @ m.w,
    "grid_sample": lambda m, x: (
        F.grid_sample(x[:, :, None, None], x.new_zeros(len(x), 2, 2, 2), align_corners=False)[..., 0, 0] @ m.w
    ),
    "embedding_columns": lambda m, x: F.embedding(torch.zeros(len(x), dtype=torch.long), m.w.t()) * x @ m.w,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_products_and_pointwise_operators_compact_exactly(name: str) -> None:
    torch.manual_seed(0)
    model = Products(PRODUCTS[name]).double().eval()
    inputs = (torch.randn(3, 6, dtype=torch.float64),)
    graph = trace(model, inputs)
    for keep in ((0, 1, 5), (2, 3, 4, 6, 7), (7,)):
        chosen = {group.name: keep for group in graph.free if group.size == 8}
        assert chosen or name in {"two_activations"}
        assert compact(model, graph, chosen, inputs).check.max_rel < 1e-9


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_compact_exactly(seed: int) -> None:
    model = random_network(seed)
    inputs = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),)
    graph = analyse(model, inputs)
    if not graph.free:
        assert graph.groups  # each with its reason
        return
    scores = score(model, graph, "random", inputs=inputs, seed=seed)
    config = PruneConfig(ratio=(0.3, 0.5, 0.8)[seed % 3], scope=("local", "global")[seed % 2])
    try:
        plan = make_plan(graph, scores, config, align=(1, 1, 2)[seed % 3], model=model, inputs=inputs)
    except NothingToPrune:
        assert all(group.size < 4 for group in graph.free)
        return
    compacted = apply(model, plan, inputs, graph)
    assert compacted.check.max_rel < 1e-9
    others = (torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64),)
    (expected,) = reference_outputs(masked_copy(model, graph.masks(plan.keep)), graph, plan.keep, others)
    with torch.no_grad():
        found = compacted.model(*others)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_most_random_networks_can_be_pruned() -> None:
    free = [bool(trace(random_network(seed), (torch.randn(2, 3, 4, 4).double(),)).free) for seed in range(60)]
    assert sum(free) >= 50


def test_a_rule_that_fails_pins_its_operands(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(flow, call):
        raise KeyError("unknown form")

    monkeypatch.setitem(RULES, "relu", broken)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = trace(model, (torch.randn(2, 4),))
    assert graph.free == ()
    assert "relu is not understood" in str(graph.groups[0].pinned)
    assert "the rule of relu failed" in caplog.text


def test_an_own_rule_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Softshrink(), nn.Linear(8, 2))
    inputs = (torch.randn(2, 4),)
    monkeypatch.setitem(RULES, "softshrink", lambda flow, call: flow.give_up(call))
    assert trace(model, inputs).free == ()
    monkeypatch.setitem(RULES, "softshrink", RULES["pointwise"])
    assert [group.name for group in trace(model, inputs).free] == ["0"]
