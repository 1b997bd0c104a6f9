"""Train, validation and test metrics of the dense and of the final network, and the gap between them.

Pruning is sometimes said to narrow the gap between training and test. Whether it did, one metric says on both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.errors import ModelError
from edgeprune.pipeline.networks import metrics_of_outputs, outputs_on
from edgeprune.pipeline.stages import Session, network, run_stage
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.values import Json, Notice, lower_is_better
from edgeprune.workload import Workload, batches

if TYPE_CHECKING:
    from torch import nn

TRAIN_BATCHES = 50


def train_metrics(session: Session, final: StageRecord) -> StageRecord | None:
    """Score both networks on the first batches of `train_data` with `evaluate_outputs`, where the workload has both."""
    prepared = session.prepared
    workload = prepared.workload
    if workload.train_data is None or workload.evaluate_outputs is None:
        return None
    key = StageKey(
        stage="generalise",
        settings={"seed": prepared.config.seed},
        inputs=prepared.digests | {rundir.FINETUNED: final.outputs[rundir.FINETUNED]},
    )

    def work() -> tuple[tuple[str, ...], Json]:
        dense = _on_train_data(workload, prepared.model)
        return (), {"dense": dense, "final": _on_train_data(workload, network(session, rundir.FINETUNED))}

    try:
        return run_stage(session, key, work)
    except ModelError as error:
        text = f"no metrics on training data: {error.message}"
        fix = "let evaluate_outputs() take batches of train_data() as well"
        session.notice("generalise", Notice(code="no-train-metrics", text=text, fix=fix))
        return None


def _on_train_data(workload: Workload, model: nn.Module) -> dict[str, float]:
    def some() -> Iterator[Any]:
        return itertools.islice(iter(batches(workload, "train_data")), TRAIN_BATCHES)

    return metrics_of_outputs(workload, outputs_on(model.eval(), some()))


def generalisation(record: StageRecord | None, result: Json) -> Json | None:
    """Return the metrics of every split for both networks, and the gap from training to test, by metric.

    Args:
        result: `metrics` of the stages and the `artifacts` with theirs; test metrics are those of the files.
    """
    if record is None:
        return None
    found: Json = {}
    for name, stage, role in (("dense", "dense", "baseline"), ("final", "finetuned", "model")):
        own = [e for e in result["artifacts"] if e["role"] == role and e["artifact"]["precision"] == "fp32"]
        scored = [entry for entry in own if entry["metrics_source"] == "test_data"]
        train, test = record.facts[name], scored[0]["metrics"] if scored else None
        validation = result["metrics"].get(stage)
        other = test or validation or {}
        found[name] = {
            "train": train,
            "validation": validation,
            "test": test,
            "gap": {
                key: (other[key] - value if lower_is_better(key) else value - other[key])
                for key, value in train.items()
                if key in other
            },
        }
    return found
