"""Weights that let a wrong network show: signals that survive depth, statistics of their own, visible scales.

Fresh weights hide mistakes: zero-initialised branches add nothing, layer scales of 1e-6 hide whole blocks, and batch
norms with mean 0 and variance 1 look alike on every channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_AFFINE = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
SMALL = 0.05
FEW = 16


def randomise_(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Give a fresh network weights under which outputs depend on inputs and on every channel, in place.

    Parameters that are all alike get values of their own; then one forward scales every linear and convolution so that
    it puts out a standard deviation of one, and moves the statistics of every batch norm near those of its input.
    """
    with torch.no_grad():
        for module in model.modules():
            _scatter_norm_(module)
        norms = {id(p) for m in model.modules() if isinstance(m, _AFFINE) for p in m.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            if id(parameter) not in norms and parameter.is_floating_point():
                _scatter_(name.rpartition(".")[2], parameter)
        _balance_(model, inputs)


def _scatter_norm_(module: nn.Module) -> None:
    if not isinstance(module, _AFFINE):
        return
    if isinstance(getattr(module, "running_mean", None), torch.Tensor):
        module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr, operator]
        module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    if isinstance(module.weight, torch.Tensor):
        module.weight.uniform_(0.5, 1.5)
    if isinstance(getattr(module, "bias", None), torch.Tensor):
        module.bias.normal_(0, 0.2)  # type: ignore[operator]


def _scatter_(name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter whose values are all alike (zeros, ones, a layer scale), in place."""
    if parameter.numel() == 0 or float(parameter.max()) - float(parameter.min()) > 1e-7:
        return
    value = float(parameter.flatten()[0])
    if parameter.dim() >= 2 and value == 0 and name == "weight":
        parameter.normal_(0, parameter[0].numel() ** -0.5)
    elif value == 0 and ("bias" in name or parameter.dim() >= 2):
        parameter.normal_(0, 0.1)
    else:
        centre = max(abs(value), 0.3)
        parameter.uniform_(0.6 * centre, 1.4 * centre)


def _balance_(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    seen: set[int] = set()

    def scale(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if id(module.weight) in seen or not isinstance(result, torch.Tensor) or result.numel() < 2:
            return None
        seen.add(id(module.weight))
        spread = float(result.float().std())
        if not SMALL**3 < spread < SMALL**-3 or 0.7 < spread < 1.5:
            return None
        module.weight.div_(spread)
        if module.bias is not None:
            module.bias.div_(spread)
        return module.forward(*args, **kwargs)

    def centre(module: Any, args: tuple[Any, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        if id(module) in seen or module.running_mean is None or x.shape[1] < FEW:
            return
        seen.add(id(module))
        spread = max(float(x.std()), SMALL**3)  # of all channels: on other inputs, quiet ones may be loud
        module.running_mean.copy_(x.mean(dim=1) + module.running_mean * spread)
        module.running_var.mul_(spread**2)

    hooks = []
    for module in model.modules():
        if isinstance(module, _WEIGHTED) and not _computed(module):
            hooks.append(module.register_forward_hook(scale, with_kwargs=True))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(centre))
    try:
        model(*(tensor.clone() for tensor in inputs))
    finally:
        for hook in hooks:
            hook.remove()


def _computed(module: nn.Module) -> bool:
    """Say whether the weight is made anew in every forward (weight norm and other parametrisations)."""
    return "weight" not in dict(module.named_parameters(recurse=False))
