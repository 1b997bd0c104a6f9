"""A pruned network, as either tool makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# How far the multiply-accumulates may be from what was asked for, as a share of it.
TOLERANCE = 0.02


class UnmetError(ValueError):
    """A tool with these settings does not get near the multiply-accumulates that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a tool made with one criterion and one scope. `plan` is edgeprune's, None for the other tool."""

    model: nn.Module
    macs: int
    prune_cpu_s: float
    plan: Any = None


def nearest(found: list[Candidate], wanted: float, what: str) -> Candidate:
    """Return the candidate nearest to the wanted multiply-accumulates.

    Raises:
        UnmetError: It is too far away, or there is none.
    """
    if not found:
        raise UnmetError(f"{what}: nothing was pruned")
    best = min(found, key=lambda candidate: abs(candidate.macs / wanted - 1))
    if abs(best.macs / wanted - 1) > TOLERANCE:
        raise UnmetError(f"{what}: {best.macs / wanted:.3f} of the wanted MACs is the nearest")
    return best
