"""The stages that win accuracy back, from the compacted network to the one that is exported.

Reconstruct, or renew the BatchNorm statistics; set single weights to zero; train.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgeprune import rundir
from edgeprune.pipeline import distributed
from edgeprune.pipeline.folders import load_masks, save_masks, save_state
from edgeprune.pipeline.gradual import IRRELEVANT, gradual_settings, pruned_weights, recipe_of
from edgeprune.pipeline.networks import evaluate
from edgeprune.pipeline.sparsity import sparsified
from edgeprune.pipeline.stages import Session, network, plan_and_rules, run_stage, weights_of
from edgeprune.pipeline.tuning import (
    history_rows,
    recalibrated,
    recalibrates,
    reconstructed,
    training_source,
    tuned,
    tuning_notice,
    workload_features,
)
from edgeprune.report.stages import metrics_text
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.values import Json, Notice, finite, leading_metric, worsening

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.training import FinetuneResult
    from edgeprune.training.features import Features


def reconstruct(session: Session, applied: StageRecord) -> StageRecord | None:
    """Solve for the weights that are left, on data or on made-up inputs; writes `reconstructed.safetensors`."""
    prepared = session.prepared
    config = prepared.config.reconstruct
    if config.samples == 0 or applied.facts["params"] == applied.facts["before"]["params"]:  # nothing was removed
        return None
    settings = {f"reconstruct.{name}": value for name, value in config.model_dump(mode="json").items()}
    settings["seed"] = prepared.config.seed
    inputs = prepared.digests | {rundir.PRUNED: applied.outputs[rundir.PRUNED]}
    key = StageKey(stage="reconstruct", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        plan, rules = plan_and_rules(session)
        model, facts = reconstructed(
            prepared.workload,
            network(session, rundir.PRUNED),
            prepared.model,
            plan,
            prepared.inputs,
            config,
            rules=rules,
            listen=session.listen,
        )
        save_state(session.path(rundir.RECONSTRUCTED), model.state_dict())
        metrics = evaluate(prepared.workload, model) if facts["improved"] else applied.facts["metrics"]
        return (rundir.RECONSTRUCTED,), facts | {"metrics": metrics}

    record = run_stage(session, key, work, subject=rundir.RECONSTRUCTED)
    session.notices_of("reconstruct", record)
    return record


def recalibrate(session: Session, applied: StageRecord, solved: StageRecord | None) -> StageRecord | None:
    """Make the BatchNorm statistics those of the pruned network, where there are any and there is data.

    Args:
        solved: The reconstruction, if there was one: where it helped, the statistics fit already.
    """
    prepared = session.prepared
    if solved is not None and solved.facts["improved"]:
        return None
    count = prepared.config.finetune.recalibrate_batches
    if not recalibrates(prepared.workload, prepared.model, count):
        return None
    settings = {"finetune.recalibrate_batches": count, "seed": prepared.config.seed}
    inputs = prepared.digests | {rundir.PRUNED: applied.outputs[rundir.PRUNED]}
    key = StageKey(stage="recalibrate", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        model = recalibrated(prepared.workload, network(session, rundir.PRUNED), count)
        save_state(session.path(rundir.RECALIBRATED), model.state_dict())
        return (rundir.RECALIBRATED,), {"metrics": evaluate(prepared.workload, model)}

    return run_stage(session, key, work, subject=rundir.RECALIBRATED)


def sparsify(session: Session, source: StageRecord) -> StageRecord | None:
    """Set single weights to zero, where the settings name a method; writes the weights and their masks.

    BatchNorm statistics are made anew, where there are any and there is data: they too were those of the whole weights.

    Args:
        source: The stage that wrote the weights to choose from.
    """
    prepared = session.prepared
    config, count = prepared.config.sparsify, prepared.config.finetune.recalibrate_batches
    if config.method is None or prepared.config.gradual.of_weights:
        save_masks(session.run.path, None)
        return None
    start = weights_of(source)
    settings = {f"sparsify.{name}": value for name, value in config.model_dump(mode="json").items()}
    settings |= {"finetune.recalibrate_batches": count, "seed": prepared.config.seed}
    key = StageKey(stage="sparsify", settings=settings, inputs=prepared.digests | source.outputs)

    def work() -> tuple[tuple[str, ...], Json]:
        model = network(session, start)
        masks, facts = sparsified(model, config)
        if recalibrates(prepared.workload, model, count):
            model = recalibrated(prepared.workload, model, count)
        save_state(session.path(rundir.SPARSE), model.state_dict())
        save_masks(session.run.path, masks)
        return (rundir.SPARSE, rundir.MASKS), facts | {"metrics": evaluate(prepared.workload, model)}

    record = run_stage(session, key, work, subject=rundir.SPARSE)
    session.notices_of("sparsify", record)
    return record


def finetune(session: Session, source: StageRecord) -> StageRecord:
    """Train the pruned network; with no epochs or no data the weights are taken over as they are.

    Args:
        source: The stage that wrote the weights to start from: `sparsify`, `recalibrate` or `apply`.
    """
    prepared = session.prepared
    config, whole = prepared.config.finetune, prepared.config
    start = weights_of(source)
    trains = training_source(prepared.workload)[0] is not None and config.epochs > 0
    settings: Json = {"finetune.epochs": config.epochs}
    if trains:
        settings = {f"finetune.{k}": v for k, v in config.model_dump(mode="json").items() if k not in IRRELEVANT}
        settings["seed"] = prepared.config.seed
        settings |= {"loop": True} if prepared.config.loop.active else {}
        settings |= gradual_settings(whole) if whole.gradual.of_weights else {}
    key = StageKey(stage="finetune", settings=settings, inputs=prepared.digests | source.outputs)
    checkpoint = session.path(f"{rundir.CHECKPOINT}{key.digest()[:12]}")
    told = tuning_notice(prepared.workload, config.epochs)
    if told is not None:
        session.notice("finetune", told)

    def work() -> tuple[tuple[str, ...], Json]:
        if not trains:
            return _untrained(session, start)
        model = network(session, start)
        recipe = recipe_of(whole, model, prepared.inputs, prepared.align) if whole.gradual.of_weights else None
        features = _features(session, model)
        distributed.announce(session.run.path, start, config, checkpoint, whole if recipe is not None else None)
        result = tuned(
            prepared.workload,
            model,
            prepared.model,
            config,
            checkpoint=checkpoint,
            seed=prepared.config.seed,
            listen=session.listen,
            masks=load_masks(session.run.path, start) if recipe is None else None,
            recipe=recipe,
            features=features,
        )
        written, facts = _trained(session, source, result)
        return written, facts | {"features": [feature.path for feature in features]}

    rundir.remove_checkpoints(session.run.path, checkpoint)
    if not trains or session.run.reusable(key) is not None:
        distributed.dismiss()
    record = run_stage(session, key, work, subject=rundir.FINETUNED)
    rundir.remove_checkpoints(session.run.path)
    session.notices_of("finetune", record)
    return record


def _features(session: Session, model: nn.Module) -> Features:
    prepared = session.prepared
    plan, rules = plan_and_rules(session)
    given = (model, prepared.model, plan, prepared.inputs, rules)
    return workload_features(prepared.workload, prepared.config.finetune, *given)


def _untrained(session: Session, start: str) -> tuple[tuple[str, ...], Json]:
    """Take over the weights as they are."""
    rundir.write_atomic(session.path(rundir.FINETUNED), session.path(start).read_bytes())
    rundir.write_atomic(session.path(rundir.HISTORY), "[]\n")
    save_masks(session.run.path, None, rundir.FINETUNED_MASKS)
    return (rundir.FINETUNED, rundir.HISTORY), {"metrics": None, "best_epoch": None, "history": []}


def _trained(session: Session, source: StageRecord, result: FinetuneResult) -> tuple[tuple[str, ...], Json]:
    """Write what a training gave; behind a loop that kept to a floor, one that lowers the metric is undone."""
    config = session.prepared.config
    pruned, gradual = pruned_weights(session.run.path, result, config)
    history = history_rows(result)
    rundir.write_atomic(session.path(rundir.HISTORY), json.dumps(finite(history), indent=1) + "\n")
    metrics, notices = evaluate(session.prepared.workload, result.model), result.notices
    facts: Json = {"metrics": metrics, "best_epoch": result.best_epoch, "history": history}
    if config.loop.active and _worse(config.finetune.metric, source.facts["metrics"], metrics):
        rundir.write_atomic(session.path(rundir.FINETUNED), session.path(weights_of(source)).read_bytes())
        text = f"training after the loop made the metric worse ({metrics_text(metrics)}): it was undone"
        notices = (*notices, Notice(code="undone", text=text, fix="-s finetune.lr=... smaller"))
        facts |= {"metrics": source.facts["metrics"], "best_epoch": None}
    else:
        save_state(session.path(rundir.FINETUNED), result.model.state_dict())
    told = [*(notice.as_dict() for notice in notices), *gradual.get("notices", ())]
    return (rundir.FINETUNED, rundir.HISTORY, *pruned), facts | gradual | {"notices": told}


def _worse(metric: str | None, before: Json | None, after: Json | None) -> bool:
    """Return whether the leading metric fell, so that a network that kept to a floor may no longer do."""
    if before is None or after is None:
        return False
    name = leading_metric(before, metric)
    return not worsening(name, before[name], after[name]) <= 0
