"""Picking and putting by number: dimensions that are not touched keep their labels, touched ones are pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact.outputs import compact
from edgeprune.graph import trace
from tests.rearrangements import axis_of, shapes
from tests.test_rules import check_every_move, check_moves

CASES: dict[str, Callable[[Any], Any]] = {}
SIZES = st.integers(2, 4)


def case(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    CASES[function.__name__] = function
    return function


def numbers(draw: Any, size: int, *shape: int) -> torch.Tensor:
    """Draw an index into a dimension of a size."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    return torch.tensor([draw(st.integers(0, size - 1)) for _ in range(count)]).reshape(shape)


@case
def index_select(draw):
    shape = draw(shapes(1, 3))
    axis = axis_of(draw, shape)
    index = numbers(draw, shape[axis], draw(st.integers(1, 5)))
    return shape, lambda x: x.index_select(axis, index)


@case
def index(draw):
    shape = draw(shapes(2, 4, SIZES))
    wide = draw(st.sampled_from([(), (3,), (2, 2), (1, 2)]))
    indexed = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1, max_size=2))
    keys = tuple(numbers(draw, n, *wide) if axis in indexed else slice(None) for axis, n in enumerate(shape))
    return shape, lambda x: x[keys]


@case
def index_with_new_dimensions(draw):
    shape = draw(shapes(2, 3, SIZES))
    found = numbers(draw, shape[-1], 3)
    return shape, draw(st.sampled_from([lambda x: x[..., None, found], lambda x: x[None, ..., found, None]]))


@case
def index_of_different_ranks(draw):
    shape = draw(shapes(3, 4, SIZES))
    first, second = numbers(draw, shape[0], 2, 1), numbers(draw, shape[-1], 3)
    return shape, lambda x: x[first, ..., second]


@case
def mask(draw):
    shape = draw(shapes(2, 4, SIZES))
    start = draw(st.integers(0, len(shape) - 1))
    covered = shape[start : start + draw(st.integers(1, len(shape) - start))]
    chosen = torch.tensor([draw(st.booleans()) for _ in range(int(torch.tensor(covered).prod()))]).reshape(covered)
    return shape, lambda x: x[(slice(None),) * start + (chosen,)]


@case
def gather(draw):
    shape = draw(shapes(1, 3, SIZES))
    axis = axis_of(draw, shape)
    wanted = [draw(st.sampled_from([size, size, size - 1])) for size in shape]
    wanted[axis] = draw(st.integers(1, 4))
    found = numbers(
        draw, shape[axis], *(wanted[axis] if place == axis % len(shape) else 1 for place in range(len(shape)))
    )
    return shape, lambda x: x.gather(axis, found.expand(wanted))


@case
def gather_by_a_stretched_index(draw):
    shape = draw(shapes(2, 3, SIZES))
    found = numbers(draw, shape[0], 2, *[1] * (len(shape) - 1))
    return shape, lambda x: x.gather(0, found.expand(-1, *shape[1:]))


@case
def take_along_dim(draw):
    shape = draw(shapes(2, 3, SIZES))
    axis = axis_of(draw, shape)
    wanted = [draw(st.sampled_from([size, 1])) for size in shape]
    wanted[axis] = 3
    found = numbers(draw, shape[axis], *wanted)
    return shape, draw(st.sampled_from([lambda x: torch.take_along_dim(x, found, axis)] * 3 + [
        lambda x: torch.take_along_dim(x, torch.tensor([0, 1]))]))  # fmt: skip


@case
def scatter(draw):
    shape = draw(shapes(2, 3, SIZES))
    axis = axis_of(draw, shape)
    wanted = [draw(st.sampled_from([size, size, size - 1])) for size in shape]
    wanted[axis] = 1
    found = numbers(draw, shape[axis], *[1] * len(shape))
    blank = lambda x: torch.full_like(x, -1)  # noqa: E731
    ways = [
        lambda x: blank(x).scatter(axis, found.expand(wanted), x),
        lambda x: x.scatter(axis, found.expand(wanted), -1.0),
        lambda x: x.clone().scatter_(axis, found.expand(wanted), -torch.ones(wanted, dtype=x.dtype)),
    ]
    return shape, draw(st.sampled_from(ways))


@case
def written_by_number(draw):
    shape = draw(shapes(2, 3, SIZES))
    axis = axis_of(draw, shape)
    found = torch.tensor(draw(st.lists(st.integers(0, shape[axis] - 1), unique=True, min_size=1)))

    def values(x: torch.Tensor) -> torch.Tensor:
        return x.index_select(axis, found)

    ways = [
        lambda x: torch.full_like(x, -1).index_copy(axis, found, values(x)),
        lambda x: x.index_fill(axis, found, -1),
        lambda x: torch.zeros_like(x).sub(1e9).index_add(axis, found, torch.zeros_like(values(x))),
    ]
    return shape, draw(st.sampled_from(ways))


@case
def index_put(draw):
    shape = draw(shapes(2, 4, SIZES))
    axis = draw(st.integers(0, len(shape) - 1))
    found = torch.tensor(draw(st.lists(st.integers(0, shape[axis] - 1), unique=True, min_size=1)))
    key = (slice(None),) * axis + (found,)
    number, masked = torch.tensor(-1.0, dtype=torch.float64), torch.zeros(shape[axis], dtype=torch.bool)
    masked[found] = True

    def put(x: torch.Tensor, where: Any, values: Any) -> torch.Tensor:
        x = x.clone()
        x[where] = values(x)
        return x

    ways = [
        lambda x: put(x, key, lambda x: number),
        lambda x: put(x, (slice(None),) * axis + (masked,), lambda x: number),
        lambda x: put(torch.full_like(x, -1), key, lambda y: x[key]),
        lambda x: (
            put(torch.full_like(x, -1), (*key, ..., found[:1] * 0), lambda y: x[(*key, ..., found[:1] * 0)])
            if axis < len(shape) - 2
            else x
        ),
    ]
    return shape, draw(st.sampled_from(ways))


@case
def scattered_slices(draw):
    shape = draw(shapes(2, 3, SIZES))
    axis = axis_of(draw, shape)
    ways = [
        lambda x: x.slice_scatter(x.narrow(axis, 1, 1), axis, 0, 1),
        lambda x: x.select_scatter(x.select(axis, 0), axis, 1),
        lambda x: x.slice_scatter(-torch.ones_like(x.narrow(axis, 0, 1)), axis, 0, 1),
    ]
    # positions along the touched dimension change places
    return shape, draw(st.sampled_from(ways))


@case
def rolled(draw):
    shape = draw(shapes(1, 3, SIZES))
    axis = axis_of(draw, shape)
    return shape, draw(st.sampled_from([lambda x: x.roll(1, axis), lambda x: torch.fft.fftshift(x, axis)]))


@case
def diagonal(draw):
    shape = [*draw(shapes(2, 4, SIZES))]
    first, second = draw(st.permutations(range(len(shape))))[:2]
    shape[second] = draw(st.sampled_from([shape[first], shape[second]]))
    offset = draw(st.sampled_from([0, 0, 1]))
    return tuple(shape), lambda x: x.diagonal(offset, first, second)


@case
def diagonal_matrix(draw):
    shape = draw(shapes(2, 3, SIZES))  # what is filled in goes with its row
    offset = draw(st.sampled_from([0, 0, 1]))
    ways = [lambda x: (x + 1).diag_embed(offset) - 1, lambda x: (x + 1).diag_embed(offset, -2, 0) - 1]
    return shape, draw(st.sampled_from(ways))


@case
def triangle(draw):
    return draw(shapes(2, 4, SIZES)), draw(
        st.sampled_from([lambda x: (x + 1).tril() - 1, lambda x: (x + 1).triu() - 1])
    )


@case
def meshgrid(draw):
    shape = (draw(SIZES),)
    indexing, place = draw(st.sampled_from(["ij", "xy"])), draw(st.integers(0, 2))

    def operator(x: torch.Tensor) -> torch.Tensor:
        vectors = [torch.zeros(3, dtype=x.dtype), torch.zeros(5, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)]
        vectors[place] = x
        return torch.meshgrid(*vectors, indexing=indexing)[place]

    return shape, operator


@case
def stacked(draw):
    shape = draw(shapes(1, 3, SIZES))
    name = draw(st.sampled_from(["hstack", "vstack", "dstack", "column_stack"]))
    return shape, lambda x: getattr(torch, name)([x, x.flip(0)])


@case
def sorted_along(draw):
    shape = draw(shapes(1, 3, SIZES))
    axis = axis_of(draw, shape)
    ways = [
        lambda x: x.sort(axis, descending=True)[0],
        lambda x: x.topk(1, axis)[0],
        lambda x: x.cummax(axis)[0],
        lambda x: x.msort(),
    ]
    return shape, draw(st.sampled_from(ways))


@pytest.mark.parametrize("name", sorted(CASES))
def test_labels_move_as_values_do(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_every_move(CASES[name], caplog)


def test_a_known_index_moves_the_labels_that_it_picks() -> None:
    order = torch.tensor([2, 0, 1, 0])
    assert check_moves((3, 2), lambda x: x.index_select(0, order))
    assert check_moves((2, 3), lambda x: x[:, order])


class Net(nn.Module):
    """A layer of eight channels, an operator that must let them pass, a layer that reads them."""

    def __init__(self, operator: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.table = nn.Parameter(torch.randn(5, 8))
        self.b = nn.Linear(8, 3)
        self.operator = operator

    def forward(self, x):
        return self.b(self.operator(self, torch.relu(self.a(x)))).sum(1)


ORDER = torch.tensor([2, 0, 1])
PASSING: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "index_select": lambda m, h: h.index_select(1, ORDER),
    "index": lambda m, h: h[:, ORDER],
    "index_of_two": lambda m, h: h[torch.tensor([0, 1, 1])[:, None], ORDER],
    "mask": lambda m, h: h[:, torch.tensor([True, False, True, True])],
    "mask_of_two": lambda m, h: h[h.sum(2) > 1e9].sum() + h,
    "gather": lambda m, h: h.gather(1, ORDER[None, :, None].expand(len(h), -1, h.shape[2])),
    "gather_best": lambda m, h: h.gather(1, h.sum(2).topk(2, 1)[1][:, :, None].expand(-1, -1, h.shape[-1])),
    "take_along_dim": lambda m, h: torch.take_along_dim(h, h.sum(2).argsort(1)[:, :, None], 1),
    "roll": lambda m, h: h.roll(1, 1),
    "index_add": lambda m, h: h.index_add(1, ORDER, h[:, :3]),
    "index_copy": lambda m, h: h.index_copy(1, ORDER, h[:, :3] * 2),
    "scatter_add": lambda m, h: h.scatter_add(1, (h[:, :3] * 0).long(), h[:, 1:4]),
    "index_put": lambda m, h: torch.index_put(h, (torch.tensor([0]), torch.tensor([1])), h[0, 2]),
    "embedding_bag": lambda m, h: h + F.embedding_bag(torch.tensor([[0, 1], [2, 4]]), m.table)[:, None],
    "embedding_bag_max": lambda m, h: h + F.embedding_bag(torch.tensor([[0, 1], [2, 4]]), m.table, mode="max")[:, None],
    "cumsum": lambda m, h: h.cumsum(1),
    "cummax": lambda m, h: h.cummax(1)[0] + h.logcumsumexp(1),
    "sort": lambda m, h: h.sort(1)[0],
    "diff": lambda m, h: h.diff(dim=1, prepend=h[:, :1]),
    "quantile": lambda m, h: h.quantile(0.3, 1, keepdim=True),
    "quantiles": lambda m, h: h.quantile(torch.tensor([0.3, 0.6], dtype=h.dtype), 1).transpose(0, 1),
    "bucketize": lambda m, h: h * torch.bucketize(h, torch.tensor([0.1, 0.5], dtype=h.dtype)),
    "searchsorted": lambda m, h: h * torch.searchsorted(torch.tensor([0.1, 0.5], dtype=h.dtype), h),
    "where": lambda m, h: torch.where(h > 0.5, h, 0.1) + torch.where(h > 0.2, 1.0, h),
    "one_hot": lambda m, h: h + F.one_hot((h > 0.5).long(), 2)[..., 1],
    "index_fill": lambda m, h: h.index_fill(1, ORDER, 0.5),
    "masked_channels": lambda m, h: h * (h[:, :1] > 0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PASSING))
def test_channels_pass_operators_on_other_dimensions(name: str) -> None:
    torch.manual_seed(0)
    model = Net(PASSING[name]).double().eval()
    inputs = (torch.randn(2, 4, 6, dtype=torch.float64),)
    graph = trace(model, inputs)
    (group,) = graph.free
    for keep in ((0, 1, 5), (2, 3, 4, 6, 7), (7,)):
        assert compact(model, graph, {group.name: keep}, inputs).check.max_rel < 1e-9


def test_a_mask_that_is_computed_from_channels_pins_them() -> None:
    model = Net(lambda m, h: F.pad(h[0][:, m.table[0] > -9.0], (0, 8))[None, :, :8]).double().eval()
    pinned = {tensor for group in trace(model, (torch.randn(2, 4, 6).double(),)).groups if group.pinned
              for tensor in group.tensors}  # fmt: skip
    assert {"a.weight", "table"} <= pinned


REORDERED: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "index_select": lambda m, h: h.index_select(2, torch.tensor([3, 0, 1, 2, 7, 6, 5, 4])),
    "index": lambda m, h: h[..., [1, 0, 3, 2, 5, 4, 7, 6]],
    "negative": lambda m, h: h[..., [-1, -2, -3, -4, 3, 2, 1, 0]],
    "twice": lambda m, h: h[..., [0, 1, 2, 3, 0, 1, 2, 3]] + h[..., [4, 5, 6, 7, 7, 6, 5, 4]],
    "strided": lambda m, h: torch.cat([h[..., ::2], h[..., 1::2]], -1),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REORDERED))
def test_channels_that_are_reordered_by_constants_are_renumbered(name: str) -> None:
    torch.manual_seed(0)
    model = Net(REORDERED[name]).double().eval()
    inputs = (torch.randn(2, 4, 6, dtype=torch.float64),)
    graph = trace(model, inputs)
    assert graph.free
    for start in range(2):
        keep = {group.name: tuple(range(start, group.size, 2)) for group in graph.free}
        assert compact(model, graph, keep, inputs, "graph").check.max_rel < 1e-9


TOUCHING: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "index_select": lambda m, h: h.index_select(2, (h[0, 0] > 9).long() + torch.arange(8)),
    "index": lambda m, h: h[..., (h[0, 0] > 9).long() + torch.arange(8)],
    "gather": lambda m, h: h.gather(2, torch.zeros(2, 4, 8, dtype=torch.long)),
    "gather_a_part": lambda m, h: F.pad(h.gather(1, torch.zeros(2, 4, 5, dtype=torch.long)), (0, 3)),
    "roll": lambda m, h: h.roll(1, 2),
    "scatter": lambda m, h: h.scatter(2, torch.zeros(2, 4, 1, dtype=torch.long), 0.0),
    "cumsum": lambda m, h: h.cumsum(2),
    "argmax": lambda m, h: h + h.argmax(2, keepdim=True),
    "max_with_its_index": lambda m, h: h + h.max(2, keepdim=True)[1],
    "masked_select": lambda m, h: h + h.masked_select(h > 0).sum(),
    "nonzero": lambda m, h: h + (h > 0).nonzero().sum(),
    "tril": lambda m, h: h.tril(),
    "bincount": lambda m, h: h + torch.bincount((h * 0).long().flatten())[0],
    "take": lambda m, h: h + h.take(torch.tensor([3])),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOUCHING))
def test_a_touched_dimension_is_pinned_with_its_reason(name: str) -> None:
    model = Net(TOUCHING[name]).double().eval()
    graph = trace(model, (torch.randn(2, 4, 6, dtype=torch.float64),))
    (pinned,) = [group for group in graph.groups if "a.weight" in group.tensors]
    assert pinned.pinned
    assert "not understood" not in pinned.pinned
