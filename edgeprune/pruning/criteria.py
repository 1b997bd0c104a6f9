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
_CHUNK = 1 << 16  # values


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
    scores = _gather(graph, graph.free, values)
    if criterion == "bn_scale":
        scores |= _norm_scales(model, graph)
    return scores


def _magnitudes(model: nn.Module, graph: ChannelGraph, power: int) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return per position of every weight dimension the summed |w|**power of its slice, shape (size,)."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    values = {}
    sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for (name, axis), units in graph.dims.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() < 2:
            continue
        if axis == BLOCKED:
            blocks = tensor.detach().chunk(units.shape[1] // tensor.shape[1])
            found = torch.cat([_sum_over_others(_powers_summed(block, power)[1], 0) for block in blocks])
        else:
            if name not in sums:
                sums[name] = _powers_summed(tensor.detach(), power)
            found = sums[name][0] if axis == 0 else _sum_over_others(sums[name][1], axis - 1)
        values[(name, axis)] = found.cpu().numpy()
    return values


def _powers_summed(weight: torch.Tensor, power: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed |w|**power of every row, and of every position within the rows over all rows, in float64.

    Some rows at a time, that a cache holds: a whole weight in float64 would be written to memory and read again.
    """
    width = max(weight[0].numel(), 1)
    rows, columns = [], torch.zeros(width, dtype=torch.float64, device=weight.device)
    for some in torch.split(weight.flatten(1), max(_CHUNK // width, 1)):
        exact = some.to(torch.float64, copy=True)
        powers = exact.abs_() if power == 1 else exact.square_()
        rows.append(powers.sum(dim=1))
        columns += powers.sum(dim=0)
    return torch.cat(rows), columns.view(weight.shape[1:])


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
                product = (tensor.detach() * tensor.grad).double()
                if axis == BLOCKED:  # the inputs of every block apart
                    product = product.reshape(units.shape[1] // product.shape[1], -1, *product.shape[1:])
                    product = product.transpose(1, 2).flatten(0, 1)
                change = _sum_over_others(product, max(axis, 0)).cpu().numpy() ** 2
                values[(name, axis)] = values.get((name, axis), np.zeros_like(change)) + change
    if not values:
        raise ConfigError("criterion 'taylor' got no batch", fix="let train_data() return at least one batch")
    return values


def _sum_over_others(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the sums over all dimensions but one."""
    others = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=others) if others else tensor


def _gather(graph: ChannelGraph, groups: Iterable[Group], values: dict[tuple[str, int], NDArray[np.float64]]) -> Scores:
    """Sum the values of the positions of every unit; every tensor counts relative to its mean over the group."""
    chosen = list(groups)
    totals = [np.zeros(group.size) for group in chosen]
    group_of = np.full(graph.unit_count + 1, -1, dtype=np.int64)
    for index, group in enumerate(chosen):
        group_of[group.units] = index
    for dim, value in values.items():
        units = graph.dims[dim]
        rows, positions = np.nonzero(units >= 0)
        held = units[rows, positions]
        summed = np.bincount(held, weights=value[positions], minlength=graph.unit_count)
        present = np.bincount(group_of[held] + 1, minlength=len(chosen) + 1)[1:]
        for index in np.flatnonzero(present).tolist():
            own = summed[chosen[index].units]
            totals[index] += own / (own.mean() + _EPSILON)
    return {group.name: total for group, total in zip(chosen, totals, strict=True)}


def _norm_scales(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Return the mean |scale| per unit over a group's normalisations, for the free groups that have any."""
    scales = {
        f"{path}.weight": module.weight.detach().double().abs().cpu().numpy()
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        and isinstance(module.weight, torch.Tensor)
        and module.weight.dim() == 1
    }
    found = {dim: scales[dim[0]] for dim in graph.dims if dim[0] in scales}
    normed = []
    for group in graph.free:
        if any(name in group.tensors for name, _ in found):
            normed.append(group)
        else:
            logger.info("group %s has no normalisation; bn_scale falls back to l2 there", group.name)
    return _gather(graph, normed, found)


def first(batches: Iterable[Any], count: int) -> list[Any]:
    """Return up to `count` batches."""
    return list(islice(batches, count))
