"""The comparison of one process and two, short: a few digits, real torchrun, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import processes


@pytest.fixture(scope="module")
def rows() -> list[processes.Row]:
    return [processes.run(processes.CASES["digits"], 0, number, most=256) for number in (1, 2)]


def test_two_processes_end_near_one(rows: list[processes.Row]) -> None:
    one, two = rows
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["before"] == two["before"]
    assert one["top1"] > one["before"]
    assert two["top1"] == pytest.approx(one["top1"], abs=0.03)


def test_differences_are_paired_by_seed(
    rows: list[processes.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {(0, 1): 0.90, (0, 2): 0.91, (1, 1): 0.80, (1, 2): 0.82}
    made = [
        {**rows[0], "seed": seed, "processes": number, "top1": top1, "before": 0.5}
        for (seed, number), top1 in scores.items()
    ]
    made.append({**made[0], "seed": 2})  # without a partner
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.setattr("sys.argv", ["processes", "--table", "-o", str(path)])
    assert processes.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| digits | 2 | 50.00 | 85.00 ± 7.07 | 86.50 ± 6.36 | +1.50 ± 6.35 |"
