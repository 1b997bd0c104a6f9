"""A masked network that owes nothing to edgeprune: hooks zero the removed channels where layers put them out.

No parameter is touched and no statistic is corrected, so it is valid for networks in which a zeroed channel stays zero
up to the layers that read it (ReLU, GELU, SiLU, tanh, pooling, gates by multiplication) and in which nothing depends
on the number of channels. There it says what the pruned network must return.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.graph.structure import output_tensors
from tests.recurrent_case import Stepwise

Masks = Mapping[tuple[str, int], NDArray[np.bool_]]


def output_mask(module: nn.Module, masks: dict[str, NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], int] | None:
    """Return which output channels of a layer stay and along which dimension, or None when all do.

    Args:
        masks: Masks of the module's own parameters, by `name.dim`.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        mask = masks.get("bias.0", masks.get("weight.1") if module.groups == 1 else None)
        return None if mask is None else (mask, 1 - module.weight.dim())
    if isinstance(module, nn.modules.conv._ConvNd):
        mask = masks.get("weight.0")
        return None if mask is None else (mask, 1 - module.weight.dim())
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return (masks["weight.0"], -1) if "weight.0" in masks else None
    if isinstance(module, nn.RNNCellBase):
        return (masks["weight_hh.1"], -1) if "weight_hh.1" in masks else None
    if isinstance(module, nn.Embedding):
        return (masks["weight.1"], -1) if "weight.1" in masks else None
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        mask = masks.get("weight.0", masks.get("running_mean.0"))
        return None if mask is None else (mask, 1)
    return None


def masked_by_hooks(model: nn.Module, names: Mapping[str, tuple[str, ...]], masks: Masks) -> nn.Module:
    """Return a copy of the dense network whose layers put out zeros for the removed channels.

    Args:
        names: All names of every tensor, by its first name, as in `ChannelGraph.names`.
    """
    masked = copy.deepcopy(model).eval()
    by_name = {(alias, dim): mask for (name, dim), mask in masks.items() for alias in names[name]}
    for path, module in list(masked.named_modules(remove_duplicate=True)):
        prefix = f"{path}." if path else ""
        own = {
            f"{name.removeprefix(prefix)}.{dim}": mask
            for (name, dim), mask in by_name.items()
            if name.startswith(prefix) and "." not in name.removeprefix(prefix)
        }
        if isinstance(module, nn.RNNBase):
            masked.set_submodule(path, stepwise(module, own))
        found = output_mask(module, own)
        if found is not None:
            module.register_forward_hook(zeroing(*found))
    return masked


def stepwise(module: Any, masks: dict[str, NDArray[np.bool_]]) -> nn.Module:
    """Return a recurrent module whose removed hidden and projected units are zeroed after every step."""
    whole = np.ones(module.hidden_size, dtype=bool), np.ones(module.proj_size or module.hidden_size, dtype=bool)
    out = masks.get("weight_hh_l0.1", whole[1])
    hidden = masks.get("weight_hr_l0.1", whole[0]) if module.proj_size else out
    return Stepwise(module, torch.from_numpy(hidden), torch.from_numpy(out))


def zeroing(mask: NDArray[np.bool_], dim: int):
    keep = torch.from_numpy(mask)

    def hook(module: nn.Module, args: object, result: Any) -> Any:
        if isinstance(result, tuple):  # the states of a recurrent cell
            return tuple(hook(module, args, state) for state in result)
        shape = [1] * result.dim()
        shape[dim] = len(keep)
        return result * keep.reshape(shape).to(result.dtype)

    return hook


def largest_difference(a: nn.Module, b: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Return the largest difference of two networks in float64, relative to the largest output."""
    precise = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    with torch.no_grad():
        first = output_tensors(copy.deepcopy(a).double().eval()(*(tensor.clone() for tensor in precise)))
        second = output_tensors(copy.deepcopy(b).double().eval()(*(tensor.clone() for tensor in precise)))
    assert [tensor.shape for tensor in first] == [tensor.shape for tensor in second]
    return max(
        float((x.double() - y.double()).abs().max() / x.double().abs().max().clamp(min=1e-6))
        for x, y in zip(first, second, strict=True)
    )
