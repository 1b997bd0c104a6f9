"""What is printed where: results on stdout, progress and errors on stderr, one document with --json."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from edgeprune.console import Console, stage_line
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pipeline.events import Event
from edgeprune.values import Check, Json, Notice
from tests import sample_results

CHECK: Json = {"max_abs": 3.4e-6, "max_rel": 1e-5, "tolerance": 1e-4}
EVENTS = {
    "plan": (
        {
            "groups": [
                {"pinned": None, "channels_before": 64, "channels_after": 32},
                {"pinned": "model output", "channels_before": 10, "channels_after": 10},
            ],
            "align": 8,
        },
        "1 of 2 groups, 64 -> 32 channels (50.0% removed), align 8",
    ),
    "baseline": ({"metrics": {"top1": 0.917}}, "top1 0.917"),
    "apply": (
        {
            "params": 2_830_000,
            "macs": 150_000_000,
            "before": {"params": 11_180_000, "macs": 560_000_000},
            "check": CHECK,
        },
        "11.18 M -> 2.83 M params, 0.56 GMACs -> 0.15 GMACs, verified: max |diff| 3.4e-06, limit 1e-04",
    ),
    "reconstruct": (
        {
            "improved": True,
            "layers": [{"weight": "a"}, {"weight": "b"}, {"weight": "b"}],
            "samples": 512,
            "error_before": 1.118,
            "error_after": 0.155,
            "metrics": {"top1": 0.918},
        },
        "2 weights solved on 512 samples, error of the outputs 1.12 -> 0.15  top1 0.918",
    ),
    "recalibrate": ({"metrics": None}, "no evaluate() in the workload"),
    "finetune": (
        {"history": [{"train": {"loss": 0.5}}, {"train": {"loss": 0.214}}], "metrics": {"top1": 0.902}},
        "2 epochs  loss 0.214  top1 0.902",
    ),
    "export": (
        {"artifact": {"path": "runs/a/model.tflite", "size_bytes": 11_300_000}, "checks": [CHECK]},
        "model.tflite 11.3 MB verified: max |diff| 3.4e-06, limit 1e-04",
    ),
    "generalise": (
        {"dense": {"top1": 0.99}, "final": {"top1": 0.95}},
        "on training data: dense top1 0.990, final top1 0.950",
    ),
    "bench": ({"rows": 4, "failed": ["lost"]}, "4 measurements, 1 failed"),
    "accuracy": (
        {"artifact": "model.tflite", "metrics": {"top1": 0.902}},
        "model.tflite top1 0.902 through its runtime",
    ),
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stage", sorted(EVENTS))
def test_a_finished_stage_is_one_line(stage: str) -> None:
    facts, text = EVENTS[stage]
    line = stage_line(Event(stage=stage, state="done", facts=facts, seconds=372.0))
    assert line.split(maxsplit=1)[0] == stage
    assert text in line
    assert line.endswith("6 m 12 s")
    assert "\n" not in line


def test_a_reused_stage_names_its_file() -> None:
    event = Event(stage="plan", state="reused", facts={"outputs": {"plan.json": "5f0c12345678"}})
    assert stage_line(event) == " plan        reused (plan.json 5f0c1234)"
    assert stage_line(Event(stage="accuracy", state="reused", subject="model.onnx")).endswith("reused (model.onnx)")


def test_progress_goes_to_stderr_as_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.listen(
        Event(
            stage="run",
            state="run",
            facts={"folder": "runs/a", "settings": "runs/a/run.toml", "resume": "edgeprune resume runs/a"},
        )
    )
    console.listen(Event(stage="finetune", state="begin", facts={"because": ["finetune.lr 0.1 -> 0.2"]}))
    console.listen(Event(stage="finetune", state="progress", facts={"epoch": 1, "epochs": 2, "loss": 1.0}))
    console.listen(Event(stage="baseline", state="done", facts={"metrics": {"top1": 0.5}}, seconds=1.0))
    console.listen(Event(stage="plan", state="notice", notice=Notice(code="rounded", text="rounded", fix="round less")))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == " run runs/a  (settings: runs/a/run.toml)"
    assert lines[1] == " finetune    again: finetune.lr 0.1 -> 0.2"
    assert lines[2].startswith(" baseline    top1 0.500")
    assert lines[3:] == ["warning: rounded", "  fix: round less"]


def test_quiet_shows_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.listen(Event(stage="baseline", state="done", facts={"metrics": None}, seconds=1.0))
    console.listen(Event(stage="plan", state="notice", notice=Notice(code="rounded", text="rounded")))
    assert console.show_error(ConfigError("no")) == 2
    assert capsys.readouterr() == ("", "error: no\n")


def test_a_live_line_on_a_terminal_is_gone_when_the_stage_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    console.listen(Event(stage="finetune", state="begin"))
    facts = {"epoch": 2, "epochs": 3, "loss": 0.25}
    console.listen(Event(stage="finetune", state="progress", facts=facts, done=5.0, total=9.0))
    console.listen(Event(stage="finetune", state="done", facts=EVENTS["finetune"][0], seconds=3.0))
    said = terminal.getvalue()
    assert "epoch 2 of 3" in said
    assert said.rstrip().endswith("3.0 s")
    plain = Terminal()
    monkeypatch.setattr(sys, "stderr", plain)
    console.listen(Event(stage="baseline", state="done", facts={"metrics": None}, seconds=1.0))
    assert plain.getvalue().startswith(" baseline")


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, coloured in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        Console().show_error(ConfigError("no"))
        assert ("\x1b[" in stream.getvalue()) is coloured
        monkeypatch.setenv("NO_COLOR", "1")
        again = Terminal()
        monkeypatch.setattr(sys, "stderr", again)
        Console().show_error(ConfigError("no"))
        assert again.getvalue() == "error: no\n"


def test_an_error_has_message_place_and_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    error = ResolveError("it is gone", where=str(tmp_path / "w.py:3"), fix="bring it back")
    assert Console(as_json=True).show_error(error) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: it is gone\n  --> w.py:3\n  fix: bring it back\n"
    assert json.loads(captured.out) == {
        "error": "ResolveError",
        "message": "it is gone",
        "where": str(tmp_path / "w.py:3"),
        "fix": "bring it back",
        "exit_code": 2,
    }


def test_a_run_that_misses_its_budget_is_still_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    result = sample_results.result()
    result["verdict"]["budgets"] = [
        {"kind": "size", "name": "size of model.onnx", "limit": 1000, "measured": 2000, "passed": False}
    ]
    assert Console(as_json=True).show_run(result, "runs/a") == 5
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == result["verdict"]
    assert document["error"]["error"] == "BudgetMissed"
    assert "2.00 kB, the limit is 1.00 kB" in document["error"]["message"]


def test_a_finished_run_ends_with_table_verdict_report_and_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = sample_results.result()
    assert Console().show_run(result, "runs/a") == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[-3] == f" verdict: {result['verdict']['text']}"
    assert lines[-2] == " report: runs/a/report.html"
    assert lines[-1].startswith(" next: edgeprune compress ")


def test_an_interrupt_says_what_was_running_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/checkpoint.abc").touch()
    console = Console()
    assert console.show_interrupted() == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    console.listen(
        Event(
            stage="run",
            state="run",
            facts={"folder": "runs/a", "settings": "runs/a/run.toml", "resume": "edgeprune resume runs/a"},
        )
    )
    facts = {"epoch": 2, "epochs": 3, "loss": 0.1}
    console.listen(Event(stage="finetune", state="progress", facts=facts))
    capsys.readouterr()
    assert console.show_interrupted() == 130
    expected = "interrupted during finetune, epoch 2 of 3 (checkpoint saved); continue with: edgeprune resume runs/a\n"
    assert capsys.readouterr().err == expected


def test_a_bug_is_logged_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(folder=str(tmp_path))
    assert console.show_bug(KeyError("lost")) == 1
    (log,) = tmp_path.glob("edgeprune-error-*.log")
    assert "KeyError: 'lost'" in log.read_text()
    assert str(log) in capsys.readouterr().err


def test_while_working_prints_and_warnings_stay_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with Console(verbose=verbose).work():
            print("from the user")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("deprecated", stacklevel=1)
            logging.getLogger("edgeprune.test").info("a step")
            logging.getLogger("edgeprune.test").error("a failure")
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "from the user" in captured.err
        assert "a failure" in captured.err
        assert ("a step" in captured.err) is verbose


def test_an_infinite_difference_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check(
        name="a.onnx against b.onnx",
        inputs="random inputs",
        batch_size=1,
        max_abs=float("inf"),
        max_rel=float("nan"),
        tolerance=1e-4,
        output="logits",
        passed=False,
    )
    found: Json = {"passed": False, "first": "a.onnx", "second": "b.onnx", "checks": [check.as_dict()]}
    assert Console().show_verification(found) == 4
    told = capsys.readouterr()
    assert "a.onnx and b.onnx differ on logits: max |diff| not finite, relative not finite, limit 1e-04" in told.err
    assert "DIFFERS on logits" in told.out
    name = "a.tflite in tflite-runtime 2.14.0 against itself in ai-edge-litert 2.3.0"
    noise = {"name": name, "max_rel": 1.0, "sqnr_db": -0.2, "cosine": 0.1, "min_sqnr_db": 17.0}
    assert Console().show_verification({**found, "checks": [{**check.as_dict(), **noise}]}) == 4
    assert f"{name} differs on logits: SQNR -0.2 dB, limit 17 dB" in capsys.readouterr().err
