"""How much of a network is in reach: the share of its parameters in tensors that can shrink.

The widths of what a network returns are its interface: nothing may shrink there, whatever a tool can do. A tensor that
stays whole for that reason alone is in reach as soon as the outputs are nobody's. A bare encoder returns its residual
stream; its embeddings and norms are such tensors, while the rest of it is inside.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from edgeprune.errors import EdgePruneError
from edgeprune.graph import trace
from edgeprune.graph.flow import Flow


def reached(graph: Any) -> frozenset[str]:
    """Return the tensors that removing some free unit would shrink, by first name."""
    free = torch.zeros(graph.unit_count + 1, dtype=torch.bool)
    for group in graph.free:
        free[torch.from_numpy(group.units)] = True
    return frozenset(name for (name, _), units in graph.dims.items() if bool(free[torch.from_numpy(units)].any()))


def held_by_outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> frozenset[str]:
    """Return the tensors that could shrink if the network's outputs might, and cannot as they may not.

    Raises:
        EdgePruneError: The network cannot be followed.
    """
    pinned = Flow.pin_outputs
    Flow.pin_outputs = lambda flow: None  # type: ignore[method-assign]
    try:
        without = reached(trace(model, inputs))
    finally:
        Flow.pin_outputs = pinned  # type: ignore[method-assign]
    return without - reached(trace(model, inputs))


def share(model: nn.Module, names: Collection[str], without: Collection[str] = ()) -> float:
    """Return the share of the parameters that are in the named tensors.

    Args:
        without: Tensors that count neither as reached nor as parameters.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if name not in without}
    return round(sum(size for name, size in sizes.items() if name in names) / max(sum(sizes.values()), 1), 4)


def share_inside(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: Collection[str]) -> float | None:
    """Return the share without what the outputs hold; None where the network cannot be followed.

    Args:
        names: The tensors that a tool reaches. One that it reaches although edgeprune does not counts nowhere.
    """
    try:
        return share(model, names, held_by_outputs(model, inputs))
    except EdgePruneError:
        return None
