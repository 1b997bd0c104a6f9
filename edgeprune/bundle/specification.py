"""The input specification of a bundle, `input.json`: what goes into every file and what comes out.

Owns what it says and how a file's own order, layout and integers are found. `predict.py` is its first reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import ConfigError
from edgeprune.export.description import LABELS, labelled_output
from edgeprune.export.metadata import tflite_tensor_names
from edgeprune.export.opened import open_artifact
from edgeprune.export.record import Record
from edgeprune.preprocessing import Preprocessing
from edgeprune.quantise.flatbuffer import unpacked
from edgeprune.values import Json, TensorSpec
from edgeprune.version import VERSION

CHANNELS_LAST = (0, 2, 3, 1)
_Scale = tuple[float, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """A file of a bundle: its name there, where it is now, what the network takes and gives, and what the file does.

    `role` is `model` or `baseline`: files of one role hold one network and have one expectation.
    """

    name: str
    path: Path
    role: str
    precision: str
    batch: int | None
    network_inputs: tuple[TensorSpec, ...]
    network_outputs: tuple[TensorSpec, ...]
    inputs: tuple[Json, ...]
    outputs: tuple[Json, ...]

    def as_dict(self) -> Json:
        """Return what `input.json` says of the file; tolerances of outputs come later."""
        return {
            "format": self.path.suffix[1:],
            "precision": self.precision,
            "role": self.role,
            "batch": self.batch,
            "inputs": [dict(tensor) for tensor in self.inputs],
            "outputs": [dict(tensor) for tensor in self.outputs],
        }


def read_file(path: Path) -> BundleFile:
    """Return what a `.onnx` or `.tflite` file takes and gives.

    Raises:
        ResolveError: The file is missing, or its runtime cannot read it.
        ConfigError: It has other free sizes than the batch.
    """
    opened = open_artifact(path)
    ends = _onnx_ends(path) if path.suffix == ".onnx" else _tflite_ends(path)
    inputs, outputs = opened.file_specs()
    ins = _side(opened.inputs, inputs, ends["inputs"], opened.record)
    outs = _side(opened.outputs, outputs, ends["outputs"], opened.record)
    for tensor in ins:
        if None in tensor["shape"][1:]:
            raise ConfigError(
                f"input '{tensor['name']}' of {path} has the shape {tensor['shape']} with free sizes beside the batch",
                fix="export the file with fixed sizes",
            )
    return BundleFile(
        name=path.name,
        path=path,
        role="baseline" if path.stem.partition(".")[0] == "baseline" else "model",
        precision=(opened.record.values.get("precision") if opened.record else None) or "fp32",
        batch=opened.batch,
        network_inputs=_as_floats(opened.inputs, ins),
        network_outputs=_as_floats(opened.outputs, outs),
        inputs=ins,
        outputs=outs,
    )


def specification(
    name: str,
    files: Sequence[BundleFile],
    *,
    preprocessing: Mapping[str, Preprocessing],
    labels: Sequence[str],
    samples: Sequence[str],
    expected: str,
) -> Json:
    """Return `input.json`: the network's inputs and outputs, and every file's own.

    Args:
        samples: Folders of the bundle that hold a sample each.
        expected: Whose outputs the samples hold: a sentence.

    Raises:
        ConfigError: The labels fit no output, or a mean, std or scale fits no axis of its input.
    """
    first = files[0]
    position = labelled_output(first.network_outputs, labels) if labels else None
    inputs = []
    for spec in first.network_inputs:
        found = preprocessing.get(spec.name, Preprocessing())
        entry: Json = {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype, "kind": found.kind}
        entry |= {"layout": "nchw" if len(spec.shape) == 4 else None, "low": spec.low, "high": spec.high}
        inputs.append(entry | {"preprocessing": found.as_dict(), "channel_axis": channel_axis(spec, found)})
    outputs = [
        {"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "labels": LABELS if index == position else None}
        for index, s in enumerate(first.network_outputs)
    ]
    return {
        "schema_version": 1,
        "edgeprune": VERSION,
        "name": name,
        "inputs": inputs,
        "outputs": outputs,
        "expected": expected,
        "samples": list(samples),
        "files": {file.name: file.as_dict() for file in files},
    }


def channel_axis(spec: TensorSpec, found: Preprocessing) -> int:
    """Return the axis along which mean, std and scale go: 1 as in PyTorch where it fits, else the last.

    Raises:
        ConfigError: None of both has so many places.
    """
    count = max(len(found.mean), len(found.std), len(found.scale), 1)
    sizes = {axis: spec.shape[axis] for axis in (1, len(spec.shape) - 1) if 0 < axis < len(spec.shape)}
    if count == 1:
        return min(sizes, default=0)
    for axis, size in sizes.items():
        if size == count:
            return axis
    raise ConfigError(
        f"preprocessing has {count} numbers for input '{spec.name}', whose shape is {list(spec.shape)}",
        fix="give one number, or one for every channel",
    )


def _side(
    network: Sequence[TensorSpec],
    file: Sequence[TensorSpec],
    ends: Sequence[tuple[str, _Scale | None]],
    record: Record | None,
) -> tuple[Json, ...]:
    """Return the inputs or outputs of a file in the network's order: place and name there, shape, layout, integers."""
    names = [name for name, _ in ends]
    by_name = sorted(names) == sorted(spec.name for spec in network)
    found = []
    for index, (spec, own) in enumerate(zip(network, file, strict=True)):
        position = names.index(spec.name) if by_name else index
        stated = record.quantisation.get(spec.name) if record is not None else None
        if stated is None and (record is None or spec.dtype.startswith("float")):
            stated = ends[position][1]
        last = record is not None and record.layout == "nhwc" and len(spec.shape) == 4
        entry: Json = {"name": spec.name, "file_name": names[position], "position": position}
        entry |= {"shape": list(own.shape), "dtype": own.dtype, "axes": list(CHANNELS_LAST) if last else None}
        entry["layout"] = None if len(spec.shape) != 4 else "nhwc" if last else "nchw"
        entry["quantization"] = {"scale": stated[0], "zero_point": stated[1]} if stated and _integers(own) else None
        found.append(entry)
    return tuple(found)


def _integers(spec: TensorSpec) -> bool:
    return spec.dtype.startswith(("int", "uint"))


def _as_floats(specs: Sequence[TensorSpec], side: Sequence[Json]) -> tuple[TensorSpec, ...]:
    """Return what a network takes or gives: floats where the file has quantised integers, in the range of those."""
    found = []
    for spec, entry in zip(specs, side, strict=True):
        scale = entry["quantization"]
        if scale is not None and _integers(spec):
            ends = np.iinfo(spec.dtype)
            low, high = ((end - scale["zero_point"]) * scale["scale"] for end in (int(ends.min), int(ends.max)))
            spec = replace(spec, dtype="float32", low=low, high=high)
        found.append(spec)
    return tuple(found)


def _tflite_ends(path: Path) -> dict[str, list[tuple[str, _Scale | None]]]:
    """Return the names of a TFLite file's inputs and outputs in its own order, with scale and zero point."""
    model = unpacked(path.read_bytes())
    graph, found = model.subgraphs[0], {}
    for side in ("inputs", "outputs"):
        scales = [_tflite_scale(graph.tensors[index]) for index in getattr(graph, side)]
        found[side] = list(zip(tflite_tensor_names(model, side), scales, strict=True))
    return found


def _tflite_scale(tensor: Any) -> _Scale | None:
    values = tensor.quantization
    if values is None or values.scale is None or len(values.scale) != 1:
        return None
    zero_point = values.zeroPoint[0] if values.zeroPoint is not None and len(values.zeroPoint) else 0
    return float(values.scale[0]), int(zero_point)


def _onnx_ends(path: Path) -> dict[str, list[tuple[str, _Scale | None]]]:
    """Return the names of an ONNX file's inputs and outputs; integers have the scale of the node next to them."""
    import onnx

    graph = onnx.load_model(str(path), load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scales: dict[str, _Scale] = {}
    for node in graph.node:
        end = {"DequantizeLinear": node.input[:1], "QuantizeLinear": node.output[:1]}.get(node.op_type)
        names = [name for name in node.input[1:3] if name]
        if end and all(name in constants for name in names):
            scale, *zero = (onnx.numpy_helper.to_array(constants[name]) for name in names)
            if scale.size == 1:
                scales[end[0]] = float(scale.reshape(())), int(zero[0].reshape(())) if zero else 0
    sides = {"inputs": [v for v in graph.input if v.name not in constants], "outputs": graph.output}
    return {side: [(value.name, scales.get(value.name)) for value in values] for side, values in sides.items()}
