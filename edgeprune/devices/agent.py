"""The agent: one file that runs artifacts on the machine that is measured.

Owns opening a .onnx or .tflite file in its runtime and running it. It needs the standard library, numpy and
one runtime, imports nothing of edgeprune, and keeps to the syntax of Python 3.9, so that the file can be copied
to a device as it is. It knows nothing about statistics, verdicts or how it was reached.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

TensorInfo = Tuple[str, Tuple[Optional[int], ...], str]

PIP_LINES = {
    ".onnx": "python -m pip install onnxruntime",
    ".tflite": "python -m pip install ai-edge-litert   (32-bit ARM: tflite-runtime 'numpy<2')",
}


class AgentError(Exception):
    """What the agent could not do. `kind` is a short word for programs, `fix` one command or edit."""

    def __init__(self, kind: str, message: str, fix: Optional[str] = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.fix = fix


class OnnxFile:
    """A .onnx file open in ONNX Runtime, all graph optimisations on, CPU only."""

    name = "onnxruntime"

    def __init__(self, content: Any, threads: int) -> None:
        ort = _import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads of one session must not take the cores from the next one that is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.version = str(ort.__version__)
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self.inputs = [_onnx_info(value) for value in self._session.get_inputs()]
        self.outputs = [_onnx_info(value) for value in self._session.get_outputs()]

    def run(self, arrays: Sequence[np.ndarray]) -> List[np.ndarray]:
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

    def __init__(self, path: Optional[str], threads: int, content: Optional[bytes] = None) -> None:
        interpreter_class, self.package, self.version = _import_tflite()
        source = {"model_path": path} if content is None else {"model_content": content}
        self._interpreter = interpreter_class(num_threads=threads, **source)
        self._interpreter.allocate_tensors()
        self._inputs = _signature_order(self._interpreter, "inputs")
        self._outputs = _signature_order(self._interpreter, "outputs")
        self.inputs = [_tflite_info(name, detail) for name, detail in self._inputs]
        self.outputs = [_tflite_info(name, detail) for name, detail in self._outputs]

    def run(self, arrays: Sequence[np.ndarray]) -> List[np.ndarray]:
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


def open_runtime(path: str, threads: int = 1) -> Any:
    """Open an artifact in the runtime that its suffix asks for.

    Args:
        path: A .onnx or .tflite file.
        threads: Threads of one inference.

    Returns:
        An object with `name`, `version`, `inputs` and `outputs` (lists of name, shape with None for a free
        size, numpy dtype name) and `run(arrays)`. Inputs and outputs are in the order of the exported network.

    Raises:
        AgentError: The suffix is unknown, the file is missing or not readable by the runtime, or no runtime
            is installed.
    """
    suffix = path[path.rfind(".") :].lower() if "." in path else ""
    if suffix not in PIP_LINES:
        raise AgentError("artifact", "%s: the suffix is neither .onnx nor .tflite" % path)
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise AgentError("artifact", "cannot read %s: %s" % (path, error.strerror)) from error
    try:
        return OnnxFile(path, threads) if suffix == ".onnx" else TfliteFile(path, threads)
    except AgentError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        fix = "export the file again; if another program reads it, the installed runtime is too old for it"
        raise AgentError(
            "artifact", "%s cannot be opened: %s: %s" % (path, type(error).__name__, text), fix
        ) from error


def check_arrays(infos: Sequence[TensorInfo], arrays: Sequence[np.ndarray]) -> List[np.ndarray]:
    """Return contiguous inputs after comparing count, shape and dtype with what the file asks for.

    Raises:
        AgentError: The message names the input and both shapes or dtypes.
    """
    if len(arrays) != len(infos):
        raise AgentError("inputs", "%d inputs given, the file has %d" % (len(arrays), len(infos)))
    checked = []
    for (name, shape, dtype), array in zip(infos, arrays):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        if not _fits(shape, array.shape):
            raise AgentError("inputs", "input %s has shape %s, the file has %s" % (name, array.shape, shape))
        if array.dtype.name != dtype:
            raise AgentError("inputs", "input %s is %s, the file has %s" % (name, array.dtype.name, dtype))
        checked.append(array)
    return checked


def _fits(wanted: Sequence[Optional[int]], given: Sequence[int]) -> bool:
    return len(given) == len(wanted) and all(w is None or w == g for w, g in zip(wanted, given))


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise AgentError(
            "runtime", "onnxruntime cannot be imported: %s" % error, PIP_LINES[".onnx"]
        ) from error
    return onnxruntime


def _import_tflite() -> Tuple[Any, str, str]:
    """Return the interpreter class, its package and the version."""
    problems = []
    for package in ("ai_edge_litert", "tflite_runtime"):
        try:
            module = __import__(package + ".interpreter", fromlist=["Interpreter"])
        except ImportError as error:
            problems.append("%s: %s" % (package, error))
            continue
        return module.Interpreter, package, _version(package)
    raise AgentError("runtime", "no TFLite runtime (%s)" % "; ".join(problems), PIP_LINES[".tflite"])


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return str(getattr(__import__(package), "__version__", "unknown"))


ONNX_DTYPES = {"float": "float32", "double": "float64"}


def _onnx_info(value: Any) -> TensorInfo:
    match = re.match(r"tensor\((\w+)\)", value.type)
    if match is None:
        raise AgentError("artifact", "%s is %s, only tensors are supported" % (value.name, value.type))
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
    return value.name, shape, ONNX_DTYPES.get(match.group(1), match.group(1))


def _tflite_info(name: str, detail: Dict[str, Any]) -> TensorInfo:
    return name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name


def _signature_order(interpreter: Any, side: str) -> List[Tuple[str, Dict[str, Any]]]:
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
