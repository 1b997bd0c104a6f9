"""The agent: opening artifacts, timing loops, and the stand-alone program."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.devices import agent
from edgeprune.devices.agent import AgentError, open_runtime
from tests.tiny_networks import (
    write_dense_onnx,
    write_difference_onnx,
    write_lookup_onnx,
    write_negations_tflite,
)

TIMING = {
    "version": 1,
    "threads": 1,
    "seed": 3,
    "min_runs": 20,
    "min_seconds": 0.0,
    "max_seconds": 5.0,
    "warmup_runs": 2,
    "warmup_seconds": 0.0,
    "keep_runs": 100,
}


def run_agent(command: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the file as a program and return its result."""
    path = folder / "request.json"
    path.write_text(json.dumps({"version": 1, **request}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, agent.__file__, command, str(path)], capture_output=True, text=True, timeout=120
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("EDGEPRUNE_RESULT "), done.stderr
    result: dict[str, Any] = json.loads(last.removeprefix("EDGEPRUNE_RESULT "))
    assert done.returncode == (1 if "error" in result else 0)
    return result


def test_onnx_inputs_keep_the_order_of_the_graph(tmp_path: Path) -> None:
    opened = open_runtime(str(write_difference_onnx(tmp_path / "a.onnx")))
    assert [name for name, _, _ in opened.inputs] == ["zeta", "alpha"]
    assert opened.inputs[0][1:] == ((None, 3), "float32")
    five, two = np.full((2, 3), 5, np.float32), np.full((2, 3), 2, np.float32)
    np.testing.assert_array_equal(opened.run([five, two])[0], five - two)


@pytest.mark.parametrize("prefix", ["args_", "x"])
def test_numbered_tflite_names_are_put_in_the_order_of_their_numbers(tmp_path: Path, prefix: str) -> None:
    names = [f"{prefix}{index}" for index in range(12)]
    opened = open_runtime(str(write_negations_tflite(tmp_path / "a.tflite", names)))
    assert [name for name, _, _ in opened.inputs] == names
    arrays = [np.full((1, index + 1), index, np.float32) for index in range(12)]
    for index, output in enumerate(opened.run(arrays)):
        np.testing.assert_array_equal(output, -arrays[index])


def test_named_tflite_inputs_keep_the_order_of_the_file(tmp_path: Path) -> None:
    opened = open_runtime(str(write_negations_tflite(tmp_path / "a.tflite", ["right", "left"])))
    assert [(name, shape) for name, shape, _ in opened.inputs] == [("right", (1, 1)), ("left", (1, 2))]
    assert [name for name, _, _ in opened.outputs] == ["oright", "oleft"]


def test_outputs_are_copies(tmp_path: Path) -> None:
    opened = open_runtime(str(write_negations_tflite(tmp_path / "a.tflite", ["a"])))
    first = opened.run([np.ones((1, 1), np.float32)])[0]
    opened.run([np.full((1, 1), 7, np.float32)])
    assert first.tolist() == [[-1.0]]


def test_several_threads_give_the_same_outputs(tmp_path: Path) -> None:
    path = str(write_dense_onnx(tmp_path / "a.onnx", features=64, layers=3))
    array = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    one, two = (open_runtime(path, threads).run([array])[0] for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.ones((1, 3), np.float32)], "1 inputs given, the file has 2"),
        ([np.ones((1, 4), np.float32), np.ones((1, 3), np.float32)], r"zeta has shape \(1, 4\)"),
        ([np.ones(3, np.float32), np.ones((1, 3), np.float32)], r"zeta has shape \(3,\)"),
        ([np.ones((1, 3), np.float64), np.ones((1, 3), np.float32)], "zeta is float64, the file has float32"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, arrays: list[np.ndarray], message: str) -> None:
    opened = open_runtime(str(write_difference_onnx(tmp_path / "a.onnx")))
    with pytest.raises(AgentError, match=message):
        opened.run(arrays)


def test_a_tflite_file_takes_its_own_batch_only(tmp_path: Path) -> None:
    opened = open_runtime(str(write_negations_tflite(tmp_path / "a.tflite", ["a"])))
    with pytest.raises(AgentError, match=r"shape \(2, 1\), the file has \(1, 1\)"):
        opened.run([np.ones((2, 1), np.float32)])


@pytest.mark.parametrize("name", ["broken.onnx", "broken.tflite"])
def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a network" * 20)
    with pytest.raises(AgentError, match=f"{name} cannot be opened") as caught:
        open_runtime(str(tmp_path / name))
    assert caught.value.kind == "artifact"
    assert caught.value.fix is not None


def test_unknown_suffix_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"none of \.onnx, \.ort and \.tflite"):
        open_runtime(str(tmp_path / "network.bin"))
    with pytest.raises(AgentError, match=r"cannot read .*none.onnx: No such file"):
        open_runtime(str(tmp_path / "none.onnx"))


@pytest.mark.parametrize(("name", "words"), [("a.onnx", "pip install onnxruntime"), ("a.tflite", "ai-edge-litert")])
def test_a_missing_runtime_names_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / name).write_bytes(b"content")
    for module in ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AgentError, match=r"no .*untime") as caught:
        open_runtime(str(tmp_path / name))
    assert caught.value.kind == "runtime"
    assert words in str(caught.value.fix)


def test_tflite_runtime_is_taken_where_litert_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("tflite_runtime.interpreter")
    stand_in.Interpreter = object  # type: ignore[attr-defined]
    package = types.ModuleType("tflite_runtime")
    package.__version__ = "2.14.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", stand_in)
    assert agent._import_tflite() == (stand_in, "tflite_runtime", "2.14.0")


def test_the_file_is_python_3_9_and_stands_alone() -> None:
    tree = ast.parse(Path(agent.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


class Recorder:
    """Stands in for an open artifact and writes down when it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def prepare(self, arrays: list[np.ndarray]) -> None:
        assert arrays == []

    def invoke(self) -> None:
        self.log.append(self.name)


def recorded(limits: tuple[int, float, float, int]) -> tuple[dict[str, Any], list[str]]:
    log: list[str] = []
    files = [agent._Opened(name, Recorder(name, log), [], 0.0, 0.0) for name in "abc"]
    return agent._rounds(files, agent.random.Random(1), 1, limits), log


def test_every_round_runs_each_artifact_once_in_changing_order() -> None:
    result, log = recorded((40, 0.0, 10.0, 1000))
    rounds = ["".join(log[start : start + 3]) for start in range(0, len(log), 3)]
    assert result["rounds"] == len(rounds) == 40
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 3
    assert [len(samples["wall_ns"]) for samples in result["samples"]] == [40, 40, 40]


def test_the_cap_ends_the_rounds_but_not_before_one() -> None:
    result, _ = recorded((10**9, 0.0, 0.0, 1000))
    assert result["rounds"] == 1
    result, _ = recorded((10**9, 10**9, 0.02, 10**9))
    assert result["rounds"] > 1


@pytest.mark.parametrize("rounds", [5, 16, 40, 333])
def test_many_rounds_are_thinned_evenly(rounds: int) -> None:
    result, _ = recorded((rounds, 0.0, 10.0, 8))
    kept = len(result["samples"][0]["cpu_ns"])
    assert kept < 16
    assert kept == -(-rounds // result["stride"])


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float16", "int64", "int32", "uint8", "bool"]),
    low=st.integers(0, 5),
    width=st.integers(0, 200),
    shape=st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=3),
)
def test_random_inputs_fit_shape_dtype_and_range(dtype: str, low: int, width: int, shape: list[int | None]) -> None:
    spec = {"shape": [None] * len(shape), "dtype": dtype, "low": float(low), "high": float(low + width)}
    (array,) = agent.random_inputs([("x", tuple(shape), dtype)], [spec], seed=width)
    assert array.dtype.name == dtype
    assert array.shape == tuple(size or 1 for size in shape)
    if dtype != "bool":
        assert low <= float(array.min())
        assert float(array.max()) <= low + width


def test_free_sizes_come_from_the_request() -> None:
    spec = {"shape": [2, 7], "low": 0, "high": 1}
    (array,) = agent.random_inputs([("x", (None, 7), "float32")], [spec], seed=0)
    assert array.shape == (2, 7)


def test_time_returns_raw_samples_of_every_artifact(tmp_path: Path) -> None:
    path = str(write_dense_onnx(tmp_path / "a.onnx"))
    artifacts = [{"id": name, "path": path, "inputs": []} for name in ("one", "two", "three")]
    result = run_agent("time", {**TIMING, "artifacts": artifacts}, tmp_path)
    assert [entry["id"] for entry in result["artifacts"]] == ["one", "two", "three"]
    for entry in result["artifacts"]:
        assert len(entry["wall_ns"]) == len(entry["cpu_ns"]) == 20
        assert min(entry["wall_ns"]) > 0
        assert entry["load_s"] > 0
    assert result["runtime"]["name"] == "onnxruntime"
    assert result["env"]["before"].keys() == result["env"]["after"].keys()


def test_one_process_times_one_runtime_only(tmp_path: Path) -> None:
    paths = [write_dense_onnx(tmp_path / "a.onnx"), write_negations_tflite(tmp_path / "b.tflite", ["a"])]
    artifacts = [{"id": path.name, "path": str(path), "inputs": []} for path in paths]
    result = run_agent("time", {**TIMING, "artifacts": artifacts}, tmp_path)
    assert result["error"]["message"] == "one process times artifacts of one runtime"


def test_inputs_out_of_range_are_an_error_with_the_shapes(tmp_path: Path) -> None:
    spec = {"shape": [1, 4], "dtype": "int64", "low": 90.0, "high": 99.0}
    artifact = {"id": "a", "path": str(write_lookup_onnx(tmp_path / "a.onnx")), "inputs": [spec]}
    result = run_agent("memory", {"artifact": artifact, "threads": 1, "seed": 0}, tmp_path)
    assert "fails on random inputs (tokens (1, 4))" in result["error"]["message"]
    spec.update(low=0.0, high=9.0)
    result = run_agent("memory", {"artifact": artifact, "threads": 1, "seed": 0}, tmp_path)
    assert "error" not in result


def test_memory_counts_what_the_network_needs(tmp_path: Path) -> None:
    path = write_dense_onnx(tmp_path / "large.onnx", features=2000)  # 16 MB of weights
    artifact = {"id": "a", "path": str(path), "inputs": []}
    result = run_agent("memory", {"artifact": artifact, "threads": 1, "seed": 0}, tmp_path)
    assert result["peak_rss_bytes"] - result["rss_before_bytes"] > 15e6
    assert min(result["import_s"], result["load_s"], result["first_s"]) > 0


def test_facts_name_both_runtimes_and_leave_the_unknown_null(tmp_path: Path) -> None:
    facts = run_agent("facts", {}, tmp_path)
    found = {entry["name"]: entry for entry in facts["runtimes"]}
    assert found["onnxruntime"]["error"] is None
    assert found["tflite"]["package"] == "ai_edge_litert"
    assert facts["cores"] >= 1
    assert len(facts["id"]) == 12
    assert facts["emulated"] is False
    assert facts["env"]["governor"] != ""


def test_a_runtime_that_imports_but_opens_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("compiled for numpy 1")

    monkeypatch.setattr(agent, "TfliteFile", fail)
    tflite = next(entry for entry in agent._probe_runtimes() if entry["name"] == "tflite")
    assert tflite["error"] == "compiled for numpy 1"
    assert "pip install" in tflite["fix"]


def test_environment_reads_the_kernel_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "/sys/devices/system/cpu/cpu10/cpufreq/scaling_cur_freq": "1800000\n",
        "/sys/class/thermal/thermal_zone0/temp": "48312\n",
        "/proc/stat": "cpu  10 0 10 70 0 0 0 10 0 0\ncpu0 1 1 1\n",
    }
    monkeypatch.setattr(agent, "_read", files.get)
    monkeypatch.setattr(agent.glob, "glob", lambda pattern: [p for p in files if agent_glob_fits(pattern, p)])
    monkeypatch.setattr(agent.shutil, "which", lambda name: f"/usr/bin/{name}")
    answer = subprocess.CompletedProcess([], 0, stdout="throttled=0x50005\n")
    monkeypatch.setattr(agent.subprocess, "run", lambda *_, **__: answer)
    environment = agent.environment()
    assert environment["governor"] == "ondemand"
    assert environment["frequency_hz"] == [1.5e9, 1.8e9]
    assert environment["temperature_c"] == [pytest.approx(48.312)]
    assert environment["throttled"] == "0x50005"
    assert (environment["steal_ticks"], environment["total_ticks"]) == (10, 100)


def agent_glob_fits(pattern: str, path: str) -> bool:
    import fnmatch

    return fnmatch.fnmatch(path, pattern)


@pytest.mark.parametrize(
    ("files", "emulated"),
    [
        ({"/proc/cpuinfo": "vendor_id : GenuineIntel\n"}, True),
        ({"/proc/cpuinfo": "CPU implementer : 0x41\n", "/proc/device-tree/model": "Raspberry Pi 4 Model B"}, False),
    ],
)
def test_arm_code_on_another_processor_is_emulated(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], emulated: bool
) -> None:
    monkeypatch.setattr(agent, "_read", files.get)
    monkeypatch.setattr(agent.platform, "machine", lambda: "aarch64")
    assert agent.facts({"runtimes": False})["emulated"] is emulated


def test_a_request_can_come_on_stdin() -> None:
    done = subprocess.run(
        [sys.executable, agent.__file__, "facts", "-"],
        input='{"version": 1, "runtimes": false}\n',
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert '"runtimes": null' in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}'])
def test_a_bad_request_is_an_error_result(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.json").write_text(text, encoding="utf-8")
    assert agent.main(["facts", str(tmp_path / "request.json")]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("EDGEPRUNE_RESULT "))
    assert result["error"]["kind"] == "request"


def test_an_unknown_command_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.main(["fly"]) == 2
    assert "usage: agent.py facts|time|memory|outputs" in capsys.readouterr().err


def test_the_watchdog_ends_the_agent_when_stdin_closes(tmp_path: Path) -> None:
    artifact = {"id": "a", "path": str(write_dense_onnx(tmp_path / "a.onnx")), "inputs": []}
    request = {**TIMING, "artifacts": [artifact], "min_seconds": 300.0, "max_seconds": 300.0, "watchdog": True}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, agent.__file__, "time", str(tmp_path / "request.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=60) == 4
