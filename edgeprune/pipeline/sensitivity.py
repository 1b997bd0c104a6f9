"""The step `sensitivity`: every free group pruned alone at a few ratios, measured, written down and drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import PruneConfig, RunConfig
from edgeprune.errors import NothingToPrune, ResolveError
from edgeprune.pipeline import planning
from edgeprune.pipeline.digests import input_digests, seeded
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.folders import open_network
from edgeprune.pipeline.prepare import align_of, check_functions, check_settings
from edgeprune.pipeline.trials import FILE as TRIALS
from edgeprune.pipeline.trials import Subject, Trials, metrics_of, subject_of, trial_key
from edgeprune.pipeline.tuning import reconstruction_source, training_source
from edgeprune.search.sensitivity import FILE, Sensitivity
from edgeprune.targets import find_target
from edgeprune.values import Json, finite
from edgeprune.workload import load_workload

if TYPE_CHECKING:
    from edgeprune.graph import ChannelGraph
    from edgeprune.pruning import PrunePlan
    from edgeprune.pruning.criteria import Scores

PAGE = "sensitivity.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One set of linked groups, the ratio asked for, and the plan that removes it there and nowhere else.

    `plan` is None where rounding leaves the groups whole.
    """

    names: tuple[str, ...]
    ratio: float
    plan: PrunePlan | None


def sensitivity(config: RunConfig, *, listen: Listener) -> Json:
    """Measure a workload's network, into the folder `config.output`; goes on where it was interrupted.

    Raises:
        ConfigError: A setting is wrong, or there is neither `evaluate` nor data.
        ResolveError: The folder holds something else.
        NothingToPrune: Every group is pinned.
    """
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning.criteria import check_name

    check_settings(config)
    check_name(config.prune.criterion)
    workload = load_workload(config.workload)
    check_functions(config, workload)
    folder = Path(config.output or "sensitivity")
    _check_output(folder)
    align = align_of(config, find_target(config.target))
    loaded = open_network(config.workload, weights=config.weights, trust_pickle=config.trust_pickle, seed=config.seed)
    for notice in loaded.notices:
        listen(Event(stage="sensitivity", state="notice", notice=notice))
    digests = input_digests(workload, loaded.model, loaded.inputs, config.prune)
    subject = subject_of(
        loaded.model,
        loaded.inputs,
        config,
        evaluate=metrics_of(workload),
        data=reconstruction_source(workload)[0],
        rules=load_rules(config.prune.rules),
        reconstruct=config.sensitivity.reconstruct,
        source=workload.source,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with rundir.locked(folder):
        rundir.remove_temporary(folder)
        trials = Trials(subject=subject, path=folder / TRIALS, key=trial_key(config, subject, digests))
        again = {"folder": str(folder), "settings": str(folder / TRIALS), "resume": "the same command"}
        listen(Event(stage="run", state="run", facts=again))
        source, step = training_source(workload)
        found = study(trials, config, align=align, step=step, source=source, digests=digests, listen=listen)
        _write(folder, found)
    return {"folder": str(folder), "workload": config.workload, **finite(found.as_dict())}


def study(
    trials: Trials,
    config: RunConfig,
    *,
    align: int,
    step: Any,
    source: Any,
    digests: dict[str, str],
    listen: Listener,
) -> Sensitivity:
    """Measure every free group of a network alone at each ratio.

    Args:
        step: Returns the loss of a batch, and `source` gives batches, for criteria with gradients.

    Raises:
        NothingToPrune: Every group is pinned, or rounding leaves all of them whole.
    """
    subject = trials.subject
    listen(Event(stage="sensitivity", state="begin"))
    graph, cells = _cells(subject, config, align, step, source)
    metric, dense = trials.dense()
    rows: dict[tuple[str, ...], Json] = {}
    shares = graph.macs_share
    groups = {group.name: group for group in graph.groups}
    for number, cell in enumerate(cells):
        told = f"{', '.join(cell.names)} at {cell.ratio:g}"
        listen(Event(stage="sensitivity", state="progress", facts={"text": told}, done=number, total=len(cells)))
        first = groups[cell.names[0]]
        row = rows.setdefault(
            cell.names,
            {
                "names": list(cell.names),
                "units": first.size,
                "channels": sum(groups[name].channels for name in cell.names),
                "macs_share": max(shares.get(name, 0.0) for name in cell.names),
                "points": [],
                "note": None,
            },
        )
        if cell.plan is None:
            row["note"] = f"stays whole at {cell.ratio:g}: units are kept in multiples of {align}"
            continue
        kept = len(cell.plan.groups[first.name].keep)
        if all(point["kept"] != kept for point in row["points"]):
            removed = 1 - kept / first.size
            row["points"].append({"ratio": cell.ratio, "removed": removed, "kept": kept, **trials.of(cell.plan)})
    found = Sensitivity(
        network=type(subject.model).__name__,
        metric=metric,
        source=subject.yardstick.source,
        dense=dense,
        reconstructed=subject.reconstruct is not None,
        groups=tuple(rows.values()),
        settings=config.prune.model_dump(mode="json") | {"align": align, "seed": config.seed},
        digests=digests,
    )
    facts = {"metric": metric, "groups": len(rows), "made": trials.made, "reused": trials.reused}
    listen(Event(stage="sensitivity", state="done", facts=facts))
    return found


def _cells(subject: Subject, config: RunConfig, align: int, step: Any, source: Any) -> tuple[ChannelGraph, list[Cell]]:
    from edgeprune.compact import analyse
    from edgeprune.compact.plans import prepared
    from edgeprune.pruning.select import hold, together

    model = prepared(subject.model, subject.inputs, split=config.prune.split_recurrent)
    graph = analyse(model, subject.inputs, config.prune.output, subject.rules)
    if config.prune.keep:
        known = [row["name"] for row in planning.block_rows(model, subject.inputs, config.prune)]
        graph = hold(graph, config.prune.keep, known)
    with seeded(config.seed, "plan"):
        batches = planning.seen(config.prune.model_copy(update={"depth": 0.0, "blocks": ()}), source)
        scores = planning.scored(
            model, graph, subject.inputs, config.prune, step=step, batches=batches, seed=config.seed
        )
    alone = partial(_alone, graph, scores, config.prune, align, model, subject.inputs)
    ratios = sorted(set(config.sensitivity.ratios))
    sets = together(graph, config.prune)
    cells = [Cell(names=names, ratio=ratio, plan=alone(names, ratio)) for names in sets for ratio in ratios]
    if all(cell.plan is None for cell in cells):
        reasons = "; ".join(f"{group.name}: {group.pinned}" for group in graph.groups if group.pinned is not None)
        fix = f"pinned: {reasons}" if not graph.free else "-s prune.align=1"
        raise NothingToPrune("no group can be pruned alone", fix=fix)
    return graph, cells


def _alone(
    graph: ChannelGraph,
    scores: Scores,
    config: PruneConfig,
    align: int,
    model: Any,
    inputs: Any,
    names: tuple[str, ...],
    ratio: float,
) -> PrunePlan | None:
    """Return the plan that removes a ratio of some groups and nothing else; None where rounding leaves them whole."""
    from edgeprune.pruning import make_plan

    changes: Json = {"ratio": 0.0, "max_macs": None, "max_params": None, "depth": 0.0, "blocks": (), "keep": ()}
    changes["scope"] = "local"
    own = config.model_copy(update={**changes, "ratios": dict.fromkeys(names, ratio)})
    try:
        plan = make_plan(graph, scores, own, align=align, model=model, inputs=inputs)
    except NothingToPrune:
        return None
    return plan if names[0] in plan.keep else None


def _check_output(folder: Path) -> None:
    """Check that results may be written into a folder: absent, empty, or with earlier results.

    Raises:
        ResolveError: It is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ResolveError(f"{folder} is a file, not a folder", fix="choose another folder with -o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRIALS).is_file():
        names = sorted(entry.name for entry in folder.iterdir() if entry.name != rundir.LOCK)
        if names:
            raise ResolveError(
                f"{folder} is not empty and holds no sensitivity ({', '.join(names[:3])})",
                fix="choose another folder with -o",
            )


def _write(folder: Path, found: Sensitivity) -> None:
    from edgeprune.report import render_sensitivity

    data = finite(found.as_dict())
    rundir.write_atomic(folder / FILE, json.dumps(data, indent=1, allow_nan=False) + "\n")
    rundir.write_atomic(folder / PAGE, render_sensitivity(data))
