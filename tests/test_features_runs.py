"""Features through the pipeline: in a run, in the steps one by one, in a loop, and what the report says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli import main
from edgeprune.errors import ConfigError
from edgeprune.pipeline import looping
from edgeprune.pipeline.compress import compress
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.tuning import tuned
from edgeprune.report.stages import stage_text
from tests.test_pipeline import TINY, _config
from tests.training_case import in_two_processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(TINY, tmp_path / "tiny.py")
    return tmp_path


def test_a_run_compares_features_and_says_so(folder: Path) -> None:
    events: list[Event] = []
    run = compress(_config(folder, finetune__features=1.0), listen=events.append)
    for record in run.data["history"]:
        train = record["train"]
        assert set(train) == {"loss", "step_loss", "feature_loss"}
        assert train["loss"] == pytest.approx(train["step_loss"] + train["feature_loss"], rel=1e-4)
    (done,) = [event for event in events if event.stage == "finetune" and event.state == "done"]
    compared = len(done.facts["features"])
    assert compared >= 1
    assert f"{compared} inner tensors compared" in stage_text("finetune", done.facts)
    page = (run.folder / "report.html").read_text()
    assert "feature_loss" in page


def test_the_steps_one_by_one_take_it_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["prune", "tiny.py", "--ratio", "0.5", "-o", "small", "-q"]) == 0
    capsys.readouterr()
    assert main(["finetune", "small", "--epochs", "1", "-s", "finetune.features=2", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["history"]
    train = record["train"]
    assert train["loss"] == pytest.approx(train["step_loss"] + 2 * train["feature_loss"], rel=1e-4)


def test_the_steps_of_a_loop_compare_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(*args: Any, **named: Any) -> Any:
        seen.append(len(named["features"]))
        return tuned(*args, **named)

    monkeypatch.setattr(looping, "tuned", watched)
    changes = {"finetune__features": 1.0, "finetune__epochs": 0, "loop__steps": 2, "loop__epochs": 1}
    run = compress(_config(folder, prune__align=1, **changes))
    assert [step["state"] for step in run.data["loop"]["steps"]] == ["kept", "kept"]
    assert len(seen) == 2
    assert min(seen) >= 1


def test_a_network_of_recorded_calls_is_refused_before_it_is_trained(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not go with prune\.output = 'graph'"):
        _config(folder, finetune__features=1.0, prune__output="graph")


def test_without_labels_features_are_compared_unless_there_are_none(folder: Path) -> None:
    source = (folder / "tiny.py").read_text()
    (folder / "tiny.py").write_text(source.replace("def train_step(", "def unused_step("))
    run = compress(_config(folder, finetune__epochs=1, bench__processes=1))
    assert set(run.data["history"][0]["train"]) == {"loss", "distill_loss", "feature_loss"}
    other = {"output": str(folder / "other"), "prune__output": "graph"}
    run = compress(_config(folder, finetune__epochs=1, bench__processes=1, **other))
    assert set(run.data["history"][0]["train"]) == {"loss"}


def test_two_processes_compare_the_same_features(folder: Path) -> None:
    settings = ["-s", "finetune.features=1", "-s", "finetune.epochs=1", "-s", "bench.processes=1"]
    settings += ["-s", "bench.min_runs=5", "-s", "bench.max_seconds=0.2", "-s", "bench.warmup_seconds=0"]
    words = ["edgeprune", "compress", "tiny.py", *settings, "-s", 'export.formats=["onnx"]', "-o", "run"]
    in_two_processes(words, folder)
    (record,) = json.loads((folder / "run" / "history.json").read_text())
    assert record["train"]["feature_loss"] > 0
