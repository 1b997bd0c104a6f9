"""The verdict on two measurements.

A difference is called one only when the whole 95 % interval of the ratio lies beyond the threshold, which is the
larger of the practical one and of how far the same file differed from itself on that occasion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeprune.bench.ratio import Ratio, in_step, paired_ratio, unpaired_ratio
from edgeprune.bench.rows import Clock, Comparison, Measurement, Verdict
from edgeprune.errors import ConfigError

ALLOWABLE = ("threads", "runtime", "device", "batch", "precision")
# Medians of one file taken at different times differed by up to 20 % (standard deviation) on a loaded machine, against
# 2 % when taken in turn; a smaller difference between occasions is never called one.
PRACTICAL_APART = 0.10


def compare(
    baseline: Measurement, other: Measurement, *, practical: float = 0.03, allow: Sequence[str] = ()
) -> Comparison:
    """Return how much faster `other` is than `baseline`, with an interval and a verdict.

    Args:
        baseline: The reference.
        other: The row that is judged.
        practical: Smallest relative difference that is called one. Rows of different occasions get at least 0.1.
        allow: Differences that do not make the rows incomparable: threads, runtime, device, batch. Other precisions
            are compared without being asked: that is what they are made for.

    Raises:
        ConfigError: A row failed, the rows differ in something that is not allowed, or `allow` has another word.
    """
    unknown = [word for word in allow if word not in ALLOWABLE]
    if unknown:
        raise ConfigError(f"allow has '{unknown[0]}'", fix=f"allow takes: {', '.join(ALLOWABLE)}")
    for row in (baseline, other):
        if row.latency is None or not row.samples:
            reason = row.error["message"] if row.error else "; ".join(row.reasons) or "it has no samples"
            raise ConfigError(f"{row.name} cannot be compared, its measurement failed: {reason}", where=row.row_id)
    differences = list_differences(baseline, other)
    refused = [word for word in differences if word not in allow]
    if refused:
        word = refused[0]
        mine, theirs = differences[word]
        raise ConfigError(
            f"{baseline.name} and {other.name} cannot be compared: {word} differs ({mine} and {theirs})",
            fix=f"measure both the same way, or pass --allow {','.join(refused)}",
        )
    paired = _is_paired(baseline, other)
    ratio = _ratio(baseline, other, paired)
    noise_floor = _noise_floor([baseline] if paired else [baseline, other])
    threshold = max(practical if paired else max(practical, PRACTICAL_APART), noise_floor or 0.0)
    return Comparison(
        baseline_row=baseline.row_id,
        row=other.row_id,
        format=str(other.artifact["format"]),
        threads=other.threads,
        clock=ratio.clock,
        ratio=ratio.ratio,
        ci95=(ratio.low, ratio.high),
        threshold=threshold,
        noise_floor=noise_floor,
        verdict=judge(ratio.low, ratio.high, threshold),
        size_ratio=baseline.artifact["size_bytes"] / other.artifact["size_bytes"],
        paired=paired,
        allowed=tuple(sorted(differences)),
    )


def judge(low: float, high: float, threshold: float) -> Verdict:
    """Return the verdict on an interval of baseline over other; swapping the two swaps the verdict."""
    if low > 1 + threshold:
        return "faster"
    if high < 1 / (1 + threshold):
        return "slower"
    return "no difference shown"


def list_differences(a: Measurement, b: Measurement) -> dict[str, tuple[str, str]]:
    """Return what makes two rows incomparable: the word for `allow`, and both sides in words."""
    sides = {
        "threads": (str(a.threads), str(b.threads)),
        "runtime": (_runtime(a), _runtime(b)),
        "device": (_device(a), _device(b)),
        "batch": (f"{a.method['batch_size']} samples", f"{b.method['batch_size']} samples"),
    }
    return {word: pair for word, pair in sides.items() if pair[0] != pair[1]}


def noise_of(ratio: Ratio) -> float:
    """Return how far the interval of a ratio reaches from 1, as a relative difference."""
    return max(math.exp(abs(math.log(edge))) for edge in (ratio.low, ratio.high)) - 1


def _ratio(baseline: Measurement, other: Measurement, paired: bool) -> Ratio:
    clocks = {row.latency["clock"] for row in (baseline, other) if row.latency is not None}
    single = baseline.threads == other.threads == 1
    clock: Clock = "cpu" if "cpu" in clocks and single else "wall"
    if paired:
        return paired_ratio(baseline.samples, other.samples, threads=baseline.threads, clock=clock)
    return unpaired_ratio(baseline.samples, other.samples, clock, (baseline.threads, other.threads))


def _is_paired(a: Measurement, b: Measurement) -> bool:
    same = a.occasion_id == b.occasion_id and a.threads == b.threads
    return same and a.artifact["format"] == b.artifact["format"] and in_step(a.samples, b.samples)


def _noise_floor(rows: Sequence[Measurement]) -> float | None:
    floors = [
        noise_of(Ratio(ratio=row.aa["ratio"], low=row.aa["ci95"][0], high=row.aa["ci95"][1], clock="wall"))
        for row in rows
        if row.aa is not None
    ]
    return max(floors) if floors else None


def _runtime(row: Measurement) -> str:
    return f"{row.runtime['name']} {row.runtime['version']}"


def _device(row: Measurement) -> str:
    return f"{row.target} {row.device.get('cpu') or row.device.get('machine')} ({row.device.get('id')})"
