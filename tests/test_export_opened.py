"""Files open in their runtimes: order, dtypes, fixed batches."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import MissingDependency, ModelError, ResolveError, VerificationError
from edgeprune.export import opened as opened_module
from edgeprune.export import read_artifact
from edgeprune.export.opened import open_artifact
from edgeprune.export.quality import sqnr_db
from edgeprune.export.record import Layout
from edgeprune.values import TensorSpec
from tests.export_networks import converted
from tests.quantised_files import quantised_tflite, record_of, write_dequantising_onnx, write_negation_onnx
from tests.tiny_networks import write_dense_onnx, write_difference_onnx, write_lookup_onnx


def test_read_artifact_gives_what_export_gave() -> None:
    for suffix in (".onnx", ".tflite"):
        path, exported = converted("everything", suffix)
        assert read_artifact(path) == exported.artifact
        assert exported.artifact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_another_tool(tmp_path: Path) -> None:
    artifact = read_artifact(write_difference_onnx(tmp_path / "m.onnx"))
    assert [(spec.name, spec.shape) for spec in artifact.inputs] == [("zeta", (None, 3)), ("alpha", (None, 3))]
    assert artifact.metadata == {}
    tokens = open_artifact(write_lookup_onnx(tmp_path / "n.onnx")).inputs[0]
    assert (tokens.dtype, tokens.low, tokens.high) == ("int64", 0, 1)


def test_opening_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    open_artifact(converted("waves", ".tflite")[0]).run([np.zeros((1, 4, 20), np.float32)])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_samples_runs_through_a_file_of_batch_one(count: int) -> None:
    fixed = open_artifact(converted("everything", ".tflite")[0])
    free = open_artifact(converted("everything", ".onnx")[0])
    assert (fixed.batch, free.batch) == (1, None)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(count, 3, 10, 10)).astype(np.float32), rng.integers(2, 11, (count, 4))]
    for a, b in zip(fixed.run_all(arrays), free.run_all(arrays), strict=True):
        assert len(a) == count
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_that_does_not_divide_is_filled_up_and_cut(tmp_path: Path) -> None:
    import torch

    from edgeprune.export import export
    from tests.export_networks import Centred

    x = torch.randn(4, 3, 2, 2)
    export(Centred(), (x,), tmp_path / "m.onnx")
    opened = open_artifact(tmp_path / "m.onnx")
    assert opened.batch == 4
    together = opened.run_all([np.concatenate([x.numpy(), x.numpy()[:1]])])
    assert together[0].shape == (5, 4)
    np.testing.assert_array_equal(together[0][:4], opened.run([x.numpy()])[0])


def test_an_output_without_batch_cannot_be_joined(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from edgeprune.export import export

    class Total(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    export(Total(), (torch.randn(1, 3),), tmp_path / "m.onnx")
    opened = open_artifact(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no batch dimension, so 3 samples"):
        opened.run_all([np.zeros((3, 3), np.float32)])
    with pytest.raises(ModelError, match="no samples"):
        opened.run_all([np.zeros((0, 3), np.float32)])


def test_what_a_runtime_refuses_is_named(tmp_path: Path) -> None:
    opened = open_artifact(write_dense_onnx(tmp_path / "m.onnx"), name="model.onnx")
    with pytest.raises(VerificationError, match=r"2 inputs given, model\.onnx has 1"):
        opened.run([np.zeros((1, 8), np.float32)] * 2)
    with pytest.raises(VerificationError, match=r"model\.onnx fails in onnxruntime"):
        opened.run([np.zeros((1, 9), np.float32)])


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"TFL3 but not really")
    for name, text in (("absent.onnx", "no file"), ("broken.tflite", "cannot be opened"), ("model.pt", "none of")):
        with pytest.raises(ResolveError, match=text):
            open_artifact(tmp_path / name)

    def missing(path: str, threads: int, reference: bool) -> None:
        raise opened_module.AgentError("runtime", "no ONNX Runtime", "pip install onnxruntime")

    monkeypatch.setattr(opened_module, "open_runtime", missing)
    with pytest.raises(MissingDependency, match="no ONNX Runtime"):
        open_artifact(write_dense_onnx(tmp_path / "m.onnx"))


def test_threads_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = opened_module.open_runtime

    def spy(path: str, threads: int, reference: bool) -> object:
        seen.append((threads, reference))
        return original(path, threads, reference)

    monkeypatch.setattr(opened_module, "open_runtime", spy)
    open_artifact(write_dense_onnx(tmp_path / "m.onnx"), threads=2)
    open_artifact(tmp_path / "m.onnx", reference=True)
    assert seen == [(2, False), (1, True)]


def test_floats_go_into_a_file_of_integers_rounded_and_cut_off(tmp_path: Path) -> None:
    opened = open_artifact(write_dequantising_onnx(tmp_path / "m.onnx", scale=0.5, zero_point=3))
    x = np.array([[0.0, 0.6, -0.8], [1e6, -1e6, 62.0]], np.float32)
    np.testing.assert_array_equal(opened.as_fed([x])[0], np.array([[3, 4, 1], [127, -128, 127]], np.int8))
    found = opened.run_all([x])[0]
    np.testing.assert_array_equal(found, [[0.0, -0.5, 1.0], [-62.0, 65.5, -62.0]])
    inputs, outputs = opened.file_specs()
    assert (inputs[0].dtype, outputs[0].dtype) == ("int8", "float32")
    assert opened.inputs[0].dtype == "float32"
    assert read_artifact(tmp_path / "m.onnx").precision == "int8"


def test_an_8_bit_tflite_file_is_called_like_its_network(tmp_path: Path) -> None:
    source = converted("waves", ".tflite")[0]
    rng = np.random.default_rng(0)
    feeds = [[rng.normal(size=(1, 4, 20)).astype(np.float32)] for _ in range(4)]
    opened = open_artifact(quantised_tflite(source, tmp_path / "m.tflite", "int8", feeds))
    assert opened.file_specs()[0][0].dtype == "int8"
    assert opened.as_fed(feeds[0])[0].dtype == np.int8
    for a, b in zip(open_artifact(source).run(feeds[0]), opened.run(feeds[0]), strict=True):
        assert b.dtype == np.float32
        assert sqnr_db(a, b) > 15


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_file_with_channels_last_is_called_like_its_network(tmp_path: Path, layout: Layout) -> None:
    """The file moves axes itself, so that what the network's layout gives is known."""
    spec = TensorSpec(name="x", shape=(None, 2, 3, 4), dtype="float32")
    path = write_negation_onnx(tmp_path / "m.onnx", record_of(spec, layout))
    opened = open_artifact(path)
    x = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    fed, found = opened.as_fed([x])[0], opened.run([x])[0]
    assert fed.shape == ((2, 2, 3, 4) if layout == "nchw" else (2, 3, 4, 2))
    np.testing.assert_array_equal(found, -x)
    assert opened.run_all([x[:1]])[0].shape == (1, 2, 3, 4)


def test_reference_arithmetic_gives_the_same_numbers() -> None:
    for suffix in (".onnx", ".tflite"):
        path = converted("everything", suffix)[0]
        usual, slow = open_artifact(path), open_artifact(path, reference=True)
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(1, 3, 10, 10)).astype(np.float32), rng.integers(2, 11, (1, 4))]
        for a, b in zip(usual.run(arrays), slow.run(arrays), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert usual.runtime.split()[0] in ("onnxruntime", "ai-edge-litert")
