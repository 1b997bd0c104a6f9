"""`edgeprune sensitivity` as a user meets it: what it measures, what it remembers, and what planning makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.errors import ConfigError
from edgeprune.values import Json
from tests.test_cli import SHORT, Run, _rewrite, run  # noqa: F401
from tests.test_select import Case, Chain, Halves
from tests.workloads import tiny

FINE = ("-s", "prune.align=8")
NOTHING = tuple((f"def {name}(", f"def _{name}(") for name in ("evaluate", "train_data", "train_step"))


def _found(folder: str = "sensitivity") -> Json:
    return json.loads((Path(folder) / "sensitivity.json").read_text())


def test_every_group_is_measured_alone_and_written_down(run: Run) -> None:  # noqa: F811
    said = run("sensitivity", "tiny.py", *FINE)
    assert said.code == 0, said.err
    assert "2 groups, 6 networks measured: top1" in said.err
    assert "next: edgeprune compress tiny.py --sensitivity sensitivity --ratio 0.5" in said.out
    found = _found()
    assert [row["names"] for row in found["groups"]] == [["conv1"], ["conv2"]]
    for row in found["groups"]:
        assert [point["removed"] for point in row["points"]] == [0.25, 0.5, 0.75]
        assert [point["kept"] for point in row["points"]] == [24, 16, 8]
    assert found["source"] == "evaluate"
    page = Path("sensitivity/sensitivity.html").read_text()
    assert "Sensitivity of Tiny" in page
    assert page.count('data-figure="sensitivity-') == 2


def test_a_value_is_that_of_the_network_pruned_there_and_nowhere_else(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", "--ratios", "0.5", *FINE).code == 0
    model = tiny.model().eval()
    for row in _found()["groups"]:
        plan = ep.plan(model, tiny.inputs(), ratio=0.0, align=8, ratios={row["names"][0]: 0.5})
        assert set(plan.keep) == set(row["names"])
        small = ep.apply(model, plan, tiny.inputs())
        assert row["points"][0]["value"] == pytest.approx(tiny.evaluate(small)["top1"])
        assert row["points"][0]["loss"] == pytest.approx(tiny.evaluate(model)["top1"] - row["points"][0]["value"])


def test_finished_cells_are_not_made_again(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", "--ratios", "0.5", *FINE).code == 0
    said = run("sensitivity", "tiny.py", "--ratios", "0.5,0.75", *FINE)
    assert "2 networks measured, 2 reused" in said.err
    assert "0 networks measured, 4 reused" in run("sensitivity", "tiny.py", "--ratios", "0.5,0.75", *FINE).err
    said = run("sensitivity", "tiny.py", "--ratios", "0.5", "--reconstruct", *FINE)
    assert "2 networks measured:" in said.err
    assert _found()["reconstructed"]
    _rewrite("torch.manual_seed(7)", "torch.manual_seed(8)")
    assert "2 networks measured:" in run("sensitivity", "tiny.py", "--ratios", "0.5", *FINE).err


_SUICIDE = """
def evaluate(model):
    import os, pathlib, signal
    counter = pathlib.Path("evaluated")
    count = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(count + 1))
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return _evaluate(model)
"""


def test_kill_then_the_same_command_goes_on(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", "-o", "whole", *FINE).code == 0
    _rewrite("def evaluate(", "def _evaluate(")
    with Path("tiny.py").open("a") as file:
        file.write(_SUICIDE)
    words = [sys.executable, "-m", "edgeprune", "sensitivity", "tiny.py", "-o", "killed", *FINE]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("killed/sensitivity.json").exists()
    with Path("killed/trials.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    said = run("sensitivity", "tiny.py", "-o", "killed", *FINE)
    assert said.code == 0, said.err
    assert "3 networks measured, 3 reused" in said.err
    assert _found("killed")["groups"] == _found("whole")["groups"]


def test_without_a_metric_the_error_of_the_outputs_counts(run: Run) -> None:  # noqa: F811
    _rewrite("def evaluate(", "def _evaluate(")
    said = run("sensitivity", "tiny.py", *FINE)
    assert said.code == 0, said.err
    assert "output_error of the outputs on data, as there is no evaluate()" in said.out
    found = _found()
    assert (found["source"], found["metric"], found["dense"]) == ("outputs", "output_error", 0.0)
    for row in found["groups"]:
        assert all(point["loss"] == point["value"] > 0 for point in row["points"])


def test_planning_spares_what_is_sensitive(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", *FINE).code == 0
    found = _found()
    for row, cost in zip(found["groups"], (1.0, 0.01), strict=True):
        for point in row["points"]:
            point["loss"] = cost * point["removed"] ** 2
    Path("made.json").write_text(json.dumps(found))
    done = run("prune", "tiny.py", "--ratio", "0.375", "--sensitivity", "made.json", "-o", "small", "--json", *FINE)
    assert done.code == 0, done.err
    kept = {row["name"]: row["units_after"] for row in json.loads(done.out)["groups"]}
    assert kept == {"conv1": 32, "conv2": 8, "classify": 4}
    done = run("prune", "tiny.py", "--max-macs", "0.5x", "--sensitivity", "made.json", "-o", "other", "--json", *FINE)
    network = json.loads(done.out)["network"]
    assert network["macs"]["pruned"] <= network["macs"]["dense"] / 2
    kept = {row["name"]: row["units_after"] for row in json.loads(done.out)["groups"]}
    assert kept["conv2"] < kept["conv1"]


def test_a_run_uses_it_says_it_and_notices_when_it_changed(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", *FINE).code == 0
    words = ("compress", "tiny.py", *SHORT, *FINE, "-s", "finetune.epochs=0")
    said = run(*words, "--sensitivity", "sensitivity")
    assert said.code == 0, said.err
    page = Path("runs/tiny-r50/report.html").read_text()
    assert "<h2>Sensitivity</h2>" in page
    assert 'data-figure="run0-sensitivity-0"' in page
    assert "other-weights" not in page
    again = run("resume", "runs/tiny-r50", "--json", "-q")
    assert {stage["state"] for stage in json.loads(again.out)["stages"]} == {"reused"}
    found = _found()
    found["digests"]["weights"] = "others"
    Path("sensitivity/sensitivity.json").write_text(json.dumps(found))
    said = run("resume", "runs/tiny-r50", "--json")
    assert {stage["name"]: stage["state"] for stage in json.loads(said.out)["stages"]}["plan"] == "done"
    assert "was measured on other weights of Tiny" in said.err


@pytest.mark.parametrize(
    ("words", "edits", "code", "texts"),
    [
        ("", NOTHING, 2, ("neither evaluate nor data",)),
        ("--ratios 0.5,x", (), 2, ("--ratios: 'x' is not a number",)),
        ("--ratios 1.5", (), 2, ("sensitivity.ratios",)),
        ("-s prune.keep=['conv*']", (), 3, ("no group can be pruned", "conv1: kept by 'conv*'")),
        ("-s prune.align=64", (), 3, ("no group can be pruned", "prune.align=1")),
        ("-s finetune.metric=top5", (), 2, ("finetune.metric = 'top5', and evaluate() returns top1",)),
        ("-o tiny.py", (), 2, ("tiny.py is a file",)),
        ("-o .", (), 2, ("holds no sensitivity (tiny.py)",)),
    ],
)
def test_bad_input_is_told(
    run: Run,  # noqa: F811
    words: str,
    edits: tuple[tuple[str, str], ...],
    code: int,
    texts: tuple[str, ...],
) -> None:
    for old, new in edits:
        _rewrite(old, new)
    said = run("sensitivity", "tiny.py", *words.split())
    assert said.code == code, said.err
    assert all(text in said.err for text in texts), said.err
    assert "Traceback" not in said.err
    assert not Path("sensitivity/sensitivity.json").exists()


def test_a_sensitivity_of_another_network_is_refused_by_every_command(run: Run) -> None:  # noqa: F811
    assert run("sensitivity", "tiny.py", *FINE).code == 0
    _rewrite("self.conv2", "self.conv3")
    for command in ("prune", "compress"):
        said = run(command, "tiny.py", "--sensitivity", "sensitivity")
        assert said.code == 2
        assert "is of another network (Tiny): there is no group 'conv2'" in said.err
    assert run("prune", "tiny.py", "--sensitivity", "nothing.json").code == 2


def _measured(case: Case, **settings: object) -> ep.Sensitivity:  # type: ignore[name-defined]
    return ep.sensitivity(case.model, case.inputs, data=[torch.randn(16, *case.inputs[0].shape[1:])], **settings)


def test_linked_groups_are_measured_and_planned_together() -> None:
    torch.manual_seed(0)
    case = Case(Halves(), 2, 3, 4, 4)
    found = _measured(case, align=1)
    linked = {tuple(sorted(row)) for row in case.graph.links}
    assert linked
    assert {tuple(sorted(row["names"])) for row in found.groups if len(row["names"]) > 1} == linked
    for ratio in (0.25, 0.5, 0.75):
        plan = ep.plan(case.model, case.inputs, ratio=ratio, align=1, sensitivity=found)
        for row in linked:
            assert len({len(plan.groups[name].keep) for name in row}) == 1
        assert ep.apply(case.model, plan, case.inputs) is not case.model


@pytest.mark.parametrize("align", [1, 4, 8])
def test_the_wanted_ratio_is_met_as_nearly_as_widths_allow(align: int) -> None:
    torch.manual_seed(0)
    case = Case(Chain(), 2, 3, 8, 8)
    found = _measured(case, align=align)
    reached = []
    for ratio in (0.125, 0.25, 0.5, 0.75):
        plan = ep.plan(case.model, case.inputs, ratio=ratio, align=align, sensitivity=found)
        sizes = {name: (group.units, len(group.keep)) for name, group in plan.groups.items()}
        assert all(kept == units or kept % align == 0 for units, kept in sizes.values())
        reached.append(1 - sum(kept for _, kept in sizes.values()) / sum(units for units, _ in sizes.values()))
        assert abs(reached[-1] - ratio) <= 1.01 * align / 128
    assert reached == sorted(reached)


def test_user_ratios_and_keep_win_over_the_allocation() -> None:
    torch.manual_seed(0)
    case = Case(Chain(), 2, 3, 8, 8)
    found = _measured(case, align=1)
    plan = ep.plan(case.model, case.inputs, ratio=0.5, align=1, keep=["conv1*"], sensitivity=found)
    assert "conv1" not in plan.keep
    plan = ep.plan(case.model, case.inputs, ratio=0.5, align=1, ratios={"conv1": 0.1}, sensitivity=found)
    assert len(plan.groups["conv1"].keep) == 36


def test_allocation_costs_less_than_equal_ratios_where_groups_differ() -> None:
    """A layer whose units are copies of each other costs nothing; an even ratio takes from the other as well."""
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.conv1.weight[8:] = 0
        model.conv1.bias[8:] = 0
    case = Case(model, 2, 3, 8, 8)
    batch = torch.randn(64, 3, 8, 8)
    found = ep.sensitivity(model, case.inputs, data=[batch], align=1, ratios=(0.25, 0.5, 0.75, 0.8))
    with torch.no_grad():
        dense = model(batch)
        errors = {}
        for name, chosen in (("even", None), ("chosen", found)):
            plan = ep.plan(model, case.inputs, ratio=0.25, align=1, sensitivity=chosen)
            errors[name] = float((ep.apply(model, plan, case.inputs)(batch) - dense).norm())
    assert errors["chosen"] == pytest.approx(0, abs=1e-5)
    assert errors["even"] > 1e-3


def test_neither_metric_nor_data_is_refused_in_python() -> None:
    with pytest.raises(ConfigError, match="neither evaluate nor data"):
        ep.sensitivity(tiny.model(), tiny.inputs())


def test_a_checkpoint_remembers_in_python(tmp_path: Path) -> None:
    calls = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        calls.append(model)
        return tiny.evaluate(model)

    place = tmp_path / "trials.jsonl"
    first = ep.sensitivity(tiny.model().eval(), tiny.inputs(), evaluate=evaluate, checkpoint=place)
    count = len(calls)
    again = ep.sensitivity(tiny.model().eval(), tiny.inputs(), evaluate=evaluate, checkpoint=place)
    assert (count, len(calls)) == (7, 7)
    assert first == again
    assert np.isfinite(first.predicted({"conv1": 0.5}))
