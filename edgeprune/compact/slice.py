"""Slicing: a copy of a network with the removed positions cut out of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import ConfigError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.classes import BLOCKED
from edgeprune.graph.groups import Dim
from edgeprune.graph.structure import copy_model, named_tensors

Masks = Mapping[Dim, NDArray[np.bool_]]


def sliced(model: nn.Module, graph: ChannelGraph, masks: Masks) -> nn.Module:
    """Return a copy of the network in evaluation mode with its tensors cut and nothing else changed.

    Shared tensors stay shared. Numbers that modules hold still say the old sizes.
    """
    return with_tensors(model, cut_tensors(model, masks))


def cut_tensors(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """Return the tensors that lose positions without them, by first name."""
    tensors = named_tensors(model)
    cuts: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for (name, axis), mask in masks.items():
        cuts.setdefault(name, {})[axis] = mask
    with torch.no_grad():
        return {name: _cut(tensors[name], axes) for name, axes in cuts.items()}


def with_tensors(model: nn.Module, cut: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of the network in evaluation mode with some tensors replaced.

    Replaced parameters lie in the memory of the given ones, so that trials need no memory of their own: of several
    copies only one may be kept.
    """
    own = {
        name: nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else tensor.clone()
        for name, tensor in cut.items()
    }
    return copy_model(model, own).eval()


def grown(
    model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Iterable[int]], weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    """Return a copy of the dense network that has a pruned network's values at the positions which are left.

    The inverse of `sliced`: cutting what `keep` drops gives the weights back. Elsewhere weights are zero, so that
    they count for nothing in a score, and biases and statistics are the dense network's.

    Args:
        weights: Tensors of the network that `keep` leaves; a shared one may be given under any of its names.

    Raises:
        ConfigError: A tensor has another shape than `keep` leaves.
    """
    cuts: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for (name, axis), mask in graph.masks(keep).items():
        cuts.setdefault(name, {})[axis] = mask
    found = {}
    for name, old in (*model.named_parameters(), *model.named_buffers()):
        given = next((weights[n] for n in (name, *graph.names.get(name, ())) if n in weights), None)
        if given is None:
            continue
        numbers = torch.arange(old.numel(), device=old.device).view(old.shape)
        positions = _cut(numbers, cuts[name]) if name in cuts else numbers
        if positions.shape != given.shape:
            raise ConfigError(f"{name} is {tuple(given.shape)}, and the plan leaves {tuple(positions.shape)}")
        fresh = isinstance(old, nn.Parameter) and old.dim() > 1 and name in cuts
        value = torch.zeros_like(old) if fresh else old.detach().clone()
        flat = value.flatten()
        flat[positions.flatten()] = given.detach().to(value).flatten()
        value = flat.view(old.shape)
        found[name] = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    return copy_model(model, found).eval()


def changed_dims(graph: ChannelGraph, masks: Masks) -> set[Dim]:
    """Return the dimensions that shrink, under all names of their tensors."""
    return {(alias, axis) for name, axis in masks if axis >= 0 for alias in graph.names[name]}


def _cut_blocks(value: torch.Tensor, mask: NDArray[np.bool_]) -> torch.Tensor:
    """Return a weight (out, in / groups, ...) with every block of rows cut to the inputs that it keeps."""
    kept = mask.reshape(-1, value.shape[1])
    if len(set(kept.sum(axis=1).tolist())) > 1:
        raise ConfigError(
            f"the blocks of a grouped convolution keep different numbers of inputs: {kept.sum(axis=1).tolist()}",
            fix="keep equally many in every block",
        )
    blocks = value.reshape(len(kept), -1, *value.shape[1:])
    indices = (torch.from_numpy(np.flatnonzero(row)).to(value.device) for row in kept)
    return torch.cat([block.index_select(1, index) for block, index in zip(blocks, indices, strict=True)])


def _cut(old: torch.Tensor, axes: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    value = old.detach()
    for axis, mask in sorted(axes.items()):  # blocks first: they are told apart by the rows before those are cut
        if axis == BLOCKED:
            value = _cut_blocks(value, mask)
            continue
        value = value.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
    if value.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
