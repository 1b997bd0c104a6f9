"""Outputs of any structure as a flat list of named tensors, and back.

Owns the order and the names of a network's outputs, and their description as JSON, which travels in the metadata
record of an artifact so that a runtime's flat list can be given back in the shape that the network returns. Knows
nothing about files or converters.
"""

from __future__ import annotations

import dataclasses
import re
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError
from edgeprune.values import Json

if TYPE_CHECKING:
    import torch


class Fields(dict[str, Any]):
    """A dict whose values are also attributes: what comes back for a dataclass or a mapping of another library."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


def flatten(value: Any) -> tuple[list[tuple[str, torch.Tensor]], Json]:
    """Return the tensors of a network's output with their names, and the structure around them.

    Tuples and lists are walked by position, mappings, named tuples and dataclasses by field, all in the order in
    which they come. `None`, numbers and strings stay in the structure.

    Raises:
        ExportError: Something that is neither a tensor nor one of these was returned, or no tensor at all.
    """
    leaves: list[tuple[str, torch.Tensor]] = []
    structure = _walk(value, (), leaves)
    if not leaves:
        raise ExportError(
            f"the network returned {type(value).__name__} without a tensor in it",
            fix="return tensors, or tuples, lists or dicts of tensors, from forward",
        )
    names = unique_names(name for name, _ in leaves)
    return [(name, tensor) for name, (_, tensor) in zip(names, leaves, strict=True)], structure


def unflatten(structure: Json, leaves: Sequence[Any]) -> Any:
    """Return the leaves in the shape that `flatten` described."""
    kind, content = next(iter(structure.items()))
    if kind == "leaf":
        return leaves[content]
    if kind == "value":
        return content
    if kind in ("tuple", "list"):
        items = [unflatten(item, leaves) for item in content]
        return tuple(items) if kind == "tuple" else items
    pairs = {key: unflatten(item, leaves) for key, item in content}
    if kind == "namedtuple":
        return namedtuple("Output", list(pairs))(**pairs)
    return pairs if kind == "dict" else Fields(pairs)


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return the names as identifiers, none of them twice and none of the taken ones."""
    seen = set(taken)
    result = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "output"
        plain = f"output_{plain}" if plain[0].isdigit() else plain
        candidate, number = plain, 1
        while candidate in seen:
            candidate, number = f"{plain}_{number}", number + 1
        seen.add(candidate)
        result.append(candidate)
    return result


def _walk(value: Any, path: tuple[str, ...], leaves: list[tuple[str, torch.Tensor]]) -> Json:
    import torch

    if isinstance(value, torch.Tensor):
        leaves.append(("_".join(path) or "output", value))
        return {"leaf": len(leaves) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"namedtuple": _pairs(zip(value._fields, value, strict=True), path, leaves)}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = [_walk(item, (*path, str(index)), leaves) for index, item in enumerate(value)]
        return {kind: items}
    if isinstance(value, Mapping):
        return {"dict" if type(value) is dict else "fields": _pairs(value.items(), path, leaves)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {"fields": _pairs(fields, path, leaves)}
    raise ExportError(
        f"the network returned {type(value).__name__} at output{''.join(f'[{part}]' for part in path)}",
        fix="return tensors, or tuples, lists or dicts of tensors, from forward",
    )


def _pairs(
    items: Iterable[tuple[Any, Any]], path: tuple[str, ...], leaves: list[tuple[str, torch.Tensor]]
) -> list[tuple[str | int, Json]]:
    pairs: list[tuple[str | int, Json]] = []
    for key, item in items:
        if not isinstance(key, str | int):
            raise ExportError(
                f"the network returned a dict with the key {key!r}", fix="use strings or integers as keys"
            )
        pairs.append((key, _walk(item, (*path, str(key)), leaves)))
    return pairs
