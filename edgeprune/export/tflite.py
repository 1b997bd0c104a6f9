"""Convert a captured program to TFLite with litert-torch.

Owns the converter's process: time and memory limits, crash, log. Batches are fixed: the converter has no dynamic batch.
Everything about litert-torch is behind `convert_to_tflite`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from edgeprune.errors import ExportError, MissingDependency, StorageError
from edgeprune.export.litert_child import REFUSED_EXIT, STORAGE_EXIT
from edgeprune.export.record import Record, add_to_tflite

if TYPE_CHECKING:
    import torch

_CHILD = Path(__file__).with_name("litert_child.py")
_LOOK_EVERY_S = 0.05
_PIP = "pip install 'edgeprune[tflite]'"


def check_packages() -> None:
    """Check that the TFLite converter can run.

    Raises:
        MissingDependency: litert-torch is not installed.
    """
    from importlib.util import find_spec

    if find_spec("litert_torch") is None:
        raise MissingDependency("TFLite export needs litert-torch, which is not installed", fix=_PIP)


def convert_to_tflite(
    program: torch.export.ExportedProgram,
    record: Record,
    path: Path,
    *,
    timeout_s: float,
    memory_limit_bytes: int | None = None,
    log: Path,
) -> None:
    """Write a captured program of fixed shapes as a TFLite file.

    Args:
        path: Lies in a private folder, where the saved program goes too for the time of the conversion.
        memory_limit_bytes: Largest resident memory of the converter's process; None for any.
        log: What the converter says is appended to this file.

    Raises:
        ExportError: The converter failed, crashed, took longer than `timeout_s` or more memory than it may.
        StorageError, OSError: A file cannot be written.
    """
    saved = path.with_name("program.pt2")
    job = path.with_name("job.json")
    save_program(program, saved)
    raw = path.with_name("converted.tflite")
    names = {"inputs": [spec.name for spec in record.inputs], "outputs": [spec.name for spec in record.outputs]}
    job.write_text(json.dumps({"program": str(saved), "output": str(raw), **names}), encoding="utf-8")
    argv = [sys.executable, "-P", str(_CHILD), str(job)]
    _run_child(argv, timeout_s=timeout_s, memory_limit_bytes=memory_limit_bytes, log=log)
    saved.unlink()
    finish(raw, record, path)


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a captured program for the converter's process."""
    import torch

    # Through memory: when torch's own writer meets a full disk, it ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def finish(raw: Path, record: Record, path: Path) -> None:
    """Write what the converter made with its record, with names of edgeprune's own and with slices spelt out."""
    path.write_bytes(add_to_tflite(raw.read_bytes(), record))
    raw.unlink()


def _run_child(argv: list[str], *, timeout_s: float, memory_limit_bytes: int | None, log: Path) -> None:
    with log.open("ab") as output:
        # Standard input stays open while this process lives: its end tells the child to stop.
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=output, env=_environment(), start_new_session=True
        )
        try:
            code = _watched(child, timeout_s, memory_limit_bytes)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if child.stdin is not None:
                child.stdin.close()
    if code == 0:
        return
    last = _last_lines(log)
    if code == STORAGE_EXIT:
        raise StorageError(f"the converted file cannot be written: {last[-1]}", fix="free some disk space")
    if code < 0:
        reason = "; the memory may be used up" if -code == signal.SIGKILL else ""
        raise ExportError(f"litert-torch was ended by {signal.Signals(-code).name}{reason}: {' | '.join(last)}")
    if code == REFUSED_EXIT:
        raise ExportError(f"litert-torch cannot convert the network: {last[-1]}")
    raise ExportError(f"litert-torch ended with exit code {code}: {' | '.join(last)}")


def _watched(child: subprocess.Popen[bytes], timeout_s: float, memory_limit_bytes: int | None) -> int:
    """Wait for the converter, and give up when it takes too long or too much memory.

    Its memory is looked at from here: jax reserves far more addresses than it uses, so a limit of the operating system
    on those would end converters that fit.
    """
    watched = psutil.Process(child.pid)
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(min(_LOOK_EVERY_S, max(end - time.monotonic(), 0)))
        used = _resident_bytes(watched) if memory_limit_bytes is not None else 0
        if memory_limit_bytes is not None and used > memory_limit_bytes:
            raise ExportError(
                f"litert-torch took {used / 1e9:.2f} GB of memory, and may have {memory_limit_bytes / 1e9:g} GB",
                fix="raise export.memory_limit, prune more, or export .onnx",
            )
    raise ExportError(f"litert-torch took longer than {timeout_s:g} s", fix="raise export.timeout_s, or export .onnx")


def _resident_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and of those that it started."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    used = 0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            used += member.memory_info().rss
    return used


def _environment() -> dict[str, str]:
    """Return the child's environment: no GPU, and no warning settings that would turn its noise into errors."""
    quiet = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **quiet, "PYTHONWARNINGS": "ignore"}


def _last_lines(log: Path, count: int = 3) -> list[str]:
    """Return the last lines that say something, shortened."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    full = [line.strip()[:300] for line in lines if line.strip()]
    return full[-count:] or ["it said nothing"]
