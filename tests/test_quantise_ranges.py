"""Ranges of activations: counts that no order changes, and intervals that keep what their method promises."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeprune.quantise.ranges import METHODS, Histogram, Interval, interval

# Numbers too small to be normal are flushed to zero by some processors' arithmetic, so no bin is promised for them.
VALUES = st.floats(-1e5, 1e5, width=32, allow_subnormal=False)
LISTS = st.lists(VALUES, min_size=1, max_size=60)


def counted(*chunks: object) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(np.array(chunk, np.float32))
    return histogram


def error(values: np.ndarray, found: Interval) -> float:
    clipped = np.clip(values, found.low, found.high)
    steps = np.rint((clipped - found.low) / found.scale)
    return float(((found.low + steps * found.scale - values) ** 2).sum())


@settings(deadline=None, max_examples=150)
@given(LISTS, st.randoms(use_true_random=False), st.integers(1, 7))
@example([-1e-9, 1.0], None, 1)  # a tiny negative value, alone and beside a large one
@example([1.0, -1e-9], None, 1)
def test_order_and_chunks_change_no_count(values: list[float], random: object, size: int) -> None:
    whole = counted(values)
    shuffled = list(values)
    if random is not None:
        random.shuffle(shuffled)  # type: ignore[attr-defined]
    streamed = counted(*(shuffled[start : start + size] for start in range(0, len(values), size)))
    assert (streamed.low, streamed.high, streamed.reach) == (whole.low, whole.high, whole.reach)
    np.testing.assert_array_equal(streamed.counts, whole.counts)
    assert whole.low == min(np.float32(values))
    assert whole.high == max(np.float32(values))
    assert streamed.counts.sum() == len(values)


@settings(deadline=None, max_examples=100)
@given(LISTS)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: list[float]) -> None:
    histogram = counted(*([value] for value in values))
    width = 2 * histogram.reach / len(histogram.counts)
    edges = -histogram.reach + width * np.arange(len(histogram.counts) + 1)
    expected, _ = np.histogram(np.array(values, np.float32).astype(np.float64), edges)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_nothing_is_lost_when_the_range_doubles_many_times() -> None:
    histogram = Histogram()
    for power in range(-20, 19):
        histogram.add(np.array([2.0**power, -(2.0**power), 0.0], np.float32))
    assert histogram.counts.sum() == 3 * 39
    assert histogram.counts[2048] >= 39
    assert (histogram.low, histogram.high) == (-(2.0**18), 2.0**18)


@settings(deadline=None, max_examples=60)
@given(LISTS, st.sampled_from(METHODS), st.floats(51, 100))
def test_intervals_hold_zero_lie_in_the_data_and_are_plain_numbers(
    values: list[float], method: str, percentile: float
) -> None:
    histogram = counted(values)
    found = interval(histogram, method, percentile)  # type: ignore[arg-type]
    assert min(histogram.low, 0.0) <= found.low <= 0.0 <= found.high <= max(histogram.high, 0.0)
    assert type(found.low) is float
    assert type(found.high) is float
    assert json.loads(json.dumps([found.low, found.high])) == [found.low, found.high]
    assert found.scale > 0


@settings(deadline=None, max_examples=60)
@given(LISTS)
def test_minmax_covers_every_value(values: list[float]) -> None:
    found = interval(counted(values), "minmax")
    assert all(found.low <= value <= found.high for value in np.float32(values))


@settings(deadline=None, max_examples=40)
@given(LISTS)
def test_the_least_squared_error_is_no_larger_than_that_of_the_whole_range(values: list[float]) -> None:
    histogram = counted(values)
    data = np.repeat(histogram.centres, histogram.counts)
    best, whole = interval(histogram, "mse"), interval(histogram, "minmax")
    assert error(data, best) <= error(data, whole) * (1 + 1e-9)


def test_an_outlier_narrows_what_the_other_methods_cover() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=200_000), [60.0])
    histogram = counted(values)
    wide = interval(histogram, "minmax")
    assert wide.high == 60.0
    for method, most in (("percentile", 30.0), ("entropy", 50.0), ("mse", 30.0)):
        found = interval(histogram, method)  # type: ignore[arg-type]
        assert 2.0 < found.high < most, method
    assert error(values, interval(histogram, "mse")) < 0.5 * error(values, wide)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, min_size=5, max_size=200), st.floats(55, 100))
def test_a_percentile_covers_the_share_that_it_says(values: list[float], percentile: float) -> None:
    found = interval(counted(values), "percentile", percentile)
    data = np.float32(values).astype(np.float64)
    inside = np.count_nonzero((data >= found.low) & (data <= found.high))
    assert inside >= math.floor(len(values) * percentile / 100)


def test_the_percentile_leaves_out_as_much_at_both_ends() -> None:
    found = interval(counted(np.linspace(-1, 1, 100_001)), "percentile", 90.0)
    assert found.low == pytest.approx(-0.9, abs=2e-3)
    assert found.high == pytest.approx(0.9, abs=2e-3)
    assert interval(counted([-3.0, 2.0]), "percentile", 100.0) == Interval(low=-3.0, high=2.0)


@pytest.mark.parametrize("endless", [-math.inf, math.inf, -3.4e38, 3.4e38, -1e9])
def test_masks_and_padding_widen_no_range(endless: float) -> None:
    histogram = counted([1.0, endless, -2.0], [endless])
    assert (histogram.low, histogram.high) == (-2.0, 1.0)
    assert histogram.counts.sum() == 2
    assert histogram.not_numbers == 0
    assert interval(histogram, "minmax") == Interval(low=-2.0, high=1.0)


def test_values_that_are_no_numbers_are_told_and_not_counted() -> None:
    histogram = counted([math.nan, 1.0], [math.nan, math.inf])
    assert histogram.not_numbers == 2
    assert (histogram.low, histogram.high, int(histogram.counts.sum())) == (1.0, 1.0, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([], 0.0, 0.0),
        ([0.0] * 9, 0.0, 0.0),
        ([5.0] * 9, 0.0, 5.0),
        ([-5.0], -5.0, 0.0),
        ([math.inf, math.nan], 0.0, 0.0),
        ([1e-40, -1e-40], None, None),
        ([3e-35, 0.0] * 999, None, None),
        ([999_999.0, -999_999.0], None, None),
    ],
)
def test_odd_values_give_finite_intervals(
    values: list[float], low: float | None, high: float | None, method: str
) -> None:
    found = interval(counted(values), method)  # type: ignore[arg-type]
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.scale > 0
    assert found.low <= 0.0 <= found.high
    if low is not None and high is not None and method in ("minmax", "percentile"):
        assert found.low == pytest.approx(low)
        assert found.high == pytest.approx(high)


def test_arrays_of_any_shape_and_layout_are_counted() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    histogram = Histogram()
    histogram.add(values.transpose(2, 0, 1)[::2])
    histogram.add(np.zeros((0, 5), np.float32))
    histogram.add(np.float32(-1))
    assert (histogram.low, histogram.high, int(histogram.counts.sum())) == (-1.0, 22.0, 13)


def test_entropy_of_few_counts_keeps_the_whole_range() -> None:
    values = np.random.default_rng(0).normal(size=500)
    assert interval(counted(values), "entropy") == interval(counted(values), "minmax")


def test_the_zeros_of_a_relu_do_not_decide_the_entropy() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=2_000_000), 0)
    found = interval(counted(values, [0.0] * 4_000_000), "entropy")
    assert found.low == 0.0
    assert found.high > 2.5
