"""Measuring: the schedule, the rows, failures, and real runtimes on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench import BenchProgress, Measurement, append_results, compare, measure, read_results
from edgeprune.config import BenchConfig
from edgeprune.errors import ConfigError, DeviceError, ResolveError
from edgeprune.targets import find_target
from edgeprune.values import Artifact, TensorSpec
from tests.noisy_device import QUIET, NoisyDevice
from tests.tiny_networks import artifact_of, write_dense_onnx, write_lookup_onnx, write_negations_tflite

HOST = find_target("host")
NAMES = ["baseline.onnx", "model.onnx", "baseline.tflite", "model.tflite"]
SECONDS = dict.fromkeys(NAMES, 1e-3)
CALM: dict[str, Any] = {"interrupted": 0.02, "layout": 0.005, "restless": 0.0}
SHORT = BenchConfig(processes=2, min_runs=40, min_seconds=0.0, max_seconds=5.0, warmup_runs=2, warmup_seconds=0.0)


def files(tmp_path: Path, names: list[str]) -> list[Artifact]:
    for name in names:
        (tmp_path / name).write_text(name)
    return [artifact_of(tmp_path / name) for name in names]


def with_device(
    tmp_path: Path, device: NoisyDevice, config: BenchConfig | None = None, **more: Any
) -> list[Measurement]:
    names = list(device.seconds)
    roles = [Path(name).stem for name in names]
    return measure(files(tmp_path, names), HOST, config or BenchConfig(), roles=roles, device=device, **more)


def test_one_row_for_each_artifact_and_thread_count(tmp_path: Path) -> None:
    rows = with_device(tmp_path, NoisyDevice(SECONDS), BenchConfig(threads=(1, 2)))
    assert [(row.name, row.threads) for row in rows] == [(name, threads) for name in NAMES for threads in (1, 2)]
    assert len({row.row_id for row in rows}) == 8
    assert len({row.occasion_id for row in rows}) == 1
    assert [row.role for row in rows[::2]] == ["baseline", "model"] * 2
    assert all("switches" in row.samples[0] for row in rows[1::2])


def test_each_format_has_processes_of_its_own_with_a_second_baseline(tmp_path: Path) -> None:
    device = NoisyDevice(SECONDS)
    with_device(tmp_path, device, BenchConfig(processes=3))
    timed = [[Path(a["path"]).name for a in request["artifacts"]] for kind, request in device.calls if kind == "time"]
    assert sorted(timed) == sorted(
        [["baseline.onnx", "model.onnx", "baseline.onnx"], ["baseline.tflite", "model.tflite", "baseline.tflite"]] * 3
    )
    cold = [Path(request["artifact"]["path"]).name for kind, request in device.calls if kind == "memory"]
    assert sorted(cold) == sorted(NAMES * 3)
    seeds = [r["seed"] for kind, r in device.calls if kind == "time" and r["artifacts"][0]["path"].endswith(".onnx")]
    assert len(set(seeds)) == 3


def test_the_order_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        device = NoisyDevice(SECONDS)
        with_device(tmp_path, device, seed=seed)
        orders.append([(kind, json.dumps(request.get("artifact"))) for kind, request in device.calls])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_without_a_baseline_the_first_file_is_doubled(tmp_path: Path) -> None:
    device = NoisyDevice({"a.onnx": 1e-3, "b.onnx": 1e-3})
    rows = with_device(tmp_path, device)
    assert {row.method["aa_of"] for row in rows} == {"a.onnx"}
    assert rows[0].method["interleaved_with"] == ["b.onnx"]


def test_figures_of_a_row(tmp_path: Path) -> None:
    row = with_device(tmp_path, NoisyDevice(SECONDS))[0]
    assert row.latency is not None
    latency = row.latency
    assert latency["min_s"] <= latency["p10_s"] <= latency["p50_s"] <= latency["p90_s"] <= latency["p99_s"]
    assert latency["ci95_s"][0] <= latency["p50_s"] <= latency["ci95_s"][1]
    assert latency["n"] == 5 * 80
    assert 0.7 < latency["clean_share"] < 0.95
    assert row.memory == {"rss_before_bytes": 50_000_000, "peak_rss_bytes": 60_000_000}
    assert row.cold == {"import_s": 0.1, "load_s": 0.01, "first_s": 0.002}
    assert row.artifact["size_bytes"] == len("baseline.onnx")
    assert row.device["cpu"] == "pretend"
    assert [sample["process"] for sample in row.samples] == [0, 1, 2, 3, 4]


def test_a_quiet_machine_gives_rows_without_reasons(tmp_path: Path) -> None:
    rows = with_device(tmp_path, NoisyDevice(SECONDS, **CALM))
    assert [(row.quality, row.reasons) for row in rows] == [("ok", ())] * 4


@pytest.mark.parametrize(
    ("settings", "config", "reason"),
    [
        ({"interrupted": 0.5}, {}, "of the runs had a core to themselves"),
        ({"interrupted": 0.97}, {}, "CPU time stands in for latency"),
        ({"layout": 0.3}, {}, "baseline.onnx against itself: ratio"),
        ({"layout": 0.3}, {}, "the slowest process took"),
        ({"rounds": 30}, {}, "reached bench.max_seconds after 30 of 50 runs"),
        ({}, {"processes": 1}, "one process only"),
        ({}, {"threads": (4,)}, "4 threads on 2 cores"),
        ({"env": (QUIET, {**QUIET, "steal_ticks": 20, "total_ticks": 200})}, {}, "the hypervisor took 20%"),
        ({"env": (QUIET, {**QUIET, "throttled": "0x50005"})}, {}, "under-voltage or throttling (0x50005)"),
        (
            {"env": ({**QUIET, "frequency_hz": [1.8e9]}, {**QUIET, "frequency_hz": [1.0e9]})},
            {},
            "the CPU frequency fell from 1800 to 1000 MHz",
        ),
    ],
)
def test_what_makes_a_row_noisy_is_said(
    tmp_path: Path, settings: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    row = with_device(tmp_path, NoisyDevice({"baseline.onnx": 1e-3}, **{**CALM, **settings}), BenchConfig(**config))[0]
    assert row.quality == "noisy"
    assert any(reason in text for text in row.reasons), row.reasons


def test_throttling_long_ago_is_no_reason(tmp_path: Path) -> None:
    env = (QUIET, {**QUIET, "throttled": "0x50000"})
    row = with_device(tmp_path, NoisyDevice({"a.onnx": 1e-3}, **CALM, env=env))[0]
    assert row.quality == "ok"


def test_a_format_that_fails_leaves_the_other(tmp_path: Path) -> None:
    rows = with_device(tmp_path, NoisyDevice(SECONDS, broken=("model.tflite",)))
    assert [row.quality == "failed" for row in rows] == [False, False, True, True]
    failed = rows[3]
    assert failed.latency is None
    assert failed.error is not None
    assert failed.error["fix"] == "export it again"
    assert failed.reasons == ("host: run failed: model.tflite cannot be opened",)
    assert failed.method["processes"] <= 5
    append_results(tmp_path / "results.jsonl", rows)
    assert read_results(tmp_path / "results.jsonl") == rows


def test_when_everything_fails_the_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"model\.onnx cannot be opened"):
        with_device(tmp_path, NoisyDevice({"baseline.onnx": 1e-3, "model.onnx": 1e-3}, broken=("model.onnx",)))


def test_after_a_failure_the_format_is_not_tried_again(tmp_path: Path) -> None:
    device = NoisyDevice(SECONDS, broken=("baseline.tflite", "model.tflite"))
    with_device(tmp_path, device)
    tried = [request for kind, request in device.calls if "tflite" in json.dumps(request)]
    assert len(tried) == 1


def test_an_emulated_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the device is emulated, so its times mean nothing"):
        with_device(tmp_path, NoisyDevice(SECONDS, facts={"emulated": True}))


def test_progress_rises_to_one(tmp_path: Path) -> None:
    told: list[BenchProgress] = []
    with_device(tmp_path, NoisyDevice(SECONDS), on_progress=told.append)
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "timing onnx on 1 thread, process 5 of 5" in {progress.text for progress in told}
    assert "memory and cold start of model.tflite" in {progress.text for progress in told}


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no artifact"):
        measure([], HOST, SHORT, roles=[])
    with pytest.raises(ConfigError, match="1 artifacts have 2 roles"):
        measure(files(tmp_path, ["a.onnx"]), HOST, SHORT, roles=["a", "b"])


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    artifacts = files(tmp_path, ["a.onnx"])
    (tmp_path / "a.onnx").write_text("another network")
    with pytest.raises(ResolveError, match=r"a\.onnx changed: sha256"):
        measure(artifacts, HOST, SHORT, roles=["baseline"])
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(ResolveError, match=r"cannot read .*a\.onnx"):
        measure(artifacts, HOST, SHORT, roles=["baseline"])


def test_real_files_of_both_formats(tmp_path: Path) -> None:
    paths = [
        write_dense_onnx(tmp_path / "baseline.onnx", features=64, layers=2),
        write_dense_onnx(tmp_path / "model.onnx", features=32, layers=2),
        write_negations_tflite(tmp_path / "baseline.tflite", ["args_0", "args_1"]),
        write_negations_tflite(tmp_path / "model.tflite", ["args_0"]),
    ]
    artifacts = [artifact_of(path) for path in paths]
    rows = measure(artifacts, HOST, SHORT, roles=["baseline", "model"] * 2)
    assert [row.runtime["name"] for row in rows] == ["onnxruntime"] * 2 + ["tflite"] * 2
    for row in rows:
        assert row.latency is not None
        assert row.memory is not None
        assert row.cold is not None
        assert row.latency["n"] == 80
        assert 0 < row.latency["p50_s"] < 1
        assert row.memory["peak_rss_bytes"] > row.memory["rss_before_bytes"] > 0
        assert all(seconds > 0 for seconds in row.cold.values())
    comparison = compare(rows[0], rows[1])
    assert comparison.paired
    assert comparison.ci95[0] <= comparison.ratio <= comparison.ci95[1]


def test_random_inputs_stay_in_the_range_of_the_example(tmp_path: Path) -> None:
    """A lookup of ten rows fails on any other index."""
    path = write_lookup_onnx(tmp_path / "a.onnx", rows=10)
    spec = TensorSpec(name="tokens", shape=(None, 4), dtype="int64", low=0, high=9)
    (row,) = measure([artifact_of(path, [spec])], HOST, SHORT, roles=["baseline"])
    assert row.latency is not None
    outside = TensorSpec(name="tokens", shape=(None, 4), dtype="int64", low=50, high=59)
    with pytest.raises(DeviceError, match="fails on random inputs"):
        measure([artifact_of(path, [outside])], HOST, SHORT, roles=["baseline"])
