"""Classes: units numbered, and gathered where they are alike.

Units with the same tensors, dimensions and multiplicities, in the same pieces of every cut, make one class: a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.graph.constraints import piece_signature, pin_lonely
from edgeprune.graph.flow import Flow
from edgeprune.graph.joins import distinct_pairs
from edgeprune.graph.labels import Ids, Label

BLOCKED = -1  # the axis of the inputs of all blocks of a grouped convolution
Dim = tuple[str, int]


def by_block(value: torch.Tensor, mask: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight of a grouped convolution as (blocks, rows, inputs, ...), and a mask over axis BLOCKED for it.

    The first is a view; the second, of booleans, is to be broadcast against it.
    """
    keep = torch.from_numpy(mask).to(value.device).view(-1, 1, value.shape[1], *[1] * (value.dim() - 2))
    return value.view(len(keep), -1, *value.shape[1:]), keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The units along every dimension of every parameter, shape (layers, size), -1 for none, and their classes.

    `number` and `group_of` are the unit and the class of every atom, -1 for none; `members` the units of every class.
    `shared` are the pairs of units that a dimension holds at the same position, shape (2, pairs), for each with any.
    """

    dims: dict[Dim, Ids]
    number: Ids
    group_of: Ids
    members: list[Ids]
    shared: list[Ids]


def classify(flow: Flow) -> Classes:
    """Number and gather the units after propagation.

    A unit that stands alone in balanced pieces has no like to go in its place, and always stays: it is pinned.
    """
    found = _classified(flow)
    if pin_lonely(flow.atoms, flow.pieces, found.group_of, [len(units) for units in found.members]):
        return _classified(flow)
    return found


def _classified(flow: Flow) -> Classes:
    atoms = flow.atoms
    resolved: dict[Dim, Ids] = {}
    known: dict[int, Label] = {}
    for key, name in flow.record.tensors.items():
        labels = dict(enumerate(flow.labels.get(key, [])))
        if name in flow.blocked:
            labels[BLOCKED] = flow.blocked[name]
        for axis, label in labels.items():
            if id(label) not in known:
                known[id(label)] = atoms.resolve(label)
            found = known[id(label)]
            if found is not None:
                resolved[(name, axis)] = found
    used = np.unique(np.concatenate([np.zeros(1, np.int64), *(found.reshape(-1) for found in resolved.values())]))
    used = used[used != 0]
    number = np.full(atoms.count, -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    dims = _numbered(resolved, number)
    shared = [pairs for units in distinct(dims) if (pairs := shared_positions(units)).size]
    classes = _classes(dims, piece_signature(atoms, flow.pieces, atoms.count)[used], len(used), shared)
    group_of = np.full(atoms.count, -1, dtype=np.int64)
    group_of[used] = classes
    members = [np.flatnonzero(classes == index) for index in range(int(classes.max(initial=-1)) + 1)]
    return Classes(dims=dims, number=number, group_of=group_of, members=members, shared=shared)


def _numbered(resolved: dict[Dim, Ids], number: Ids) -> dict[Dim, Ids]:
    """Return the units of every dimension; dimensions with the same units share one array."""
    by_content: dict[tuple[int, bytes], Ids] = {}
    by_identity: dict[int, Ids] = {}
    for found in resolved.values():
        if id(found) not in by_identity:
            key = (len(found), found.tobytes())
            if key not in by_content:
                by_content[key] = number[found]
            by_identity[id(found)] = by_content[key]
    return {dim: by_identity[id(found)] for dim, found in resolved.items()}


def distinct(dims: Mapping[Dim, Ids]) -> list[Ids]:
    """Return the different arrays of units, in order."""
    return list({id(units): units for units in dims.values()}.values())


def _classes(dims: dict[Dim, Ids], signature: Ids, count: int, shared: list[Ids]) -> Ids:
    """Return a class per unit: units with the same tensors, dimensions, multiplicities and blocks share one."""
    code = signature.astype(np.uint64)
    counted = {id(units): np.unique(units[units >= 0], return_counts=True) for units in distinct(dims)}
    for index, units in enumerate(dims.values()):
        found, times = counted[id(units)]
        step = np.uint64(0xC2B2AE3D27D4EB4F * (2 * index + 1) % 2**64)
        code[found] = (code[found] ^ (times.astype(np.uint64) * step)) * np.uint64(0x100000001B3)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return _apart(shared, rank[inverse]) if count else np.zeros(0, dtype=np.int64)


def _apart(shared: list[Ids], classes: Ids) -> Ids:
    """Split classes whose units share positions (as many blocks as places in a block): removing both multiplies."""
    rivals: dict[int, set[int]] = {}
    for pairs in shared:
        for a, b in pairs[:, classes[pairs[0]] == classes[pairs[1]]].T.tolist():
            rivals.setdefault(a, set()).add(b)
            rivals.setdefault(b, set()).add(a)
    part = np.zeros(len(classes), dtype=np.int64)
    for unit in sorted(rivals):
        taken = {int(part[rival]) for rival in rivals[unit] if rival < unit}
        part[unit] = next(number for number in range(len(taken) + 1) if number not in taken)
    _, apart = np.unique(classes * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
    return np.asarray(apart).reshape(-1)


def shared_positions(units: Ids) -> Ids:
    """Return the pairs of units that one dimension holds at the same position, shape (2, pairs)."""
    if len(units) < 2:
        return np.zeros((2, 0), dtype=np.int64)
    found = []
    for upper in range(len(units)):
        for lower in range(upper):
            both = (units[upper] >= 0) & (units[lower] >= 0)
            found.append(np.stack([units[upper], units[lower]])[:, both])
    return distinct_pairs(np.concatenate(found, axis=1))
