"""Schedules: their formula, their monotony, and that they end exactly where they should."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.dynamic.schedule import Schedule, make_schedule
from edgeprune.errors import ConfigError

schedules = st.builds(
    lambda begin, length, every: Schedule(begin=begin, end=begin + length, every=every),
    st.integers(0, 50),
    st.integers(1, 400),
    st.integers(1, 90),
)


@given(schedules, st.floats(0, 1))
def test_progress_is_the_cubic_formula_of_the_paper(schedule: Schedule, final: float) -> None:
    for step in range(schedule.begin, schedule.end + 1):
        past = (step - schedule.begin) / (schedule.end - schedule.begin)
        paper = final + (0.0 - final) * (1.0 - past) ** 3  # s_t = s_f + (s_i - s_f)(1 - (t - t_0) / (n dt))^3
        assert final * schedule.progress(step) == pytest.approx(paper, abs=1e-12)


@given(schedules)
def test_progress_rises_from_nothing_to_everything_and_stays(schedule: Schedule) -> None:
    values = [schedule.progress(step) for step in range(schedule.end + 10)]
    assert values == sorted(values)
    assert values[schedule.begin] == 0.0
    assert values[schedule.end :] == [1.0] * 10
    assert all(value < 1.0 for value in values[: schedule.end])


@given(schedules)
def test_pruning_is_due_every_so_many_steps_and_at_the_end(schedule: Schedule) -> None:
    due = [step for step in range(schedule.end + 200) if schedule.due(step)]
    assert due[0] == schedule.begin
    assert due[-1] == schedule.end
    assert {b - a for a, b in itertools.pairwise(due[:-1])} <= {schedule.every}
    assert 0 < due[-1] - due[-2] <= schedule.every


@given(schedules, st.floats(0.01, 1))
def test_the_fraction_falls_to_zero(schedule: Schedule, first: float) -> None:
    values = [schedule.fraction(step, first) for step in range(schedule.begin, schedule.end + 1)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(first)
    assert values[-1] == pytest.approx(0.0, abs=1e-12)


def test_an_end_that_is_not_given_is_three_quarters_of_the_training() -> None:
    assert make_schedule(0, None, None, 200) == Schedule(begin=0, end=150, every=3)
    assert make_schedule(10, 20, 7, None) == Schedule(begin=10, end=20, every=7)
    assert make_schedule(0, None, None, 2) == Schedule(begin=0, end=2, every=1)


@pytest.mark.parametrize(("begin", "total", "text"), [(0, None, "not known"), (80, 100, "begins at step 80")])
def test_a_schedule_without_room_is_refused(begin: int, total: int | None, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_schedule(begin, None, None, total)
