"""From a network to a verified file under its final name.

Owns the order of the steps (prepare, convert, verify, rename) and what is left behind when one of them fails: nothing,
or a log, or the file with the suffix `.rejected`. Knows formats only by their suffix.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgeprune.errors import ConfigError, ExportError, ResolveError, StorageError, VerificationError
from edgeprune.export import onnx as onnx_format
from edgeprune.export import tflite as tflite_format
from edgeprune.export.quiet import quiet
from edgeprune.export.record import Record, own_values, read_record
from edgeprune.quantise import Quantisation
from edgeprune.values import LAYOUTS, PRECISIONS, Artifact, Check, Json, Layout, Notice, Precision

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from edgeprune.export.capture import Subject
    from edgeprune.export.opened import OpenArtifact
    from edgeprune.export.precision import Lowered
    from edgeprune.export.rewrite import Rewrite
    from edgeprune.preprocessing import Preprocessing

_PACKAGES = {".onnx": onnx_format.check_packages, ".tflite": tflite_format.check_packages}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A verified file, the checks it passed, how it was quantised if it was, and what the user should know about it."""

    artifact: Artifact
    checks: tuple[Check, ...]
    quantisation: Json | None = None
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    target: Path
    precision: Precision
    dynamic_batch: bool
    metadata: Mapping[str, str] | None
    tolerance: float
    timeout_s: float
    min_sqnr_db: float | None
    calibration: Iterable[Any] | None
    quantisation: Quantisation
    source: Path | None
    layout: Layout
    labels: Sequence[str]
    preprocessing: Mapping[str, Preprocessing]
    tflite_python: str | None
    memory_limit_bytes: int | None


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
    timeout_s: float = 900,
    checks_inputs: Sequence[tuple[Tensor, ...]] = (),
    calibration: Iterable[Any] | None = None,
    quantisation: Quantisation | None = None,
    min_sqnr_db: float | None = None,
    source: str | Path | None = None,
    layout: Layout = "nchw",
    labels: Sequence[str] = (),
    preprocessing: Mapping[str, Preprocessing] | None = None,
    tflite_python: str | None = None,
    memory_limit_bytes: int | None = None,
) -> Exported:
    """Write a network as a file that was proved equal to it.

    The network is copied and exported in evaluation mode; it is never changed. A `.tflite` file has a fixed batch of 1
    (or the example's, where the network takes no other); an `.onnx` file takes any batch where the network does.

    Args:
        inputs: Example tensors, batch first.
        path: Its suffix, `.onnx` or `.tflite`, decides the format. The folder is made where it is missing.
        metadata: Entries for the record inside the file, such as the plan's digest.
        tolerance: Largest accepted difference, relative to the largest output value.
        timeout_s: Limit for the TFLite converter's process.
        checks_inputs: Further inputs to compare on.
        calibration: Batches of inputs, labels allowed; `int8` needs them.
        quantisation: How int8 ranges are chosen, and which operators may stay in float32.
        min_sqnr_db: Least signal-to-quantisation-noise ratio of a file that is not float32; by default that of its
            precision.
        layout: `nhwc` puts the channels of all 4-D inputs and outputs of the file last.
        source: The verified float32 file of the same network and format, if there is one: saves a conversion.
        labels: Names of the places of an output, for the description in the file.
        preprocessing: How raw data become inputs, by their names, for the description in the file.
        tflite_python: An interpreter with tflite-runtime; a `.tflite` file is verified in that too.
        memory_limit_bytes: Largest resident memory of the TFLite converter's process.

    Raises:
        ConfigError: The suffix or the precision is unknown, or int8 has no calibration data.
        MissingDependency: The format's converter is not installed.
        ModelError: The network cannot run on the inputs, or is not deterministic in evaluation mode.
        ExportError: It cannot be captured or converted; the converter's output is in PATH.log.
        VerificationError: The file differs from the network; it is left as PATH.rejected.
        StorageError: The disk is full or a file cannot be written; nothing is left behind.
    """
    target = Path(path)
    if target.suffix not in _PACKAGES:
        raise ConfigError(f"'{target}' is neither .onnx nor .tflite", fix="end the path in .onnx or .tflite")
    if precision not in PRECISIONS:
        near = difflib.get_close_matches(precision, PRECISIONS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"precision '{precision}' is not known{hint}", fix=f"one of {', '.join(PRECISIONS)}")
    if layout not in LAYOUTS:
        raise ConfigError(f"layout '{layout}' is not known", fix=f"one of {', '.join(LAYOUTS)}")
    quantisation = quantisation or Quantisation()
    if quantisation.io != "float32" and precision != "int8":
        text = f"{precision} files have float32 inputs and outputs, not {quantisation.io}"
        raise ConfigError(text, fix="--io float32, or --precision int8")
    _PACKAGES[target.suffix]()
    task = _Task(
        target=target,
        precision=precision,
        dynamic_batch=dynamic_batch,
        metadata=metadata,
        tolerance=tolerance,
        timeout_s=timeout_s,
        min_sqnr_db=min_sqnr_db,
        calibration=calibration,
        quantisation=quantisation,
        source=Path(source) if source is not None else None,
        layout=layout,
        labels=labels,
        preprocessing=preprocessing or {},
        tflite_python=tflite_python,
        memory_limit_bytes=memory_limit_bytes,
    )
    try:
        with _work_folder(target) as work:
            return _export(model, inputs, checks_inputs, task, work)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {target}: {reason}", fix="free some disk space, or write elsewhere"
        ) from error


def _export(
    model: nn.Module, inputs: Sequence[Tensor], more: Sequence[tuple[Tensor, ...]], task: _Task, work: Path
) -> Exported:
    from edgeprune.export.calibration import judged_on
    from edgeprune.export.capture import prepare
    from edgeprune.export.description import labelled_output
    from edgeprune.export.opened import describe
    from edgeprune.export.verify import checked_inputs

    target, log_path, made = task.target, work / "log", work / task.target.name
    examples = checked_inputs(inputs, more)
    facts = None
    with log_path.open("a", encoding="utf-8") as log, quiet(log):
        subject = prepare(model, inputs, [tuple(tensors) for tensors in more])
        if task.labels:
            labelled_output(subject.outputs, task.labels)  # a mistake here should not cost a conversion
        with _logged(target, log_path, log):
            float_file, notices = _float_file(subject, examples, task, made, log_path)
            if task.precision != "fp32":
                lowered = _lowered(subject, task, float_file, made, log_path)
                made.write_bytes(lowered.content)
                facts, notices = lowered.facts, (*notices, *lowered.notices)
                if lowered.samples:
                    examples, told = judged_on(lowered.samples, inputs, more, subject.inputs)
                    notices += told
            _describe_(made, task)
        opened, checks = _verified(subject, examples, task, made, task.precision)
    artifact = describe(target, opened, made.read_bytes())
    _put_in_place(made, target)
    return Exported(artifact=artifact, checks=checks, quantisation=facts, notices=notices)


def _float_file(
    subject: Subject, examples: Sequence[Sequence[Tensor]], task: _Task, made: Path, log_path: Path
) -> tuple[Path, tuple[Notice, ...]]:
    """Return a float32 file of the network: the one that is there already, or one that is converted now.

    A file that other precisions come from is verified like any other, so that they are not blamed for its faults.
    """
    if task.precision == "fp32":
        return made, _convert(subject, task, made, log_path)
    if task.source is not None:
        return task.source, ()
    made = made.with_name(f"float32{made.suffix}")
    notices = _convert(subject, task, made, log_path)
    _verified(subject, examples, task, made, "fp32")
    return made, notices


def _lowered(subject: Subject, task: _Task, float_file: Path, made: Path, log_path: Path) -> Lowered:
    """Return a float32 file in another precision."""
    import torch

    from edgeprune.export.capture import channels_last
    from edgeprune.export.equalise import asymmetric, rewrite_equalised, symmetric
    from edgeprune.export.precision import lower

    known = read_record(float_file)
    record = _record(subject, known.batch if known is not None else subject.batch, task)
    # The quantisers write candidates beside the file that they read: those belong into the private folder.
    source = made.with_name(f"float32{made.suffix}")
    if float_file != source:
        shutil.copyfile(float_file, source)

    def equalised(samples: Sequence[Sequence[np.ndarray]]) -> Path:
        rounded = asymmetric if made.suffix == ".onnx" else symmetric
        tensors = [tuple(torch.from_numpy(array) for array in sample) for sample in samples]
        if task.layout == "nhwc":
            tensors = [channels_last(sample) for sample in tensors]
        other = made.with_name(f"equalised{made.suffix}")
        _convert(subject, task, other, log_path, (rewrite_equalised(tensors, rounded),))
        return other

    return lower(
        source,
        record,
        subject,
        task.precision,
        calibration=task.calibration,
        settings=task.quantisation,
        equalised=equalised,
        name=task.target.name,
    )


def _describe_(made: Path, task: _Task) -> None:
    """Write what model viewers show into a file."""
    from edgeprune.export.description import describe_record
    from edgeprune.export.metadata import describe_file

    try:
        record = read_record(made)
    except ResolveError:  # verification says what is wrong with it
        return
    if record is None:
        return
    name = record.values.get("workload", task.target.name.partition(".")[0])
    description = describe_record(record, name=name, preprocessing=task.preprocessing, labels=task.labels)
    made.write_bytes(describe_file(made.read_bytes(), made.suffix, description))


def _verified(
    subject: Subject, examples: Sequence[Sequence[Tensor]], task: _Task, made: Path, precision: Precision
) -> tuple[OpenArtifact, tuple[Check, ...]]:
    """Open a file and compare it with the network; one that fails is left as TARGET.rejected."""
    from edgeprune.export.difference import leave_verdict
    from edgeprune.export.limits import limits_of
    from edgeprune.export.opened import open_artifact
    from edgeprune.export.tflite_runtime import verify_in_tflite_runtime
    from edgeprune.export.verify import require, verify_artifact

    target = task.target
    limits = limits_of(precision, task.tolerance, task.min_sqnr_db if precision != "fp32" else None)
    opened: OpenArtifact | None = None
    checks: tuple[Check, ...] = ()
    try:
        opened = open_artifact(made, name=str(target))
        checks = verify_artifact(subject, opened, examples=examples, limits=limits, name=target.name)
        if task.tflite_python is not None and target.suffix == ".tflite" and precision == task.precision:
            checks += verify_in_tflite_runtime(
                made, examples=examples, python=task.tflite_python, name=target.name, limits=limits
            )
        require(checks)
    except (VerificationError, ResolveError) as error:
        rejected = target.with_name(f"{target.name}.rejected")
        told = leave_verdict(target, subject, opened, examples=examples, limits=limits, checks=checks)
        os.replace(made, rejected)
        message = error.message.replace(str(made), str(target)) + told
        raise VerificationError(message, fix=error.fix, where=str(rejected)) from error
    return opened, checks


@contextlib.contextmanager
def _logged(target: Path, log_path: Path, log: TextIO) -> Iterator[None]:
    """Keep the log beside the target where a converter fails, and say so."""
    try:
        yield
    except ExportError as error:
        traceback.print_exc(file=log)
        log.flush()
        kept = _keep(log_path, target.with_name(f"{target.name}.log"))
        if error.where is None:
            error.where = kept
        elif kept is not None:
            error.fix = error.fix or f"the converter's full output is in {kept}"
        raise


def _convert(
    subject: Subject, task: _Task, made: Path, log: Path, further: Sequence[Rewrite] = ()
) -> tuple[Notice, ...]:
    """Write the file under its temporary name, with a free batch where that is asked for and possible."""
    from edgeprune.export.capture import capture
    from edgeprune.export.equalise import fold_norms_
    from edgeprune.export.rewrite import FOR_ALL, FOR_TFLITE

    free = task.dynamic_batch and task.target.suffix == ".onnx"
    reason = subject.reason
    rewrites = (*(FOR_ALL if task.target.suffix == ".onnx" else (*FOR_TFLITE, fold_norms_)), *further)
    if free and subject.batch is None:
        try:
            program = capture(subject, dynamic=True, rewrites=rewrites, layout=task.layout)
            onnx_format.convert_to_onnx(program, _record(subject, None, task), made)
        except ExportError as error:
            reason = error.message
        else:
            return ()
    batch = subject.batch or 1
    record = _record(subject, batch, task)
    program = capture(subject, dynamic=False, rewrites=rewrites, layout=task.layout)
    if task.target.suffix == ".onnx":
        onnx_format.convert_to_onnx(program, record, made)
    else:
        tflite_format.convert_to_tflite(
            program, record, made, timeout_s=task.timeout_s, memory_limit_bytes=task.memory_limit_bytes, log=log
        )
    if free or batch != 1:
        text = f"{task.target.name} takes batches of exactly {batch}: {reason}"
        return (Notice(code="fixed-batch", text=text),)
    return ()


def _record(subject: Subject, batch: int | None, task: _Task) -> Record:
    return Record(
        inputs=subject.inputs,
        outputs=subject.outputs,
        structure=subject.structure,
        batch=batch,
        values=own_values(task.precision, task.metadata),
        layout=task.layout,
    )


@contextlib.contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Give a private folder beside the target, gone at the end, and clear those of processes that were killed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        if not _alive(left.name.split(".")[-3]):
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".tmp", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep(log: Path, kept: Path) -> str | None:
    """Move the log beside the target; None when even that cannot be written."""
    try:
        os.replace(log, kept)
    except OSError:
        return None
    return str(kept)


def _put_in_place(made: Path, target: Path) -> None:
    """Give a verified file its final name, safe against a power cut, and drop what earlier failures left."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    for suffix in (".rejected", ".log", ".verify.json"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
