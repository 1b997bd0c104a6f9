"""Runs in several precisions: their files, what is reused, what happens when one fails, and int8 held to a drop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprune.cli import main
from edgeprune.config import RunConfig, validate
from edgeprune.errors import ConfigError, ModelError, ResolveError
from edgeprune.pipeline.compress import RunResult, command, compress, resume
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.verdict import failure
from edgeprune.quantise import OnnxFloat
from edgeprune.rundir import file_digest
from edgeprune.values import Json
from edgeprune.workload import load_workload

TINY = Path(__file__).parent / "workloads" / "tiny.py"
BENCH = {"processes": 2, "min_runs": 5, "min_seconds": 0.02, "max_seconds": 1.0, "warmup_seconds": 0.0}


def _config(folder: Path, *precisions: str, formats: tuple[str, ...] = ("onnx",), **changes: object) -> RunConfig:
    """Return the settings of a short run of `folder/tiny.py` into `folder/run`."""
    data: Json = {"workload": str(folder / "tiny.py"), "output": str(folder / "run"), "bench": dict(BENCH)}
    data |= {"export": {"formats": formats, "precisions": precisions}, "finetune": {"epochs": 1}}
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run in two formats and two precisions; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(TINY, folder / "tiny.py")
    return compress(_config(folder, "int8", "fp32", formats=("onnx", "tflite")))


@pytest.fixture
def copied(finished: RunResult, folder: Path) -> Path:
    """A copy of the finished run beside a copy of its workload."""
    shutil.copytree(finished.folder, folder / "run")
    return folder


def _rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "tiny.py").read_text()
    assert old in text
    (folder / "tiny.py").write_text(text.replace(old, new))


def _states(result: RunResult) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in result.data["stages"]}


def _names(result: RunResult) -> list[str]:
    return [entry["artifact"]["path"] for entry in result.data["artifacts"]]


def test_the_pruned_network_comes_in_every_precision_and_the_dense_one_in_float32(finished: RunResult) -> None:
    expected = [f"{name}.{form}" for form in ("onnx", "tflite") for name in ("baseline", "model", "model.int8")]
    assert _names(finished) == expected
    roles = [entry["role"] for entry in finished.data["artifacts"]]
    assert roles == ["baseline", "model", "model"] * 2
    assert len(finished.data["measurements"]) == 6
    assert len(finished.data["comparisons"]) == 4
    for entry in finished.data["artifacts"]:
        name, precision = entry["artifact"]["path"], entry["artifact"]["precision"]
        assert precision == ("int8" if ".int8." in name else "fp32")
        assert file_digest(finished.folder / name) == entry["artifact"]["sha256"]
        assert all(check["passed"] for check in entry["checks"])
        assert entry["metrics_source"] == "test_data"
        facts = entry["quantisation"]
        assert (facts is None) is (precision == "fp32")
        if facts is not None:
            assert {"minmax", "percentile", "entropy", "mse"} <= set(facts["methods"])
            assert facts["sqnr_db"] > 20
    sizes = {entry["artifact"]["path"]: entry["artifact"]["size_bytes"] for entry in finished.data["artifacts"]}
    assert all(sizes[f"model.int8.{form}"] < sizes[f"model.{form}"] for form in ("onnx", "tflite"))
    assert set(json.loads((finished.folder / "verify.json").read_text())) == set(sizes)


def test_verdict_table_and_page_tell_the_precisions_apart(finished: RunResult) -> None:
    from edgeprune.report.text import compress_table

    parts = finished.data["verdict"]["text"].split(", ")
    for kind, value in _comparisons(finished).items():
        ratio = f"{value['ratio']:.2f}x"
        verdict = value["verdict"]
        said = f"{kind} {verdict} ({ratio}" if verdict == "no difference shown" else f"{kind} {ratio} {verdict} ("
        assert sum(part.startswith(said) for part in parts) == 1
    assert sum("smaller" in part for part in parts) >= 2
    table = compress_table(finished.data, 160)
    assert [line.split()[0] for line in table.splitlines()[1:7]] == _names(finished)
    assert table.count(" dB") == 2
    page = (finished.folder / "report.html").read_text()
    assert "<h2>Quantisation</h2>" in page
    assert "model.int8.tflite" in page
    assert finished.data["reproduce"][0].count("--precision int8,fp32") == 1
    assert finished.passed


def _comparisons(run: RunResult) -> dict[str, Json]:
    """Return the comparisons by what the verdict calls them."""
    rows = {row["row_id"]: row["artifact"] for row in run.data["measurements"]}
    found = {}
    for value in run.data["comparisons"]:
        artifact = rows[value["row"]]
        lower = f" {artifact['precision']}" if artifact["precision"] != "fp32" else ""
        found[artifact["format"] + lower] = value
    assert set(found) == {"onnx", "onnx int8", "tflite", "tflite int8"}
    return found


def test_the_same_again_is_reused_and_other_settings_rerun_their_files_alone(copied: Path) -> None:
    both = ("onnx", "tflite")
    again = compress(_config(copied, "int8", "fp32", formats=both))
    assert set(_states(again).values()) == {"reused"}
    events: list[Event] = []
    changed = compress(_config(copied, "fp32", "int8", formats=both, quantise__samples=40), listen=events.append)
    done = {name for name, state in _states(changed).items() if state == "done"}
    assert {"export model.int8.onnx", "export model.int8.tflite"} <= done
    assert not {name for name in done if "int8" not in name} - {"bench"}
    because = [event.facts["because"] for event in events if event.stage == "export" and event.state == "begin"]
    assert because == [["quantise.samples 128 -> 40"]] * 2


def test_a_run_that_float32_was_made_in_takes_another_precision_without_training_again(copied: Path) -> None:
    more = compress(_config(copied, "fp32", "fp16", "int8-weights"))
    states = _states(more)
    assert states["finetune"] == states["export model.onnx"] == "reused"
    assert states["export model.fp16.onnx"] == states["export model.int8-weights.onnx"] == "done"
    assert _names(more) == ["baseline.onnx", "model.onnx", "model.fp16.onnx", "model.int8-weights.onnx"]
    sizes = [entry["artifact"]["size_bytes"] for entry in more.data["artifacts"]]
    assert sizes[3] < sizes[2] < sizes[1]


_KILLER = """
import os, signal, sys
from pathlib import Path
from edgeprune.config import load_config
from edgeprune.pipeline.compress import compress

def listen(event):
    if event.state == "progress" and event.subject == "model.int8.onnx":
        os.kill(os.getpid(), signal.SIGKILL)

compress(load_config(Path(sys.argv[1])), listen=listen)
"""


def test_a_run_that_was_killed_while_it_calibrated_goes_on_there_and_ends_with_the_same_files(folder: Path) -> None:
    (folder / "settings.toml").write_text(_config(folder, "int8").to_toml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", _KILLER, str(folder / "settings.toml")]
    killed = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not (folder / "run" / "model.int8.onnx").exists()
    resumed = resume(folder / "run")
    states = _states(resumed)
    assert states["finetune"] == states["export model.onnx"] == "reused"
    assert states["export model.int8.onnx"] == "done"
    assert not list((folder / "run").glob(".*"))
    digest = file_digest(folder / "run" / "model.int8.onnx")
    shutil.rmtree(folder / "run")
    compress(_config(folder, "int8"))
    assert file_digest(folder / "run" / "model.int8.onnx") == digest


def test_float32_that_was_not_asked_for_is_kept_and_not_shown(folder: Path) -> None:
    run = compress(_config(folder, "int8-dynamic", max_size="1B", max_latency="1us"))
    assert (folder / "run" / "model.onnx").is_file()
    assert _names(run) == ["baseline.onnx", "model.int8-dynamic.onnx"]
    assert [row["artifact"]["name"] for row in run.data["measurements"]] == _names(run)
    assert not [name for name in _states(run) if name == "accuracy model.onnx"]
    assert [budget["name"] for budget in run.data["verdict"]["budgets"]] == [
        "latency p50 of model.int8-dynamic.onnx",
        "size of model.int8-dynamic.onnx",
    ]
    assert run.data["generalisation"]["final"]["test"] is None


_half = OnnxFloat.half


def _negated(file: OnnxFloat) -> bytes:
    """Return the float16 file with all its weights negated, as a broken converter may write it."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(_half(file))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float16:
            tensor.CopyFrom(numpy_helper.from_array(-array, tensor.name))
    return bytes(model.SerializeToString())


def test_a_precision_that_fails_costs_its_file_and_the_exit_code_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxFloat, "half", _negated)
    run = compress(_config(folder, "fp32", "fp16", "int8-weights", max_size="1MB"))
    assert _names(run) == ["baseline.onnx", "model.onnx", "model.int8-weights.onnx"]
    (refused,) = run.data["refused"]
    assert (refused["path"], refused["precision"], refused["error"]) == ("model.fp16.onnx", "fp16", "VerificationError")
    assert (folder / "run" / "model.fp16.onnx.rejected").is_file()
    assert not (folder / "run" / "model.fp16.onnx").exists()
    assert [notice["code"] for notice in run.data["notices"]] == ["refused"]
    assert "there is no model.fp16.onnx" in run.data["verdict"]["text"]
    assert not run.passed
    error = failure(run.data)
    assert error is not None
    assert error.exit_code == 4
    assert error.where is not None
    assert error.where.endswith("model.fp16.onnx.rejected")
    page = (folder / "run" / "report.html").read_text()
    assert "refused: " in page
    again = compress(_config(folder, "fp32", "fp16", "int8-weights", max_size="1MB"))
    assert _states(again)["export model.fp16.onnx"] == "reused"
    assert again.data["refused"] == run.data["refused"]
    monkeypatch.undo()
    mended = compress(_config(folder, "fp32", "fp16", "int8-weights", max_size="1MB", export__min_sqnr_db=30))
    assert mended.data["refused"] == []
    assert mended.passed
    assert not (folder / "run" / "model.fp16.onnx.rejected").exists()


def test_calibration_data_that_break_later_refuse_int8_with_exit_3_and_are_read_again(folder: Path) -> None:
    more = "def calibration_data():\n    yield _pictures(8, 5)[0]\n    yield _pictures(8, 6)[0] * float('nan')\n\n\n"
    _rewrite(folder, "def train_data(", more + "def train_data(")
    run = compress(_config(folder, "fp32", "int8", reconstruct__samples=0))
    (refused,) = run.data["refused"]
    assert refused["error"] == "ModelError"
    assert "calibration batch 1" in refused["message"]
    error = failure(run.data)
    assert error is not None
    assert error.exit_code == 3
    assert _names(run) == ["baseline.onnx", "model.onnx"]


@pytest.mark.parametrize(
    ("old", "new", "kind", "text"),
    [
        ("def train_data(", "def _train_data(", ConfigError, "int8 needs true inputs to calibrate on"),
        ("def train_data(", "def calibration_data():\n    return []\n\n\ndef train_data(", ConfigError, "no samples"),
        (
            "def train_data(",
            "def calibration_data():\n    return [torch.zeros(4, 1, 9, 9)]\n\n\ndef train_data(",
            ModelError,
            "calibration batch 0: input 'x' has shape",
        ),
    ],
)
def test_what_int8_lacks_is_told_before_anything_is_done(
    folder: Path, old: str, new: str, kind: type[Exception], text: str
) -> None:
    _rewrite(folder, old, new)
    if "_train_data" in new:
        _rewrite(folder, "def train_step(", "def _train_step(")
    with pytest.raises(kind, match=text):
        compress(_config(folder, "int8"))
    assert not (folder / "run").exists()


def test_a_calibration_file_counts_by_its_content(folder: Path) -> None:
    pictures = np.random.default_rng(0).normal(0.3, 0.5, (48, 1, 8, 8)).astype(np.float32)
    np.save(folder / "true.npy", pictures)
    config = _config(folder, "int8", quantise__calibration=str(folder / "true.npy"))
    first = compress(config)
    assert first.data["settings"]["quantise"]["calibration"].endswith("true.npy")
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "true.npy", folder / "elsewhere" / "true.npy")
    moved = _config(folder, "int8", quantise__calibration=str(folder / "elsewhere" / "true.npy"))
    assert set(_states(compress(moved)).values()) == {"reused"}
    np.save(folder / "elsewhere" / "true.npy", 3 * pictures)
    events: list[Event] = []
    compress(moved, listen=events.append)
    exported = [event for event in events if event.stage == "export" and event.state == "begin"]
    begun = {event.subject: event.facts["because"] for event in exported}
    assert begun["model.int8.onnx"] == ["calibration changed"]
    assert list(begun) == ["model.int8.onnx"]
    with pytest.raises(ResolveError, match="no file"):
        compress(config)


# How many of the outputs are different numbers: an int8 output has 256 at most, whatever its decibels.
_DISTINCT = """    outputs = [found[0] for found, _ in pairs]
    values = [value for part in outputs for value in part.ravel().tolist()]
    return {"distinct": len(set(values)) / len(values)}
"""


def _measure(folder: Path, body: str) -> None:
    text = (folder / "tiny.py").read_text()
    head, _, _ = text.partition("    right = [outputs")
    (folder / "tiny.py").write_text(head + body)


def test_operators_stay_in_float32_until_the_drop_is_met(folder: Path) -> None:
    _measure(folder, _DISTINCT)
    free = compress(_config(folder, "int8"))
    entries = {entry["artifact"]["path"]: entry for entry in free.data["artifacts"]}
    assert entries["model.int8.onnx"]["quantisation"]["kept"] == 0
    assert entries["model.int8.onnx"]["metrics"]["distinct"] < 0.9 < entries["baseline.onnx"]["metrics"]["distinct"]
    held = compress(_config(folder, "int8", max_drop=0.02))
    assert _states(held)["export model.int8.onnx"] == "done"
    assert held.passed
    (entry,) = (entry for entry in held.data["artifacts"] if entry["role"] == "model")
    facts = entry["quantisation"]
    assert 0 < facts["kept"] < len(facts["ranking"])
    assert facts["floats"]
    assert entry["metrics"]["distinct"] >= entries["baseline.onnx"]["metrics"]["distinct"] - 0.02
    assert [notice["code"] for notice in held.data["notices"]] == ["mixed-precision"]
    page = (folder / "run" / "report.html").read_text()
    assert "<h2>What integers cost</h2>" in page
    assert "run0-quantised-0" in page
    assert set(_states(compress(_config(folder, "int8", max_drop=0.02))).values()) == {"reused"}


_NEAR = """    import numpy as np

    with torch.no_grad():
        far = [np.abs(found[0] - model().eval()(x).numpy()).mean() for found, (x, _) in pairs]
    return {"near": 1.0 - float(np.mean(far))}
"""


def test_where_pruning_took_the_whole_allowance_the_decibels_decide_and_it_is_said(folder: Path) -> None:
    _measure(folder, _NEAR)
    run = compress(_config(folder, "int8", max_drop=1e-6))
    (entry,) = (entry for entry in run.data["artifacts"] if entry["role"] == "model")
    assert entry["quantisation"]["kept"] == 0
    (notice,) = run.data["notices"]
    assert notice["code"] == "nothing-left"
    assert "model.onnx loses more of near than max_drop = 1e-06 already" in notice["text"]
    error = failure(run.data)
    assert error is not None
    assert error.exit_code == 5
    assert "drop of near in model.int8.onnx" in error.message


def test_what_the_runtime_of_the_target_gets_wrong_is_refused_before_anything_is_done(folder: Path) -> None:
    config = _config(folder, "fp32", "int8-dynamic", formats=("tflite",), target="linux-armv7l")
    with pytest.raises(
        ConfigError, match=r"cannot have \.tflite files in int8-dynamic: tflite-runtime 2\.14"
    ) as caught:
        compress(config)
    assert caught.value.fix == "--precision fp32"
    with pytest.raises(ConfigError, match="int8-dynamic") as caught:
        compress(_config(folder, "int8-dynamic", formats=("tflite",), target="linux-armv7l"))
    assert caught.value.fix == "--precision int8-weights"
    assert not (folder / "run").exists()


def test_decibels_that_a_file_does_not_reach_refuse_it_until_fewer_are_asked_for(folder: Path) -> None:
    run = compress(_config(folder, "int8-weights", export__min_sqnr_db=150))
    (refused,) = run.data["refused"]
    assert (refused["error"], refused["exit_code"]) == ("VerificationError", 4)
    assert "limit 150 dB" in refused["message"]
    assert _names(run) == ["baseline.onnx"]
    assert not run.passed
    assert compress(_config(folder, "int8-weights", export__min_sqnr_db=15)).passed


def test_precisions_are_told_once_and_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.precisions has 'int8' twice") as caught:
        _config(folder, "int8", "fp32", "int8")
    assert caught.value.fix == """-s export.precisions='["int8", "fp32"]'"""
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        _config(folder, "int9")
    config = _config(folder, "int8-weights", "fp16")
    line = command(config, load_workload(str(folder / "tiny.py")))
    assert "--precision int8-weights,fp16" in line


_SHORT = [word for key, value in BENCH.items() for word in ("-s", f"bench.{key}={value}")]
_SHORT += ["-s", 'export.formats=["onnx"]', "-s", "finetune.epochs=0", "--json", "-q"]


def test_the_command_line_takes_precisions_and_a_calibration_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    np.savez("true.npz", x=np.random.default_rng(0).normal(0.3, 0.5, (40, 1, 8, 8)).astype(np.float32))
    words = ["compress", "tiny.py", "-o", "run", *_SHORT, "--precision", "fp32, int8"]
    assert main([*words, "--calibration", "true.npz", "--max-drop", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["export"]["precisions"] == ["fp32", "int8"]
    assert result["settings"]["quantise"]["calibration"] == "true.npz"
    assert str(folder / "true.npz") in (folder / "run" / "run.toml").read_text()
    assert main([*words, "-s", "export.min_sqnr_db=150"]) == 4
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["error"]["error"] == "VerificationError"
    assert [item["path"] for item in document["refused"]] == ["model.int8.onnx"]
    assert "error: there is no model.int8.onnx" in captured.err
    assert main(["compress", "tiny.py", "--precision", "int8,int8", "--json"]) == 2
    assert "twice" in json.loads(capsys.readouterr().out)["message"]
    assert main(["compress", "tiny.py", "--precision", "half", "--json"]) == 2
    assert "export.precisions" in json.loads(capsys.readouterr().out)["message"]


def test_two_precisions_of_one_network_are_benched_against_its_float32_file(
    finished: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.int8.onnx", "model.onnx"):
        shutil.copy(finished.folder / name, folder / name)
    monkeypatch.chdir(folder)
    short = [word for key, value in BENCH.items() for word in ("-s", f"bench.{key}={value}")]
    assert main(["bench", "model.int8.onnx", "model.onnx", "-o", "rows.jsonl", "-q", *short]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("model.")]
    assert [line.split()[0] for line in lines[:2]] == ["model.onnx", "model.int8.onnx"]
    assert "1.00x" in lines[0]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {row["artifact"]["precision"]: row["role"] for row in rows} == {"fp32": "baseline", "int8": "model"}
