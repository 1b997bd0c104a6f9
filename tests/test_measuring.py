"""Which file is the baseline, and which rows are compared with which."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.bench import Measurement, append_results
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pipeline.measuring import compare, compare_rows, roles_of
from edgeprune.values import Artifact
from tests import sample_results


def _artifact(path: str) -> Artifact:
    return Artifact(
        path=path,
        format="onnx" if path.endswith(".onnx") else "tflite",
        precision="int8" if ".int8." in path else "fp32",
        sha256=path,
        size_bytes=1,
        inputs=(),
        outputs=(),
        metadata={},
    )


@pytest.mark.parametrize(
    ("paths", "baseline", "roles"),
    [
        (["a.onnx", "b.onnx"], None, ["baseline", "model"]),
        (["small/model.tflite", "baseline.tflite"], None, ["model", "baseline"]),
        (["a.onnx", "b.tflite"], None, ["baseline", "baseline"]),
        (["a.onnx", "b.onnx", "c.onnx"], "c.onnx", ["model", "model", "baseline"]),
        (["a.onnx", "x/baseline.onnx", "y/baseline.onnx"], None, ["model", "baseline", "model"]),
        (["baseline.onnx", "b.onnx"], "b.onnx", ["model", "baseline"]),
        (["a.int8.onnx", "a.onnx", "b.onnx"], None, ["model", "baseline", "model"]),
        (["a.int8.onnx", "b.int8.onnx"], None, ["baseline", "model"]),
        (["a.int8.onnx", "a.onnx"], "a.int8.onnx", ["baseline", "model"]),
    ],
)
def test_one_file_of_every_format_is_the_baseline(paths: list[str], baseline: str | None, roles: list[str]) -> None:
    assert roles_of([_artifact(path) for path in paths], baseline) == roles


def _rows() -> list[Measurement]:
    return [Measurement.from_dict(row) for row in sample_results.result()["measurements"]]


def test_rows_are_compared_with_the_baseline_of_their_format() -> None:
    comparisons = compare_rows(_rows(), 0.03)
    assert [value.format for value in comparisons] == ["onnx", "tflite"]
    assert all(value.ratio > 1 for value in comparisons)


def test_two_files_are_compared_row_by_row(tmp_path: Path) -> None:
    append_results(tmp_path / "a.jsonl", _rows())
    found = compare([str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")], allow=(), practical=0.03)
    assert len(found["comparisons"]) == 4
    assert {value["verdict"] for value in found["comparisons"]} == {"no difference shown"}
    alone = compare([str(tmp_path / "a.jsonl")], allow=(), practical=0.03)
    assert len(alone["comparisons"]) == 2


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    rows = _rows()
    append_results(tmp_path / "models.jsonl", [row for row in rows if row.role == "model"])
    append_results(tmp_path / "baselines.jsonl", [row for row in rows if row.role == "baseline"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([str(tmp_path / "models.jsonl")], allow=(), practical=0.03)
    with pytest.raises(ConfigError, match="no row of the same role"):
        compare([str(tmp_path / name) for name in ("models.jsonl", "baselines.jsonl")], allow=(), practical=0.03)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ResolveError, match="holds no measurement"):
        compare([str(tmp_path / "empty.jsonl")], allow=(), practical=0.03)


def test_rows_of_other_precisions_are_kept_apart_and_compared_where_that_is_allowed(tmp_path: Path) -> None:
    rows = [Measurement.from_dict(row) for row in sample_results.lower(sample_results.result())["measurements"]]
    comparisons = compare_rows(rows, 0.03)
    assert len(comparisons) == 4
    append_results(tmp_path / "all.jsonl", rows)
    append_results(tmp_path / "int8.jsonl", [row for row in rows if row.artifact["precision"] == "int8"])
    append_results(tmp_path / "exact.jsonl", [row for row in rows if row.role == "model"][:2])
    twice = compare([str(tmp_path / "all.jsonl")] * 2, allow=(), practical=0.03)
    assert {value["verdict"] for value in twice["comparisons"]} == {"no difference shown"}
    assert len(twice["comparisons"]) == 6
    pair = [str(tmp_path / name) for name in ("exact.jsonl", "int8.jsonl")]
    with pytest.raises(ConfigError, match="no row of the same role, format, precision and threads"):
        compare(pair, allow=(), practical=0.03)
    allowed = compare(pair, allow=("precision",), practical=0.03)
    assert [value["verdict"] for value in allowed["comparisons"]] == ["faster", "faster"]
