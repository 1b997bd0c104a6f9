"""One file from one network: what `edgeprune export` does.

Owns what the command checks before any work, and the `.ort` files that come from `.onnx` ones. Files of runs are made
in `exporting`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeprune.config import RunConfig
from edgeprune.errors import ConfigError, StorageError
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.exporting import memory_limit, tflite_runtime_of
from edgeprune.pipeline.folders import Loaded, open_network
from edgeprune.pipeline.networks import stated_labels, stated_preprocessing, true_samples
from edgeprune.pipeline.prepare import check_format_packages, check_settings, check_target
from edgeprune.pipeline.quantising import calibration_batches, quantisation
from edgeprune.pipeline.sparsity import lost_zeros
from edgeprune.targets import find_target
from edgeprune.values import Format, Json, Notice
from edgeprune.version import VERSION

# What a file of each suffix is converted to first.
_FORMATS: dict[str, Format] = {".onnx": "onnx", ".ort": "onnx", ".tflite": "tflite"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What is told about a file: facts of its artifact, its checks, how it was quantised, notices."""

    artifact: Json
    checks: list[Json]
    quantisation: Json | None
    notices: tuple[Notice, ...]
    others: tuple[str, ...] = ()


def export(source: str, config: RunConfig, *, listen: Listener) -> Json:
    """Write a network as `.onnx`, `.tflite` or `.ort`, verified.

    Args:
        source: A folder of `prune`, a run, a workload, or a `.pt2` program.
        config: `output` is the file, its suffix the format; `weights` counts for a workload only. `target` says which
            files its runtimes take.

    Raises:
        ConfigError: The suffix is unknown, or the target cannot have such a file.
        VerificationError: The file differs from the network.
    """
    path = Path(config.output or "model.onnx")
    if path.suffix not in _FORMATS:
        raise ConfigError(f"'{path}' is none of .onnx, .tflite, .ort", fix="-o model.onnx or -o model.tflite")
    if len(config.export.precisions) != 1:
        found = ",".join(config.export.precisions)
        raise ConfigError(f"one file has one precision, and export.precisions has {found}", fix="--precision int8")
    check_settings(config)
    form, target = _FORMATS[path.suffix], find_target(config.target)
    check_target(config.export.precisions, form, target)
    check_format_packages((form,), config.export.precisions)
    python, unproved = tflite_runtime_of(target) if form == "tflite" else (None, ())
    loaded = open_network(source, weights=config.weights, trust_pickle=config.trust_pickle, seed=config.seed)
    listen(Event(stage="export", state="begin", subject=str(path)))
    written = (
        _ort(loaded, config, path, listen) if path.suffix == ".ort" else _file(loaded, config, path, listen, python)
    )
    notices = [*loaded.notices, *written.notices, *unproved]
    facts = {
        "artifact": written.artifact,
        "checks": written.checks,
        "quantisation": written.quantisation,
        "others": list(written.others),
        "notices": [notice.as_dict() for notice in notices],
    }
    listen(Event(stage="export", state="done", subject=str(path), facts=facts))
    for notice in notices:
        listen(Event(stage="export", state="notice", notice=notice))
    return facts


def _file(loaded: Loaded, config: RunConfig, path: Path, listen: Listener, python: str | None) -> _Written:
    """Write a `.onnx` or `.tflite` file."""
    from edgeprune.export import export as write
    from edgeprune.export.capture import input_names

    precision = config.export.precisions[0]
    calibration = None
    if precision == "int8":
        calibration = calibration_batches(loaded.workload, config.quantise, loaded.model, loaded.inputs)
    exported = write(
        loaded.model,
        loaded.inputs,
        path,
        precision=precision,
        dynamic_batch=config.export.dynamic_batch,
        metadata=_metadata(loaded),
        tolerance=config.export.tolerance,
        timeout_s=config.export.timeout_s,
        memory_limit_bytes=memory_limit(config),
        checks_inputs=true_samples(loaded.workload, loaded.inputs),
        calibration=calibration,
        quantisation=quantisation(config.quantise, listen, str(path), precision),
        min_sqnr_db=config.export.min_sqnr_db,
        layout=config.export.layout,
        labels=stated_labels(loaded.workload),
        preprocessing=stated_preprocessing(loaded.workload, input_names(loaded.model, len(loaded.inputs))),
        tflite_python=python,
    )
    # Integers are no floating-point zeros, and what was small may become one.
    masks = loaded.masks if precision == "fp32" else None
    return _Written(
        artifact=exported.artifact.as_dict(),
        checks=[check.as_dict() for check in exported.checks],
        quantisation=exported.quantisation,
        notices=(*exported.notices, *lost_zeros(path, masks)),
    )


def _ort(loaded: Loaded, config: RunConfig, path: Path, listen: Listener) -> _Written:
    """Write a `.ort` file from a verified `.onnx` file, and beside it the operators that a reduced build needs."""
    from edgeprune.export import read_artifact
    from edgeprune.export.ort import to_ort

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
            source = Path(folder) / f"{path.stem}.onnx"
            written = _file(loaded, config, source, listen, None)
            made, operators = to_ort(source, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}", fix="free some disk space, or write elsewhere") from error
    return _Written(
        artifact=read_artifact(made).as_dict(),
        checks=written.checks,
        quantisation=written.quantisation,
        notices=written.notices,
        others=(str(operators),),
    )


def _metadata(loaded: Loaded) -> dict[str, str]:
    metadata = {"edgeprune": VERSION, "workload": loaded.name, "role": "baseline" if loaded.plan is None else "model"}
    if loaded.plan is not None:
        metadata["plan"] = loaded.plan.digest
    if loaded.masks is not None:
        loaded.masks.check(loaded.model)
        metadata["sparsity"] = f"{loaded.masks.sparsity:.4f}"
    return metadata
