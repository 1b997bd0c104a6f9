"""Networks as they come in: wrappers taken off, computed weights written down, what cannot be followed refused.

A network that needs none of it passes as it is; otherwise a copy is returned and the given one stays as it was. What
was done is said in notices. Analysis and compaction both begin here, so that they name the same tensors.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from edgeprune.errors import ModelError, TraceError
from edgeprune.graph.computed import written_down
from edgeprune.values import Notice

logger = logging.getLogger(__name__)

_WRAPPERS = ("module", "_orig_mod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A network that can be analysed, and what had to be done to it."""

    model: nn.Module
    notices: tuple[Notice, ...] = ()


def enter(model: nn.Module, inputs: tuple[torch.Tensor, ...] | None = None) -> Entered:
    """Return the network without wrappers and computed weights; the very same object where it has none.

    Args:
        inputs: Example tensors. With them, layers that standardise their weight in forward are followed too: what is
            written down for those must return the same on the examples.

    Raises:
        TraceError: It is a program of TorchScript, whose calls cannot be followed.
        ModelError: It is no network, or cannot be copied.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise ModelError("an exported program is no nn.Module", fix="pass program.module()")
    if not isinstance(model, nn.Module):
        raise ModelError(f"the network is {type(model).__name__}, not an nn.Module", fix="pass the nn.Module itself")
    notices = []
    inner = unwrapped(model)
    if inner is not model:
        text = f"{type(model).__name__} was taken off; the result is a {type(inner).__name__}"
        notices.append(Notice(code="unwrapped", text=text))
    if isinstance(inner, torch.jit.ScriptModule):
        raise TraceError(
            f"{type(model).__name__} is a TorchScript program: its calls and weights are no Python",
            fix="pass the nn.Module that it was made from",
        )
    names = computed_weights(inner)
    if names:
        text = f"{len(names)} computed weights were written down as they are now ({', '.join(names[:3])})"
        fix = "to go on training them as computed weights, parametrize the result again"
        notices.append(Notice(code="baked", text=text, fix=fix))
    if names or _compiled_inside(inner) or _is_exported(inner):
        inner = bake(inner)
    inner, paths = written_down(inner, inputs) if inputs is not None else (inner, ())
    if paths:
        text = f"{len(paths)} standardised weights were written down as they are now ({', '.join(paths[:3])})"
        notices.append(Notice(code="baked", text=text, fix="train the result with its weights as plain parameters"))
    for notice in notices:
        logger.info("%s", notice.text)
    return Entered(model=inner, notices=tuple(notices))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of wrappers that only distribute or compile it."""
    while _is_wrapper(model):
        model = next(getattr(model, name) for name in _WRAPPERS if name in model._modules)
    return model


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of the network in which computed weights are plain parameters and nothing is compiled.

    Parametrizations and the older `weight_norm` and `spectral_norm` hooks are replaced by the weight that they compute
    in evaluation mode; shared modules stay shared.

    Raises:
        ModelError: The network cannot be copied, or a weight cannot be computed.
    """
    copied = _copied(model)
    modes = {module: module.training for module in copied.modules()}
    if _is_exported(copied):
        for name in ("train", "eval"):  # they refuse to run; the modes of its calls are constants
            vars(copied).pop(name, None)
    for module in list(copied.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and _is_wrapper(child):
                module._modules[name] = unwrapped(child)
    copied.train(False)
    try:
        for module in list(copied.modules()):
            _write_down_(module)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"a computed weight of {type(model).__name__} cannot be written down: {error}") from error
    for module in copied.modules():
        module.training = modes.get(module, False)
    return copied


def computed_weights(model: nn.Module) -> list[str]:
    """Return the names of the weights that parametrizations and hooks of torch compute before every forward."""
    found: list[str] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            found.extend(f"{prefix}{name}" for name in module.parametrizations)
        found.extend(f"{prefix}{hook.name}" for hook in _hooks(module))
    return found


def _is_wrapper(model: nn.Module) -> bool:
    kinds: tuple[Any, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return isinstance(model, kinds) or ("_orig_mod" in model._modules and hasattr(model, "dynamo_ctx"))


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def _compiled_inside(model: nn.Module) -> bool:
    return any(_is_wrapper(module) for module in model.modules())


def _is_exported(model: nn.Module) -> bool:
    return isinstance(model, fx.GraphModule) and "train" in vars(model)


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; weights that hooks left behind are results of a computation, which torch does not copy."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for hook in _hooks(module):
            weight = getattr(module, hook.name)
            memo[id(weight)] = weight.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            fix="keep only tensors, modules and plain values as attributes of the network",
        ) from error


def _write_down_(module: nn.Module) -> None:
    """Replace the computed weights of one module by plain tensors, in place.

    A parametrized module has a class of its own, which its copies share: torch's `remove_parametrizations` would take
    the weight from the original too. So the copy gets the class back that it had before.
    """
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        values = {name: (getattr(module, name).detach().clone(), found) for name, found in lists.items()}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, (value, found) in values.items():
            originals = list(found.parameters(recurse=False))
            if originals:
                trained = any(original.requires_grad for original in originals)
                module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
            else:
                module.register_buffer(name, value)
    for hook in _hooks(module):
        remove: Callable[..., Any] = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(module, hook.name)
