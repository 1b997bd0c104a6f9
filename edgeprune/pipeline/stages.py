"""The stages of a run. Each one knows its key, does its work from files, and writes files; none knows the order.

A stage reads what earlier stages wrote from disk even in the run that wrote it, so an interrupted run and an
uninterrupted one take the same path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import rundir
from edgeprune.errors import ModelError
from edgeprune.pipeline import planning
from edgeprune.pipeline.digests import seeded, sensitivity_digest
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.folders import load_state, save_state
from edgeprune.pipeline.gradual import cost_of_cut, with_weights
from edgeprune.pipeline.measuring import bench_progress
from edgeprune.pipeline.networks import describe_groups, evaluate, score_artifact
from edgeprune.pipeline.prepare import Prepared
from edgeprune.pipeline.trials import FILE as TRIALS
from edgeprune.pipeline.trials import layerwise_of
from edgeprune.pipeline.tuning import (
    training_source,
)
from edgeprune.rundir import RunDirectory, StageKey, StageRecord
from edgeprune.values import Artifact, Json, Notice

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan

Work = Callable[[], tuple[tuple[str, ...], Json]]


@dataclass(slots=True, kw_only=True)
class Session:
    """A run in progress: what was prepared, where it is written, and what has happened so far.

    `compacted` is the network that `network` compacted last, with the digest of its plan. `scores` has what `accuracy`
    found for each file.
    """

    prepared: Prepared
    run: RunDirectory
    listen: Listener
    notices: list[Notice] = field(default_factory=list)
    stages: list[Json] = field(default_factory=list)
    compacted: tuple[str, nn.Module] | None = None
    scores: dict[str, StageRecord | None] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.run.path / name

    def notice(self, stage: str, value: Notice) -> None:
        """Keep a warning for the result and tell the listener."""
        self.notices.append(value)
        self.listen(Event(stage=stage, state="notice", notice=value))

    def notices_of(self, stage: str, record: StageRecord) -> None:
        """Repeat the warnings that a stage kept in its facts, also where it was reused."""
        for notice in record.facts.get("notices", ()):
            self.notice(stage, Notice(**notice))


def run_stage(session: Session, key: StageKey, work: Work, *, subject: str | None = None) -> StageRecord:
    """Reuse a finished stage, or run it and write it to the journal.

    Args:
        work: Returns the names of the files it wrote and the facts to keep. It runs with seeded generators.
        subject: The file that the stage is about, for the listener.
    """
    name = key.stage.partition(" ")[0]
    record = session.run.reusable(key)
    if record is not None:
        session.stages.append({"name": key.stage, "seconds": record.seconds, "state": "reused"})
        session.listen(
            Event(stage=name, state="reused", subject=subject, facts=record.facts | {"outputs": record.outputs})
        )
        return record
    because = session.run.changes(key)
    session.listen(Event(stage=name, state="begin", subject=subject, facts={"because": because}))
    session.run.begin(key)
    started = time.perf_counter()
    with seeded(session.prepared.config.seed, key.stage):
        outputs, facts = work()
    seconds = time.perf_counter() - started
    record = session.run.finish(key, outputs, facts, seconds)
    session.stages.append({"name": key.stage, "seconds": seconds, "state": "done"})
    session.listen(Event(stage=name, state="done", subject=subject, facts=record.facts, seconds=seconds))
    return record


def plan(session: Session, ready: dict[str, str] | None = None, trained: StageRecord | None = None) -> StageRecord:
    """Choose the blocks to remove, score the units of what is left and choose which to keep; writes `plan.json`.

    Args:
        ready: A file of the run that holds the plan already, with its digest.
        trained: The training that zeroed the units of the dense network, if there was one: those are the plan then.
    """
    prepared = session.prepared
    config = prepared.config.prune
    settings = {f"prune.{name}": value for name, value in config.model_dump(mode="json").items()}
    settings.pop("prune.sensitivity")  # its content counts, wherever it lies
    settings |= {"prune.align": prepared.align, "seed": prepared.config.seed}
    settings |= planning.layerwise_settings(prepared.config)
    if trained is not None:
        ready = {rundir.ZEROED: trained.outputs[rundir.ZEROED]}
    inputs = prepared.digests | (sensitivity_digest(config) if ready is None else ready)
    inputs |= trained.outputs if trained is not None else {}
    key = StageKey(stage="plan", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        from edgeprune.graph.cost import count_macs, count_params
        from edgeprune.graph.rules.custom import load_rules

        planned = _planned(session, load_rules(config.rules), ready)
        planned.plan.save(session.path(rundir.PLAN))
        facts = {
            "digest": planned.plan.digest,
            "align": prepared.align,
            "groups": describe_groups(planned.graph, planned.plan, session.prepared.config.prune),
            "blocks": planned.blocks,
            "layerwise": planned.layerwise,
            "params": count_params(prepared.model),
            "macs": count_macs(prepared.model, prepared.inputs),
        }
        return (rundir.PLAN,), facts

    if session.run.reusable(key) is None:
        _keep_edited(session)
    record = run_stage(session, key, work, subject=rundir.PLAN)
    for notice in prepared.notices:
        session.notice("plan", notice)
    if ready is None and config.strategy == "at_once":
        _tell_rounding(session, record)
    return record


def _planned(session: Session, rules: UserRules | None, ready: dict[str, str] | None) -> planning.Planned:
    from edgeprune.pruning import PrunePlan

    prepared = session.prepared
    if ready is not None:
        (name,) = ready
        return planning.given(prepared.model, prepared.inputs, PrunePlan.load(session.path(name)), rules)
    data, step = training_source(prepared.workload)
    return planning.make(
        prepared.model,
        prepared.inputs,
        prepared.config.prune,
        align=prepared.align,
        step=step,
        data=data,
        seed=prepared.config.seed,
        rules=rules,
        sensitivity=planning.read_sensitivity(prepared.config.prune),
        layerwise=layerwise_of(
            prepared.config,
            prepared.workload,
            prepared.model,
            prepared.inputs,
            prepared.digests,
            session.path(TRIALS),
            session.listen,
        ),
    )


def baseline(session: Session) -> StageRecord | None:
    """Evaluate the dense network with the user's `evaluate`, if there is one."""
    prepared = session.prepared
    if prepared.workload.evaluate is None:
        return None
    key = StageKey(stage="baseline", settings={"seed": prepared.config.seed}, inputs=prepared.digests)
    return run_stage(session, key, lambda: ((), {"metrics": evaluate(prepared.workload, prepared.model)}))


def apply(session: Session, planned: StageRecord, trained: StageRecord | None = None) -> StageRecord:
    """Remove what the plan removes, verify it, and write `pruned.safetensors`.

    Args:
        trained: The training that zeroed the units, if there was one: the network is cut that it wrote.
    """
    prepared = session.prepared
    zeroed = trained.outputs if trained is not None else {}
    inputs = prepared.digests | zeroed | {rundir.PLAN: planned.outputs[rundir.PLAN]}
    key = StageKey(stage="apply", settings={"seed": prepared.config.seed}, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        from edgeprune.compact import apply as compact
        from edgeprune.graph.cost import count_macs, count_params

        chosen, rules = plan_and_rules(session)
        dense = prepared.model if trained is None else with_weights(prepared.model, session.path(rundir.TRAINED))
        compacted = compact(dense, chosen, prepared.inputs, rules=rules)
        save_state(session.path(rundir.PRUNED), compacted.model.state_dict())
        facts = {
            "before": {"params": planned.facts["params"], "macs": planned.facts["macs"]},
            **compacted.facts(),
            "params": count_params(compacted.model),
            "macs": count_macs(compacted.model, prepared.inputs),
            "metrics": evaluate(prepared.workload, compacted.model),
        }
        if trained is not None:
            facts |= cost_of_cut(dense, compacted.model, prepared.inputs)
        return (rundir.PRUNED,), facts

    record = run_stage(session, key, work, subject=rundir.PRUNED)
    session.notices_of("apply", record)
    return record


def plan_and_rules(session: Session) -> tuple[PrunePlan, UserRules | None]:
    """Return the run's plan and the user's rules that it was made with."""
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning import PrunePlan

    return PrunePlan.load(session.path(rundir.PLAN)), load_rules(session.prepared.config.prune.rules)


def network(session: Session, weights: str) -> nn.Module:
    """Return the pruned network of the run's plan with the tensors of one of its weight files.

    The network is compacted and verified once for every plan; later calls copy it.
    """
    from edgeprune.compact import apply as compact
    from edgeprune.compact.plans import load_pruned_
    from edgeprune.graph.structure import copy_model

    plan, rules = plan_and_rules(session)
    if session.compacted is None or session.compacted[0] != plan.digest:
        small = compact(session.prepared.model, plan, session.prepared.inputs, rules=rules).model
        session.compacted = plan.digest, small
    found = copy_model(session.compacted[1])
    load_pruned_(found, load_state(session.path(weights)))
    return found


def weights_of(record: StageRecord) -> str:
    """Return the file of weights that a stage wrote, beside a plan or masks."""
    return next(name for name in record.outputs if name.endswith(".safetensors") and name != rundir.MASKS)


def accuracy(session: Session, exported: StageRecord) -> StageRecord | None:
    """Score one artifact through its runtime: `test_data` with `evaluate_outputs`, else `evaluate`.

    A session asks once for each file; None where it cannot be scored.
    """
    name = exported.facts["artifact"]["path"]
    if name not in session.scores:
        session.scores[name] = _accuracy(session, exported, name)
    return session.scores[name]


def _accuracy(session: Session, exported: StageRecord, name: str) -> StageRecord | None:
    prepared = session.prepared
    workload = prepared.workload
    if workload.evaluate is None and (workload.test_data is None or workload.evaluate_outputs is None):
        return None
    key = StageKey(
        stage=f"accuracy {name}",
        settings={"seed": prepared.config.seed},
        inputs={"workload code": prepared.digests["workload code"], name: exported.outputs[name]},
    )

    def work() -> tuple[tuple[str, ...], Json]:
        metrics, source = score_artifact(workload, session.path(name))
        return (), {"artifact": name, "metrics": metrics, "metrics_source": source}

    try:
        return run_stage(session, key, work, subject=name)
    except ModelError as error:
        if workload.test_data is not None and workload.evaluate_outputs is not None:
            raise
        text = f"{name} was not scored through its runtime: {error.message}"
        fix = "add  def test_data(): ...  and  def evaluate_outputs(pairs): ..."
        session.notice("accuracy", Notice(code="not-scored", text=text, fix=fix))
        return None


def bench(session: Session, exported: list[StageRecord]) -> StageRecord:
    """Time all artifacts against each other on the target; writes `results.jsonl`."""
    prepared = session.prepared
    config = prepared.config.bench
    settings = {f"bench.{k}": v for k, v in config.model_dump(mode="json").items()}
    settings["target"] = prepared.target.model_dump(mode="json")
    inputs = {record.facts["artifact"]["path"]: record.facts["artifact"]["sha256"] for record in exported}
    key = StageKey(stage="bench", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        from edgeprune.bench import append_results, measure

        facts = [record.facts["artifact"] for record in exported]
        artifacts = [Artifact.from_dict(value | {"path": str(session.path(value["path"]))}) for value in facts]
        rows = measure(
            artifacts,
            prepared.target,
            config,
            roles=[value["path"].partition(".")[0] for value in facts],
            on_progress=bench_progress(session.listen),
            seed=prepared.config.seed,
        )
        with rundir.replacing(session.path(rundir.ROWS)) as temporary:
            append_results(temporary, rows)
        return (rundir.ROWS,), {"rows": len(rows), "failed": [row.error for row in rows if row.error]}

    return run_stage(session, key, work, subject=rundir.ROWS)


def _tell_rounding(session: Session, record: StageRecord) -> None:
    """Say where fewer blocks went than were asked for, or rounding left a ratio far from the one asked for."""
    config = session.prepared.config.prune
    blocks = record.facts.get("blocks", [])
    gone, able = (sum(bool(row["removed"]) for row in blocks), sum(row["pinned"] is None for row in blocks))
    if gone < round(config.depth * able):
        text = f"depth {config.depth:g} became {gone} of {able} blocks: one of every row with equal shape stays"
        session.notice("plan", Notice(code="rounded", text=text, fix="name others in prune.blocks"))
    free = [group for group in record.facts["groups"] if group["pinned"] is None and group["rests"] is None]
    before = sum(group["units_before"] for group in free)
    done = 1 - sum(group["units_after"] for group in free) / before if before else 0.0
    if config.budget is None and not config.ratios and abs(done - config.ratio) > 0.1:
        text = f"ratio {config.ratio:g} became {done:.2f}: units are kept in multiples of {record.facts['align']}"
        fix = "-s prune.align=8 rounds less; measure whether the runtime likes it"
        session.notice("plan", Notice(code="rounded", text=text, fix=fix))


def _keep_edited(session: Session) -> None:
    """Set aside a plan that was edited by hand before it is made again."""
    record = session.run.last("plan")
    path = session.path(rundir.PLAN)
    digest = rundir.file_digest(path)
    if record is None or digest is None or record.outputs.get(rundir.PLAN) == digest:
        return
    if session.run.was_interrupted("plan"):
        return
    aside = session.path(f"{rundir.PLAN}.edited")
    path.replace(aside)
    text = f"{path} was edited; it is kept as {aside.name}, and the plan is made again from the settings"
    fix = f"to use it:  edgeprune prune {session.prepared.workload.source} --plan {aside} -o DIRECTORY"
    session.notice("plan", Notice(code="plan-edited", text=text, fix=fix))
