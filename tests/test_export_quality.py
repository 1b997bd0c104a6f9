"""Measures of agreement: what they are by definition, whatever the arrays are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeprune.export.quality import MOST_DB, Tally, decibels, distance, sqnr_db

FLOATS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-1e3, 1e3, width=32)
)


def tallied(*pairs: tuple[np.ndarray, np.ndarray]) -> Tally:
    tally = Tally()
    for a, b in pairs:
        tally.add(a, b)
    return tally


@given(FLOATS, st.floats(1e-3, 10))
def test_sqnr_is_ten_times_the_logarithm_of_the_ratio_of_energies(a: np.ndarray, shift: float) -> None:
    assume(np.abs(a).max() > 0.1)
    b = a + shift
    expected = 10 * math.log10(np.square(a).sum() / np.square(a - b).sum())
    assert sqnr_db(a, b) == pytest.approx(expected, abs=1e-6)
    assert -MOST_DB <= sqnr_db(b, a) <= MOST_DB
    assert sqnr_db(a, a) == MOST_DB


@given(FLOATS, FLOATS)
def test_sums_over_samples_are_those_of_all_at_once(a: np.ndarray, b: np.ndarray) -> None:
    assume(a.shape[1] == b.shape[1])
    apart = tallied((a, a + 0.25), (b, b - 0.5)).quality()
    together = tallied((np.concatenate([a, b]), np.concatenate([a + 0.25, b - 0.5]))).quality()
    assert apart.sqnr_db == pytest.approx(together.sqnr_db, abs=1e-9)
    assert apart.cosine == pytest.approx(together.cosine, abs=1e-12)
    assert apart.argmax == together.argmax
    assert apart.max_abs == together.max_abs


@given(FLOATS, st.floats(0.1, 10))
def test_cosine_knows_no_length(a: np.ndarray, factor: float) -> None:
    assume(np.abs(a).max() > 0.1)
    assert tallied((a, a * factor)).quality().cosine == pytest.approx(1.0)
    assert tallied((a, -a * factor)).quality().cosine == pytest.approx(-1.0)


def test_seventeen_decibels_are_a_cosine_of_99_hundredths() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 100_000))
    noise = rng.normal(size=a.shape)
    quality = tallied((a, a + noise * 10 ** (-17 / 20))).quality()
    assert quality.sqnr_db == pytest.approx(17, abs=0.1)
    assert quality.cosine == pytest.approx(0.99, abs=1e-3)


def test_argmax_is_the_share_of_samples_with_the_same_best_class() -> None:
    a = np.array([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0], [0.0, 3.0, 2.0], [0.0, 1.0, 2.0]])
    b = a.copy()
    b[1] = [0, 9, 0]
    assert tallied((a, b)).quality().argmax == 0.75
    assert tallied((a[..., None], b[..., None])).quality().argmax is None
    assert tallied((a[:, :1], b[:, :1])).quality().argmax is None


def test_whole_numbers_are_counted_not_measured() -> None:
    quality = tallied((np.array([3, 7, 1, 2]), np.array([3, 7, 2, 2]))).quality()
    assert (quality.whole, quality.equal, quality.argmax) == (True, 0.75, None)
    assert not tallied((np.array([3.0]), np.array([3.0]))).quality().whole


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_as_bad_as_can_be(bad: float) -> None:
    good, broken = np.ones((1, 3)), np.array([[1, bad, 1]])
    for pair in ((good, broken), (broken, good), (broken, broken), (good, np.ones((1, 4)))):
        quality = tallied((good, good), pair).quality()
        assert not quality.finite
        assert (quality.sqnr_db, quality.cosine, quality.max_rel) == (-MOST_DB, 0.0, math.inf)


def test_nothing_and_next_to_nothing_are_equal() -> None:
    zeros = np.zeros((1, 4))
    assert sqnr_db(zeros, zeros) == MOST_DB
    assert sqnr_db(zeros, zeros + 1e-9) == MOST_DB
    assert sqnr_db(zeros, zeros + 1e-3) == -MOST_DB
    assert tallied((zeros, zeros)).quality().cosine == 1.0
    assert tallied((zeros, zeros + 1)).quality().cosine == 0.0
    assert distance(np.zeros((0, 2)), np.zeros((0, 2))) == (0.0, 0.0)


def test_energies_beyond_float64_do_not_pass() -> None:
    huge = np.full((1, 2), 1e200)
    assert sqnr_db(huge, huge / 2) == -MOST_DB
    assert decibels(math.inf, 1.0) == -MOST_DB
