"""Convert a captured program to TFLite with litert-torch.

Owns the converter's process (time limit, crash, log) and the rewrite of what it cannot convert. Batches are fixed,
because the converter has no dynamic batch. Everything about litert-torch is behind `convert_to_tflite`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError, MissingDependency, StorageError
from edgeprune.export.litert_child import STORAGE_EXIT
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
    program = without_output_padding(program)
    try:
        with saved.open("wb") as file:
            torch.export.save(program, file)
    except RuntimeError as error:
        raise StorageError(f"cannot write {saved.parent}: {error}", fix="free some disk space") from error
    raw = path.with_name("converted.tflite")
    names = {"inputs": [spec.name for spec in record.inputs], "outputs": [spec.name for spec in record.outputs]}
    job.write_text(json.dumps({"program": str(saved), "output": str(raw), **names}), encoding="utf-8")
    _run_child([sys.executable, "-P", str(_CHILD), str(job)], timeout_s=timeout_s, log=log)
    saved.unlink()
    path.write_bytes(add_to_tflite(raw.read_bytes(), record))


def without_output_padding(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with transposed convolutions that have an output padding written as convolution and crop.

    The converter refuses output padding. Without padding a transposed convolution gives every position that its
    inputs reach; the wanted output is a window of that, and positions beyond it hold the bias alone.
    """
    import torch

    network: Any = program.module(check_guards=False)
    found = [node for node in network.graph.nodes if _has_output_padding(node)]
    if not found:
        return program
    for node in found:
        _rewrite_(network.graph, node)
    network.recompile()
    assert program.example_inputs is not None
    with torch.no_grad():
        return torch.export.export(network, program.example_inputs[0])


def _transposed_convolutions() -> dict[Any, int]:
    import torch

    aten = torch.ops.aten
    return {aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3}


def _arguments(node: Any) -> tuple[Any, ...]:
    """Return input, weight, bias, stride, padding, output_padding, groups, dilation of a transposed convolution."""
    defaults = (None, None, None, [1], [0], [0], 1, [1])
    return (*node.args, *defaults[len(node.args) :])


def _has_output_padding(node: Any) -> bool:
    return node.op == "call_function" and node.target in _transposed_convolutions() and any(_arguments(node)[5])


def _rewrite_(graph: Any, node: Any) -> None:
    import torch

    aten = torch.ops.aten
    dims = _transposed_convolutions()[node.target]
    source, weight, bias, stride, padding, extra, groups, dilation = _arguments(node)
    padding, extra = [(list(value) * dims)[:dims] for value in (padding, extra)]
    beyond = [max(more - pad, 0) for more, pad in zip(extra, padding, strict=True)]
    sizes = [int(size) for size in node.meta["val"].shape[-dims:]]
    with graph.inserting_before(node):
        inner_bias = None if any(beyond) else bias
        zeros = [0] * dims
        value = graph.call_function(node.target, (source, weight, inner_bias, stride, zeros, zeros, groups, dilation))
        if any(beyond):
            pads = [amount for more in reversed(beyond) for amount in (0, more)]
            value = graph.call_function(aten.constant_pad_nd.default, (value, pads, 0.0))
        for index in range(dims):
            start = padding[index]
            value = graph.call_function(aten.slice.Tensor, (value, index - dims, start, start + sizes[index]))
        if any(beyond) and bias is not None:
            column = graph.call_function(aten.view.default, (bias, [-1] + [1] * dims))
            value = graph.call_function(aten.add.Tensor, (value, column))
    node.replace_all_uses_with(value)
    graph.erase_node(node)


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
    raise ExportError(f"litert-torch cannot convert the network: {' | '.join(last)}")


def _environment() -> dict[str, str]:
    """Return the child's environment: no GPU, and no warning settings that would turn its noise into errors."""
    quiet = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **quiet, "PYTHONWARNINGS": "ignore"}


def _last_lines(log: Path, count: int = 3) -> list[str]:
    """Return the last lines that say something, shortened."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    full = [line.strip()[:300] for line in lines if line.strip()]
    return full[-count:] or ["it said nothing"]
