"""How far two arrays, or two series of arrays, are from each other.

Owns the measures: absolute and relative difference, signal to quantisation noise in decibels, cosine, and the share of
samples with the same best class. Judges nothing: `limits.py` says what is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-6
MOST_DB = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well one output agrees with its reference over all samples of a set of inputs.

    `whole` says that the output holds integers or booleans: classes, indices. `equal` is the share of its values that
    agree, and `sqnr_db` and `cosine` mean nothing there. `argmax` is the share of samples whose largest value is at the
    same place, None where the output is not (N, C) with two classes or more. Everything is infinite, -200 or 0 where
    shapes differ or a value is not finite.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    argmax: float | None
    whole: bool
    equal: float
    values: int

    @property
    def finite(self) -> bool:
        """Whether both sides could be compared at all: equal shapes, and no value that is not finite."""
        return math.isfinite(self.max_rel)


class Tally:
    """Sums over the samples of one output, so that no output has to be kept."""

    def __init__(self) -> None:
        self._max_abs = self._max_rel = 0.0
        self._signal = self._noise = self._other = self._dot = 0.0
        self._values = self._equal = self._rows = self._agree = 0
        self._whole = True
        self._classes = True

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Take in one pair of arrays."""
        absolute, relative = distance(reference, found)
        self._max_abs, self._max_rel = max(self._max_abs, absolute), max(self._max_rel, relative)
        self._whole &= not np.issubdtype(reference.dtype, np.floating)
        self._classes &= reference.ndim == 2 and reference.shape[-1] >= 2
        if not math.isfinite(relative):
            return
        a, b = reference.astype(np.float64), found.astype(np.float64)
        self._values += a.size
        self._equal += int((a == b).sum())
        with np.errstate(over="ignore"):
            self._signal += float(np.square(a).sum())
            self._noise += float(np.square(a - b).sum())
            self._other += float(np.square(b).sum())
            self._dot += float((a * b).sum())
        if self._classes and a.size:
            self._rows += len(a)
            self._agree += int((a.argmax(-1) == b.argmax(-1)).sum())

    def quality(self) -> Quality:
        """Return what the samples so far say."""
        finite = math.isfinite(self._max_rel)
        tiny = self._values * FLOOR**2
        classes = self._classes and not self._whole and self._rows > 0
        return Quality(
            max_abs=self._max_abs,
            max_rel=self._max_rel,
            sqnr_db=decibels(self._signal, self._noise, tiny) if finite else -MOST_DB,
            cosine=_cosine(self._dot, self._signal, self._other, tiny) if finite else 0.0,
            argmax=self._agree / self._rows if classes and finite else None,
            whole=self._whole,
            equal=self._equal / self._values if finite and self._values else float(finite),
            values=self._values,
        )


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Return 10 log10 of the reference's energy over that of the difference, between -200 and 200."""
    tally = Tally()
    tally.add(reference, found)
    return tally.quality().sqnr_db


def decibels(signal: float, noise: float, tiny: float = 0.0) -> float:
    """Return a ratio of energies in decibels, between -200 and 200; both below `tiny` are as good as equal."""
    if noise == 0 or (signal <= tiny and noise <= tiny):
        return MOST_DB
    if signal == 0 or not (math.isfinite(signal) and math.isfinite(noise)):
        return -MOST_DB
    return float(np.clip(10 * (math.log10(signal) - math.log10(noise)), -MOST_DB, MOST_DB))


def _cosine(dot: float, first: float, second: float, tiny: float) -> float:
    if first <= tiny and second <= tiny:
        return 1.0
    if first == 0 or second == 0 or not (math.isfinite(first) and math.isfinite(second)):
        return 0.0
    return float(np.clip(dot / (math.sqrt(first) * math.sqrt(second)), -1.0, 1.0))


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference, and that divided by the largest absolute value of `a`.

    Both are infinite when the shapes differ or a value is not finite.
    """
    if a.shape != b.shape:
        return math.inf, math.inf
    if a.size == 0:
        return 0.0, 0.0
    exact, other = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(exact).all() and np.isfinite(other).all()):
        return math.inf, math.inf
    difference = float(np.abs(exact - other).max())
    return difference, difference / max(float(np.abs(exact).max()), FLOOR)
