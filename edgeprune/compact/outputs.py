"""Which output a compaction has: the user's module, the same with some modules captured, or the captured network.

They are tried in this order; every one must pass the same comparison before it is handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from edgeprune.compact.eager import eager
from edgeprune.compact.program import Captured, capture, same_calls
from edgeprune.compact.replay import Step
from edgeprune.compact.swap import swap
from edgeprune.compact.verify import Reference
from edgeprune.errors import EdgePruneError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import Record, record
from edgeprune.values import Check, Json

Mode = Literal["eager", "swapped", "graph"]
Output = Literal["auto", "eager", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """A smaller network, how it was made, and the comparison it passed.

    `mode` is `eager` for the user's own module, `swapped` where the modules named in `captured` run as recorded calls,
    `graph` where the whole network does. `reason` says why it is not the user's own module, and `where` the line.
    """

    model: nn.Module
    check: Check
    mode: Mode
    captured: tuple[str, ...] = ()
    reason: str | None = None
    where: str | None = None

    def facts(self) -> Json:
        """Return what is kept of it beside the network: the comparison, and which output it is and why."""
        output = {"mode": self.mode, "captured": list(self.captured), "reason": self.reason, "where": self.where}
        return {"check": self.check.as_dict(), "output": output}


def compact(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, tuple[int, ...]],
    inputs: tuple[torch.Tensor, ...],
    output: Output = "auto",
) -> Compacted:
    """Return the network with all units but the kept ones removed, after it passed the comparison.

    Args:
        keep: Kept units by group name; groups not named stay whole.
        output: `eager` accepts nothing but the user's own module, `graph` captures at once.

    Raises:
        ModelError: The smaller network cannot run; `where` is the user's line that expects the old size.
        VerificationError: It runs, but differs from the masked dense network.
    """
    if graph.branching:  # recorded calls say what one path does
        output = "eager"
    reference = Reference(model, graph, keep, inputs)
    failure: EdgePruneError | None = None
    if output != "graph":
        try:
            small, check = eager(reference)
            return Compacted(model=_with_modes_of(model, small), check=check, mode="eager")
        except EdgePruneError as error:
            failure = error
            if output == "eager":
                raise
    reason = failure.message if failure is not None else "asked for"
    where = failure.where if failure is not None else None
    recorded = graph.trail.record
    steps = graph.trail.resized(graph.alive(keep))
    other = _other_batch(model, recorded, inputs)
    if failure is not None:
        found = swap(reference, steps, other)
        if found is not None:
            small, check, names = found
            small = _with_modes_of(model, small)
            return Compacted(model=small, check=check, mode="swapped", captured=names, reason=reason, where=where)
    try:
        whole = captured_whole(reference, steps, other)
        check = reference.check(whole)
    except EdgePruneError as error:
        raise failure or error from error
    whole.train(model.training)
    return Compacted(model=whole, check=check, mode="graph", captured=("",), reason=reason, where=where)


def captured_whole(reference: Reference, steps: Sequence[Step], other: Record | None) -> Captured:
    """Return the whole network as recorded calls, not yet checked.

    Raises:
        Uncapturable: The calls do not say all that the network does.
    """
    recorded = reference.graph.trail.record
    small = reference.small()
    return capture(small, recorded, steps, recorded.spans[-1], other, type(reference.model).__name__)


def _other_batch(model: nn.Module, recorded: Record, inputs: tuple[torch.Tensor, ...]) -> Record | None:
    """Record one more sample, to tell numbers that follow the batch from others; None where that cannot be told."""
    if any(tensor.dim() == 0 for tensor in inputs):
        return None
    larger = tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)
    try:
        other = record(model, larger)
    except EdgePruneError:
        return None
    return other if same_calls(recorded, other) else None


def _with_modes_of(model: nn.Module, small: nn.Module) -> nn.Module:
    """Give every module of the small network the training mode of its original, in place."""
    modes = {path: module.training for path, module in model.named_modules(remove_duplicate=False)}
    for path, module in small.named_modules(remove_duplicate=False):
        if path in modes:
            module.training = modes[path]
        if isinstance(module, Captured):
            module.train(modes[path])
    return small
