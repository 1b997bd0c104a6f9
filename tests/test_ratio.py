"""Ratios of two timed artifacts: pairing, clocks and coarse clocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeprune.bench.ratio import (
    choose_clock,
    clean_runs,
    headline_runs,
    in_step,
    paired_ratio,
    unpaired_ratio,
)


def process(index: int, wall: list[float], cpu: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {"process": index, "wall_s": wall, "cpu_s": wall if cpu is None else cpu, **more}


def test_slow_phases_cancel_round_by_round() -> None:
    """The machine is ten times slower in half of the rounds, which hits both artifacts."""
    phases = [1.0] * 20 + [10.0] * 20
    a = [process(i, [2e-3 * p for p in phases]) for i in range(3)]
    b = [process(i, [1e-3 * p for p in phases]) for i in range(3)]
    ratio = paired_ratio(a, b, threads=1, clock="wall")
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.clock == "wall"


def test_only_rounds_in_which_both_were_clean_count() -> None:
    wall_a, wall_b = [2.0] * 80, [1.0] * 80
    wall_a[:50], wall_b[45:55] = [50.0] * 50, [90.0] * 10
    a = [process(i, wall_a, [2.0] * 80) for i in range(2)]
    b = [process(i, wall_b, [1.0] * 80) for i in range(2)]
    assert clean_runs(a[0], 1).sum() == 30
    assert paired_ratio(a, b, threads=1, clock="wall").ratio == pytest.approx(2.0)


def test_too_few_clean_rounds_fall_back_to_cpu_time() -> None:
    a = [process(i, [9.0] * 20, [3.0] * 20) for i in range(3)]
    b = [process(i, [9.0] * 20, [1.0] * 20) for i in range(3)]
    ratio = paired_ratio(a, b, threads=1, clock="wall")
    assert ratio.clock == "cpu"
    assert ratio.ratio == pytest.approx(3.0)


def test_one_interrupted_artifact_puts_the_whole_group_on_cpu_time() -> None:
    quiet = [process(i, [1.0] * 20) for i in range(2)]
    busy = [process(i, [9.0] * 20, [1.0] * 20) for i in range(2)]
    assert choose_clock([quiet, quiet], 1) == "wall"
    assert choose_clock([quiet, busy], 1) == "cpu"
    assert [runs.tolist() for runs in headline_runs(busy, "cpu", 1)] == [[1.0] * 20] * 2


def test_several_threads_stay_on_wall_time() -> None:
    switches = [0, 1] * 20
    a = [process(i, [2.0, 8.0] * 20, [4.0] * 40, switches=switches) for i in range(3)]
    b = [process(i, [1.0, 9.0] * 20, [2.0] * 40, switches=switches) for i in range(3)]
    assert choose_clock([a, b], 2) == "wall"
    assert paired_ratio(a, b, threads=2, clock="wall").ratio == pytest.approx(2.0)
    always = [process(i, [3.0] * 20, [6.0] * 20, switches=[1] * 20) for i in range(3)]
    assert [len(runs) for runs in headline_runs(always, "wall", 2)] == [20, 20, 20]
    assert paired_ratio(always, always, threads=2, clock="wall").clock == "wall"


def test_a_coarse_cpu_clock_leaves_wall_time() -> None:
    """Where the CPU clock advances every few milliseconds, most short runs took no CPU time."""
    cpu = [0.0] * 19 + [4e-3]
    a = [process(i, [2e-4] * 20, cpu) for i in range(3)]
    b = [process(i, [1e-4] * 20, cpu) for i in range(3)]
    assert choose_clock([a, b], 1) == "wall"
    ratio = paired_ratio(a, b, threads=1, clock="wall")
    assert ratio.clock == "wall"
    assert ratio.ratio == pytest.approx(2.0)


def test_unpaired_sides_are_compared_by_their_medians() -> None:
    rng = np.random.default_rng(0)
    a = [process(i, (3e-3 * rng.lognormal(0, 0.02, 50)).tolist()) for i in range(5)]
    b = [process(i, (1e-3 * rng.lognormal(0, 0.02, 30)).tolist()) for i in range(4)]
    ratio = unpaired_ratio(a, b, "wall", (1, 1))
    assert ratio.low < 3.0 < ratio.high
    assert ratio.high / ratio.low < 1.1


def test_samples_are_in_step_when_processes_and_rounds_agree() -> None:
    a = [process(0, [1.0, 2.0]), process(1, [1.0])]
    assert in_step(a, [process(0, [3.0, 4.0]), process(1, [5.0])])
    assert not in_step(a, a[:1])
    assert not in_step(a, [process(0, [1.0]), process(1, [1.0, 2.0])])
