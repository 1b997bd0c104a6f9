"""An artifact open in its runtime, together with its record.

Owns the differences between a file and the network it came from: names in order, 64-bit integers that a runtime takes
as 32-bit ones, a batch that the file fixes, floats that the file holds as 8-bit integers, channels last. Runs files
through `devices.agent` and never imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices.agent import AgentError, TensorInfo, open_runtime
from edgeprune.errors import MissingDependency, ModelError, ResolveError, VerificationError
from edgeprune.export.quiet import silent_stderr
from edgeprune.export.record import Record, read_record
from edgeprune.values import PRECISIONS, Artifact, Format, Precision, TensorSpec

_FORMATS: dict[str, Format] = {".onnx": "onnx", ".ort": "onnx", ".tflite": "tflite"}


class OpenArtifact:
    """A `.onnx` or `.tflite` file, ready to run.

    `inputs` and `outputs` have None where the batch is. `batch` is the size that the file fixes, or None.
    """

    def __init__(self, path: Path, record: Record | None, runtime: Any, name: str) -> None:
        self.path = path
        self.name = name
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

    @property
    def runtime(self) -> str:
        """Return the runtime that the file is open in, such as `onnxruntime 1.32.0`."""
        return f"{self._runtime.package.replace('_', '-')} {self._runtime.version}"

    @property
    def precision(self) -> Precision:
        """Return the precision that the record states; a file without one counts as float32."""
        stated = self.record.values.get("precision") if self.record is not None else None
        return next((precision for precision in PRECISIONS if precision == stated), "fp32")

    def infos(self) -> tuple[list[TensorInfo], list[TensorInfo]]:
        """Return name, shape and dtype of the inputs and outputs, in the order of the file."""
        return list(self._runtime.inputs), list(self._runtime.outputs)

    def in_runtime(self, runtime: Any, name: str) -> OpenArtifact:
        """Return the same file open in another runtime, whose inputs and outputs have the same names."""
        return OpenArtifact(self.path, self.record, runtime, name)

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
        return {info[0]: array for info, array in zip(self._runtime.inputs, self.as_fed(arrays), strict=True)}

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs of exactly the file's batch, in the network's order, layout and dtypes.

        Raises:
            VerificationError: The runtime refuses the inputs or fails.
        """
        return self.run_each([arrays])[0]

    def run_each(self, feeds: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        """Return the outputs of several runs, one after the other in one runtime.

        Raises:
            VerificationError: The runtime refuses the inputs or fails.
        """
        fed = [self.as_fed(arrays) for arrays in feeds]
        try:
            several = getattr(self._runtime, "run_each", None)
            found = several(fed) if several is not None else [self._runtime.run(arrays) for arrays in fed]
        except Exception as error:  # runtimes raise many kinds; the file cannot be run, whatever the kind
            raise VerificationError(f"{self.name} fails in {self.runtime}: {_one_line(error)}") from error
        return [self._as_network(results) for results in found]

    def as_fed(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the network's inputs as the file takes them: its order, dtypes, integers and layout."""
        if len(arrays) != len(self._in):
            raise VerificationError(f"{len(arrays)} inputs given, {self.name} has {len(self._in)}")
        fed: list[Any] = [None] * len(arrays)
        for position, array, dtype, spec in zip(self._in, arrays, self._dtypes, self.inputs, strict=True):
            scale = self._scale(spec, dtype)
            if self._channels_last and np.ndim(array) == 4:
                array = np.transpose(array, (0, 2, 3, 1))
            fed[position] = np.asarray(array, dtype=dtype) if scale is None else quantised(array, *scale, dtype)
        return fed

    def _as_network(self, results: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for index, spec in zip(self._out, self.outputs, strict=True):
            array = results[index]
            scale = self._scale(spec, array.dtype.name)
            if scale is not None:
                array = ((array.astype(np.float64) - scale[1]) * scale[0]).astype(spec.dtype)
            elif self.record is not None and array.dtype == np.float16:
                array = array.astype(spec.dtype)
            if self._channels_last and array.ndim == 4:
                array = np.ascontiguousarray(np.transpose(array, (0, 3, 1, 2)))
            found.append(array)
        return found

    @property
    def _channels_last(self) -> bool:
        return self.record is not None and self.record.layout == "nhwc"

    def _scale(self, spec: TensorSpec, dtype: str) -> tuple[float, int] | None:
        """Return scale and zero point of a tensor that is integers in the file and floats in the network."""
        if self.record is None or not np.issubdtype(np.dtype(dtype), np.integer):
            return None
        return self.record.quantisation.get(spec.name)

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
            raise ModelError(f"no samples were given to {self.name}")
        parts = []
        for start in range(0, count, self.batch):
            rows = np.minimum(np.arange(start, start + self.batch), count - 1)
            parts.append(self.run([a[rows] if split else a for a, split in zip(arrays, batched, strict=True)]))
        joined = []
        for spec, values in zip(self.outputs, zip(*parts, strict=True), strict=True):
            if values[0].shape[:1] != (self.batch,):
                raise ModelError(
                    f"output '{spec.name}' of {self.name} has no batch dimension, "
                    f"so {count} samples cannot be run through a file of batch {self.batch}"
                )
            joined.append(np.concatenate(values)[:count])
        return joined


def open_artifact(path: Path, threads: int = 1, name: str | None = None, reference: bool = False) -> OpenArtifact:
    """Open a `.onnx` or `.tflite` file in its runtime; messages call it `name`, or by its path.

    Args:
        reference: In the runtime's reference arithmetic: slow, without optimisations, for comparisons.

    Raises:
        ResolveError: The file is missing, or its runtime cannot read it.
        MissingDependency: The runtime is not installed.
    """
    if path.suffix not in _FORMATS:
        raise ResolveError(f"{path} is none of .onnx, .ort and .tflite")
    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="edgeprune export writes one")
    try:
        with silent_stderr():
            runtime = open_runtime(str(path), threads, reference)
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
        precision=opened.precision,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=inputs,
        outputs=outputs,
        metadata=opened.record.metadata() if opened.record else {},
    )


def read_artifact(path: str | Path) -> Artifact:
    """Return what a `.onnx` or `.tflite` file is: digest, size, inputs, outputs and record.

    Raises:
        ResolveError: The file is missing, or its runtime cannot read it.
        MissingDependency: The runtime is not installed.
    """
    path = Path(path)
    return describe(path, open_artifact(path), path.read_bytes())


def quantised(array: np.ndarray, scale: float, zero_point: int, dtype: str) -> np.ndarray:
    """Return floats as integers of a scale: rounded, and cut off where the integers end."""
    ends = np.iinfo(dtype)
    steps = np.rint(np.asarray(array, dtype=np.float64) / scale) + zero_point
    return np.asarray(np.clip(steps, ends.min, ends.max).astype(dtype))


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
