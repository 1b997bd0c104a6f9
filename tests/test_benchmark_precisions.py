"""The benchmark of precisions, short: one kind in one format, its table, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kinds, precisions
from edgeprune.values import PRECISIONS


def _row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"network": "a", "state": "dense", "format": "onnx", "precision": "fp32", "error": None}
    row |= {"sqnr_db": 120.0, "size_bytes": 5000, "kept": 0, "tflite_runtime_db": None, "versions": {"torch": "1"}}
    return row | changes


def test_one_kind_in_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "PROCESSES", 1)
    monkeypatch.setattr(precisions, "SAMPLES", 16)
    output = tmp_path / "rows.jsonl"
    argv = ["precisions", "small_cnn", "--state", "dense", "--format", "onnx", "-o", str(output)]
    monkeypatch.setattr("sys.argv", argv)
    assert precisions.main() == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["precision"] for row in rows] == list(PRECISIONS)
    for row in rows:
        assert row["error"] is None
        assert row["sqnr_db"] > 17
        assert row["faster"][1] <= row["faster"][0] <= row["faster"][2]
    before = output.read_text()
    assert precisions.main() == 0  # nothing is made again
    assert output.read_text() == before


def test_the_table_has_a_cell_for_what_is_there_refused_and_missing(tmp_path: Path) -> None:
    rows = [
        _row(),
        _row(precision="fp16", error="ExportError: no such operator"),
        _row(precision="int8", sqnr_db=None, kept=3, tflite_runtime_db=5.0),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = precisions.table(path)
    assert "| a, dense | onnx | 120 dB, 5 kB | refused: no such operator |" in text
    assert "not run" in text
    assert "3 in float32" in text
    assert "- int8: 1 of 1 verified; wrong in tflite-runtime 2.14: 1 of 1" in text
    path.write_text("")
    assert "not run" not in precisions.table(path)


@pytest.mark.parametrize("name", sorted(kinds.KINDS))
def test_every_kind_runs_on_its_inputs(name: str) -> None:
    torch.manual_seed(0)
    kind = kinds.KINDS[name]
    with torch.no_grad():
        out = kind.build().eval()(*kind.inputs(2))
    assert len(out) == 2
    assert torch.isfinite(out).all()


def test_the_committed_results_hold_every_precision_of_every_network_once() -> None:
    if not precisions.RESULTS.exists():
        pytest.skip("not measured yet")
    rows = [json.loads(line) for line in precisions.RESULTS.read_text().splitlines()]
    keys = [(row["network"], row["state"], row["format"], row["precision"]) for row in rows]
    assert len(set(keys)) == len(keys)
    text = precisions.table(precisions.RESULTS)
    for precision in PRECISIONS:
        mine = [row for row in rows if row["precision"] == precision]
        assert f"- {precision}: {sum(not row['error'] for row in mine)} of {len(mine)} verified" in text
