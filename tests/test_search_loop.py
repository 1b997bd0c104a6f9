"""The walk of the loop, on made-up networks: what is kept, what is rolled back, and where it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.search.loop import Outcome, walk


class Made:
    """A network whose metric falls with the level, in widths of `grain`; it keeps what is at least the floor."""

    def __init__(self, breaks_at: float, grain: float = 0.0, met_at: float = 2.0) -> None:
        self.breaks_at, self.grain, self.met_at = breaks_at, grain, met_at
        self.good = 0.0
        self.tried: list[tuple[float, str]] = []
        self.trained = 0

    def attempt(self, number: int, level: float, refused: frozenset[str]) -> Outcome:
        assert number == len(self.tried) + 1
        width = round(level / self.grain) * self.grain if self.grain else level
        plan = f"{width:.12f}"
        if abs(width - self.good) < 1e-12:
            return self.told(level, Outcome(state="unchanged", plan=plan))
        if plan in refused:
            return self.told(level, Outcome(state="repeated", plan=plan))
        self.trained += 1
        if width > self.breaks_at:
            return self.told(level, Outcome(state="rolled back", plan=plan))
        self.good = width
        return self.told(level, Outcome(state="kept", plan=plan, met=width >= self.met_at))

    def told(self, level: float, outcome: Outcome) -> Outcome:
        self.tried.append((level, outcome.state))
        return outcome


def test_without_a_floor_every_step_is_kept_and_they_are_equal() -> None:
    made = Made(breaks_at=1.0)
    assert walk(0.6, 4, 3, made.attempt) == (pytest.approx(0.6), "goal")
    assert [state for _, state in made.tried] == ["kept"] * 4
    assert [level for level, _ in made.tried] == pytest.approx([0.15, 0.3, 0.45, 0.6])


def test_a_step_below_the_floor_is_rolled_back_and_halved() -> None:
    made = Made(breaks_at=0.55)
    reached, end = walk(0.8, 4, 2, made.attempt)
    assert [(round(level, 3), state) for level, state in made.tried] == [
        (0.2, "kept"),
        (0.4, "kept"),
        (0.6, "rolled back"),
        (0.5, "kept"),
        (0.6, "rolled back"),
        (0.55, "kept"),
        (0.6, "rolled back"),
    ]
    assert (round(reached, 3), end) == (0.55, "floor")


def test_no_try_ends_at_the_first_failure_and_nothing_kept_is_nothing_reached() -> None:
    made = Made(breaks_at=0.3)
    assert walk(0.8, 4, 0, made.attempt) == (pytest.approx(0.2), "floor")
    made = Made(breaks_at=0.0)
    assert walk(0.8, 4, 3, made.attempt) == (0.0, "floor")
    assert [level for level, _ in made.tried] == pytest.approx([0.2, 0.1, 0.05, 0.025])


def test_it_ends_as_soon_as_the_goal_is_met_otherwise() -> None:
    made = Made(breaks_at=1.0, met_at=0.35)
    assert walk(0.8, 4, 3, made.attempt) == (pytest.approx(0.4), "met")


def test_a_plan_that_was_refused_is_not_trained_again() -> None:
    made = Made(breaks_at=0.3, grain=0.25)
    reached, end = walk(1.0, 4, 4, made.attempt)
    assert end == "floor"
    assert made.good == 0.25
    assert made.trained == 2
    assert [state for _, state in made.tried].count("repeated") > 0
    assert reached < 0.5


@given(
    goal=st.floats(0.05, 0.99),
    steps=st.integers(1, 12),
    tries=st.integers(0, 5),
    breaks_at=st.floats(0, 1),
    grain=st.sampled_from([0.0, 0.01, 0.125, 0.25]),
)
@settings(max_examples=300)
def test_it_always_ends_and_the_network_left_is_good(
    goal: float, steps: int, tries: int, breaks_at: float, grain: float
) -> None:
    made = Made(breaks_at, grain)
    reached, end = walk(goal, steps, tries, made.attempt)
    assert len(made.tried) <= steps * 2**tries + tries + 1
    assert made.good <= breaks_at
    assert 0 <= reached <= goal
    assert (end == "goal") == (reached == pytest.approx(goal))
    assert sum(state in ("rolled back", "repeated") for _, state in made.tried) <= tries + 1
    if end == "floor" and not grain:
        assert breaks_at - made.good < goal / steps / 2**tries + 1e-9
