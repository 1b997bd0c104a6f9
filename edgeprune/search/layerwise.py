"""One group after the other: prune it, look what that costs, and take back what costs more than it may.

Owns the order of trials and what is kept. What a choice of ratios is worth is measured by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["kept", "rolled back", "unchanged"]
Names = tuple[str, ...]
_NOISE = 1e-12  # of sums of floating point numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a choice of ratios is worth: its loss against the dense network, infinite where it failed.

    `plan` identifies the choice after rounding.
    """

    plan: str
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial: the groups, the ratio, the loss of the whole network after it, and how much of that it added."""

    names: Names
    ratio: float
    state: State
    loss: float | None = None
    cost: float | None = None


def one_by_one(
    order: Sequence[Names],
    ratio: float,
    *,
    allowance: float,
    halvings: int,
    measure: Callable[[Mapping[str, float]], Measured],
) -> tuple[dict[str, float], list[Trial]]:
    """Return the ratios that were kept, and every trial.

    Args:
        order: Sets of groups that go together, in the order in which they are tried.
        allowance: How much one set may add to the loss.
        halvings: How often half the ratio is tried after a trial that was rolled back.
        measure: Gets the ratio of every group that has one, none for the network to start from.
    """
    kept: dict[str, float] = {}
    now = measure(kept)
    trials = []
    for names in order:
        wanted = ratio
        for _ in range(halvings + 1):
            tried = measure({**kept, **dict.fromkeys(names, wanted)})
            if tried.plan == now.plan:
                trials.append(Trial(names=names, ratio=wanted, state="unchanged"))
                break
            cost = tried.loss - now.loss
            fits = cost <= allowance + _NOISE
            known = math.isfinite(tried.loss)
            trials.append(
                Trial(
                    names=names,
                    ratio=wanted,
                    state="kept" if fits else "rolled back",
                    loss=tried.loss if known else None,
                    cost=cost if known else None,
                )
            )
            if fits:
                kept |= dict.fromkeys(names, wanted)
                now = tried
                break
            wanted /= 2
    return kept, trials
