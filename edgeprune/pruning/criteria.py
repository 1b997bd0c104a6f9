"""Criteria: how important every unit of every group is.

`l1`, `l2`: magnitude of a unit's weights. `bn_scale`: absolute scale of its normalisation (Liu et al. 2017, Network
Slimming). `taylor`: first-order estimate of the loss change, gradient times weight over real batches (Molchanov et
al. 2019). `random`: a baseline. A criterion sees a network and a graph and returns scores; it removes nothing.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import ConfigError, ModelError
from edgeprune.graph import ChannelGraph, Group
from edgeprune.graph.classes import BLOCKED
from edgeprune.graph.structure import copy_model

logger = logging.getLogger(__name__)

Scores = dict[str, NDArray[np.float64]]
CRITERIA = ("l1", "l2", "bn_scale", "taylor", "random")
_EPSILON = 1e-12


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str,
    *,
    inputs: tuple[torch.Tensor, ...],
    train_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
) -> Scores:
    """Return the importance of every unit of every free group, shape (group.size,), higher means keep.

    Within one group a score is comparable; across groups too, as every tensor's contribution is relative to its mean.

    Args:
        inputs: Example tensors; unused by the built-in criteria.
        train_step: Returns the loss of a batch; `taylor` needs it, with `batches`.

    Raises:
        ConfigError: An unknown criterion, or `taylor` without a training step and batches.
        ModelError: The loss is not finite or not one value.
    """
    if criterion not in CRITERIA:
        near = difflib.get_close_matches(criterion, CRITERIA, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown criterion '{criterion}'{hint}", fix=f"criteria: {', '.join(CRITERIA)}")
    if criterion == "random":
        generator = np.random.default_rng(seed)
        return {group.name: generator.random(group.size) for group in graph.free}
    if criterion == "taylor":
        if train_step is None or batches is None:
            raise ConfigError(
                "criterion 'taylor' needs gradients, and the workload has no train_step with train_data",
                fix="add train_step and train_data to the workload, or use  -s prune.criterion=l2",
            )
        values = _taylor(model, graph, train_step, batches)
    else:
        values = _magnitudes(model, graph, 1 if criterion == "l1" else 2)
    scores = {}
    for group in graph.free:
        own = _norm_scales(model, graph, group) if criterion == "bn_scale" else None
        scores[group.name] = _gather(graph, group, values) if own is None else own
    return scores


def _magnitudes(model: nn.Module, graph: ChannelGraph, power: int) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return per position of every weight dimension the summed |w|**power of its slice, shape (size,)."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    values = {}
    for (name, axis), units in graph.dims.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.dim() > 1:
            weight = tensor.detach().double().abs() ** power
            values[(name, axis)] = _sum_over_others(weight, axis, units.shape[1])
    return values


def _taylor(
    model: nn.Module,
    graph: ChannelGraph,
    step: Callable[[nn.Module, Any], torch.Tensor],
    batches: Iterable[Any],
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return per position the sum over batches of the squared sum of gradient times weight over its slice."""
    working = copy_model(model).eval()
    for parameter in working.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    tensors = dict(working.named_parameters(remove_duplicate=False))
    values: dict[tuple[str, int], NDArray[np.float64]] = {}
    for number, batch in enumerate(batches):
        working.zero_grad(set_to_none=True)
        loss = step(working, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ModelError(f"train_step returned {what} instead of one loss value", fix="return loss.mean()")
        if not torch.isfinite(loss).all():
            raise ModelError(f"the loss of batch {number} is {float(loss.detach())} while scoring with 'taylor'")
        loss.backward()  # type: ignore[no-untyped-call]
        for (name, axis), units in graph.dims.items():
            tensor = tensors.get(name)
            if tensor is not None and tensor.dim() > 1 and tensor.grad is not None:
                change = _sum_over_others((tensor.detach() * tensor.grad).double(), axis, units.shape[1]) ** 2
                values[(name, axis)] = values.get((name, axis), np.zeros_like(change)) + change
    if not values:
        raise ConfigError("criterion 'taylor' got no batch", fix="let train_data() return at least one batch")
    return values


def _sum_over_others(tensor: torch.Tensor, axis: int, size: int) -> NDArray[np.float64]:
    """Return the sums over all other dimensions; `BLOCKED` keeps the inputs of every block apart.

    Args:
        size: Positions along the axis.
    """
    if axis == BLOCKED:
        tensor = tensor.reshape(size // tensor.shape[1], -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
        axis = 0
    others = [dim for dim in range(tensor.dim()) if dim != axis]
    result: NDArray[np.float64] = tensor.sum(dim=others).cpu().numpy()
    return result


def _gather(
    graph: ChannelGraph, group: Group, values: dict[tuple[str, int], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Sum the values of a group's positions per unit; every tensor counts relative to its mean over the group."""
    total = np.zeros(group.size)
    number = np.full(graph.unit_count + 1, -1, dtype=np.int64)
    number[group.units] = np.arange(group.size)
    for dim, value in values.items():
        units = number[graph.dims[dim]]
        rows, positions = np.nonzero(units >= 0)
        if len(positions):
            summed = np.bincount(units[rows, positions], weights=value[positions], minlength=group.size)
            total += summed / (summed.mean() + _EPSILON)
    return total


def _norm_scales(model: nn.Module, graph: ChannelGraph, group: Group) -> NDArray[np.float64] | None:
    """Return the mean |scale| per unit over the group's normalisations, or None where it has none."""
    scales = {
        f"{path}.weight": module.weight.detach().double().abs().cpu().numpy()
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        and isinstance(module.weight, torch.Tensor)
        and module.weight.dim() == 1
    }
    found = {dim: scales[dim[0]] for dim in graph.dims if dim[0] in scales and dim[0] in group.tensors}
    if not found:
        logger.info("group %s has no normalisation; bn_scale falls back to l2 there", group.name)
        return None
    return _gather(graph, group, found)


def first(batches: Iterable[Any], count: int) -> list[Any]:
    """Return up to `count` batches."""
    return list(islice(batches, count))
