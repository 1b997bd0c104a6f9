"""Medians, intervals and clean runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.bench import statistics


def test_a_run_is_clean_when_it_had_the_core_to_itself() -> None:
    wall, cpu = np.array([1.0, 1.0, 1.0, 5.0]), np.array([1.0, 0.99, 0.97, 1.0])
    assert statistics.clean_mask(wall, cpu).tolist() == [True, True, False, False]


def test_the_interval_surrounds_the_median_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    processes = [rng.normal(10, 1, 50) for _ in range(5)]
    first = statistics.median_interval(processes, seed=1)
    assert first == statistics.median_interval(processes, seed=1)
    median, low, high = first
    assert low < median < high
    assert median == np.median(np.concatenate(processes))


@pytest.mark.parametrize(("processes", "least"), [(2, 90), (3, 90), (5, 90), (8, 90)])
def test_the_interval_holds_the_truth_in_about_95_of_100(processes: int, least: int) -> None:
    """Processes differ by more than runs do, so that few of them say little."""
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        runs = [rng.normal(rng.normal(0, 1.0), 0.5, 30) for _ in range(processes)]
        _, low, high = statistics.median_interval(runs, seed=seed, draws=400)
        inside += low <= 0 <= high
    assert inside >= least


def test_more_processes_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(rng.normal(0, 1.0), 0.1, 30) for _ in range(12)]
    widths = []
    for count in (3, 6, 12):
        _, low, high = statistics.median_interval(runs[:count], seed=0)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_resampled_medians_are_values_that_were_measured(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    processes = [rng.random(length) for length in lengths]
    medians = statistics.bootstrap_medians(processes, seed=seed, draws=50)
    assert medians.shape == (50,)
    assert set(medians) <= set(np.concatenate(processes))


def test_processes_are_resampled_as_a_whole() -> None:
    """Two processes that disagree: single runs resampled would hardly ever give one process's value alone."""
    medians = statistics.bootstrap_medians([np.full(100, 1.0), np.full(100, 2.0)], seed=0, draws=2000)
    assert 0.15 < np.mean(medians == 2.0) < 0.85


def test_widening_shrinks_towards_one() -> None:
    factors = [statistics.widening(count) for count in range(2, 30)]
    assert factors == sorted(factors, reverse=True)
    assert statistics.widening(1) == 1.0
    assert 1.0 < factors[-1] < 1.2
