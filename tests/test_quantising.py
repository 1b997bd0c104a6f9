"""Quantisation by the command line: the file of true inputs, and what is told when it does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.cli import main
from edgeprune.config import QuantiseConfig
from edgeprune.export import read_artifact
from edgeprune.pipeline.quantising import calibration_digest, quantisation

TINY = Path(__file__).parent / "workloads" / "tiny.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny workload, that commands run in."""
    shutil.copy(TINY, tmp_path / "tiny.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _true(count: int = 48) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["export", "tiny.py", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_file_of_true_inputs_makes_an_int8_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "c.npz", x=_true())
    code, told = _run(capsys, "-o", "m.onnx", "--precision", "int8", "--calibration", "c.npz", "--io", "int8",
                      "--layout", "nhwc")  # fmt: skip
    assert code == 0, told
    artifact = read_artifact(folder / "m.onnx")
    assert artifact.precision == "int8"
    assert (artifact.inputs[0].dtype, artifact.inputs[0].shape[1:]) == ("int8", (8, 8, 1))
    assert "int8" in json.dumps(told)


@pytest.mark.parametrize(
    ("write", "name", "code"),
    [
        (lambda path: np.save(path, np.array([{}], object)), "c.npy", 2),
        (lambda path: np.savez(path, x=_true(4).astype(np.float64)), "c.npz", 3),
        (lambda path: np.savez(path, y=_true(4), z=_true(4)), "c.npz", 2),
        (lambda path: np.savez(path, x=np.ones((9, 1, 8, 8), np.float32)), "c.npz", 2),
        (lambda path: path.write_bytes(b"junk"), "c.safetensors", 2),
    ],
)
def test_files_that_do_not_fit_are_errors_with_a_fix(
    folder: Path, capsys: pytest.CaptureFixture[str], write: Any, name: str, code: int
) -> None:
    write(folder / name)
    found, told = _run(capsys, "-o", "m.onnx", "--precision", "int8", "--calibration", name)
    assert found == code, told
    assert "fix" in json.dumps(told)
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--io", "int8"),
        ("--precision", "int7"),
        ("--layout", "nwhc"),
        ("--precision", "int8", "--io", "int4"),
        ("--precision", "int8", "--calibration", "none.npz"),
    ],
)
def test_contradictions_are_told_before_anything_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, _ = _run(capsys, "-o", "m.onnx", *arguments)
    assert code == 2
    assert not (folder / "m.onnx").exists()


def test_the_file_counts_by_its_content_and_settings_are_handed_on(tmp_path: Path) -> None:
    assert calibration_digest(QuantiseConfig()) == {}
    config = QuantiseConfig(calibration=str(tmp_path / "c.npy"), methods=("mse",), samples=7, io="uint8")
    np.save(tmp_path / "c.npy", np.ones(3))
    first = calibration_digest(config)
    np.save(tmp_path / "c.npy", np.zeros(3))
    assert calibration_digest(config) != first
    events: list[Any] = []
    made = quantisation(config, events.append, "m.onnx", "int8")
    assert (made.methods, made.samples, made.io) == (("mse",), 7, "uint8")
    assert quantisation(config, events.append, "m.onnx", "fp16").io == "float32"
    made.on_progress("calibrating", 3, 7)
    (event,) = events
    assert (event.subject, event.done, event.total, event.facts) == ("m.onnx", 3, 7, {"text": "calibrating"})
