"""The structure of a join: which atoms of two labels hang together, from the pattern of the labels alone.

Repeated blocks of a network meet the same joins with other atoms. Patterns are the labels with their atoms numbered by
order, so that equal blocks have equal patterns, and the structure of the second is looked up.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MEMORY = 256  # structures


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What a join says: the components that every value of the pattern meets.

    `once` are values with their only component, shape (2, n). `several` has one row per value that meets more: the
    value and its components. `components` is the number of all components.
    """

    once: Ids
    several: tuple[tuple[int, Ids], ...]
    components: int


class Structures:
    """The structures of joins, with the latest ones remembered.

    Args:
        memory: How many are remembered.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._known: OrderedDict[tuple[int, int, bytes], Structure] = OrderedDict()

    def of(self, a: Ids, b: Ids) -> tuple[Ids, Structure]:
        """Return the atoms in two resolved labels of one dimension, ascending from 0, and the structure of their join.

        The values of the structure are positions among those atoms.
        """
        both = np.concatenate([np.zeros((1, a.shape[1]), dtype=np.int64), a, b])
        atoms, numbered = np.unique(both, return_inverse=True)
        pattern = numbered.reshape(both.shape)[1:]
        key = (len(a), a.shape[1], pattern.astype(np.int32).tobytes())
        found = self._known.pop(key, None)
        if found is None:
            found = structure(pattern[: len(a)], pattern[len(a) :])
        self._known[key] = found
        if len(self._known) > self._memory:
            self._known.popitem(last=False)
        return atoms, found


def structure(a: Ids, b: Ids) -> Structure:
    """Return what the join of two labels says: per pair of layers, the connected components of their values.

    Value 0 stands for nothing. A component that covers a whole region of positions and mixes several values of both
    layers says nothing, and is left out.
    """
    region = _regions(np.concatenate([a, b]))
    region_sizes = np.bincount(region)
    met: list[Ids] = []
    seen: set[bytes] = set()
    total = 0
    for row_a in a:
        for row_b in b:
            component, count = _pair_components(row_a, row_b)
            key = component.tobytes()
            if key in seen:
                continue
            seen.add(key)
            says = np.append(~_says_nothing(component, count, row_a, row_b, region, region_sizes), False)
            used = says[component]  # the last entry stands for positions without a component
            met += [np.stack([row[used], total + component[used]]) for row in (row_a, row_b)]
            total += count
    values, components = distinct_pairs(np.concatenate(met, axis=1))
    first = np.flatnonzero(np.diff(values, prepend=-1))
    times = np.diff(first, append=len(values))
    alone = first[times == 1]
    return Structure(
        once=np.stack([values[alone], components[alone]]),
        several=tuple(
            (int(values[start]), components[start : start + count])
            for start, count in zip(first[times > 1].tolist(), times[times > 1].tolist(), strict=True)
        ),
        components=total,
    )


def connected(size: int, left: Ids, right: Ids) -> tuple[int, Ids]:
    """Return the number of connected components of a graph and the component of every node.

    Labels sink along edges, and along the labels themselves, until they rest: a few passes over the arrays, where a
    sparse graph would take longer to build than to walk.
    """
    lowest = np.arange(size, dtype=np.int64)
    while True:
        low = np.minimum(lowest[left], lowest[right])
        before = lowest.copy()
        np.minimum.at(lowest, left, low)
        np.minimum.at(lowest, right, low)
        np.minimum.at(lowest, before, lowest)  # what a label's own node has learnt, the label learns
        while not np.array_equal(lowest, lowest[lowest]):
            lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            break
    roots, component = np.unique(lowest, return_inverse=True)
    return len(roots), component


def _pair_components(row_a: Ids, row_b: Ids) -> tuple[Ids, int]:
    """Return the component of every position (-1 where a row is 0) and their number."""
    used = (row_a != 0) & (row_b != 0)
    component = np.full(len(row_a), -1, dtype=np.int64)
    if not used.any():
        return component, 0
    values, index = np.unique(np.concatenate([row_a[used], row_b[used]]), return_inverse=True)
    half = len(index) // 2
    _, of_value = connected(len(values), index[:half], index[half:])
    ids, compact = np.unique(of_value[index[:half]], return_inverse=True)
    component[used] = compact
    return component, len(ids)


def _says_nothing(
    component: Ids, count: int, row_a: Ids, row_b: Ids, region: Ids, region_sizes: Ids
) -> NDArray[np.bool_]:
    """Mark components that cover a whole region and mix several values of both rows."""
    used = component >= 0
    sizes = np.bincount(component[used], minlength=count)
    where = np.full(count, -1, dtype=np.int64)
    where[component[used]] = region[used]
    whole: NDArray[np.bool_] = sizes == region_sizes[where]
    return np.asarray(whole & (_distinct(component, row_a, count) > 1) & (_distinct(component, row_b, count) > 1))


def _distinct(component: Ids, row: Ids, count: int) -> Ids:
    """Return the number of different values of the row in every component."""
    used = component >= 0
    pairs = distinct_pairs(np.stack([component[used], row[used]]))
    return np.bincount(pairs[0], minlength=count)


def _regions(rows: Ids) -> Ids:
    """Return for every position the region it belongs to: positions that hang together through any row."""
    size = rows.shape[1]
    values, inverse = np.unique(rows, return_inverse=True)
    inverse = inverse.reshape(rows.shape)
    row_index, column = np.nonzero(rows)
    _, component = connected(size + len(values), column, size + inverse[row_index, column])
    return np.unique(component[:size], return_inverse=True)[1]


def distinct_pairs(pairs: Ids) -> Ids:
    """Return the different columns of an array of shape (2, n), sorted."""
    width = int(pairs.max(initial=0)) + 1
    keys = np.unique(pairs[0] * width + pairs[1])
    return np.stack([keys // width, keys % width])
