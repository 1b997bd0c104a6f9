"""The loop in a run: steps are kept or rolled back, a kill costs the current step at most, one plan comes out."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.config import RunConfig
from edgeprune.errors import BudgetMissed, ConfigError, NothingToPrune
from edgeprune.pipeline.compress import RunResult, compress
from edgeprune.pipeline.events import Event
from edgeprune.pipeline.folders import open_network
from edgeprune.pruning import PrunePlan
from edgeprune.rundir import file_digest
from edgeprune.values import Json
from tests.test_pipeline import _config, _rewrite, folder  # noqa: F401

LOOP: Json = {"prune__align": 4, "prune__ratio": 0.75, "loop__steps": 3, "finetune__epochs": 0}


def _looping(place: Path, **changes: object) -> RunConfig:
    return _config(place, **LOOP | changes)


def _states(result: RunResult) -> list[str]:
    return [step["state"] for step in result.data["loop"]["steps"]]


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A finished loop of three steps; tests copy it before they change it."""
    place = tmp_path_factory.mktemp("looped")
    shutil.copy(Path(__file__).parent / "workloads" / "tiny.py", place / "tiny.py")
    return place, compress(_looping(place))


def test_steps_come_to_one_plan_on_the_dense_network(looped: tuple[Path, RunResult]) -> None:
    _, run = looped
    history = run.data["loop"]
    assert _states(run) == ["kept"] * 3
    assert [step["level"] for step in history["steps"]] == pytest.approx([0.25, 0.5, 0.75])
    assert (history["reached"], history["end"]) == (0.75, "goal")
    plans = [PrunePlan.load(run.folder / f"step-{number}.plan.json") for number in (1, 2, 3)]
    for before, after in itertools.pairwise(plans):
        assert all(set(group.keep) <= set(before.groups[name].keep) for name, group in after.groups.items())
        assert set(after.keep) == {"conv1", "conv2"}
    assert plans[-1].digest == PrunePlan.load(run.folder / "plan.json").digest
    assert {row["name"]: row["units_after"] for row in run.data["groups"]} == {"conv1": 8, "conv2": 8, "classify": 4}
    assert (run.folder / "finetuned.safetensors").read_bytes() == (run.folder / "step-3.safetensors").read_bytes()
    opened = open_network(str(run.folder))
    assert opened.model.conv2.weight.shape == (8, 8, 3, 3)
    assert run.data["metrics"]["looped"] == history["steps"][-1]["metrics"]
    assert run.data["metrics"]["looped"]["top1"] > run.data["metrics"]["pruned"]["top1"]


def test_the_report_shows_the_steps(looped: tuple[Path, RunResult]) -> None:
    page = (looped[1].folder / "report.html").read_text()
    assert "<h2>The loop</h2>" in page
    assert 'data-figure="run0-loop-0"' in page
    assert page.count('<td class="good" data-title="Outcome"><span>kept</span></td>') == 3


def test_the_same_command_reuses_every_step_and_changed_training_does_not(
    looped: tuple[Path, RunResult],
    folder: Path,  # noqa: F811
) -> None:
    shutil.copytree(looped[1].folder, folder / "run")
    again = compress(_looping(folder))
    assert {stage["state"] for stage in again.data["stages"]} == {"reused"}
    events: list[Event] = []
    other = compress(_looping(folder, loop__steps=2, prune__ratio=0.5), listen=events.append)
    assert [stage["state"] for stage in other.data["stages"] if stage["name"] == "loop 1"] == ["reused"]
    assert [stage["state"] for stage in other.data["stages"] if stage["name"] == "loop 2"] == ["reused"]
    longer = compress(_looping(folder, loop__epochs=2))
    assert [stage["state"] for stage in longer.data["stages"] if stage["name"].startswith("loop")] == ["done"] * 3


_FALLS = """
def evaluate(model):
    return {"top1": sum(p.numel() for p in model.parameters()) / 10000}
"""


@pytest.fixture
def falling(folder: Path) -> Path:  # noqa: F811
    """A workload whose metric is the number of parameters, so that where it falls is known."""
    _rewrite(folder, "def evaluate(", "def _evaluate(")
    with (folder / "tiny.py").open("a") as file:
        file.write(_FALLS)
    return folder


def test_a_step_below_the_floor_is_rolled_back_and_a_smaller_one_tried(falling: Path) -> None:
    # dense: 9796 parameters; with n of 32 units in both: 9 n + 9 n^2 + 4 n + 4 n + 4
    run = compress(_looping(falling, loop__floor=0.25, loop__tries=2, loop__epochs=0))
    steps = run.data["loop"]["steps"]
    found = [(round(step["level"], 4), step["state"]) for step in steps]
    assert found == [
        (0.25, "kept"),
        (0.5, "kept"),
        (0.75, "rolled back"),
        (0.625, "rolled back"),
        (0.5625, "unchanged"),
        (0.625, "repeated"),
    ]
    assert run.data["loop"]["end"] == "floor"
    assert run.data["metrics"]["finetuned"] is None
    assert run.data["metrics"]["looped"]["top1"] >= 0.25
    assert [notice["code"] for notice in run.data["notices"]] == ["floor"]
    assert not (run.folder / "step-3.safetensors").exists()
    page = (run.folder / "report.html").read_text()
    assert page.count('<td class="bad" data-title="Outcome"><span>rolled back</span></td>') == 2
    assert "floor, 0.25" in page


def test_it_ends_when_the_parameters_are_small_enough(falling: Path) -> None:
    run = compress(_looping(falling, max_size="12kB", loop__epochs=0))
    assert run.data["loop"]["end"] == "met"
    assert run.data["loop"]["reached"] == pytest.approx(0.5)
    assert run.data["network"]["params"]["pruned"] * 4 <= 12_000
    assert [notice["code"] for notice in run.data["notices"]] == ["met"]


def test_a_goal_in_macs_is_met_within_it(falling: Path) -> None:
    run = compress(_looping(falling, prune__max_macs="0.4x", prune__align=1, loop__epochs=0))
    assert run.data["loop"]["unit"] == "share of MACs"
    macs = run.data["network"]["macs"]
    assert macs["pruned"] <= 0.4 * macs["dense"]
    shares = [step["macs"] / macs["dense"] for step in run.data["loop"]["steps"]]
    assert all(share <= limit for share, limit in zip(shares, (0.8, 0.6, 0.4), strict=True))


def test_training_that_hurts_after_the_loop_is_undone(falling: Path) -> None:
    _rewrite(falling, _FALLS.strip(), "CALLS = []\n" + _FALLS.strip().replace("return", "CALLS.append(1)\n    return"))
    _rewrite(falling, "/ 10000}", "/ 10000 - 0.001 * len(CALLS)}")
    run = compress(_looping(falling, finetune__epochs=1, loop__epochs=0))
    assert "undone" in [notice["code"] for notice in run.data["notices"]]
    assert run.data["metrics"]["finetuned"] == run.data["metrics"]["looped"]
    assert (run.folder / "finetuned.safetensors").read_bytes() == (run.folder / "step-3.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"loop__floor": 0.99}, ConfigError, r"loop\.floor = 0\.99, and the dense network has top1 0\.9764"),
        ({"loop__floor": 0.97}, BudgetMissed, r"not even a ratio of 0\.125 keeps top1 at 0\.97"),
        ({"prune__align": 64}, NothingToPrune, "removes nothing when widths are multiples of 64"),
        ({"prune__ratio": 0.0}, ConfigError, "the loop has no goal"),
        ({"prune__keep": ["conv*"]}, NothingToPrune, "no group can be pruned"),
    ],
)
def test_what_cannot_be_met_is_told(falling: Path, changes: Json, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        compress(_looping(falling, loop__epochs=0, **changes))


def test_a_floor_needs_a_metric_and_one_process(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="the loop runs in one process"):
        compress(_looping(folder))
    monkeypatch.delenv("WORLD_SIZE")
    _rewrite(folder, "def evaluate(", "def _evaluate(")
    with pytest.raises(ConfigError, match=r"loop\.floor = 0\.5 needs a metric, and .*tiny\.py has no evaluate"):
        compress(_looping(folder, loop__floor=0.5))
    assert not (folder / "run").exists()


_KILLER = """
import os, signal, sys
from pathlib import Path
import torch
from edgeprune import rundir
from edgeprune.config import load_config
from edgeprune.pipeline.compress import compress

torch.set_num_threads(1)
when, stage = sys.argv[2:]
current, count = "", 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def listen(event):
    global current, count
    if event.stage == "loop":
        current = f"loop {event.subject}"
        if (when, stage) == (event.state, current):
            die()
    count += event.stage == "finetune" and event.state == "progress" and current == stage
    if when == "training" and count == 4:
        die()


finish = rundir.RunDirectory.finish


def finish_or_die(self, key, *rest):
    if (when, stage) == ("unrecorded", key.stage):
        die()
    return finish(self, key, *rest)


rundir.RunDirectory.finish = finish_or_die
compress(load_config(Path(sys.argv[1])), listen=listen)
"""
FILES = ("plan.json", "step-1.safetensors", "step-2.safetensors", "step-3.safetensors", "finetuned.safetensors")


def test_kill_in_the_loop_then_the_same_command_gives_the_same_files(
    looped: tuple[Path, RunResult],
    folder: Path,  # noqa: F811
) -> None:
    (folder / "settings.toml").write_text(_looping(folder).to_toml())
    points = [("unrecorded", "loop 1"), ("begin", "loop 2"), ("training", "loop 2"), ("unrecorded", "loop 3")]
    for point in points:
        words = [sys.executable, "-c", _KILLER, str(folder / "settings.toml"), *point]
        done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        if point[0] == "training":
            assert list((folder / "run").glob("checkpoint*"))
    run = compress(_looping(folder))
    states = {stage["name"]: stage["state"] for stage in run.data["stages"]}
    assert (states["loop 1"], states["loop 2"], states["loop 3"]) == ("reused", "reused", "done")
    for name in FILES:
        assert file_digest(run.folder / name) == file_digest(looped[1].folder / name), name
    lines = (run.folder / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "begin" for line in lines) > len(run.data["stages"])


_BLOCKS = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.back = nn.Conv2d(32, 32, 1, bias=False)

    def forward(self, x):
        return x + self.back(F.relu(self.norm(self.conv(x))))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.classify = nn.Linear(32, 4)

    def forward(self, x):
        return self.classify(F.relu(self.blocks(self.stem(x))).mean(dim=(2, 3)))


Tiny = Deep
"""


def test_blocks_go_with_the_first_step_and_stay_gone(folder: Path) -> None:  # noqa: F811
    with (folder / "tiny.py").open("a") as file:
        file.write(_BLOCKS)
    run = compress(_looping(folder, prune__depth=0.34, prune__keep=["blocks.0"], loop__steps=2))
    plans = [PrunePlan.load(run.folder / f"step-{number}.plan.json") for number in (1, 2)]
    assert len(plans[0].blocks) == 1
    assert plans[0].blocks == plans[1].blocks
    assert "blocks.0" not in plans[0].blocks
    assert [row["name"] for row in run.data["blocks"]] == list(plans[0].blocks)
    for name, group in plans[1].groups.items():
        assert set(group.keep) <= set(plans[0].groups[name].keep)
    assert len(plans[1].keep) > 1
    assert open_network(str(run.folder)).plan is not None
