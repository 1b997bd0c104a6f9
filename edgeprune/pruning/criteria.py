"""Criteria: how important every unit of every group is.

Of the weights: `l1`, `l2`, their magnitude; `fpgm`, their distance to the geometric median; `bn_scale`, the absolute
scale of the normalisation (Liu et al. 2017, Network Slimming). Of the loss: `taylor` and `hessian`. Of what flows:
`activation` and `apoz`. `random` is a baseline. `package.module:function` and `file.py:function` are the user's own. A
criterion sees a network and a graph and returns scores; it removes nothing.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import ConfigError
from edgeprune.graph import ChannelGraph, Group
from edgeprune.graph.classes import BLOCKED
from edgeprune.graph.structure import copy_model
from edgeprune.pruning.activations import activation_scores
from edgeprune.pruning.filters import distances
from edgeprune.pruning.gradients import curvature, sum_over_others, taylor
from edgeprune.workload import import_code

logger = logging.getLogger(__name__)

Scores = dict[str, NDArray[np.float64]]
Criterion = Callable[[nn.Module, ChannelGraph], Mapping[str, Any]]
OF_LOSS = ("taylor", "hessian")
OF_ACTIVATIONS = ("activation", "apoz")
CRITERIA = ("l1", "l2", "fpgm", "bn_scale", *OF_LOSS, *OF_ACTIVATIONS, "random")
_EPSILON = 1e-12
_CHUNK = 1 << 16  # values


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion,
    *,
    inputs: tuple[torch.Tensor, ...],
    train_step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    samples: Iterable[tuple[torch.Tensor, ...]] | None = None,
    seed: int = 0,
) -> Scores:
    """Return the importance of every unit of every free group, shape (group.size,), higher means keep.

    Within one group a score is comparable; across groups too, as every tensor's contribution is relative to its mean.

    Args:
        criterion: One of `CRITERIA`, `package.module:function`, `file.py:function`, or such a function: it gets the
            network and the graph and returns scores by group name.
        inputs: Example tensors, on which a criterion of activations looks where there are no samples.
        train_step: Returns the loss of a batch; criteria of the loss need it, with `batches`.
        samples: Inputs of the network for criteria of activations.

    Raises:
        ConfigError: An unknown criterion, one of the loss without a training step and batches, or a user's function
            that cannot be found or returns something else than scores.
        ModelError: The loss is not finite or not one value, or activations are not finite.
    """
    if not isinstance(criterion, str) or ":" in criterion:
        return _own(criterion, model, graph)
    check_name(criterion)
    if criterion == "random":
        generator = np.random.default_rng(seed)
        return {group.name: generator.random(group.size) for group in graph.free}
    if criterion in OF_LOSS:
        if train_step is None or batches is None:
            raise ConfigError(
                f"criterion '{criterion}' needs gradients, and the workload has no train_step with train_data",
                fix="add train_step and train_data to the workload, or use  -s prune.criterion=l2",
            )
        if criterion == "taylor":
            return _gather(graph, graph.free, taylor(model, graph, train_step, batches))
        return _gather(graph, graph.free, curvature(model, graph, train_step, batches, seed))
    if criterion == "fpgm":
        found = _gather(graph, graph.free, distances(model, graph))
        return _or_l2(model, graph, found, "weight that makes its channels")
    if criterion in OF_ACTIVATIONS:
        found = activation_scores(model, graph, criterion, samples if samples is not None else [inputs])
        return _or_l2(model, graph, found, "layer that reads its channels")
    scores = _gather(graph, graph.free, _magnitudes(model, graph, 1 if criterion == "l1" else 2))
    if criterion == "bn_scale":
        scores |= _norm_scales(model, graph)
    return scores


def check_name(criterion: str) -> None:
    """Check that there is a criterion of this name; functions of the user are looked up when they are called.

    Raises:
        ConfigError: There is none; the nearest name is in the message.
    """
    if criterion not in CRITERIA and ":" not in criterion:
        near = difflib.get_close_matches(criterion, CRITERIA, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        known = f"criteria: {', '.join(CRITERIA)}, or module:function"
        raise ConfigError(f"unknown criterion '{criterion}'{hint}", fix=known)


def _own(criterion: str | Criterion, model: nn.Module, graph: ChannelGraph) -> Scores:
    """Return the scores of a user's function, checked."""
    function: Any = criterion
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))
    if isinstance(criterion, str):
        home, _, attribute = criterion.rpartition(":")
        function = getattr(import_code(home), attribute, None)
    if not callable(function):
        what = type(function).__name__
        raise ConfigError(f"criterion '{name}' is {what}, not a function", fix="name a function of the file")
    found = function(copy_model(model).eval(), graph)
    scores = {}
    for group in graph.free:
        values = np.asarray(found.get(group.name) if isinstance(found, Mapping) else None, dtype=np.float64)
        if values.shape != (group.size,) or not np.isfinite(values).all():
            shape = "nothing" if values.shape == () else f"shape {values.shape}"
            raise ConfigError(
                f"criterion '{name}' returned {shape} for group '{group.name}', or values that are not finite",
                fix=f"return {{group.name: array of (group.size,) values for group in graph.free}}, here {group.size}",
            )
        scores[group.name] = values
    return scores


def _or_l2(model: nn.Module, graph: ChannelGraph, found: Scores, needed: str) -> Scores:
    """Return scores with those of `l2` for groups that a criterion says nothing about."""
    silent = [group for group in graph.free if group.name not in found or not found[group.name].any()]
    for group in silent:
        logger.info("group %s has no %s; l2 stands in there", group.name, needed)
    return found | (_gather(graph, silent, _magnitudes(model, graph, 2)) if silent else {})


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
            found = torch.cat([sum_over_others(_powers_summed(block, power)[1], 0) for block in blocks])
        else:
            if name not in sums:
                sums[name] = _powers_summed(tensor.detach(), power)
            found = sums[name][0] if axis == 0 else sum_over_others(sums[name][1], axis - 1)
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


def norm_scales(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the scales of normalisations that have one for each channel, by name."""
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        and isinstance(module.weight, torch.Tensor)
        and module.weight.dim() == 1
    }


def _norm_scales(model: nn.Module, graph: ChannelGraph) -> Scores:
    """Return the mean |scale| per unit over a group's normalisations, for the free groups that have any."""
    scales = {name: scale.detach().double().abs().cpu().numpy() for name, scale in norm_scales(model).items()}
    found = {dim: scales[dim[0]] for dim in graph.dims if dim[0] in scales}
    normed = []
    for group in graph.free:
        if any(name in group.tensors for name, _ in found):
            normed.append(group)
        else:
            logger.info("group %s has no normalisation; bn_scale falls back to l2 there", group.name)
    return _gather(graph, normed, found)
