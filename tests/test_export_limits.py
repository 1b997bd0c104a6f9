"""What is enough: limits of each precision, and how one comparison is judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import ConfigError
from edgeprune.export.limits import check_limits, judged, limits_of, reference_limits
from edgeprune.export.quality import Tally
from edgeprune.values import PRECISIONS, Check


def judge(a: Any, b: Any, tolerance: float = 1e-4, min_sqnr_db: float | None = None) -> Check:
    tally = Tally()
    tally.add(np.asarray(a), np.asarray(b))
    return judged(
        tally.quality(),
        name="a against b",
        inputs="user inputs",
        batch_size=1,
        output="y",
        tolerance=tolerance,
        min_sqnr_db=min_sqnr_db,
    )


def test_every_precision_has_limits() -> None:
    found = {precision: limits_of(precision) for precision in PRECISIONS}
    assert (found["fp32"].min_sqnr_db, found["fp32"].tolerance) == (None, 1e-4)
    assert found["fp32"].min_reference_db is None
    assert found["fp16"].min_sqnr_db == 40
    assert {found[name].min_sqnr_db for name in PRECISIONS if name.startswith("int8")} == {17}
    assert all(found[name].min_reference_db is not None for name in PRECISIONS[1:])


def test_the_callers_decibels_count() -> None:
    assert limits_of("int8", min_sqnr_db=30).min_sqnr_db == 30
    assert limits_of("fp32", min_sqnr_db=60).min_sqnr_db == 60
    lower = limits_of("int8-weights", min_sqnr_db=10)
    assert (lower.min_sqnr_db, lower.min_reference_db) == (10, 10)
    assert reference_limits(limits_of("int8-weights")).min_sqnr_db == 40
    assert reference_limits(limits_of("int8-weights"), edges=True).min_sqnr_db == 17
    assert reference_limits(limits_of("fp32"), edges=True).min_sqnr_db is None


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_decibels_decide_where_they_are_asked_for(level: float, least: float) -> None:
    a = np.array([[3.0, -4.0]])
    b = a + np.array([[3.0, -4.0]]) * 10 ** (-level / 20)
    check = judge(a, b, min_sqnr_db=least)
    assert check.sqnr_db == pytest.approx(level, abs=1e-6)
    if abs(level - least) > 1e-6:
        assert check.passed == (level > least)


def test_the_relative_difference_decides_without_decibels() -> None:
    assert judge([[1.0, 2.0]], [[1.0, 2.0001]]).passed
    failed = judge([[1.0, 2.0]], [[1.0, 2.001]])
    assert not failed.passed
    assert (failed.sqnr_db, failed.cosine, failed.argmax) == (pytest.approx(67, abs=0.1), pytest.approx(1), 1.0)


@pytest.mark.parametrize("least", [None, -100.0])
def test_what_is_not_finite_never_passes(least: float | None) -> None:
    check = judge([[1.0, 2.0]], [[1.0, math.nan]], min_sqnr_db=least)
    assert not check.passed
    assert Check.from_dict(check.as_dict()) == check


def test_whole_numbers_have_to_agree_by_half_where_there_are_enough() -> None:
    a = np.arange(10)
    mostly, hardly = a.copy(), a + 1
    mostly[:4] += 1
    assert judge(a, mostly, min_sqnr_db=17).passed
    assert not judge(a, hardly, min_sqnr_db=17).passed
    assert judge(a[:3], hardly[:3], min_sqnr_db=17).passed
    assert not judge(a, mostly).passed
    assert judge(a, mostly, min_sqnr_db=17).argmax == 0.6
    assert judge(a, mostly, min_sqnr_db=17).min_sqnr_db is None


def test_limits_that_decide_nothing_are_refused() -> None:
    check_limits(1e-4, None)
    check_limits(1e-4, 17)
    for tolerance, least in (
        (0.0, None),
        (-1.0, None),
        (math.nan, None),
        (math.inf, None),
        (1e-4, 201.0),
        (1e-4, math.nan),
    ):
        with pytest.raises(ConfigError):
            check_limits(tolerance, least)
    with pytest.raises(ConfigError, match="int4"):
        limits_of("int4")  # type: ignore[arg-type]
