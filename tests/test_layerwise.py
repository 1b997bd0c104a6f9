"""Layer-wise pruning in a run, in `prune` and in Python: what is kept, told, remembered and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.errors import ConfigError
from tests.test_cli import SHORT, Run, _rewrite, run  # noqa: F401
from tests.test_select import Case, Chain

LAYERS = ("-s", "prune.align=8", "-s", "prune.strategy=layerwise", "-s", "layerwise.reconstruct=false")
_COSTS = """
def evaluate(model):
    kill()
    return {"top1": 1 - (32 - model.conv1.out_channels) / 1000 - (32 - model.conv2.out_channels) / 100}


def kill():
    import os, pathlib, signal
    counter = pathlib.Path("evaluated")
    count = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(count + 1))
    if os.environ.get("KILL_AT") == str(count):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def costly(run: Run) -> Run:  # noqa: F811
    """A workload in which a channel of conv1 costs 0.001 of the metric and one of conv2 costs 0.01."""
    _rewrite("def evaluate(", "def _evaluate(")
    with Path("tiny.py").open("a") as file:
        file.write(_COSTS)
    return run


def test_groups_that_cost_too_much_keep_their_units(costly: Run) -> None:
    said = costly(
        "prune", "tiny.py", "--ratio", "0.5", "-o", "small", "--json", *LAYERS, "-s", "layerwise.allowance=0.1"
    )
    assert said.code == 0, said.err
    done = json.loads(said.out)
    kept = {row["name"]: row["units_after"] for row in done["groups"]}
    assert kept == {"conv1": 16, "conv2": 24, "classify": 4}
    trials = [(row["names"], row["ratio"], row["state"]) for row in done["layerwise"]["trials"]]
    assert trials == [
        (["conv1"], 0.5, "kept"),
        (["conv2"], 0.5, "rolled back"),
        (["conv2"], 0.25, "kept"),
    ]
    assert [round(row["cost"], 6) for row in done["layerwise"]["trials"]] == [0.016, 0.16, 0.08]
    assert costly("export", "small", "-o", "model.onnx").code == 0


@pytest.mark.parametrize(
    ("order", "first"), [("macs", "conv1"), ("size", "conv1"), ("forward", "conv1"), ("backward", "conv2")]
)
def test_the_order_is_a_setting(costly: Run, order: str, first: str) -> None:
    said = costly("prune", "tiny.py", "-o", "small", "--json", *LAYERS, "-s", f"layerwise.order={order}")
    found = json.loads(said.out)["layerwise"]
    assert found["trials"][0]["names"] == [first]
    assert found["order"] == order


def test_the_least_sensitive_goes_first(costly: Run) -> None:
    assert costly("sensitivity", "tiny.py", "-s", "prune.align=8").code == 0
    path = Path("sensitivity/sensitivity.json")
    found = json.loads(path.read_text())
    for row in found["groups"]:
        for point in row["points"]:
            point["loss"] = 0.5 if row["names"] == ["conv1"] else 0.0
    path.write_text(json.dumps(found))
    words = ("--sensitivity", "sensitivity", "-s", "layerwise.order=sensitivity")
    said = costly("prune", "tiny.py", "-o", "small", "--json", *LAYERS, *words)
    assert json.loads(said.out)["layerwise"]["trials"][0]["names"] == ["conv2"]


def test_a_run_tells_and_draws_the_trials_and_goes_on_after_a_kill(costly: Run) -> None:
    words = ("compress", "tiny.py", *SHORT, *LAYERS, "-s", "finetune.epochs=0", "-s", "layerwise.allowance=0.1")
    command = [sys.executable, "-m", "edgeprune", *words, "-o", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILL_AT": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = Path("run/trials.jsonl").read_text().splitlines()
    assert len(before) == 3
    said = costly(*words, "-o", "run")
    assert said.code == 0, said.err
    assert "2 of 3 trials kept" in said.err
    after = Path("run/trials.jsonl").read_text().splitlines()
    assert after[:3] == before
    assert len(after) == 5
    page = Path("run/report.html").read_text()
    assert "<h2>Layer by layer</h2>" in page
    assert 'data-figure="run0-layerwise-0"' in page
    again = costly("resume", "run", "--json", "-q")
    assert {stage["state"] for stage in json.loads(again.out)["stages"]} == {"reused"}
    other = costly(*words, "-o", "run", "-s", "layerwise.order=backward", "--json")
    assert {stage["name"]: stage["state"] for stage in json.loads(other.out)["stages"]}["plan"] == "done"


@pytest.mark.parametrize(
    ("words", "edits", "code", "text"),
    [
        ("-s layerwise.order=sizes", (), 2, "layerwise.order = 'sizes': Input should be 'sensitivity'"),
        ("-s layerwise.order=sensitivity", (), 2, "layerwise.order = 'sensitivity' needs a sensitivity"),
        ("--max-macs 0.5x", (), 2, "prune.strategy = 'layerwise' and prune.max_macs exclude each other"),
        ("-s loop.steps=3", (), 2, "prune.strategy = 'layerwise' and loop.steps exclude each other"),
        ("-s layerwise.allowance=0.001", (), 5, "every group costs more than 0.001 of top1"),
        ("--ratio 0.01", (), 3, "removes nothing when widths are rounded"),
        ("-s prune.keep=['conv*']", (), 3, "no group can be pruned"),
    ],
)
def test_bad_input_is_told(costly: Run, words: str, edits: tuple[()], code: int, text: str) -> None:
    said = costly("compress", "tiny.py", *SHORT, *LAYERS, *words.split())
    assert said.code == code, said.err
    assert text in said.err
    assert "Traceback" not in said.err


def test_without_a_metric_and_without_data_nothing_can_be_judged(run: Run) -> None:  # noqa: F811
    for name in ("evaluate", "train_data", "train_step"):
        _rewrite(f"def {name}(", f"def _{name}(")
    said = run("compress", "tiny.py", *SHORT, *LAYERS)
    assert said.code == 2
    assert "tiny.py has neither evaluate nor data" in said.err


def test_in_python_the_error_of_the_outputs_decides() -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.fc1.weight[32:] = 0
        model.fc1.bias[32:] = 0
    case = Case(model, 2, 3, 8, 8)
    settings = {"allowance": 1e-6, "halvings": 0, "reconstruct": False, "order": "forward"}
    plan = ep.plan(model, case.inputs, ratio=0.5, align=1, data=[torch.randn(32, 3, 8, 8)], layerwise=settings)
    assert set(plan.keep) == {"fc1"}
    assert len(plan.keep["fc1"]) == 32


def test_in_python_a_metric_decides_and_blocks_and_ratios_stay() -> None:
    torch.manual_seed(0)
    case = Case(Chain(), 2, 3, 8, 8)
    seen = []

    def evaluate(network: nn.Module) -> dict[str, float]:
        seen.append((network.conv1.out_channels, network.conv2.out_channels, network.fc1.out_features))
        return {"top1": float(network.conv1.out_channels)}

    plan = ep.plan(
        case.model,
        case.inputs,
        ratio=0.5,
        align=1,
        ratios={"conv2": 0.25},
        layerwise={"halvings": 0},
        evaluate=evaluate,
    )
    assert {name: len(units) for name, units in plan.keep.items()} == {"conv2": 18, "fc1": 32}
    assert seen[0] == (40, 24, 64)
    assert seen[1] == (40, 18, 64)
    with pytest.raises(ConfigError, match="needs a sensitivity"):
        ep.plan(case.model, case.inputs, layerwise={"order": "sensitivity"}, evaluate=evaluate)
