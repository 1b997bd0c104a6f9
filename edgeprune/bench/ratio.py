"""The ratio of two timed artifacts, with its interval.

Works on the samples of two rows: one entry per process with `wall_s` and `cpu_s`, one value per round. Rounds of two
artifacts that ran in turn are compared round by round, so that a slow phase of the machine hits both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench import statistics
from edgeprune.bench.rows import Clock
from edgeprune.bench.statistics import Samples

ProcessSamples = Mapping[str, Any]

LEAST_CLEAN_ROUNDS = 30
LEAST_CLEAN_SHARE = 0.25
MOST_ZERO_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Time of `a` over time of `b`, and its 95 % interval."""

    ratio: float
    low: float
    high: float
    clock: Clock

    def as_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "ci95": [self.low, self.high], "clock": self.clock}


def cpu_clock_is_fine(processes: Sequence[ProcessSamples]) -> bool:
    """Return whether the CPU clock resolves single runs; some systems advance it in steps of milliseconds."""
    times = np.concatenate([np.asarray(samples["cpu_s"], dtype=np.float64) for samples in processes])
    return float(np.mean(times <= 0)) <= MOST_ZERO_SHARE


def clean_runs(samples: ProcessSamples, threads: int) -> NDArray[np.bool_]:
    """Return which runs of a process were not interrupted.

    With one thread that is known from CPU and wall time. With more, only involuntary switches are seen, so that a
    thread that had to wait for a core may go unnoticed.
    """
    if threads == 1:
        return statistics.clean_mask(_array(samples, "wall_s"), _array(samples, "cpu_s"))
    return np.asarray(np.asarray(samples["switches"]) == 0, dtype=np.bool_)


def choose_clock(artifacts: Sequence[Sequence[ProcessSamples]], threads: int) -> Clock:
    """Return the clock on which a group of artifacts is reported: wall time, if enough of it was uninterrupted.

    CPU time stands for latency with one thread only, so several threads always get wall time, and so do machines
    whose CPU clock is too coarse.
    """
    if threads > 1 or not all(cpu_clock_is_fine(processes) for processes in artifacts):
        return "wall"
    for processes in artifacts:
        masks = [clean_runs(samples, threads) for samples in processes]
        share = float(np.mean(np.concatenate(masks)))
        if share < LEAST_CLEAN_SHARE or sum(mask.any() for mask in masks) * 2 <= len(masks):
            return "cpu"
    return "wall"


def headline_runs(processes: Sequence[ProcessSamples], clock: Clock, threads: int) -> list[Samples]:
    """Return per process the times that the median is taken of: clean wall times, or CPU times.

    Where wall times are asked for and hardly a run is clean, all of them are used.
    """
    if clock == "cpu":
        return [_array(samples, "cpu_s") for samples in processes]
    masks = [clean_runs(samples, threads) for samples in processes]
    if float(np.mean(np.concatenate(masks))) < LEAST_CLEAN_SHARE:
        return [_array(samples, "wall_s") for samples in processes]
    clean = [_array(samples, "wall_s")[mask] for samples, mask in zip(processes, masks, strict=True)]
    return [runs for runs in clean if len(runs)]


def in_step(a: Sequence[ProcessSamples], b: Sequence[ProcessSamples]) -> bool:
    """Return whether two samples hold the same rounds of the same processes."""
    return [(s["process"], len(s["wall_s"])) for s in a] == [(s["process"], len(s["wall_s"])) for s in b]


def paired_ratio(
    a: Sequence[ProcessSamples], b: Sequence[ProcessSamples], *, threads: int, clock: Clock, seed: int = 0
) -> Ratio:
    """Return the ratio of two artifacts that ran in turn, from the ratios of single rounds.

    On the wall clock, rounds in which both were uninterrupted count. Where these are too few, CPU times of all
    rounds do (one thread) or wall times of all rounds (several threads, or a coarse CPU clock).
    """
    masks = [clean_runs(x, threads) & clean_runs(y, threads) for x, y in zip(a, b, strict=True)]
    clean = sum(mask.sum() for mask in masks) >= LEAST_CLEAN_ROUNDS
    enough = clock == "wall" and clean and sum(mask.any() for mask in masks) * 2 > len(masks)
    fine = threads == 1 and cpu_clock_is_fine(a) and cpu_clock_is_fine(b)
    used: Clock = "wall" if enough or not fine else "cpu"
    key = f"{used}_s"
    rounds = []
    for x, y, mask in zip(a, b, masks, strict=True):
        kept = mask if enough else np.ones_like(mask)
        if kept.any():
            rounds.append(np.log(_array(x, key)[kept]) - np.log(_array(y, key)[kept]))
    centre, low, high = statistics.median_interval(rounds, seed=seed)
    return Ratio(ratio=float(np.exp(centre)), low=float(np.exp(low)), high=float(np.exp(high)), clock=used)


def unpaired_ratio(
    a: Sequence[ProcessSamples], b: Sequence[ProcessSamples], clock: Clock, threads: tuple[int, int], seed: int = 0
) -> Ratio:
    """Return the ratio of two artifacts that were measured apart, from their medians."""
    sides = [
        [np.log(runs) for runs in headline_runs(side, clock, count)]
        for side, count in zip((a, b), threads, strict=True)
    ]
    draws = [statistics.bootstrap_medians(side, seed=seed + index) for index, side in enumerate(sides)]
    centre = float(np.median(np.concatenate(sides[0])) - np.median(np.concatenate(sides[1])))
    low, high = statistics.interval(draws[0] - draws[1], centre, min(len(side) for side in sides))
    return Ratio(ratio=float(np.exp(centre)), low=float(np.exp(low)), high=float(np.exp(high)), clock=clock)


def _array(samples: ProcessSamples, key: str) -> Samples:
    """Return times as an array; no time is shorter than a nanosecond, the clocks' resolution."""
    return np.maximum(np.asarray(samples[key], dtype=np.float64), 1e-9)
