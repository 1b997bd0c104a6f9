"""What viewers show: read back by a reader of its own, and the file computes what it computed before."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeprune.devices.agent import open_runtime
from edgeprune.errors import ConfigError
from edgeprune.export.description import Description, describe_record, formula
from edgeprune.export.flatbuffer import BUFFER_ALIGNMENT
from edgeprune.export.metadata import describe_file, standard_normalisation
from edgeprune.export.record import read_record
from edgeprune.preprocessing import Preprocessing
from tests.export_networks import converted
from tests.flatbuffer_reader import Read

PIXELS = Preprocessing(kind="image", mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.2), scale=(1 / 255,))
LABELS = ("apple", "pear", "plum", "quince", "Birne")
SUFFIXES = (".onnx", ".tflite")


def description(suffix: str, **changes: object) -> Description:
    record = read_record(converted("everything", suffix)[0])
    assert record is not None
    known = {"image": PIXELS, "tokens": Preprocessing(kind="text", vocabulary=11, description="Words of a title")}
    return describe_record(record, name="Everything", preprocessing=known, labels=LABELS, **changes)  # type: ignore[arg-type]


def described(suffix: str, path: Path) -> Path:
    content = converted("everything", suffix)[0].read_bytes()
    made = path / f"m{suffix}"
    made.write_bytes(describe_file(content, suffix, description(suffix)))
    return made


def standard(content: bytes) -> Read:
    """Return the TFLite Metadata of a file."""
    model = Read.root(content)
    (entry,) = [entry for entry in model.tables(6) if entry.text(0) == "TFLITE_METADATA"]
    place = entry._at(1)
    buffer = model.tables(4)[int.from_bytes(content[place : place + 4], "little") if place is not None else 0]
    start, length = buffer.vector_start(0)
    found = content[start : start + length]
    assert found[4:8] == b"M001"
    return Read.root(found)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_are_bit_identical_and_the_record_is_the_same(tmp_path: Path, suffix: str) -> None:
    before = converted("everything", suffix)[0]
    after = described(suffix, tmp_path)
    assert read_record(after) == read_record(before)
    random = np.random.default_rng(3)
    image = random.standard_normal((1, 3, 10, 10), dtype=np.float32)
    opened = [open_runtime(str(path)) for path in (before, after)]
    tokens = random.integers(0, 11, (1, 4)).astype(opened[0].inputs[1][2])
    assert opened[0].inputs == opened[1].inputs
    assert opened[0].outputs == opened[1].outputs
    for old, new in zip(*(runtime.run([image, tokens]) for runtime in opened), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_description_replaces_the_first(tmp_path: Path, suffix: str) -> None:
    once = described(suffix, tmp_path).read_bytes()
    assert describe_file(once, suffix, description(suffix)) == once
    again = describe_file(once, suffix, description(suffix, task="tagging"))
    (tmp_path / f"again{suffix}").write_bytes(again)
    assert read_record(tmp_path / f"again{suffix}") == read_record(converted("everything", suffix)[0])
    if suffix == ".tflite":
        assert standard(again).text(0) == "Everything"
        assert zipfile.ZipFile(io.BytesIO(again)).namelist() == ["labels.txt"]


def test_tflite_metadata_says_inputs_outputs_and_normalisation(tmp_path: Path) -> None:
    found = standard(described(".tflite", tmp_path).read_bytes())
    assert (found.text(0), found.text(7)) == ("Everything", "1.0.0")
    assert "fp32" in (found.text(1) or "")
    (graph,) = found.tables(3)
    image, tokens = graph.tables(2)
    assert [tensor.text(0) for tensor in (image, tokens)] == ["image", "tokens"]
    content = image.table(3)
    assert content is not None
    assert content.byte(0) == 2  # ImageProperties
    properties = content.table(1)
    assert properties is not None
    assert properties.byte(0) == 1  # RGB
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    options = unit.table(1)
    assert options is not None
    assert options.floats(0) == pytest.approx([127.5, 63.75, 31.875])
    assert options.floats(1) == pytest.approx([127.5, 63.75, 51])
    stats = tokens.table(5)
    assert stats is not None
    assert (stats.floats(0), stats.floats(1)) == ([10], [2])
    assert "Tokens from 0 to 10" in (tokens.text(1) or "")
    assert "Words of a title" in (tokens.text(1) or "")
    assert tokens.tables(4) == []


def test_tflite_outputs_are_in_the_order_of_the_file_and_labels_lie_in_it(tmp_path: Path) -> None:
    content = described(".tflite", tmp_path).read_bytes()
    (graph,) = standard(content).tables(3)
    outputs = graph.tables(3)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    shapes = [detail["shape"].tolist() for detail in interpreter.get_output_details()]
    described_shapes = [(tensor.text(1) or "").partition("(")[2].partition(")")[0] for tensor in outputs]
    for shape, text in zip(shapes, described_shapes, strict=True):
        assert text.replace(" ", "").strip(",").split(",") == ["batch", *map(str, shape[1:])]
    (labelled,) = [tensor for tensor in outputs if tensor.tables(6)]
    assert labelled.text(0) == "zebra"
    (file,) = labelled.tables(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)


def test_weights_of_a_tflite_file_are_aligned(tmp_path: Path) -> None:
    content = described(".tflite", tmp_path).read_bytes()
    places = [buffer.vector_start(0) for buffer in Read.root(content).tables(4)]
    assert sum(length > 0 for _, length in places) > 10
    assert [start % BUFFER_ALIGNMENT for start, length in places if length] == [0] * sum(n > 0 for _, n in places)


def test_an_onnx_file_has_properties_and_texts(tmp_path: Path) -> None:
    model = onnx.load(described(".onnx", tmp_path))
    onnx.checker.check_model(model, full_check=True)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert (found["name"], found["task"], found["precision"]) == ("Everything", "classification", "fp32")
    assert found["labels"].splitlines() == list(LABELS)
    assert json.loads(found["inputs"])["image"]["mean"] == [0.5, 0.25, 0.125]
    assert "model_author" not in found
    assert "edgeprune" in found
    assert model.producer_name == "edgeprune"
    assert model.doc_string == model.graph.doc_string == found["description"]
    assert "Value = (raw * 0.00392157 - (0.5, 0.25, 0.125)) / (0.5, 0.25, 0.2)" in model.graph.input[0].doc_string
    assert [value.doc_string for value in model.graph.output if value.name == "zebra"] == ["float32 (batch, 5)."]


def test_labels_have_to_fit_an_output() -> None:
    record = read_record(converted("everything", ".onnx")[0])
    assert record is not None
    with pytest.raises(ConfigError, match="3 labels, but the last axes of the outputs have 5, None, 20, 21 places"):
        describe_record(record, name="x", labels=("a", "b", "c"))


def test_a_description_of_another_network_is_refused() -> None:
    content = converted("waves", ".onnx")[0].read_bytes()
    with pytest.raises(ConfigError, match="2 inputs or outputs are described, the file has 1"):
        describe_file(content, ".onnx", description(".onnx"))
    with pytest.raises(ConfigError, match=r"'\.pt' is neither"):
        describe_file(content, ".pt", description(".onnx"))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Preprocessing(), ""),
        (Preprocessing(mean=(1.5,)), "raw - 1.5"),
        (Preprocessing(std=(2,)), "raw / 2"),
        (Preprocessing(mean=(1, 2), std=(3,)), "(raw - (1, 2)) / 3"),
        (Preprocessing(scale=(0.5,)), "raw * 0.5"),
    ],
)
def test_the_formula_and_the_standard_say_the_same(found: Preprocessing, text: str) -> None:
    assert formula(found) == text
    if text:
        mean, std = standard_normalisation(found)
        raw = 7.0
        expected = raw * (found.scale or (1,))[0] - (found.mean or (0,))[0]
        assert (raw - mean[0]) / std[0] == pytest.approx(expected / (found.std or (1,))[0])
