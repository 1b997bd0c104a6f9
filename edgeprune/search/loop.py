"""The loop: prune in steps, look what each one costs, roll back what costs too much and try a smaller step.

Owns how far the next step goes and when to stop. What a step does is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["kept", "rolled back", "unchanged", "repeated"]
End = Literal["goal", "floor", "met"]
_NEAR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a step.

    `unchanged`: rounding of widths left the network as it was. `repeated`: the step comes to a plan that was refused
    from here before. `plan` identifies what was tried; `met` tells that the goal is met before its end.
    """

    state: State
    plan: str
    met: bool = False


Attempt = Callable[[int, float, frozenset[str]], Outcome]


def walk(goal: float, steps: int, tries: int, attempt: Attempt) -> tuple[float, End]:
    """Go from nothing to a goal in steps of equal size, smaller ones after a step that was rolled back.

    Every step that is rolled back halves the size of those that follow; after `tries` halvings the next one ends it.

    Args:
        goal: Where to go, such as the ratio that is to be removed; larger than 0.
        attempt: Makes a step: its number from 1, the level to reach, and the plans that were refused from here. It
            goes on from the last step that it kept.

    Returns:
        The level that was reached, and why it ended: at the `goal`, at the `floor`, or because it was `met` before.
    """
    reached, size, number, halved = 0.0, goal / steps, 0, 0
    refused: set[str] = set()
    while reached < goal - _NEAR:
        level = reached + size
        level = goal if level > goal - _NEAR else level
        number += 1
        outcome = attempt(number, level, frozenset(refused))
        if outcome.state in ("kept", "unchanged"):
            reached = level
            refused = set() if outcome.state == "kept" else refused
            if outcome.met:
                return reached, "met"
            continue
        refused.add(outcome.plan)
        if halved == tries:
            return reached, "floor"
        halved += 1
        size /= 2
    return reached, "goal"
