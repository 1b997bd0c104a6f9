"""The stage that trains the dense network while its units go to zero, before the plan."""

from __future__ import annotations

from typing import Any

from edgeprune import rundir
from edgeprune.pipeline import distributed
from edgeprune.pipeline.folders import save_state
from edgeprune.pipeline.gradual import IRRELEVANT, gradual_settings, recipe_of, trail_facts, training_config
from edgeprune.pipeline.networks import evaluate
from edgeprune.pipeline.stages import Session, run_stage
from edgeprune.pipeline.tuning import history_rows, tuned
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.values import Json


def train(session: Session) -> StageRecord:
    """Train the dense network and zero its units meanwhile.

    Writes `trained.safetensors`, the weights with their zeros, and `zeroed.json`, the plan that removes those units.
    The teacher, where there is one, is the dense network as it was given.
    """
    prepared = session.prepared
    whole = prepared.config
    config = training_config(whole)
    settings: Json = {f"finetune.{k}": v for k, v in config.model_dump(mode="json").items() if k not in IRRELEVANT}
    settings |= gradual_settings(whole) | {"prune.align": prepared.align, "seed": whole.seed}
    key = StageKey(stage="train", settings=settings, inputs=prepared.digests)
    checkpoint = session.path(f"{rundir.TRAIN_CHECKPOINT}{key.digest()[:12]}")

    def work() -> tuple[tuple[str, ...], Json]:
        recipe = recipe_of(whole, prepared.model, prepared.inputs, prepared.align)
        distributed.announce(session.run.path, None, config, checkpoint, whole, more=True)
        result = tuned(
            prepared.workload,
            prepared.model,
            prepared.model,
            config,
            checkpoint=checkpoint,
            seed=whole.seed,
            listen=session.listen,
            recipe=recipe,
            stage="train",
        )
        pruner: Any = result.pruner
        pruner.plan.save(session.path(rundir.ZEROED))
        save_state(session.path(rundir.TRAINED), result.model.state_dict())
        facts = {
            "metrics": evaluate(prepared.workload, result.model),
            "best_epoch": result.best_epoch,
            "history": history_rows(result),
            "gradual": trail_facts(result, whole),
            "notices": [notice.as_dict() for notice in result.notices],
        }
        return (rundir.TRAINED, rundir.ZEROED), facts

    rundir.remove_checkpoints(session.run.path, checkpoint, rundir.TRAIN_CHECKPOINT)
    record = run_stage(session, key, work, subject=rundir.TRAINED)
    rundir.remove_checkpoints(session.run.path, prefix=rundir.TRAIN_CHECKPOINT)
    session.notices_of("train", record)
    return record
