"""The overfitting suite, short: a few made-up images, one epoch, all ways of pruning, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import overfitting


def made_up(count: int) -> overfitting.Data:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return torch.randn(count, 1, 28, 28, generator=generator) + labels.view(-1, 1, 1, 1) / 5, labels


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[overfitting.Row]:
    for name, value in (("IMAGES", 60), ("EPOCHS", 1), ("EPOCHS_AFTER", 1)):
        monkeypatch.setattr(overfitting, name, value)
    return overfitting.run_seed("784-64-10", 0, made_up(80), made_up(40))


def test_every_way_of_pruning_is_trained_on_and_scored(rows: list[overfitting.Row]) -> None:
    params = {row["arm"]: row["params"] for row in rows}
    assert params["before"] == params["dense"] == 50_890
    assert params["50% of the units"] == 784 * 32 + 32 + 320 + 10
    assert params["50% of the weights"] <= 25_482
    assert params["95% of the weights"] < params["80% of the weights"] < params["50% of the weights"]
    assert all(0 <= row["train"] <= 1 and 0 <= row["test"] <= 1 for row in rows)
    assert [row["arm"] for row in rows] == ["before", *(arm.name for arm in overfitting.ARMS)]


def test_changes_are_paired_by_seed(rows: list[overfitting.Row]) -> None:
    second = [{**row, "seed": 1} for row in rows]
    for row in rows:
        row["train"], row["test"] = 0.9, 0.8
    for row in second:
        row["train"], row["test"] = 0.9, 0.8 if row["arm"] == "dense" else 0.6
    lines = overfitting.table([*rows, *second]).splitlines()
    (line,) = [line for line in lines if "| 50% of the units |" in line]
    assert line.endswith("| 90.0 | 70.0 | 20.0 | +10.0 ± 127.1 | -10.0 ± 127.1 |")


def test_the_command_prints_the_table_of_kept_rows(
    rows: list[overfitting.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", ["overfitting", "--table", "-o", str(path)])
    assert overfitting.main() == 0
    assert "| 784-64-10 | dense | 50,890 |" in capsys.readouterr().out
