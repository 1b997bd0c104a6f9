"""From scores to a plan: how many units of every group stay, and which.

Widths are rounded to multiples of `align`, because runtimes pay for whole tiles: unrounded pruning can be slower than
none. Groups that user code cuts into equal pieces keep equal numbers, and so do the blocks of grouped convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph import ChannelGraph, Group
from edgeprune.graph.balance import ASKED_FOR, balanced_counts
from edgeprune.graph.labels import Pin
from edgeprune.pruning.blocks import matches
from edgeprune.pruning.budget import Budget, budget_of
from edgeprune.pruning.criteria import Scores
from edgeprune.pruning.plan import GroupPlan, PrunePlan
from edgeprune.values import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


Keep = dict[str, np.ndarray]
Allocate = Callable[[float], Mapping[str, float]]
Units = Mapping[str, Sequence[int]]
_NEARLY_ALL = 0.999


def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    config: PruneConfig,
    *,
    align: int,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    blocks: tuple[str, ...] = (),
    protected: Iterable[str] = (),
    dense: int | None = None,
    allocate: Allocate | None = None,
    within: Units | None = None,
) -> PrunePlan:
    """Choose which units of every group to keep.

    Args:
        graph: Channel groups of the model, from `trace`.
        scores: Importance per group, shape (group.size,). Higher means keep.
        config: Ratio or budget, scope, minimum width, patterns to keep.
        align: Width of every pruned dimension is a multiple of it. `config.align` wins where it is a number.
        blocks: What was removed from the dense network before; the model and its graph are without them.
        protected: Names of blocks; a pattern of `config.keep` may mean one of them instead of a group.
        dense: What a budget is a share of, by default what the model has.
        allocate: Ratios of the groups by name, from the ratio over all of them; `config.ratios` win.
        within: Units of every group that an earlier plan kept, by name: only those may be kept.

    Raises:
        NothingToPrune: Every group is pinned or too narrow for `align`; the message lists the reasons.
        ConfigError: A pattern of `keep` or a name in `ratios` matches no group, or a budget cannot be met.
    """
    align = align if config.align == "target" else config.align
    graph = hold(graph, config.keep, protected)
    _check_names(graph, config)
    wanted = config.budget is not None or config.ratio > 0 or any(config.ratios.values())
    if not graph.free and wanted:
        raise NothingToPrune("no group can be pruned", fix=_reasons(graph))

    def choose(ratio: float, settings: PruneConfig = config) -> Keep:
        return _choose(graph, scores, settings, align, ratio, allocate, within)

    budget = budget_of(config.budget, graph, model, inputs, dense)
    if not wanted:
        keep = {group.name: np.arange(group.size) for group in graph.free}
    elif budget is not None:
        if config.streams == "auto" and not budget.met(choose(_NEARLY_ALL)):
            choose = partial(choose, settings=config.model_copy(update={"streams": "free"}))
        keep = _meet_budget(choose, budget)
    else:
        names = active(graph, config)
        keep = choose(config.ratio) if allocate is None else _meet_ratio(graph, choose, config.ratio, names)
    whole = all(len(kept) == group.size for group, kept in zip(graph.free, keep.values(), strict=True))
    met_by_blocks = budget is not None and bool(blocks)
    if wanted and whole and not met_by_blocks:
        asked = f"a ratio of {config.ratio}" if budget is None else f"max_{budget.kind} = {budget.asked}"
        raise NothingToPrune(
            f"{asked} removes nothing when widths are multiples of {align}",
            fix="ask for more to be removed, or  -s prune.align=1",
        )
    return PrunePlan(
        network=type(model).__name__,
        groups={
            group.name: GroupPlan(units=group.size, keep=tuple(int(unit) for unit in keep[group.name]))
            for group in graph.free
        },
        inputs=describe(inputs),
        settings={**config.model_dump(mode="json"), "align": align},
        blocks=blocks,
    )


def hold(graph: ChannelGraph, patterns: Iterable[str], known: Iterable[str] = ()) -> ChannelGraph:
    """Return the graph with the groups pinned whose name or tensors match a pattern (shell style or regex).

    Args:
        known: Other names that a pattern may mean.

    Raises:
        ConfigError: A pattern matches nothing, or is not a valid regular expression.
    """
    for pattern in patterns:
        found = [
            group.name
            for group in graph.groups
            if any(matches(pattern, n, "keep") for n in (group.name, *group.tensors))
        ]
        if not found and any(matches(pattern, name, "keep") for name in known):
            continue
        if not found:
            names = ", ".join(group.name for group in graph.groups[:8])
            raise ConfigError(f"keep = '{pattern}' matches no group or tensor", fix=f"groups: {names}, ...")
        graph = graph.pin(found, Pin(reason=f"kept by '{pattern}'"))
    return graph


def _check_names(graph: ChannelGraph, config: PruneConfig) -> None:
    known = {group.name for group in graph.free}
    for name, ratio in config.ratios.items():
        if name not in known:
            raise ConfigError(f"prune.ratios names '{name}', which is not a free group", fix=f"groups: {sorted(known)}")
        if not 0 <= ratio < 1:
            raise ConfigError(f"prune.ratios['{name}'] = {ratio} is outside [0, 1)")


def _reasons(graph: ChannelGraph) -> str:
    rows = [f"{group.name}: {group.pinned}{f' at {group.where}' if group.where else ''}" for group in graph.groups]
    return "pinned: " + "; ".join(rows[:10]) if rows else "the network has no convolution or linear layer that is read"


def resting(graph: ChannelGraph, config: PruneConfig) -> dict[str, str]:
    """Return the groups that planning leaves whole, each with the reason.

    Where groups share positions, pruning both would multiply: the finer one is pruned; in attention the width of all
    heads, or whole heads. A stream is left whole as long as there is anything else.
    """
    groups = {group.name: group for group in graph.free if group.size > 1}
    rest: dict[str, str] = {}
    for group in groups.values():
        heads = [name for name in group.overlaps if name in groups and not groups[name].inside_heads]
        if group.inside_heads and heads and config.attention == "width" and _all_narrow(graph, groups, heads):
            rest |= dict.fromkeys(heads, "the width of its heads is pruned")
        elif group.inside_heads and heads:
            others = [name for head in heads for name in groups[head].overlaps if name not in heads]
            rest |= dict.fromkeys((group.name, *others), f"whole heads are pruned: {', '.join(heads)}")
    for group in sorted(graph.free, key=lambda g: (g.size, g.name)):
        others = [name for name in group.overlaps if name in groups and name not in rest]
        if group.name not in rest and others and all(groups[name].size >= group.size for name in others):
            rest[group.name] = f"shares positions with {', '.join(others)}"
    streams = [group.name for group in groups.values() if group.stream and group.name not in rest]
    if config.streams != "free" and len(streams) < len(groups.keys() - rest.keys()):
        rest |= dict.fromkeys(streams, "a stream that normalisations count")
    return rest


def _all_narrow(graph: ChannelGraph, groups: Mapping[str, Group], heads: Iterable[str]) -> bool:
    """Return whether every layer of attention loses width; with rotary positions, queries and keys cannot."""
    layers = {item.weight for item in graph.contractions}
    for head in heads:
        inner = [groups[name] for name in groups[head].overlaps if name in groups and groups[name].inside_heads]
        narrow = {tensor for group in inner for tensor in group.tensors}
        if not layers.intersection(groups[head].tensors) <= narrow:
            return False
    return True


def active(graph: ChannelGraph, config: PruneConfig) -> set[str]:
    """Return the free groups that planning takes units from: those that do not rest, and those with own ratios."""
    return {group.name for group in graph.free} - (resting(graph, config).keys() - config.ratios.keys())


def together(graph: ChannelGraph, config: PruneConfig) -> list[tuple[str, ...]]:
    """Return the groups that planning takes units from: linked ones in one set, others alone, in their order."""
    names = {group.name for group in graph.free} - resting(graph, config).keys()
    linked = {name: tuple(n for n in row if n in names) for row in graph.links for name in row}
    moving = [group.name for group in graph.free if group.name in names and group.size > 1]
    return list(dict.fromkeys(linked.get(name, (name,)) for name in moving))


def _choose(
    graph: ChannelGraph,
    scores: Scores,
    config: PruneConfig,
    align: int,
    ratio: float,
    allocate: Allocate | None = None,
    within: Units | None = None,
) -> Keep:
    """Return the kept units of every free group, ascending."""
    chosen = active(graph, config)
    moving = [group for group in graph.free if group.name in chosen]
    scores = _lowered(scores, within) if within is not None else scores
    ranked = _global_counts(moving, scores, ratio) if config.scope == "global" and allocate is None else {}
    asked = allocate(ratio) if allocate is not None else {}
    wanted: dict[str, float] = {}
    for group in moving:
        own = config.ratios.get(group.name, asked.get(group.name, 0.0 if allocate is not None else None))
        wanted[group.name] = ranked.get(group.name, group.size * (1 - ratio)) if own is None else group.size * (1 - own)
    for linked in graph.links:
        shared = [wanted[name] for name in linked if name in wanted]
        for name in linked:
            if name in wanted:
                wanted[name] = float(np.mean(shared))
    steps = {group.name: _step(group, align) for group in moving}
    least = {group.name: max(-(-config.min_channels * group.size // max(group.channels, 1)), 1) for group in moving}
    for linked in graph.links:
        together = [name for name in linked if name in steps]
        if together:
            steps.update(dict.fromkeys(together, int(np.lcm.reduce([steps[name] for name in together]))))
            least.update(dict.fromkeys(together, max(least[name] for name in together)))
    counts = {group.name: _round(wanted[n := group.name], steps[n], least[n], group.size) for group in moving}
    weights = dict.fromkeys(config.ratios, ASKED_FOR)
    balanced = balanced_counts(graph, wanted, least=least, weights=weights, align=align)
    if within is not None:
        most = {name: len(units) for name, units in within.items()}
        if any(count > most.get(name, count) for name, count in balanced.items()):
            balanced = {name: most.get(name, count) for name, count in balanced.items()}
        counts = {name: min(count, most.get(name, count)) for name, count in counts.items()}
    counts |= balanced
    keep = {}
    for group in graph.free:
        if group.name not in chosen:
            keep[group.name] = np.arange(group.size)
            continue
        order = np.argsort(-scores[group.name], kind="stable")
        keep[group.name] = np.sort(order[: counts[group.name]])
    return keep


def _lowered(scores: Scores, within: Units) -> Scores:
    """Return the scores with the units that are gone already below all others."""
    found = {}
    for name, values in scores.items():
        gone = np.ones(len(values), dtype=bool)
        gone[list(within.get(name, range(len(values))))] = False
        found[name] = np.where(gone, min(float(values.min(initial=0.0)), 0.0) - 1e-6, values)
    return found


def _step(group: Group, align: int) -> int:
    """Return how many units make a width that is a multiple of `align`."""
    width = max(group.channels // group.size, 1)
    return align // gcd(align, width)


def _round(wanted: float, step: int, minimum: int, size: int) -> int:
    """Return the multiple of `step` nearest to the wanted count (ties keep more), or the full size."""
    lower = int(wanted // step) * step
    nearest = lower if wanted - lower < lower + step - wanted else lower + step
    smallest = -(-minimum // step) * step
    return min(max(nearest, smallest), size)


def _global_counts(groups: list[Group], scores: Scores, ratio: float) -> dict[str, float]:
    """Rank all units together by their score relative to the group's mean and return how many of each group stay."""
    relative = [scores[group.name] / (scores[group.name].mean() + 1e-12) for group in groups]
    total = sum(len(row) for row in relative)
    remove = round(ratio * total)
    ranked = np.sort(np.concatenate(relative))
    threshold = ranked[remove] if remove < total else np.inf
    return {group.name: float(max((row >= threshold).sum(), 1)) for group, row in zip(groups, relative, strict=True)}


def _meet_ratio(graph: ChannelGraph, choose: Callable[[float], Keep], ratio: float, names: set[str]) -> Keep:
    """Return the plan that removes the share of units nearest to a ratio, by bisection on what is allocated.

    Rounding of widths would otherwise add up: an allocation moves few groups far, not all of them alike.

    Args:
        names: The groups whose units count.
    """
    total = sum(group.size for group in graph.free if group.name in names)

    def removed(keep: Keep) -> float:
        return 1 - sum(len(keep[name]) for name in names) / max(total, 1)

    low, high = 0.0, _NEARLY_ALL
    less, more = choose(low), choose(high)
    for _ in range(24):
        middle = (low + high) / 2
        tried = choose(middle)
        if removed(tried) < ratio:
            low, less = middle, tried
        else:
            high, more = middle, tried
    return min(more, less, key=lambda keep: abs(removed(keep) - ratio))


def _meet_budget(choose: Callable[[float], Keep], budget: Budget) -> Keep:
    """Return the largest plan within the budget, by bisection on the ratio.

    Raises:
        ConfigError: The narrowest plan is too large.
    """
    low, high = 0.0, _NEARLY_ALL
    whole = choose(low)
    if budget.met(whole):
        return whole
    best = choose(high)
    if not budget.met(best):
        raise budget.unmet(best)
    for _ in range(24):
        middle = (low + high) / 2
        tried = choose(middle)
        if budget.met(tried):
            best, high = tried, middle
        else:
            low = middle
    return best


def describe(inputs: tuple[torch.Tensor, ...]) -> tuple[TensorSpec, ...]:
    """Return the specifications of example tensors; the first dimension is free."""
    return tuple(
        TensorSpec(
            name=f"input{index}" if len(inputs) > 1 else "input",
            shape=(None, *tensor.shape[1:]),
            dtype=str(tensor.dtype).removeprefix("torch."),
            low=float(tensor.min()) if tensor.numel() else 0.0,
            high=float(tensor.max()) if tensor.numel() else 0.0,
        )
        for index, tensor in enumerate(inputs)
    )
