"""The command line as a user meets it: commands, exit codes, one JSON document, and every kind of bad input."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from edgeprune import cli
from edgeprune.errors import EdgePruneError

TINY = Path(__file__).parent / "workloads" / "tiny.py"


class Said(NamedTuple):
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in an empty folder that holds `tiny.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    shutil.copy(TINY, tmp_path / "tiny.py")

    def call(*words: str) -> Said:
        capsys.readouterr()
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


def _rewrite(old: str, new: str, name: str = "tiny.py") -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_and_completion_import_nothing_heavy() -> None:
    program = """
import sys
from edgeprune import cli
assert cli.main(["--help"]) == 0
assert cli.main(["compress", "--help"]) == 0
heavy = {"torch", "numpy", "pydantic", "rich", "onnx", "onnxruntime", "plotly", "jinja2", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


def test_completion_offers_commands() -> None:
    words = {"_EDGEPRUNE_COMPLETE": "bash_complete", "COMP_WORDS": "edgeprune com", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune"], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert sorted(done.stdout.split()) == ["plain,compare", "plain,compress"]


def test_without_a_command_the_help_lists_them_in_order_of_the_work(run: Run) -> None:
    said = run()
    assert said.code == 0
    assert said.err == ""
    places = [said.out.index(f"\n  {name} ") for name in ("init", "inspect", "compress", "prune", "export", "report")]
    assert places == sorted(places)


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_has_help_and_json(run: Run, command: str) -> None:
    said = run(command, "--help")
    assert said.code == 0
    for option in ("--json", "--quiet", "--verbose"):
        assert option in said.out


@pytest.mark.parametrize(
    ("words", "text", "fix"),
    [
        (("compres",), "'compress'", "edgeprune --help"),
        (("compress", "--ratoi", "0.5"), "--ratio", "edgeprune compress --help"),
        (("compress", "--ratio", "half"), "'half' is not a valid float", "edgeprune compress --help"),
        (("verify", "model.onnx"), "Missing argument 'SECOND'", "edgeprune verify --help"),
        (("compress", "tiny.py", "--ratio", "0.5", "--max-macs", "0.5x"), "exclude each other", "give one"),
    ],
)
def test_usage_errors_exit_2_with_a_fix(run: Run, words: tuple[str, ...], text: str, fix: str) -> None:
    said = run(*words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert text in said.err
    assert f"  fix: {fix}" in said.err
    assert said.out == ""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A command that must fail: edits of the workload, files beside it, and what is said about it."""

    words: str
    code: int
    texts: tuple[str, ...]
    edits: tuple[tuple[str, str], ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, object] = field(default_factory=dict)


BAD = {
    "a missing function": Bad(
        words="inspect tiny.py",
        code=2,
        texts=("tiny.py has no function 'inputs'", "fix: add  def inputs()"),
        edits=(("def inputs(", "def _inputs("),),
    ),
    "a misspelt function": Bad(
        words="compress tiny.py",
        code=2,
        texts=("did you mean 'evaluate'?", "rename it"),
        edits=(("def evaluate(", "def evalute("),),
    ),
    "a module that cannot be imported": Bad(
        words="compress tiny.py",
        code=2,
        texts=("No module named 'not_installed_anywhere'", "tiny.py:9", "fix: install what provides"),
        edits=(("import torch\n", "import torch\nimport not_installed_anywhere\n"),),
    ),
    "a syntax error": Bad(
        words="inspect tiny.py",
        code=2,
        texts=("cannot import tiny.py: SyntaxError", "tiny.py:37"),
        edits=(("def model(", "def def model("),),
    ),
    "no such workload": Bad(words="inspect nothing.py", code=2, texts=("no workload nothing.py", "edgeprune init")),
    "no workload": Bad(words="compress", code=2, texts=("no workload", "edgeprune compress workload.py")),
    "weights that do not fit": Bad(
        words="compress tiny.py --weights w.safetensors",
        code=2,
        texts=("conv1.weight is (8, 1, 3, 3), the model has (32, 1, 3, 3)", "--> w.safetensors", "--plan"),
        tensors={"w.safetensors": {"conv1.weight": torch.zeros(8, 1, 3, 3)}},
    ),
    "weights that do not exist": Bad(words="compress tiny.py --weights w.pt", code=2, texts=("no weights file w.pt",)),
    "a pickled module": Bad(
        words="compress tiny.py --weights w.pt",
        code=2,
        texts=("w.pt is a pickled module, and unpickling runs code", "--trust-pickle"),
        tensors={"w.pt": torch.nn.Linear(2, 2)},
    ),
    "an unknown key in a file": Bad(
        words="compress tiny.py",
        code=2,
        texts=("unknown key 'prune.ratoi'; did you mean 'ratio'?", "--> edgeprune.toml"),
        files={"edgeprune.toml": "[prune]\nratoi = 0.5\n"},
    ),
    "an unknown key in -s": Bad(
        words="compress tiny.py -s finetune.epoch=3",
        code=2,
        texts=("unknown key 'finetune.epoch'; did you mean 'epochs'?",),
    ),
    "a file that is not TOML": Bad(
        words="compress tiny.py",
        code=2,
        texts=("edgeprune.toml is not TOML",),
        files={"edgeprune.toml": "[prune\n"},
    ),
    "a ratio of 1": Bad(words="compress tiny.py --ratio 1", code=2, texts=("prune.ratio = 1",)),
    "a depth of 1": Bad(words="compress tiny.py --depth 1", code=2, texts=("prune.depth = 1",)),
    "a negative ratio": Bad(words="compress tiny.py --ratio -0.1", code=2, texts=("prune.ratio = -0.1",)),
    "a limit without a unit": Bad(
        words="compress tiny.py --max-latency 15", code=2, texts=("max_latency: '15' is not a time", "15ms")
    ),
    "an unknown criterion": Bad(
        words="compress tiny.py -s prune.criterion=tailor",
        code=2,
        texts=("unknown criterion 'tailor'; did you mean 'taylor'?",),
    ),
    "gradients without a training step": Bad(
        words="compress tiny.py -s prune.criterion=taylor",
        code=2,
        texts=("needs gradients, and tiny.py has no train_step",),
        edits=(("def train_step(", "def _train_step("),),
    ),
    "a drop without a metric": Bad(
        words="compress tiny.py --max-drop 0.01",
        code=2,
        texts=("max_drop = 0.01 needs a metric", "def evaluate(model)"),
        edits=(("def evaluate(", "def _evaluate("), ("def evaluate_outputs(", "def _outputs(")),
    ),
    "control flow that depends on data": Bad(
        words="inspect tiny.py",
        code=3,
        texts=("tiny.py:23",),
        edits=(
            ("        x = F.relu(self.norm1", "        x = x if x.sum() > 0 else -x\n        x = F.relu(self.norm1"),
        ),
    ),
    "nothing to prune": Bad(
        words="prune tiny.py -o small",
        code=3,
        texts=("no group can be pruned", "conv1: kept by 'conv*'"),
        files={"edgeprune.toml": '[prune]\nkeep = ["conv*"]\n'},
    ),
    "a model that fails": Bad(
        words="inspect tiny.py",
        code=3,
        texts=("model() of the workload failed: FileNotFoundError: best.pt", "tiny.py:38"),
        edits=(("torch.manual_seed(7)", "raise FileNotFoundError('best.pt')"),),
    ),
    "a folder that is no run": Bad(
        words="compress tiny.py -o mine",
        code=2,
        texts=("mine is not empty and is not a run (thesis.tex)", "-o"),
        files={"mine/thesis.tex": "precious"},
    ),
    "a folder that is no network": Bad(
        words="prune tiny.py -o mine",
        code=2,
        texts=("mine is not empty and holds no pruned network (thesis.tex)", "-o"),
        files={"mine/thesis.tex": "precious"},
    ),
    "no such target": Bad(
        words="compress tiny.py --target raspbery-pi-4",
        code=2,
        texts=("no target 'raspbery-pi-4'; did you mean 'raspberry-pi-4'?", "host"),
    ),
    "a target that is not reached yet": Bad(
        words="compress tiny.py --target raspberry-pi-4",
        code=6,
        texts=("raspberry-pi-4", "ssh", "--target host"),
    ),
    "no such run": Bad(words="resume runs/none", code=2, texts=("runs/none does not exist",)),
    "no such artifact": Bad(words="bench model.onnx", code=2, texts=("no file model.onnx",)),
    "an artifact of another kind": Bad(
        words="bench tiny.py", code=2, texts=("tiny.py is none of .onnx, .ort and .tflite",)
    ),
    "an export to another format": Bad(words="export tiny.py -o a.mlmodel", code=2, texts=("none of .onnx,",)),
    "a run that is not finished": Bad(
        words="report half",
        code=2,
        texts=("half is not finished", "edgeprune resume half"),
        files={"half/run.toml": ""},
    ),
    "a plan that is none": Bad(
        words="prune tiny.py --plan plan.json", code=2, texts=("plan.json is not a plan",), files={"plan.json": "{}"}
    ),
    "measurements that are none": Bad(
        words="compare rows.jsonl", code=2, texts=("rows.jsonl is not JSON",), files={"rows.jsonl": "oops\n{}\n"}
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_told_with_its_place_and_loses_nothing(run: Run, case: str) -> None:
    bad = BAD[case]
    words = bad.words.split()
    for old, new in bad.edits:
        _rewrite(old, new)
    for name, text in bad.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    for name, value in bad.tensors.items():
        (save_file if name.endswith(".safetensors") else torch.save)(value, name)  # type: ignore[operator]
    before = _tree(Path())
    said = run(*words)
    assert said.code == bad.code, said.err
    for text in bad.texts:
        assert text in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    after = {name: data for name, data in _tree(Path()).items() if "__pycache__" not in name}
    assert after == {name: data for name, data in before.items() if "__pycache__" not in name}
    error = json.loads(run(*words, "--json").out)
    assert error["exit_code"] == bad.code
    assert error["message"] in said.err


def test_a_missing_converter_names_the_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = lambda name, package=None: None if name == "litert_torch" else find(name, package)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    said = run("compress", "tiny.py")
    assert said.code == 2
    assert "pip install 'edgeprune[tflite]'" in said.err
    assert not Path("runs").exists()


def test_an_unexpected_error_is_one_line_and_a_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr("edgeprune.pipeline.start.init", broken)
    said = run("init")
    assert said.code == 1
    assert "this is a bug in edgeprune: ZeroDivisionError: nobody foresaw this" in said.err
    assert "Traceback" not in said.err
    log = Path(said.err.split("--> ")[1].splitlines()[0])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()
    assert "Traceback" in run("init", "-v").err


def test_what_the_user_prints_does_not_reach_stdout(run: Run) -> None:
    _rewrite("torch.manual_seed(7)", "print('loading')")
    said = run("inspect", "tiny.py", "--json")
    assert said.code == 0
    assert json.loads(said.out)["network"]["name"] == "Tiny"
    assert "loading" in said.err


def test_init_writes_a_workload_that_runs_and_overwrites_nothing(run: Run) -> None:
    said = run("init", "new")
    assert said.code == 0
    assert "next: edit new/workload.py" in said.out
    before = _tree(Path("new"))
    again = run("init", "new")
    assert again.code == 2
    assert "new/workload.py exists, and nothing is overwritten" in again.err
    assert _tree(Path("new")) == before
    assert run("inspect", "new/workload.py").code == 0


def test_inspect_tells_what_is_pinned_and_what_comes_next(run: Run) -> None:
    said = run("inspect", "tiny.py")
    assert said.code == 0
    assert "3 groups, 2 prunable" in said.out
    assert "no   model output" in said.out
    command, why = said.out.rstrip().splitlines()[-2:]
    assert command.startswith("next: edgeprune compress tiny.py --ratio 0.5")
    assert why == "(edgeprune advise tiny.py  says why)"
    groups = {group["name"]: group for group in json.loads(run("inspect", "tiny.py", "--json").out)["groups"]}
    assert groups["conv1"]["pinned"] is None
    assert groups["classify"]["pinned"] == "model output"


def test_targets_are_listed_and_shown(run: Run) -> None:
    said = run("targets")
    assert said.code == 0
    assert "raspberry-pi-4" in said.out
    assert {target["name"] for target in json.loads(run("targets", "--json").out)} >= {"host", "raspberry-pi-4"}
    assert "align" in run("targets", "host").out
    assert json.loads(run("targets", "host", "--json").out)["transport"] == "local"


def test_a_pruned_network_is_written_and_its_edited_plan_applied_again(run: Run) -> None:
    said = run("prune", "tiny.py", "--ratio", "0.5", "-o", "small")
    assert said.code == 0, said.err
    assert {path.name for path in Path("small").iterdir()} == {
        "plan.json",
        "weights.safetensors",
        "network.toml",
        "pruned.pt2",
    }
    again = run("prune", "tiny.py", "--plan", "small/plan.json", "-o", "again")
    assert again.code == 0, again.err
    assert Path("again/weights.safetensors").read_bytes() == Path("small/weights.safetensors").read_bytes()
    plan = json.loads(Path("small/plan.json").read_text())
    plan["groups"]["conv2"]["keep"] = list(range(5))
    Path("edited.json").write_text(json.dumps(plan))
    edited = json.loads(run("prune", "tiny.py", "--plan", "edited.json", "-o", "edited", "--json").out)
    kept = {group["name"]: group["units_after"] for group in edited["groups"]}
    assert kept["conv2"] == 5


def test_a_plan_edited_behind_its_weights_is_refused(run: Run) -> None:
    assert run("prune", "tiny.py", "-o", "small").code == 0
    plan = json.loads(Path("small/plan.json").read_text())
    plan["groups"]["conv1"]["keep"] = [0, 1, 2]
    Path("small/plan.json").write_text(json.dumps(plan))
    said = run("export", "small", "-o", "model.onnx")
    assert said.code == 2
    assert "small/plan.json was edited after weights.safetensors was written" in said.err
    assert "--plan small/plan.json" in said.err


def test_a_fine_tuned_network_is_not_pruned_over(run: Run) -> None:
    assert run("prune", "tiny.py", "-o", "small").code == 0
    Path("small/finetuned.safetensors").write_bytes(b"hours of work")
    said = run("prune", "tiny.py", "--ratio", "0.25", "-o", "small")
    assert said.code == 2
    assert "fine-tuned already" in said.err
    assert Path("small/finetuned.safetensors").read_bytes() == b"hours of work"


SHORT = (
    "-s",
    'export.formats=["onnx"]',
    "-s",
    "finetune.epochs=1",
    "-s",
    "bench.processes=2",
    "-s",
    "bench.min_runs=5",
)
SHORT += ("-s", "bench.min_seconds=0.02", "-s", "bench.warmup_seconds=0", "-s", "bench.max_seconds=1")


def test_the_steps_one_after_the_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("prune", "tiny.py", "--ratio", "0.5", "-o", "small").code == 0
    tuned = run("finetune", "small", "--epochs", "1", "--json")
    assert tuned.code == 0, tuned.err
    document = json.loads(tuned.out)
    assert len(document["history"]) == 1
    assert set(document["metrics"]) == {"pruned", "reconstructed", "finetuned"}
    assert not list(Path("small").glob("checkpoint*"))
    for words in (("small", "-o", "out/model.onnx"), ("tiny.py", "-o", "out/baseline.onnx")):
        exported = run("export", *words)
        assert exported.code == 0, exported.err
        assert "equal" in exported.out
    assert run("verify", "out/model.onnx", "small").code == 0
    judged = run("verify", "out/model.onnx", "small", "--min-sqnr", "60", "-o", "verify.json")
    assert judged.code == 0
    assert "near" in judged.out
    written = json.loads(Path("verify.json").read_text())
    assert written["passed"]
    assert all(check["sqnr_db"] > 60 and check["min_sqnr_db"] == 60 for check in written["checks"])
    far = run("verify", "out/model.onnx", "out/baseline.onnx", "--min-sqnr", "150", "-o", "far.json")
    assert far.code == 4
    assert "SQNR" in far.err
    assert not json.loads(Path("far.json").read_text())["passed"]
    assert run("verify", "out/model.onnx", "small", "--min-sqnr", "999").code == 2
    assert run("verify", "out/model.onnx", "small", "--target", "host").code == 0
    monkeypatch.delenv("EDGEPRUNE_TFLITE_RUNTIME_PYTHON", raising=False)
    without = run("verify", "out/model.onnx", "small", "--target", "linux-armv7l")
    assert without.code == 2
    assert "fix: export EDGEPRUNE_TFLITE_RUNTIME_PYTHON=" in without.err
    assert run("verify", "out/model.onnx", "small", "--tolerance", "nan").code == 2
    assert "far.txt.json" in run("verify", "out/model.onnx", "small", "-o", "far.txt").err
    different = run("verify", "out/model.onnx", "out/baseline.onnx", "--json")
    assert different.code == 4
    assert json.loads(different.out)["error"]["error"] == "VerificationError"
    assert not json.loads(different.out)["passed"]
    measured = run("bench", "out/model.onnx", "out/baseline.onnx", "-o", "rows.jsonl", *SHORT[4:])
    assert measured.code == 0, measured.err
    assert measured.out.index("baseline.onnx") < measured.out.index("model.onnx")
    compared = json.loads(run("compare", "rows.jsonl", "--json").out)
    assert len(compared["comparisons"]) == 1
    again = json.loads(run("compare", "rows.jsonl", "rows.jsonl", "--json").out)
    assert {value["verdict"] for value in again["comparisons"]} == {"no difference shown"}
    assert "sha256: " in run("inspect", "out/model.onnx").out


def test_fine_tuning_into_another_folder_leaves_the_first_alone(run: Run) -> None:
    assert run("prune", "tiny.py", "-o", "small").code == 0
    before = _tree(Path("small"))
    assert run("finetune", "small", "--epochs", "1", "-o", "tuned", "-q").code == 0
    assert _tree(Path("small")) == before
    first = Path("tuned/finetuned.safetensors").read_bytes()
    assert run("finetune", "small", "--epochs", "1", "-o", "tuned", "-q").code == 0
    assert Path("tuned/finetuned.safetensors").read_bytes() == first
    said = run("finetune", "small", "-o", ".")
    assert said.code == 2
    assert "not empty" in said.err


def test_a_pickled_program_is_refused(run: Run) -> None:
    assert run("prune", "tiny.py", "-o", "small").code == 0
    assert run("verify", "small/pruned.pt2", "small").code == 0
    with zipfile.ZipFile("small/pruned.pt2") as old, zipfile.ZipFile("bad.pt2", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("sample_inputs/model.pt"):
                buffer = io.BytesIO()
                torch.save((Path("owned"),), buffer)
                data = buffer.getvalue()
            new.writestr(item.filename, data)
    said = run("verify", "bad.pt2", "small")
    assert said.code == 2
    assert "bad.pt2 holds pickled objects" in said.err
    assert "--trust-pickle" in said.err
    Path("no.pt2").write_bytes(b"no archive")
    assert "no.pt2 is not a .pt2 program" in run("verify", "no.pt2", "small").err


def test_compress_then_resume_then_report(run: Run) -> None:
    said = run("compress", "tiny.py", *SHORT)
    assert said.code == 0, said.err
    assert "verdict: onnx " in said.out
    assert "report: runs/tiny-r50/report.html" in said.out
    again = run("resume", "runs/tiny-r50", "--json", "-q")
    assert again.code == 0
    assert again.err == ""
    assert {stage["state"] for stage in json.loads(again.out)["stages"]} == {"reused"}
    assert run("report", "runs/tiny-r50", "-o", "all.html").code == 0
    assert Path("all.html").read_text().startswith("<!doctype html>")
    assert run("verify", "runs/tiny-r50", "runs/tiny-r50/model.onnx").code == 0
    missed = run("compress", "tiny.py", *SHORT, "--max-size", "1kB", "--json")
    assert missed.code == 5
    document = json.loads(missed.out)
    assert document["error"]["error"] == "BudgetMissed"
    assert document["verdict"]["passed"] is False
    shutil.copy("tiny.py", "other.py")
    with Path("other.py").open("a") as file:
        file.write("\nOTHER = True\n")
    before = _tree(Path("runs"))
    other = run("compress", "other.py", *SHORT, "-o", "runs/tiny-r50")
    assert other.code == 2
    assert "runs/tiny-r50 is a run of another workload" in other.err
    assert _tree(Path("runs")) == before


def test_a_loss_that_is_not_finite_exits_3(run: Run) -> None:
    _rewrite("return F.cross_entropy(model(pictures), labels)", "return model(pictures).sum() * float('nan')")
    said = run("compress", "tiny.py", *SHORT)
    assert said.code == 3
    assert "nan" in said.err
    assert "Traceback" not in said.err
    assert Path("runs/tiny-r50/pruned.safetensors").is_file()


def test_a_user_function_that_fails_is_told_with_its_line(run: Run) -> None:
    _rewrite("    pictures, labels = batch\n", "    pictures, labels, weights = batch\n")
    said = run("compress", "tiny.py", *SHORT)
    assert said.code == 3
    assert "train_step() of the workload failed: ValueError: not enough values to unpack" in said.err
    assert "--> tiny.py:47" in said.err
    assert "Traceback" in run("compress", "tiny.py", *SHORT, "-v").err


def test_a_full_disk_while_exporting_exits_3_and_the_same_command_finishes(run: Run) -> None:
    settings = (*SHORT, "-s", "finetune.epochs=0")
    words = [sys.executable, "-m", "edgeprune", "compress", "tiny.py", *settings]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    full = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 3, full.stderr
    assert "cannot write runs/tiny-r50/baseline.onnx: File too large" in full.stderr
    assert "fix: " in full.stderr
    assert Path("runs/tiny-r50/finetuned.safetensors").is_file()
    assert not Path("runs/tiny-r50/baseline.onnx").exists()
    said = run("compress", "tiny.py", *settings)
    assert said.code == 0, said.err
    assert " finetune    reused" in said.err


def test_every_error_class_has_its_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune import errors

    expected = {"ConfigError": 2, "TraceError": 3, "VerificationError": 4, "BudgetMissed": 5, "DeviceError": 6}
    for name, code in expected.items():
        error = getattr(errors, name)("it failed", fix="mend it", where="here:1")

        def fail(*_: object, error: EdgePruneError = error) -> None:
            raise error

        monkeypatch.setattr("edgeprune.pipeline.start.init", fail)
        said = run("init")
        assert (said.code, said.err) == (code, "error: it failed\n  --> here:1\n  fix: mend it\n")
