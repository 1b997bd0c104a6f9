"""A .tflite file in tflite-runtime 2.14, against the same file in ai-edge-litert.

Owns the way into the interpreter where tflite-runtime lives: it needs numpy below 2 and Python below 3.12, so it cannot
be imported here. Which interpreter that is, is said by `targets.tflite_runtime_python`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.devices.device import Device
from edgeprune.devices.local import LocalTransport
from edgeprune.errors import ConfigError
from edgeprune.export.feeds import input_sets
from edgeprune.export.limits import Limits, limits_of, reference_limits
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.export.verify import Side, compare, file_side
from edgeprune.targets import find_target
from edgeprune.values import Check, Json

if TYPE_CHECKING:
    from torch import Tensor

_PIP = "python3.11 -m venv FOLDER; FOLDER/bin/pip install tflite-runtime==2.14.0 'numpy<2'"


class _Remote:
    """A file that runs in another interpreter, with the names and shapes that it has in this one."""

    name, package = "tflite", "tflite_runtime"

    def __init__(self, opened: OpenArtifact, python: str, version: str) -> None:
        self.version = version
        self.inputs, self.outputs = opened.infos()
        self._path = opened.path
        self._device = _device(python)

    def run_each(self, feeds: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        """Return the outputs of all runs, made one after the other in one process."""
        return self._device.outputs(self._path, feeds)


def verify_in_tflite_runtime(
    path: Path,
    *,
    examples: Sequence[Sequence[Tensor | np.ndarray]],
    python: str,
    name: str | None = None,
    limits: Limits | None = None,
) -> tuple[Check, ...]:
    """Compare a .tflite file in tflite-runtime with the same file in ai-edge-litert, on user and random inputs.

    A float32 file has to agree as it does with its network; others by the decibels that kernels of one file owe each
    other, so that "wrong without an error" is found.

    Args:
        examples: The user's inputs, batch first, in the network's order and layout.
        python: An interpreter with tflite-runtime, from `targets.tflite_runtime_python`.
        name: What the file is called in the checks.
        limits: Those of the file's precision; by default of the precision in its record.

    Raises:
        ConfigError: That interpreter has no tflite-runtime.
        VerificationError: tflite-runtime cannot open or run the file.
    """
    name = name or path.name
    opened = open_artifact(path, name=name)
    version = _version(python)
    other = opened.in_runtime(_Remote(opened, python, version), name)
    arrays = [[_array(value) for value in values] for values in examples]
    sets = input_sets(opened.inputs, arrays, opened.batch, edges=False)
    reference = file_side(opened, f"itself in {opened.runtime}")
    remote = Side(run_each=other.run_each, outputs=other.outputs, batch=other.batch, label=f"{name} in {other.runtime}")
    return compare(reference, remote, sets, reference_limits(limits or limits_of(opened.precision)))


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    from edgeprune.export.capture import to_array

    return to_array(value)


def _device(python: str) -> Device:
    return Device(find_target("host"), LocalTransport(), python=python)


@functools.cache
def _version(python: str) -> str:
    """Return the version of tflite-runtime that an interpreter has."""
    runtimes = _device(python).facts()["runtimes"] or []
    found: Json = next((runtime for runtime in runtimes if runtime["name"] == "tflite"), {})
    if found.get("package") != "tflite_runtime":
        reason = found.get("error") or f"its TFLite runtime is {found.get('package')}"
        raise ConfigError(f"{python} has no tflite-runtime: {reason}", fix=_PIP)
    return str(found["version"])
