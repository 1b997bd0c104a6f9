"""ONNX Runtime's format for mobile builds: equal, portable, with the operators that a build needs."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.tools.reduced_build_config_parser import parse_config

from edgeprune.errors import ConfigError, ExportError, ResolveError, StorageError, VerificationError
from edgeprune.export import ort
from edgeprune.export.ort import to_ort
from tests.export_networks import converted
from tests.test_package import int8_onnx

LEVELS = ("basic", "extended", "all")


def operators(config: Path) -> dict[str, set[str]]:
    """Return the operators of a configuration by their domain, as ONNX Runtime's build script reads them."""
    required, _ = parse_config(str(config), True)
    return {domain: set().union(*versions.values()) for domain, versions in required.items()}


@pytest.mark.parametrize("level", LEVELS)
def test_the_file_runs_and_equals_the_onnx_file(tmp_path: Path, level: Any) -> None:
    source = converted("everything", ".onnx")[0]
    made, config = to_ort(source, tmp_path / "new" / "m.ort", level=level)
    assert sorted(path.name for path in made.parent.iterdir()) == ["m.ort", "m.required_operators.config"]
    sessions = [onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (source, made)]
    random = np.random.default_rng(5)
    feeds = {
        "image": random.normal(size=(3, 3, 10, 10)).astype(np.float32),
        "tokens": random.integers(0, 11, (3, 4)),
    }
    for wanted, found in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert "edgeprune" in sessions[1].get_modelmeta().custom_metadata_map
    found_operators = operators(config)
    assert "com.microsoft.nchwc" not in found_operators
    assert "ConvTranspose" in found_operators["ai.onnx"]
    assert ("FusedConv" in found_operators.get("com.microsoft", set())) == (level != "basic")
    assert str(tmp_path) not in config.read_text()


def test_levels_above_extended_are_bound_to_this_machine_unless_it_is_prevented(tmp_path: Path) -> None:
    """What the module prevents does happen: without it, ONNX Runtime lays convolutions out for this processor."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "bound.ort")
    options.log_severity_level = 3
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(converted("everything", ".onnx")[0]), options, providers=["CPUExecutionProvider"])
    assert "com.microsoft.nchwc" in operators(ort._operators(tmp_path / "bound.ort"))


@pytest.mark.parametrize("level", LEVELS)
def test_quantised_files_keep_their_integers(tmp_path: Path, level: Any) -> None:
    made, _ = to_ort(int8_onnx(tmp_path / "q.onnx"), tmp_path / "q.ort", level=level)
    session = onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(int8)"


def test_a_file_that_differs_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = ort._convert

    def wrong(source: Path, target: Path, level: Any) -> None:
        model = onnx.load(source)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight) * 2
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, target.with_suffix(".onnx"))
        convert(target.with_suffix(".onnx"), target, level)

    monkeypatch.setattr(ort, "_convert", wrong)
    (tmp_path / "m.ort").write_bytes(b"yesterday's")
    with pytest.raises(VerificationError, match=r"m\.ort differs from waves\.onnx on 'output_\w+': relative"):
        to_ort(converted("waves", ".onnx")[0], tmp_path / "m.ort")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ort", "m.ort.rejected"]
    assert (tmp_path / "m.ort").read_bytes() == b"yesterday's"
    monkeypatch.setattr(ort, "_convert", convert)
    to_ort(converted("waves", ".onnx")[0], tmp_path / "m.ort")
    assert not (tmp_path / "m.ort.rejected").exists()


def test_bad_requests(tmp_path: Path) -> None:
    source = converted("waves", ".onnx")[0]
    with pytest.raises(ConfigError, match=r"does not end in \.ort"):
        to_ort(source, tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"is not an \.onnx file"):
        to_ort(tmp_path / "m.tflite", tmp_path / "m.ort")
    with pytest.raises(ConfigError, match="level 'most'"):
        to_ort(source, tmp_path / "m.ort", level="most")  # type: ignore[arg-type]
    with pytest.raises(ResolveError, match="no file"):
        to_ort(tmp_path / "absent.onnx", tmp_path / "m.ort")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_runtime_lacks_is_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Unheard", ["x"], ["y"], domain="nobody")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nobody", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "u.onnx")
    with pytest.raises(ExportError, match="Unheard"):
        ort._convert(tmp_path / "u.onnx", tmp_path / "u.ort", "extended")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = converted("everything", ".onnx")[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(StorageError, match="could not write the whole file"):
            to_ort(source, tmp_path / "m.ort")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*m\.ort"):
        to_ort(converted("waves", ".onnx")[0], tmp_path / "file" / "m.ort")
    assert os.listdir(tmp_path) == ["file"]
