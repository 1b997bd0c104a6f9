"""Atoms and labels: which positions of which dimensions go together.

A *label* describes one dimension of one tensor: an integer array of shape (layers, size) whose entries are atoms, or
`None` where the dimension is fixed. A position is removed as soon as any of its atoms is removed; atom 0 is never
removed, so it stands for "nothing" inside a layer. Atoms merge (union-find), are refined into products of other atoms
(removing any factor removes the atom) and are pinned with a reason.

This module knows nothing about operators or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from edgeprune.graph.joins import MEMORY, Structures, connected
from edgeprune.graph.joins import Ids as Ids

Label = Ids | None

MAX_LAYERS = 8
MAX_FACTORS = 4
FIRST = 1 << 14  # atoms that there is room for before more is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Why atoms are never removed: the reason, the source line and what the user could do."""

    reason: str
    where: str | None = None
    fix: str | None = None


class Atoms:
    """The growing set of atoms of one network, with their merges, refinements and pins.

    Args:
        memory: How many structures of joins are remembered.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._structures = Structures(memory)
        self._parent: Ids = np.zeros(FIRST, dtype=np.int64)
        self._pinned = np.zeros(FIRST, dtype=bool)
        self._refined = np.zeros(FIRST, dtype=bool)
        self._pinned[0] = True
        self._count = 1
        self._factors = np.zeros((FIRST, MAX_FACTORS), dtype=np.int64)
        self._reasons: dict[int, Pin] = {}

    @property
    def count(self) -> int:
        """The number of atoms made so far, atom 0 included."""
        return self._count

    def fresh(self, size: int) -> Ids:
        """Return a label of shape (1, size) of new atoms."""
        start, end = self._count, self._count + size
        if end > len(self._parent):
            grown = max(end, 2 * len(self._parent))
            self._parent = np.resize(self._parent, grown)
            self._pinned = np.concatenate([self._pinned, np.zeros(grown - len(self._pinned), dtype=bool)])
            self._refined = np.concatenate([self._refined, np.zeros(grown - len(self._refined), dtype=bool)])
            more = np.zeros((grown - len(self._factors), MAX_FACTORS), dtype=np.int64)
            self._factors = np.concatenate([self._factors, more])
        ids = np.arange(start, end, dtype=np.int64)
        self._parent[start:end] = ids
        self._count = end
        return ids[None, :]

    def find(self, ids: Ids) -> Ids:
        """Return the representative of every atom."""
        roots = self._parent[ids]
        above = self._parent[roots]
        if bool((above == roots).all()):
            return roots
        while True:
            roots, above = above, self._parent[above]
            if bool((above == roots).all()):
                break
        self._parent[ids] = roots
        return roots

    def resolve(self, label: Label) -> Label:
        """Return the label in representatives, products written out, pinned and repeated atoms as 0.

        `None` when no position can be removed any more.
        """
        if label is None:
            return None
        ids = self.find(label)
        while self._refined[ids].any():
            ids = self._expand(ids)
        ids = np.where(self._pinned[ids], 0, ids)
        if len(ids) > 1:
            ids = _without_repeats(ids)
        return ids if ids.any() else None

    def pin(self, label: Label | Ids, pin: Pin) -> None:
        """Forbid the removal of every atom in the label; products pin all their factors."""
        if label is None:
            return
        ids = np.unique(self.find(np.asarray(label)))
        while self._refined[ids].any():
            ids = np.unique(self._expand(ids[None, :]))
        ids = ids[~self._pinned[ids]]
        self._pinned[ids] = True
        for atom in ids.tolist():
            self._reasons[atom] = pin

    def explain(self, ids: Ids) -> tuple[int, Pin] | None:
        """Return the first pinned representative among the atoms with its pin, or None."""
        found = _in_order(self.find(ids.reshape(-1)))
        while self._refined[found].any():  # products of products name the same atoms again and again
            found = _in_order(self._expand(found[None, :]).reshape(-1))
        for atom in found.tolist():
            if atom in self._reasons:
                return atom, self._reasons[atom]
        return None

    def union(self, left: Ids, right: Ids) -> None:
        """Merge atoms pairwise; both arrays have the same shape. A merge with a pinned atom pins."""
        self._unite(self.find(left.reshape(-1)), self.find(right.reshape(-1)))

    def _unite(self, a: Ids, b: Ids) -> None:
        """Merge representatives pairwise."""
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        if _apart(a, b):  # nothing occurs twice: pairs, as where new atoms meet a label
            self._pair(np.minimum(a, b), np.maximum(a, b))
            return
        nodes, index = np.unique(np.concatenate([a, b]), return_inverse=True)
        half = len(index) // 2
        count, component = connected(len(nodes), index[:half], index[half:])
        root = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(root, component, nodes)
        pinned = np.zeros(count, dtype=bool)
        np.logical_or.at(pinned, component, self._pinned[nodes])
        for position in np.flatnonzero(self._pinned[nodes]).tolist():
            reason = self._reasons.get(int(nodes[position]))
            if reason is not None:
                self._reasons.setdefault(int(root[component[position]]), reason)
        self._parent[nodes] = root[component]
        self._pinned[root] |= pinned

    def _pair(self, root: Ids, other: Ids) -> None:
        """Merge every atom of `other` into that of `root`."""
        for position in np.flatnonzero(self._pinned[other]).tolist():
            reason = self._reasons.get(int(other[position]))
            if reason is not None:
                self._reasons.setdefault(int(root[position]), reason)
        self._parent[other] = root
        self._pinned[root] |= self._pinned[other]

    def join(self, a: Label, b: Label, pin: Pin) -> None:
        """Make two labels of the same dimension hold the same atoms at every position.

        One layer against one layer merges position by position. Otherwise every pair of layers contributes the
        connected components of its values; an atom that meets one component becomes its alias, one that meets several
        is refined into their product. What a position still has on one side only is pinned with the given reason.
        """
        if a is b or self._joined_plainly(a, b):
            return
        a, b = self._fix_one_sided(a, b, pin)
        if a is None or b is None:
            return
        if len(a) == 1 and len(b) == 1:
            self._unite(a[0], b[0])
            return
        if a.shape == b.shape and np.array_equal(a, b):
            return
        if self._follows(a, b) or self._follows(b, a):
            return
        self._refine(a, b, pin)
        while True:
            a, b = self._fix_one_sided(a, b, pin)
            if a is None or b is None:
                return
            lonely = np.union1d(a[_missing(a, b)], b[_missing(b, a)])
            if not len(lonely):
                return
            self.pin(lonely, pin)

    def _joined_plainly(self, a: Label, b: Label) -> bool:
        """Merge two labels of one layer each, if nothing in them is pinned or refined."""
        if a is None or b is None or len(a) > 1 or len(b) > 1:
            return False
        mine, other = self.find(a[0]), self.find(b[0])
        both = np.concatenate([mine, other])
        if bool((self._pinned[both] | self._refined[both]).any()):
            return False
        self._unite(mine, other)
        return True

    def split(self, label: Label, sizes: Sequence[int], pin: Pin) -> list[Label]:
        """Return labels for the factors that a dimension is viewed as; their flattening is joined with it."""
        label = self.resolve(label)
        if label is None:
            return [None] * len(sizes)
        factors: list[Label] = [self.fresh(size) if size > 1 else None for size in sizes]
        self.join(label, self.flatten(factors, sizes), pin)
        return factors

    def flatten(self, labels: Sequence[Label], sizes: Sequence[int]) -> Label:
        """Return the label of the dimension that several dimensions are merged into, row-major."""
        rows: list[Ids] = []
        total = prod(sizes)
        for axis, label in enumerate(map(self.resolve, labels)):
            if label is not None:
                inner = prod(sizes[axis + 1 :])
                outer = total // (inner * sizes[axis])
                rows.extend(np.tile(np.repeat(row, inner), outer) for row in label)
        return np.stack(rows) if rows else None

    def concatenate(self, labels: Sequence[Label], sizes: Sequence[int]) -> Label:
        """Return the label of a dimension made of several dimensions one after the other."""
        resolved = [self.resolve(label) for label in labels]
        layers = max((len(label) for label in resolved if label is not None), default=0)
        if layers == 0:
            return None
        parts = []
        for label, size in zip(resolved, sizes, strict=True):
            part = np.zeros((layers, size), dtype=np.int64)
            if label is not None:
                part[: len(label)] = label
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _expand(self, ids: Ids) -> Ids:
        """Write refined atoms out once: a row with products becomes as many rows as its longest product."""
        table = self._factors[ids]  # nothing but 0 where an atom is not refined
        table[..., 0] += np.where(self._refined[ids], 0, ids)
        rows = table.transpose(0, 2, 1).reshape(-1, ids.shape[1])
        return self.find(rows[rows.any(axis=1)])

    def _fix_one_sided(self, a: Label, b: Label, pin: Pin) -> tuple[Label, Label]:
        """Resolve both labels, pinning positions that are fixed on one side only, until none is left."""
        first, second = a, b
        while True:
            a, b = self.resolve(a), self.resolve(b)
            if a is None or b is None:
                self.pin(a, self._cause(second, pin))
                self.pin(b, self._cause(first, pin))
                return None, None
            fixed_a, fixed_b = ~a.any(axis=0), ~b.any(axis=0)
            if np.array_equal(fixed_a, fixed_b):
                return a, b
            self.pin(a[:, fixed_b], pin)
            self.pin(b[:, fixed_a], pin)

    def _cause(self, label: Label, pin: Pin) -> Pin:
        """Return why a label is fixed, where that is known: a pin spreads with its first reason."""
        found = None if label is None else self.explain(label)
        return pin if found is None else found[1]

    def _follows(self, label: Ids, other: Ids) -> bool:
        """Let the atoms of a label become those of another one, position by position, if it is free to.

        It is where every position has one atom of its own, as where a new parameter meets a label. What `_refine` would
        find is then known at once.
        """
        if len(label) > 1 or len(other) > MAX_FACTORS:
            return False
        places = np.flatnonzero(label[0])
        own = label[0, places]
        met = other[:, places]
        if not _different(own) or np.isin(own, met).any():
            return False
        single = (met != 0).sum(axis=0) == 1
        self.union(own[single], met[:, single].sum(axis=0))
        self._factors[own[~single], : len(other)] = met[:, ~single].T
        self._refined[own[~single]] = True
        return True

    def _refine(self, a: Ids, b: Ids, pin: Pin) -> None:
        """Replace the atoms of both labels by the components that pairs of their layers have in common."""
        atoms, found = self._structures.of(a, b)
        components = self.fresh(found.components)[0]
        self.union(atoms[found.once[0]], components[found.once[1]])
        for value, met in found.several:
            atom = atoms[value]
            if len(met) <= MAX_FACTORS:
                self._factors[atom, : len(met)] = components[met]
                self._refined[atom] = True
            else:
                self.pin(atoms[value : value + 1], pin)
        for label in (a, b):
            resolved = self.resolve(label)
            if resolved is not None and len(resolved) > MAX_LAYERS:
                self.pin(label, pin)


def _different(ids: Ids) -> bool:
    """Tell whether no atom occurs twice."""
    return bool((ids[1:] > ids[:-1]).all()) or len(np.unique(ids)) == len(ids)


def _apart(a: Ids, b: Ids) -> bool:
    """Tell whether no atom occurs twice in two arrays together."""
    if bool((a[1:] > a[:-1]).all() and (b[1:] > b[:-1]).all()) and (a[-1] < b[0] or b[-1] < a[0]):
        return True
    return _different(np.concatenate([a, b]))


def _in_order(ids: Ids) -> Ids:
    """Return every atom once, in the order in which they come."""
    _, first = np.unique(ids, return_index=True)
    return ids[np.sort(first)]


def _without_repeats(ids: Ids) -> Ids:
    """Set atoms that a position already holds in an earlier row to 0 and drop empty rows."""
    ids = ids.copy()
    for later in range(1, len(ids)):
        for earlier in range(later):
            ids[later][ids[later] == ids[earlier]] = 0
    return ids[ids.any(axis=1)] if ids.any() else ids[:1]


def _missing(label: Ids, other: Ids) -> NDArray[np.bool_]:
    """Mark the entries of a label whose atom the other label does not have at that position."""
    found = (label[:, None, :] == other[None, :, :]).any(axis=1)
    return np.asarray(~found & (label != 0))
