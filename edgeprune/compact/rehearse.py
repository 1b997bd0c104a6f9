"""Rehearsal: prune a little of everything before promising it, and pin what does not come out right.

The recorded calls are run on smaller tensors and compared with the masked network. What differs (a rule of the engine
or of the user that is wrong, code whose numbers no rule follows) is found by halving, and pinned. Where only the user's
own module is accepted, that is rehearsed instead, so that sizes written in the code (`x.view(-1, 400)`) pin.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from edgeprune.compact.eager import eager
from edgeprune.compact.outputs import Output, compact
from edgeprune.compact.replay import replay
from edgeprune.compact.verify import Reference
from edgeprune.config import PruneConfig
from edgeprune.errors import EdgePruneError, ModelError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.balance import balanced_units
from edgeprune.graph.checks import check_weights
from edgeprune.graph.enter import enter
from edgeprune.graph.flow import UserRules
from edgeprune.graph.labels import Pin
from edgeprune.graph.structure import double_copy, named_tensors
from edgeprune.pruning.select import resting
from edgeprune.workload import as_inputs

# Of groups that share positions one rests; these settings leave none resting in both.
_TOGETHER = (PruneConfig(attention="width", streams="free"), PruneConfig(attention="heads", streams="free"))


def analyse(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    output: Output = "auto",
    rules: UserRules | None = None,
) -> ChannelGraph:
    """Return the channel groups of a network whose removal comes out right.

    Args:
        output: `eager` if only the user's own module will do, so that its code must survive the removal.
        rules: The user's rules for operators.

    Raises:
        TraceError: The forward cannot be followed.
        ModelError: The network has no weights.
    """
    inputs = as_inputs(inputs)
    model = enter(model, inputs).model
    check_weights(model)
    return rehearse(model, trace(model, inputs, rules), inputs, output)


def rehearse(
    model: nn.Module, graph: ChannelGraph, inputs: tuple[torch.Tensor, ...], output: Output = "auto"
) -> ChannelGraph:
    """Return the graph with the groups pinned whose trial removal fails or differs."""
    if graph.branching:  # recorded calls say what one path does
        output = "eager"
    for settings in _TOGETHER:
        graph = _rehearsed(model, graph, inputs, output, settings)
    return graph


def _rehearsed(
    model: nn.Module, graph: ChannelGraph, inputs: tuple[torch.Tensor, ...], output: Output, settings: PruneConfig
) -> ChannelGraph:
    """Pin what fails among the groups that are pruned together by these settings."""
    if settings is not _TOGETHER[0] and resting(graph, settings).keys() == resting(graph, _TOGETHER[0]).keys():
        return graph
    while graph.free:
        rest = resting(graph, settings).keys()
        names = [group.name for group in graph.free if group.name not in rest]
        failure = _attempt(model, graph, names, inputs, output, rest)
        if failure is None:
            return graph
        flowing = graph.at_line(failure.where or "")
        suspects = [name for name in names if name in flowing] or names
        guilty = _guilty(model, graph, suspects, inputs, output, rest)
        guilty = guilty or _guilty(model, graph, names, inputs, output, rest)
        if guilty:
            for name, error in guilty.items():
                graph = graph.pin([name], _pin(error))
        else:
            graph = graph.pin(suspects, _pin(failure))
    return graph


def _guilty(
    model: nn.Module,
    graph: ChannelGraph,
    names: Sequence[str],
    inputs: tuple[torch.Tensor, ...],
    output: Output,
    rest: Collection[str],
) -> dict[str, EdgePruneError]:
    """Return the groups whose removal fails on its own, with the failure, by halving."""
    error = _attempt(model, graph, _with_links(graph, names), inputs, output, rest)
    if error is None:
        return {}
    if len(names) == 1:
        return {names[0]: error}
    middle = len(names) // 2
    return {
        **_guilty(model, graph, names[:middle], inputs, output, rest),
        **_guilty(model, graph, names[middle:], inputs, output, rest),
    }


def _with_links(graph: ChannelGraph, names: Iterable[str]) -> list[str]:
    """Return the groups and those that must keep as many units as they do."""
    chosen = dict.fromkeys(names)
    for linked in graph.links:
        if not chosen.keys().isdisjoint(linked):
            chosen.update(dict.fromkeys(linked))
    return list(chosen)


def _attempt(
    model: nn.Module,
    graph: ChannelGraph,
    names: Iterable[str],
    inputs: tuple[torch.Tensor, ...],
    output: Output,
    rest: Collection[str],
) -> EdgePruneError | None:
    """Remove every second unit of the named groups; return what went wrong, or None.

    For the user's own module every third, too: a size that is written in the code can happen to fit one width. Where
    blocks must stay equal, others go with them, as few as will do.
    """
    patterns = (_every_second, lambda unit: unit % 3 != 1) if output == "eager" else (_every_second,)
    named = list(names)
    for kept in patterns:
        keep = balanced_units(graph, named, kept, rest)
        if not keep:
            continue
        try:
            if output == "eager":
                compact(model, graph, keep, inputs, output)
            else:
                _either(Reference(model, graph, keep, inputs))
        except EdgePruneError as error:
            return error
    return None


def _either(reference: Reference) -> None:
    """Check that the recorded calls come out right, or else the user's own module.

    Raises:
        EdgePruneError: Neither does; what is wrong with the calls.
    """
    try:
        _replayed(reference)
    except EdgePruneError as error:
        try:
            eager(reference)
        except EdgePruneError:
            raise error from None


def _every_second(unit: int) -> bool:
    return unit % 2 == 0


def _replayed(reference: Reference) -> None:
    """Run the recorded calls on cut tensors and compare.

    Raises:
        ModelError: A call does not run; `where` is the user's line of it.
        VerificationError: The outputs differ.
    """
    trail = reference.graph.trail
    steps = trail.resized(reference.graph.alive(reference.keep))
    small = reference.small()

    def run(precise: bool) -> list[torch.Tensor]:
        if not precise:
            return replay(trail.record, steps, named_tensors(small), reference.inputs)
        inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in reference.inputs)
        return replay(trail.record, steps, named_tensors(double_copy(small)), inputs)

    reference.check_outputs(run)


def _pin(error: EdgePruneError) -> Pin:
    if isinstance(error, ModelError):
        return Pin(reason="the code expects the old size here", where=error.where, fix=error.fix)
    return Pin(reason="pruning it changes the result", where=error.where, fix="keep it")
