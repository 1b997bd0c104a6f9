"""Networks and outputs as structures: copy any network, find the tensors in whatever one returns."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError

_CONTAINERS = frozenset({OrderedDict, dict, set, list})
_PLAIN = frozenset({type(None), bool, int, float, str})
_COPYING = (
    "__new__", "__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__",
    "__getnewargs__", "__getnewargs_ex__", "__getattribute__",
)  # fmt: skip


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
        copied = copy.deepcopy(model, _modules_copied(model, dict(replaced)))
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


def _modules_copied(model: nn.Module, memo: dict[Any, Any]) -> dict[Any, Any]:
    """Copy the modules of a network into a memo for `deepcopy`, those apart that copy themselves in their own way.

    A module has two dozen tables of hooks, names and numbers, nearly all of them empty or plain, on which `deepcopy`
    spends most of its time.
    """
    for module in reversed(list(model.modules())):  # parts before the whole
        kind: Any = type(module)
        if id(module) in memo or not _copies_plainly(kind):
            continue
        state: dict[str, Any] = kind.__getstate__(module)  # without what a module leaves out, such as compiled code
        made: nn.Module = object.__new__(kind)
        memo[id(module)] = made
        vars(made).update({name: _copied(value, memo) for name, value in state.items()})
    return memo


def _copied(value: Any, memo: dict[Any, Any]) -> Any:
    """Return what `deepcopy` would."""
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS and not value:
        made = memo[id(value)] = kind()
        return made
    if kind is dict and all(type(key) is str for key in value):
        made = memo[id(value)] = {}
        made.update((key, _copied(item, memo)) for key, item in value.items())
        return made
    return _tensor_copied(value, memo) if kind is torch.Tensor else copy.deepcopy(value, memo)


def _tensor_copied(tensor: torch.Tensor, memo: dict[Any, Any]) -> Any:
    """Return a copy of a tensor; `deepcopy` makes that of one which is not plain, or shares the memory of another one.

    Memory that was copied stands in the memo under the name that torch gives it there, so that views share the copy.
    """
    if tensor.layout is not torch.strided or tensor.requires_grad or tensor.is_complex() or vars(tensor):
        return copy.deepcopy(tensor, memo)
    storage, shared = tensor.untyped_storage(), memo.setdefault("torch", {})
    whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
    if not whole or tensor.is_quantized or tensor.is_meta or storage._cdata in shared:
        return copy.deepcopy(tensor, memo)
    made = memo[id(tensor)] = tensor.clone()
    shared[storage._cdata] = made.untyped_storage()
    return made


@lru_cache(maxsize=4096)
def _copies_plainly(kind: Any) -> bool:
    """Tell whether a class of modules has nothing to say about how it is copied."""
    own = [name for name in _COPYING if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    if own == ["__setstate__"] and vars(nn.modules.conv._ConvNd)["__setstate__"] is getattr(kind, "__setstate__", None):
        own = []  # it completes states that older versions saved
    return not own and not any(getattr(base, "__slots__", ()) for base in kind.__mro__)


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
    exact: dict[str, torch.Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not nn.parameter.is_lazy(tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
            made = tensor.detach().double()
            is_parameter = isinstance(tensor, nn.Parameter)
            exact[name] = nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made
    return copy_model(model, exact).double()


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
