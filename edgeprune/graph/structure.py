"""Networks and outputs as structures: copy any network, find the tensors in whatever one returns."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError

_CONTAINERS = frozenset({OrderedDict, dict, set, list})


def copy_model(model: nn.Module, tensors: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
    """Return a deep copy of the network.

    Args:
        tensors: What stands in the copy for parameters and buffers, by any of their names; shared tensors stay shared.

    Raises:
        ModelError: Something in the network cannot be copied.
    """
    own = named_tensors(model)
    replaced = {id(own[name]): tensor for name, tensor in (tensors or {}).items()}
    try:
        copied = copy.deepcopy(model, _blanks(model) | replaced)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            fix="keep only tensors, modules and plain values as attributes of the network",
        ) from error
    if replaced:
        found = named_tensors(copied)
        for name, tensor in own.items():
            wanted = replaced.get(id(tensor))
            if wanted is not None and found[name] is not wanted:  # a module that copies itself in its own way
                path, _, attribute = name.rpartition(".")
                setattr(copied.get_submodule(path), attribute, wanted)
    return copied


def _blanks(model: nn.Module) -> dict[int, Any]:
    """Return new containers for the empty ones that modules hold, by the identity of those: a memo for `deepcopy`.

    A module has a dozen tables of hooks, nearly always empty, and those take most of the time of copying it.
    """
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in _CONTAINERS and not value
    }


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the network for forwards: modules and buffers of its own, parameters in the same memory.

    A forward may leave things behind in its module and its buffers, but does not write to parameters; moving the copy
    to another type or device leaves the original alone.
    """
    return copy_model(model, aliases(model))


def aliases(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return new parameters in the memory of the network's own, by first name."""
    return {
        name: nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if not nn.parameter.is_lazy(parameter)
    }


def double_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the network in float64."""
    return copy_model(model).double()


def output_tensors(result: Any) -> list[torch.Tensor]:
    """Return the tensors of any output structure in a stable order.

    Looks into containers, dataclasses and the attributes of other objects, as deep as they go: a tensor that is missed
    here would be taken for one that nobody needs.
    """
    found: list[torch.Tensor] = []
    _collect(result, found, set())
    return found


def _collect(value: Any, found: list[torch.Tensor], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    if id(value) in seen or isinstance(value, nn.Module | type | ModuleType | FunctionType):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, tuple | list | set | frozenset):
        parts = list(value)
    else:
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        parts = [getattr(value, name) for name in names if hasattr(value, name)]
    for part in parts:
        _collect(part, found, seen)
