"""From the agent's raw results to rows: figures, intervals, and what is wrong with them.

Owns the percentiles of a row and the reasons for calling it noisy. Knows nothing about schedules or devices.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeprune.bench import statistics
from edgeprune.bench.compare import noise_of
from edgeprune.bench.ratio import Ratio, choose_clock, clean_runs, cpu_clock_is_fine, headline_runs, paired_ratio
from edgeprune.bench.rows import SCHEMA_VERSION, Clock, Measurement, Quality
from edgeprune.config import BenchConfig
from edgeprune.errors import DeviceError
from edgeprune.targets import Target
from edgeprune.values import Artifact, Json

LEAST_QUIET_SHARE = 0.8
MOST_SPREAD = 1.25  # slowest over fastest process, by their medians
MOST_NOISE = 0.1
MOST_STEAL = 0.05
FREQUENCY_DROP = 0.05
UNSTABLE_BITS = 0xF  # vcgencmd: under-voltage, frequency capped, throttled, soft temperature limit


@dataclass(slots=True, kw_only=True)
class Group:
    """Artifacts of one format and thread count that run in turn, and what their processes returned so far."""

    artifacts: list[Artifact]
    roles: list[str]
    places: list[int]
    baseline: int
    threads: int
    config: BenchConfig
    seed: int
    timed: list[Json] = field(default_factory=list)
    cold: list[list[Json]] = field(default_factory=list)
    error: DeviceError | None = None

    def __post_init__(self) -> None:
        self.cold = [[] for _ in self.artifacts]

    @property
    def label(self) -> str:
        """Format and threads in words."""
        return f"{self.artifacts[0].format} on {self.threads} thread{'s' if self.threads > 1 else ''}"


def rows_of(group: Group, target: Target, facts: Json, occasion: str) -> list[Measurement]:
    """Return one row per artifact of a group whose processes all succeeded."""
    count = len(group.artifacts)
    samples = [_samples(group.timed, index) for index in range(count + 1)]
    clock = choose_clock(samples, group.threads)
    itself = samples[group.baseline], samples[count]
    aa = paired_ratio(*itself, threads=group.threads, clock=clock, seed=group.seed)
    common = [*_environment_reasons(group, facts), *_noise_reasons(group, aa)]
    return [_row(group, index, target, facts, occasion, samples[index], clock, aa, common) for index in range(count)]


def failed_rows(group: Group, target: Target, facts: Json, occasion: str) -> list[Measurement]:
    """Return one row per artifact of a group that an error ended."""
    error = group.error.as_dict() if group.error is not None else None
    name = "onnxruntime" if group.artifacts[0].format == "onnx" else "tflite"
    return [
        Measurement(
            **_head(group, index, target, facts, occasion),
            runtime={"name": name, "version": None, "package": None, "threads": group.threads},
            latency=None,
            cpu=None,
            cold=None,
            memory=None,
            env=None,
            quality="failed",
            reasons=(str(error["message"]) if error else "failed",),
            aa=None,
            samples=(),
            error=error,
        )
        for index in range(len(group.artifacts))
    ]


def _row(
    group: Group,
    index: int,
    target: Target,
    facts: Json,
    occasion: str,
    samples: Sequence[Json],
    clock: Clock,
    aa: Ratio,
    common: Sequence[str],
) -> Measurement:
    latency = _latency(samples, clock, group)
    reasons = (*_sample_reasons(samples, latency, group), *common)
    quality: Quality = "noisy" if reasons else "ok"
    cpu = np.concatenate([np.asarray(process["cpu_s"]) for process in samples])
    return Measurement(
        **_head(group, index, target, facts, occasion),
        runtime=group.timed[0]["runtime"],
        latency=latency,
        cpu={"p50_s": float(np.median(cpu))},
        cold=_medians(group.cold[index], ("import_s", "load_s", "first_s")),
        memory=_medians(group.cold[index], ("rss_before_bytes", "peak_rss_bytes")),
        env={"before": group.timed[0]["env"]["before"], "after": group.timed[-1]["env"]["after"]},
        quality=quality,
        reasons=reasons,
        aa=aa.as_dict(),
        samples=tuple(samples),
        error=None,
    )


def _head(group: Group, index: int, target: Target, facts: Json, occasion: str) -> Json:
    artifact = group.artifacts[index]
    return {
        "schema_version": SCHEMA_VERSION,
        "row_id": uuid.uuid4().hex[:12],
        "occasion_id": occasion,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "role": group.roles[index],
        "artifact": {
            "name": Path(artifact.path).name,
            "sha256": artifact.sha256,
            "size_bytes": artifact.size_bytes,
            "format": artifact.format,
            "precision": artifact.precision,
            "path": artifact.path,
        },
        "target": target.name,
        "device": {key: value for key, value in facts.items() if key not in ("agent", "runtimes", "env")},
        "method": _method(group, index),
    }


def _method(group: Group, index: int) -> Json:
    config, inputs = group.config, group.artifacts[index].inputs
    return {
        "what": "the inference call, inputs and outputs in place",
        "processes": len(group.timed),
        "rounds": [timed["rounds"] for timed in group.timed],
        "stride": [timed["stride"] for timed in group.timed],
        "min_runs": config.min_runs,
        "min_seconds": config.min_seconds,
        "max_seconds": config.max_seconds,
        "warmup_runs": config.warmup_runs,
        "warmup_seconds": config.warmup_seconds,
        "cold_processes": len(group.cold[index]),
        "seed": group.seed,
        "batch_size": (inputs[0].shape[0] if inputs and inputs[0].shape else None) or 1,
        "interleaved_with": [Path(a.path).name for i, a in enumerate(group.artifacts) if i != index],
        "aa_of": Path(group.artifacts[group.baseline].path).name,
        "affinity": group.timed[0]["affinity"] if group.timed else None,
    }


def _samples(timed: Sequence[Json], index: int) -> list[Json]:
    """Return the raw samples of one artifact in seconds, one entry per process."""
    rows = []
    for process, result in enumerate(timed):
        raw = result["artifacts"][index]
        row = {
            "process": process,
            "wall_s": [nanoseconds / 1e9 for nanoseconds in raw["wall_ns"]],
            "cpu_s": [nanoseconds / 1e9 for nanoseconds in raw["cpu_ns"]],
        }
        if result["runtime"]["threads"] > 1:
            row["switches"] = raw["switches"]
        rows.append(row)
    return rows


def _latency(samples: Sequence[Json], clock: Clock, group: Group) -> Json:
    headline = headline_runs(samples, clock, group.threads)
    median, low, high = statistics.median_interval([np.log(runs) for runs in headline], seed=group.seed)
    every = np.concatenate([np.asarray(process[f"{clock}_s"]) for process in samples])
    clean = np.concatenate([clean_runs(process, group.threads) for process in samples])
    p10, p90, p99 = np.percentile(every, [10, 90, 99])
    return {
        "p10_s": float(p10),
        "p50_s": float(np.exp(median)),
        "p90_s": float(p90),
        "p99_s": float(p99),
        "min_s": float(every.min()),
        "mean_s": float(every.mean()),
        "n": len(every),
        "clean_share": float(clean.mean()),
        "ci95_s": [float(np.exp(low)), float(np.exp(high))],
        "clock": clock,
    }


def _medians(results: Sequence[Json], keys: Sequence[str]) -> Json:
    """Return the median of each figure over fresh processes; None where the machine does not tell."""
    medians: Json = {}
    for key in keys:
        values = [result[key] for result in results if result[key] is not None]
        middle = float(np.median(values)) if values else None
        medians[key] = round(middle) if middle is not None and key.endswith("_bytes") else middle
    return medians


def _sample_reasons(samples: Sequence[Json], latency: Json, group: Group) -> list[str]:
    reasons = []
    share = latency["clean_share"]
    if not cpu_clock_is_fine(samples):
        reasons.append("the CPU clock of this machine is too coarse to tell which runs were interrupted")
    elif latency["clock"] == "cpu":
        reasons.append(f"only {share:.0%} of the runs had a core to themselves: CPU time stands in for latency")
    elif share < LEAST_QUIET_SHARE:
        reasons.append(f"only {share:.0%} of the runs had a core to themselves")
    fewest = min(len(process["wall_s"]) for process in samples)
    if fewest < group.config.min_runs:
        reasons.append(f"a process reached bench.max_seconds after {fewest} of {group.config.min_runs} runs")
    medians = [float(np.median(runs)) for runs in headline_runs(samples, latency["clock"], group.threads)]
    if max(medians) > MOST_SPREAD * min(medians):
        reasons.append(f"the slowest process took {max(medians) / min(medians):.2f} times as long as the fastest")
    return reasons


def _noise_reasons(group: Group, aa: Ratio) -> list[str]:
    reasons = []
    if noise_of(aa) > MOST_NOISE:
        name = Path(group.artifacts[group.baseline].path).name
        reasons.append(f"{name} against itself: ratio {aa.ratio:.3f}, 95 % interval {aa.low:.3f} to {aa.high:.3f}")
    if len(group.timed) < 2:
        reasons.append("one process only: how much processes differ is unknown")
    return reasons


def _environment_reasons(group: Group, facts: Json) -> list[str]:
    """Return what the machine's own state says against the figures."""
    reasons = []
    cores = facts.get("usable_cores") or facts.get("cores")
    if cores is not None and group.threads > cores:
        reasons.append(f"{group.threads} threads on {cores} cores")
    environments = [timed["env"] for timed in group.timed]
    for env in environments:
        before, after = env["before"]["frequency_hz"], env["after"]["frequency_hz"]
        if before and after and None not in before + after and max(after) < (1 - FREQUENCY_DROP) * max(before):
            reasons.append(f"the CPU frequency fell from {max(before) / 1e6:.0f} to {max(after) / 1e6:.0f} MHz")
            break
    if any(_unstable(env["after"]["throttled"]) for env in environments):
        reasons.append(f"the board reports under-voltage or throttling ({environments[-1]['after']['throttled']})")
    steal = _stolen(environments)
    if steal is not None and steal > MOST_STEAL:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPU time")
    return reasons


def _unstable(throttled: str | None) -> bool:
    return throttled is not None and bool(int(throttled, 16) & UNSTABLE_BITS)


def _stolen(environments: Sequence[Json]) -> float | None:
    first, last = environments[0]["before"], environments[-1]["after"]
    if first["steal_ticks"] is None or last["steal_ticks"] is None:
        return None
    ticks = last["total_ticks"] - first["total_ticks"]
    return (last["steal_ticks"] - first["steal_ticks"]) / ticks if ticks > 0 else None
