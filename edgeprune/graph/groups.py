"""Channel groups: the units that can be removed, what they are tied to, and what is pinned for which reason.

`trace` is the way in: record, propagate, link, form groups. The result is plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import edgeprune.graph.rules  # noqa: F401  registers the rules
from edgeprune.errors import TraceError
from edgeprune.graph.balance import rigid
from edgeprune.graph.blocks import crossing
from edgeprune.graph.capture import Record, record
from edgeprune.graph.classes import Classes, classify, distinct
from edgeprune.graph.constraints import balance, link, thin_out
from edgeprune.graph.enter import enter
from edgeprune.graph.flow import Contraction, Flow, UserRules, refs
from edgeprune.graph.joins import distinct_pairs
from edgeprune.graph.labels import Ids, Pin
from edgeprune.graph.rules.custom import check_operators
from edgeprune.graph.trail import Trail
from edgeprune.workload import Examples, as_inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

Dim = tuple[str, int]
MAX_PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that share the same tensors. One unit is the smallest removable piece (a channel).

    `units` are the ids of its units in the graph, empty when pinned. `channels` is the width of the dimension that
    makes them, `tensors` the parameters tied together, `params` their number of values. `overlaps` names groups whose
    units share positions with these: removing both multiplies. `inside_heads` are channels of every head of attention,
    which overlap the group of the heads. `stream` is what a shortcut adds to and a normalisation counts, such
    as the residual stream of a Transformer. `pinned` is the reason nothing of it may go.
    """

    name: str
    size: int
    channels: int
    units: Ids
    producer: Dim
    tensors: tuple[str, ...]
    params: int
    statistics: bool = False
    inside_heads: bool = False
    stream: bool = False
    overlaps: tuple[str, ...] = ()
    pinned: str | None = None
    where: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A call whose value depends on which positions exist; `units` per argument name and dimension."""

    call: int
    name: str
    units: dict[tuple[str, int], Ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Further inputs beside the main ones, and the calls of their forward that depend on which positions exist."""

    inputs: tuple[torch.Tensor, ...]
    statistics: tuple[Statistic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Blocks that must keep the same number of positions: per block {group: positions per unit}, and what stays."""

    what: str
    blocks: tuple[Mapping[str, int], ...]
    fixed: tuple[int, ...]

    def counts(self, kept: Mapping[str, int]) -> list[int]:
        """Return how many positions every block keeps, from the number of kept units of every group in them."""
        return [
            fixed + sum(times * kept[name] for name, times in block.items())
            for block, fixed in zip(self.blocks, self.fixed, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGraph:
    """Which channels of a network go together.

    `dims` gives for every dimension of every parameter that can shrink the unit ids of its positions, shape
    (layers, size), -1 for none; axis BLOCKED stands for the inputs of all blocks of a grouped convolution whose
    dimension 1 is cut block by block. `names` lists all names of a shared tensor under its first one. `links` are
    groups that must keep the same number of units, `balances` blocks that must keep the same number of positions. The
    `sides` of `contractions` hold unit ids too. `unused` are tensors that the forward did not touch, such as those of
    a branch for training only. `trail` knows what is left of every call. `examples` are the further inputs that count,
    each with the statistics of its own forward. `branching` tells that values of the data or the examples decide on the
    path, so that no recording says all that the network does.
    """

    groups: tuple[Group, ...]
    dims: dict[Dim, Ids]
    names: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    links: tuple[tuple[str, ...], ...]
    balances: tuple[Balance, ...]
    statistics: tuple[Statistic, ...]
    contractions: tuple[Contraction, ...]
    unit_count: int
    unused: tuple[str, ...]
    trail: Trail = field(repr=False, compare=False)
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)
    branching: bool = False

    @property
    def free(self) -> tuple[Group, ...]:
        """The groups that may be pruned."""
        return tuple(group for group in self.groups if group.pinned is None)

    @property
    def macs_share(self) -> dict[str, float]:
        """Share of the multiply-accumulates in which the tensors of each group take part, by group name."""
        total = sum(item.macs for item in self.contractions) or 1
        return {
            group.name: sum(item.macs for item in self.contractions if item.weight in group.tensors) / total
            for group in self.groups
        }

    @property
    def prunable_share(self) -> float:
        """Share of the multiply-accumulates that pruning some free group would lower."""
        free = np.zeros(self.unit_count + 1, dtype=bool)
        for group in self.free:
            free[group.units] = True
        total = sum(item.macs for item in self.contractions) or 1
        return sum(item.macs for item in self.contractions if any(free[side].any() for side in item.sides)) / total

    def masks(self, keep: Mapping[str, Iterable[int]]) -> dict[Dim, NDArray[np.bool_]]:
        """Return which positions stay along every dimension that shrinks.

        Args:
            keep: Kept unit numbers within their group, in [0, size), by group name. Groups not named stay whole.
        """
        alive = self.alive(keep)
        masks = {dim: np.asarray(alive[units].all(axis=0)) for dim, units in self.dims.items()}
        return {dim: mask for dim, mask in masks.items() if not mask.all()}

    def alive(self, keep: Mapping[str, Iterable[int]]) -> NDArray[np.bool_]:
        """Return which units stay, shape (units + 1,); the last entry stands for "no unit" and is True."""
        alive = np.ones(self.unit_count + 1, dtype=bool)
        for group in self.groups:
            if group.name in keep and group.pinned is None:
                alive[group.units] = False
                alive[group.units[np.fromiter(keep[group.name], dtype=np.int64)]] = True
        return alive

    def at_line(self, where: str) -> frozenset[str]:
        """Return the groups that flow through a source line."""
        units = self.trail.at_line(where)
        return frozenset(group.name for group in self.groups if np.isin(group.units, units).any())

    def pin(self, names: Iterable[str], pin: Pin) -> ChannelGraph:
        """Return the graph with groups, and those linked to them, pinned for one reason."""
        chosen = set(names)
        for linked in self.links:
            if chosen & set(linked):
                chosen |= set(linked)
        groups = tuple(
            replace(group, pinned=pin.reason, where=pin.where, fix=pin.fix)
            if group.name in chosen and group.pinned is None
            else group
            for group in self.groups
        )
        links = tuple(linked for linked in self.links if not chosen & set(linked))
        return replace(self, groups=groups, links=links)


def trace(model: nn.Module, inputs: tuple[torch.Tensor, ...], rules: UserRules | None = None) -> ChannelGraph:
    """Find the channel groups of a network by following one forward per example. The network is not changed.

    Args:
        model: The trained network; one on the meta device is followed by shape.
        inputs: Example tensors, batch first; or a list of such tuples, the main one first, that take every path.
        rules: The user's rules for operators, from `load_rules`.

    Raises:
        TraceError: The forward fails, is not repeatable, or depends on the data in Python.
        ConfigError: A rule is for an operator that does not exist.
    """
    inputs = as_inputs(inputs)
    model = enter(model, inputs).model
    more = inputs.others if isinstance(inputs, Examples) else ()
    first = record(model, inputs, branches=bool(more), repeat=True)
    others = tuple(record(model, other, branches=True, repeat=True) for other in more)
    examples = (first, *others)
    training = _training(model, (inputs, *more)) if _untouched(examples) else ()
    branching = any(one.reads or _operators(one) != _operators(first) for one in examples)
    if any(one.reads for one in examples):
        _check_reached((*examples, *training))
    rules = rules or UserRules()
    check_operators(rules, examples)
    return _farthest(first, (*others, *training), rules, lambda flow: _form(flow, more, branching, rules))


def _farthest(
    first: Record, others: tuple[Record, ...], rules: UserRules, form: Callable[[Flow], ChannelGraph]
) -> ChannelGraph:
    """Return the graph with most in reach: grouped convolutions whose borders cross others are tried in blocks too."""
    flow = _propagated(Flow(first, others, rules))
    best, crossed = form(flow), crossing(flow)
    in_blocks: frozenset[str] = frozenset()
    for _ in range(MAX_PASSES):
        if crossed <= in_blocks:
            break
        in_blocks |= crossed
        flow = _propagated(Flow(first, others, rules, in_blocks))
        found, crossed = form(flow), crossing(flow)
        for names, what in rigid(found):
            found = found.pin(names, Pin(reason=f"{what} stay equal only when all of them stay"))
        if _reach(found) > _reach(best):
            best = found
    return best


def _propagated(flow: Flow) -> Flow:
    flow.propagate()
    flow.pin_outputs()
    flow.pin_unread()
    thin_out(flow.atoms, flow.pieces)
    return flow


def _reach(graph: ChannelGraph) -> float:
    """Return how many values of the tensors lie in a position that may go."""
    free = np.zeros(graph.unit_count + 1, dtype=bool)
    for group in graph.free:
        free[group.units] = group.size > 1
    left: dict[str, float] = {}
    for (name, _), units in graph.dims.items():
        left[name] = left.get(name, 1.0) * float((~free[units].any(axis=0)).mean())
    return sum((1 - share) * float(np.prod(graph.shapes[name])) for name, share in left.items())


def _training(model: nn.Module, examples: Sequence[tuple[torch.Tensor, ...]]) -> tuple[Record, ...]:
    """Record a network with parts that only training uses in that mode, if it runs there.

    It may not (one sample in front of a batch norm): then those parts are left as they are, and nothing is promised.
    """
    try:
        return tuple(record(model, example, training=True, branches=len(examples) > 1) for example in examples)
    except TraceError:
        return ()


def _operators(one: Record) -> list[object]:
    return [call.func for call in one.calls]


def _check_reached(records: Sequence[Record]) -> None:
    """Refuse branches that no example takes: their parts would keep the old sizes.

    Raises:
        TraceError: A tensor is reached by no record of a network whose data decides on the path.
    """
    missed = _untouched(records)
    if missed:
        raise TraceError(
            f"values of the data decide on the path, and no example reaches {missed[0]}",
            where=next(where for one in records for where in one.reads),
            fix="let inputs() return a list of tuples of tensors, so that every path is taken",
        )


def _untouched(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the tensors, scalars apart, that no call of any record takes."""
    touched = {r.tensors[ref.id] for r in records for call in r.calls for ref in refs(call.args) if ref.id in r.tensors}
    return tuple(n for n in records[0].tensors.values() if n not in touched and records[0].shapes[n])


def _form(flow: Flow, more: Sequence[tuple[torch.Tensor, ...]], branching: bool, rules: UserRules) -> ChannelGraph:
    """Number the units, gather them in groups, link groups."""
    atoms, found = flow.atoms, classify(flow)
    dims, number, group_of = found.dims, found.number, found.group_of
    sizes = [len(units) for units in found.members]
    statistics = _statistics(flow, number, 0)
    inner, shortcuts = (_marked(flow, number, labels, sum(sizes)) for labels in (flow.inner, flow.shortcuts))
    groups = _describe(flow, found, statistics, inner, shortcuts)
    names = [group.name for group in groups]
    place = {dim: number for number, dim in enumerate(flow.producers)}
    described = groups + _pinned_groups(flow, dims)
    order = sorted(described, key=lambda group: (place.get(group.producer, len(place)), group.name))
    return ChannelGraph(
        groups=tuple(_distinct_names(order)),
        dims=dims,
        names=flow.record.names,
        shapes=flow.record.shapes,
        links=tuple(tuple(names[index] for index in row) for row in link(atoms, flow.pieces, group_of, sizes)),
        balances=tuple(
            Balance(
                what=what, blocks=tuple({names[n]: times for n, times in b.items()} for b in blocks), fixed=tuple(fixed)
            )
            for what, blocks, fixed in balance(atoms, flow.pieces, group_of, sizes)
        ),
        statistics=statistics,
        contractions=tuple(
            replace(item, sides=tuple(number[row] for side in item.sides if (row := atoms.resolve(side)) is not None))
            for item in flow.contractions
        ),
        unit_count=sum(sizes),
        unused=_untouched([flow.record]),
        trail=Trail(flow.record, flow.trail, atoms, number, rules.resizes),
        examples=tuple(
            Example(inputs=example, statistics=_statistics(flow, number, place))
            for place, example in enumerate(more, 1)
        ),
        branching=branching,
    )


def _marked(flow: Flow, number: Ids, labels: Iterable[Ids], count: int) -> NDArray[np.bool_]:
    """Return which of all units the labels hold, shape (count,)."""
    found = np.zeros(count, dtype=bool)
    for label in labels:
        row = flow.atoms.resolve(label)
        if row is not None:
            units = number[row]
            found[units[units >= 0]] = True
    return found


def _statistics(flow: Flow, number: Ids, record: int) -> tuple[Statistic, ...]:
    """Return the marked calls of one of the flow's records that something can be removed from."""
    found = []
    for mark in flow.marks:
        resolved = {key: flow.atoms.resolve(label) for key, label in mark.labels.items()}
        units = {key: number[label] for key, label in resolved.items() if label is not None}
        if units and mark.record == record:
            found.append(Statistic(call=mark.call, name=mark.name, units=units))
    return tuple(found)


def _describe(
    flow: Flow,
    classes: Classes,
    statistics: tuple[Statistic, ...],
    inner: NDArray[np.bool_],
    shortcuts: NDArray[np.bool_],
) -> list[Group]:
    """Name every group after the weight that makes its channels and list what is tied to it.

    Args:
        inner: Which units are the width of heads; `shortcuts` those of what is added to what was made of it.
    """
    dims, members = classes.dims, classes.members
    holders: list[list[Dim]] = [[] for _ in members]
    group_of = np.zeros(sum(map(len, members)), dtype=np.int64)
    for index, units in enumerate(members):
        group_of[units] = index
    overlapping: list[set[int]] = [set() for _ in members]
    held = {id(units): np.unique(group_of[units[units >= 0]]).tolist() for units in distinct(dims)}
    for dim, units in dims.items():
        for index in held[id(units)]:
            holders[index].append(dim)
    for shared in classes.shared:
        for a, b in distinct_pairs(group_of[shared]).T.tolist():
            overlapping[a].add(b)
            overlapping[b].add(a)
    marked = {
        int(index)
        for statistic in statistics
        for units in statistic.units.values()
        for index in np.unique(group_of[units[units >= 0]])
    }
    producers = {dim: order for order, dim in enumerate(flow.producers)}
    groups: list[Group] = []
    names: list[str] = []
    for index, units in enumerate(members):
        made = sorted((dim for dim in holders[index] if dim in producers), key=producers.__getitem__)
        producer = made[0] if made else holders[index][0]
        names.append(_unique(_module_of(producer[0]), names))
        tensors = tuple(dict.fromkeys(name for name, _ in holders[index]))
        made_by = dims[producer]
        mine = (made_by >= 0) & (group_of[made_by] == index)
        groups.append(
            Group(
                name=names[-1],
                size=len(units),
                channels=int(mine.any(axis=0).sum()),
                units=_in_order_of_positions(made_by, mine),
                producer=producer,
                tensors=tensors,
                params=sum(prod(flow.record.shapes[name]) for name in tensors),
                statistics=index in marked,
                inside_heads=bool(inner[units].any()),
                stream=index in marked and bool(shortcuts[units].any()),
            )
        )
    return [replace(g, overlaps=tuple(sorted(names[i] for i in overlapping[n]))) for n, g in enumerate(groups)]


def _in_order_of_positions(units: Ids, mine: NDArray[np.bool_]) -> Ids:
    """Return the marked units in the order in which they first appear along a dimension, so that they read as channels.

    Args:
        units: Along the dimension, shape (layers, size).
    """
    rows, positions = np.nonzero(mine)
    found, first = np.unique(units[rows, positions][np.argsort(positions, kind="stable")], return_index=True)
    return found[np.argsort(first)]


def _pinned_groups(flow: Flow, dims: Mapping[Dim, Ids]) -> list[Group]:
    """Return one entry per pinned set of channels, named after the first weight that makes them."""
    found: dict[int, tuple[Pin, list[Dim], int]] = {}
    keys = {name: key for key, name in flow.record.tensors.items()}
    for name, axis in [*flow.producers, *_unlisted(flow, dims)]:
        label = flow.labels[keys[name]][axis]
        if label is None:
            continue
        resolved = flow.atoms.resolve(label)
        fixed = np.ones(label.shape[1], dtype=bool) if resolved is None else ~resolved.any(axis=0)
        if not fixed.any():
            continue
        explained = flow.atoms.explain(label[:, fixed])
        root, pin = explained if explained is not None else (0, Pin(reason="fixed"))
        alike = (r for r, (p, made, _) in found.items() if p == pin and _module_of(made[0][0]) == _module_of(name))
        root = next(alike, root)
        if root not in found:
            found[root] = (pin, [], int(fixed.sum()))
        found[root][1].append((name, axis))
    return [
        Group(
            name=_module_of(made[0][0]),
            size=channels,
            channels=channels,
            units=np.zeros(0, dtype=np.int64),
            producer=made[0],
            tensors=tuple(dict.fromkeys(name for name, _ in made)),
            params=sum(prod(flow.record.shapes[name]) for name in dict.fromkeys(name for name, _ in made)),
            pinned=pin.reason,
            where=pin.where,
            fix=pin.fix,
        )
        for pin, made, channels in found.values()
    ]


def _unlisted(flow: Flow, dims: Mapping[Dim, Ids]) -> list[Dim]:
    """Return the rows of weights that nothing else lists: pinned before any layer makes channels of them."""
    listed = {name for name, _ in [*flow.producers, *dims]}
    return [
        (name, 0)
        for key, name in flow.record.tensors.items()
        if name not in listed and len(flow.labels.get(key, ())) > 1
    ]


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _unique(name: str, taken: list[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}#{n}" for n in range(2, len(taken) + 3) if f"{name}#{n}" not in taken)


def _distinct_names(groups: list[Group]) -> list[Group]:
    """Give pinned groups names of their own where a free group has theirs; free names stay."""
    taken = [group.name for group in groups if group.pinned is None]
    result = []
    for group in groups:
        if group.pinned is not None:
            group = replace(group, name=_unique(group.name, taken))
            taken.append(group.name)
        result.append(group)
    return result
