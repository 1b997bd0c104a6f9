"""Verdicts: what noise alone may not do, what a real difference must do, and what is not comparable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.bench import Measurement, compare, measure
from edgeprune.bench.compare import judge
from edgeprune.config import BenchConfig
from edgeprune.errors import ConfigError
from edgeprune.targets import find_target
from tests.noisy_device import NoisyDevice
from tests.tiny_networks import artifact_of

SECONDS = {"baseline.onnx": 1e-3, "same.onnx": 1e-3, "faster.onnx": 1e-3 / 1.1, "slower.onnx": 1.1e-3}


def measured(
    tmp_path: Path, names: list[str], device: NoisyDevice, config: BenchConfig | None = None
) -> list[Measurement]:
    artifacts = []
    for name in names:
        path = tmp_path / name
        path.write_bytes(name.encode() * (2 if name.startswith("baseline") else 1))
        artifacts.append(artifact_of(path))
    roles = [Path(name).stem for name in names]
    return measure(artifacts, find_target("host"), config or BenchConfig(), roles=roles, device=device)


@pytest.mark.parametrize("interrupted", [0.15, 0.95], ids=["a few runs interrupted", "nearly all interrupted"])
def test_of_100_noisy_occasions_95_are_judged_rightly(tmp_path: Path, interrupted: float) -> None:
    right = dict.fromkeys(("same.onnx", "faster.onnx", "slower.onnx"), 0)
    wanted = {"same.onnx": "no difference shown", "faster.onnx": "faster", "slower.onnx": "slower"}
    clocks = set()
    for seed in range(100):
        device = NoisyDevice(SECONDS, seed=seed, interrupted=interrupted, rounds=40)
        baseline, *others = measured(tmp_path, list(SECONDS), device)
        for other in others:
            comparison = compare(baseline, other)
            right[other.name] += comparison.verdict == wanted[other.name]
            clocks.add(comparison.clock)
    assert min(right.values()) >= 95, right
    assert clocks == ({"wall"} if interrupted < 0.5 else {"cpu"})


def test_the_interval_of_a_file_against_itself_holds_1_in_about_95_of_100(tmp_path: Path) -> None:
    inside = 0
    for seed in range(100):
        device = NoisyDevice(SECONDS, seed=1000 + seed, layout=0.03, rounds=40)
        (row,) = measured(tmp_path, ["baseline.onnx"], device)
        assert row.aa is not None
        low, high = row.aa["ci95"]
        inside += low <= 1 <= high
    assert inside >= 90


def test_a_pair_of_one_occasion_is_compared_round_by_round(tmp_path: Path) -> None:
    baseline, other = measured(tmp_path, ["baseline.onnx", "faster.onnx"], NoisyDevice(SECONDS))
    comparison = compare(baseline, other)
    assert comparison.paired
    assert comparison.ratio == pytest.approx(1.1, rel=0.03)
    assert comparison.ci95[0] < comparison.ratio < comparison.ci95[1]
    assert comparison.threshold >= 0.03
    assert comparison.size_ratio == pytest.approx(2 * len("baseline.onnx") / len("faster.onnx"))
    assert (comparison.baseline_row, comparison.row) == (baseline.row_id, other.row_id)
    assert compare(baseline, other) == comparison


def test_rows_of_two_occasions_need_a_larger_difference(tmp_path: Path) -> None:
    before = measured(tmp_path, ["baseline.onnx"], NoisyDevice(SECONDS, seed=1, layout=0.001))[0]
    (tmp_path / "later").mkdir()
    after = measured(tmp_path / "later", ["faster.onnx"], NoisyDevice(SECONDS, seed=2, layout=0.001))[0]
    comparison = compare(before, after)
    assert not comparison.paired
    assert comparison.threshold >= 0.1
    assert comparison.verdict == "no difference shown"
    twice = measured(tmp_path / "later", ["faster.onnx"], NoisyDevice({"faster.onnx": 4e-4}, seed=3))[0]
    assert compare(before, twice).verdict == "faster"
    assert compare(twice, before).verdict == "slower"


def test_the_noise_of_the_occasion_raises_the_threshold(tmp_path: Path) -> None:
    baseline, other = measured(tmp_path, ["baseline.onnx", "faster.onnx"], NoisyDevice(SECONDS))
    assert baseline.aa is not None
    noisy = dataclasses.replace(baseline, aa={**baseline.aa, "ratio": 1.05, "ci95": [0.8, 1.1]})
    comparison = compare(noisy, other)
    assert comparison.noise_floor == pytest.approx(0.25)
    assert comparison.threshold == comparison.noise_floor
    assert comparison.verdict == "no difference shown"


def test_a_larger_practical_threshold_is_kept(tmp_path: Path) -> None:
    baseline, other = measured(tmp_path, ["baseline.onnx", "faster.onnx"], NoisyDevice(SECONDS))
    assert compare(baseline, other, practical=0.5).threshold == 0.5


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("threads", {"runtime": {"name": "onnxruntime", "version": "1", "threads": 4}}),
        ("runtime", {"runtime": {"name": "onnxruntime", "version": "2", "threads": 1}}),
        ("device", {"device": {"id": "another", "cpu": "pretend"}}),
        ("batch", {"method": {"batch_size": 8}}),
    ],
)
def test_rows_measured_differently_are_refused_unless_allowed(
    tmp_path: Path, word: str, change: dict[str, Any]
) -> None:
    baseline, other = measured(tmp_path, ["baseline.onnx", "faster.onnx"], NoisyDevice(SECONDS))
    samples = tuple({**sample, "switches": [0] * len(sample["wall_s"])} for sample in other.samples)
    changed = dataclasses.replace(other, samples=samples, **change)
    with pytest.raises(ConfigError, match=f"cannot be compared: {word} differs") as caught:
        compare(baseline, changed)
    assert f"--allow {word}" in str(caught.value.fix)
    assert compare(baseline, changed, allow=(word,)).allowed == (word,)


def test_an_unknown_word_in_allow_is_an_error(tmp_path: Path) -> None:
    (row,) = measured(tmp_path, ["baseline.onnx"], NoisyDevice(SECONDS))
    with pytest.raises(ConfigError, match="allow has 'weather'"):
        compare(row, row, allow=("weather",))


def test_a_failed_row_is_not_compared(tmp_path: Path) -> None:
    names = ["baseline.onnx", "same.onnx", "baseline.tflite"]
    device = NoisyDevice({**SECONDS, "baseline.tflite": 1e-3}, broken=("same.onnx",))
    baseline, _, _ = measured(tmp_path, names, device)
    with pytest.raises(ConfigError, match=r"its measurement failed: .*same\.onnx cannot be opened"):
        compare(baseline, baseline)


def test_a_row_equals_itself(tmp_path: Path) -> None:
    (row,) = measured(tmp_path, ["baseline.onnx"], NoisyDevice(SECONDS))
    comparison = compare(row, row)
    assert comparison.ratio == 1.0
    assert comparison.verdict == "no difference shown"


@settings(max_examples=200, deadline=None)
@given(
    centre=st.floats(0.2, 5.0),
    half=st.floats(1.0, 1.5),
    threshold=st.floats(0.0, 0.5),
)
def test_swapping_the_sides_swaps_the_verdict(centre: float, half: float, threshold: float) -> None:
    low, high = centre / half, centre * half
    swapped = {"faster": "slower", "slower": "faster", "no difference shown": "no difference shown"}
    edge = min(abs(edge * factor - 1) for edge in (low, high) for factor in (1 + threshold, 1 / (1 + threshold)))
    if edge > 1e-9:
        assert judge(1 / high, 1 / low, threshold) == swapped[judge(low, high, threshold)]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.031, 1.2, "faster"),
        (1.03, 1.2, "no difference shown"),
        (0.9, 1.2, "no difference shown"),
        (0.5, 0.97, "slower"),
        (0.5, 0.98, "no difference shown"),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_threshold(low: float, high: float, verdict: str) -> None:
    assert judge(low, high, 0.03) == verdict
