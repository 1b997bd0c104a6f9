"""The reference for verification: the dense network with the removed channels zeroed.

Rows and columns of removed positions are zeroed in a copy of the dense network, whose own forward then runs. Where a
call depends on which positions exist (a mean or norm over channels), it is computed over the kept positions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import attention_in_parts
from edgeprune.graph.classes import BLOCKED, by_block
from edgeprune.graph.groups import Dim
from edgeprune.graph.numbered import NumberedCalls
from edgeprune.graph.operators import bind
from edgeprune.graph.structure import aliases, copy_model, named_tensors, output_tensors

Masks = dict[tuple[str, int], NDArray[np.bool_]]


def masked_copy(model: nn.Module, masks: Mapping[Dim, NDArray[np.bool_]]) -> nn.Module:
    """Return a copy of the dense network in evaluation mode with the removed positions of its tensors zeroed.

    Parameters that lose nothing lie in the memory of the network's own.
    """
    own = named_tensors(model)
    replaced = aliases(model)
    with torch.no_grad():
        for name in {name for name, _ in masks}:
            value = own[name].detach().clone()
            is_parameter = isinstance(own[name], nn.Parameter)
            replaced[name] = nn.Parameter(value, requires_grad=False) if is_parameter else value
        for (name, axis), mask in masks.items():
            if axis == BLOCKED:
                blocks, keep = by_block(replaced[name], mask)
                blocks.masked_fill_(~keep, 0)
                continue
            replaced[name].index_fill_(axis, torch.from_numpy(np.flatnonzero(~mask)).to(replaced[name].device), 0)
    return copy_model(model, replaced).eval()


def reference_outputs(
    masked: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, tuple[int, ...]],
    inputs: tuple[torch.Tensor, ...],
) -> list[torch.Tensor]:
    """Run a masked copy with mask-aware statistics and return its outputs.

    Args:
        masked: From `masked_copy`, not run before: a forward may leave things behind in its module.
        keep: Kept units by group name, as in the plan.
    """
    alive = graph.alive(keep)
    marks: dict[int, tuple[str, Masks]] = {}
    for statistic in graph.statistics:
        found = {key: np.asarray(alive[units].all(axis=0)) for key, units in statistic.units.items()}
        found = {key: mask for key, mask in found.items() if not mask.all()}
        if found:
            marks[statistic.call] = (statistic.name, found)
    own = tuple(tensor.clone() for tensor in inputs)  # a forward may change its inputs in place
    with torch.inference_mode(), attention_in_parts(), _MaskedCalls(marks):
        return output_tensors(masked(*own))


class _MaskedCalls(NumberedCalls):  # type: ignore[no-untyped-call]
    """Computes the marked calls over kept positions."""

    def __init__(self, marks: Mapping[int, tuple[str, Masks]]) -> None:
        super().__init__()
        self._marks = marks

    def call(self, index: int, base: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index not in self._marks:
            return func(*args, **kwargs)
        name, masks = self._marks[index]
        if base.lstrip("_") != name.lstrip("_"):
            raise VerificationError(
                f"the network called {base} where it called {name} before: its forward is not repeatable",
                fix="take randomness and data-dependent choices out of forward",
            )
        bound = bind(func, args, kwargs)
        if name in _PICKED:
            return _recall(func, _pick(bound, masks))
        for argument in {argument for argument, _ in masks}:
            found = _blank(_argument(bound, argument), argument, masks, _NEUTRAL.get(name, 0.0))
            bound = _with_argument(bound, argument, found)
        if name in _MASKED:
            mine = {axis: mask for (_, axis), mask in masks.items()}
            return _MASKED[name](func, bound, mine)
        return _recall(func, bound)


# What a removed position must hold so that it does not matter to the sum over all.
_NEUTRAL = dict.fromkeys(
    ("softmax", "log_softmax", "_softmax", "_log_softmax", "special_softmax", "special_log_softmax"), -math.inf
)

# Reductions: nothing of the reduced dimensions is left, so they may run over the kept positions alone.
_PICKED = frozenset({
    "mean", "sum", "nansum", "nanmean", "amax", "amin", "max", "min", "linalg_vector_norm", "linalg_norm",
    "linalg_matrix_norm", "norm", "nuclear_norm", "frobenius_norm", "var", "std", "var_mean", "std_mean", "logsumexp",
    "special_logsumexp", "prod", "any", "all", "count_nonzero", "aminmax", "median", "nanmedian", "mode", "kthvalue",
    "cosine_similarity",
    "pairwise_distance", "cdist", "_euclidean_dist", "dist",
})  # fmt: skip


def _pick(bound: dict[str, Any], masks: Masks) -> dict[str, Any]:
    """Return the arguments with removed positions left out."""
    for (argument, axis), mask in masks.items():
        tensor = _argument(bound, argument)
        index = torch.from_numpy(np.flatnonzero(mask)).to(tensor.device)
        bound = _with_argument(bound, argument, tensor.index_select(axis, index))
    return bound


def _argument(bound: Mapping[str, Any], name: str) -> torch.Tensor:
    """Return a tensor by its name; `tensors.1` is the second one of a list."""
    head, _, number = name.partition(".")
    found: torch.Tensor = bound[head][int(number)] if number else bound[head]
    return found


def _with_argument(bound: Mapping[str, Any], name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """Return the arguments with one tensor replaced."""
    head, _, number = name.partition(".")
    if not number:
        return {**bound, head: tensor}
    replaced = list(bound[head])
    replaced[int(number)] = tensor
    return {**bound, head: replaced}


def _recall(func: Any, bound: dict[str, Any]) -> Any:
    positional = [bound[a.name] for a in func._schema.arguments if a.name in bound and not a.kwarg_only]
    named = {a.name: bound[a.name] for a in func._schema.arguments if a.name in bound and a.kwarg_only}
    return func(*positional, **named)


def _blank(tensor: torch.Tensor, argument: str, masks: Masks, value: float) -> torch.Tensor:
    """Return the tensor with removed positions set to a value."""
    keep = _keep(tensor, {axis: mask for (name, axis), mask in masks.items() if name == argument})
    return torch.where(keep, tensor, torch.full_like(tensor, value))


def _keep(tensor: torch.Tensor, masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    """Return a boolean tensor that broadcasts against the tensor: True where a position stays."""
    keep = torch.ones([1] * tensor.dim(), dtype=torch.bool, device=tensor.device)
    for axis, mask in masks.items():
        shape = [1] * tensor.dim()
        shape[axis] = len(mask)
        keep = keep & torch.from_numpy(mask).to(tensor.device).reshape(shape)
    return keep


def _masked_layer_norm(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> Any:
    x, shape = bound["input"], bound["normalized_shape"]
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    keep = _keep(x, masks)
    share = math.prod(float(mask.mean()) for mask in masks.values())
    centred, mean = x, torch.zeros_like(x)
    if "rms" not in func._schema.name:
        mean = x.mean(dim=axes, keepdim=True) / share
        centred = torch.where(keep, x - mean, torch.zeros_like(x))
    variance = centred.square().mean(dim=axes, keepdim=True) / share
    epsilon = bound.get("eps")
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    scale = torch.rsqrt(variance + epsilon)
    normal = _affine(centred * scale, bound, [1] * (x.dim() - len(shape)) + list(shape))
    if "native" in func._schema.name:
        return normal, mean, scale
    return (normal, scale) if "fused" in func._schema.name else normal


def _masked_group_norm(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> Any:
    x, groups = bound["input"], bound["num_groups" if "num_groups" in bound else "group"]
    keep = _keep(x, masks).expand(x.shape).to(x.dtype)
    blocks = x.reshape(x.shape[0], groups, -1)
    inside = keep.reshape(blocks.shape)
    count = inside.sum(-1, keepdim=True).clamp(min=1)
    mean = (blocks * inside).sum(-1, keepdim=True) / count
    centred = (blocks - mean) * inside
    scale = torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + bound["eps"])
    normal = _affine((centred * scale).reshape(x.shape), bound, [1, x.shape[1]] + [1] * (x.dim() - 2))
    return (normal, mean[..., 0], scale[..., 0]) if "native" in func._schema.name else normal


def _masked_weight_norm(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> Any:
    """Rows that are removed have no length to divide by: they stay zero."""
    v, dim = bound["v"], bound["dim"]
    length = torch.norm_except_dim(v, 2, dim)
    length = torch.where(length == 0, torch.ones_like(length), length)
    weight = v * (bound["g"] / length)
    return (weight, length) if "interface" in func._schema.name else weight


def _affine(normal: torch.Tensor, bound: dict[str, Any], shape: list[int]) -> torch.Tensor:
    if bound.get("weight") is not None:
        normal = normal * bound["weight"].reshape(shape)
    if bound.get("bias") is not None:
        normal = normal + bound["bias"].reshape(shape)
    return normal


_MASKED: dict[str, Callable[..., Any]] = {
    "layer_norm": _masked_layer_norm,
    "native_layer_norm": _masked_layer_norm,
    "rms_norm": _masked_layer_norm,
    "_fused_rms_norm": _masked_layer_norm,
    "group_norm": _masked_group_norm,
    "native_group_norm": _masked_group_norm,
    "_weight_norm": _masked_weight_norm,
    "_weight_norm_interface": _masked_weight_norm,
}
