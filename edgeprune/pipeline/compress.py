"""The one command: a trained network to verified, measured files. The only module that knows the order of stages."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import rundir
from edgeprune.config import RunConfig, load_config
from edgeprune.errors import ConfigError
from edgeprune.pipeline import aware, exporting, recovery, stages, zeroing
from edgeprune.pipeline.events import Event, Listener, ignore
from edgeprune.pipeline.exporting import Files
from edgeprune.pipeline.gain import awareness
from edgeprune.pipeline.generalisation import generalisation, train_metrics
from edgeprune.pipeline.looping import loop
from edgeprune.pipeline.measuring import compare_rows
from edgeprune.pipeline.planning import read_sensitivity
from edgeprune.pipeline.prepare import Prepared, absolute_settings, default_output, prepare
from edgeprune.pipeline.sparsity import file_rows
from edgeprune.pipeline.stages import Session
from edgeprune.pipeline.verdict import judge
from edgeprune.rundir import RunDirectory, StageRecord
from edgeprune.values import Json, finite
from edgeprune.version import VERSION
from edgeprune.workload import Workload

if TYPE_CHECKING:
    from edgeprune.bench import Measurement

_PACKAGES = (
    "torch",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "ai-edge-litert",
    "litert-torch",
    "accelerate",
)
_KEPT_VALUES = ("workload", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run: its directory and the content of its `result.json`."""

    folder: Path
    data: Json

    @property
    def passed(self) -> bool:
        """Whether every budget was met and everything was measured."""
        from edgeprune.pipeline.verdict import failure

        return failure(self.data) is None


def compress(config: RunConfig, workload: Workload | None = None, *, listen: Listener = ignore) -> RunResult:
    """Prune, fine-tune, export, measure and report, into a run directory that can be resumed.

    Finished stages are reused while their settings and inputs stay the same. A missed budget is not an error here:
    `RunResult.passed` says so.

    Args:
        config: The settings; `config.output` is the run directory, by default `runs/NAME-r50`.
        workload: An already loaded workload in place of `config.workload`.
        listen: Called with every event.

    Under torchrun this is for the first process; the others call `distributed.follow`.

    Raises:
        EdgePruneError: One of its kinds; what was finished is kept.
    """
    prepared = prepare(config, workload)
    folder = Path(config.output) if config.output is not None else default_output(prepared)
    settings = absolute_settings(config, prepared.workload)
    with RunDirectory(folder, settings.workload, prepared.digests["workload code"]) as run:
        rundir.write_atomic(folder / rundir.SETTINGS, settings.to_toml())
        session = Session(prepared=prepared, run=run, listen=listen)
        listen(Event(stage="run", state="run", facts=_opening(prepared, folder)))
        return RunResult(folder=folder, data=_stages(session))


def resume(folder: Path, *, listen: Listener = ignore) -> RunResult:
    """Go on with a run, with the settings in its `run.toml`.

    Raises:
        ResolveError: The folder is not a run.
        EdgePruneError: As `compress`.
    """
    rundir.require_run(folder)
    config = load_config(folder / rundir.SETTINGS)
    return compress(config.model_copy(update={"output": str(folder)}), listen=listen)


def _opening(prepared: Prepared, folder: Path) -> Json:
    target = prepared.target
    return {
        "folder": str(folder),
        "settings": str(folder / rundir.SETTINGS),
        "resume": f"edgeprune resume {folder}",
        "workload": prepared.workload.source,
        "network": type(prepared.model).__name__,
        "target": target.name,
        "description": target.description,
    }


def _stages(session: Session) -> Json:
    config = session.prepared.config
    looped, zeroed, solved, recalibrated = None, None, None, None
    if config.loop.active:
        dense = stages.baseline(session)
        _check_metric(session, dense)
        looped = loop(session, dense)
        planned = stages.plan(session, {looped.plan: looped.last.outputs[looped.plan]})
        applied = stages.apply(session, planned)
    elif config.gradual.of_units:  # a training: what can be checked before it is
        dense = stages.baseline(session)
        _check_metric(session, dense)
        zeroed = zeroing.train(session)
        planned = stages.plan(session, trained=zeroed)
        applied = stages.apply(session, planned, zeroed)  # the cut leaves nothing to make up for
    else:
        planned = stages.plan(session)
        dense = stages.baseline(session)
        _check_metric(session, dense)
        applied = stages.apply(session, planned)
        solved = recovery.reconstruct(session, applied)
        recalibrated = recovery.recalibrate(session, applied, solved)
    left = looped.last if looped is not None else recalibrated or solved or applied
    sparse = recovery.sparsify(session, left)
    final = recovery.finetune(session, sparse or left)
    trained_int8 = aware.train(session, final)
    files = exporting.export(session, final, trained_int8)
    stages.bench(session, files.shown)
    for record in files.shown:
        stages.accuracy(session, record)
    trained = train_metrics(session, final)
    records = {
        "dense": dense,
        "zeroed": zeroed,
        "pruned": applied,
        "reconstructed": solved,
        "recalibrated": recalibrated,
        "looped": looped.last if looped is not None else None,
        "sparse": sparse,
        "finetuned": final,
        "quantise_aware": trained_int8,
        "generalise": trained,
    }
    history = looped.history if looped is not None else None
    return _report(session, planned, records, files, history)


def _check_metric(session: Session, dense: StageRecord | None) -> None:
    """Check that the metric which chooses the best epoch exists, before anything is trained."""
    metric = session.prepared.config.finetune.metric
    if metric is None:
        return
    known = list(dense.facts["metrics"]) if dense is not None else []
    if metric not in known:
        raise ConfigError(
            f"finetune.metric = '{metric}', and evaluate() returns {', '.join(known) or 'nothing'}",
            where=session.prepared.workload.source,
            fix=f"-s finetune.metric={known[0]}" if known else "add  def evaluate(model): ...",
        )


def _report(
    session: Session,
    planned: StageRecord,
    records: dict[str, StageRecord | None],
    files: Files,
    history: Json | None,
) -> Json:
    """Gather everything into `result.json` and write the report."""
    from edgeprune.report import render

    started = time.perf_counter()
    session.listen(Event(stage="report", state="begin"))
    result = _gather(session, planned, records, files, history)
    rundir.write_atomic(session.path(rundir.RESULT), json.dumps(result, indent=1, allow_nan=False) + "\n")
    rundir.write_atomic(session.path(rundir.REPORT), render([result]))
    checks = {entry["artifact"]["path"]: entry["checks"] for entry in result["artifacts"]}
    rundir.write_atomic(session.path(rundir.CHECKS), json.dumps(checks, indent=1) + "\n")
    session.listen(Event(stage="report", state="done", subject=rundir.REPORT, seconds=time.perf_counter() - started))
    return result


def _gather(
    session: Session,
    planned: StageRecord,
    records: dict[str, StageRecord | None],
    files: Files,
    looped: Json | None,
) -> Json:
    prepared = session.prepared
    applied, final = records["pruned"], records["finetuned"]
    pruned = applied.facts if applied is not None else {}
    trained = final.facts if final is not None else {}
    rows = _rows(session)
    result: Json = {
        "schema_version": 1,
        "edgeprune": VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "name": session.run.path.resolve().name,
        "workload": {"name": prepared.workload.name, "source": prepared.workload.source},
        "settings": prepared.config.model_dump(mode="json"),
        "target": prepared.target.model_dump(mode="json"),
        "network": {
            "name": type(prepared.model).__name__,
            "params": {"dense": planned.facts["params"], "pruned": pruned["params"]},
            "macs": {"dense": planned.facts["macs"], "pruned": pruned["macs"]},
            "size_bytes": {"dense": planned.facts["params"] * 4, "pruned": pruned["params"] * 4},
            "inputs": files.shown[0].facts["artifact"]["inputs"],
        },
        "groups": planned.facts["groups"],
        "blocks": planned.facts.get("blocks", []),
        "sparsity": _sparsity(session, records["sparse"], final, files),
        "gradual": _gradual(records["zeroed"], applied, final),
        "metrics": {
            name: record.facts["metrics"] if record else None
            for name, record in records.items()
            if name != "generalise"
        },
        "history": trained["history"],
        "best_epoch": trained["best_epoch"],
        "quantise_aware": awareness(records["quantise_aware"], files.shown),
        "artifacts": [
            _artifact(record, session.scores.get(record.facts["artifact"]["path"])) for record in files.shown
        ],
        "refused": files.refused,
        "reconstruction": _reconstruction(records["reconstructed"]),
        "compaction": {"output": pruned["output"], "check": pruned["check"]},
        "measurements": [row.as_dict() for row in rows],
        "comparisons": [value.as_dict() for value in compare_rows(rows, prepared.config.bench.practical)],
        "notices": [notice.as_dict() for notice in session.notices],
        "environment": environment(),
        "reproduce": [command(prepared.config, prepared.workload)],
        "stages": session.stages,
        "sensitivity": _sensitivity(prepared.config),
        "loop": looped,
        "layerwise": planned.facts.get("layerwise"),
    }
    result["generalisation"] = generalisation(records["generalise"], result)
    plain: Json = finite(result)
    plain["verdict"] = judge(plain, prepared.config)
    return plain


def _sensitivity(config: RunConfig) -> Json | None:
    found = read_sensitivity(config.prune)
    return found.as_dict() if found is not None else None


def _sparsity(
    session: Session,
    sparse: StageRecord | None,
    final: StageRecord | None,
    files: Files,
) -> Json | None:
    """Return what was zeroed and what that does to the files; None where no single weight was pruned."""
    facts = sparse.facts if sparse is not None else final.facts.get("sparsity") if final is not None else None
    if facts is None:
        return None
    names = ("method", "layers", "weights", "zeros", "params")
    paths = [session.path(record.facts["artifact"]["path"]) for record in files.shown]
    return {name: facts[name] for name in names} | {"files": file_rows(paths)}


def _gradual(zeroed: StageRecord | None, applied: StageRecord | None, final: StageRecord | None) -> Json | None:
    """Return how pruning went on during a training; None where all was pruned at once.

    Where units went, `history` is that of the training before the cut, and `cut` what the cut changed.
    """
    if zeroed is not None and applied is not None:
        history = {name: zeroed.facts[name] for name in ("history", "best_epoch")}
        found: Json = zeroed.facts["gradual"] | history | {"cut": applied.facts["cut"]}
        return found
    return final.facts.get("gradual") if final is not None else None


def _reconstruction(record: StageRecord | None) -> Json | None:
    if record is None:
        return None
    return {key: value for key, value in record.facts.items() if key not in ("notices", "metrics")}


def _artifact(exported: StageRecord, scored: StageRecord | None) -> Json:
    artifact = exported.facts["artifact"]
    return {
        "role": exporting.role_of(artifact["path"]),
        "artifact": artifact,
        "checks": exported.facts["checks"],
        "quantisation": exported.facts.get("quantisation"),
        "metrics": scored.facts["metrics"] if scored is not None else None,
        "metrics_source": scored.facts["metrics_source"] if scored is not None else None,
    }


def _rows(session: Session) -> list[Measurement]:
    from edgeprune.bench import read_results

    return read_results(session.path(rundir.ROWS))


def environment() -> Json:
    """Return what the numbers of a run depend on: interpreter, machine, package versions."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command(config: RunConfig, workload: Workload) -> str:
    """Return the command line that makes this run, with every setting that is not a default."""
    import shlex

    words = ["edgeprune", "compress", workload.source]
    for key, value in changed_settings(config).items():
        if key == "target":
            words += ["--target", str(value)]
        elif key == "export.precisions":
            words += ["--precision", ",".join(value)]
        elif key == "qat.epochs":
            words += ["--qat-epochs", str(value)]
        elif key not in _KEPT_VALUES:
            words += ["-s", f"{key}={_toml(value)}"]
    if config.output is not None:
        words += ["-o", config.output]
    return shlex.join(words)


def _toml(value: object) -> str:
    """Return a value as it is written behind `-s section.key=`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def changed_settings(config: RunConfig) -> Json:
    """Return the dotted settings that differ from the defaults."""

    def flat(data: Json, prefix: str = "") -> Json:
        found: Json = {}
        for key, value in data.items():
            if isinstance(value, dict) and prefix == "":
                found |= flat(value, f"{key}.")
            else:
                found[prefix + key] = value
        return found

    default = flat(RunConfig().model_dump(mode="json"))
    return {key: value for key, value in flat(config.model_dump(mode="json")).items() if value != default[key]}
