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
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import UNNUMBERED, attention_in_parts, bind, operator_name
from edgeprune.graph.groups import Dim
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


class _MaskedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls as the recorder did and computes the marked ones over kept positions."""

    def __init__(self, marks: Mapping[int, tuple[str, Masks]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._marks = marks
        self._index = -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        base = operator_name(func)
        self._index += base not in UNNUMBERED
        if base in UNNUMBERED or self._index not in self._marks:
            return func(*args, **kwargs)
        name, masks = self._marks[self._index]
        if base.lstrip("_") != name.lstrip("_"):
            raise VerificationError(
                f"the network called {base} where it called {name} before: its forward is not repeatable",
                fix="take randomness and data-dependent choices out of forward",
            )
        bound = bind(func, args, kwargs)
        for argument in {argument for argument, _ in masks}:
            bound[argument] = _blank(bound[argument], argument, masks, _NEUTRAL.get(name, 0.0))
        if name in _MASKED:
            mine = {axis: mask for (_, axis), mask in masks.items()}
            return _MASKED[name](func, bound, mine)
        return _recall(func, bound)


# What a removed position must hold so that it does not matter to the reduction.
_NEUTRAL = {
    "softmax": -math.inf,
    "log_softmax": -math.inf,
    "_softmax": -math.inf,
    "_log_softmax": -math.inf,
    "amax": -math.inf,
    "max": -math.inf,
    "amin": math.inf,
    "min": math.inf,
}


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


def _masked_mean(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    share = math.prod(float(mask.mean()) for mask in masks.values())
    result: torch.Tensor = _recall(func, bound)
    return result / share


def _masked_spread(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    """var and std over kept positions: pick them, then reduce."""
    tensor = bound["self"]
    for axis, mask in masks.items():
        tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
    return _recall(func, {**bound, "self": tensor})  # type: ignore[no-any-return]


def _masked_layer_norm(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    x, shape = bound["input"], bound["normalized_shape"]
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    keep = _keep(x, masks)
    share = math.prod(float(mask.mean()) for mask in masks.values())
    centred = x
    if "rms" not in func._schema.name:
        mean = x.mean(dim=axes, keepdim=True) / share
        centred = torch.where(keep, x - mean, torch.zeros_like(x))
    variance = centred.square().mean(dim=axes, keepdim=True) / share
    epsilon = bound.get("eps")
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    return _affine(centred * torch.rsqrt(variance + epsilon), bound, [1] * (x.dim() - len(shape)) + list(shape))


def _masked_group_norm(func: Any, bound: dict[str, Any], masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    x, groups = bound["input"], bound["num_groups"]
    keep = _keep(x, masks).expand(x.shape).to(x.dtype)
    blocks = x.reshape(x.shape[0], groups, -1)
    inside = keep.reshape(blocks.shape)
    count = inside.sum(-1, keepdim=True).clamp(min=1)
    centred = (blocks - (blocks * inside).sum(-1, keepdim=True) / count) * inside
    variance = centred.square().sum(-1, keepdim=True) / count
    normal = (centred * torch.rsqrt(variance + bound["eps"])).reshape(x.shape)
    return _affine(normal, bound, [1, x.shape[1]] + [1] * (x.dim() - 2))


def _affine(normal: torch.Tensor, bound: dict[str, Any], shape: list[int]) -> torch.Tensor:
    if bound.get("weight") is not None:
        normal = normal * bound["weight"].reshape(shape)
    if bound.get("bias") is not None:
        normal = normal + bound["bias"].reshape(shape)
    return normal


_MASKED: dict[str, Callable[..., Any]] = {
    "mean": _masked_mean,
    "var": _masked_spread,
    "std": _masked_spread,
    "layer_norm": _masked_layer_norm,
    "rms_norm": _masked_layer_norm,
    "group_norm": _masked_group_norm,
}
