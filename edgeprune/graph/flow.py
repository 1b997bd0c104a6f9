"""Propagation: labels flow through a record, call by call, each by the rule of its operator.

Owns the tables of rules and what a rule may do (read labels, set labels, join, pin, cut into pieces, mark statistics).
The rules themselves stand in `rules/`, grouped by kind: how labels move, and beside it how the call's own numbers
change when positions are gone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.labels import Atoms, Ids, Label, Pin
from edgeprune.workload import user_line

logger = logging.getLogger(__name__)


class Widths(Protocol):
    """What is left of the tensors of one call."""

    def kept(self, ref: Ref, axis: int) -> NDArray[np.bool_]:
        """Return which positions of an argument stay along a dimension, shape (size,)."""

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape of a result after compaction."""


Rule = Callable[["Flow", Call], None]
# Returns the call's arguments after compaction, or another operator with its arguments.
Resize = Callable[[Call, Widths], "dict[str, Any] | tuple[Any, dict[str, Any]]"]
RULES: dict[str, Rule] = {}
RESIZES: dict[str, Resize] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRules:
    """Rules and resizes of the user, by operator name. They hold for one analysis and come before the built-in ones."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    resizes: Mapping[str, Resize] = field(default_factory=dict)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by base name (`add` stands for add.Tensor, add_.Tensor, ...)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def resize(*names: str) -> Callable[[Resize], Resize]:
    """Register how an operator's own numbers (sizes, positions) change when positions of its tensors are gone.

    Operators without one are called as they were.
    """

    def register(function: Resize) -> Resize:
        for name in names:
            RESIZES[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A dimension that code cuts into pieces of these sizes. Every piece must keep something.

    `equal` pieces keep equal numbers where that is possible, so that code which cuts by share stays right. `balanced`
    names what cannot do without: its pieces keep equal numbers of positions, whatever that costs.
    """

    label: Ids
    sizes: tuple[int, ...]
    equal: bool
    balanced: str | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """A call of a grouped convolution with a parameter, and the labels of the channels that it reads and makes."""

    weight: str
    groups: int
    channels: Label
    rows: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A call whose result depends on which positions exist; `labels` by argument name and dimension.

    `record` is the number of the record that it belongs to: 0 for the main one, then as in `Flow.others`.
    """

    record: int
    call: int
    name: str
    labels: dict[tuple[str, int], Ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """A convolution or matrix product: its multiply-accumulates on the example inputs.

    `weight` is the parameter in it, if any. `sides` are the labels of all dimensions that it runs over: fewer positions
    along one of them are fewer multiply-accumulates by the same share.
    """

    weight: str | None
    macs: int
    sides: tuple[Ids, ...]


class Flow:
    """The state of one propagation: the labels of every tensor seen so far.

    Args:
        record: The forward that is pruned.
        others: Further forwards of the same network (in training mode, on other inputs): their calls tie channels too.
        own: Rules of the user.
        in_blocks: Weights of grouped convolutions that are cut block by block. Dimension 1 of such a weight, which
            holds other channels in every block, has no label; `blocked` has one for the inputs of all blocks.
    """

    def __init__(
        self,
        record: Record,
        others: Sequence[Record] = (),
        own: UserRules | None = None,
        in_blocks: Collection[str] = (),
    ) -> None:
        self.record = record
        self.others = tuple(others)
        self.in_blocks = frozenset(in_blocks)
        self.blocked: dict[str, Ids] = {}
        self.grouped: list[Grouped] = []
        self.inner: list[Ids] = []
        self.shortcuts: list[Ids] = []
        self._uses = Counter(ref.id for call in record.calls for ref in refs(call.args))
        self._main = True
        self._where: str | None = None
        self._picked_from: list[Ids] = []
        self._picked: list[Ids] = []
        self._own = own or UserRules()
        self._number = 0
        self._names = dict(record.tensors)
        self.atoms = Atoms()
        self.labels: dict[int, list[Label]] = {}
        self.pieces: list[Pieces] = []
        self.marks: list[Mark] = []
        self.contractions: list[Contraction] = []
        self.producers: list[tuple[str, int]] = []
        self.activations: set[int] = set()
        # Per call: the labels of its arguments before it and of its results after it, by identity.
        self.trail: list[tuple[dict[int, list[Label]], dict[int, list[Label]]]] = []

    def propagate(self) -> None:
        """Let labels flow through every call, in order."""
        self._begin(self.record)
        for call in self.record.calls:
            arguments, results = refs(call.args), refs(call.result)
            before = {ref.id: self.labels[ref.id] for ref in arguments if ref.id in self.labels}
            self._follow(call, arguments, results)
            before.update({r.id: self.labels[r.id] for r in arguments if r.id not in before and r.id in self.labels})
            self.trail.append((before, {ref.id: self.labels[ref.id] for ref in results if ref.id in self.labels}))
        for number, other in enumerate(self.others, 1):
            self._number = number
            self._begin(other)
            for call in other.calls:
                self._follow(call, refs(call.args), refs(call.result))

    def _begin(self, record: Record) -> None:
        """Take in the inputs of a record, and its parameters as those of the first record."""
        for ref in record.inputs:
            self.labels[ref.id] = [None] * len(ref.shape)
            self.activations.add(ref.id)
        if record is not self.record:
            known = {name: key for key, name in self.record.tensors.items()}
            self._names.update(record.tensors)
            for key in {ref.id for call in record.calls for ref in refs(call.args)} & set(record.tensors):
                name = record.tensors[key]
                self.labels[key] = self.of(Ref(known[name], self.record.shapes[name]))

    def _follow(self, call: Call, arguments: Sequence[Ref], results: Sequence[Ref]) -> None:
        if any(ref.id in self.activations for ref in arguments):
            self.activations.update(ref.id for ref in results)
        self._where = call.where
        if call.name in self._own.rules:
            self._follow_own(call, self._own.rules[call.name])
            return
        function = RULES.get(call.name) or (RULES["pointwise"] if call.pointwise else None)
        if function is None:
            self.give_up(call)
            return
        try:
            function(self, call)
        except (KeyError, IndexError, TypeError, ValueError, StopIteration):
            # A form of the operator that its rule does not know: reach is lost, correctness is not.
            logger.warning("the rule of %s failed on %s", call.name, call.overload, exc_info=True)
            self.give_up(call)

    def _follow_own(self, call: Call, function: Rule) -> None:
        """Follow a rule of the user; where it fails or forgets a result, the operator is pinned and the rule named."""
        name = getattr(function, "__name__", "rule")
        results = refs(call.result)
        known = {ref.id for ref in refs(call.args)}
        try:
            function(self, call)
        except Exception as error:
            line = user_line(error, name)
            logger.warning("the rule %s of %s failed at %s", name, call.name, line, exc_info=True)
            reason = f"the rule {name} of {call.name} raised {type(error).__name__}: {error} at {line}"
            self.give_up(call, reason, "correct the rule")
            return
        fix = "call flow.set(result, ...)"
        if any(ref.id not in known and ref.id not in self.labels for ref in results):
            self.give_up(call, f"the rule {name} of {call.name} gives its result no labels", fix)
        elif any(len(self.of(ref)) != len(ref.shape) for ref in results):
            self.give_up(call, f"the rule {name} of {call.name} keeps labels of another rank", fix)

    def pin_outputs(self) -> None:
        """Pin what the network returns: its user relies on it."""
        for record in (self.record, *self.others):
            made_at = {ref.id: call.where for call in record.calls for ref in refs(call.result)}
            for ref in record.outputs:
                for label in self.of(ref):
                    self.atoms.pin(label, Pin(reason="model output", where=made_at.get(ref.id)))

    def pin_unread(self) -> None:
        """Pin what was left over where a part of a parameter was picked: other inputs may read it."""
        if self._picked_from:
            whole = np.unique(np.concatenate([ids.reshape(-1) for ids in self._picked_from]))
            read = np.unique(np.concatenate([ids.reshape(-1) for ids in self._picked]))
            left = np.setdiff1d(whole, read)
            self.atoms.pin(left[left != 0], Pin(reason="nothing reads it on the example inputs"))

    def picked(self, source: Ref, label: Label, part: Label) -> None:
        """Say that a part of a dimension was picked; of a parameter, the rest may be for other inputs."""
        if source.id not in self.activations and label is not None and part is not None:
            self._picked_from.append(label)
            self._picked.append(part)

    def of(self, ref: Ref) -> list[Label]:
        """Return the labels of a tensor, one per dimension; parameters get fresh atoms at first sight."""
        if ref.id not in self.labels:
            self._first_seen(ref, {})
        return self.labels[ref.id]

    def _first_seen(self, ref: Ref, given: Mapping[int, Ids]) -> None:
        """Give a tensor its first labels; those of a parameter are new, apart from given ones by dimension."""
        known = ref.id in self._names
        self.labels[ref.id] = [
            (given[axis] if axis in given else self.atoms.fresh(size)) if known and size > 1 else None
            for axis, size in enumerate(ref.shape)
        ]
        if self.parameter(ref) in self.in_blocks:
            self.labels[ref.id][1] = None

    def set(self, ref: Ref, labels: Sequence[Label]) -> None:
        """Give a result its labels, one per dimension. Dimensions of size 1 are fixed: what is left of them stays."""
        if len(labels) != len(ref.shape):
            raise ValueError(f"{len(labels)} labels for a tensor of shape {ref.shape}")
        for label, size in zip(labels, ref.shape, strict=True):
            if size == 1 and label is not None and label.shape[1] == 1:
                self.atoms.pin(label, Pin(reason="one position of it is picked", where=self._where))
        self.labels[ref.id] = [label if size > 1 else None for label, size in zip(labels, ref.shape, strict=True)]

    def parameter(self, ref: Ref) -> str | None:
        """Return the name of a parameter or buffer, or None for an activation."""
        return self._names.get(ref.id)

    def join(self, a: Label, b: Label, call: Call, reason: str | None = None) -> None:
        """Make two labels of the same dimension equal at every position."""
        if a is b:
            return
        self.atoms.join(a, b, Pin(reason=reason or f"{call.name} ties it to something of fixed size", where=call.where))

    def tie(self, label: Label, ref: Ref, axis: int, call: Call) -> None:
        """Make a dimension of a tensor equal to a label: a parameter seen for the first time has that very label."""
        name = self.parameter(ref)
        new = name is not None and name not in self.in_blocks and ref.id not in self.labels
        if new and label is not None and label.shape[1] == ref.shape[axis] > 1:
            self._first_seen(ref, {axis: label})
        else:
            self.join(label, self.of(ref)[axis], call)

    def pin(self, label: Label, call: Call, reason: str, fix: str | None = None) -> None:
        """Forbid removal along a dimension."""
        if label is None:
            return
        self.atoms.pin(label, Pin(reason=reason, where=call.where, fix=fix))

    def produced(self, ref: Ref, dim: int) -> None:
        """Remember that a parameter's dimension makes channels: it names the group and carries its width."""
        name = self.parameter(ref)
        if name is not None and (name, dim) not in self.producers:
            self.producers.append((name, dim))

    def contracted(self, weight: str | None, macs: int, labels: Sequence[Label]) -> None:
        """Remember the cost of a product and the dimensions that it runs over."""
        sides = tuple(label for label in labels if label is not None)
        if self._number:  # what is counted is the forward that is pruned
            return
        self.contractions.append(Contraction(weight=weight, macs=macs, sides=sides))

    def inside_heads(self, label: Label) -> None:
        """Say that a dimension is the width of heads of attention: whole heads go before it does."""
        if label is not None:
            self.inner.append(label)

    def shortcut(self, tensors: Iterable[Ref]) -> None:
        """Say that two tensors are added. One that other calls read, too, is a shortcut around them."""
        for tensor in tensors if self._main else ():
            if self._uses[tensor.id] > 1:
                self.shortcuts += [label for label in self.of(tensor) if label is not None]

    def cut(self, label: Label, sizes: Sequence[int], call: Call, *, equal: bool, balanced: str | None = None) -> None:
        """Say that code cuts a dimension into pieces, one after the other; a piece of one position stays."""
        label = self.atoms.resolve(label)
        if label is None or len(sizes) < 2:
            return
        ends = np.cumsum(sizes)
        single = [end - 1 for size, end in zip(sizes, ends, strict=True) if size == 1]
        if single:
            self.pin(label[:, single], call, "one position of it is cut off")
        self.pieces.append(Pieces(label=label, sizes=tuple(sizes), equal=equal, balanced=balanced, where=call.where))

    def constant(self, call: Call, ref: Ref) -> torch.Tensor | None:
        """Return the values of a tensor that picks positions and does not depend on the inputs, else None."""
        return call.picked.get(ref.id)

    def mark(self, call: Call, labels: dict[tuple[str, int], Label]) -> None:
        """Mark a call whose value depends on which positions exist (a mean, a normalisation)."""
        found = {key: label for key, label in labels.items() if label is not None}
        if found:
            self.marks.append(Mark(record=self._number, call=call.index, name=call.name, labels=found))

    def give_up(self, call: Call, reason: str | None = None, fix: str | None = None) -> None:
        """Pin everything an operator touches that has no rule, by name, or whose rule failed."""
        name = call.name if "::" in call.name else f"torch.{call.name}"
        reason = reason or f"{name} is not understood"
        fix = fix or f"keep it, or write {call.name} with operators that are"
        for ref in refs(call.args) + refs(call.result):
            if ref.id in self.labels or self.parameter(ref) is not None:
                for label in self.of(ref):
                    self.pin(label, call, reason, fix=fix)
        for ref in refs(call.result):
            if len(self.labels.get(ref.id, ())) != len(ref.shape):  # new, or another rank in place
                self.labels[ref.id] = [None] * len(ref.shape)


def refs(value: Any) -> list[Ref]:
    """Return the tensor references in any nesting of lists, tuples and dicts."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    found: list[Ref] = []
    for item in value:
        if isinstance(item, Ref):
            found.append(item)
        elif isinstance(item, dict | tuple | list):
            found.extend(refs(item))
    return found


def dims(value: int | Sequence[int] | None, rank: int) -> list[int]:
    """Return dimensions as non-negative numbers; None or an empty list means all of them."""
    if value is None or (not isinstance(value, int) and len(value) == 0):
        return list(range(rank))
    found = [value] if isinstance(value, int) else list(value)
    return [dim % rank if rank else 0 for dim in found]
