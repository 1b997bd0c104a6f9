"""Pruning during training through the pipeline: what a run keeps, says and reuses, and kill -9 in the middle of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune import rundir
from edgeprune.cli import main
from edgeprune.config import RunConfig
from edgeprune.errors import ConfigError
from edgeprune.pipeline.compress import RunResult, compress, resume
from edgeprune.pipeline.folders import load_masks, load_state, open_pruned
from edgeprune.pipeline.prepare import default_output, prepare
from edgeprune.pruning import PrunePlan
from tests.test_pipeline import TINY, _config, _states
from tests.training_case import in_two_processes

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {"prune__ratio": 0.0, "sparsify__method": "lamp", "sparsify__amount": 0.7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(TINY, tmp_path / "tiny.py")
    return tmp_path


def _gradual(folder: Path, method: str, **changes: object) -> RunConfig:
    target: dict[str, object] = dict(WEIGHTS) if method in ("weights", "rigl") else {}
    return _config(folder, **(target | {"gradual__method": method} | changes))


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("channels")
    shutil.copy(TINY, folder / "tiny.py")
    return compress(_gradual(folder, "channels", gradual__epochs=3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(TINY, folder / "tiny.py")
    return compress(_gradual(folder, "weights"))


def test_the_plan_is_what_training_zeroed_and_the_cut_costs_nothing(channels: RunResult) -> None:
    state = load_state(channels.folder / rundir.TRAINED)
    plan = PrunePlan.load(channels.folder / rundir.PLAN)
    assert plan.digest == PrunePlan.load(channels.folder / rundir.ZEROED).digest
    for group, weight in (("conv1", state["conv1.weight"]), ("conv2", state["conv2.weight"])):
        alive = (weight.flatten(1) != 0).any(1).nonzero().flatten().tolist()
        assert plan.groups[group].keep == tuple(alive)
        assert len(alive) == 16
    data = channels.data
    assert data["gradual"]["cut"]["max_rel"] < 1e-6
    assert data["metrics"]["zeroed"] == data["metrics"]["pruned"]
    assert data["metrics"]["dense"] == {"top1": 0.25}  # the baseline is the network as it was given
    assert [name for name, values in data["metrics"].items() if name.startswith("re") and values] == []
    assert len(data["gradual"]["history"]) == 3
    assert len(data["history"]) == 2
    small = load_state(channels.folder / rundir.PRUNED)
    keep = list(plan.groups["conv1"].keep)
    assert torch.equal(small["conv1.weight"], state["conv1.weight"][keep])


def test_a_run_says_how_far_pruning_was(channels: RunResult, weights: RunResult) -> None:
    trail = channels.data["gradual"]["trail"]
    assert trail[-1] == {"step": 14, "zeros": 0.5}  # three quarters of 18 steps
    assert [row["zeros"] for row in trail] == sorted(row["zeros"] for row in trail)
    page = (channels.folder / "report.html").read_text()
    assert "Pruning during training" in page
    assert "50.0% of the units zero after step 14" in page
    assert "Dense network, trained while channels went" in page
    assert weights.data["gradual"]["trail"][-1]["step"] == 9
    page = (weights.folder / "report.html").read_text()
    assert "share of weights that is zero" in page
    assert "70.0% of 9.63 k weights in 3 layers are zero (weights, lamp)" in page


def test_weights_that_went_in_fine_tuning_are_zero_in_the_files(weights: RunResult) -> None:
    masks, state = load_masks(weights.folder), load_state(weights.folder / rundir.FINETUNED)
    assert masks is not None
    assert masks.zeros == round(0.7 * masks.weights) == weights.data["sparsity"]["zeros"]
    assert all((state[name][~mask] == 0).all() for name, mask in masks.kept.items())
    assert load_masks(weights.folder, rundir.PRUNED) is None
    assert open_pruned(weights.folder).masks is not None
    assert "sparsify" not in _states(weights)
    assert "x smaller compressed" in weights.data["verdict"]["text"]


@pytest.mark.parametrize("name", ["channels", "weights"])
def test_the_same_command_again_reuses_every_stage(name: str, request: pytest.FixtureRequest, folder: Path) -> None:
    finished: RunResult = request.getfixturevalue(name)
    shutil.copytree(finished.folder, folder / "run")
    epochs: dict[str, object] = {"gradual__epochs": 3} if name == "channels" else {}
    again = compress(_gradual(folder, name, **epochs))
    assert set(_states(again).values()) == {"reused"}
    assert again.data["gradual"] == finished.data["gradual"]
    other = compress(_gradual(folder, name, **(epochs | {"gradual__every": 3})))
    rerun = {stage for stage, state in _states(other).items() if state == "done"}
    assert ("train" if name == "channels" else "finetune") in rerun
    assert not {"baseline", "export baseline.onnx"} & rerun
    plain = compress(_config(folder, **(WEIGHTS if name == "weights" else {})))
    assert plain.data["gradual"] is None
    assert not (folder / "run" / rundir.FINETUNED_MASKS).exists()


@pytest.mark.parametrize("method", ["channels", "regularise", "rigl"])
def test_a_run_that_is_killed_while_it_prunes_ends_with_the_same_bits(folder: Path, method: str) -> None:
    stage = "finetune" if method == "rigl" else "train"
    compress(_gradual(folder, method, output=str(folder / "whole")))
    program = f"""
import os, signal
from pathlib import Path
from edgeprune.pipeline.compress import compress
from tests.test_gradual_runs import _gradual
def listen(event):
    if event.stage == {stage!r} and event.state == "progress" and event.done == 8:
        os.kill(os.getpid(), signal.SIGKILL)
compress(_gradual(Path({str(folder)!r}), {method!r}), listen=listen)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((folder / "run").glob("*checkpoint*"))
    resume(folder / "run")
    names = [rundir.FINETUNED, *([rundir.FINETUNED_MASKS] if method == "rigl" else [rundir.TRAINED, rundir.PLAN])]
    for name in names:
        assert rundir.file_digest(folder / "run" / name) == rundir.file_digest(folder / "whole" / name), name
    assert not list((folder / "run").glob("*checkpoint*"))


def test_prune_and_finetune_as_commands(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("edgeprune.toml").write_text(
        '[prune]\nratio = 0.5\n[sparsify]\nmethod = "magnitude"\namount = 0.6\n[gradual]\nmethod = "weights"\n'
    )
    assert main(["prune", "tiny.py", "-o", "small"]) == 0
    assert not Path("small/masks.safetensors").exists()
    capsys.readouterr()
    assert main(["finetune", "small", "--epochs", "2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["sparsity"]["zeros"] == pytest.approx(0.6 * done["sparsity"]["weights"], abs=2)
    assert done["gradual"]["trail"][-1]["step"] == 9
    first = Path("small/finetuned.safetensors").read_bytes()
    assert main(["finetune", "small", "--epochs", "2", "-q"]) == 0  # once more, from the pruned network
    assert Path("small/finetuned.safetensors").read_bytes() == first
    assert main(["export", "small", "-o", "small/model.onnx", "-q"]) == 0
    assert main(["finetune", "small", "--epochs", "1", "-s", "gradual.method=channels", "-q"]) == 2
    assert "this one is cut already" in capsys.readouterr().err
    assert main(["prune", "tiny.py", "-o", "other", "-s", "gradual.method=soft", "-q"]) == 2
    assert "prune does not train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "changes", "text"),
    [
        ("channels", {"finetune__epochs": 0}, "there is no epoch"),
        ("channels", {"prune__split_recurrent": True}, "does not go with prune.split_recurrent"),
        ("weights", {"gradual__epochs": 2}, "gradual.epochs means nothing"),
        ("weights", {"sparsify__method": None, "sparsify__amount": None}, "needs sparsify.method"),
        ("channels", {"gradual__begin": 20}, "begins at step 20 and ends at step 9"),
        (None, {"gradual__every": 20}, "gradual.every = 20 and no gradual.method"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder: Path, method: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compress(_gradual(folder, method, **changes))


def test_a_workload_without_data_is_refused(folder: Path) -> None:
    source = (folder / "tiny.py").read_text()
    (folder / "tiny.py").write_text(source.replace("def train_", "def _train_"))
    with pytest.raises(ConfigError, match="has no data"):
        prepare(_gradual(folder, "channels"))


def test_the_folder_of_a_run_names_the_method(folder: Path) -> None:
    assert default_output(prepare(_gradual(folder, "soft", output=None))).name.endswith("-r50-soft")


@pytest.mark.parametrize("method", ["channels", "rigl"])
def test_two_processes_prune_together(folder: Path, method: str) -> None:
    config = _gradual(folder, method)
    (folder / "edgeprune.toml").write_text(config.model_copy(update={"output": "run", "workload": ""}).to_toml())
    in_two_processes(["edgeprune", "compress", "tiny.py"], folder)
    result = json.loads((folder / "run" / rundir.RESULT).read_text())
    assert result["gradual"]["trail"][-1]["step"] == 4  # each process has half of the batches
    assert result["gradual"]["trail"][-1]["zeros"] == pytest.approx(0.5 if method == "channels" else 0.7, abs=0.001)
