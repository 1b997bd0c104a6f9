"""Measurements on disk: appending, broken lines, versions."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench import Measurement, append_results, read_results
from edgeprune.bench import results as results_module
from edgeprune.bench.rows import Comparison
from edgeprune.errors import ResolveError, StorageError
from edgeprune.values import Notice


def row(name: str = "a", **changes: Any) -> Measurement:
    data: dict[str, Any] = {
        "schema_version": 1,
        "row_id": name,
        "occasion_id": "o",
        "time": "2026-01-01T00:00:00+00:00",
        "role": "model",
        "artifact": {"name": "model.onnx", "size_bytes": 10, "format": "onnx"},
        "target": "host",
        "device": {"id": "d"},
        "runtime": {"name": "onnxruntime", "version": "1", "threads": 1},
        "method": {"batch_size": 1},
        "latency": {"p50_s": 0.001, "clock": "wall"},
        "cpu": {"p50_s": 0.001},
        "cold": None,
        "memory": None,
        "env": None,
        "quality": "noisy",
        "reasons": ["busy"],
        "aa": {"ratio": 1.0, "ci95": [0.99, 1.01]},
        "samples": [{"process": 0, "wall_s": [0.001], "cpu_s": [0.001]}],
        "error": None,
    }
    return Measurement.from_dict({**data, **changes})


def test_rows_come_back_equal_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    append_results(path, [row("a"), row("b")])
    append_results(path, [row("c")])
    assert read_results(path) == [row("a"), row("b"), row("c")]
    assert [json.loads(line)["row_id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_a_row_survives_json() -> None:
    one = row()
    assert Measurement.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert one.as_dict()["reasons"] == ["busy"]
    assert (one.name, one.threads) == ("model.onnx", 1)


def test_a_comparison_survives_json() -> None:
    one = Comparison(
        baseline_row="a",
        row="b",
        format="onnx",
        threads=1,
        clock="wall",
        ratio=2.0,
        ci95=(1.9, 2.1),
        threshold=0.03,
        noise_floor=None,
        verdict="faster",
        size_ratio=3.0,
        paired=True,
    )
    assert Comparison.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_a_broken_last_line_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [row("a"), row("b")])
    path.write_bytes(path.read_bytes()[:-20])
    notices: list[Notice] = []
    assert read_results(path, on_notice=notices.append) == [row("a")]
    assert notices[0].code == "results_truncated"
    assert f"{path}:2" in notices[0].text
    with caplog.at_level(logging.WARNING):
        assert read_results(path) == [row("a")]
    assert "incomplete" in caplog.text


@pytest.mark.parametrize("block_bytes", [7, 65536])
def test_an_append_writes_over_a_broken_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(results_module, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "results.jsonl"
    append_results(path, [row("a"), row("b")])
    path.write_bytes(path.read_bytes()[:-20])
    append_results(path, [row("c")])
    assert read_results(path) == [row("a"), row("c")]


def test_a_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [row("a")])
    path.write_bytes(path.read_bytes()[:-1])
    assert read_results(path) == [row("a")]
    append_results(path, [row("b")])
    assert read_results(path) == [row("a"), row("b")]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [row("a")])
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(ResolveError, match=f"line 1 of {path} is not JSON"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "line 1 of .*schema_version 2, this version of edgeprune reads 1"),
        ({"colour": "red"}, "'colour' is unknown"),
    ],
)
def test_rows_of_another_schema_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({**row().as_dict(), **change}) + "\n")
    with pytest.raises(ResolveError, match=message) as caught:
        read_results(path)
    assert caught.value.where == f"{path}:1"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    data = row().as_dict()
    del data["latency"]
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(data) + "\n[]\n")
    with pytest.raises(ResolveError, match="'latency' is missing"):
        read_results(path)
    path.write_text("[]\n")
    with pytest.raises(ResolveError, match=r"line 1 of .* is not a measurement"):
        read_results(path)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="cannot read"):
        read_results(tmp_path / "none.jsonl")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [row("a")])
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write .*results\.jsonl: No space left on device"):
        append_results(path, [row("b")])
    assert path.read_bytes() == before


def test_a_folder_is_no_file_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        append_results(tmp_path, [row("a")])
