"""The verdict claims no more than was measured, and budgets are judged as they were asked for."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.config import RunConfig, validate
from edgeprune.pipeline.verdict import failure, judge
from edgeprune.values import Json, worsening
from tests import sample_results


def _judged(result: Json, **limits: object) -> Json:
    return judge(result, validate(dict(limits)))


def test_a_speed_is_a_measured_ratio_with_its_interval() -> None:
    result = sample_results.result()
    text = _judged(result)["text"]
    for comparison in result["comparisons"]:
        low, high = comparison["ci95"]
        assert f"{comparison['format']} {comparison['ratio']:.2f}x faster ({low:.2f} to {high:.2f})" in text
    assert "MACs" not in text
    assert "params" not in text


def test_what_was_not_shown_is_not_claimed() -> None:
    result = sample_results.result()
    result["comparisons"][0] |= {"verdict": "no difference shown", "ratio": 1.02, "ci95": [0.97, 1.07]}
    text = _judged(result)["text"]
    assert "onnx no difference shown (1.02x, 0.97 to 1.07)" in text
    result["comparisons"][0] |= {"verdict": "slower", "ratio": 0.80, "ci95": [0.78, 0.82]}
    assert "onnx 0.80x slower (0.78 to 0.82)" in _judged(result)["text"]
    result["measurements"][1]["quality"] = "noisy"
    assert "(0.78 to 0.82) (noisy)" in _judged(result)["text"]


def test_sizes_and_metrics_are_said_once_where_formats_agree() -> None:
    result = sample_results.result()
    assert _judged(result)["text"].count("smaller") == 1
    assert _judged(result)["text"].count("top1 0.994 -> 0.986 (-0.008)") == 1
    result["artifacts"][3]["metrics"]["top1"] = 0.5
    text = _judged(result)["text"]
    assert "onnx top1 0.994 -> 0.986" in text
    assert "tflite top1 0.994 -> 0.500" in text
    for entry in result["artifacts"]:
        entry["metrics"] = None
    assert "top1" not in _judged(result)["text"]


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({"max_size": "1MB"}, True),
        ({"max_size": "151kB"}, False),
        ({"max_latency": "1ms"}, True),
        ({"max_latency": "30us"}, False),
        ({"max_drop": 0.01}, True),
        ({"max_drop": 0.008}, False),
        ({"max_size": "1MB", "max_latency": "30us"}, False),
    ],
)
def test_every_pruned_artifact_must_meet_the_budget(limits: Json, passes: bool) -> None:
    result = sample_results.result()
    result["verdict"] = _judged(result, **limits)
    assert result["verdict"]["passed"] is passes
    assert ("within budget" in result["verdict"]["text"]) is passes
    assert ("missed: " in result["verdict"]["text"]) is not passes
    error = failure(result)
    assert (error is None) is passes
    if error is not None:
        assert error.exit_code == 5
        assert "the limit is" in error.message
        assert error.fix is not None


def test_a_metric_that_is_a_loss_drops_upwards() -> None:
    result = sample_results.result()
    for entry in result["artifacts"]:
        entry["metrics"] = {"cross_entropy_loss": 0.1 if entry["role"] == "baseline" else 0.3}
    (first, _) = _judged(result, max_drop=0.1)["budgets"]
    assert first["measured"] == pytest.approx(0.2)
    assert not first["passed"]


def test_what_was_not_measured_misses_its_budget() -> None:
    result = sample_results.result()
    result["measurements"][1] |= {"latency": None, "quality": "failed", "error": {"message": "the agent died"}}
    result["comparisons"] = result["comparisons"][1:]
    result["verdict"] = _judged(result, max_latency="1ms")
    assert result["verdict"]["passed"] is False
    assert "model.onnx could not be measured" in result["verdict"]["text"]
    error = failure(result)
    assert error is not None
    assert error.exit_code == 6
    assert "the agent died" in error.message


def test_the_metric_of_the_settings_decides() -> None:
    result = sample_results.result()
    for entry in result["artifacts"]:
        entry["metrics"] = {"top1": 0.9, "top5": 0.99 if entry["role"] == "baseline" else 0.98}
    judged = judge(result, RunConfig(finetune={"metric": "top5"}, max_drop=0.001))
    assert "top5 0.990 -> 0.980" in judged["text"]
    assert not judged["passed"]


@settings(deadline=None)
@given(before=st.floats(-1e6, 1e6), after=st.floats(-1e6, 1e6))
def test_a_drop_is_positive_exactly_when_it_became_worse(before: float, after: float) -> None:
    assert (worsening("top1", before, after) > 0) is (after < before)
    assert (worsening("val_loss", before, after) > 0) is (after > before)


def test_judging_changes_nothing() -> None:
    result = sample_results.result()
    before = copy.deepcopy(result)
    _judged(result, max_size="1kB")
    assert result == before


def test_every_precision_is_told_apart_and_said_once_where_formats_agree() -> None:
    result = sample_results.lower(sample_results.result())
    text = _judged(result)["text"]
    for comparison in result["comparisons"]:
        word = "int8 " if comparison["row"].startswith("int8") else ""
        assert f"{comparison['format']} {word}{comparison['ratio']:.2f}x faster" in text
    assert "int8 9.26x smaller" in text
    assert "2.78x smaller" in text
    assert "top1 0.994 -> 0.986 (-0.008)" in text
    assert "int8 top1 0.994 -> 0.982 (-0.012)" in text
    result["artifacts"][-1]["metrics"]["top1"] = 0.9
    text = _judged(result)["text"]
    assert "onnx int8 top1 0.994 -> 0.982" in text
    assert "tflite int8 top1 0.994 -> 0.900" in text


def test_every_file_that_was_asked_for_must_meet_the_budget() -> None:
    result = sample_results.lower(sample_results.result())
    names = [budget["name"] for budget in _judged(result, max_size="1MB", max_drop=0.1)["budgets"]]
    assert names == [
        *(f"size of model.{kind}" for kind in ("onnx", "int8.onnx", "tflite", "int8.tflite")),
        *(f"drop of top1 in model.{kind}" for kind in ("onnx", "int8.onnx", "tflite", "int8.tflite")),
    ]
    missed = [budget["name"] for budget in _judged(result, max_drop=0.01)["budgets"] if not budget["passed"]]
    assert missed == ["drop of top1 in model.int8.onnx", "drop of top1 in model.int8.tflite"]
    exact = {"runs/digits-r50/model.onnx", "runs/digits-r50/model.tflite"}
    result["artifacts"] = [entry for entry in result["artifacts"] if entry["artifact"]["path"] not in exact]
    result["measurements"] = [row for row in result["measurements"] if row["artifact"]["path"] not in exact]
    only = [budget["name"] for budget in _judged(result, max_size="1MB", max_latency="1ms")["budgets"]]
    assert only == [f"{what} of model.int8.{kind}" for what in ("latency p50", "size") for kind in ("onnx", "tflite")]


@pytest.mark.parametrize(
    ("error", "code"), [("VerificationError", 4), ("ExportError", 3), ("ModelError", 3), ("ConfigError", 2)]
)
def test_a_precision_that_failed_ends_the_run_with_its_own_exit_code(error: str, code: int) -> None:
    result = sample_results.result()
    result["refused"] = [sample_results.refusal(error=error)]
    result["verdict"] = _judged(result, max_size="1MB")
    assert "there is no model.int8.onnx" in result["verdict"]["text"]
    assert not result["verdict"]["passed"]
    (missing,) = (budget for budget in result["verdict"]["budgets"] if budget["measured"] is None)
    assert missing["name"] == "size of model.int8.onnx"
    found = failure(result)
    assert found is not None
    assert (type(found).__name__, found.exit_code) == (error, code)
    assert "SQNR of 3.1 dB" in found.message


def test_compressed_sizes_know_the_precision() -> None:
    result = sample_results.lower(sample_results.result())
    bytes_of = {"baseline.onnx": 900, "model.onnx": 300, "model.int8.onnx": 90}
    files = [{"name": name, "size_bytes": 0, "compressed_bytes": size} for name, size in bytes_of.items()]
    result["sparsity"] = {"files": files}
    text = _judged(result)["text"]
    assert "onnx 3.00x smaller compressed" in text
    assert "onnx int8 10.00x smaller compressed" in text
