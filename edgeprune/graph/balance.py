"""Balance: how many units groups keep where the blocks of a grouped convolution must stay equal.

The groups in such blocks hang together: their numbers are found together, as whole numbers nearest to the wanted ones.
Keeping everything is always possible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgeprune.graph.groups import Balance, ChannelGraph

ASKED_FOR = 1000.0  # what is asked for by name outweighs what has to go along
MORE = 1e-4  # of equally near numbers the larger ones
SECONDS = 5.0  # per programme; the best numbers found by then are taken

Numbers = NDArray[np.float64]


def balanced_counts(
    graph: ChannelGraph,
    wanted: Mapping[str, float],
    *,
    least: Mapping[str, int] | None = None,
    weights: Mapping[str, float] | None = None,
    align: int = 1,
) -> dict[str, int]:
    """Return how many units stay of every free group that takes part in a balance.

    Args:
        wanted: Units to keep, by group name; groups not named stay whole.
        least: Units to keep at least.
        weights: How much a group's distance from the wanted number counts, per channel.
        align: Blocks keep multiples of it, or everything, where that removes anything at all.
    """
    counts: dict[str, int] = {}
    sizes = {group.name: group.size for group in graph.groups}
    for names, balances in _components(graph):
        problem = _problem(graph, names, balances, wanted, least or {}, weights or {})
        whole = {name: sizes[name] for name in names}
        found = whole
        for step in dict.fromkeys((align, 1)):
            if found == whole:
                found = whole | _solved(problem, step)
        legal = all(len(set(balance.counts(sizes | found))) == 1 for balance in balances)
        counts.update(found if legal else whole)
    return counts


def rigid(graph: ChannelGraph) -> list[tuple[frozenset[str], str]]:
    """Return sets of free groups of which nothing can go while their blocks stay equal, each with what needs that."""
    sizes = {group.name: group.size for group in graph.free}
    fewest = balanced_counts(graph, dict.fromkeys(sizes, 1.0))
    return [
        (names, balances[0].what)
        for names, balances in _components(graph)
        if all(fewest[name] == sizes[name] for name in names)
    ]


def balanced_units(
    graph: ChannelGraph, names: Iterable[str], preferred: Callable[[int], bool], rest: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Return the kept units of groups that may go together, and of as few others as balances take along.

    Args:
        names: Groups to remove from; groups of one unit, and those not in the graph, are left out.
        preferred: Tells the units to keep; in balances fewer or more stay.
        rest: Groups that are not to be taken along.
    """
    sizes = {group.name: group.size for group in graph.free if group.size > 1}
    named = [name for name in names if name in sizes]
    keep = {name: tuple(filter(preferred, range(sizes[name]))) for name in named}
    wanted = {name: float(size) for name, size in sizes.items() if name not in rest or name in keep}
    wanted |= {name: float(len(units)) for name, units in keep.items()}
    counts = balanced_counts(graph, wanted, weights=dict.fromkeys(named, ASKED_FOR))
    for name, count in counts.items():
        order = sorted(range(sizes.get(name, 1)), key=lambda unit: not preferred(unit))
        keep[name] = tuple(sorted(order[:count]))
    return {name: units for name, units in keep.items() if len(units) < sizes.get(name, 1)}


def _components(graph: ChannelGraph) -> list[tuple[frozenset[str], list[Balance]]]:
    """Return the free groups that hang together through balances, and links, with those balances."""
    free = {group.name for group in graph.free}
    found: list[tuple[frozenset[str], list[Balance]]] = []
    sets = [({name for block in balance.blocks for name in block} & free, [balance]) for balance in graph.balances]
    for names, balances in [*sets, *[(set(linked), []) for linked in graph.links]]:
        touching = [entry for entry in found if entry[0] & names]
        found = [entry for entry in found if not entry[0] & names]
        together = frozenset(names).union(*[entry[0] for entry in touching])
        found.append((together, [item for entry in touching for item in entry[1]] + balances))
    return [(names, balances) for names, balances in found if names and balances]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """One component: a variable per set of linked groups that may shrink.

    Per balance `blocks` has the positions per unit, shape (blocks, variables), and the positions that stay anyway.
    """

    members: list[list[str]]
    sizes: Numbers
    least: Numbers
    wanted: Numbers
    weights: Numbers
    blocks: list[tuple[Numbers, Numbers]]


def _problem(
    graph: ChannelGraph,
    names: Collection[str],
    balances: list[Balance],
    wanted: Mapping[str, float],
    least: Mapping[str, int],
    weights: Mapping[str, float],
) -> _Problem:
    groups = {group.name: group for group in graph.groups}
    linked = [list(row) for row in graph.links if not set(row).isdisjoint(names)]
    alone = [[name] for name in sorted(set(names) - {name for row in linked for name in row})]
    members = [row for row in [*linked, *alone] if all(name in wanted and groups[name].size > 1 for name in row)]
    sizes = np.array([groups[row[0]].size for row in members], dtype=np.float64)
    channels = [sum(groups[n].channels / groups[n].size * weights.get(n, 1.0) for n in row) for row in members]
    nothing = {name: group.size for name, group in groups.items()} | {name: 0 for row in members for name in row}
    return _Problem(
        members=members,
        sizes=sizes,
        least=np.minimum([max(1, *(least.get(name, 1) for name in row)) for row in members], sizes),
        wanted=np.array([np.mean([wanted[name] for name in row]) for row in members]),
        weights=np.maximum(channels, 1e-3),
        blocks=[
            (
                np.array([[sum(block.get(n, 0) for n in row) for row in members] for block in item.blocks], np.float64),
                np.array(item.counts(nothing), dtype=np.float64),
            )
            for item in balances
        ],
    )


def _solved(problem: _Problem, step: int) -> dict[str, int]:
    """Return the whole numbers nearest to the wanted ones with all blocks equal; empty where none are found.

    The variables are the kept units, their distances from the wanted numbers, and for every balance how many steps
    its blocks keep, and whether they keep the rest that is no full step: only whole blocks do.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(problem.members)
    if not count:
        return {}
    stepped = [(rows[0], float(stay[0])) for rows, stay in problem.blocks] if step > 1 else []
    totals = np.array([row @ problem.sizes + stay for row, stay in stepped])
    width = 2 * count + 2 * len(stepped)
    unit = np.eye(count, width)
    distance = np.eye(count, width, count)
    rules = [
        LinearConstraint(unit - distance, ub=problem.wanted),
        LinearConstraint(unit + distance, lb=problem.wanted),
    ]
    for rows, stay in problem.blocks:
        differences = np.pad(rows[1:] - rows[0], ((0, 0), (0, width - count)))
        rules.append(LinearConstraint(differences, stay[0] - stay[1:], stay[0] - stay[1:]))
    for index, (row, kept_anyway) in enumerate(stepped):
        steps, rest = 2 * count + index, 2 * count + len(stepped) + index
        equation, full = np.pad(row, (0, width - count)), np.zeros(width)
        equation[steps], equation[rest] = -step, -(totals[index] % step)
        full[steps], full[rest] = 1, -(totals[index] // step)
        rules += [LinearConstraint(equation, -kept_anyway, -kept_anyway), LinearConstraint(full, lb=0)]
    found = milp(
        np.concatenate([-MORE * problem.weights, problem.weights, np.zeros(2 * len(stepped))]),
        integrality=np.concatenate([np.ones(count), np.zeros(count), np.ones(2 * len(stepped))]),
        bounds=Bounds(
            np.concatenate([problem.least, np.zeros(width - count)]),
            np.concatenate([problem.sizes, np.full(count, np.inf), totals // step, np.ones(len(stepped))]),
        ),
        constraints=rules,
        options={"time_limit": SECONDS, "presolve": False},  # with it HiGHS may print to the standard output
    )
    if found.x is None:
        return {}
    kept = np.rint(found.x[:count]).astype(int).tolist()
    return {name: number for row, number in zip(problem.members, kept, strict=True) for name in row}
