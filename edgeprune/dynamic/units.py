"""Units of a graph as positions of a living network's parameters: to zero, to shrink, to measure.

Knows which values make up a unit; which units go, and when, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import ConfigError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.classes import BLOCKED, by_block
from edgeprune.graph.enter import unwrapped
from edgeprune.pruning import criteria

Removed = dict[str, NDArray[np.bool_]]  # by group, which units go
Kept = dict[str, torch.Tensor]  # by parameter, which values stay


def parameters_of(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Parameter]:
    """Return the parameters of a network that hold units, by name.

    Raises:
        ConfigError: The graph speaks of other tensors than the network trains: some of its weights are computed.
    """
    inner = unwrapped(model)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    tensors: dict[str, torch.Tensor] = {**parameters, **dict(inner.named_buffers(remove_duplicate=False))}
    for name in {name for name, _ in graph.dims}:
        if name not in tensors or tuple(tensors[name].shape) != tuple(graph.shapes[name]):
            raise ConfigError(
                f"'{name}' is no parameter of the network that is trained, as with weights that forward computes",
                fix="remove parametrizations first, or use  method = 'weights'",
            )
    return {name: parameters[name] for name, _ in graph.dims if name in parameters}


def kept_units(removed: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[int]]:
    """Return the units that stay, by group."""
    return {name: np.flatnonzero(~gone).tolist() for name, gone in removed.items()}


def kept_values(graph: ChannelGraph, parameters: Mapping[str, nn.Parameter], removed: Removed) -> Kept:
    """Return which values stay of every parameter that holds a removed unit: none of its positions does."""
    found: Kept = {}
    for (name, axis), mask in graph.masks(kept_units(removed)).items():
        if name in parameters:
            _without(found, parameters[name], name, axis, mask)
    return found


def kept_filters(graph: ChannelGraph, parameters: Mapping[str, nn.Parameter], removed: Removed) -> Kept:
    """Return the same for the weights alone that make the channels of removed units.

    Normalisation, biases and what reads the channels stay, so that gradients reach the weights and they can come back.
    """
    producers = {group.producer for group in graph.free}
    found: Kept = {}
    for (name, axis), mask in graph.masks(kept_units(removed)).items():
        makes = axis == 0 or (name, axis) in producers
        if name in parameters and parameters[name].dim() > 1 and axis != BLOCKED and makes:
            _without(found, parameters[name], name, axis, mask)
    return found


def _without(found: Kept, parameter: nn.Parameter, name: str, axis: int, mask: NDArray[np.bool_]) -> None:
    """Mark the removed positions of one dimension of a parameter."""
    if name not in found:
        found[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    if axis == BLOCKED:
        blocks, keep = by_block(found[name], mask)
        blocks.logical_and_(keep)
        return
    stays = torch.from_numpy(mask).to(parameter.device)
    shape = [1] * parameter.dim()
    shape[axis] = -1
    found[name].logical_and_(stays.view(shape))


def norm_scales(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Parameter]:
    """Return the scales of normalisations that have one for each of a free group's channels, by name.

    Raises:
        ConfigError: There are none.
    """
    tensors = {name for group in graph.free for name in group.tensors}
    scales = criteria.norm_scales(unwrapped(model))
    found = {name: s for name, s in scales.items() if name in tensors and isinstance(s, nn.Parameter)}
    if not found:
        raise ConfigError(
            "method 'slim' shrinks the scales of normalisations, and no channels that can go have any",
            fix="use  method = 'regularise'  or  'channels'",
        )
    return found


def unit_share(graph: ChannelGraph, removed: Removed) -> float:
    """Return the share of a graph's free units that are removed."""
    total = sum(group.size for group in graph.free)
    return sum(int(gone.sum()) for gone in removed.values()) / max(total, 1)


def with_statistics(graph: ChannelGraph, names: Iterable[str]) -> list[str]:
    """Return those groups whose size enters a mean or norm over channels: zeros count there until they are cut."""
    chosen = set(names)
    return [group.name for group in graph.free if group.statistics and group.name in chosen]
