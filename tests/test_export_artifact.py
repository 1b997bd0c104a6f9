"""From a network to a verified file, and what is left behind when a step fails."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import edgeprune.export
from edgeprune.errors import ConfigError, ExportError, ModelError, StorageError, VerificationError
from edgeprune.export import ArtifactModule, export, read_record
from edgeprune.export import onnx as onnx_format
from edgeprune.export import tflite as tflite_format
from tests.export_networks import Centred, OneBatch, converted, linear, waves


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def corrupt(path: Path) -> None:
    """Change one weight of an ONNX file."""
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


@pytest.fixture
def wrong_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnx_format.convert_to_onnx

    def convert(program: torch.export.ExportedProgram, record: object, path: Path) -> None:
        original(program, record, path)  # type: ignore[arg-type]
        corrupt(path)

    monkeypatch.setattr(onnx_format, "convert_to_onnx", convert)


def test_a_good_export_leaves_one_file_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, inputs = linear()
    target = tmp_path / "new" / "folder" / "m.onnx"
    exported = export(model, inputs, str(target), metadata={"plan": "12ab"})
    assert names(target.parent) == ["m.onnx"]
    assert exported.artifact.path == str(target)
    assert exported.artifact.metadata["plan"] == "12ab"
    assert exported.artifact.size_bytes == target.stat().st_size
    assert exported.artifact.inputs[0].shape == (None, 6)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_fixed_batch_on_request(tmp_path: Path) -> None:
    model, inputs = linear()
    exported = export(model, inputs, tmp_path / "m.onnx", dynamic_batch=False)
    assert exported.artifact.inputs[0].shape == (1, 6)
    assert exported.artifact.metadata["batch"] == "1"
    assert exported.notices == ()


@pytest.mark.parametrize(("model", "size"), [(OneBatch(), 1), (Centred(), 4)])
def test_a_batch_that_is_baked_in_is_kept_and_said(tmp_path: Path, model: nn.Module, size: int) -> None:
    x = torch.randn(size, 3, 2, 2)
    exported = export(model, (x,), tmp_path / "m.onnx")
    assert exported.artifact.inputs[0].shape == (size, 3, 2, 2)
    (notice,) = exported.notices
    assert f"exactly {size}" in notice.text
    torch.testing.assert_close(ArtifactModule(tmp_path / "m.onnx")(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_capture_that_needs_a_fixed_batch_falls_back(tmp_path: Path) -> None:
    class Loop(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([row * 2 for row in x])  # unrolls over the batch

    exported = export(Loop(), (torch.randn(1, 5),), tmp_path / "m.onnx")
    assert exported.artifact.inputs[0].shape == (1, 5)
    assert "torch.export" in exported.notices[0].text


@pytest.mark.usefixtures("wrong_weight")
def test_a_wrong_weight_is_rejected_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"the file of yesterday")
    model, inputs = linear()
    with pytest.raises(VerificationError, match=r"m\.onnx against the network: 'output' differs") as caught:
        export(model, inputs, target)
    assert caught.value.where == str(tmp_path / "m.onnx.rejected")
    assert names(tmp_path) == ["m.onnx", "m.onnx.rejected", "m.onnx.verify.json"]
    assert target.read_bytes() == b"the file of yesterday"


def test_a_wrong_weight_in_a_tflite_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(converted("waves", ".tflite")[0].read_bytes())
    model, inputs = waves()
    weight = model.state_dict()["head.weight"].numpy().tobytes()
    place = content.index(weight)
    content[place : place + 4] = b"\x00\x00\x80\x3f"
    (tmp_path / "wrong.tflite").write_bytes(content)
    child = tmp_path / "child.py"
    wrong = str(tmp_path / "wrong.tflite")
    child.write_text(f"import json, shutil, sys\nshutil.copy({wrong!r}, json.load(open(sys.argv[1]))['output'])\n")
    monkeypatch.setattr(tflite_format, "_CHILD", child)
    with pytest.raises(VerificationError, match="'output_0' differs"):
        export(model, inputs, tmp_path / "files" / "m.tflite")
    assert names(tmp_path / "files") == ["m.tflite.rejected", "m.tflite.verify.json"]


def test_a_file_that_no_runtime_opens_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "convert_to_onnx", lambda program, record, path: path.write_bytes(b"\xff" * 99))
    model, inputs = linear()
    with pytest.raises(VerificationError, match="cannot be opened") as caught:
        export(model, inputs, tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx.rejected", "m.onnx.verify.json"]
    assert ".tmp" not in caught.value.message


@pytest.mark.usefixtures("wrong_weight")
def test_success_clears_what_a_failure_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = linear()
    with pytest.raises(VerificationError):
        export(model, inputs, tmp_path / "m.onnx")
    monkeypatch.undo()
    export(model, inputs, tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx"]


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"m{suffix}"
    target.write_bytes(b"the file of yesterday")
    model, inputs = nn.Linear(200, 200), (torch.randn(1, 200),)
    with pytest.raises(StorageError, match="cannot write"):
        export(model, inputs, target)
    assert names(tmp_path) == [target.name]
    assert target.read_bytes() == b"the file of yesterday"


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, inputs = linear()
    with pytest.raises(StorageError, match="cannot write"):
        export(model, inputs, tmp_path / "file" / "m.onnx")


def test_an_interrupt_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_format, "convert_to_onnx", interrupted)
    model, inputs = linear()
    with pytest.raises(KeyboardInterrupt):
        export(model, inputs, tmp_path / "m.onnx")
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid(), "odd"):
        (tmp_path / f".m.onnx.{pid}.abc.tmp").mkdir()
    model, inputs = linear()
    export(model, inputs, tmp_path / "m.onnx")
    assert names(tmp_path) == [f".m.onnx.{os.getpid()}.abc.tmp", ".m.onnx.odd.abc.tmp", "m.onnx"]


def test_wrong_requests(tmp_path: Path) -> None:
    model, inputs = linear()
    with pytest.raises(ConfigError, match=r"m.pt.* is neither"):
        export(model, inputs, tmp_path / "m.pt")
    with pytest.raises(ConfigError, match="int3"):
        export(model, inputs, tmp_path / "m.onnx", precision="int3")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="checks_inputs"):
        export(model, inputs, tmp_path / "m.onnx", checks_inputs=[(torch.ones(2, 7),)])
    assert names(tmp_path) == []


def test_a_network_that_cannot_be_captured_leaves_a_log(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError, match="cannot capture") as caught:
        export(Branch(), (torch.ones(1, 3),), tmp_path / "m.onnx")
    assert "test_export_artifact.py:" in str(caught.value.where)
    assert str(tmp_path / "m.onnx.log") in str(caught.value.fix)
    assert "GuardOnDataDependent" in (tmp_path / "m.onnx.log").read_text()


def test_the_record_survives_the_way_to_the_final_name(tmp_path: Path) -> None:
    model, inputs = linear()
    export(model, inputs, tmp_path / "m.onnx", metadata={"role": "baseline"})
    record = read_record(tmp_path / "m.onnx")
    assert record is not None
    assert record.values["role"] == "baseline"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, edgeprune.export as e; assert 'torch' not in sys.modules; e.verify_pair; e.ArtifactModule"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        _ = edgeprune.export.nothing
