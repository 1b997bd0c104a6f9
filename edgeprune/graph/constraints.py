"""Pieces: where code cuts a dimension, every piece keeps something, and equal pieces stay equal where they can.

Turns cuts into classes of units (a group never crosses a cut), links between groups (they keep the same number of
units, so that code which cuts by share stays right) and balances (pieces keep the same number of positions, taken
together over the groups in them). Works on units and groups only; knows nothing about operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from edgeprune.graph.flow import Pieces
from edgeprune.graph.labels import Atoms, Ids, Pin


def piece_signature(atoms: Atoms, cuts: Sequence[Pieces], count: int) -> Ids:
    """Return a number per atom that differs where atoms lie in different pieces of any cut.

    Args:
        atoms: The atoms after propagation. `count` is the number of atoms.
    """
    signature = np.zeros(count, dtype=np.uint64)
    for number, request in enumerate(cuts):
        for piece, label in enumerate(_pieces(atoms, request)):
            found, times = np.unique(label[label != 0], return_counts=True)
            signature[found] += times.astype(np.uint64) * np.uint64(_mixed(number, piece))
    return signature.view(np.int64)


def link(atoms: Atoms, cuts: Sequence[Pieces], group_of: Ids, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the groups that must keep the same number of units.

    Equal pieces that no link can keep equal are left alone: code that cuts by share then gets other numbers than it
    expects, and compaction writes the cuts out as numbers.

    Args:
        atoms: The atoms after propagation.
        group_of: Group number of every atom, -1 for none, shape (atoms,).
        sizes: Units of every group.
    """
    links: list[tuple[int, ...]] = []
    for request in cuts:
        if request.equal:
            links.extend(_match(_pieces(atoms, request), group_of, sizes) or ())
    return _merge(links)


def balance(
    atoms: Atoms, cuts: Sequence[Pieces], group_of: Ids, sizes: Sequence[int]
) -> list[tuple[str, list[dict[int, int]], list[int]]]:
    """Return the balanced cuts: per piece the positions per unit of every group in it. Where all have the same, none.

    Args:
        atoms: As for `link`; no position of a balanced cut holds several (`thin_out`).

    Returns:
        What needs the balance, per piece {group: positions per unit}, and per piece the number of positions that stay.
    """
    found = []
    for request in cuts:
        pieces = _pieces(atoms, request)
        if request.balanced is None or not pieces:
            continue
        blocks = []
        for piece in pieces:
            groups, times = np.unique(group_of[piece[piece != 0]], return_counts=True)
            blocks.append({int(g): int(n) // sizes[g] for g, n in zip(groups, times, strict=True)})
        entry = (request.balanced, blocks, [int((~piece.any(axis=0)).sum()) for piece in pieces])
        if entry not in found and any(block != blocks[0] for block in blocks):
            found.append(entry)
    return found


def thin_out(atoms: Atoms, cuts: Sequence[Pieces]) -> None:
    """Pin atoms until no position of a balanced cut holds several: what is left of such positions is not a sum.

    First go those that fill a piece, which could never be removed, then those that cover most positions.
    """
    changed = True
    while changed:
        changed = False
        for request in cuts:
            label = atoms.resolve(request.label) if request.balanced is not None else None
            if label is None or ((label != 0).sum(axis=0) < 2).all():
                continue
            crowded = label[:, (label != 0).sum(axis=0) > 1]
            fills = [_filling(piece) for piece in _pieces(atoms, request)]
            chosen = np.intersect1d(np.concatenate(fills), crowded)
            if not len(chosen):
                ids, extent = np.unique(label[label != 0], return_counts=True)
                rows = np.array([np.flatnonzero((label == atom).any(axis=1))[0] for atom in ids.tolist()])
                order = np.where(np.isin(ids, crowded), extent * len(label) - rows, -1)
                chosen = ids[order == order.max()]
            atoms.pin(chosen, Pin(reason=f"{request.balanced} are cut into equal blocks", where=request.where))
            changed = True


def pin_lonely(atoms: Atoms, cuts: Sequence[Pieces], group_of: Ids, sizes: Sequence[int]) -> bool:
    """Pin the atoms in balanced cuts that are alone in their group, which keeps one; tell whether there were any."""
    found = False
    for request in cuts:
        label = atoms.resolve(request.label) if request.balanced is not None else None
        if label is not None:
            ids = np.unique(label[label != 0])
            alone = ids[np.array(sizes, dtype=np.int64)[group_of[ids]] == 1]
            atoms.pin(alone, Pin(reason=f"it has no like in {request.balanced}", where=request.where))
            found = found or len(alone) > 0
    return found


def _filling(piece: Ids) -> Ids:
    """Return the atoms at every position of a piece."""
    ids, times = np.unique(piece[piece != 0], return_counts=True)
    found: Ids = ids[times == piece.shape[1]]
    return found


def _mixed(number: int, piece: int) -> int:
    """Return 64 bits of which no small sums agree: a unit may have positions in several pieces."""
    value = 0x9E3779B97F4A7C15 * (1 + number * 2**20 + piece) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> shift)) * factor % 2**64
    return value ^ (value >> 31)


def _pieces(atoms: Atoms, request: Pieces) -> list[Ids]:
    label = atoms.resolve(request.label)
    if label is None:
        return []
    ends = np.cumsum(request.sizes)
    return [label[:, end - size : end] for size, end in zip(request.sizes, ends, strict=True)]


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
