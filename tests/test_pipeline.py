"""The whole pipeline on a tiny network: its result, reuse, gates, and kill -9 at every point where it can hurt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.config import RunConfig, validate
from edgeprune.errors import ConfigError, ModelError, ResolveError, TrainingError
from edgeprune.pipeline.compress import RunResult, command, compress, resume
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.verdict import failure
from edgeprune.values import Json

TINY = Path(__file__).parent / "workloads" / "tiny.py"
BENCH = {"processes": 2, "min_runs": 5, "min_seconds": 0.02, "max_seconds": 1.0, "warmup_seconds": 0.0}
STABLE = ("plan.json", "pruned.safetensors", "finetuned.safetensors", "baseline.onnx", "model.onnx")


def _config(folder: Path, **changes: object) -> RunConfig:
    """Return the settings of a run of `folder/tiny.py` into `folder/run`, ONNX only and as short as can be."""
    data: Json = {"workload": str(folder / "tiny.py"), "output": str(folder / "run"), "bench": dict(BENCH)}
    data |= {"export": {"formats": ["onnx"]}, "finetune": {"epochs": 2, "checkpoint_every_s": 0}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data.setdefault(section, {})[name] = value
        else:
            data[section] = value
    return validate(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the tiny workload."""
    shutil.copy(TINY, tmp_path / "tiny.py")
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[Event]]:
    """A finished run and what it told its listener; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(TINY, folder / "tiny.py")
    events: list[Event] = []
    return compress(_config(folder), listen=events.append), events


@pytest.fixture
def copied(finished: tuple[RunResult, list[Event]], folder: Path) -> Path:
    """A copy of the finished run beside a copy of its workload."""
    shutil.copytree(finished[0].folder, folder / "run")
    return folder


def _digests(folder: Path) -> dict[str, str]:
    from edgeprune.rundir import file_digest

    return {name: file_digest(folder / "run" / name) or "missing" for name in STABLE}


def _rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "tiny.py").read_text()
    assert old in text
    (folder / "tiny.py").write_text(text.replace(old, new))


def _states(result: RunResult) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in result.data["stages"]}


def test_a_run_has_everything_that_was_promised(finished: tuple[RunResult, list[Event]]) -> None:
    run, _ = finished
    data = json.loads((run.folder / "result.json").read_text())
    assert data == run.data
    assert data["network"]["params"]["pruned"] < data["network"]["params"]["dense"]
    assert data["network"]["macs"]["pruned"] < data["network"]["macs"]["dense"]
    assert {group["name"]: group["channels_after"] for group in data["groups"]} == {
        "conv1": 16,
        "conv2": 16,
        "classify": 4,
    }
    assert all(data["metrics"][name]["top1"] >= 0 for name in ("dense", "pruned", "reconstructed", "finetuned"))
    assert [entry["role"] for entry in data["artifacts"]] == ["baseline", "model"]
    for entry in data["artifacts"]:
        assert entry["metrics_source"] == "test_data"
        assert all(check["passed"] for check in entry["checks"])
        assert len(entry["checks"]) >= 3
    assert data["compaction"]["check"]["passed"]
    assert len(data["measurements"]) == 2
    assert len(data["comparisons"]) == 1
    assert len(data["history"]) == 2
    assert data["verdict"]["passed"]
    assert "MACs" not in data["verdict"]["text"]
    assert data["environment"]["packages"]["torch"]
    for name in (*STABLE, "run.toml", "journal.jsonl", "results.jsonl", "history.json", "verify.json", "report.html"):
        assert (run.folder / name).stat().st_size > 0
    assert not list(run.folder.glob("checkpoint*"))


def test_fine_tuning_and_reconstruction_help_on_the_artifacts(finished: tuple[RunResult, list[Event]]) -> None:
    metrics = finished[0].data["metrics"]
    assert metrics["finetuned"]["top1"] > metrics["pruned"]["top1"]
    artifacts = {entry["role"]: entry["metrics"]["top1"] for entry in finished[0].data["artifacts"]}
    assert artifacts["model"] > artifacts["baseline"]


def test_training_validation_and_test_are_told_apart(finished: tuple[RunResult, list[Event]]) -> None:
    data = finished[0].data
    assert set(data["generalisation"]) == {"dense", "final"}
    for name, role in (("dense", "baseline"), ("final", "model")):
        row = data["generalisation"][name]
        (scored,) = (entry["metrics"] for entry in data["artifacts"] if entry["role"] == role)
        assert row["test"] == scored
        assert row["gap"]["top1"] == pytest.approx(row["train"]["top1"] - row["test"]["top1"])
        assert row["validation"]["top1"] >= 0
    assert "Gap to training" in (finished[0].folder / "report.html").read_text()


def test_batches_that_the_metric_does_not_take_cost_a_notice(folder: Path) -> None:
    _rewrite(folder, "def evaluate_outputs(", "CALLS = []\n\n\ndef evaluate_outputs(")
    third = "    CALLS.append(1)\n    if len(CALLS) > 2:\n        raise ValueError('another format')\n"
    _rewrite(folder, "    right = [", f"{third}    right = [")
    run = compress(_config(folder, finetune__epochs=0))
    assert run.data["generalisation"] is None
    (notice,) = (notice for notice in run.data["notices"] if notice["code"] == "no-train-metrics")
    assert "another format" in notice["text"]


def test_the_listener_hears_every_stage_begin_and_end(finished: tuple[RunResult, list[Event]]) -> None:
    _, events = finished
    assert events[0].state == "run"
    begun = [(event.stage, event.subject) for event in events if event.state == "begin"]
    done = [(event.stage, event.subject) for event in events if event.state == "done"]
    assert [stage for stage, _ in begun] == [stage for stage, _ in done]
    assert {stage for stage, _ in done} == {
        "plan",
        "baseline",
        "apply",
        "reconstruct",
        "generalise",
        "finetune",
        "export",
        "bench",
        "accuracy",
        "report",
    }
    progress = [event for event in events if event.state == "progress" and event.stage == "finetune"]
    assert progress
    assert all(event.total is None or (event.done or 0) <= event.total for event in progress)


def test_the_same_command_again_reuses_every_stage(copied: Path) -> None:
    before = _digests(copied)
    again = compress(_config(copied))
    assert set(_states(again).values()) == {"reused"}
    assert _digests(copied) == before


def test_a_run_goes_on_from_its_own_settings(copied: Path) -> None:
    (copied / "run" / "model.onnx").unlink()
    compress(_config(copied))
    again = resume(copied / "run")
    assert set(_states(again).values()) == {"reused"}
    assert again.data["settings"]["finetune"]["epochs"] == 2


def test_a_changed_setting_reruns_from_its_stage_and_is_named(copied: Path) -> None:
    events: list[Event] = []
    again = compress(_config(copied, finetune__lr=0.01), listen=events.append)
    states = _states(again)
    assert {name for name, state in states.items() if state == "reused"} == {
        "plan",
        "baseline",
        "apply",
        "reconstruct",
        "export baseline.onnx",
        "accuracy baseline.onnx",
    }
    because = {event.stage: event.facts["because"] for event in events if event.state == "begin" and event.facts}
    assert because["finetune"] == ["finetune.lr 0.001 -> 0.01"]
    assert because["export"] == ["finetuned.safetensors changed"]


def test_a_damaged_file_is_made_again_and_equal(copied: Path) -> None:
    before = _digests(copied)
    (copied / "run" / "model.onnx").write_bytes(b"truncated")
    again = compress(_config(copied))
    assert [name for name, state in _states(again).items() if state == "done"] == ["export model.onnx"]
    assert _digests(copied) == before


def test_an_edited_plan_is_set_aside_and_said(copied: Path) -> None:
    plan = copied / "run" / "plan.json"
    original = plan.read_text()
    plan.write_text(original.replace('"keep": [', '"keep": [ '))
    again = compress(_config(copied))
    assert [notice["code"] for notice in again.data["notices"]] == ["plan-edited"]
    assert plan.read_text() == original
    assert (copied / "run" / "plan.json.edited").read_text() != original


def test_another_workload_does_not_get_the_directory(copied: Path) -> None:
    before = _digests(copied)
    shutil.copy(copied / "tiny.py", copied / "other.py")
    with (copied / "other.py").open("a") as file:
        file.write("\nOTHER = True\n")
    with pytest.raises(ResolveError, match="a run of another workload"):
        compress(_config(copied, workload=str(copied / "other.py")))
    assert _digests(copied) == before


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_size": "1kB"}, "size of model.onnx"),
        ({"max_latency": "1us"}, "latency p50 of model.onnx"),
    ],
)
def test_a_missed_budget_is_a_verdict_after_everything_was_written(
    copied: Path, changes: dict[str, object], name: str
) -> None:
    again = compress(_config(copied, **changes))
    assert not again.passed
    assert name in again.data["verdict"]["text"]
    error = failure(again.data)
    assert error is not None
    assert error.exit_code == 5
    assert name in error.message
    assert (copied / "run" / "report.html").is_file()
    assert compress(_config(copied, max_size="1MB", max_latency="1s", max_drop=1.0)).passed


def test_a_metric_that_does_not_exist_is_told(copied: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.metric = 'top5'"):
        compress(_config(copied, finetune__metric="top5"))


def test_without_data_the_network_is_pruned_and_the_user_told(folder: Path) -> None:
    _rewrite(folder, "def train_data(", "def _train_data(")
    _rewrite(folder, "def train_step(", "def _train_step(")
    run = compress(_config(folder))
    assert [notice["code"] for notice in run.data["notices"]] == ["made-up-data", "no-data"]
    assert run.data["reconstruction"]["source"].startswith("inputs made up")
    assert run.data["metrics"]["finetuned"] is None
    assert run.data["metrics"]["recalibrated"] is None
    assert run.data["history"] == []


def test_without_a_metric_nothing_is_scored_and_the_report_is_whole(folder: Path) -> None:
    for name in ("evaluate(", "test_data(", "evaluate_outputs("):
        _rewrite(folder, f"def {name}", f"def _{name}")
    run = compress(_config(folder))
    assert set(run.data["metrics"].values()) == {None}
    assert all(entry["metrics"] is None for entry in run.data["artifacts"])
    assert "top1" not in run.data["verdict"]["text"]
    assert (run.folder / "report.html").stat().st_size > 0


def test_a_metric_that_is_not_finite_is_null_in_the_result(folder: Path) -> None:
    _rewrite(folder, ".mean().item()}", ".mean().item(), 'made_loss': float('nan')}")
    run = compress(_config(folder))
    assert json.loads((run.folder / "result.json").read_text())["metrics"]["dense"]["made_loss"] is None


def test_a_ratio_that_rounding_changes_is_told(copied: Path) -> None:
    again = compress(_config(copied, prune__ratio=0.75))
    assert [notice["code"] for notice in again.data["notices"]] == ["rounded"]
    assert "ratio 0.75 became 0.50" in again.data["notices"][0]["text"]


def test_calibration_data_alone_distils_and_says_so(folder: Path) -> None:
    _rewrite(folder, "def train_data(", "def calibration_data(")
    _rewrite(folder, "def train_step(", "def _train_step(")
    run = compress(_config(folder))
    assert [notice["code"] for notice in run.data["notices"]] == ["distilled"]
    assert run.data["metrics"]["reconstructed"] is not None
    assert len(run.data["history"]) == 2


def test_no_epochs_still_reconstruct(folder: Path) -> None:
    run = compress(_config(folder, finetune__epochs=0))
    assert run.data["metrics"]["recalibrated"] is None
    found = run.data["reconstruction"]
    assert found["improved"]
    assert found["error_after"] < found["error_before"]
    assert found["samples"] > 0
    assert {row["weight"] for row in found["layers"]} >= {"classify.weight"}
    solved = (run.folder / "reconstructed.safetensors").read_bytes()
    assert (run.folder / "finetuned.safetensors").read_bytes() == solved


def test_without_reconstruction_the_statistics_are_renewed(folder: Path) -> None:
    run = compress(_config(folder, finetune__epochs=0, reconstruct__samples=0))
    assert run.data["metrics"]["recalibrated"] is not None
    assert run.data["metrics"]["reconstructed"] is None
    assert run.data["reconstruction"] is None
    assert run.data["history"] == []
    recalibrated = (run.folder / "recalibrated.safetensors").read_bytes()
    assert (run.folder / "finetuned.safetensors").read_bytes() == recalibrated


def test_data_of_another_shape_than_the_inputs_costs_a_notice_and_recalibrates(folder: Path) -> None:
    other = "def calibration_data():\n    return [torch.zeros(4, 1, 9, 9)]\n\n\n"
    _rewrite(folder, "def train_data(", other + "def train_data(")
    run = compress(_config(folder, finetune__epochs=0))
    (notice,) = (notice for notice in run.data["notices"] if notice["code"] == "not-reconstructed")
    assert "shape of the example inputs" in notice["text"]
    assert not run.data["reconstruction"]["improved"]
    assert run.data["metrics"]["recalibrated"] is not None


def test_a_metric_that_needs_the_network_itself_costs_a_notice_only(folder: Path) -> None:
    _rewrite(folder, "def test_data(", "def _test_data(")
    _rewrite(
        folder, "def evaluate(model: nn.Module) -> dict[str, float]:", "def evaluate(model):\n    model.classify.weight"
    )
    run = compress(_config(folder))
    assert {notice["code"] for notice in run.data["notices"]} == {"not-scored"}
    assert all(entry["metrics"] is None for entry in run.data["artifacts"])
    assert run.data["metrics"]["finetuned"]["top1"] > 0


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_done(folder: Path) -> None:
    _rewrite(folder, "return F.cross_entropy(model(pictures), labels)", "return model(pictures).sum() * float('nan')")
    with pytest.raises(TrainingError, match="nan"):
        compress(_config(folder))
    assert (folder / "run" / "pruned.safetensors").is_file()
    assert not (folder / "run" / "finetuned.safetensors").exists()
    _rewrite(folder, "return model(pictures).sum() * float('nan')", "return F.cross_entropy(model(pictures), labels)")
    assert compress(_config(folder)).data["metrics"]["finetuned"]["top1"] > 0


def test_a_metric_that_is_no_number_is_told(folder: Path) -> None:
    _rewrite(folder, ".mean().item()}", ".mean().item() > 2 or 'good'}")
    with pytest.raises(ModelError, match="not a number"):
        compress(_config(folder))


def test_the_command_to_reproduce_names_what_is_not_default(folder: Path) -> None:
    config = _config(folder, prune__ratios={"conv1": 0.25}, target="host")
    from edgeprune.workload import load_workload

    words = command(config, load_workload(str(folder / "tiny.py")))
    assert words.startswith(f"edgeprune compress {folder / 'tiny.py'}")
    assert 'prune.ratios={"conv1" = 0.25}' in words
    assert "'export.formats=[\"onnx\"]'" in words
    assert "prune.ratio=" not in words


_KILLER = """
import os, signal, sys
import torch
import accelerate, onnxscript, torch.onnx
import edgeprune.bench, edgeprune.compact, edgeprune.export.artifact, edgeprune.report, edgeprune.training
from edgeprune import rundir
from edgeprune.config import load_config
from edgeprune.pipeline.compress import compress
from pathlib import Path

torch.set_num_threads(1)
config = load_config(Path(sys.argv[1]))
chained = sys.argv[2] == "chained"
points = sys.argv[3:]


def child(point):
    when, _, what = point.partition(" ")
    count = 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def listen(event):
        nonlocal count
        name = f"{event.stage} {event.subject}" if event.stage in ("export", "accuracy") else event.stage
        if event.state == when and name == what:
            count += 1
            if when == "begin" or count == 3:
                die()

    finish = rundir.RunDirectory.finish

    def finish_or_die(self, key, *rest):
        if when == "unrecorded" and key.stage == what:
            die()
        return finish(self, key, *rest)

    rundir.RunDirectory.finish = finish_or_die
    compress(config, listen=listen)


for point in points:
    pid = os.fork()
    if pid == 0:
        try:
            child(point)
        except BaseException as error:
            print(point, repr(error), flush=True)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if point != "never":
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{point} was not reached"
    if not chained:
        pid = os.fork()
        if pid == 0:
            child("never")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""
_STAGES = (
    "plan",
    "baseline",
    "apply",
    "reconstruct",
    "export baseline.onnx",
    "export model.onnx",
    "accuracy model.onnx",
    "generalise",
)
_CHAIN = [
    *(f"unrecorded {stage}" for stage in _STAGES[:4]),
    "progress finetune",
    "unrecorded finetune",
    *(f"unrecorded {stage}" for stage in _STAGES[4:6]),
    "progress bench",
    "unrecorded bench",
    "unrecorded accuracy model.onnx",
    "unrecorded generalise",
    "begin report",
    "never",
]
_POINTS = [*_CHAIN[:-1], *(f"begin {stage}" for stage in (*_STAGES, "finetune", "bench"))]


def _kill(folder: Path, *points: str, how: str = "chained") -> None:
    settings = folder / "settings.toml"
    settings.write_text(_config(folder).to_toml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", _KILLER, str(settings), how, *points]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kill_in_every_stage_then_the_same_command_gives_the_same_files(copied: Path, folder: Path) -> None:
    expected = _digests(copied)
    shutil.rmtree(copied / "run")
    _kill(folder, *_CHAIN)
    assert _digests(folder) == expected
    states = [json.loads(line)["event"] for line in (folder / "run" / "journal.jsonl").read_text().splitlines()]
    assert states.count("begin") > states.count("stage")
    assert set(_states(compress(_config(folder))).values()) == {"reused"}


@pytest.mark.slow
@pytest.mark.parametrize("point", _POINTS)
def test_each_kill_alone(copied: Path, folder: Path, point: str) -> None:
    expected = _digests(copied)
    shutil.rmtree(copied / "run")
    _kill(folder, point, how="alone")
    assert _digests(folder) == expected


@pytest.mark.slow
def test_two_processes_train_together_and_only_the_first_one_reports(folder: Path) -> None:
    (folder / "settings.toml").write_text(_config(folder).to_toml())
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "edgeprune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (folder / "edgeprune.toml").write_text((folder / "settings.toml").read_text())
    for state in ("done", "reused"):
        done = subprocess.run(
            [*words, "compress", "--json"], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        stages = {stage["name"]: stage["state"] for stage in json.loads(done.stdout)["stages"]}
        assert stages["finetune"] == state


_SLOW = """    import os, time
    time.sleep(float(os.environ.get("NAP_S", "0")))
    pictures, labels = batch
"""


def test_ctrl_c_while_training_exits_130_and_says_how_to_go_on(copied: Path) -> None:
    expected = _digests(copied)
    shutil.rmtree(copied / "run")
    _rewrite(copied, "    pictures, labels = batch\n", _SLOW)
    settings = ["-s", 'export.formats=["onnx"]', "-s", "finetune.epochs=2", "-s", "finetune.checkpoint_every_s=0"]
    settings += [word for key, value in BENCH.items() for word in ("-s", f"bench.{key}={value}")]
    words = [sys.executable, "-m", "edgeprune", "compress", "tiny.py", "-o", "run", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, cwd=copied, env=environment | {"NAP_S": "0.2"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(" reconstruct"):
            break
    while not list((copied / "run").glob("checkpoint*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted during finetune, epoch 1 of 2 (checkpoint saved)" in errors
    assert "continue with: edgeprune resume run" in errors
    assert "Traceback" not in errors
    resumed = subprocess.run(
        [sys.executable, "-m", "edgeprune", "resume", "run", "--json"],
        cwd=copied,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["verdict"]["passed"]
    assert _digests(copied) == expected
