"""When pruning happens in a training, and how far it is by then."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.errors import ConfigError

UPDATES = 40  # from the first to the last one where their distance is not given
SHARE = 0.75  # of a training, after which nothing more is pruned where the end is not given


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When something is pruned, in steps of the optimiser counted from 1.

    It begins after `begin`, happens every `every` steps, and ends after `end`.
    """

    begin: int
    end: int
    every: int

    def due(self, step: int) -> bool:
        """Return whether something is pruned after a step."""
        inside = self.begin <= step <= self.end
        return inside and ((step - self.begin) % self.every == 0 or step == self.end)

    def progress(self, step: int) -> float:
        """Return the share of what is to go that is gone after a step (Zhu and Gupta 2017, arXiv 1710.01878).

        It rises as `1 - (1 - t)^3` from 0 at `begin` to exactly 1 at `end`: fast while there is much to spare.
        """
        return 1.0 - (1.0 - self._elapsed(step)) ** 3

    def fraction(self, step: int, first: float) -> float:
        """Return what a fraction that falls as a half cosine from `first` to 0 is after a step."""
        return first / 2.0 * (1.0 + math.cos(math.pi * self._elapsed(step)))

    def _elapsed(self, step: int) -> float:
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)


def make_schedule(begin: int, end: int | None, every: int | None, total: int | None) -> Schedule:
    """Return the schedule of settings.

    Args:
        end: None for three quarters of the training.
        total: Steps of the training, None where they are not known.

    Raises:
        ConfigError: The end is neither given nor known, or is not behind the beginning.
    """
    if end is None and total is None:
        raise ConfigError("the step at which pruning ends is not known", fix="name it, such as end=1000")
    last = end if end is not None else round(SHARE * (total or 0))
    if begin >= last:
        known = f" of a training of {total} steps" if total is not None else ""
        raise ConfigError(
            f"pruning begins at step {begin} and ends at step {last}{known}", fix="begin earlier, or train longer"
        )
    return Schedule(begin=begin, end=last, every=every or max(1, (last - begin) // UPDATES))
