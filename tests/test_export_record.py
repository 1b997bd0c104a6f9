"""What an artifact says about itself, in both formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeprune.errors import ResolveError
from edgeprune.export.record import KEY, Record, add_to_tflite, own_values, read_record
from edgeprune.values import TensorSpec
from edgeprune.version import VERSION
from tests.export_networks import converted
from tests.tiny_networks import write_dense_onnx

SPECS = (TensorSpec(name="x", shape=(None, 6), dtype="float32", low=-0.1, high=2.5),)


def a_record(batch: int | None) -> Record:
    values = own_values("fp32", {"plan": "5f0c"})
    return Record(inputs=SPECS, outputs=SPECS, structure={"leaf": 0}, batch=batch, values=values)


def write_onnx(path: Path, text: str | None) -> Path:
    model = onnx.load(write_dense_onnx(path))
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_a_record_comes_back_from_onnx(tmp_path: Path, batch: int | None) -> None:
    record = a_record(batch)
    assert read_record(write_onnx(tmp_path / "m.onnx", record.as_text())) == record


def test_layout_and_quantisation_come_back(tmp_path: Path) -> None:
    plain = a_record(1)
    record = replace(plain, quantisation={"x": (0.0078125, -3)}, layout="nhwc")
    assert read_record(write_onnx(tmp_path / "m.onnx", record.as_text())) == record
    found = read_record(write_onnx(tmp_path / "n.onnx", plain.as_text()))
    assert found is not None
    assert (found.layout, found.quantisation) == ("nchw", {})
    assert "layout" not in json.loads(plain.as_text())
    assert set(record.metadata()) == set(plain.metadata())


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "nwhc"},
        {"quantisation": "{"},
        {"quantisation": '{"x": [0, 1]}'},
        {"quantisation": '{"x": ["NaN", 1]}'},
        {"quantisation": '{"x": [1.0]}'},
        {"quantisation": '["x"]'},
    ],
)
def test_a_layout_or_a_scale_that_means_nothing_is_damage(tmp_path: Path, wrong: dict[str, str]) -> None:
    text = json.dumps(json.loads(a_record(1).as_text()) | wrong)
    with pytest.raises(ResolveError, match="damaged"):
        read_record(write_onnx(tmp_path / "m.onnx", text))


def test_a_file_without_a_record_is_fine(tmp_path: Path) -> None:
    assert read_record(write_onnx(tmp_path / "m.onnx", None)) is None
    (tmp_path / "m.tflite").write_bytes(b"something else")
    assert read_record(tmp_path / "m.tflite") is None


@pytest.mark.parametrize("text", ["no json", "[]", json.dumps({"batch": "two"}), json.dumps({"batch": "1"})])
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ResolveError, match="damaged"):
        read_record(write_onnx(tmp_path / "m.onnx", text))


def test_a_damaged_or_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(ResolveError, match="not an ONNX file"):
        read_record(tmp_path / "m.onnx")
    with pytest.raises(ResolveError, match="cannot read"):
        read_record(tmp_path / "absent.tflite")


def test_real_files_hold_version_plan_batch_and_ranges() -> None:
    for suffix, batch in ((".onnx", None), (".tflite", 1)):
        record = read_record(converted("everything", suffix)[0])
        assert record is not None
        assert record.values == {"edgeprune": VERSION, "precision": "fp32", "plan": "5f0c"}
        assert record.batch == batch
        assert [spec.shape for spec in record.inputs] == [(None, 3, 10, 10), (None, 4)]
        assert (record.inputs[1].low, record.inputs[1].high) == (2, 10)


def test_a_second_record_replaces_the_first(tmp_path: Path) -> None:
    content = converted("waves", ".tflite")[0].read_bytes()
    path = tmp_path / "again.tflite"
    path.write_bytes(add_to_tflite(content, a_record(1)))
    assert read_record(path) == a_record(1)
    assert path.read_bytes().count(b'"structure"') == 2  # the old buffer is still there, but nothing names it


def test_slices_to_the_end_are_spelled_out(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    from edgeprune.devices.agent import open_runtime

    path = tmp_path / "slice.tflite"
    path.write_bytes(add_to_tflite(slice_file(), a_record(1)))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph = model.subgraphs[0]
    size = graph.tensors[graph.operators[0].inputs[2]]
    assert np.frombuffer(model.buffers[size.buffer].data.tobytes(), "<i4").tolist() == [1, 4]
    x = np.arange(6, dtype=np.float32)[None]
    (y,) = open_runtime(str(path)).run([x])
    assert y.tolist() == [[2, 3, 4, 5]]


def slice_file() -> bytes:
    """Return a TFLite file of one operator: x[:, 2:] with a size of -1."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], kind: int, buffer: int) -> object:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
        return made

    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SLICE
    code.version = 1
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.SliceOptions, schema.SliceOptionsT()
    floats, ints = schema.TensorType.FLOAT32, schema.TensorType.INT32
    graph.tensors = [
        tensor("x", [1, 6], floats, 0),
        tensor("begin", [2], ints, 1),
        tensor("size", [2], ints, 2),
        tensor("y", [1, 4], floats, 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [operator]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT() for _ in range(3)]
    for buffer, values in zip(model.buffers[1:], ([0, 2], [1, -1]), strict=True):
        buffer.data = np.frombuffer(np.asarray(values, "<i4").tobytes(), np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
