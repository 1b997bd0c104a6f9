"""Devices: the local transport, the agent behind it, and everything that can go wrong between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeprune.devices import Device, connect
from edgeprune.devices.local import LocalTransport
from edgeprune.errors import DeviceError
from edgeprune.targets import Target, find_target
from tests.tiny_networks import write_dense_onnx, write_difference_onnx, write_negations_tflite

HOST = find_target("host")


def fake_device(tmp_path: Path, program: str, target: Target = HOST) -> Device:
    """Return a device whose agent is the given program."""
    path = tmp_path / "fake_agent.py"
    path.write_text(textwrap.dedent(program), encoding="utf-8")
    return Device(target, LocalTransport(), agent=path)


def failure(device: Device, timeout_s: float = 60.0) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        device.call("facts", {}, timeout_s=timeout_s)
    assert caught.value.message.startswith("host: ")
    assert caught.value.where == "agent facts"
    return caught.value


def gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody waited for is a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while not gone(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_host_tells_its_facts_once() -> None:
    device = connect(HOST)
    facts = device.facts()
    assert facts["cores"] >= 1
    assert device.facts() is facts


@pytest.mark.parametrize("name", ["raspberry-pi-4", "android-arm64"])
def test_other_transports_say_what_is_supported(name: str) -> None:
    with pytest.raises(DeviceError, match=f"{name}: connect failed") as caught:
        connect(find_target(name))
    assert "--target host" in str(caught.value.fix)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "run failed: signal 9 (SIGKILL) ended the agent"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "run failed: signal 11 (SIGSEGV)"),
        ("print('hello')", "run failed: the agent ended with exit status 0 and no result"),
        ("import sys; sys.exit('no numpy here')", "exit status 1 and no result; stderr ends with: no numpy here"),
        ("print('EDGEPRUNE_RESULT {\"agent\": 1, ')", "parse failed: the agent's result is not JSON"),
        ("print('EDGEPRUNE_RESULT {\"agent\": 2}')", "parse failed: the result is not of agent version 1"),
        ("print('EDGEPRUNE_RESULT [1]')", "parse failed: the result is not of agent version 1"),
        ("import sys; print('EDGEPRUNE_RESULT {\"agent\": 1}'); sys.exit(3)", "run failed: exit status 3 after"),
        (
            "import sys; sys.stdout.buffer.write(bytes(range(256)) * 50)",
            "run failed: the agent ended with exit status 0",
        ),
    ],
)
def test_every_broken_agent_is_an_error_that_names_the_step(tmp_path: Path, program: str, message: str) -> None:
    assert message in failure(fake_device(tmp_path, program)).message


def test_a_killed_agent_points_at_memory_and_a_crashed_one_at_the_file(tmp_path: Path) -> None:
    for name, words in (("SIGKILL", "out of memory"), ("SIGSEGV", "crashed on this file"), ("SIGTERM", None)):
        fix = failure(fake_device(tmp_path, f"import os, signal; os.kill(os.getpid(), signal.{name})")).fix
        assert fix is None if words is None else words in str(fix)


def test_an_interpreter_that_does_not_exist_is_a_failed_connection() -> None:
    device = Device(HOST, LocalTransport(), python="/nowhere/python")
    assert "connect failed: cannot start /nowhere/python" in failure(device).message


def test_a_hanging_agent_is_ended_with_its_children(tmp_path: Path) -> None:
    program = f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open({str(tmp_path / "pids")!r}, "w") as file:
            file.write(f"{{os.getpid()}} {{child.pid}}")
        print("stuck in the driver", file=sys.stderr, flush=True)
        time.sleep(600)
    """
    error = failure(fake_device(tmp_path, program), timeout_s=6.0)
    assert "run failed: no end after 6 s; last line of stderr: stuck in the driver" in error.message
    for pid in (tmp_path / "pids").read_text().split():
        assert wait_until_gone(int(pid))


def test_an_agent_that_closes_stdout_and_stays_is_ended(tmp_path: Path) -> None:
    program = "import os, time; os.close(1); time.sleep(600)"
    assert "no end after 2 s" in failure(fake_device(tmp_path, program), timeout_s=2.0).message


def test_events_arrive_and_foreign_lines_do_not(tmp_path: Path) -> None:
    program = """
        print('INFO: a runtime talks')
        print('{"agent": 1, "event": "progress", "fraction": 0.5}')
        print('{"agent": 7, "event": "progress"}')
        print('[1, 2]')
        print('EDGEPRUNE_RESULT {"agent": 1, "answer": 42}')
    """
    events: list[dict[str, Any]] = []
    result = fake_device(tmp_path, program).call("facts", {}, timeout_s=60.0, on_event=events.append)
    assert result["answer"] == 42
    assert events == [{"agent": 1, "event": "progress", "fraction": 0.5}]


def test_a_file_that_does_not_exist_is_a_failed_push(tmp_path: Path) -> None:
    artifact = {"id": "a", "path": str(tmp_path / "none.onnx"), "inputs": []}
    with pytest.raises(DeviceError, match=r"host: push failed: there is no file .*none\.onnx"):
        connect(HOST).call("memory", {"artifact": artifact, "threads": 1, "seed": 0}, timeout_s=60.0)


@pytest.mark.parametrize("name", ["broken.onnx", "broken.tflite"])
def test_a_broken_file_is_a_failed_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a network" * 20)
    artifact = {"id": "a", "path": str(tmp_path / name), "inputs": []}
    with pytest.raises(DeviceError, match=rf"host: run failed: .*{name} cannot be opened") as caught:
        connect(HOST).call("memory", {"artifact": artifact, "threads": 1, "seed": 0}, timeout_s=60.0)
    assert caught.value.fix is not None


def test_a_missing_runtime_is_a_failed_run_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    artifact = {"id": "a", "path": str(write_dense_onnx(tmp_path / "a.onnx")), "inputs": []}
    with pytest.raises(DeviceError, match=r"host: run failed: no ONNX Runtime \(not here\)") as caught:
        connect(HOST).call("memory", {"artifact": artifact, "threads": 1, "seed": 0}, timeout_s=60.0)
    assert caught.value.fix == "python -m pip install onnxruntime"


def test_outputs_of_samples_come_from_one_interpreter(tmp_path: Path) -> None:
    path = write_difference_onnx(tmp_path / "a.onnx")
    samples = [[np.full((1, 3), v, np.float32), np.full((1, 3), 1, np.float32)] for v in (3.0, 5.0)]
    results = connect(HOST).outputs(path, samples)
    assert [[array.tolist() for array in outputs] for outputs in results] == [[[[2.0] * 3]], [[[4.0] * 3]]]


def test_outputs_of_a_tflite_file(tmp_path: Path) -> None:
    path = write_negations_tflite(tmp_path / "a.tflite", ["args_0", "args_1"])
    results = connect(HOST).outputs(path, [[np.ones((1, 1), np.float32), np.full((1, 2), 2, np.float32)]])
    assert [array.tolist() for array in results[0]] == [[[-1.0]], [[-2.0, -2.0]]]


def test_pull_copies_what_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    LocalTransport().pull(str(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    LocalTransport().pull(str(tmp_path / "a"), tmp_path / "a")
    with pytest.raises(DeviceError, match="pull failed"):
        LocalTransport().pull(str(tmp_path / "none"), tmp_path / "c")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_edgeprune_is_interrupted(tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C reaches this process only (the agent has its own group); after kill -9 the agent's watchdog acts."""
    network = write_dense_onnx(tmp_path / "a.onnx")
    program = f"""
        from edgeprune.devices import connect
        from edgeprune.targets import find_target
        artifact = {{"id": "a", "path": {str(network)!r}, "inputs": []}}
        request = dict(artifacts=[artifact], threads=1, seed=0, min_runs=1, min_seconds=300, max_seconds=300,
                       warmup_runs=0, warmup_seconds=0, keep_runs=100)
        connect(find_target("host")).call(
            "time", request, timeout_s=400, on_event=lambda event: print(event, flush=True)
        )
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        assert "start" in process.stdout.readline()
        children = [child.pid for child in psutil.Process(process.pid).children()]
        assert len(children) == 1
        os.kill(process.pid, how)
        process.wait(timeout=60)
        assert process.returncode != 0
        assert wait_until_gone(children[0])
