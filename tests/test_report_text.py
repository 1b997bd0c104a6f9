"""Numbers in words, rows and the console's tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.report import quantities as q
from edgeprune.report import text
from edgeprune.report.rows import front, join, metric_names, place_of, rows_of
from edgeprune.report.stages import output_lines
from edgeprune.values import lower_is_better
from tests import sample_results as sample


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "not measured"),
        (0.0412, "41.2 ms"),
        (6.79e-05, "67.9 µs"),
        (4.2e-07, "420 ns"),
        (2.5, "2.50 s"),
        (0.0, "0 ms"),
        (math.nan, "nan"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert q.duration(seconds) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(None, "not measured"), (812, "812 B"), (416_000, "416 kB"), (44_800_000, "44.8 MB"), (1_250_000, "1.25 MB")],
)
def test_sizes(size_bytes: int | None, shown: str) -> None:
    assert q.size(size_bytes) == shown


def test_counts_and_macs() -> None:
    assert [q.count(value) for value in (None, 812, 103_178, 11_180_000)] == [
        "not measured",
        "812",
        "103.2 k",
        "11.18 M",
    ]
    assert [q.macs(value) for value in (None, 900, 5_236_000, 560_000_000)] == [
        "not measured",
        "900 MACs",
        "5.24 MMACs",
        "0.56 GMACs",
    ]


def test_a_column_shares_one_unit() -> None:
    assert q.time_unit([67.9e-6, 28e-6]) is q.MICROSECONDS
    assert q.time_unit([0.0412, 0.0129]) is q.MILLISECONDS
    assert q.time_unit([0.0009, 40.0]) is q.SECONDS
    assert q.time_unit([None, math.nan]) is q.MILLISECONDS
    assert q.size_unit([415_896, 113_432]) is q.KILOBYTES
    assert q.size_unit([11_300_000, None]) is q.MEGABYTES


@given(st.lists(st.floats(1e-9, 1e4), min_size=1, max_size=5))
def test_no_time_is_shown_as_zero_in_a_unit_of_its_own(values: list[float]) -> None:
    for value in values:
        number = float(q.duration(value).split()[0])
        unit = q.time_unit([value])
        assert number > 0
        assert number * unit.scale == pytest.approx(value, rel=0.01)


def test_intervals_follow_the_decimals_of_their_value() -> None:
    assert q.plus_minus(0.0412, [0.0409, 0.0415], q.MILLISECONDS) == "± 0.3"
    assert q.plus_minus(0.0412, [0.041199, 0.041201], q.MILLISECONDS) == "± <0.1"
    assert q.plus_minus(0.0412, None, q.MILLISECONDS) == ""
    assert q.plus_minus(0.0412, [None, 0.05], q.MILLISECONDS) == ""
    assert q.ratio(3.19, [3.14, 3.24]) == "3.19x ± 0.05"
    assert q.ratio(None) == "not measured"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not measured"), (0.9171, "0.917"), (0.0, "0.000"), (0.00004, "4.0e-05"), (1234.5678, "1234.6")],
)
def test_metrics(value: float | None, shown: str) -> None:
    assert q.metric(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.31, "0.3 s"), (21.2, "21 s"), (372, "6 m 12 s"), (7380, "2 h 03 m"), (None, "not measured")],
)
def test_elapsed(seconds: float | None, shown: str) -> None:
    assert q.elapsed(seconds) == shown


def test_shapes_and_runtimes() -> None:
    assert q.shape([None, 3, 8]) == "(N, 3, 8)"
    assert q.shape([4]) == "(4,)"
    assert q.runtime({"name": "onnxruntime", "version": "1.32.0", "threads": 4}) == "ONNX Runtime 1.32.0, 4 threads"
    assert q.runtime({}) == ""


def test_compress_table_reads_as_documented() -> None:
    assert text.compress_table(sample.result()).splitlines() == [
        "                    size   top1  latency p50        p90  vs baseline",
        " baseline.onnx    428 kB  0.994  67.9 µs ± 0.6  71.3 µs  1.00x",
        " model.onnx       154 kB  0.986  27.1 µs ± 0.2  28.4 µs  2.51x ± 0.04 faster",
        " baseline.tflite  416 kB  0.994  88.4 µs ± 0.8  92.8 µs  1.00x",
        " model.tflite     150 kB  0.986  35.2 µs ± 0.3  37.0 µs  2.51x ± 0.04 faster",
    ]


def test_what_is_missing_is_said_and_never_zero() -> None:
    result = sample.result()
    result["artifacts"][1]["metrics"] = None
    result["measurements"] = result["measurements"][:1]
    result["comparisons"] = []
    line = text.compress_table(result).splitlines()[2]
    assert line.split()[0] == "model.onnx"
    assert line.count("not measured") == 3
    assert " 0 " not in line


def test_a_failed_and_a_noisy_measurement_carry_their_reason() -> None:
    result = sample.result()
    result["measurements"][1].update(
        quality="failed", latency=None, samples=[], error={"message": "agent exited with 139; log runs/a/agent.log"}
    )
    result["measurements"][3].update(quality="noisy", reasons=["clean share 62 %, below 80 %"])
    result["comparisons"] = []
    shown = text.compress_table(result)
    assert "model.onnx failed: agent exited with 139; log runs/a/agent.log" in shown
    assert "model.tflite noisy: clean share 62 %, below 80 %" in shown
    assert shown.splitlines()[2].split() == ["model.onnx", "154", "kB", "0.986", "failed"]
    assert "not compared" in shown


def test_no_difference_is_said_in_words() -> None:
    result = sample.result()
    result["comparisons"][0].update(ratio=1.01, ci95=[0.98, 1.04], verdict="no difference shown")
    assert "1.01x ± 0.03 no difference shown" in text.compress_table(result)


@given(st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal_but_by_a_single_word(width: int) -> None:
    result = sample.result()
    result["measurements"][3].update(quality="noisy", reasons=["a reason of many words " * 6])
    for shown in (text.compress_table(result, width), text.checks_table(result["artifacts"][0]["checks"], width)):
        for line in shown.splitlines():
            assert len(line) <= width or " " not in line.strip()


def test_threads_and_targets_are_columns_only_where_they_differ() -> None:
    result = sample.result()
    first, second = result["measurements"][:2]
    assert "threads" not in text.bench_table([first, second], [])
    second = {**second, "runtime": {**second["runtime"], "threads": 4}, "target": "raspberry-pi-4"}
    header, _, line = text.bench_table([first, second], []).splitlines()
    assert header.split()[:3] == ["size", "threads", "target"]
    assert line.split()[3:5] == ["4", "raspberry-pi-4"]


def test_inspect_table_names_what_is_pinned_and_how_to_free_it() -> None:
    network = {
        "name": "ResNet18",
        "params": 11_180_000,
        "macs": 560_000_000,
        "size_bytes": 44_700_000,
        "inputs": [sample.spec("x", [1, 3, 32, 32])],
        "prunable_share": 0.979,
    }
    groups = [
        {
            "name": "conv1",
            "units_before": 64,
            "channels": 64,
            "tensors": ["a"] * 11,
            "params": 1_118_000,
            "pinned": None,
            "where": None,
            "rests": "shares positions with attn.qkv",
            "macs_share": 0.098,
        },
        {
            "name": "attn.qkv",
            "channels": 96,
            "tensors": None,
            "pinned": "torch.einsum is unknown",
            "where": "workload.py:31",
            "fix": "rewrite einsum as matmul",
            "macs_share": None,
        },
    ]
    assert text.inspect_table(network, groups, 120).splitlines() == [
        "ResNet18  11.18 M params  0.56 GMACs  44.7 MB float32  inputs (1, 3, 32, 32) float32",
        " group     units  channels  tensors  of params  of MACs  prunable",
        " conv1        64        64       11      10.0%     9.8%  yes  rests: shares positions with attn.qkv",
        " attn.qkv      -        96        -          -        -  no   torch.einsum is unknown at workload.py:31",
        "2 groups, 1 prunable, covering 97.9% of MACs",
        "to prune attn.qkv too: rewrite einsum as matmul",
    ]
    assert text.inspect_table({**network, "prunable_share": None}, []).endswith("0 groups, 0 prunable")


def test_checks_table_marks_what_differs() -> None:
    checks = [sample.check("artifact equals network", "random", 4, 2e-7), sample.check("again", "user", 1, 0.3, False)]
    lines = text.checks_table(checks).splitlines()
    assert lines[0] == " artifact equals network"
    assert lines[2].endswith("equal")
    assert lines[3] == " again"
    assert lines[5].endswith("DIFFERS on logits")


def test_checks_table_shows_what_a_check_was_judged_by() -> None:
    near = {**sample.check("m.int8.tflite against the network", "user inputs", 1, 0.02), "min_sqnr_db": 17.0}
    near |= {"sqnr_db": 31.25, "cosine": 0.99962, "argmax": 1.0}
    lines = text.checks_table([near, {**near, "sqnr_db": 8.0, "passed": False, "output": "boxes"}]).splitlines()
    assert lines[1].split() == [
        "inputs",
        "output",
        "batch",
        "max",
        "|diff|",
        "relative",
        "SQNR",
        "cosine",
        "limit",
        "result",
    ]
    assert "31.2 dB  0.9996  17 dB  near" in lines[2]
    assert "8.0 dB  0.9996  17 dB  DIFFERS on boxes" in lines[3]
    assert all(len(line) <= 100 for line in lines)
    whole = {**near, "sqnr_db": None, "cosine": None, "min_sqnr_db": None, "argmax": 0.875, "max_rel": 3.0}
    assert text.checks_table([whole]).splitlines()[2].split()[-4:] == ["-", "-", "-", "near"]


def test_rows_pair_baseline_and_model_and_order_them() -> None:
    result = sample.result()
    result["measurements"].reverse()
    rows = rows_of(result)
    assert [row.name for row in rows] == ["baseline.onnx", "model.onnx", "baseline.tflite", "model.tflite"]
    assert all(row.measurement is not None and row.measurement["role"] == row.role for row in rows)
    assert [row.comparison is not None for row in rows] == [False, True, False, True]
    assert metric_names(rows) == ("top1",)


def test_rows_keep_the_latest_measurement_of_a_run_and_every_one_of_a_results_file() -> None:
    result = sample.result()
    item = result["artifacts"][0]
    old, new = (sample.measurement(item["artifact"], "baseline", p50, seed=n) for n, p50 in ((1, 1e-3), (2, 2e-3)))
    assert [row.latency["p50_s"] for row in join([item], [old, new])] == [2e-3]
    assert [row.latency["p50_s"] for row in join((), [old, new])] == [1e-3, 2e-3]


def test_measurements_of_other_devices_have_another_place() -> None:
    first = sample.result()["measurements"][0]
    second = {**first, "device": {**first["device"], "id": "another"}}
    assert place_of(first) == place_of({**first, "row_id": "x"})
    assert place_of(first) != place_of(second)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.booleans())
def test_front_is_exactly_the_points_that_no_other_beats(points: list[tuple[int, int]], smaller: bool) -> None:
    sign = 1 if smaller else -1
    values = [(float(x), float(y)) for x, y in points]

    def beaten(index: int) -> bool:
        x, y = values[index][0], sign * values[index][1]
        return any(a <= x and sign * b <= y and (a, sign * b) != (x, y) for a, b in values)

    chosen = front(values, smaller)
    assert {values[index] for index in chosen} == {values[i] for i in range(len(values)) if not beaten(i)}
    assert [values[index][0] for index in chosen] == sorted(values[index][0] for index in chosen)


def test_losses_and_errors_are_better_small() -> None:
    names = ("top1", "val_loss", "pitch_error", "loss", "lossless")
    assert [name for name in names if lower_is_better(name)] == ["val_loss", "pitch_error", "loss"]


def test_output_lines_say_what_came_out_and_why() -> None:
    eager = {"mode": "eager", "captured": [], "reason": None, "where": None}
    assert output_lines(eager, "Net") == ["the result is your Net, with smaller layers"]
    swapped = {"mode": "swapped", "captured": list("abcd"), "reason": "it cannot run:\nlong story", "where": "net.py:3"}
    assert output_lines(swapped, "Net") == [
        "the result runs a, b, c, ... as recorded calls inside Net",
        "  because it cannot run: at net.py:3",
    ]
    graph = {"mode": "graph", "captured": [""], "reason": None, "where": None}
    assert output_lines(graph, "Net") == ["the result runs Net as recorded calls"]
