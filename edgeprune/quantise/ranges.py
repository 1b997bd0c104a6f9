"""Ranges of activations: what a tensor's values were, and the interval that 256 steps shall cover.

Owns counting values as they stream by, in bounded memory, and the four ways to choose an interval from the counts.
Knows neither files nor runtimes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
LEVELS = 256
_BINS = 4096
_CANDIDATES = 64  # shares of the whole interval that `entropy` and `mse` try
_SMALLEST_SHARE = 0.05
_SMOOTH = 1e-12
_ENDLESS = 1e6
_ENOUGH = 100  # counts in a bin, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The smallest and the largest value that the steps of a tensor cover; zero lies inside, as padding needs it."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Width of one of the 255 steps between the 256 levels."""
        return max(self.high - self.low, 1e-12) / (LEVELS - 1)


class Histogram:
    """Counts of the values of one tensor, in bins whose width doubles when a value lies outside.

    Values beyond a million are not counted: they stand for infinity, in masks and in padding.
    Bins are symmetric about zero, and two neighbours become one when the range doubles: no count is ever wrong,
    whatever the order of the values, and memory does not grow.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.reach = 0.0  # the bins cover [-reach, reach)
        self.not_numbers = 0

    def add(self, values: np.ndarray) -> None:
        """Count the values of an array of any shape."""
        flat = np.asarray(values, dtype=np.float32).ravel()
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not -_ENDLESS < low <= high < _ENDLESS:
            self.not_numbers += int(np.isnan(flat).sum())
            self.add(flat[np.abs(flat) < _ENDLESS])
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        # Scaled by a power of two and rounded down: both are exact, so that equal values share a bin at every reach.
        places = np.floor(flat * np.float32(_BINS / (2 * self.reach))).astype(np.int32) + _BINS // 2
        self.counts += np.bincount(places, minlength=_BINS)

    def _widen(self, largest: float) -> None:
        if self.reach == 0.0:
            # A power of two, so that doubling stays exact and equal data give equal bins.
            self.reach = 2.0 ** math.floor(math.log2(max(largest, 1e-30)) + 1)
        while largest >= self.reach:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            quarter = _BINS // 4
            self.counts[quarter : quarter + len(pairs)] = pairs
            self.reach *= 2

    @property
    def centres(self) -> np.ndarray:
        """The middle of every bin."""
        width = 2 * self.reach / _BINS
        return np.asarray(-self.reach + width * (np.arange(_BINS) + 0.5))


def interval(histogram: Histogram, method: Method, percentile: float = 99.99) -> Interval:
    """Return the interval that a method chooses for the values that were counted.

    `minmax` covers all values. `percentile` leaves out the same share of values at both ends. `entropy` takes the
    interval whose 256 levels tell least about the difference from the counts (Migacz, "8-bit Inference with
    TensorRT", 2017, for intervals that need not be symmetric). `mse` takes the one with the least squared error of
    rounding and clipping (Sung et al., "Resiliency of Deep Neural Networks under Quantization", 2015).

    Args:
        percentile: Share of the values that `percentile` covers, in percent.
    """
    if histogram.reach == 0.0:
        return Interval(low=0.0, high=0.0)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "minmax" or high == low:
        return Interval(low=low, high=high)
    if method == "percentile":
        return _by_percentile(histogram, percentile)
    if method == "mse":
        return _cheapest(histogram.centres, histogram.counts, Interval(low=low, high=high), _squared_cost)
    # Zero has a level of its own in every interval. Its many counts, after a ReLU half of all, would only speak for
    # levels so narrow that they hold nothing else.
    counts = histogram.counts.copy()
    counts[_BINS // 2] = 0
    whole = Interval(low=low, high=high)
    used = np.count_nonzero(counts)
    if used <= LEVELS or counts.sum() <= _ENOUGH * used:
        return whole  # every bin has a level of its own, or the divergence of so few counts is that of chance
    return _cheapest(histogram.centres, counts, whole, _entropy_cost)


def _by_percentile(histogram: Histogram, percentile: float) -> Interval:
    total = histogram.counts.sum()
    left_out = total * (100.0 - percentile) / 200.0
    below = np.cumsum(histogram.counts)
    width = 2 * histogram.reach / _BINS
    first = int(np.searchsorted(below, left_out, side="right"))
    last = int(np.searchsorted(below, total - left_out, side="left"))
    low = max(-histogram.reach + width * first, histogram.low)
    high = min(-histogram.reach + width * (last + 1), histogram.high)
    return Interval(low=min(low, 0.0), high=max(high, 0.0))


Cost = Callable[[np.ndarray, np.ndarray, Interval], float]


def _cheapest(centres: np.ndarray, counted: np.ndarray, whole: Interval, cost: Cost) -> Interval:
    """Return the cheapest of the intervals that are the whole one scaled down towards zero."""
    used = counted > 0
    # The middle of an outermost bin may lie beyond the outermost value.
    values, counts = np.clip(centres[used], whole.low, whole.high), counted[used].astype(np.float64)
    shares = np.linspace(1.0, _SMALLEST_SHARE, _CANDIDATES).tolist()
    candidates = [Interval(low=whole.low * share, high=whole.high * share) for share in shares]
    return min(candidates, key=lambda candidate: cost(values, counts, candidate))


def _squared_cost(values: np.ndarray, counts: np.ndarray, candidate: Interval) -> float:
    clipped = np.clip(values, candidate.low, candidate.high)
    rounded = candidate.low + np.rint((clipped - candidate.low) / candidate.scale) * candidate.scale
    return float(counts @ (values - rounded) ** 2)


def _entropy_cost(values: np.ndarray, counts: np.ndarray, candidate: Interval) -> float:
    """Return the divergence of the counts, clipped into the interval, from what 256 levels can tell of them."""
    inside = (values >= candidate.low) & (values <= candidate.high)
    if not inside.any():
        return math.inf
    levels = np.rint((values[inside] - candidate.low) / candidate.scale).astype(np.int64)
    kept, bins = np.bincount(levels, counts[inside], LEVELS), np.bincount(levels, minlength=LEVELS)
    # A level tells of all its bins the same, their mean; the reference has the true counts, and outliers at its ends.
    told = (kept / np.maximum(bins, 1))[levels]
    true = counts[inside].copy()
    true[0] += counts[values < candidate.low].sum()
    true[-1] += counts[values > candidate.high].sum()
    p, q = true / true.sum(), told / told.sum()
    return float(np.sum(p * np.log((p + _SMOOTH) / (q + _SMOOTH))))
