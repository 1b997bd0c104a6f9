"""Runs with quantisation-aware training: their files, the gain that is told, what is reused, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeprune.cli import main
from edgeprune.config import RunConfig, validate
from edgeprune.errors import ConfigError
from edgeprune.pipeline.compress import RunResult, command, compress, resume
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.gain import chosen
from edgeprune.pipeline.prepare import check_aware
from edgeprune.report.stages import stage_text
from edgeprune.rundir import file_digest
from edgeprune.values import Json
from edgeprune.workload import load_workload

WORKLOADS = Path(__file__).parent / "workloads"
BENCH = {"processes": 2, "min_runs": 5, "min_seconds": 0.02, "max_seconds": 1.0, "warmup_seconds": 0.0}


def _config(folder: Path, **changes: object) -> RunConfig:
    """Return the settings of a short run on the network that integers hurt, left as it is but for int8."""
    data: Json = {"workload": str(folder / "sensitive.py"), "output": str(folder / "run"), "bench": dict(BENCH)}
    data |= {"export": {"formats": ("onnx",), "precisions": ("int8",), "min_sqnr_db": 0}, "finetune": {"epochs": 0}}
    data |= {"quantise": {"equalise_db": 0, "wanted_db": 0}, "qat": {"epochs": 4, "lr": 3e-3}}
    data |= {"prune": {"ratio": 0.0, "align": 1}, "reconstruct": {"samples": 0}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data.setdefault(section, {})[name] = value
    return validate(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the workloads."""
    for name in ("sensitive.py", "tiny.py"):
        shutil.copy(WORKLOADS / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(WORKLOADS / "sensitive.py", folder / "sensitive.py")
    return compress(_config(folder))


def _states(result: RunResult) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in result.data["stages"]}


def test_what_the_training_gains_is_measured_and_reported(finished: RunResult) -> None:
    aware = finished.data["quantise_aware"]
    (gain,) = aware["files"]
    assert (gain["path"], gain["kept"], gain["metric"]) == ("model.int8.onnx", "aware", "top1")
    post, trained = gain["post"], gain["aware"]
    assert trained["sqnr_db"] > post["sqnr_db"] + 10
    assert trained["validation"]["top1"] > post["validation"]["top1"] + 0.4
    assert post["source"] == trained["source"] == "evaluate"
    assert trained["metrics"]["top1"] > post["metrics"]["top1"]
    entry = finished.data["artifacts"][-1]
    assert entry["artifact"]["path"] == "model.int8.onnx"
    assert entry["metrics"] == trained["metrics"]
    assert entry["quantisation"]["sqnr_db"] == trained["sqnr_db"]
    assert finished.data["metrics"]["quantise_aware"]["top1"] > 0.9
    assert len(aware["history"]) == 4
    assert aware["rounded"] == aware["history"][aware["best_epoch"] - 1]["validation"]
    assert aware["lr"] == 3e-3


def test_the_int8_file_is_that_of_the_trained_weights_and_the_others_are_not(finished: RunResult) -> None:
    digests = {path.name: file_digest(path) for path in finished.folder.iterdir()}
    assert digests["model.int8.onnx"] == digests["qat.int8.onnx"] != digests["post.int8.onnx"]
    assert digests["model.onnx"] != digests["qat.onnx"]
    assert [entry["artifact"]["path"] for entry in finished.data["artifacts"]] == ["baseline.onnx", "model.int8.onnx"]
    plain, trained = (load_file(finished.folder / f"{name}.safetensors") for name in ("finetuned", "qat"))
    assert plain.keys() == trained.keys()
    assert not torch.equal(plain["conv1.weight"], trained["conv1.weight"])
    assert not list(finished.folder.glob("*checkpoint*"))


def test_the_report_and_the_console_say_it(finished: RunResult) -> None:
    page = (finished.folder / "report.html").read_text()
    assert "Quantisation-aware training" in page
    assert "Quantised after training" in page
    assert "After quantisation-aware training, in float32" in page
    (gain,) = finished.data["quantise_aware"]["files"]
    facts = finished.data["artifacts"][-1] | {"gain": gain}
    text = stage_text("export", facts)
    assert "quantisation-aware training kept: top1" in text
    assert "with it" in text
    lines = stage_text("qat", finished.data["quantise_aware"])
    assert lines.startswith("4 epochs  loss")
    assert "on integers top1" in lines


def test_a_training_that_does_not_help_is_undone_and_said(folder: Path) -> None:
    text = (folder / "sensitive.py").read_text()
    (folder / "sensitive.py").write_text(text.replace("FACTOR = 1000.0", "FACTOR = 1.0"))
    run = compress(_config(folder, qat__lr=3.0, qat__epochs=1))
    (gain,) = run.data["quantise_aware"]["files"]
    assert gain["kept"] == "post"
    assert gain["aware"] is None or gain["aware"]["validation"]["top1"] < gain["post"]["validation"]["top1"]
    assert file_digest(run.folder / "model.int8.onnx") == file_digest(run.folder / "post.int8.onnx")
    assert "no-gain" in [notice["code"] for notice in run.data["notices"]]


def test_an_interrupted_training_goes_on_and_ends_with_the_same_files(finished: RunResult, folder: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.stage == "qat" and event.state == "progress" and event.facts["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(_config(folder), listen=interrupt)
    assert len(list((folder / "run").glob("qat.checkpoint.*"))) == 1
    assert not (folder / "run" / "qat.safetensors").exists()
    epochs = []
    resumed = resume(
        folder / "run",
        listen=lambda event: (
            epochs.append(event.facts["epoch"]) if event.stage == "qat" and event.state == "progress" else None
        ),
    )
    assert min(epochs) == 3
    assert _states(resumed)["finetune"] == "reused"
    for name in ("qat.safetensors", "model.int8.onnx"):
        assert file_digest(resumed.folder / name) == file_digest(finished.folder / name), name


def test_finished_stages_are_reused_and_settings_count(finished: RunResult, folder: Path) -> None:
    shutil.copytree(finished.folder, folder / "run")
    again = compress(_config(folder))
    assert set(_states(again).values()) == {"reused"}
    assert again.data["quantise_aware"] == finished.data["quantise_aware"]
    without = compress(_config(folder, qat__epochs=0))
    assert without.data["quantise_aware"] is None
    assert _states(without)["export model.int8.onnx"] == "done"
    assert "qat" not in _states(without)
    assert file_digest(folder / "run" / "model.int8.onnx") == file_digest(finished.folder / "post.int8.onnx")


def test_what_it_needs_is_checked_before_work_begins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="trains for int8 files") as caught:
        compress(_config(folder, export__precisions=("fp32", "fp16")))
    assert caught.value.fix == "--precision fp32,fp16,int8"
    with pytest.raises(ConfigError, match="one process"):
        check_aware(_config(folder), 2, load_workload(str(folder / "sensitive.py")))
    text = (folder / "sensitive.py").read_text()
    (folder / "sensitive.py").write_text(text.replace("def train_", "def _train_"))
    with pytest.raises(ConfigError, match="needs data to train on"):
        compress(_config(folder))
    assert not (folder / "run").exists()
    assert main(["compress", str(folder / "tiny.py"), "--qat-epochs", "2", "--json"]) == 2
    assert "int8" in json.loads(capsys.readouterr().out)["message"]
    with pytest.raises(ConfigError, match=r"qat\.epochs"):
        _config(folder, qat__epochs=-1)


def test_a_run_is_reproduced_with_its_flag(folder: Path) -> None:
    line = command(_config(folder), load_workload(str(folder / "sensitive.py")))
    assert "--qat-epochs 4" in line
    assert "qat.lr=0.003" in line


def test_a_refused_file_leaves_the_other_and_sqnr_decides_without_a_metric(folder: Path) -> None:
    config = _config(folder)
    side: Json = {"sqnr_db": 20.0, "validation": {"top1": 0.8}, "source": "evaluate", "metrics": None}
    assert chosen({"post": None, "aware": side}, config)["kept"] == "aware"
    assert chosen({"post": side, "aware": None}, config)["kept"] == "post"
    better = side | {"sqnr_db": 30.0}
    assert chosen({"post": side, "aware": better}, config)["kept"] == "aware"
    assert chosen({"post": better, "aware": side}, config)["kept"] == "post"
    worse = better | {"validation": {"top1": 0.7}}
    assert chosen({"post": side, "aware": worse}, config) == {
        "post": side,
        "aware": worse,
        "metric": "top1",
        "kept": "post",
    }
    blind = [found | {"validation": None, "source": None} for found in (side, better)]
    assert chosen({"post": blind[0], "aware": blind[1]}, config) | {"post": 0, "aware": 0} == {
        "post": 0,
        "aware": 0,
        "metric": None,
        "kept": "aware",
    }
    refused = compress(_config(folder, export__min_sqnr_db=15, qat__epochs=4))
    (gain,) = refused.data["quantise_aware"]["files"]
    assert gain["post"] is None
    assert gain["kept"] == "aware"
    assert refused.data["refused"] == []
    both = compress(_config(folder, export__min_sqnr_db=150))
    assert [item["path"] for item in both.data["refused"]] == ["model.int8.onnx"]
    assert not both.passed
