"""An artifact open in its runtime, together with its record.

Owns the differences between a file and the network it came from: names in order, 64-bit integers that a runtime takes
as 32-bit ones, and a batch that the file fixes. Runs files through `devices.agent` and never imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices.agent import AgentError, open_runtime
from edgeprune.errors import MissingDependency, ModelError, ResolveError, VerificationError
from edgeprune.export.quiet import silent_stderr
from edgeprune.export.record import Record, read_record
from edgeprune.values import PRECISIONS, Artifact, Format, Precision, TensorSpec

_FORMATS: dict[str, Format] = {".onnx": "onnx", ".tflite": "tflite"}


class OpenArtifact:
    """A `.onnx` or `.tflite` file, ready to run.

    `inputs` and `outputs` have None where the batch is. `batch` is the size that the file fixes, or None.
    """

    def __init__(self, path: Path, record: Record | None, runtime: Any, name: str) -> None:
        self.path = path
        self._name = name
        self.record = record
        self._runtime = runtime
        self._in = _order(runtime.inputs, record.inputs if record else None)
        self._out = _order(runtime.outputs, record.outputs if record else None)
        file_inputs = [runtime.inputs[index] for index in self._in]
        if record is not None and len(record.inputs) == len(file_inputs):
            self.inputs, self.batch = record.inputs, record.batch
            self.outputs = record.outputs
        else:
            self.batch = _fixed_batch(file_inputs)
            self.inputs = tuple(_spec(info, self.batch) for info in file_inputs)
            self.outputs = tuple(_spec(runtime.outputs[index], None) for index in self._out)
        self._dtypes = [dtype for _, _, dtype in file_inputs]

    def file_specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs as the file has them: its dtypes, and its own batch where it is fixed."""
        inputs = tuple(
            _merged(spec, self._runtime.inputs[index]) for spec, index in zip(self.inputs, self._in, strict=True)
        )
        outputs = tuple(
            _merged(spec, self._runtime.outputs[index]) for spec, index in zip(self.outputs, self._out, strict=True)
        )
        return inputs, outputs

    def feeds(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the file's inputs by the names that its runtime has for them, in its dtypes."""
        return {
            self._runtime.inputs[position][0]: np.asarray(array, dtype=dtype)
            for position, array, dtype in zip(self._in, arrays, self._dtypes, strict=True)
        }

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs of exactly the file's batch, in the network's order.

        Raises:
            VerificationError: The runtime refuses the inputs or fails.
        """
        if len(arrays) != len(self._in):
            raise VerificationError(f"{len(arrays)} inputs given, {self._name} has {len(self._in)}")
        fed: list[Any] = [None] * len(arrays)
        for position, array, dtype in zip(self._in, arrays, self._dtypes, strict=True):
            fed[position] = np.asarray(array, dtype=dtype)
        try:
            results = self._runtime.run(fed)
        except Exception as error:  # runtimes raise many kinds; the file cannot be run, whatever the kind
            raise VerificationError(
                f"{self._name} fails in {self._runtime.name} {self._runtime.version}: {_one_line(error)}"
            ) from error
        return [results[index] for index in self._out]

    def run_all(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for any number of samples; a fixed batch is run as often as needed.

        Raises:
            ModelError: Samples have to be split, and an output has no batch dimension to join.
            VerificationError: The runtime refuses the inputs or fails.
        """
        batched = [spec.shape[:1] == (None,) for spec in self.inputs]
        count = next((len(array) for array, split in zip(arrays, batched, strict=False) if split), None)
        if self.batch is None or count is None or count == self.batch:
            return self.run(arrays)
        if count == 0:
            raise ModelError(f"no samples were given to {self._name}")
        parts = []
        for start in range(0, count, self.batch):
            rows = np.minimum(np.arange(start, start + self.batch), count - 1)
            parts.append(self.run([a[rows] if split else a for a, split in zip(arrays, batched, strict=True)]))
        joined = []
        for spec, values in zip(self.outputs, zip(*parts, strict=True), strict=True):
            if values[0].shape[:1] != (self.batch,):
                raise ModelError(
                    f"output '{spec.name}' of {self._name} has no batch dimension, "
                    f"so {count} samples cannot be run through a file of batch {self.batch}"
                )
            joined.append(np.concatenate(values)[:count])
        return joined


def open_artifact(path: Path, threads: int = 1, name: str | None = None) -> OpenArtifact:
    """Open a `.onnx` or `.tflite` file in its runtime; messages call it `name`, or by its path.

    Raises:
        ResolveError: The file is missing, or its runtime cannot read it.
        MissingDependency: The runtime is not installed.
    """
    if path.suffix not in _FORMATS:
        raise ResolveError(f"{path} is neither .onnx nor .tflite")
    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="edgeprune export writes one")
    try:
        with silent_stderr():
            runtime = open_runtime(str(path), threads)
    except AgentError as error:
        kind = MissingDependency if error.kind == "runtime" else ResolveError
        raise kind(str(error), fix=error.fix) from error
    return OpenArtifact(path, read_record(path), runtime, name or str(path))


def describe(path: Path, opened: OpenArtifact, content: bytes) -> Artifact:
    """Return what a file is, under the path it has or will have."""
    inputs, outputs = opened.file_specs()
    return Artifact(
        path=str(path),
        format=_FORMATS[path.suffix],
        precision=_precision(opened.record),
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=inputs,
        outputs=outputs,
        metadata=opened.record.metadata() if opened.record else {},
    )


def _precision(record: Record | None) -> Precision:
    found = record.values.get("precision", "fp32") if record is not None else "fp32"
    return next((known for known in PRECISIONS if known == found), "fp32")


def read_artifact(path: str | Path) -> Artifact:
    """Return what a `.onnx` or `.tflite` file is: digest, size, inputs, outputs and record.

    Raises:
        ResolveError: The file is missing, or its runtime cannot read it.
        MissingDependency: The runtime is not installed.
    """
    path = Path(path)
    return describe(path, open_artifact(path), path.read_bytes())


def _order(infos: Sequence[Any], specs: Sequence[TensorSpec] | None) -> list[int]:
    """Return positions in the runtime's list, in the network's order; by name where the names agree."""
    names = [info[0] for info in infos]
    wanted = [spec.name for spec in specs or ()]
    if sorted(names) == sorted(wanted) and len(set(names)) == len(names):
        return [names.index(name) for name in wanted]
    return list(range(len(names)))


def _fixed_batch(infos: Sequence[Any]) -> int | None:
    shape = infos[0][1] if infos else ()
    return shape[0] if shape else None


def _spec(info: Any, batch: int | None) -> TensorSpec:
    name, shape, dtype = info
    split = bool(shape) and batch is not None and shape[0] == batch
    integer = dtype != "bool" and np.issubdtype(np.dtype(dtype), np.integer)
    low, high = (0.0, 1.0) if integer else (-1.0, 1.0)
    return TensorSpec(name=name, shape=(None, *shape[1:]) if split else tuple(shape), dtype=dtype, low=low, high=high)


def _merged(spec: TensorSpec, info: Any) -> TensorSpec:
    return TensorSpec(name=spec.name, shape=tuple(info[1]), dtype=info[2], low=spec.low, high=spec.high)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
