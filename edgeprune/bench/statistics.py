"""The arithmetic of noisy timings: clean runs, medians and their intervals.

Everything works on one array per process, because two processes of the same program differ more than two runs of
one: each has its own memory layout. Knows nothing about files, devices or verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

CLEAN_CPU_SHARE = 0.98
DRAWS = 1000
# Two-sided 95 % quantiles of Student's t over the normal's, times sqrt(n / (n - 1)), for n = 2, 3, ... processes:
# resampling n processes shows too little of their spread, by this factor.
_FEW_PROCESSES = (9.17, 2.69, 1.87, 1.58, 1.44, 1.35, 1.29, 1.25, 1.22, 1.19, 1.17)


def clean_mask(wall_s: Samples, cpu_s: Samples) -> NDArray[np.bool_]:
    """Return which runs had a core to themselves: CPU time at least 98 % of wall time.

    This rejects a run for having been interrupted, never for having been slow. One thread only.
    """
    return np.asarray(cpu_s >= CLEAN_CPU_SHARE * wall_s, dtype=np.bool_)


def bootstrap_medians(processes: Sequence[Samples], *, seed: int, draws: int = DRAWS) -> Samples:
    """Return medians of resampled data: processes first, then runs inside each (a hierarchical bootstrap).

    Runs are drawn by Poisson weights, which is resampling with replacement for all draws at once.

    Args:
        processes: One non-empty array of runs per process, of any lengths.
        seed: Fixes the result.

    Returns:
        Shape (draws,), the pooled median of each resample.
    """
    rng = np.random.default_rng(seed)
    count = len(processes)
    chosen = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    owners = np.repeat(np.arange(count), [len(runs) for runs in processes])
    pooled = np.concatenate(processes)
    order = np.argsort(pooled, kind="stable")
    weights = rng.poisson(chosen[:, owners[order]]).astype(np.int32)
    weights[weights.sum(axis=1) == 0] = 1
    reached = np.cumsum(weights, axis=1)
    middle = np.argmax(2 * reached >= reached[:, -1:], axis=1)
    return np.asarray(pooled[order][middle], dtype=np.float64)


def median_interval(processes: Sequence[Samples], *, seed: int, draws: int = DRAWS) -> tuple[float, float, float]:
    """Return the pooled median and its 95 % interval, widened for the small number of processes.

    With one process the interval speaks of that process only.
    """
    median = float(np.median(np.concatenate(processes)))
    low, high = interval(bootstrap_medians(processes, seed=seed, draws=draws), median, len(processes))
    return median, low, high


def interval(resampled: Samples, centre: float, processes: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled values, widened around `centre` for few processes."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    factor = widening(processes)
    return centre - factor * max(centre - float(low), 0.0), centre + factor * max(float(high) - centre, 0.0)


def widening(processes: int) -> float:
    """Return how much an interval from this many resampled processes must be widened."""
    if processes < 2:
        return 1.0
    return _FEW_PROCESSES[min(processes - 2, len(_FEW_PROCESSES) - 1)]
