"""The command export: descriptions, .ort files, targets, programs that edgeprune did not make, weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeprune.errors import ConfigError, EdgePruneError, ResolveError
from edgeprune.export import ArtifactModule, read_record
from edgeprune.export.sizes import sizes_of
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.start import read_settings
from edgeprune.pipeline.writing import export
from edgeprune.values import Json

WORKLOAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def model():
    return Net()

def inputs():
    return (torch.rand(1, 3, 8, 8),)

def labels():
    return ["cat", "dog", "owl"]

def preprocessing():
    return {"kind": "image", "scale": 1 / 255, "mean": [0.5], "std": [0.25]}
"""


@pytest.fixture
def workload(tmp_path: Path) -> str:
    path = tmp_path / "described_net.py"
    path.write_text(WORKLOAD)
    return str(path)


def write(source: str, output: Path, **settings: object) -> tuple[Json, list[Event]]:
    events: list[Event] = []
    given = {"output": str(output), **{key.replace("__", "."): value for key, value in settings.items()}}
    return export(source, read_settings((), given), listen=events.append), events


def program(path: Path) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    class Gate(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left * torch.sigmoid(right)

    inputs = torch.randn(2, 6), torch.randn(2, 6)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(Gate(), inputs, dynamic_shapes=({0: batch}, {0: batch})), str(path))
    return Gate(), inputs


def test_onnx_files_carry_labels_and_preprocessing(workload: str, tmp_path: Path) -> None:
    write(workload, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found["labels"] == "cat\ndog\nowl"
    assert found["name"] == "described_net"
    assert '"mean": [0.5]' in found["inputs"]
    assert "described_net" in model.doc_string


@pytest.mark.parametrize("precision", ["fp32", "int8-weights"])
def test_tflite_files_carry_them_in_every_precision(workload: str, tmp_path: Path, precision: str) -> None:
    write(workload, tmp_path / "m.tflite", export__precisions=[precision])
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert archive.read("labels.txt") == b"cat\ndog\nowl\n"
    assert b"TFLITE_METADATA" in (tmp_path / "m.tflite").read_bytes()
    record = read_record(tmp_path / "m.tflite")
    assert record is not None
    assert record.values["precision"] == precision


def test_labels_that_do_not_fit_are_told_before_anything_is_converted(workload: str, tmp_path: Path) -> None:
    Path(workload).write_text(WORKLOAD.replace('["cat", "dog", "owl"]', '["cat", "dog"]'))
    with pytest.raises(ConfigError, match="2 labels"):
        write(workload, tmp_path / "new" / "m.onnx")
    assert not list((tmp_path / "new").iterdir())


def test_an_ort_file_is_written_with_its_operators_and_can_be_read(workload: str, tmp_path: Path) -> None:
    done, _ = write(workload, tmp_path / "ort" / "m.ort")
    assert sorted(path.name for path in (tmp_path / "ort").iterdir()) == ["m.ort", "m.required_operators.config"]
    assert done["others"] == [str(tmp_path / "ort" / "m.required_operators.config")]
    assert done["artifact"]["metadata"]["workload"] == "described_net"
    assert done["artifact"]["inputs"][0]["name"] == "x"
    assert sizes_of(tmp_path / "ort" / "m.ort").size_bytes == done["artifact"]["size_bytes"]
    write(workload, tmp_path / "m.onnx")
    x = torch.rand(3, 3, 8, 8)
    outputs = [ArtifactModule(path)(x) for path in (tmp_path / "ort" / "m.ort", tmp_path / "m.onnx")]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_a_target_refuses_what_its_runtime_gets_wrong_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wrong results and no error") as caught:
        write("absent.py", tmp_path / "m.tflite", target="linux-armv7l", export__precisions=["int8-dynamic"])
    assert caught.value.fix == "--precision int8-weights"


def test_without_its_runtime_a_target_is_told_to_be_unproved(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEPRUNE_TFLITE_RUNTIME_PYTHON", raising=False)
    done, _ = write(workload, tmp_path / "m.tflite", target="linux-armv7l")
    assert [notice["code"] for notice in done["notices"]] == ["not-verified-there"]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_program_that_edgeprune_did_not_make(tmp_path: Path, suffix: str) -> None:
    model, inputs = program(tmp_path / "net.pt2")
    done, _ = write(str(tmp_path / "net.pt2"), tmp_path / f"m{suffix}")
    assert [spec["name"] for spec in done["artifact"]["inputs"]] == ["left", "right"]
    torch.testing.assert_close(ArtifactModule(tmp_path / f"m{suffix}")(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)


def test_a_program_takes_its_calibration_from_a_file(tmp_path: Path) -> None:
    program(tmp_path / "net.pt2")
    values = np.random.default_rng(0).standard_normal((2, 64, 6)).astype(np.float32)
    np.savez(tmp_path / "c.npz", left=values[0], right=values[1])
    with pytest.raises(ConfigError, match="int8 needs calibration data"):
        write(str(tmp_path / "net.pt2"), tmp_path / "m.onnx", export__precisions=["int8"])
    settings = {"export__precisions": ["int8"], "quantise__calibration": str(tmp_path / "c.npz")}
    done, _ = write(str(tmp_path / "net.pt2"), tmp_path / "m.onnx", **settings)
    assert done["artifact"]["precision"] == "int8"


def test_weights_for_a_workload_and_none_for_a_program(workload: str, tmp_path: Path) -> None:
    program(tmp_path / "net.pt2")
    with pytest.raises(ResolveError, match="has its own weights"):
        write(str(tmp_path / "net.pt2"), tmp_path / "m.onnx", weights="w.safetensors")


class Bad(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize(
    ("name", "text"),
    [("script.pt", "TorchScript"), ("pickled.pth", "unpickling"), ("w.safetensors", "no network that they belong to")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_that_are_no_networks_are_refused_with_the_reason(tmp_path: Path, name: str, text: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / name
    if "script" in name:
        torch.jit.save(torch.jit.trace(Bad(), torch.zeros(1)), str(path))
    elif "pickled" in name:
        torch.save({"a": torch.zeros(1)}, path)
    else:
        save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(ResolveError, match=text) as caught:
        write(str(path), tmp_path / "m.onnx")
    assert caught.value.fix


def test_a_limit_that_cannot_be_read(workload: str) -> None:
    with pytest.raises(EdgePruneError, match=r"export\.memory_limit: 'much' is not") as caught:
        write(workload, Path("m.onnx"), export__memory_limit="much")
    assert isinstance(caught.value, ConfigError)
