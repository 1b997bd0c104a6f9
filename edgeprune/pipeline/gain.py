"""What quantisation-aware training gains: two int8 files of one network side by side, and the better one kept.

Owns the comparison and the choice. The choice is by the user's metric through the runtime, on validation data where
there are any; the files are made and verified by `exporting`.
"""

from __future__ import annotations

from typing import Any

from edgeprune import rundir
from edgeprune.config import RunConfig
from edgeprune.errors import ModelError
from edgeprune.pipeline.networks import score_artifact, validate_artifact
from edgeprune.pipeline.stages import Session, accuracy, run_stage
from edgeprune.pipeline.verdict import chosen_metric
from edgeprune.report.stages import kept_words
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.values import Json, Notice, worsening


def better_file(session: Session, name: str, post: StageRecord, aware: StageRecord) -> StageRecord:
    """Give the better one of two int8 files its final name; facts are those of that file, and `gain`.

    Args:
        name: The final name.
        post: The file of the fine-tuned network, quantised after training.
        aware: The file of the network that was trained for it.
    """
    prepared = session.prepared
    sides = {"post": post, "aware": aware}
    scored = {side: accuracy(session, record) if _path(record) else None for side, record in sides.items()}
    settings = {"qat": True, "finetune.metric": prepared.config.finetune.metric, "seed": prepared.config.seed}
    inputs = {"workload code": prepared.digests["workload code"]} | post.outputs | aware.outputs
    key = StageKey(stage=f"export {name}", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        if not _path(post) and not _path(aware):
            return (), {"refused": aware.facts["refused"] | {"path": name}, "notices": []} | _failed(post, aware)
        found: dict[str, Any] = {side: _facts(session, record, scored[side]) for side, record in sides.items()}
        gain = chosen(found, prepared.config)
        source = sides[gain["kept"]]
        rundir.write_atomic(session.path(name), session.path(_path(source)).read_bytes())
        told = _notice(name, gain)
        facts = {key: source.facts[key] for key in ("artifact", "checks", "quantisation")}
        facts |= {"artifact": facts["artifact"] | {"path": name}, "gain": gain}
        return (name,), facts | {"notices": [told.as_dict()] if told is not None else []}

    record = run_stage(session, key, work, subject=name)
    session.notices_of("export", record)
    return record


def chosen(found: dict[str, Any], config: RunConfig) -> Json:
    """Return both sides, the metric that decides between them (None: their SQNR does), and which one is kept.

    Of equals the trained one is kept where its output is closer to that of its float32 file.

    Args:
        found: `post` and `aware`, each with `validation`, `source`, `metrics` and `sqnr_db`; None for no file.
    """
    post, aware = found["post"], found["aware"]
    metric, lost = None, 0.0
    if post is not None and aware is not None:
        common = tuple(name for name in post["validation"] or {} if name in (aware["validation"] or {}))
        metric = chosen_metric(common, config)
        if metric is not None:
            lost = worsening(metric, post["validation"][metric], aware["validation"][metric])
        if lost == 0:
            lost = post["sqnr_db"] - aware["sqnr_db"]
    kept = "aware" if post is None or (aware is not None and lost <= 0) else "post"
    return found | {"metric": metric, "kept": kept}


def awareness(trained: StageRecord | None, shown: list[StageRecord]) -> Json | None:
    """Return what a run's result says of quantisation-aware training: the training, and each file's gain."""
    if trained is None:
        return None
    names = ("history", "best_epoch", "metrics", "rounded", "lr", "products")
    files = [
        {"path": record.facts["artifact"]["path"], **record.facts["gain"]}
        for record in shown
        if record.facts.get("gain")
    ]
    return {name: trained.facts[name] for name in names} | {"files": files}


def _path(record: StageRecord) -> str:
    return "" if record.facts.get("refused") else str(record.facts["artifact"]["path"])


def _facts(session: Session, record: StageRecord, scored: StageRecord | None) -> Json | None:
    if not _path(record):
        return None
    validation, source = _validated(session, _path(record))
    return {
        "sqnr_db": record.facts["quantisation"]["sqnr_db"],
        "validation": validation,
        "source": source,
        "metrics": scored.facts["metrics"] if scored is not None else None,
    }


def _validated(session: Session, path: str) -> tuple[Json | None, str | None]:
    """Return the metrics that decide, and the function that they are from; None where there are none."""
    workload, file = session.prepared.workload, session.path(path)
    if workload.evaluate is not None:
        try:
            return validate_artifact(workload, file), "evaluate"
        except ModelError:  # it takes networks only, no files
            if workload.test_data is None or workload.evaluate_outputs is None:
                return None, None
    if workload.test_data is None or workload.evaluate_outputs is None:
        return None, None
    return score_artifact(workload, file)


def _failed(*records: StageRecord) -> Json:
    """Say that making the file is to be tried again, where that of one of its sources is."""
    told = next((record.facts["failed"] for record in records if record.facts.get("failed")), None)
    return {"failed": told} if told is not None else {}


def _notice(name: str, gain: Json) -> Notice | None:
    if gain["kept"] == "aware":
        return None
    text = f"{name} is the post-training file: {kept_words(gain)}"
    return Notice(code="no-gain", text=text, fix="-s qat.lr=... smaller, or more epochs (--qat-epochs)")
