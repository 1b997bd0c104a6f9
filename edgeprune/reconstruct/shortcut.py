"""What is added to a layer's output further on, where it is already known when the layer is solved.

The last convolution of a residual block can make up for what its shortcut has lost: its target is the dense sum minus
the pruned shortcut. Found on the record: the output flows through operators that scale every channel by a constant
(batch norm, layer scale, dropout in evaluation) into additions of tensors that exist by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.flow import refs

_SAME = frozenset({"dropout", "feature_dropout", "alpha_dropout", "detach", "contiguous", "clone", "alias", "to"})
# A channel that is scaled to less than this share of the median one cannot make up for anything.
_SMALLEST_SCALE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A tensor that is added to a layer's scaled output: the call that adds, and the calls that scale before it."""

    call: int
    other: Ref
    scales: tuple[int, ...]


class Paths:
    """Where the outputs of a record's calls go."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._made: dict[int, int] = {ref.id: -1 for ref in record.inputs}
        self.users: dict[int, list[int]] = {}
        for index, call in enumerate(record.calls):
            for ref in refs(call.result):
                self._made.setdefault(ref.id, index)
            for key in dict.fromkeys(ref.id for ref in refs(call.args)):
                self.users.setdefault(key, []).append(index)
        self._outputs = {ref.id for ref in record.outputs}

    def only_user(self, ref: Ref, after: int) -> int | None:
        """Return the one call behind another that takes a tensor; None where there are several, or it is an output."""
        behind = [index for index in self.users.get(ref.id, ()) if index > after]
        return behind[0] if len(behind) == 1 and ref.id not in self._outputs else None

    def normalisation(self, index: int) -> Call | None:
        """Return the batch norm with running statistics that alone takes a call's result."""
        result = self.record.calls[index].result
        user = self.only_user(result, index) if isinstance(result, Ref) else None
        call = self.record.calls[user] if user is not None else None
        return call if call is not None and _is_scaling_norm(call) else None

    def added(self, index: int) -> tuple[Added, ...]:
        """Return what is added to the result of a call and known before the call is made."""
        found: list[Added] = []
        scales: list[int] = []
        place, flowing = index, self.record.calls[index].result
        while isinstance(flowing, Ref):
            user = self.only_user(flowing, place)
            if user is None:
                break
            call = self.record.calls[user]
            if call.name == "add":
                other = self._summand(call, flowing)
                if other is None or self._made.get(other.id, index) >= index:
                    break
                found.append(Added(call=user, other=other, scales=tuple(scales)))
            elif _is_scaling_norm(call) or self._factor(call, flowing) is not None:
                scales.append(user)
            elif call.name not in _SAME or call.args.get("train"):
                break
            place, flowing = user, call.result
        return tuple(found)

    def _summand(self, call: Call, flowing: Ref) -> Ref | None:
        pair = [call.args["self"], call.args["other"]]
        others = [item for item in pair if not (isinstance(item, Ref) and item.id == flowing.id)]
        if len(others) != 1 or call.args.get("alpha", 1) != 1 or not isinstance(others[0], Ref):
            return None
        other: Ref = others[0]
        return other if other.shape == flowing.shape else None

    def _factor(self, call: Call, flowing: Ref) -> Ref | None:
        """Return the parameter by which a call multiplies what flows."""
        if call.name != "mul":
            return None
        pair = [call.args["self"], call.args["other"]]
        others = [item for item in pair if isinstance(item, Ref) and item.id != flowing.id]
        return others[0] if len(others) == 1 and others[0].id in self.record.tensors else None

    def scale(self, calls: tuple[int, ...], value: Callable[[Ref], torch.Tensor], like: Ref) -> torch.Tensor | None:
        """Return the product of the scales of calls, to be broadcast against a tensor; None where it is 1.

        Args:
            value: Returns a parameter or buffer.
            like: The tensor that flows, for its number of dimensions.
        """
        total: torch.Tensor | None = None
        for index in calls:
            call = self.record.calls[index]
            if call.name == "mul":
                flowing = next(ref for ref in refs(call.args) if ref.id not in self.record.tensors)
                factor = self._factor(call, flowing)
                assert factor is not None
                scale = value(factor).double()
            else:
                variance = value(call.args["running_var"]).double()
                scale = torch.rsqrt(variance + call.args["eps"])
                if isinstance(call.args["weight"], Ref):
                    scale = scale * value(call.args["weight"]).double()
                scale = scale.view(-1, *[1] * (len(like.shape) - 2))
            total = scale if total is None else total * scale
        return total


def undone(difference: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Return a difference behind a scale as one before it; nothing where the scale is next to nothing."""
    if scale is None:
        return difference
    size = scale.abs()
    usable = size >= _SMALLEST_SCALE * size.median()
    inverse = torch.where(usable & (size > 0), 1 / torch.where(size > 0, scale, torch.ones_like(scale)), 0.0)
    return difference * inverse


def _is_scaling_norm(call: Call) -> bool:
    return call.name == "batch_norm" and not call.args["training"] and isinstance(call.args.get("running_mean"), Ref)
