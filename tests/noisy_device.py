"""A device that answers at once with invented timings, noisy the way a shared machine is noisy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices import Device
from edgeprune.devices.local import LocalTransport
from edgeprune.errors import DeviceError
from edgeprune.targets import find_target

QUIET: dict[str, Any] = {
    "governor": None,
    "frequency_hz": None,
    "temperature_c": None,
    "throttled": None,
    "loadavg": [0.5, 0.5, 0.5],
    "steal_ticks": 0,
    "total_ticks": 100,
}


class NoisyDevice(Device):
    """Invents samples: slow phases that hit all artifacts, layouts that differ per process, interruptions.

    Attributes:
        seconds: Time of one inference by file name.
        layout: Standard deviation of the difference between two processes (and two artifacts in one).
        interrupted: Share of the runs that lose the core for 1 to 20 ms.
        restless: Size of the slow phases, 0 for none.
        broken: File names that end the process.
        calls: The requests, in order.
    """

    def __init__(
        self,
        seconds: Mapping[str, float],
        *,
        seed: int = 0,
        layout: float = 0.01,
        interrupted: float = 0.15,
        restless: float = 1.0,
        rounds: int = 80,
        broken: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
        env: tuple[Mapping[str, Any], Mapping[str, Any]] = (QUIET, QUIET),
    ) -> None:
        super().__init__(find_target("host"), LocalTransport())
        self.seconds = seconds
        self.layout = layout
        self.interrupted = interrupted
        self.restless = restless
        self.rounds = rounds
        self.broken = broken
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._rng = np.random.default_rng(seed)
        self._told = {"id": "device", "cpu": "pretend", "usable_cores": 2, "emulated": False, **(facts or {})}
        self._env = env

    def facts(self) -> dict[str, Any]:
        return self._told

    def call(
        self,
        command: str,
        request: dict[str, Any],
        *,
        timeout_s: float,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        self.calls.append((command, request))
        if on_event is not None:
            on_event({"event": "start", "command": command})
        names = [Path(a["path"]).name for a in request.get("artifacts", [request.get("artifact")])]
        for name in names:
            if name in self.broken:
                raise DeviceError(f"host: run failed: {name} cannot be opened", fix="export it again")
        if on_event is not None:
            on_event({"event": "progress", "fraction": 0.5, "warmup": False})
        runtime = {"name": "onnxruntime" if names[0].endswith(".onnx") else "tflite", "version": "1", "package": "p"}
        runtime["threads"] = request["threads"]
        return self._timed(names, runtime) if command == "time" else self._cold(runtime)

    def _cold(self, runtime: dict[str, Any]) -> dict[str, Any]:
        times = {"import_s": 0.1, "load_s": 0.01, "first_s": 0.002}
        return {"runtime": runtime, **times, "rss_before_bytes": 50_000_000, "peak_rss_bytes": 60_000_000}

    def _timed(self, names: list[str], runtime: dict[str, Any]) -> dict[str, Any]:
        rng, rounds = self._rng, self.rounds
        drift = np.cumsum(rng.normal(0, 0.2 / np.sqrt(rounds), rounds)) * self.restless
        contention = np.repeat(rng.random(rounds // 20 + 1) < 0.3, 20)[:rounds] * 0.25 * self.restless
        artifacts = []
        for index, name in enumerate(names):
            own = rng.normal(0, self.layout) + np.abs(rng.normal(0, 0.03, rounds))
            cpu = self.seconds[name] * np.exp(drift + contention + own)
            wall = cpu * 1.001 + (rng.random(rounds) < self.interrupted) * rng.uniform(1e-3, 2e-2, rounds)
            times = {"wall_ns": (wall * 1e9).astype(int).tolist(), "cpu_ns": (cpu * 1e9).astype(int).tolist()}
            artifacts.append({"id": str(index), "load_s": 0.01, "first_s": 0.01, **times, "switches": [0] * rounds})
        before, after = self._env
        return {
            "runtime": runtime,
            "import_s": 0.1,
            "artifacts": artifacts,
            "rounds": rounds,
            "stride": 1,
            "env": {"before": dict(before), "after": dict(after)},
            "affinity": [0, 1],
        }
