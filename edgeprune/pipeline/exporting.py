"""The files of a run: both networks in float32, and the pruned one in every other precision that is asked for.

Owns how files are called, what they come from, and what happens where a precision fails: the run goes on without that
file, and the reason stays. Each file is a stage of its own, so an exporter runs once for each network and format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import RunConfig
from edgeprune.errors import ConfigError, ExportError, ModelError, VerificationError
from edgeprune.pipeline.digests import seeded
from edgeprune.pipeline.folders import load_masks
from edgeprune.pipeline.gain import better_file
from edgeprune.pipeline.networks import score_artifact, stated_labels, stated_preprocessing, true_samples
from edgeprune.pipeline.quantising import calibration_batches, calibration_digest, quantisation
from edgeprune.pipeline.sparsity import lost_zeros
from edgeprune.pipeline.stages import Session, accuracy, network, run_stage, weights_of
from edgeprune.pipeline.verdict import chosen_metric
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.targets import TFLITE_RUNTIME_PYTHON, Target, tflite_runtime_python
from edgeprune.values import PRECISIONS, Format, Json, Notice, Precision, parse_bytes, worsening
from edgeprune.version import VERSION
from edgeprune.workload import Workload

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.pruning import Masks


_ROLES = ("baseline", "model")


def tflite_runtime_of(target: Target) -> tuple[str | None, tuple[Notice, ...]]:
    """Return the interpreter that a target's .tflite files are verified in besides this one, or a notice without one.

    Raises:
        ConfigError: The one that is named is no executable file.
    """
    if target.tflite_package != "tflite-runtime":
        return None, ()
    python = tflite_runtime_python(target)
    if python is not None:
        return python, ()
    text = f"{target.name} runs .tflite files in tflite-runtime, and no interpreter with it is known to verify them in"
    fix = f"export {TFLITE_RUNTIME_PYTHON}=FOLDER/bin/python, with tflite-runtime==2.14.0 in it"
    return None, (Notice(code="not-verified-there", text=text, fix=fix),)


def memory_limit(config: RunConfig) -> int | None:
    """Return the bytes that a converter's process may have; None for any."""
    return parse_bytes(config.export.memory_limit) if config.export.memory_limit is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What `export` is told for every file of a run and format, the same for the stages' keys, and what is missing."""

    arguments: dict[str, Any]
    key: Json
    notices: tuple[Notice, ...]


def _told(session: Session, form: Format) -> _Told:
    """Return what viewers shall see in a file, and in which other runtime it is verified; no keys for nothing."""
    from edgeprune.export.capture import input_names

    prepared = session.prepared
    labels = stated_labels(prepared.workload)
    preprocessing = stated_preprocessing(prepared.workload, input_names(prepared.model, len(prepared.inputs)))
    python, unproved = tflite_runtime_of(prepared.target) if form == "tflite" else (None, ())
    key: Json = {"labels": list(labels)} if labels else {}
    if preprocessing:
        key["preprocessing"] = {name: value.as_dict() for name, value in preprocessing.items()}
    if python is not None:
        key["tflite_runtime"] = python
    arguments = {"labels": labels, "preprocessing": preprocessing, "tflite_python": python}
    return _Told(arguments=arguments, key=key, notices=unproved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a run exported: the files that its result shows, and those that a precision did not become."""

    shown: list[StageRecord]
    refused: list[Json]


@dataclass(slots=True, kw_only=True)
class Allowance:
    """What int8 may cost: the pruned network's metric may be worse by `limit` than the dense one's, in all.

    `exceeded` says whether the float32 file of the pruned network is worse than that by itself; None until a candidate
    is, and it is asked. Nothing is left for int8 then, and its SQNR alone decides.
    """

    workload: Workload
    metric: str
    dense: float
    limit: float
    float_file: Path
    exceeded: bool | None = field(default=None, init=False)

    def accepts(self, candidate: Path) -> bool:
        """Return whether a file's metric, through its runtime, is good enough."""
        if self.exceeded is None and not self._keeps(candidate):
            self.exceeded = not self._keeps(self.float_file)
            return self.exceeded
        return self.exceeded is True or self._keeps(candidate)

    def _keeps(self, path: Path) -> bool:
        found, _ = score_artifact(self.workload, path)
        return worsening(self.metric, self.dense, found[self.metric]) <= self.limit + 1e-12


def file_name(role: str, form: Format, precision: Precision) -> str:
    """Return how a run calls a file: `model.onnx`, `model.int8.onnx`."""
    return f"{role}.{form}" if precision == "fp32" else f"{role}.{precision}.{form}"


def role_of(path: str) -> str:
    """Return whose file it is by its name: `baseline` or `model`."""
    return Path(path).name.partition(".")[0]


def export(session: Session, final: StageRecord, aware: StageRecord | None = None) -> Files:
    """Make and verify every file of a run.

    The dense network is exported in float32 alone. The pruned one is, too, whatever was asked for: the other
    precisions come from that file. Where float32 was not asked for, it is kept and not shown.

    Args:
        final: The stage that wrote the weights of the pruned network.
        aware: The one that trained them for int8, if there was one: the int8 file is then the better one of two.
    """
    config = session.prepared.config.export
    floats = {(role, form): _float(session, role, form, final) for form in config.formats for role in _ROLES}
    shown, refused = [], []
    for form in config.formats:
        shown.append(floats["baseline", form])
        for precision in sorted(config.precisions, key=PRECISIONS.index):
            if precision == "fp32":
                shown.append(floats["model", form])
                continue
            dense, source = floats["baseline", form], floats["model", form]
            if precision == "int8" and aware is not None:
                record = _best_int8(session, form, final, aware, dense, source)
            else:
                record = _lowered(session, "model", form, precision, final, dense, source)
            if record.facts.get("refused"):
                refused.append({"role": "model", "format": form, "precision": precision, **record.facts["refused"]})
            else:
                shown.append(record)
    return Files(shown=shown, refused=refused)


def _best_int8(
    session: Session, form: Format, final: StageRecord, aware: StageRecord, dense: StageRecord, source: StageRecord
) -> StageRecord:
    """Make int8 files of both trainings' weights, and keep the better one."""
    post = _lowered(session, "post", form, "int8", final, dense, source)
    trained = _lowered(session, "qat", form, "int8", aware, dense, _float(session, "qat", form, aware))
    return better_file(session, file_name("model", form, "int8"), post, trained)


def _float(session: Session, role: str, form: Format, final: StageRecord) -> StageRecord:
    """Make the float32 file of one network and format."""
    from edgeprune.export import export as write

    prepared = session.prepared
    config = prepared.config.export
    name = file_name(role, form, "fp32")
    told = _told(session, form)
    settings = {f"export.{k}": getattr(config, k) for k in ("dynamic_batch", "tolerance", "layout")} | told.key
    inputs = prepared.digests if role == "baseline" else prepared.digests | _weights_and_plan(session, final)
    key = StageKey(stage=f"export {name}", settings=settings, inputs=inputs)

    def work() -> tuple[tuple[str, ...], Json]:
        model, masks, metadata = _subject(session, role, final)
        exported = write(
            model,
            prepared.inputs,
            session.path(name),
            dynamic_batch=config.dynamic_batch,
            layout=config.layout,
            metadata=metadata,
            tolerance=config.tolerance,
            timeout_s=config.timeout_s,
            memory_limit_bytes=memory_limit(prepared.config),
            checks_inputs=true_samples(prepared.workload, prepared.inputs),
            **told.arguments,
        )
        facts = {
            "artifact": exported.artifact.as_dict() | {"path": name},
            "checks": [check.as_dict() for check in exported.checks],
            "notices": [
                notice.as_dict()
                for notice in (*exported.notices, *lost_zeros(session.path(name), masks), *told.notices)
            ],
        }
        return (name,), facts

    record = run_stage(session, key, work, subject=name)
    session.notices_of("export", record)
    return record


def _lowered(
    session: Session,
    role: str,
    form: Format,
    precision: Precision,
    final: StageRecord,
    dense: StageRecord,
    source: StageRecord,
) -> StageRecord:
    """Make one file of the pruned network from its float32 file; one that fails is recorded with the reason.

    Args:
        role: What the file's name begins with.
        dense: The float32 file of the dense network, whose metric says what int8 may cost.
        source: The float32 file of the pruned network.
    """
    from edgeprune.export import export as write

    prepared, name = session.prepared, file_name(role, form, precision)
    allowance = _allowance(session, dense, source) if precision == "int8" else None
    told = _told(session, form)
    key = _lowered_key(session, name, precision, source, allowance, told.key)

    def work() -> tuple[tuple[str, ...], Json]:
        config, calibration = prepared.config, None
        model, _, metadata = _subject(session, role, final)
        if precision == "int8":
            calibration = calibration_batches(prepared.workload, config.quantise, model, prepared.inputs)
        accept = allowance.accepts if allowance is not None else None
        exported = write(
            model,
            prepared.inputs,
            session.path(name),
            precision=precision,
            dynamic_batch=config.export.dynamic_batch,
            layout=config.export.layout,
            metadata=metadata,
            timeout_s=config.export.timeout_s,
            memory_limit_bytes=memory_limit(config),
            checks_inputs=true_samples(prepared.workload, prepared.inputs),
            calibration=calibration,
            quantisation=quantisation(config.quantise, session.listen, name, precision, accept),
            min_sqnr_db=config.export.min_sqnr_db,
            source=session.path(source.facts["artifact"]["path"]),
            **told.arguments,
        )
        facts = {
            "artifact": exported.artifact.as_dict() | {"path": name},
            "checks": [check.as_dict() for check in exported.checks],
            "quantisation": exported.quantisation,
            "notices": [notice.as_dict() for notice in (*exported.notices, *_exceeded(name, allowance))],
        }
        return (name,), facts

    def alike() -> tuple[tuple[str, ...], Json]:
        # Files that are compared are calibrated on the same samples, whatever their names.
        with seeded(prepared.config.seed, f"export {file_name('model', form, precision)}"):
            return work()

    record = run_stage(session, key, lambda: _or_reason(name, alike), subject=name)
    session.notices_of("export", record)
    return record


def _or_reason(name: str, work: Callable[[], tuple[tuple[str, ...], Json]]) -> tuple[tuple[str, ...], Json]:
    """Do the work, or return why the file cannot be: what the run has already is worth more than this one.

    What a converter fails at may succeed another time, so that is tried again by the same command; data that do not
    fit and a file that differs stay as they are.
    """
    try:
        return work()
    except (ConfigError, ModelError, VerificationError) as error:
        notice = Notice(code="refused", text=f"there is no {name}: {error.message}", fix=error.fix)
        facts: Json = {"refused": {"path": name, **error.as_dict()}, "notices": [notice.as_dict()]}
        return (), facts | ({"failed": error.message} if isinstance(error, ExportError) else {})


def _lowered_key(
    session: Session, name: str, precision: Precision, source: StageRecord, allowance: Allowance | None, told: Json
) -> StageKey:
    config, digests = session.prepared.config, session.prepared.digests
    settings: Json = {"export.min_sqnr_db": config.export.min_sqnr_db} | told
    inputs = {key: digests[key] for key in ("workload code", "example inputs")} | source.outputs
    if precision == "int8":
        found = config.quantise.model_dump(mode="json").items()
        settings |= {f"quantise.{key}": value for key, value in found if key != "calibration"} | {"seed": config.seed}
        inputs |= calibration_digest(config.quantise)
    if allowance is not None:
        settings |= {"max_drop": allowance.limit, f"{allowance.metric} of the dense network": allowance.dense}
    return StageKey(stage=f"export {name}", settings=settings, inputs=inputs)


def _allowance(session: Session, dense: StageRecord, source: StageRecord) -> Allowance | None:
    """Return what int8 may cost; None where nothing was allowed, or the dense file cannot be scored."""
    config = session.prepared.config
    scored = accuracy(session, dense) if config.max_drop is not None else None
    if scored is None or config.max_drop is None:
        return None
    metric = chosen_metric(tuple(scored.facts["metrics"]), config)
    if metric is None:
        return None
    return Allowance(
        workload=session.prepared.workload,
        metric=metric,
        dense=scored.facts["metrics"][metric],
        limit=config.max_drop,
        float_file=session.path(source.facts["artifact"]["path"]),
    )


def _exceeded(name: str, allowance: Allowance | None) -> tuple[Notice, ...]:
    if allowance is None or not allowance.exceeded:
        return ()
    text = (
        f"{name} was chosen by its SQNR alone: {allowance.float_file.name} loses more of {allowance.metric} than "
        f"max_drop = {allowance.limit:g} already"
    )
    return (Notice(code="nothing-left", text=text, fix="prune less (--ratio), or fine-tune longer"),)


def _subject(session: Session, role: str, final: StageRecord) -> tuple[nn.Module, Masks | None, dict[str, str]]:
    """Return a network of the run with its masks, if single weights were pruned, and what its files say of it."""
    prepared = session.prepared
    metadata = {"edgeprune": VERSION, "workload": prepared.name, "role": "model"}
    if role == "baseline":
        return prepared.model, None, metadata | {"role": role}
    metadata["plan"] = _weights_and_plan(session, final)["plan"]
    model, masks = network(session, weights_of(final)), load_masks(session.run.path)
    if masks is not None:
        masks.check(model)
        metadata["sparsity"] = f"{masks.sparsity:.4f}"
    return model, masks, metadata


def _weights_and_plan(session: Session, final: StageRecord) -> dict[str, str]:
    planned = session.run.last("plan")
    digest = planned.facts["digest"] if planned is not None else ""
    found = final.inputs | final.outputs
    masks = {name: value for name, value in found.items() if name in (rundir.MASKS, rundir.FINETUNED_MASKS)}
    weights = weights_of(final)
    return {"plan": digest, weights: final.outputs[weights]} | masks
