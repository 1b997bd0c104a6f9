"""Budgets of a plan: how many multiply-accumulates or parameters a network may keep, and how many a choice leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import ConfigError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.cost import count_macs, count_params
from edgeprune.values import COUNTED, Countable, parse_count

if TYPE_CHECKING:
    import torch
    from torch import nn

Units = Mapping[str, Iterable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be left of one quantity.

    Attributes:
        limit: The count that may be left.
        dense: The count of the network that a share refers to.
        current: The count of the network in which the units are: fewer where blocks are gone already.
        left: Returns how many a choice of kept units leaves.
    """

    asked: str
    kind: Countable
    limit: float
    dense: int
    current: int
    left: Callable[[Units], float]

    def met(self, keep: Units) -> bool:
        """Return whether a choice of kept units stays within the budget."""
        return self.left(keep) <= self.limit

    def unmet(self, keep: Units) -> ConfigError:
        """Return the error that the narrowest choice is still too large."""
        reached = self.left(keep) / max(self.dense, 1)
        return ConfigError(
            f"max_{self.kind} = {self.asked} cannot be met: "
            f"the narrowest plan still has {reached:.3f} of the {COUNTED[self.kind]}",
            fix=f"ask for {reached + 0.005:.2f}x or more, or  -s prune.align=1  or  -s prune.streams=free",
        )


def count(kind: Countable, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the multiply-accumulates or the parameters of a network."""
    return count_macs(model, inputs) if kind == "macs" else count_params(model)


def budget_of(
    asked: tuple[Countable, str] | None,
    graph: ChannelGraph,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dense: int | None = None,
) -> Budget | None:
    """Return the budget that settings ask for, if they do.

    Args:
        asked: The quantity and its limit, such as `0.5x` or `120M`.
        dense: What a share refers to, by default what the model has.

    Raises:
        ConfigError: The limit cannot be read.
    """
    if asked is None:
        return None
    kind, text = asked
    current = count(kind, model, inputs)
    dense = current if dense is None else dense
    value, unit = parse_count(text, kind)
    return Budget(
        asked=text,
        kind=kind,
        limit=value * dense if unit == "share" else value,
        dense=dense,
        current=current,
        left=left_of(kind, graph, model, current),
    )


def left_of(kind: Countable, graph: ChannelGraph, model: nn.Module, current: int) -> Callable[[Units], float]:
    """Return the function from kept units to the count that they leave."""
    if kind == "macs":
        return lambda keep: remaining_macs(graph, keep, current) * current
    names = {name for name, _ in model.named_parameters()}
    return lambda keep: remaining_params(graph, keep, names, current)


def remaining_macs(graph: ChannelGraph, keep: Units, dense_macs: int) -> float:
    """Return the share of the multiply-accumulates that a choice of units leaves, from the widths alone.

    Args:
        dense_macs: What the dense network needs by count; operators that the graph does not understand keep theirs.
    """
    alive = graph.alive(keep)
    saved = sum(
        item.macs * (1 - float(np.prod([alive[units].all(axis=0).mean() for units in item.sides])))
        for item in graph.contractions
    )
    return 1 - saved / max(dense_macs, 1)


def remaining_params(graph: ChannelGraph, keep: Units, names: Iterable[str], dense_params: int) -> float:
    """Return how many parameters a choice of units leaves, from the widths alone.

    Args:
        names: The parameters of the network; other tensors that shrink are buffers.
    """
    shares: dict[str, float] = {}
    for (name, _), mask in graph.masks(keep).items():
        shares[name] = shares.get(name, 1.0) * float(mask.mean())
    own = set(names)
    saved = sum(np.prod(graph.shapes[name]) * (1 - share) for name, share in shares.items() if name in own)
    return dense_params - float(saved)
