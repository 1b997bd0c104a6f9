"""What a forward returns, taken apart into leaves and put together again.

PyTorch's pytree knows tuples, lists and dicts. Dataclasses, subclasses of dict and other objects that hold tensors are
taken apart here by their items and attributes; nothing is registered anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from edgeprune.graph.structure import output_tensors


@dataclass(frozen=True, slots=True)
class Parts:
    """How leaves make up a result: pytree's part of it, and the objects among pytree's leaves (None for a leaf)."""

    spec: Any
    objects: tuple[_Object | None, ...]

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the result that the leaves make up."""
        return self._built(iter(leaves))

    def _built(self, leaves: Iterator[Any]) -> Any:
        return pytree.tree_unflatten([next(leaves) if o is None else o.built(leaves) for o in self.objects], self.spec)


@dataclass(frozen=True, slots=True)
class _Object:
    """An object without its tensors, and where they go: items or attributes, by name."""

    blank: Any
    holders: tuple[tuple[bool, Any, Parts], ...]

    def built(self, leaves: Iterator[Any]) -> Any:
        made = copy.copy(self.blank)
        for is_item, name, parts in self.holders:
            _put_(made, is_item, name, parts._built(leaves))
        return made


_ONE_TENSOR = Parts(pytree.tree_flatten(torch.empty(0))[1], (None,))


def take_apart(result: Any) -> tuple[list[Any], Parts]:
    """Return the leaves of a result and how they make it up; objects that cannot be copied stay leaves."""
    if isinstance(result, torch.Tensor):
        return [result], _ONE_TENSOR
    leaves: list[Any] = []
    return leaves, _parts(result, leaves, frozenset())


def _parts(value: Any, leaves: list[Any], above: frozenset[int]) -> Parts:
    tops, spec = pytree.tree_flatten(value)
    return Parts(spec, tuple(_object(top, leaves, above) for top in tops))


def _object(top: Any, leaves: list[Any], above: frozenset[int]) -> _Object | None:
    """Take an object apart, or add it to the leaves and return None."""
    found = [] if isinstance(top, torch.Tensor) or id(top) in above else _holders(top)
    inside = above | {id(top)}
    if not found or any(id(value) in inside for _, _, value in found):
        leaves.append(top)
        return None
    try:
        blank = copy.copy(top)
        for is_item, name, _ in found:
            _put_(blank, is_item, name, None)
    except (TypeError, AttributeError, ValueError, RuntimeError):
        leaves.append(top)
        return None
    return _Object(blank, tuple((is_item, name, _parts(value, leaves, inside)) for is_item, name, value in found))


def _holders(top: Any) -> list[tuple[bool, Any, Any]]:
    """Return the items and attributes of an object that hold tensors."""
    if not output_tensors(top):
        return []
    items = [(True, key, value) for key, value in top.items()] if isinstance(top, MutableMapping) else []
    slots = [name for kind in type(top).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    names = [*getattr(top, "__dict__", ()), *(name for name in slots if hasattr(top, name))]
    attributes = [(False, name, getattr(top, name)) for name in names]
    return [holder for holder in [*items, *attributes] if output_tensors(holder[2])]


def _put_(made: Any, is_item: bool, name: Any, value: Any) -> None:
    if is_item:
        made[name] = value
    else:
        object.__setattr__(made, name, value)  # frozen dataclasses too
