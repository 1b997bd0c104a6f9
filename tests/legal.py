"""Legal choices: units drawn at random made to fit the constraints of a graph, as few changes as will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeprune.graph import ChannelGraph
from edgeprune.graph.balance import balanced_counts


def legal(graph: ChannelGraph, keep: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Return the kept units with fewer or more of them where blocks must stay equal; links are up to the caller.

    Groups that share positions with those named are not taken along: removing both multiplies.
    """
    groups = {group.name: group for group in graph.free}
    chosen = {name: tuple(units) for name, units in keep.items()}
    taken = {other for name in chosen for other in groups[name].overlaps} - set(chosen)
    wanted = {name: float(group.size) for name, group in groups.items() if name not in taken}
    wanted |= {name: float(len(units)) for name, units in chosen.items()}
    for name, count in balanced_counts(graph, wanted, weights=dict.fromkeys(chosen, 1000.0)).items():
        mine = chosen.get(name, ())
        order = [*mine, *(unit for unit in range(groups[name].size) if unit not in mine)]
        chosen[name] = tuple(sorted(order[:count]))
    return chosen


def halves(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Return every second unit of every free group, made legal."""
    return legal(graph, {group.name: range(0, group.size, 2) for group in graph.free})
