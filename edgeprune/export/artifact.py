"""From a network to a verified file under its final name.

Owns the order of the steps (prepare, convert, verify, rename) and what is left behind when one of them fails: nothing,
or a log, or the file with the suffix `.rejected`. Knows formats only by their suffix.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import ConfigError, ExportError, ResolveError, StorageError, VerificationError
from edgeprune.export import onnx as onnx_format
from edgeprune.export import tflite as tflite_format
from edgeprune.export.quiet import quiet
from edgeprune.export.record import Record, own_values
from edgeprune.values import Artifact, Check, Notice, Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.export.capture import Subject
    from edgeprune.export.opened import OpenArtifact

_PACKAGES = {".onnx": onnx_format.check_packages, ".tflite": tflite_format.check_packages}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A verified file, the checks it passed, and what the user should know about it."""

    artifact: Artifact
    checks: tuple[Check, ...]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    target: Path
    precision: Precision
    dynamic_batch: bool
    metadata: Mapping[str, str] | None
    tolerance: float
    timeout_s: float


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

    Raises:
        ConfigError: The suffix or the precision is unknown.
        MissingDependency: The format's converter is not installed.
        ModelError: The network cannot run on the inputs, or is not deterministic in evaluation mode.
        ExportError: It cannot be captured or converted; the converter's output is in PATH.log.
        VerificationError: The file differs from the network; it is left as PATH.rejected.
        StorageError: The disk is full or a file cannot be written; nothing is left behind.
    """
    target = Path(path)
    if target.suffix not in _PACKAGES:
        raise ConfigError(f"'{target}' is neither .onnx nor .tflite", fix="end the path in .onnx or .tflite")
    if precision != "fp32":
        raise ConfigError(f"precision '{precision}' is not supported", fix="use fp32")
    _PACKAGES[target.suffix]()
    task = _Task(
        target=target,
        precision=precision,
        dynamic_batch=dynamic_batch,
        metadata=metadata,
        tolerance=tolerance,
        timeout_s=timeout_s,
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
    from edgeprune.export.capture import prepare
    from edgeprune.export.difference import leave_verdict
    from edgeprune.export.limits import limits_of
    from edgeprune.export.opened import describe, open_artifact
    from edgeprune.export.verify import checked_inputs, require, verify_artifact

    target, log_path, made = task.target, work / "log", work / task.target.name
    examples = checked_inputs(inputs, more)
    with log_path.open("a", encoding="utf-8") as log, quiet(log):
        subject = prepare(model, inputs, [tuple(tensors) for tensors in more])
        try:
            notices = _convert(subject, task, made, log_path)
        except ExportError as error:
            traceback.print_exc(file=log)
            log.flush()
            kept = _keep(log_path, target.with_name(f"{target.name}.log"))
            if error.where is None:
                error.where = kept
            elif kept is not None:
                error.fix = error.fix or f"the converter's full output is in {kept}"
            raise
        rejected = target.with_name(f"{target.name}.rejected")
        limits = limits_of(task.precision, task.tolerance)
        opened: OpenArtifact | None = None
        checks: tuple[Check, ...] = ()
        try:
            opened = open_artifact(made, name=str(target))
            checks = verify_artifact(subject, opened, examples=examples, limits=limits, name=target.name)
            require(checks)
        except (VerificationError, ResolveError) as error:
            told = leave_verdict(target, subject, opened, examples=examples, limits=limits, checks=checks)
            os.replace(made, rejected)
            message = error.message.replace(str(made), str(target)) + told
            raise VerificationError(message, fix=error.fix, where=str(rejected)) from error
    artifact = describe(target, opened, made.read_bytes())
    _put_in_place(made, target)
    return Exported(artifact=artifact, checks=checks, notices=notices)


def _convert(subject: Subject, task: _Task, made: Path, log: Path) -> tuple[Notice, ...]:
    """Write the file under its temporary name, with a free batch where that is asked for and possible."""
    from edgeprune.export.capture import capture
    from edgeprune.export.rewrite import FOR_TFLITE

    free = task.dynamic_batch and task.target.suffix == ".onnx"
    reason = subject.reason
    if free and subject.batch is None:
        try:
            record = _record(subject, None, task)
            onnx_format.convert_to_onnx(capture(subject, dynamic=True), record, made)
        except ExportError as error:
            reason = error.message
        else:
            return ()
    batch = subject.batch or 1
    record = _record(subject, batch, task)
    if task.target.suffix == ".onnx":
        onnx_format.convert_to_onnx(capture(subject, dynamic=False), record, made)
    else:
        program = capture(subject, dynamic=False, rewrites=FOR_TFLITE)
        tflite_format.convert_to_tflite(program, record, made, timeout_s=task.timeout_s, log=log)
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
