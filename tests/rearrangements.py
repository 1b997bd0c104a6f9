"""Operators that only rearrange values, with random shapes and arguments drawn by hypothesis.

Each case draws a shape and an operator for a tensor of that shape. `ODD` are operators without a rule or with unusual
forms. Values that an operator fills in are negative.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Operator = Callable[[torch.Tensor], Any]


def shapes(least: int = 1, most: int = 4, sizes: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Any]:
    return st.lists(st.integers(1, 6) if sizes is None else sizes, min_size=least, max_size=most).map(tuple)


ROUND = st.sampled_from([1, 2, 3, 4, 6, 8, 12])
FEW = st.sampled_from([1, 1, 2, 3])
SMALL = st.integers(1, 4)


@st.composite
def factors(draw: Any, number: int) -> tuple[int, ...]:
    """Draw a shape with the given number of elements."""
    found, rest = [], number
    while rest > 1 and len(found) < 5:
        found.append(draw(st.sampled_from([k for k in range(1, rest + 1) if rest % k == 0])))
        rest //= found[-1]
    if rest > 1 or not found:
        found.append(rest)
    if draw(st.booleans()):
        found.insert(draw(st.integers(0, len(found))), 1)
    return tuple(found)


Case = Callable[[Draw], tuple[tuple[int, ...], Operator]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def axis_of(draw: Draw, shape: tuple[int, ...]) -> int:
    return draw(st.integers(-len(shape), len(shape) - 1))


@case
def view(draw):
    shape = draw(shapes(sizes=ROUND))
    after = draw(factors(prod(shape)))
    return shape, lambda x: x.view(after)


@case
def reshape_twice(draw):
    shape = draw(shapes(1, 3, ROUND))
    first, second = draw(factors(prod(shape))), draw(factors(prod(shape)))
    return shape, lambda x: x.reshape(first).reshape(second)


@case
def views_and_permutations(draw):
    shape = draw(shapes(1, 3, ROUND))
    steps = []
    for _ in range(3):
        after = draw(factors(prod(shape)))
        steps.append((after, draw(st.permutations(range(len(after))))))

    def operator(x):
        for after, order in steps:
            x = x.reshape(after).permute(order)
        return x

    return shape, operator


@case
def flatten(draw):
    shape = draw(shapes())
    start = draw(st.integers(0, len(shape) - 1))
    end = draw(st.integers(start, len(shape) - 1))
    return shape, lambda x: x.flatten(start, end)


@case
def unflatten(draw):
    shape = draw(shapes(1, 3, ROUND))
    axis = axis_of(draw, shape)
    sizes = draw(factors(shape[axis]))
    return shape, lambda x: x.unflatten(axis, sizes)


@case
def view_as(draw):
    shape = draw(shapes())
    after = draw(factors(prod(shape)))
    name = draw(st.sampled_from(["view_as", "reshape_as"]))
    return shape, lambda x: getattr(x, name)(torch.zeros(after))


@case
def ravel(draw):
    return draw(shapes()), lambda x: x.ravel()


@case
def permute(draw):
    shape = draw(shapes())
    order = draw(st.permutations(range(-len(shape), 0)))
    return shape, lambda x: x.permute(order)


@case
def transpose(draw):
    shape = draw(shapes())
    first, second = axis_of(draw, shape), axis_of(draw, shape)
    name = draw(st.sampled_from(["transpose", "swapaxes", "swapdims"]))
    return shape, lambda x: getattr(x, name)(first, second)


@case
def matrix_transpose(draw):
    name = draw(st.sampled_from(["T", "mT", "H", "mH"]))
    shape = draw(shapes(2, 2))
    return shape, draw(st.sampled_from([lambda x: getattr(x, name), lambda x: x.t()]))


@case
def batched_transpose(draw):
    return draw(shapes(3, 4)), lambda x: x.mT


@case
def movedim(draw):
    shape = draw(shapes())
    count = draw(st.integers(1, len(shape)))
    source = tuple(draw(st.permutations(range(len(shape))))[:count])
    target = tuple(draw(st.permutations(range(-len(shape), 0)))[:count])
    name = draw(st.sampled_from(["movedim", "moveaxis"]))
    if count == 1:
        return shape, lambda x: getattr(x, name)(source[0], target[0])
    return shape, lambda x: getattr(x, name)(source, target)


@case
def squeeze(draw):
    shape = draw(shapes(1, 4, FEW))
    axis, other = axis_of(draw, shape), draw(st.integers(0, len(shape) - 1))
    both = tuple({axis % len(shape), other})
    ways = [lambda x: x.squeeze(), lambda x: x.squeeze(axis), lambda x: x.squeeze(both)]
    return shape, draw(st.sampled_from(ways))


@case
def unsqueeze(draw):
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape) - 1, len(shape)))
    return shape, lambda x: x.unsqueeze(axis)


@case
def in_place_changes_of_shape(draw):
    shape = draw(shapes(2, 4, FEW))
    axis = axis_of(draw, shape)
    return shape, lambda x: x.clone().squeeze_(axis).unsqueeze_(0).transpose_(0, -1)


@case
def expand(draw):
    shape = draw(shapes(1, 3, FEW))
    before = draw(shapes(0, 2, SMALL))
    after = before + tuple(draw(SMALL) if size == 1 else size for size in shape)
    kept = [-1 if old > 1 else new for old, new in zip(shape, after[len(before) :], strict=True)]
    ways = [
        lambda x: x.expand(after),
        lambda x: x.expand_as(torch.zeros(after)),
        lambda x: torch.broadcast_to(x, after),
        lambda x: x.expand(*before, *kept),
    ]
    return shape, draw(st.sampled_from(ways))


@case
def repeat(draw):
    shape = draw(shapes(1, 3, SMALL))
    times = draw(shapes(len(shape), len(shape) + 1, st.integers(1, 3)))
    return shape, lambda x: x.repeat(times)


@case
def tile(draw):
    shape = draw(shapes(1, 3, SMALL))
    times = draw(shapes(1, len(shape) + 1, st.integers(1, 3)))
    return shape, lambda x: x.tile(times)


@case
def repeat_interleave(draw):
    shape = draw(shapes(1, 3))
    axis, times = axis_of(draw, shape), draw(st.integers(1, 3))
    ways = [
        lambda x: x.repeat_interleave(times, axis),
        lambda x: x.repeat_interleave(times),
        lambda x: x.repeat_interleave(torch.full((x.shape[axis],), times), axis),
    ]
    return shape, draw(st.sampled_from([ways[0], *ways]))


@case
def cat(draw):
    shape = draw(shapes(1, 3))
    axis, count, filled = axis_of(draw, shape), draw(st.integers(2, 3)), draw(st.integers(0, 3))
    size = [*shape]
    size[axis] = filled

    def operator(x):
        parts = [x, x.flip(axis), x][:count]
        return torch.cat([*parts, torch.full(size, -1.0, dtype=x.dtype)] if filled else parts, axis)

    return shape, operator


@case
def stack(draw):
    shape = draw(shapes(1, 3))
    axis = draw(st.integers(-len(shape) - 1, len(shape)))
    turned = draw(st.booleans())
    return shape, lambda x: torch.stack([x, x.flip(0) if turned else x], axis)


@case
def chunk(draw):
    shape = draw(shapes(1, 3, ROUND))
    axis, count = axis_of(draw, shape), draw(st.integers(1, 5))
    name = draw(st.sampled_from(["chunk", "tensor_split", "split"]))
    return shape, lambda x: getattr(x, name)(count, axis)


@case
def split_at(draw):
    shape = draw(shapes(1, 3, ROUND))
    axis = axis_of(draw, shape)
    first = draw(st.integers(0, shape[axis]))
    second = draw(st.integers(first, shape[axis]))
    if draw(st.booleans()):
        return shape, lambda x: x.split([first, second - first, x.shape[axis] - second], axis)
    return shape, lambda x: x.tensor_split((first, second), axis)


@case
def slices(draw):
    shape = draw(shapes(1, 3, ROUND))
    axis = draw(st.integers(0, len(shape) - 1))
    end = st.none() | st.integers(-shape[axis] - 1, shape[axis] + 1)
    cut = slice(draw(end), draw(end), draw(st.sampled_from([1, 1, 1, 2, 3])))
    return shape, lambda x: x[(slice(None),) * axis + (cut,)]


@case
def rotation_by_slices(draw):
    shape = draw(shapes(1, 3, st.sampled_from([4, 6, 8, 12])))
    axis = draw(st.integers(0, len(shape) - 1))
    by = draw(st.integers(1, shape[axis] - 1))
    return shape, lambda x: torch.cat([x.narrow(axis, by, x.shape[axis] - by), x.narrow(axis, 0, by)], axis)


@case
def halves_written_in_place(draw):
    shape = draw(shapes(1, 3, st.sampled_from([2, 4, 6, 8])))
    axis = draw(st.integers(0, len(shape) - 1))

    def operator(x):
        result, half = torch.full_like(x, -1), x.shape[axis] // 2
        result.narrow(axis, 0, half).copy_(x.narrow(axis, half, half))
        result.narrow(axis, half, half).copy_(x.narrow(axis, 0, half))
        return result

    return shape, operator


@case
def narrow(draw):
    shape = draw(shapes(1, 3, ROUND))
    axis = axis_of(draw, shape)
    start = draw(st.integers(-shape[axis], shape[axis]))
    length = draw(st.integers(0, shape[axis] - (start % shape[axis] if start < shape[axis] else start)))
    return shape, lambda x: x.narrow(axis, start, length)


@case
def select(draw):
    shape = draw(shapes(1, 3))
    axis = axis_of(draw, shape)
    index = draw(st.integers(-shape[axis], shape[axis] - 1))
    return shape, lambda x: x.select(axis, index)


@case
def unbind(draw):
    shape = draw(shapes(1, 3))
    axis = axis_of(draw, shape)
    return shape, lambda x: x.unbind(axis)


@case
def flip(draw):
    shape = draw(shapes(1, 3))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    back = draw(st.sampled_from([0, len(shape)]))
    return shape, lambda x: x.flip([axis - back for axis in axes])


@case
def pad(draw):
    shape = draw(shapes(1, 3))
    amounts = []
    for size in draw(st.sampled_from([shape[-k:][::-1] for k in range(1, len(shape) + 1)])):
        least = -((size - 1) // 2)
        amounts += [draw(st.integers(least, 2)), draw(st.integers(least, 2))]
    return shape, lambda x: F.pad(x, amounts, value=-1.0)


@case
def pad_with_own_values(draw):
    shape = draw(shapes(2, 4, st.integers(3, 5)))
    mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
    count = draw(st.sampled_from([k for k in (len(shape) - 1, len(shape) - 2) if k]))
    amounts = [draw(st.integers(0, 2)) for _ in range(2 * count)]
    return shape, lambda x: F.pad(x, amounts, mode=mode)


@case
def pixel_shuffle(draw):
    factor, channels = draw(st.integers(1, 3)), draw(SMALL)
    shape = (*draw(shapes(0, 2, FEW)), channels * factor**2, draw(FEW), draw(FEW))
    return shape, lambda x: F.pixel_shuffle(x, factor)


@case
def pixel_unshuffle(draw):
    factor = draw(st.integers(1, 3))
    shape = (*draw(shapes(0, 2, FEW)), draw(SMALL), factor * draw(FEW), factor * draw(FEW))
    return shape, lambda x: F.pixel_unshuffle(x, factor)


@case
def channel_shuffle(draw):
    groups = draw(SMALL)
    shape = (draw(FEW), groups * draw(SMALL), *draw(shapes(1, 2, FEW)))
    return shape, draw(
        st.sampled_from([lambda x: F.channel_shuffle(x, groups), lambda x: torch.native_channel_shuffle(x, groups)])
    )


ODD: dict[str, Operator] = {
    "hstack": lambda x: torch.hstack([x, x.flip(0)]),
    "vstack": lambda x: torch.vstack([x, x]),
    "dstack": lambda x: torch.dstack([x, x]),
    "column_stack": lambda x: torch.column_stack([x, x]),
    "roll": lambda x: x.roll(1, 0),
    "roll_all": lambda x: x.roll(1),
    "copies": lambda x: x.transpose(0, -1).contiguous().clone().to(torch.float64).detach(),
    "index_select": lambda x: x.index_select(0, torch.arange(x.shape[0] - 1, -1, -1)),
    "index": lambda x: x[list(range(x.shape[0]))[::-1]],
    "mask": lambda x: x[torch.arange(x.shape[0]) % 2 == 0],
    "take": lambda x: x.take(torch.tensor([0])),
    "gather": lambda x: x.gather(0, torch.zeros_like(x, dtype=torch.long)),
    "atleast": lambda x: torch.atleast_3d(torch.atleast_2d(x)),
    "diagonal": lambda x: x.diagonal() if x.dim() > 1 else (x + 1).diag() - 1,
    "unfold": lambda x: x.unfold(0, 1, 1),
    "as_strided": lambda x: x.as_strided((x.numel(),), (1,)),
    "dtype": lambda x: x.view(torch.int64).view(torch.float64),
    "resize": lambda x: x.clone().resize_(1, x.numel()),
    "select_scatter": lambda x: x.select_scatter(torch.full(x.shape[1:], -1.0, dtype=x.dtype), 0, 0),
    "hsplit": lambda x: x.hsplit(1),
    "rot90": lambda x: x.rot90() if x.dim() > 1 else x.flip(0),
    "sort": lambda x: x.sort(0)[0],
    "topk": lambda x: x.topk(1, 0)[0],
    "meshgrid": lambda x: torch.meshgrid(x.flatten(), torch.zeros(2, dtype=x.dtype), indexing="ij")[0],
    "index_put": lambda x: x.clone().index_put_((torch.tensor([0]),), torch.tensor(-1.0, dtype=x.dtype)),
}


@case
def odd(draw):
    return draw(shapes(1, 3)), ODD[draw(st.sampled_from(sorted(ODD)))]
