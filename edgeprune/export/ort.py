"""ONNX Runtime's own format for mobile builds: a `.onnx` file, optimised offline, as a `.ort` file.

Owns the conversion, the operator configuration that a reduced build needs, and the proof that both files compute the
same. Optimisations that fit only the processor of this machine are left out at every level.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.devices.agent import OnnxFile
from edgeprune.errors import ConfigError, ExportError, StorageError, VerificationError
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.export.quiet import silent_stderr
from edgeprune.values import TensorSpec

if TYPE_CHECKING:
    import numpy as np

Level = Literal["basic", "extended", "all"]
SUFFIX, CONFIG_SUFFIX = ".ort", ".required_operators.config"
_LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
# It lays convolutions out for the vector registers of the machine that converts.
_HERE_ONLY = ["NchwcTransformer"]
_OPTIONS = {
    "session.save_model_format": "ORT",
    # As on ARM: without it, a conversion on x86 replaces int8 activations by uint8 ones.
    "session.qdqisint8allowed": "1",
}
_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
_QUANTISED_TOLERANCE = 5e-2
_SAMPLES = 3


def to_ort(
    onnx_path: Path, ort_path: Path, *, level: Level = "extended", tolerance: float | None = None
) -> tuple[Path, Path]:
    """Write a `.onnx` file as `.ort`, proved equal to it, and the operators that a reduced build needs beside it.

    Args:
        level: What is optimised: `basic` keeps the operators of ONNX, for NNAPI and Core ML too; `extended` fuses them
            into operators of ONNX Runtime's own, for its CPU; `all` also changes the layout of quantised ones.
        tolerance: Largest difference, relative to the largest output value; by default after the file's precision.

    Returns:
        The `.ort` file, and the `.required_operators.config` file.

    Raises:
        ConfigError: A suffix or the level is wrong.
        ResolveError: The `.onnx` file cannot be read.
        ExportError: ONNX Runtime cannot convert it.
        VerificationError: Both files differ; the new one is left as PATH.rejected.
        StorageError: A file cannot be written; nothing is left behind.
    """
    if ort_path.suffix != SUFFIX:
        raise ConfigError(f"'{ort_path}' does not end in .ort", fix="-o model.ort")
    if onnx_path.suffix != ".onnx":
        raise ConfigError(f"{onnx_path} is not an .onnx file", fix="export .onnx first, then .ort from it")
    if level not in _LEVELS:
        raise ConfigError(f"level '{level}' is not known", fix=f"use one of {', '.join(_LEVELS)}")
    opened = open_artifact(onnx_path)
    config_path = ort_path.with_name(ort_path.stem + CONFIG_SUFFIX)
    try:
        ort_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{ort_path.name}.", suffix=".tmp", dir=ort_path.parent) as work:
            made = Path(work) / ort_path.name
            _convert(onnx_path, made, level)
            config = _operators(made)
            try:
                _compare(opened, made, tolerance)
            except VerificationError as error:
                rejected = ort_path.with_name(f"{ort_path.name}.rejected")
                os.replace(made, rejected)
                error.where = str(rejected)
                raise
            _replace(config, config_path)
            _replace(made, ort_path)
    except OSError as error:
        raise StorageError(
            f"cannot write {ort_path}: {error.strerror or error}", fix="free some disk space, or write elsewhere"
        ) from error
    ort_path.with_name(f"{ort_path.name}.rejected").unlink(missing_ok=True)
    return ort_path, config_path


def _convert(source: Path, target: Path, level: Level) -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in _OPTIONS.items():
        options.add_session_config_entry(key, value)
    refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    try:
        with silent_stderr():
            onnxruntime.InferenceSession(
                str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=_HERE_ONLY
            )
    except refusals as error:
        text = " ".join(str(error).split())[:300]
        if "Failed to save ORT format model" in text:
            raise OSError(errno.EIO, "ONNX Runtime could not write the whole file") from error
        raise ExportError(f"ONNX Runtime cannot write {source.name} as .ort: {text}") from error
    if not target.is_file() or target.read_bytes()[4:8] != b"ORTM":
        raise ExportError(f"ONNX Runtime wrote no .ort file from {source.name}")


def _operators(made: Path) -> Path:
    """Write the operators and types of a `.ort` file as ONNX Runtime's build takes them, and return the path."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    config = made.with_name(made.stem + CONFIG_SUFFIX)
    logger = logging.getLogger("ort_format_model.utils")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        create_config_from_models([made], config, True)
    finally:
        logger.setLevel(before)
    # The folder of this machine is nobody's business.
    config.write_text(config.read_text(encoding="utf-8").replace(str(made), made.name), encoding="utf-8")
    return config


def _compare(opened: OpenArtifact, made: Path, tolerance: float | None) -> None:
    """Compare the outputs of both files on random inputs and on zeros."""
    import numpy as np

    precision = opened.record.values.get("precision", "fp32") if opened.record is not None else "fp32"
    limit = tolerance if tolerance is not None else _TOLERANCES.get(precision, _QUANTISED_TOLERANCE)
    with silent_stderr():
        other = OpenArtifact(made, opened.record, OnnxFile(str(made), 1), made.name)
    for seed in range(_SAMPLES):
        inputs = [_values(spec, opened.batch or 1, seed) for spec in opened.inputs]
        for spec, wanted, found in zip(opened.outputs, opened.run(inputs), other.run(inputs), strict=True):
            wide = wanted.astype(np.float64)
            largest = np.abs(wide).max(initial=1e-6)
            difference = float(np.abs(found - wide).max(initial=0) / largest) if found.shape == wide.shape else np.inf
            if not difference <= limit:
                raise VerificationError(
                    f"{made.name} differs from {opened.path.name} on '{spec.name}': relative {difference:.1e}, "
                    f"limit {limit:.0e}",
                    fix="level basic changes less; the .onnx file itself is right",
                )


def _values(spec: TensorSpec, batch: int, seed: int) -> np.ndarray[Any, Any]:
    """Return random values in an input's range; the last sample is zeros, or the lowest of integers."""
    import numpy as np

    shape = [batch if size is None else size for size in spec.shape]
    random = np.random.default_rng(seed)
    if spec.dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if np.issubdtype(np.dtype(spec.dtype), np.integer):
        low, high = int(spec.low), int(spec.high)
        return random.integers(low, low + 1 if seed == _SAMPLES - 1 else high + 1, shape).astype(spec.dtype)
    values = random.uniform(spec.low, spec.high, shape) if seed < _SAMPLES - 1 else np.zeros(shape)
    return np.asarray(values, dtype=spec.dtype)


def _replace(made: Path, target: Path) -> None:
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, target)
