"""The agent: one file that runs artifacts on the machine that is measured.

    python agent.py facts | time | memory | outputs  [REQUEST.json | -]

Owns opening a .onnx or .tflite file in its runtime, running and timing it, and reading what the machine says
of itself. It needs the standard library, numpy and one runtime, imports nothing of edgeprune and keeps to
Python 3.9, so that it can be copied to a device as it is. It knows nothing about statistics or verdicts.

The request is one JSON object, in a file or in the first line of stdin. Output is one JSON object per line;
the last line is `EDGEPRUNE_RESULT {json}`. With `"watchdog": true` the agent ends when stdin is closed, so
that it does not outlive whoever started it. It installs nothing and writes only the file it is told to write.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import glob
import hashlib
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

AGENT_VERSION = 1
SENTINEL = "EDGEPRUNE_RESULT"
COLD_RUNS = 3  # inferences in a memory measurement
PROGRESS_EVERY_S = 0.5
TensorInfo = Tuple[str, Tuple[Optional[int], ...], str]
_Limits = Tuple[int, float, float, int]  # least rounds, least seconds, most seconds, rounds kept

PIP_LINES = {
    ".onnx": "python -m pip install onnxruntime",
    ".ort": "python -m pip install onnxruntime",
    ".tflite": "python -m pip install ai-edge-litert   (32-bit ARM: tflite-runtime 'numpy<2')",
}
ONNX_DTYPES = {"float": "float32", "double": "float64"}

# Networks of one negation: a runtime counts as present only when it opens one.
PROBE_ONNX = "CAcSADoyCgsKAXgSAXkiA05lZxIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
PROBE_TFLITE = (
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA0AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAMAAgABAAM"
    "AAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAEAAAABAAAAAQAAAAAA"
    "AAACAAAAMAAAAAQAAADk////CAAAAAwAAAABAAAAeQAAAAEAAAABAAAADAAMAAgAAAAAAAQADAAAAAgAAAAMAAAAAQAAAHgAAAABAAAAAQAA"
    "AAEAAAAQAAAADAAMAAsAAAAAAAQADAAAADsAAAAAAAA7"
)


class AgentError(Exception):
    """What the agent could not do. `kind` is a short word for programs, `fix` one command or edit."""

    def __init__(self, kind: str, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.fix = fix


class OnnxFile:
    """A .onnx file open in ONNX Runtime, all graph optimisations on, CPU only."""

    name = "onnxruntime"

    def __init__(self, content: Any, threads: int, reference: bool = False) -> None:
        ort = _import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if reference:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Idle threads of one session must not take the cores from the next one that is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.package, self.version = "onnxruntime", str(ort.__version__)
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self.inputs = [_onnx_info(value) for value in self._session.get_inputs()]
        self.outputs = [_onnx_info(value) for value in self._session.get_outputs()]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs given in the order of `inputs`."""
        checked = check_arrays(self.inputs, arrays)
        feeds = {info[0]: array for info, array in zip(self.inputs, checked)}
        return [np.asarray(value) for value in self._session.run(None, feeds)]

    def prepare(self, arrays: Sequence[np.ndarray]) -> None:
        """Bind inputs, so that `invoke` measures the network and not the copies."""
        self._bound = check_arrays(self.inputs, arrays)  # kept alive: the binding only points at them
        for info, array in zip(self.inputs, self._bound):
            self._binding.bind_cpu_input(info[0], array)
        for info in self.outputs:
            self._binding.bind_output(info[0], "cpu")

    def invoke(self) -> None:
        """Run once on the bound inputs."""
        self._session.run_with_iobinding(self._binding)


class TfliteFile:
    """A .tflite file open in LiteRT or tflite-runtime, XNNPACK on where the runtime has it."""

    name = "tflite"

    def __init__(self, path: str | None, threads: int, content: bytes | None = None, reference: bool = False) -> None:
        module, self.package, self.version = _import_tflite()
        source: dict[str, Any] = {"model_path": path} if content is None else {"model_content": content}
        if reference:
            source["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_REF
        self._interpreter = module.Interpreter(num_threads=threads, **source)
        self._interpreter.allocate_tensors()
        self._inputs = _signature_order(self._interpreter, "inputs")
        self._outputs = _signature_order(self._interpreter, "outputs")
        self.inputs = [_tflite_info(name, detail) for name, detail in self._inputs]
        self.outputs = [_tflite_info(name, detail) for name, detail in self._outputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return copies of the outputs for inputs given in the order of `inputs`; shapes are exact."""
        self.prepare(arrays)
        self.invoke()
        return [np.array(self._interpreter.get_tensor(detail["index"])) for _, detail in self._outputs]

    def prepare(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy inputs into the interpreter, so that `invoke` measures the network and not the copies."""
        for (_, detail), array in zip(self._inputs, check_arrays(self.inputs, arrays)):
            self._interpreter.set_tensor(detail["index"], array)

    def invoke(self) -> None:
        """Run once on the inputs that are in place."""
        self._interpreter.invoke()


def open_runtime(path: str, threads: int = 1, reference: bool = False) -> Any:
    """Open an artifact in the runtime that its suffix asks for.

    Args:
        path: A .onnx or .tflite file.
        threads: Threads of one inference.
        reference: Without optimisations, in the runtime's slow kernels that others are compared with.

    Returns:
        An object with `name`, `version`, `inputs` and `outputs` (lists of name, shape with None for a free
        size, numpy dtype name) and `run(arrays)`. Both lists are in the order of the exported network.

    Raises:
        AgentError: The suffix is unknown, the file is missing or not readable by the runtime, or no runtime
            is installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in PIP_LINES:
        raise AgentError("artifact", f"{path}: the suffix is none of .onnx, .ort and .tflite")
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise AgentError("artifact", f"cannot read {path}: {error.strerror}") from error
    try:
        return TfliteFile(path, threads, None, reference) if suffix == ".tflite" else OnnxFile(path, threads, reference)
    except AgentError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        fix = "export the file again; if another program reads it, the installed runtime is too old for it"
        message = f"{path} cannot be opened: {type(error).__name__}: {text}"
        raise AgentError("artifact", message, fix) from error


def check_arrays(infos: Sequence[TensorInfo], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return contiguous inputs after comparing count, shape and dtype with what the file asks for.

    Raises:
        AgentError: The message names the input and both shapes or dtypes.
    """
    if len(arrays) != len(infos):
        raise AgentError("inputs", f"{len(arrays)} inputs given, the file has {len(infos)}")
    checked = []
    for (name, shape, dtype), array in zip(infos, arrays):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        if not _fits(shape, array.shape):
            raise AgentError("inputs", f"input {name} has shape {array.shape}, the file has {shape}")
        if array.dtype.name != dtype:
            raise AgentError("inputs", f"input {name} is {array.dtype.name}, the file has {dtype}")
        checked.append(array)
    return checked


def _fits(wanted: Sequence[int | None], given: Sequence[int]) -> bool:
    return len(given) == len(wanted) and all(w is None or w == g for w, g in zip(wanted, given))


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise AgentError("runtime", f"no ONNX Runtime ({error})", PIP_LINES[".onnx"]) from error
    return onnxruntime


def _import_tflite() -> tuple[Any, str, str]:
    """Return the module of the interpreter, its package and the version."""
    problems = []
    for package in ("ai_edge_litert", "tflite_runtime"):
        try:
            return __import__(package + ".interpreter", fromlist=["Interpreter"]), package, _version(package)
        except ImportError as error:
            problems.append(f"{package}: {error}")
    raise AgentError("runtime", f"no TFLite runtime ({'; '.join(problems)})", PIP_LINES[".tflite"])


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return str(getattr(__import__(package), "__version__", "unknown"))


def _onnx_info(value: Any) -> TensorInfo:
    match = re.match(r"tensor\((\w+)\)", value.type)
    if match is None:
        raise AgentError("artifact", f"{value.name} is {value.type}, only tensors are supported")
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
    return value.name, shape, ONNX_DTYPES.get(match.group(1), match.group(1))


def _tflite_info(name: str, detail: dict[str, Any]) -> TensorInfo:
    return name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name


def _signature_order(interpreter: Any, side: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, tensor detail) in the order of the exported network.

    A signature lists its names alphabetically, so `args_10` comes before `args_2`: numbered names are put in
    the order of their numbers, all others in the order of the file's own list of inputs or outputs.
    """
    details = interpreter.get_input_details() if side == "inputs" else interpreter.get_output_details()
    plain = [(str(detail["name"]), detail) for detail in details]
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return plain
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    named = runner.get_input_details() if side == "inputs" else runner.get_output_details()
    numbers = [re.fullmatch(r"(.*?)(\d+)", name) for name in named]
    if all(numbers) and {int(m.group(2)) for m in numbers if m} == set(range(len(named))):
        return sorted(named.items(), key=lambda item: int(re.findall(r"\d+$", item[0])[0]))
    names = {detail["index"]: name for name, detail in named.items()}
    return [(names.get(detail["index"], name), detail) for name, detail in plain]


def time_artifacts(request: dict[str, Any]) -> dict[str, Any]:
    """Time several artifacts of one runtime, run by run in turn.

    Every round runs each artifact once, in an order drawn anew. Warm-up lasts `warmup_runs` rounds and
    `warmup_seconds`; then rounds go on until there are `min_runs` and `min_seconds` per artifact have passed,
    or `max_seconds` in all. Fewer than twice `keep_runs` rounds are kept: when there are more, every second
    one is dropped, whatever its value (`stride` says how many rounds stand behind a kept one).
    """
    threads, artifacts = int(request["threads"]), list(request["artifacts"])
    if len({os.path.splitext(artifact["path"])[1].lower() for artifact in artifacts}) != 1:
        raise AgentError("request", "one process times artifacts of one runtime")
    rng = random.Random(int(request["seed"]))
    before, import_s = environment(), _import_runtime(artifacts[0]["path"])
    opened = {}
    for index in rng.sample(range(len(artifacts)), len(artifacts)):
        opened[index] = _open(artifacts[index], threads, int(request["seed"]))
    files = [opened[index] for index in range(len(artifacts))]
    gc.collect()
    gc.disable()
    cap_s, min_s = float(request["max_seconds"]), float(request["min_seconds"]) * len(files)
    _rounds(files, rng, threads, (int(request["warmup_runs"]), float(request["warmup_seconds"]), cap_s, 1))
    timed = _rounds(files, rng, threads, (int(request["min_runs"]), min_s, cap_s, int(request["keep_runs"])))
    gc.enable()
    return {
        "runtime": _runtime_facts(files[0].file, threads),
        "import_s": import_s,
        "artifacts": [
            {"id": file.id, "load_s": file.load_s, "first_s": file.first_s, **samples}
            for file, samples in zip(files, timed["samples"])
        ],
        "rounds": timed["rounds"],
        "stride": timed["stride"],
        "env": {"before": before, "after": environment()},
        "affinity": _affinity(),
    }


@dataclass
class _Opened:
    """An artifact that was opened and ran once."""

    id: str
    file: Any
    arrays: list[np.ndarray]
    load_s: float
    first_s: float


def _open(artifact: dict[str, Any], threads: int, seed: int) -> _Opened:
    start = time.perf_counter()
    file = open_runtime(artifact["path"], threads)
    load_s = time.perf_counter() - start
    arrays = random_inputs(file.inputs, artifact["inputs"], seed)
    file.prepare(arrays)
    start = time.perf_counter()
    try:
        file.invoke()
    except Exception as error:
        shapes = ", ".join(f"{info[0]} {array.shape}" for info, array in zip(file.inputs, arrays))
        text = " ".join(str(error).split())[:500]
        raise AgentError("artifact", f"{artifact['path']} fails on random inputs ({shapes}): {text}") from error
    return _Opened(str(artifact["id"]), file, arrays, load_s, time.perf_counter() - start)


def _rounds(files: list[_Opened], rng: random.Random, threads: int, limits: _Limits) -> dict[str, Any]:
    """Run rounds until both minima are met or the cap has passed; return the kept samples in nanoseconds."""
    min_rounds, min_s, cap_s, keep = limits
    cpu_clock: Callable[[], int] = time.thread_time_ns if threads == 1 else time.process_time_ns
    wall_clock = time.perf_counter_ns
    kept: list[list[tuple[int, int, int]]] = [[] for _ in files]
    order, rounds, stride = list(range(len(files))), 0, 1
    start = told = wall_clock()
    while True:
        now = wall_clock()
        elapsed_s = (now - start) / 1e9
        if (rounds >= min_rounds and elapsed_s >= min_s) or (rounds > 0 and elapsed_s >= cap_s):
            break
        if now - told > PROGRESS_EVERY_S * 1e9:
            told = now
            left = max(1 - rounds / max(min_rounds, 1), 1 - elapsed_s / max(min_s, 1e-9))
            fraction = max(1 - left, elapsed_s / cap_s)
            _say({"event": "progress", "fraction": round(fraction, 3), "warmup": keep == 1})
        rng.shuffle(order)
        for index in order:
            file = files[index].file
            file.prepare(files[index].arrays)
            switched = 0 if threads == 1 else _switches()
            cpu = cpu_clock()
            wall = wall_clock()
            file.invoke()
            wall = wall_clock() - wall
            cpu = cpu_clock() - cpu
            if rounds % stride == 0:
                kept[index].append((wall, cpu, 0 if threads == 1 else _switches() - switched))
        rounds += 1
        if len(kept[0]) >= 2 * keep:
            kept, stride = [samples[::2] for samples in kept], stride * 2
    names = ("wall_ns", "cpu_ns", "switches")
    samples = [dict(zip(names, map(list, zip(*rows)))) for rows in kept]
    return {"samples": samples, "rounds": rounds, "stride": stride}


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def measure_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Open and run one artifact in this fresh process; return its peak memory and cold-start times."""
    artifact = request["artifact"]
    import_s = _import_runtime(artifact["path"])
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is now the present memory, so the import's own peak hides nothing
    before = peak_rss_bytes()
    opened = _open(artifact, int(request["threads"]), int(request["seed"]))
    for _ in range(COLD_RUNS - 1):
        opened.file.invoke()
    return {
        "runtime": _runtime_facts(opened.file, int(request["threads"])),
        "import_s": import_s,
        "load_s": opened.load_s,
        "first_s": opened.first_s,
        "rss_before_bytes": before,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def run_outputs(request: dict[str, Any]) -> dict[str, Any]:
    """Run one artifact on every sample of an .npz file, in one interpreter; write the outputs to another.

    Arrays are named `s{sample}_i{input}` in the file that is read, `s{sample}_o{output}` in the one written.
    """
    file = open_runtime(request["artifact"]["path"], int(request["threads"]))
    results = {}
    with np.load(request["inputs_npz"], allow_pickle=False) as data:
        samples = 1 + max(int(re.findall(r"^s(\d+)_i", name)[0]) for name in data.files)
        for sample in range(samples):
            arrays = [data[f"s{sample}_i{position}"] for position in range(len(file.inputs))]
            for position, array in enumerate(file.run(arrays)):
                results[f"s{sample}_o{position}"] = array
    np.savez(request["outputs_npz"], **results)
    names = [info[0] for info in file.outputs]
    return {"runtime": _runtime_facts(file, int(request["threads"])), "samples": samples, "outputs": names}


def random_inputs(infos: Sequence[TensorInfo], specs: Sequence[dict[str, Any]], seed: int) -> list[np.ndarray]:
    """Return random inputs in the range the request gives; a free size is the request's, or 1."""
    rng = np.random.default_rng(seed)
    arrays = []
    for position, (_, shape, dtype) in enumerate(infos):
        spec = specs[position] if position < len(specs) else {}
        asked = spec.get("shape") or [None] * len(shape)
        asked = asked if len(asked) == len(shape) else [None] * len(shape)
        sizes = tuple(have if have is not None else want or 1 for have, want in zip(shape, asked))
        low, high = spec.get("low", -1.0), spec.get("high", 1.0)
        if dtype == "bool":
            arrays.append(rng.integers(0, 2, sizes).astype(bool))
        elif dtype.startswith(("int", "uint")):
            low, high = (int(low), int(high)) if spec else (0, 1)
            arrays.append(rng.integers(low, max(high, low) + 1, sizes).astype(dtype))
        else:
            arrays.append(rng.uniform(low, max(high, low), sizes).astype(dtype))
    return arrays


def _import_runtime(path: str) -> float:
    start = time.perf_counter()
    if path.lower().endswith((".onnx", ".ort")):
        _import_onnxruntime()
    else:
        _import_tflite()
    return time.perf_counter() - start


def _runtime_facts(file: Any, threads: int) -> dict[str, Any]:
    return {"name": file.name, "version": file.version, "package": file.package, "threads": threads}


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """Return what is known about this machine; what cannot be read is None."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    machine = platform.machine()
    identity = _read("/etc/machine-id") or platform.node()
    frequencies = [_number(path, 1000.0) for path in _cpu_files("cpuinfo_max_freq")]
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release") or "", re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", cpuinfo, re.M)
    board = (_read("/proc/device-tree/model") or "").strip("\0\n ")
    x86_cpu = re.search("GenuineIntel|AuthenticAMD", cpuinfo) is not None
    under_qemu = x86_cpu or (not board and any(name.startswith("QEMU_") for name in os.environ))
    return {
        "id": hashlib.sha256(identity.strip().encode()).hexdigest()[:12],
        "machine": machine,
        "cpu": model.group(1).strip() if model else platform.processor() or None,
        "board": board or None,
        "cores": os.cpu_count(),
        "usable_cores": len(_affinity() or []) or None,
        "max_frequency_hz": frequencies or None,
        "memory_bytes": memory,
        "os": release.group(1) if release else platform.system(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "emulated": machine.startswith(("aarch64", "arm")) and under_qemu,
        "agent_version": AGENT_VERSION,
        "runtimes": _probe_runtimes() if request.get("runtimes", True) else None,
        "env": environment(),
    }


def _probe_runtimes() -> list[dict[str, Any]]:
    """Open a network of one operator in each runtime: an import alone proves nothing."""
    probes: dict[str, Callable[[], Any]] = {
        "onnxruntime": lambda: OnnxFile(base64.b64decode(PROBE_ONNX), 1),
        "tflite": lambda: TfliteFile(None, 1, base64.b64decode(PROBE_TFLITE)),
    }
    found = []
    for name, probe in probes.items():
        entry = {"name": name, "package": None, "version": None, "error": None, "fix": None}
        try:
            file = probe()
            file.run([np.ones(1, np.float32)])
            entry.update(package=file.package, version=file.version)
        except Exception as error:
            fix = getattr(error, "fix", None) or PIP_LINES[".onnx" if name == "onnxruntime" else ".tflite"]
            entry.update(error=str(error)[:300], fix=fix)
        found.append(entry)
    return found


def environment() -> dict[str, Any]:
    """Return the state that changes: governor, frequencies, temperatures, throttling, load, stolen time."""
    governors = sorted({(_read(path) or "").strip() for path in _cpu_files("scaling_governor")})
    frequencies = [_number(path, 1000.0) for path in _cpu_files("scaling_cur_freq")]
    temperatures = [_number(path, 0.001) for path in sorted(glob.glob("/sys/class/thermal/thermal_zone*/temp"))]
    stat = re.match(r"cpu +([\d ]+)", _read("/proc/stat") or "")
    ticks = [int(tick) for tick in stat.group(1).split()] if stat else []
    return {
        "governor": ",".join(governors) or None,
        "frequency_hz": frequencies or None,
        "temperature_c": temperatures or None,
        "throttled": _throttled(),
        "loadavg": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "steal_ticks": ticks[7] if len(ticks) > 7 else None,
        "total_ticks": sum(ticks[:8]) if len(ticks) > 7 else None,
    }


def peak_rss_bytes() -> int | None:
    """Return the peak resident memory of this process, or None where the machine does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", _read("/proc/self/status") or "", re.M)
    return int(match.group(1)) * 1024 if match else None


def _throttled() -> str | None:
    if shutil.which("vcgencmd") is None:
        return None
    try:
        answer = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().rpartition("=")[2] or None


def _affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _cpu_files(name: str) -> list[str]:
    paths = glob.glob(f"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/{name}")
    return sorted(paths, key=lambda path: int(re.findall(r"/cpu(\d+)/", path)[0]))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(path: str, scale: float) -> float | None:
    text = (_read(path) or "").strip()
    return float(text) * scale if re.fullmatch(r"-?\d+", text) else None


COMMANDS = {"facts": facts, "time": time_artifacts, "memory": measure_memory, "outputs": run_outputs}


def main(argv: Sequence[str]) -> int:
    """Answer one request; the exit status is 0, or 1 when the result holds an error."""
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: agent.py {'|'.join(COMMANDS)} [REQUEST.json | -]", file=sys.stderr)
        return 2
    try:
        request = _read_request(argv[1] if len(argv) > 1 else None)
        if request.get("watchdog"):
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        _say({"event": "start", "command": argv[0]})
        result = COMMANDS[argv[0]](request)
    except AgentError as error:
        result = {"error": {"kind": error.kind, "message": str(error), "fix": error.fix}}
    except Exception as error:
        traceback.print_exc()
        result = {"error": {"kind": "agent", "message": f"{type(error).__name__}: {error}", "fix": None}}
    print(SENTINEL + " " + json.dumps({"agent": AGENT_VERSION, **result}), flush=True)
    return 1 if "error" in result else 0


def _read_request(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        if source == "-":
            request = json.loads(sys.stdin.readline())
        else:
            with open(source, encoding="utf-8") as file:
                request = json.load(file)
    except (OSError, ValueError) as error:
        raise AgentError("request", f"the request cannot be read: {error}") from error
    if not isinstance(request, dict) or request.get("version") != AGENT_VERSION:
        raise AgentError("request", f"the request must be a JSON object of version {AGENT_VERSION}")
    return request


def _say(message: dict[str, Any]) -> None:
    print(json.dumps({"agent": AGENT_VERSION, **message}), flush=True)


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock a blocked reader would hold at exit
        continue
    os._exit(4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
