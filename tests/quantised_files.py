"""Quantised files for the tests of export, made with the quantisers' own calls and given a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeprune.export.opened import open_artifact
from edgeprune.export.record import Layout, Record, add_to_tflite, read_record, with_record
from edgeprune.values import Precision, TensorSpec

Kind = Literal["int8", "int8-dynamic", "int8-weights"]


def quantised_tflite(source: Path, path: Path, kind: Kind, feeds: Sequence[Sequence[np.ndarray]]) -> Path:
    """Write a quantised copy of a float32 .tflite file with a record; `int8` has 8-bit inputs and outputs."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    recipes = {
        "int8": recipe.static_wi8_ai8,
        "int8-dynamic": recipe.dynamic_wi8_afp32,
        "int8-weights": recipe.weight_only_wi8_afp32,
    }
    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipes[kind]())
    calibrated = None
    if tool.need_calibration:
        opened = open_artifact(source)
        infos = opened.infos()[0]
        named = [{info[0]: array for info, array in zip(infos, opened.as_fed(feed), strict=True)} for feed in feeds]
        signature = next(iter(Interpreter(model_path=str(source)).get_signature_list()))
        calibrated = tool.calibrate({signature: named})
    content = bytes(tool.quantize(calibrated).quantized_model)
    record = read_record(source)
    assert record is not None
    path.write_bytes(add_to_tflite(content, changed(record, kind, scales(content, record))))
    return path


def changed(
    record: Record,
    precision: Precision,
    quantisation: dict[str, tuple[float, int]] | None = None,
    layout: Layout = "nchw",
) -> Record:
    """Return a record with another precision, quantisation and layout."""
    return Record(
        inputs=record.inputs,
        outputs=record.outputs,
        structure=record.structure,
        batch=record.batch,
        values={**record.values, "precision": precision},
        quantisation=quantisation or {},
        layout=layout,
    )


def scales(content: bytes, record: Record) -> dict[str, tuple[float, int]]:
    """Return scale and zero point of the integer inputs and outputs that the network has as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    details: dict[str, Any] = {**runner.get_input_details(), **runner.get_output_details()}
    floats = [spec.name for spec in (*record.inputs, *record.outputs) if spec.dtype == "float32"]
    pairs = {name: details[name]["quantization"] for name in floats if name in details}
    return {name: (float(scale), int(zero)) for name, (scale, zero) in pairs.items() if scale > 0}


def record_of(spec: TensorSpec, layout: Layout = "nchw") -> Record:
    """Return the record of a network with one input and one output of the same shape."""
    output = TensorSpec(name="y", shape=spec.shape, dtype=spec.dtype)
    return Record(inputs=(spec,), outputs=(output,), structure={"kind": "tensor"}, batch=None, values={}, layout=layout)


def write_negation_onnx(path: Path, record: Record) -> Path:
    """Write y = -x of four free sizes, with a record."""
    from onnx import TensorProto, helper

    axes = ["batch", "a", "b", "c"]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "tiny", given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(with_record(model.SerializeToString(), ".onnx", record))
    return path


def write_dequantising_onnx(path: Path, scale: float, zero_point: int) -> Path:
    """Write y = -dequantised(x) with x int8 of shape (batch, 3), and a record that says so."""
    from onnx import TensorProto, helper, numpy_helper

    record = Record(
        inputs=(TensorSpec(name="x", shape=(None, 3), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(None, 3), dtype="float32"),),
        structure={"kind": "tensor"},
        batch=None,
        values={"edgeprune": "0", "precision": "int8"},
        quantisation={"x": (scale, zero_point)},
    )
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero_point, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["floats"]),
        helper.make_node("Neg", ["floats"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.INT8, ["batch", 3])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "tiny", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(with_record(model.SerializeToString(), ".onnx", record))
    return path
