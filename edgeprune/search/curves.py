"""Curves: how much of the metric is lost when a share of one group's units goes, between and beyond measured points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What pruning the groups `names` together costs: pairs of (ratio removed, loss), measured or not at all.

    `units` are those of one of the groups (linked groups have equally many). A loss is how much worse the metric
    became; it may be negative.
    """

    names: tuple[str, ...]
    units: int
    measured: tuple[Point, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """The measured points as a curve that starts at nothing and never falls, by ascending ratio.

        Removing more cannot help in truth: where it seems to, the metric is noisy, and the larger loss stands.
        """
        return rising(self.measured)

    @property
    def corners(self) -> tuple[Point, ...]:
        """The corners of the largest convex curve below the points: where the price of one more unit changes."""
        corners: list[Point] = []
        for point in self.points:
            while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
                corners.pop()
            corners.append(point)
        return tuple(corners)

    def loss(self, ratio: float) -> float:
        """Return the loss at a ratio: straight lines between points, and the last line's slope beyond them."""
        points = self.points
        for before, after in itertools.pairwise(points):
            if ratio <= after[0]:
                return before[1] + _slope(before, after) * (ratio - before[0])
        if len(points) < 2:
            return 0.0
        return points[-1][1] + _slope(points[-2], points[-1]) * (ratio - points[-1][0])


def rising(measured: Iterable[Point]) -> tuple[Point, ...]:
    """Return points by ascending ratio, from (0, 0), with every loss at least as large as those before it.

    Of several at one ratio the largest loss counts; ratios outside (0, 1) and losses that are no numbers do not.
    """
    found = [(0.0, 0.0)]
    for ratio, loss in sorted(point for point in measured if 0 < point[0] < 1 and math.isfinite(point[1])):
        most = max(loss, found[-1][1])
        if ratio == found[-1][0]:
            found.pop()
        found.append((ratio, most))
    return tuple(found)


def _slope(before: Point, after: Point) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])
