"""Measuring artifacts on a device.

Owns the schedule: which fresh processes run, in which order, and what happens when one fails. What a process does is
the agent's affair; what its samples mean is `rows_of` in `summary.py`.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.bench.rows import Measurement
from edgeprune.bench.summary import Group, failed_rows, rows_of
from edgeprune.config import BenchConfig
from edgeprune.devices import Device, connect
from edgeprune.errors import ConfigError, DeviceError, ResolveError
from edgeprune.targets import Target
from edgeprune.values import Artifact, Json

KEEP_ROUNDS = 250  # a process keeps this many rounds at least, and fewer than twice as many
COLD_PROCESSES = 3  # fresh processes per artifact for memory and cold start
ALLOWANCE_S = 300.0  # for starting a process, loading and the first inferences


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProgress:
    """How far a measurement is: `fraction` of all in [0, 1], and what runs now, in words."""

    fraction: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One fresh process: timing a group, or one artifact's memory and cold start."""

    group: Group
    process: int
    artifact: int | None  # position in the group; None: timing

    @property
    def weight(self) -> float:
        """Its share of the whole, in arbitrary units."""
        return 1.0 if self.artifact is not None else 4.0 * len(self.group.artifacts)


def measure(
    artifacts: Sequence[Artifact],
    target: Target,
    config: BenchConfig,
    *,
    roles: Sequence[str],
    on_progress: Callable[[BenchProgress], None] | None = None,
    seed: int = 0,
    device: Device | None = None,
) -> list[Measurement]:
    """Measure artifacts on a target.

    Artifacts of one format run in turn, round by round, inside the same processes, together with a second copy of
    the group's baseline (the first artifact with the role `baseline`, else the first), which shows how far a file
    differs from itself. Processes are fresh, and their order is random but fixed by `seed`.

    Args:
        artifacts: Files on this machine.
        target: Where they run.
        config: How long and how often.
        roles: One per artifact, such as `baseline` and `model`.
        on_progress: Told about every process and about twice a second inside them.
        seed: Fixes inputs and orders.
        device: The device, where one is connected already.

    Returns:
        One row per artifact and thread count, in the order of `artifacts`, then of `config.threads`. Where
        something of a format failed, its rows have the quality `failed` and hold the error.

    Raises:
        ConfigError: `artifacts` is empty, or `roles` has another length.
        ResolveError: A file changed since its Artifact was made.
        DeviceError: The device cannot be reached or is emulated, or every format failed.
    """
    _check_arguments(artifacts, roles)
    device = connect(target) if device is None else device
    facts = device.facts()
    if facts["emulated"]:
        raise DeviceError(
            f"{target.name}: run failed: the device is emulated, so its times mean nothing",
            fix="measure on the device itself",
        )
    groups = _groups(artifacts, roles, config, seed)
    jobs = _schedule(groups, config, seed)
    occasion = uuid.uuid4().hex[:12]
    whole, done = sum(job.weight for job in jobs), 0.0
    for job in jobs:
        if job.group.error is None:
            _run(job, device, config, on_progress, (done / whole, job.weight / whole))
        done += job.weight
    if on_progress is not None:
        on_progress(BenchProgress(fraction=1.0, text="done"))
    errors = [group.error for group in groups]
    if all(error is not None for error in errors) and errors[0] is not None:
        raise errors[0]
    rows: dict[tuple[int, int], Measurement] = {}
    for group in groups:
        made = failed_rows(group, target, facts, occasion) if group.error else rows_of(group, target, facts, occasion)
        rows.update({(index, group.threads): row for index, row in zip(group.places, made, strict=True)})
    return [rows[index, threads] for index in range(len(artifacts)) for threads in config.threads]


def _check_arguments(artifacts: Sequence[Artifact], roles: Sequence[str]) -> None:
    if not artifacts:
        raise ConfigError("there is no artifact to measure", fix="name at least one .onnx or .tflite file")
    if len(roles) != len(artifacts):
        raise ConfigError(f"{len(artifacts)} artifacts have {len(roles)} roles", fix="give one role per artifact")
    for artifact in artifacts:
        try:
            digest = hashlib.sha256(Path(artifact.path).read_bytes()).hexdigest()
        except OSError as error:
            raise ResolveError(f"cannot read {artifact.path}: {error.strerror}", where=artifact.path) from error
        if digest != artifact.sha256:
            raise ResolveError(
                f"{artifact.path} changed: sha256 {digest[:12]}, it was {artifact.sha256[:12]}",
                fix="export it again",
                where=artifact.path,
            )


def _groups(artifacts: Sequence[Artifact], roles: Sequence[str], config: BenchConfig, seed: int) -> list[Group]:
    """Return one group per format and thread count; a runtime gets a process of its own."""
    groups = []
    for kind in dict.fromkeys(artifact.format for artifact in artifacts):
        places = [index for index, artifact in enumerate(artifacts) if artifact.format == kind]
        baseline = next((i for i, place in enumerate(places) if roles[place] == "baseline"), 0)
        groups += [
            Group(
                artifacts=[artifacts[place] for place in places],
                roles=[roles[place] for place in places],
                places=places,
                baseline=baseline,
                threads=threads,
                config=config,
                seed=seed,
            )
            for threads in dict.fromkeys(config.threads)
        ]
    return groups


def _schedule(groups: Sequence[Group], config: BenchConfig, seed: int) -> list[_Job]:
    """Return the processes in order: round after round, each round shuffled, so that slow hours hit all alike."""
    rng = random.Random(seed)
    jobs = []
    for process in range(config.processes):
        turn = [_Job(group=group, process=process, artifact=None) for group in groups]
        if process < COLD_PROCESSES:
            turn += [
                _Job(group=group, process=process, artifact=index)
                for group in groups
                for index in range(len(group.artifacts))
            ]
        rng.shuffle(turn)
        jobs += turn
    return jobs


def _run(
    job: _Job,
    device: Device,
    config: BenchConfig,
    on_progress: Callable[[BenchProgress], None] | None,
    span: tuple[float, float],
) -> None:
    """Run one process and keep its result, or its error, in the group."""
    group, start = job.group, span[0]
    if job.artifact is None:
        text = f"timing {group.label}, process {job.process + 1} of {config.processes}"
    else:
        text = f"memory and cold start of {Path(group.artifacts[job.artifact].path).name}"

    def tell(event: Json) -> None:
        share = 0.1 + 0.1 * event.get("fraction", 0.0)
        if not event.get("warmup", True):
            share = 0.2 + 0.8 * event["fraction"]
        if on_progress is not None:
            fraction = start + span[1] * (share if event.get("event") == "progress" else 0.0)
            on_progress(BenchProgress(fraction=min(fraction, 1.0), text=text))

    timeout_s = ALLOWANCE_S + 3 * (config.max_seconds + config.warmup_seconds)
    try:
        if job.artifact is None:
            request = _time_request(group, job.process)
            group.timed.append(device.call("time", request, timeout_s=timeout_s, on_event=tell))
        else:
            request = _memory_request(group, job.artifact)
            result = device.call("memory", request, timeout_s=timeout_s, on_event=tell)
            group.cold[job.artifact].append(result)
    except DeviceError as error:
        group.error = error


def _time_request(group: Group, process: int) -> Json:
    config = group.config
    timed = [*group.artifacts, group.artifacts[group.baseline]]
    return {
        "artifacts": [_described(artifact, index) for index, artifact in enumerate(timed)],
        "threads": group.threads,
        "seed": group.seed * 1009 + process,
        "min_runs": config.min_runs,
        "min_seconds": config.min_seconds,
        "max_seconds": config.max_seconds,
        "warmup_runs": config.warmup_runs,
        "warmup_seconds": config.warmup_seconds,
        "keep_runs": max(KEEP_ROUNDS, config.min_runs),
    }


def _memory_request(group: Group, index: int) -> Json:
    return {
        "artifact": _described(group.artifacts[index], index),
        "threads": group.threads,
        "seed": group.seed,
    }


def _described(artifact: Artifact, index: int) -> Json:
    return {"id": str(index), "path": artifact.path, "inputs": [spec.as_dict() for spec in artifact.inputs]}
