"""What a measurement and a comparison are, and their JSON form.

SI base units everywhere (seconds, bytes); what is missing is null, never 0. Owns the schema and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from edgeprune.errors import ResolveError
from edgeprune.values import Json

SCHEMA_VERSION = 1
Clock = Literal["wall", "cpu"]
Quality = Literal["ok", "noisy", "failed"]
Verdict = Literal["faster", "slower", "no difference shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One artifact on one device with one number of threads, on one occasion.

    Attributes:
        row_id: Unique.
        occasion_id: Shared by the rows that were measured together; artifacts of one format and thread count on
            one occasion ran in turn inside the same processes.
        time: When it ended, ISO 8601 in UTC.
        role: What the artifact is in the run, such as `baseline` or `model`.
        artifact: name, sha256, size_bytes, format, precision, path.
        target: Name of the target profile.
        device: id, cpu, machine, cores, os, kernel and so on, as the device tells.
        runtime: name, version, package, threads.
        method: How it was timed: processes, rounds, warm-up, seed, what ran in turn with it.
        latency: p50_s is the median of the runs that had a core to themselves; p10_s, p90_s, p99_s, min_s and
            mean_s are of all runs. With clock `cpu` all of them are CPU times. None when the row failed.
        cpu: p50_s, the median CPU time of a run (of all threads together).
        cold: import_s, load_s, first_s in fresh processes; the page cache is not dropped.
        memory: rss_before_bytes (runtime imported), peak_rss_bytes (after the first inferences).
        env: The machine's state before and after.
        quality: `noisy` and `failed` come with reasons.
        aa: ratio and ci95 of the same file against itself, timed in turn with the rest: the noise floor.
        samples: One entry per process: process, wall_s, cpu_s (and switches with several threads), in rounds.
        error: The error as JSON when the row failed.
    """

    schema_version: int
    row_id: str
    occasion_id: str
    time: str
    role: str
    artifact: Json
    target: str
    device: Json
    runtime: Json
    method: Json
    latency: Json | None
    cpu: Json | None
    cold: Json | None
    memory: Json | None
    env: Json | None
    quality: Quality
    reasons: tuple[str, ...]
    aa: Json | None
    samples: tuple[Json, ...]
    error: Json | None

    def as_dict(self) -> Json:
        """Return the row as JSON."""
        return _as_dict(self)

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        """Return the row that JSON holds.

        Raises:
            ResolveError: It has another schema version, or a key is missing or unknown.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ResolveError(
                f"a measurement has schema_version {version!r}, this version of edgeprune reads {SCHEMA_VERSION}",
                fix="use the version of edgeprune that wrote it, or measure again",
            )
        return cls(**_checked(cls, data, "measurement"))

    @property
    def name(self) -> str:
        """The artifact's file name."""
        return str(self.artifact["name"])

    @property
    def threads(self) -> int:
        """Threads of one inference."""
        return int(self.runtime["threads"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much faster one measured artifact is than another.

    Attributes:
        baseline_row: Row of the reference.
        row: Row of the other artifact.
        ratio: Latency of the baseline over the other's: above 1 the other is faster. Where both ran in turn it is
            the median over rounds, which slow phases of the machine hardly touch; it may differ a little from
            the quotient of the two medians.
        ci95: Its 95 % interval.
        threshold: Smallest relative difference that is called one here.
        noise_floor: How far the same file differed from itself; None when that was not measured.
        size_ratio: Bytes of the baseline over the other's.
        paired: Whether both ran in turn inside the same processes.
        allowed: Differences between the rows that were allowed by name.
    """

    baseline_row: str
    row: str
    format: str
    threads: int
    clock: Clock
    ratio: float
    ci95: tuple[float, float]
    threshold: float
    noise_floor: float | None
    verdict: Verdict
    size_ratio: float
    paired: bool
    allowed: tuple[str, ...] = ()

    def as_dict(self) -> Json:
        """Return the comparison as JSON."""
        return _as_dict(self)

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        """Return the comparison that JSON holds.

        Raises:
            ResolveError: A key is missing or unknown.
        """
        return cls(**_checked(cls, data, "comparison"))


def _as_dict(row: Measurement | Comparison) -> Json:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _checked(kind: type[Any], data: Json, what: str) -> Json:
    known = {field.name for field in fields(kind)}
    problems = [f"'{key}' is missing" for key in sorted(known - data.keys())]
    problems += [f"'{key}' is unknown" for key in sorted(data.keys() - known)]
    if problems:
        raise ResolveError(f"a {what} cannot be read: {', '.join(problems[:3])}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
