"""What PyTorch says of operators: their names, their arguments, what they write to. Asked once per operator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to know of an operator; torch takes its time to say so.

    `name` is what `operator_name` returns. `arguments` are their names, whether they have a default, and the default.
    """

    name: str
    arguments: tuple[tuple[str, bool, Any], ...]
    writes: bool
    random: bool
    pointwise: bool


@lru_cache(maxsize=4096)
def facts_of(func: Any) -> Facts:
    """Return the facts of an operator overload."""
    schema = func._schema
    namespace, _, name = schema.name.rpartition("::")
    if namespace not in ("", "aten", "prim", "prims"):
        name = schema.name
    elif name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    arguments = []
    for argument in schema.arguments:
        has_default = argument.has_default_value()
        arguments.append((argument.name, has_default, argument.default_value if has_default else None))
    return Facts(
        name=str(name),
        arguments=tuple(arguments),
        writes=bool(schema.is_mutable),
        random=torch.Tag.nondeterministic_seeded in func.tags,
        pointwise=torch.Tag.pointwise in func.tags,
    )


def operator_name(func: Any) -> str:
    """Return an operator's base name without overload and in-place underscore, such as `add`.

    Operators that are not PyTorch's own keep their namespace and their name as it is, such as `mylib::add_`.
    """
    return facts_of(func).name


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names in the operator's schema, defaults included."""
    bound: dict[str, Any] = {}
    for position, (name, has_default, default) in enumerate(facts_of(func).arguments):
        if position < len(args):
            bound[name] = args[position]
        elif name in kwargs:
            bound[name] = kwargs[name]
        elif has_default:
            bound[name] = list(default) if isinstance(default, list) else default
    return bound


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors in any nesting of lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    found: list[torch.Tensor] = []
    for item in value:
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict | tuple | list):
            found.extend(tensors_in(item))
    return found


def written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that a call writes to."""
    return [
        tensor
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))
    ]
