"""Rehearsal: prune a little of everything before promising it, and pin what the user's code does not survive.

User code may hold sizes that no analysis sees (`x.view(-1, 400)`). A trial compaction finds them: groups that flow
through the failing source line are tried one by one, and those that fail alone are pinned with that line.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from edgeprune.compact.eager import compact
from edgeprune.errors import EdgePruneError, ModelError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.labels import Pin
from edgeprune.pruning.select import resting


def analyse(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> ChannelGraph:
    """Return the channel groups of a network whose removal the network's own code survives.

    Raises:
        TraceError: The forward cannot be followed.
    """
    return rehearse(model, trace(model, inputs), inputs)


def rehearse(model: nn.Module, graph: ChannelGraph, inputs: tuple[torch.Tensor, ...]) -> ChannelGraph:
    """Return the graph with the groups pinned whose trial compaction fails or differs."""
    while graph.free:
        rest = resting(graph)
        names = [group.name for group in graph.free if group.name not in rest]
        failure = _attempt(model, graph, names, inputs)
        if failure is None:
            return graph
        flowing = graph.lines.get(failure.where or "", frozenset())
        suspects = [name for name in names if name in flowing] or names
        guilty = _alone(model, graph, suspects, inputs) or _alone(model, graph, names, inputs)
        if guilty:
            for name, error in guilty.items():
                graph = graph.pin([name], _pin(error))
        else:
            graph = graph.pin(suspects, _pin(failure))
    return graph


def _alone(
    model: nn.Module, graph: ChannelGraph, names: Iterable[str], inputs: tuple[torch.Tensor, ...]
) -> dict[str, EdgePruneError]:
    """Return the groups whose removal fails on its own, with the failure."""
    found = {}
    for name in names:
        together = next((list(linked) for linked in graph.links if name in linked), [name])
        error = _attempt(model, graph, together, inputs)
        if error is not None:
            found[name] = error
    return found


def _attempt(
    model: nn.Module, graph: ChannelGraph, names: Iterable[str], inputs: tuple[torch.Tensor, ...]
) -> EdgePruneError | None:
    """Remove every second unit of the named groups, then every third; return what went wrong, or None.

    Two widths, because a size that is written in the code can happen to fit one of them.
    """
    sizes = {group.name: group.size for group in graph.free}
    named = [name for name in names if sizes.get(name, 1) > 1]
    for kept in (lambda unit: unit % 2 == 0, lambda unit: unit % 3 != 1):
        keep = {name: tuple(filter(kept, range(sizes[name]))) for name in named}
        if not keep:
            return None
        try:
            compact(model, graph, keep, inputs)
        except EdgePruneError as error:
            return error
    return None


def _pin(error: EdgePruneError) -> Pin:
    if isinstance(error, ModelError):
        return Pin(reason="the code expects the old size here", where=error.where, fix=error.fix)
    return Pin(reason="pruning it changes the result", where=error.where, fix="keep it")
