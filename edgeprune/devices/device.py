"""A machine that artifacts run on: the agent program behind a transport.

Owns sending requests to the agent, reading its result, and turning everything that goes wrong into a
DeviceError that names the step (connect, push, run, parse, pull). It knows nothing about what is measured.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.devices.local import Finished, LocalTransport, Transport
from edgeprune.errors import DeviceError
from edgeprune.targets import Target
from edgeprune.values import Json

if TYPE_CHECKING:
    import numpy as np

AGENT = Path(__file__).with_name("agent.py")
AGENT_VERSION = 1
SENTINEL = "EDGEPRUNE_RESULT "


class Device:
    """A reachable machine. Every call is one fresh process there.

    Attributes:
        target: The profile it was reached by.
    """

    def __init__(
        self, target: Target, transport: Transport, *, python: str = sys.executable, agent: Path = AGENT
    ) -> None:
        self.target = target
        self._transport = transport
        self._python = python
        self._agent = agent
        self._facts: Json | None = None

    def facts(self) -> Json:
        """Return what the machine says of itself; None where it does not tell. Asked once per device."""
        if self._facts is None:
            self._facts = self.call("facts", {}, timeout_s=120.0)
        return self._facts

    def call(
        self,
        command: str,
        request: Json,
        *,
        timeout_s: float,
        on_event: Callable[[Json], None] | None = None,
    ) -> Json:
        """Run one agent command in a fresh process and return its result.

        Args:
            command: `facts`, `time`, `memory` or `outputs`.
            request: The command's arguments. Files under `artifacts` and `artifact` are local paths; they are
                pushed first.
            timeout_s: Longest time the process may take.
            on_event: Called with each message the agent sends before its result.

        Raises:
            DeviceError: A file is missing, the process cannot be started, ends without a result, takes too
                long or reports an error. The message names the target and the step.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                path = Path(folder) / "request.json"
                path.write_text(json.dumps({"version": 1, "watchdog": True, **self._pushed(request)}), encoding="utf-8")
                argv = [self._python, self._transport.push(self._agent), command, self._transport.push(path)]
                return self._run(argv, timeout_s, on_event)
        except DeviceError as error:
            place = error.where or f"agent {command}"
            raise DeviceError(f"{self.target.name}: {error.message}", fix=error.fix, where=place) from error

    def outputs(
        self,
        path: Path,
        samples: Sequence[Sequence[np.ndarray]],
        *,
        threads: int = 1,
        timeout_s: float = 600.0,
    ) -> list[list[np.ndarray]]:
        """Run an artifact on samples, all in one interpreter of a fresh process.

        Args:
            path: A .onnx or .tflite file.
            samples: One list of input arrays per sample, in the order of the exported network.

        Returns:
            One list of output arrays per sample.

        Raises:
            DeviceError: As `call`.
        """
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            named = {f"s{s}_i{i}": array for s, arrays in enumerate(samples) for i, array in enumerate(arrays)}
            np.savez(inputs, **named)  # type: ignore[arg-type]  # numpy types the keywords as allow_pickle
            request = {
                "artifact": {"id": path.name, "path": str(path)},
                "inputs_npz": self._transport.push(inputs),
                "outputs_npz": str(outputs),
                "threads": threads,
            }
            result = self.call("outputs", request, timeout_s=timeout_s)
            self._transport.pull(str(outputs), outputs)
            with np.load(outputs, allow_pickle=False) as data:
                count = len(result["outputs"])
                return [[data[f"s{s}_o{o}"] for o in range(count)] for s in range(len(samples))]

    def _pushed(self, request: Json) -> Json:
        pushed = dict(request)
        if "artifacts" in request:
            pushed["artifacts"] = [self._push_artifact(artifact) for artifact in request["artifacts"]]
        if "artifact" in request:
            pushed["artifact"] = self._push_artifact(request["artifact"])
        return pushed

    def _push_artifact(self, artifact: Json) -> Json:
        return {**artifact, "path": self._transport.push(Path(artifact["path"]))}

    def _run(self, argv: Sequence[str], timeout_s: float, on_event: Callable[[Json], None] | None) -> Json:
        results: list[str] = []

        def take(line: str) -> None:
            if line.startswith(SENTINEL):
                results.append(line[len(SENTINEL) :])
            elif on_event is not None and (event := _event(line)) is not None:
                on_event(event)

        finished = self._transport.run(argv, timeout_s=timeout_s, on_line=take)
        if not results:
            raise DeviceError(_no_result(finished), fix=_no_result_fix(finished))
        return _parse(results[-1], finished)


def connect(target: Target) -> Device:
    """Return the device that a target profile names. Nothing runs on it yet.

    Raises:
        DeviceError: The target's transport is not available in this version.
    """
    if target.transport != "local":
        raise DeviceError(
            f"{target.name}: connect failed: it is reached over {target.transport}, and this version of "
            "edgeprune measures on this machine only",
            fix="use --target host; its ranking may differ from the device's",
        )
    return Device(target, LocalTransport())


def _event(line: str) -> Json | None:
    """Return the agent's message in a line; None for what a runtime printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.get("agent") == AGENT_VERSION else None


def _no_result(finished: Finished) -> str:
    if finished.returncode < 0:
        number = -finished.returncode
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        how = f"signal {number} ({name}) ended the agent before its result"
    else:
        how = f"the agent ended with exit status {finished.returncode} and no result"
    last = [line for line in finished.stderr_tail.splitlines() if line.strip()]
    return f"run failed: {how}" + (f"; stderr ends with: {' | '.join(last[-3:])}" if last else "")


def _no_result_fix(finished: Finished) -> str | None:
    if finished.returncode == -signal.SIGKILL:
        return "the machine may be out of memory: close other programs, or use a smaller input"
    if finished.returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL):
        return "the runtime crashed on this file: export it again, or try another version of the runtime"
    return None


def _parse(text: str, finished: Finished) -> Json:
    try:
        result = json.loads(text)
    except ValueError as error:
        raise DeviceError(f"parse failed: the agent's result is not JSON ({error}): {text[:80]!r}") from error
    if not isinstance(result, dict) or result.get("agent") != AGENT_VERSION:
        raise DeviceError(f"parse failed: the result is not of agent version {AGENT_VERSION}: {text[:80]!r}")
    if "error" in result:
        problem = result["error"]
        raise DeviceError(f"run failed: {problem['message']}", fix=problem["fix"])
    if finished.returncode != 0:
        raise DeviceError(f"run failed: exit status {finished.returncode} after the result")
    return result
