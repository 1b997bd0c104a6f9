"""Bytes of files: whole, compressed, and by weight, in agreement with the networks they come from."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from pathlib import Path

import onnx
import pytest

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.export import sizes as module
from edgeprune.export.sizes import sizes_of
from edgeprune.pipeline.measuring import inspect_artifact
from tests.export_networks import converted, everything


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_weights_are_those_of_the_network(suffix: str) -> None:
    path = converted("everything", suffix)[0]
    found = sizes_of(path)
    content = path.read_bytes()
    assert found.size_bytes == len(content)
    assert found.deflate_bytes == len(zlib.compress(content))
    assert found.lzma_bytes == len(lzma.compress(content))
    assert sum(weight.share for weight in found.weights) == pytest.approx(1)
    assert [w.size_bytes for w in found.weights] == sorted((w.size_bytes for w in found.weights), reverse=True)
    model, _ = everything()
    floats = sum(weight.size_bytes for weight in found.weights if weight.dtype == "float32")
    norm = 4 * 4 * 16  # BatchNorm is folded into the convolution before it
    params = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert params - norm <= floats <= params + 4 * 21 * 21 * 6  # constants of the rewritten transposed convolution
    largest = found.weights[0]
    assert largest.shape in ((16, 6, 3, 3), (6, 3, 3, 16))
    assert largest.operator in ("ConvTranspose", "TRANSPOSE_CONV")
    assert found.weights_bytes < found.size_bytes


def test_names_say_where_a_weight_belongs() -> None:
    onnx_names = {weight.name: weight.operator for weight in sizes_of(converted("everything", ".onnx")[0]).weights}
    assert onnx_names["head.weight"] == "Gemm"
    tflite = sizes_of(converted("everything", ".tflite")[0]).weights
    (depthwise,) = (w for w in tflite if w.operator == "DEPTHWISE_CONV_2D" and w.name.endswith("weight"))
    assert depthwise.shape == (1, 3, 3, 16)
    assert depthwise.size_bytes == 4 * 9 * 16


def test_large_files_are_not_compressed_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted("waves", ".onnx")[0]
    assert sizes_of(path, with_lzma=False).lzma_bytes is None
    monkeypatch.setattr(module, "LZMA_LIMIT_BYTES", 10)
    assert sizes_of(path).lzma_bytes is None


def test_constants_of_nodes_and_four_bits_count(tmp_path: Path) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    constant = helper.make_tensor("c", kinds.FLOAT, [3], [1.0, 2.0, 3.0])
    halves = helper.make_tensor("h", kinds.INT4, [5], [1, 2, 3, 4, 5])
    nodes = [helper.make_node("Constant", [], ["c"], value=constant), helper.make_node("Add", ["x", "c"], ["y"])]
    value = [helper.make_tensor_value_info(name, kinds.FLOAT, [3]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], [halves])), tmp_path / "m.onnx")
    rows = {weight.name: weight for weight in sizes_of(tmp_path / "m.onnx").weights}
    assert (rows["c"].operator, rows["c"].size_bytes, rows["c"].dtype) == ("Add", 12, "float32")
    assert (rows["h"].operator, rows["h"].size_bytes, rows["h"].dtype) == ("", 3, "int4")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("m.pt2", b"", ConfigError),
        ("m.onnx", b"\xff" * 40, ResolveError),
        ("m.tflite", b"\xff" * 40, ResolveError),
        ("m.tflite", b"", ResolveError),
        ("m.onnx", None, ResolveError),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        sizes_of(tmp_path / name)


def test_inspecting_a_file_tells_its_sizes() -> None:
    from edgeprune.report.commands import artifact_text

    found = inspect_artifact(converted("everything", ".tflite")[0])
    assert found["sizes"]["size_bytes"] == found["artifact"]["size_bytes"]
    text = artifact_text(found, 120)
    assert "TRANSPOSE_CONV" in text
    assert "deflate" in text
    assert f"and {len(found['sizes']['weights']) - 12} smaller ones" in text
    assert text.splitlines()[-1].startswith("next: edgeprune bench")


def test_a_zip_of_a_file_has_about_the_deflated_size() -> None:
    path = converted("everything", ".onnx")[0]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "m.onnx")
    assert abs(len(stream.getvalue()) - sizes_of(path).deflate_bytes) < 200
