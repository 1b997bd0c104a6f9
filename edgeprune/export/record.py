"""The record that edgeprune leaves inside an artifact: version, batch, inputs, outputs and what the caller adds.

Owns what the record says and where each format keeps it: an ONNX file as the metadata property `edgeprune`, a TFLite
file as the metadata buffer of that name, both holding one JSON object of strings. Files without a record are fine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import ResolveError
from edgeprune.quantise.flatbuffer import packed, unpacked
from edgeprune.quantise.tensor_names import name_tensors_, named
from edgeprune.values import Json, Layout, Precision, TensorSpec
from edgeprune.version import VERSION

KEY = "edgeprune"
_OWN = ("inputs", "outputs", "structure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an artifact says about itself.

    Shapes have None where the batch is, also when the file fixes it; `batch` is that fixed size, or None when any size
    works. Dtypes are those of the PyTorch network. `values` holds everything else as text: `edgeprune` (the version),
    `precision`, and the caller's entries such as `plan`.

    `quantisation` has scale and zero point of the inputs and outputs that the file holds as integers and the network
    as floats, by name. `layout` `nhwc` says that the file has every 4-D input and output channels last; the shapes
    here stay the network's.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Json
    batch: int | None
    values: dict[str, str]
    quantisation: dict[str, tuple[float, int]] = field(default_factory=dict)
    layout: Layout = "nchw"

    def as_text(self) -> str:
        """Return the JSON that goes into a file; equal records give equal text."""
        values = {
            **self.values,
            "batch": "dynamic" if self.batch is None else str(self.batch),
            "inputs": json.dumps([spec.as_dict() for spec in self.inputs]),
            "outputs": json.dumps([spec.as_dict() for spec in self.outputs]),
            "structure": json.dumps(self.structure),
        }
        if self.quantisation:
            values["quantisation"] = json.dumps(self.quantisation)
        if self.layout != "nchw":
            values["layout"] = self.layout
        return json.dumps(values, sort_keys=True)

    def metadata(self) -> dict[str, str]:
        """Return the short entries, those that an `Artifact` shows."""
        return {**self.values, "batch": "dynamic" if self.batch is None else str(self.batch)}


def own_values(precision: Precision, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return the entries of a new record: version, precision and the caller's."""
    return {KEY: VERSION, "precision": precision, **{key: str(value) for key, value in (metadata or {}).items()}}


def read_record(path: Path) -> Record | None:
    """Return the record of a `.onnx`, `.ort` or `.tflite` file, None when it has none.

    Raises:
        ResolveError: The file cannot be read, or its record is damaged.
    """
    try:
        text = {".onnx": _onnx_text, ".ort": _ort_text}.get(path.suffix, _tflite_text)(path)
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}") from error
    if text is None:
        return None
    try:
        values: dict[str, str] = json.loads(text)
        batch = values.pop("batch")
        own = {key: json.loads(values.pop(key)) for key in _OWN}
        quantisation = json.loads(values.pop("quantisation", "{}"))
        layout = values.pop("layout", "nchw")
        if layout not in ("nchw", "nhwc"):
            raise ValueError(f"the layout '{layout}' is neither nchw nor nhwc")
        return Record(
            inputs=tuple(TensorSpec.from_dict(spec) for spec in own["inputs"]),
            outputs=tuple(TensorSpec.from_dict(spec) for spec in own["outputs"]),
            structure=own["structure"],
            batch=None if batch == "dynamic" else int(batch),
            values=values,
            quantisation={name: _scale(pair) for name, pair in quantisation.items()},
            layout="nhwc" if layout == "nhwc" else "nchw",
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ResolveError(
            f"the edgeprune record in {path} is damaged: {error}", fix="export the file again"
        ) from error


def with_record(content: bytes, suffix: str, record: Record) -> bytes:
    """Return an `.onnx` or `.tflite` file's content with this record in place of the one that it may have."""
    if suffix == ".tflite":
        return add_to_tflite(content, record)
    import onnx

    model = onnx.load_model_from_string(content)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, record.as_text()
    return bytes(model.SerializeToString())


def _scale(pair: Any) -> tuple[float, int]:
    scale, zero_point = float(pair[0]), int(pair[1])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{scale} is not a scale")
    return scale, zero_point


def add_to_tflite(content: bytes, record: Record) -> bytes:
    """Return a TFLite file with the record added, slices written with their full sizes, and tensors with names."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(content)
    _spell_out_slices_(model, schema)
    if not named(model):
        name_tensors_(model)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(record.as_text().encode(), dtype=np.uint8)
    entry = schema.MetadataT()
    entry.name = KEY
    entry.buffer = len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [item for item in model.metadata or [] if item.name != KEY.encode()] + [entry]
    return packed(model)


def _spell_out_slices_(model: Any, schema: Any) -> None:
    """Replace a size of -1 ("to the end") in constant slices, which XNNPACK does not take over, in place."""
    import numpy as np

    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode != schema.BuiltinOperator.SLICE:
                continue
            size = graph.tensors[operator.inputs[2]]
            data = model.buffers[size.buffer].data
            shape = graph.tensors[operator.outputs[0]].shape
            if data is None or size.type != schema.TensorType.INT32 or shape is None or (shape <= 0).any():
                continue
            if (np.frombuffer(data.tobytes(), dtype="<i4") >= 0).all():
                continue
            # A tensor and a buffer of its own: the old ones may serve other slices too.
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(shape, dtype="<i4").tobytes(), dtype=np.uint8)
            model.buffers.append(buffer)
            tensor = schema.TensorT()
            tensor.shape, tensor.type, tensor.name = size.shape, size.type, b"%s_%d" % (size.name, len(graph.tensors))
            tensor.buffer = len(model.buffers) - 1
            graph.tensors.append(tensor)
            operator.inputs[2] = len(graph.tensors) - 1


def _onnx_text(path: Path) -> str | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ResolveError(f"{path} is not an ONNX file: {error}") from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _ort_text(path: Path) -> str | None:
    """Return the record of a `.ort` file, which keeps the properties of the `.onnx` file that it came from."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.RuntimeException,
        state.NotImplemented,
    ) as error:
        raise ResolveError(f"ONNX Runtime cannot open {path}: {' '.join(str(error).split())[:300]}") from error
    found: str | None = session.get_modelmeta().custom_metadata_map.get(KEY)
    return found


def _tflite_text(path: Path) -> str | None:
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        return None
    model = schema.Model.GetRootAs(content)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    return None
