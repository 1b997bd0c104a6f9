"""Layer by layer: the plan that pruning one group after the other, each with its allowance, comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from edgeprune.config import LayerwiseConfig, PruneConfig
from edgeprune.errors import BudgetMissed, NothingToPrune
from edgeprune.pipeline.events import Event, Listener, ignore
from edgeprune.search.layerwise import Measured, Names, one_by_one
from edgeprune.values import Json

if TYPE_CHECKING:
    from edgeprune.graph import ChannelGraph
    from edgeprune.pruning import PrunePlan
    from edgeprune.search import Sensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class Layerwise:
    """How groups are tried: the settings, and what the network that a plan leaves is worth.

    `measure` returns a row with `loss`, which is None where the network failed.
    """

    config: LayerwiseConfig
    metric: str
    measure: Callable[[PrunePlan], Json]
    listen: Listener = field(default=ignore)


def search(
    layerwise: Layerwise,
    graph: ChannelGraph,
    config: PruneConfig,
    sensitivity: Sensitivity | None,
    make: Callable[[PruneConfig], PrunePlan],
) -> tuple[PrunePlan, Json]:
    """Return the plan and what was tried on the way.

    Args:
        graph: The channel groups, with those pinned that are to stay.
        make: Returns the plan that settings mean.

    Raises:
        BudgetMissed: Every group costs more than its allowance.
        NothingToPrune: No group can be pruned, or rounding leaves all of them whole.
    """
    order = ordered(graph, config, layerwise.config.order, sensitivity)
    values: list[Json] = []
    base = Measured(plan="", loss=0.0)
    total = len(order) * (layerwise.config.halvings + 1)

    def measure(ratios: Mapping[str, float]) -> Measured:
        nonlocal base
        changes = {"ratio": 0.0, "scope": "local", "ratios": {**ratios, **config.ratios}}
        try:
            plan = make(config.model_copy(update=changes))
        except NothingToPrune:  # rounding left everything whole
            values.append({})
            return base
        told = ", ".join(ratios) or "the dense network"
        event = Event(stage="plan", state="progress", facts={"text": told}, done=float(len(values)), total=float(total))
        layerwise.listen(event)
        row = layerwise.measure(plan)
        if ratios:
            values.append(row)
        found = Measured(plan=plan.digest, loss=math.inf if row["loss"] is None else float(row["loss"]))
        base = base if ratios else found
        return found

    kept, trials = one_by_one(
        order,
        config.ratio,
        allowance=layerwise.config.allowance,
        halvings=layerwise.config.halvings,
        measure=measure,
    )
    rows = [
        {**asdict(trial), "value": row.get("value"), "failed": row.get("failed")}
        for trial, row in zip(trials, values, strict=True)
    ]
    journal: Json = {"metric": layerwise.metric, "trials": rows, **layerwise.config.model_dump(mode="json")}
    if not kept and not config.ratios and any(trial.state == "rolled back" for trial in trials):
        raise BudgetMissed(
            f"every group costs more than {layerwise.config.allowance:g} of {layerwise.metric}",
            fix="-s layerwise.allowance=... more, --ratio less, or -s layerwise.halvings=... more",
        )
    if not kept and not config.ratios and order and not (config.depth or config.blocks):
        raise NothingToPrune(
            f"a ratio of {config.ratio} removes nothing when widths are rounded",
            fix="ask for more to be removed, or  -s prune.align=1",
        )
    return make(config.model_copy(update={"ratio": 0.0, "ratios": {**kept, **config.ratios}})), journal


def ordered(graph: ChannelGraph, config: PruneConfig, order: str, sensitivity: Sensitivity | None) -> list[Names]:
    """Return the sets of groups in the order in which they are tried; those with ratios of their own are not."""
    from edgeprune.pruning.select import together

    found = [names for names in together(graph, config) if not set(names) & set(config.ratios)]
    groups, shares = {group.name: group for group in graph.groups}, graph.macs_share
    if order == "backward":
        return found[::-1]
    if order == "size":
        return sorted(found, key=lambda names: -sum(groups[name].params for name in names))
    if order == "macs":
        return sorted(found, key=lambda names: -max(shares.get(name, 0.0) for name in names))
    if order == "sensitivity":
        known = sensitivity.curves if sensitivity is not None else ()
        curves = {name: curve for curve in known for name in curve.names if curve.measured}
        return sorted(found, key=lambda n: curves[n[0]].loss(config.ratio) if n[0] in curves else math.inf)
    return found
