"""Sums of products: every letter is one dimension; what is summed is right without the removed positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact.outputs import compact
from edgeprune.graph import trace
from edgeprune.graph.cost import count_macs
from edgeprune.graph.rules.einsum import parse
from edgeprune.pruning.budget import remaining_macs
from tests.test_rules import FAST


@pytest.mark.parametrize(
    ("equation", "ranks", "terms", "output"),
    [
        ("ij,jk->ik", (2, 2), ["ij", "jk"], "ik"),
        (" b i , i -> b ", (2, 1), ["bi", "i"], "b"),
        ("ji,kj", (2, 2), ["ji", "kj"], "ik"),
        ("ii", (2,), ["ii"], ""),
        ("Ba,aB", (2, 2), ["Ba", "aB"], ""),
    ],
)
def test_equations_are_read_as_torch_reads_them(equation: str, ranks: Any, terms: list[str], output: str) -> None:
    assert parse(equation, ranks) == ([list(term) for term in terms], list(output))


def test_an_ellipsis_is_counted_from_its_end() -> None:
    assert parse("b...d,...de->b...e", (4, 3)) == (
        [["b", ".2", ".1", "d"], [".1", "d", "e"]],
        ["b", ".2", ".1", "e"],
    )
    assert parse("...i,j...", (3, 1)) == ([[".2", ".1", "i"], ["j"]], [".2", ".1", "i", "j"])
    assert parse("a...->a", (3,)) == ([["a", ".2", ".1"]], ["a"])


class Sum(nn.Module):
    """Inputs through layers that make the dimensions named in `wide`, an equation, all of the result in one number."""

    def __init__(self, equation: str, sizes: dict[str, int], parameters: tuple[bool, ...], spelt: str) -> None:
        super().__init__()
        self.equation = spelt
        self.terms = equation.partition("->")[0].split(",")
        self.weights = nn.ParameterList()
        self.bare = parameters
        for term in self.terms:
            self.weights.append(nn.Parameter(torch.randn([sizes[letter] for letter in term])))

    def forward(self, x):
        # An activation is made of the input, so that it depends on it, and is not zero where its weight is.
        pairs = zip(self.weights, self.bare, strict=True)
        operands = [weight if bare else torch.sigmoid(weight * x.sum()) + 0.2 for weight, bare in pairs]
        result = torch.einsum(self.equation, *operands)
        return (result * torch.cos(result)).sum()[None]


LETTERS = "abcdef"


@st.composite
def equations(draw: Any) -> tuple[str, dict[str, int], tuple[bool, ...]]:
    count = draw(st.integers(1, 3))
    terms = ["".join(draw(st.permutations(LETTERS[: 3 + count]))[: draw(st.integers(1, 3))]) for _ in range(count)]
    present = sorted(set("".join(terms)))
    output = "".join(draw(st.permutations(present))[: draw(st.integers(0, len(present)))])
    sizes = {letter: draw(st.sampled_from([4, 4, 5, 1])) for letter in present}
    bare = tuple(draw(st.booleans()) for _ in terms)
    return ",".join(terms) + "->" + output, sizes, bare


def check_equation(equation: str, sizes: dict[str, int], bare: tuple[bool, ...], spelt: str | None = None) -> int:
    """Prune every free group and compare with the equation on kept positions alone; return how many were free."""
    torch.manual_seed(0)
    model = Sum(equation, sizes, bare, spelt or equation).double().eval()
    inputs = (torch.tensor([0.7], dtype=torch.float64),)
    graph = trace(model, inputs)
    for group in graph.free:
        keep = {group.name: tuple(range(0, group.size, 2))}
        compacted = compact(model, graph, keep, inputs)
        assert compacted.check.max_rel < 1e-9
        masks = graph.masks(keep)
        by_hand = [weight.detach().clone() for weight in model.weights]
        for (name, axis), mask in masks.items():
            number = int(name.rpartition(".")[2])
            by_hand[number] = by_hand[number].index_select(axis, torch.from_numpy(mask).nonzero()[:, 0])
        operands = [w if bare else torch.sigmoid(w * 0.7) + 0.2 for w, bare in zip(by_hand, bare, strict=True)]
        result = torch.einsum(model.equation, *operands)
        with torch.no_grad():
            torch.testing.assert_close(compacted.model(*inputs), (result * torch.cos(result)).sum()[None])
    return len(graph.free)


def test_any_equation_is_right_on_the_kept_positions_alone() -> None:
    free: list[int] = []

    @FAST
    @given(equations())
    def check(drawn: Any) -> None:
        free.append(check_equation(*drawn))

    check()
    assert sum(map(bool, free)) > 20


@pytest.mark.parametrize("spelt", ["...b,bc->...c", "a...,...c->a...c", "ab,...->...ab"])
def test_an_ellipsis_is_right_on_the_kept_positions_alone(spelt: str) -> None:
    full = {"...b,bc->...c": "ab,bc->ac", "a...,...c->a...c": "ab,bc->abc", "ab,...->...ab": "ab,c->cab"}[spelt]
    for bare in ((False, False), (False, True), (True, True)):
        assert check_equation(full, {"a": 4, "b": 6, "c": 5}, bare, spelt)


def test_a_letter_that_stands_twice_in_one_tensor_is_pinned() -> None:
    model = Sum("aab->b", {"a": 4, "b": 6}, (False,), "aab->b").double()
    (group,) = trace(model, (torch.ones(1, dtype=torch.float64),)).free
    assert group.size == 6


class Product(nn.Module):
    """Two layers of eight channels that are not zero where nothing is left of them, and bare weights."""

    def __init__(self, operator: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(6, 8)
        self.w = nn.Parameter(torch.randn(8, 5))
        self.v = nn.Parameter(torch.randn(8))
        self.cube = nn.Parameter(torch.randn(5, 8, 8))
        self.bias = nn.Parameter(torch.randn(5))
        self.operator = operator

    def forward(self, x):
        return self.operator(self, torch.sigmoid(self.a(x)) + 0.3, torch.sigmoid(self.b(x)) - 0.3)


OPERATORS: dict[str, Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "einsum_linear": lambda m, x, y: torch.einsum("bi,io->bo", x, m.w),
    "einsum_gram": lambda m, x, y: torch.einsum("bi,bj->bij", x, y).flatten(1).square().sum(1),
    "einsum_pairs": lambda m, x, y: torch.einsum("bi,ci->bc", x, y),
    "einsum_bilinear": lambda m, x, y: torch.einsum("bi,oij,bj->bo", x, m.cube, y),
    "einsum_implicit": lambda m, x, y: torch.einsum("bi,bi,io", x, y, m.w),
    "tensordot": lambda m, x, y: torch.tensordot(x, m.w, 1),
    "tensordot_of_two": lambda m, x, y: torch.tensordot(x[:, None] * y[..., None], m.cube, ([1, 2], [1, 2])),
    "inner": lambda m, x, y: torch.inner(x, m.w.t()) * torch.inner(m.v, m.v) + torch.inner(x, y).sum(),
    "inner_of_scalars": lambda m, x, y: torch.inner(x.sum(), y) @ m.w,
    "outer": lambda m, x, y: torch.outer(x[0], y[0]).square().sum(1) @ m.w + torch.ger(m.v, x[0]).sum(),
    "bilinear": lambda m, x, y: F.bilinear(x, y, m.cube, m.bias),
    "bilinear_sequence": lambda m, x, y: F.bilinear(x[:, None], y[:, None], m.cube).sum(1),
    "chain_matmul": lambda m, x, y: torch.linalg.multi_dot([x, m.w, m.w.t(), y.t()]),
    "chain_of_vectors": lambda m, x, y: torch.linalg.multi_dot([m.v, y.t() * 2, y * x, m.v]) + x @ m.w,
    "baddbmm": lambda m, x, y: torch.baddbmm(m.bias, x[:, None], m.w.expand(len(x), -1, -1)),
    "baddbmm_of_activations": lambda m, x, y: torch.baddbmm(x.sum(1)[:, None, None], x[:, None], y[..., None]),
    "addbmm": lambda m, x, y: torch.addbmm(m.bias, x[:, None], m.w.expand(len(x), -1, -1)),
    "addmv": lambda m, x, y: torch.addmv(x.sum(1), x, m.v) + torch.addmv(m.bias, m.w.t(), m.v).sum(),
    "addr": lambda m, x, y: torch.addr(m.w, m.v, m.bias).square().sum(1) @ x.t(),
    "addmm_in_place": lambda m, x, y: (y.clone().addmm_(x, m.cube[0])) @ m.w,
    "vecdot": lambda m, x, y: torch.linalg.vecdot(x, y) + torch.linalg.vecdot(x[:, None], m.w.t()).sum(1),
    "kron": lambda m, x, y: torch.kron(x, y).square().sum(1) + torch.kron(m.v, m.v).sum(),
    "outer_by_hand": lambda m, x, y: (x[:, :, None] * y[:, None]).flatten(1).square().sum(1),
    "linear_by_einsum_and_back": lambda m, x, y: torch.einsum("bo,io->bi", torch.einsum("bi,io->bo", x, m.w), m.w) * y,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_products_compact_exactly(name: str) -> None:
    torch.manual_seed(0)
    model = Product(OPERATORS[name]).double().eval()
    if name == "linear_by_einsum_and_back":
        model.operator = lambda m, x, y: OPERATORS[name](m, x, y) @ m.w
    inputs = (torch.randn(3, 6, dtype=torch.float64),)
    graph = trace(model, inputs)
    eight = [group for group in graph.free if group.size == 8]
    assert eight
    macs = count_macs(model, inputs)
    for units in ((0, 1, 5), (2, 3, 4, 6, 7), (7,)):
        keep = {group.name: units for group in eight}
        compacted = compact(model, graph, keep, inputs)
        assert compacted.check.max_rel < 1e-9
        if name in {"einsum_linear", "einsum_pairs"} and len(units) > 1:  # of one position there is no sum
            left = count_macs(compacted.model, inputs) / macs
            assert remaining_macs(graph, keep, macs) == pytest.approx(left, abs=1e-9)


def test_letters_of_a_weight_that_make_channels_name_the_group() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2, 4))

        def forward(self, x):
            h = torch.einsum("bni,ihd->bhnd", x, self.weight)
            return h.square().sum((1, 3))

    groups = trace(Heads(), (torch.randn(2, 3, 6),)).free
    assert {group.producer for group in groups} == {("weight", 1), ("weight", 2)}
