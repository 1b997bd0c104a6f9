"""Balanced blocks: user code that cuts a dimension into equal pieces must find equal pieces after pruning.

Turns requests for balance into links between groups (they keep the same number of units), or pins what cannot be
linked. Works on units and groups only; knows nothing about operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from edgeprune.graph.flow import Balanced
from edgeprune.graph.labels import Atoms, Ids


def block_signature(atoms: Atoms, requests: Sequence[Balanced], count: int) -> Ids:
    """Return a number per atom that differs where atoms lie in different blocks of any request.

    Args:
        atoms: The atoms after propagation. `count` is the number of atoms.
    """
    signature = np.zeros(count, dtype=np.uint64)
    for number, request in enumerate(requests):
        for block, label in enumerate(_blocks(atoms, request)):
            found, times = np.unique(label[label != 0], return_counts=True)
            step = np.uint64(0x9E3779B97F4A7C15 * (1 + number * 64 + block) % 2**64)
            signature[found] += times.astype(np.uint64) * step
    return signature.view(np.int64)


def link(
    atoms: Atoms, requests: Sequence[Balanced], group_of: Ids, sizes: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[Balanced]]:
    """Return links between groups and the requests that no link can satisfy.

    Args:
        atoms: The atoms after propagation.
        group_of: Group number of every atom, -1 for none, shape (atoms,).
        sizes: Units of every group.
    """
    links: list[tuple[int, ...]] = []
    unmet: list[Balanced] = []
    for request in requests:
        found = _match(_blocks(atoms, request), group_of, sizes)
        if found is None:
            unmet.append(request)
        else:
            links.extend(found)
    return _merge(links), unmet


def _blocks(atoms: Atoms, request: Balanced) -> list[Ids]:
    label = atoms.resolve(request.label)
    if label is None:
        return []
    size = request.label.shape[1] // request.blocks
    return [label[:, start : start + size] for start in range(0, size * request.blocks, size)]


def _match(blocks: list[Ids], group_of: Ids, sizes: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Pair the groups of the blocks, or None when their shares differ."""
    kinds = [_kinds(block, group_of, sizes) for block in blocks]
    if any(kind is None for kind in kinds):
        return None
    everywhere = set.intersection(*[set(kind) for kind in kinds if kind is not None]) if kinds else set()
    apart = []
    for kind in kinds:
        assert kind is not None
        for group in everywhere:
            if kind[group] != kinds[0][group]:  # type: ignore[index]
                return None
        own = [group for group in kind if group not in everywhere]
        apart.append(sorted(own, key=lambda group: (sizes[group], kind[group], group)))
    if len({len(own) for own in apart}) > 1 or len({group for own in apart for group in own}) < sum(map(len, apart)):
        return None
    links = []
    for row in zip(*apart, strict=True):
        shape = {(sizes[group], kinds[column][group]) for column, group in enumerate(row)}  # type: ignore[index]
        if len(shape) > 1:
            return None
        links.append(tuple(row))
    return links


def _kinds(block: Ids, group_of: Ids, sizes: Sequence[int]) -> dict[int, tuple[int, int]] | None:
    """Return for every group in a block how many of its units and positions lie there; None when cut apart."""
    found: dict[int, tuple[int, int]] = {}
    ids, times = np.unique(block[block != 0], return_counts=True)
    for group in np.unique(group_of[ids]).tolist():
        mine = group_of[ids] == group
        if group < 0 or len(set(times[mine].tolist())) > 1:
            return None
        found[group] = (int(mine.sum()), int(times[mine][0]))
        if found[group][0] != sizes[group]:
            return None
    return found


def _merge(links: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Unite links that share a group."""
    parent: dict[int, int] = {}

    def find(group: int) -> int:
        while parent.setdefault(group, group) != group:
            group = parent[group]
        return group

    for row in links:
        for other in row[1:]:
            parent[find(other)] = find(row[0])
    together: dict[int, list[int]] = defaultdict(list)
    for group in parent:
        together[find(group)].append(group)
    return sorted(tuple(sorted(members)) for members in together.values() if len(members) > 1)
