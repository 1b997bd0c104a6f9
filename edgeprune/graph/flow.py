"""Propagation: labels flow through a record, call by call, each by the rule of its operator.

Owns the table of rules and what a rule may do (read labels, set labels, join, pin, ask for balanced blocks, mark
statistics). The rules themselves stand in `rules/`, grouped by kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.labels import Atoms, Ids, Label, Pin

logger = logging.getLogger(__name__)

Rule = Callable[["Flow", Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by base name (`add` stands for add.Tensor, add_.Tensor, ...)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """Equal blocks of one dimension that user code cuts by size: every block must keep the same number."""

    label: Ids
    blocks: int
    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A call whose result depends on which positions exist; `labels` by argument name and dimension."""

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
    """The state of one propagation: the labels of every tensor seen so far."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.atoms = Atoms()
        self.labels: dict[int, list[Label]] = {}
        self.balanced: list[Balanced] = []
        self.marks: list[Mark] = []
        self.contractions: list[Contraction] = []
        self.producers: list[tuple[str, int]] = []
        self.seen_at: dict[str, list[Ids]] = {}
        self.activations: set[int] = set()

    def propagate(self) -> None:
        """Let labels flow through every call, in order."""
        for ref in self.record.inputs:
            self.labels[ref.id] = [None] * len(ref.shape)
            self.activations.add(ref.id)
        for call in self.record.calls:
            self._remember(call)
            if any(ref.id in self.activations for ref in refs(call.args)):
                self.activations.update(ref.id for ref in refs(call.result))
            function = RULES.get(call.name) or (RULES["pointwise"] if call.pointwise else None)
            if function is None:
                self.give_up(call)
                continue
            try:
                function(self, call)
            except (KeyError, IndexError, TypeError, ValueError, StopIteration):
                # A form of the operator that its rule does not know: reach is lost, correctness is not.
                logger.warning("the rule of %s failed on %s", call.name, call.overload, exc_info=True)
                self.give_up(call)

    def pin_outputs(self) -> None:
        """Pin what the network returns: its user relies on it."""
        made_at = {ref.id: call.where for call in self.record.calls for ref in refs(call.result)}
        for ref in self.record.outputs:
            for label in self.of(ref):
                self.atoms.pin(label, Pin(reason="model output", where=made_at.get(ref.id)))

    def of(self, ref: Ref) -> list[Label]:
        """Return the labels of a tensor, one per dimension; parameters get fresh atoms at first sight."""
        if ref.id not in self.labels:
            known = ref.id in self.record.tensors
            self.labels[ref.id] = [self.atoms.fresh(n) if known and n > 1 else None for n in ref.shape]
        return self.labels[ref.id]

    def set(self, ref: Ref, labels: Sequence[Label]) -> None:
        """Give a result its labels, one per dimension; dimensions of size 1 are fixed."""
        if len(labels) != len(ref.shape):
            raise ValueError(f"{len(labels)} labels for a tensor of shape {ref.shape}")
        self.labels[ref.id] = [label if size > 1 else None for label, size in zip(labels, ref.shape, strict=True)]

    def parameter(self, ref: Ref) -> str | None:
        """Return the name of a parameter or buffer, or None for an activation."""
        return self.record.tensors.get(ref.id)

    def join(self, a: Label, b: Label, call: Call, reason: str | None = None) -> None:
        """Make two labels of the same dimension equal at every position."""
        self.atoms.join(a, b, Pin(reason=reason or f"{call.name} ties it to something of fixed size", where=call.where))

    def pin(self, label: Label, call: Call, reason: str, fix: str | None = None) -> None:
        """Forbid removal along a dimension."""
        self.atoms.pin(label, Pin(reason=reason, where=call.where, fix=fix))

    def produced(self, ref: Ref, dim: int) -> None:
        """Remember that a parameter's dimension makes channels: it names the group and carries its width."""
        name = self.parameter(ref)
        if name is not None and (name, dim) not in self.producers:
            self.producers.append((name, dim))

    def contracted(self, weight: str | None, macs: int, labels: Sequence[Label]) -> None:
        """Remember the cost of a product and the dimensions that it runs over."""
        sides = tuple(label for label in labels if label is not None)
        self.contractions.append(Contraction(weight=weight, macs=macs, sides=sides))

    def balance(self, label: Label, blocks: int, call: Call, how: str) -> None:
        """Ask that equal blocks of a dimension keep the same number of positions."""
        label = self.atoms.resolve(label)
        if label is not None:
            pin = Pin(reason=f"{how} needs blocks of equal size, and they cannot be kept equal", where=call.where)
            self.balanced.append(Balanced(label=label, blocks=blocks, pin=pin))

    def mark(self, call: Call, labels: dict[tuple[str, int], Label]) -> None:
        """Mark a call whose value depends on which positions exist (a mean, a normalisation)."""
        found = {key: label for key, label in labels.items() if label is not None}
        if found:
            self.marks.append(Mark(call=call.index, name=call.name, labels=found))

    def give_up(self, call: Call) -> None:
        """Pin everything an operator without a rule touches, by name."""
        reason = f"torch.{call.name} is not understood"
        for ref in refs(call.args) + refs(call.result):
            if ref.id in self.labels or self.parameter(ref) is not None:
                for label in self.of(ref):
                    self.pin(label, call, reason, fix=f"keep it, or write {call.name} with operators that are")
        for ref in refs(call.result):
            if len(self.labels.get(ref.id, ())) != len(ref.shape):  # new, or another rank in place
                self.labels[ref.id] = [None] * len(ref.shape)

    def _remember(self, call: Call) -> None:
        for ref in refs(call.args):
            if ref.id in self.labels:
                found = [label for label in self.labels[ref.id] if label is not None]
                self.seen_at.setdefault(call.where, []).extend(found)


def refs(value: Any) -> list[Ref]:
    """Return the tensor references in any nesting of lists, tuples and dicts."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in refs(item)]
    if isinstance(value, tuple | list):
        return [ref for item in value for ref in refs(item)]
    return []


def dims(value: int | Sequence[int] | None, rank: int) -> list[int]:
    """Return dimensions as non-negative numbers; None or an empty list means all of them."""
    if value is None or (not isinstance(value, int) and len(value) == 0):
        return list(range(rank))
    found = [value] if isinstance(value, int) else list(value)
    return [dim % rank if rank else 0 for dim in found]
