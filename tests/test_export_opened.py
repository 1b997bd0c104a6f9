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
from tests.export_networks import converted
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
    for name, text in (("absent.onnx", "no file"), ("broken.tflite", "cannot be opened"), ("model.pt", "neither")):
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
