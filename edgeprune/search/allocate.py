"""Allocation: which ratio every group gets so that the losses add up to as little as possible.

Removing a unit costs some of the metric and frees some of the budget. The cheapest removals come first, counted in
loss per freed budget, until enough is free: with convex curves that is the least sum there is. Beyond the largest
ratio that was measured nothing is known, so such removals come last, from all groups alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeprune.search.curves import Curve

MOST = 0.999  # of a group; how few units may stay is decided where ratios become numbers of units


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One stretch of a curve: the ratio of curve `index` goes from `start` to `end`; `price` is loss per budget."""

    index: int
    start: float
    end: float
    price: float


def allocator(
    curves: Sequence[Curve], freed: Sequence[float], total: float | None = None
) -> Callable[[float], dict[str, float]]:
    """Return a function from the share of a budget that is to be freed to the ratio of every group.

    A larger share never lowers a ratio. Groups that were not measured, or that free nothing, stay whole.

    Args:
        freed: What every curve's groups free when they go completely, such as their units or multiply-accumulates.
        total: What a share of one means, by default the sum of `freed`.
    """
    whole = sum(freed) if total is None else total
    tiers = _tiers(curves, freed)

    def ratios(share: float) -> dict[str, float]:
        left = share * whole
        found = [0.0] * len(curves)
        for tier in tiers:
            room = sum((item.end - item.start) * freed[item.index] for item in tier)
            part = min(max(left / room, 0.0), 1.0) if room > 0 else 0.0
            for item in tier:
                found[item.index] = item.start + part * (item.end - item.start)
            left -= part * room
            if part < 1:
                break
        return {name: ratio for curve, ratio in zip(curves, found, strict=True) for name in curve.names}

    return ratios


def predicted(curves: Sequence[Curve], ratios: Mapping[str, float]) -> float:
    """Return the sum of the losses that the curves tell for some ratios; linked groups count once."""
    return sum(curve.loss(ratios.get(curve.names[0], 0.0)) for curve in curves)


def _tiers(curves: Sequence[Curve], freed: Sequence[float]) -> list[list[Removal]]:
    """Return the removals in the order in which they are made; those of equal price go on together."""
    known, beyond = [], []
    for index, curve in enumerate(curves):
        corners = curve.corners
        if freed[index] <= 0 or len(corners) < 2:
            continue
        for before, after in itertools.pairwise(corners):
            price = (after[1] - before[1]) / ((after[0] - before[0]) * freed[index])
            known.append(Removal(index=index, start=before[0], end=after[0], price=price))
        if corners[-1][0] < MOST:
            beyond.append(Removal(index=index, start=corners[-1][0], end=MOST, price=math.inf))
    tiers: list[list[Removal]] = []
    for item in sorted(known, key=lambda item: (item.price, item.index, item.start)):
        fits = tiers and math.isclose(item.price, tiers[-1][0].price, rel_tol=1e-9)
        if fits and all(other.index != item.index for other in tiers[-1]):
            tiers[-1].append(item)
        else:
            tiers.append([item])
    return [*tiers, beyond] if beyond else tiers
