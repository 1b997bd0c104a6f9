"""Convert a captured program to TFLite with litert-torch.

Owns the converter's process: time limit, crash, log. Batches are fixed, because the converter has no dynamic batch.
Everything about litert-torch is behind `convert_to_tflite`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import ExportError, MissingDependency, StorageError
from edgeprune.export.litert_child import REFUSED_EXIT, STORAGE_EXIT
from edgeprune.export.record import Record, add_to_tflite

if TYPE_CHECKING:
    import torch

_CHILD = Path(__file__).with_name("litert_child.py")
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
    program: torch.export.ExportedProgram, record: Record, path: Path, *, timeout_s: float, log: Path
) -> None:
    """Write a captured program of fixed shapes as a TFLite file.

    Args:
        path: Lies in a private folder, where the saved program goes too for the time of the conversion.
        log: What the converter says is appended to this file.

    Raises:
        ExportError: The converter failed, crashed or took longer than `timeout_s`.
        StorageError, OSError: A file cannot be written.
    """
    import torch

    saved = path.with_name("program.pt2")
    job = path.with_name("job.json")
    # Through memory: when torch's own writer meets a full disk, it ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content)
    saved.write_bytes(content.getbuffer())
    raw = path.with_name("converted.tflite")
    names = {"inputs": [spec.name for spec in record.inputs], "outputs": [spec.name for spec in record.outputs]}
    job.write_text(json.dumps({"program": str(saved), "output": str(raw), **names}), encoding="utf-8")
    _run_child([sys.executable, "-P", str(_CHILD), str(job)], timeout_s=timeout_s, log=log)
    saved.unlink()
    path.write_bytes(add_to_tflite(raw.read_bytes(), record))


def _run_child(argv: list[str], *, timeout_s: float, log: Path) -> None:
    with log.open("ab") as output:
        # Standard input stays open while this process lives: its end tells the child to stop.
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=output, env=_environment(), start_new_session=True
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"litert-torch took longer than {timeout_s:g} s", fix="raise export.timeout_s, or export .onnx"
            ) from error
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


def _environment() -> dict[str, str]:
    """Return the child's environment: no GPU, and no warning settings that would turn its noise into errors."""
    quiet = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **quiet, "PYTHONWARNINGS": "ignore"}


def _last_lines(log: Path, count: int = 3) -> list[str]:
    """Return the last lines that say something, shortened."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    full = [line.strip()[:300] for line in lines if line.strip()]
    return full[-count:] or ["it said nothing"]
