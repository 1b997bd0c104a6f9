"""The trail: the labels that every tensor had at every call, and from them what is left of each call.

A compaction that writes the network out as a list of calls needs the new sizes of activations, not of parameters only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import ModelError
from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.flow import RESIZES, Resize, Widths, refs
from edgeprune.graph.labels import Atoms, Ids, Label
from edgeprune.workload import user_line

Labels = Mapping[int, Sequence[Label]]


class Trail:
    """Labels per call, for the units that a graph has numbered.

    Args:
        steps: Per call the labels of its arguments before it and of its results after it, by identity.
        number: Unit of every atom, -1 for none.
        own: How the user's operators change their numbers.
    """

    def __init__(
        self,
        record: Record,
        steps: Sequence[tuple[Labels, Labels]],
        atoms: Atoms,
        number: Ids,
        own: Mapping[str, Resize] | None = None,
    ) -> None:
        self.record = record
        self._own = own or {}
        self._steps = steps
        self._atoms = atoms
        self._number = number
        self._units: dict[int, tuple[Label, Ids | None]] = {}

    def resized(self, alive: NDArray[np.bool_]) -> list[tuple[Any, dict[str, Any]]]:
        """Return operator and arguments of every call when only the living units are left.

        Args:
            alive: Which units stay, shape (units + 1,), as from `ChannelGraph.alive`.

        Raises:
            ModelError: A resize of the user failed; `where` is the line of the operator.
        """
        masks: dict[int, NDArray[np.bool_] | None] = {}
        return [
            self._resized(call, before, after, alive, masks)
            for call, (before, after) in zip(self.record.calls, self._steps, strict=True)
        ]

    def _resized(
        self,
        call: Call,
        before: Labels,
        after: Labels,
        alive: NDArray[np.bool_],
        masks: dict[int, NDArray[np.bool_] | None],
    ) -> tuple[Any, dict[str, Any]]:
        own = self._own.get(call.name)
        function = own or RESIZES.get(call.name)
        if function is None:
            return call.func, call.args
        left = _Left(self, before, after, alive, masks)
        if not any(left.cut(ref) for ref in refs(call.args) + refs(call.result)):
            return call.func, call.args
        found = function(call, left) if own is None else _own_sizes(own, call, left)
        return (call.func, found) if isinstance(found, dict) else found

    def left(self, index: int, ref: Ref, alive: NDArray[np.bool_]) -> list[NDArray[np.bool_] | None]:
        """Return which positions of an argument or result of a call stay, per dimension; None where all of them do."""
        before, after = self._steps[index]
        found = _Left(self, before, after, alive, {})
        return [found.mask(after if ref.id in after else before, ref, axis) for axis in range(len(ref.shape))]

    def units_of(self, index: int, ref: Ref) -> list[Ids | None]:
        """Return the unit numbers along the dimensions of an argument of a call; None where nothing can go."""
        before, _ = self._steps[index]
        return [self.units(label) for label in before.get(ref.id, (None,) * len(ref.shape))]

    def groups_left(self, alive: NDArray[np.bool_]) -> dict[str, int]:
        """Return how many groups grouped convolutions and group norms still have, by the path of the calling module."""
        masks: dict[int, NDArray[np.bool_] | None] = {}
        found: dict[str, int] = {}
        for call, (before, after) in zip(self.record.calls, self._steps, strict=True):
            name = "num_groups" if call.name == "group_norm" else "groups"
            if call.name.startswith(("conv", "group_norm")) and call.args.get(name, 1) > 1:
                found[call.module] = int(self._resized(call, before, after, alive, masks)[1][name])
        return found

    def at_line(self, where: str) -> Ids:
        """Return the units of all activations that the calls of one source line take."""
        found = [np.zeros(0, dtype=np.int64)]
        for call, (before, _) in zip(self.record.calls, self._steps, strict=True):
            if call.where == where:
                flowing = [labels for key, labels in before.items() if key not in self.record.tensors]
                units = [self.units(label) for labels in flowing for label in labels]
                found.extend(ids.reshape(-1) for ids in units if ids is not None)
        ids = np.unique(np.concatenate(found))
        return ids[ids >= 0]

    def units(self, label: Label) -> Ids | None:
        """Return the unit numbers of a label, shape (layers, size), -1 for none; None when nothing of it can go."""
        if label is None:
            return None
        if id(label) not in self._units:
            resolved = self._atoms.resolve(label)
            units = None if resolved is None else self._number[resolved]
            self._units[id(label)] = (label, units if units is not None and (units >= 0).any() else None)
        return self._units[id(label)][1]


def _own_sizes(function: Resize, call: Call, left: Widths) -> dict[str, Any] | tuple[Any, dict[str, Any]]:
    """Return what a resize of the user returns.

    Raises:
        ModelError: It raises, or returns something else than arguments.
    """
    name = getattr(function, "__name__", "resize")
    try:
        found = function(call, left)
    except Exception as error:
        raise ModelError(
            f"the resize {name} of {call.name} raised {type(error).__name__}: {error}",
            where=call.where or None,
            fix=f"correct {name} at {user_line(error, name)}",
        ) from error
    if not isinstance(found, dict) and not (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)
    ):
        raise ModelError(
            f"the resize {name} of {call.name} returned {type(found).__name__}",
            where=call.where or None,
            fix=f"let {name} return a dict of all arguments: {{**call.args, ...}}",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Left:
    """The `Widths` of one call."""

    trail: Trail
    before: Labels
    after: Labels
    alive: NDArray[np.bool_]
    masks: dict[int, NDArray[np.bool_] | None]

    def kept(self, ref: Ref, axis: int) -> NDArray[np.bool_]:
        mask = self.mask(self.before, ref, axis)
        return np.ones(ref.shape[axis], dtype=bool) if mask is None else mask

    def shape(self, ref: Ref) -> tuple[int, ...]:
        masks = [self.mask(self.after, ref, axis) for axis in range(len(ref.shape))]
        return tuple(size if mask is None else int(mask.sum()) for size, mask in zip(ref.shape, masks, strict=True))

    def cut(self, ref: Ref) -> bool:
        """Tell whether anything of an argument or result goes."""
        return any(
            self.mask(labels, ref, axis) is not None
            for labels in (self.before, self.after)
            for axis in range(len(labels.get(ref.id, ())))
        )

    def mask(self, labels: Labels, ref: Ref, axis: int) -> NDArray[np.bool_] | None:
        if axis >= len(labels.get(ref.id, ())):
            return None
        label = labels[ref.id][axis]
        if label is None:
            return None
        if id(label) not in self.masks:
            units = self.trail.units(label)
            mask = None if units is None else np.asarray(self.alive[units].all(axis=0))
            self.masks[id(label)] = None if mask is None or mask.all() else mask
        return self.masks[id(label)]
