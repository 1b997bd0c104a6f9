"""Every value inside a network and inside a file, for one set of inputs.

Owns the ways to look inside: torch's interpreter of a captured program, ONNX Runtime with every value as an output,
TFLite with all tensors kept. Optimisations are off, so that what a file says is what is computed. Judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import VerificationError
from edgeprune.export.quiet import silent_stderr

if TYPE_CHECKING:
    from edgeprune.export.capture import Subject
    from edgeprune.export.opened import OpenArtifact

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OWN = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator that ran: its name, the names of what it took and gave, and the values that it gave as floats.

    Weights, and operators on weights alone, are left out of a file's steps: they depend on no input. `where` is the
    user's line, known for a network's steps only. Values that cannot be seen are missing.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[str, np.ndarray]
    where: str | None = None


def network_steps(subject: Subject, arrays: Sequence[np.ndarray]) -> list[Step]:
    """Return the steps of a network, as captured for export, on inputs of its own batch or of one sample.

    Raises:
        ExportError: The network cannot be captured.
    """
    import torch

    from edgeprune.export.capture import capture, to_array

    program = capture(subject, dynamic=False)
    steps: list[Step] = []

    class Recorder(torch.fx.Interpreter):
        """Runs the program and keeps what every operator gives."""

        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function":
                values = {n.name: to_array(result)} if isinstance(result, torch.Tensor) else {}
                steps.append(
                    Step(
                        operator=str(n.target),
                        inputs=tuple(node.name for node in n.all_input_nodes),
                        outputs=(n.name,),
                        values=_floats(values),
                        where=_user_line(n.meta.get("stack_trace")),
                    )
                )
            return result

    with torch.no_grad():
        Recorder(program.module(check_guards=False)).run(*[torch.from_numpy(array) for array in arrays])
    return steps


def file_steps(opened: OpenArtifact, arrays: Sequence[np.ndarray]) -> list[Step]:
    """Return the steps of a file on inputs of its own batch, given as the network takes them.

    Raises:
        VerificationError: Its runtime cannot run it step by step.
    """
    fed = opened.as_fed(arrays)
    names = [info[0] for info in opened.infos()[0]]
    try:
        with silent_stderr():
            if opened.path.suffix == ".onnx":
                return _onnx_steps(opened.path, dict(zip(names, fed, strict=True)))
            return _tflite_steps(opened.path, names, fed)
    except Exception as error:  # runtimes raise many kinds, as in `opened.py`
        raise VerificationError(f"{opened.name} does not run step by step: {error}") from error


def _onnx_steps(path: Path, feeds: dict[str, np.ndarray]) -> list[Step]:
    import onnx
    import onnxruntime

    model = onnx.load_model(str(path))
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(names, feeds), strict=True))
    made, steps = set(feeds), []
    for node in model.graph.node:
        inputs = tuple(name for name in node.input if name in made)
        if not inputs:
            continue
        made.update(node.output)
        values = {name: found[name] for name in node.output if isinstance(found.get(name), np.ndarray)}
        steps.append(Step(operator=node.op_type, inputs=inputs, outputs=tuple(node.output), values=_floats(values)))
    return steps


def _tflite_steps(path: Path, names: Sequence[str], fed: Sequence[np.ndarray]) -> list[Step]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    places = {str(detail["name"]): detail["index"] for detail in interpreter.get_input_details()}
    for signature in interpreter.get_signature_list():
        # No name for the runner: the interpreter does not run while one is held.
        named = interpreter.get_signature_runner(signature).get_input_details()
        places |= {name: detail["index"] for name, detail in named.items()}
    for name, array in zip(names, fed, strict=True):
        interpreter.set_tensor(places[name], array)
    interpreter.invoke()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    made: set[int] = set(places.values())
    steps = []
    for operator in interpreter._get_ops_details():
        taken = [int(index) for index in operator["inputs"] if int(index) in made]
        if not taken:
            continue
        outputs = [int(index) for index in operator["outputs"] if index >= 0]
        values = {}
        for index in outputs:
            try:
                values[_named(details, index)] = _dequantised(interpreter.get_tensor(index), details[index])
            except ValueError:  # a tensor without memory of its own
                continue
        made.update(outputs)
        steps.append(
            Step(
                operator=str(operator["op_name"]),
                inputs=tuple(_named(details, index) for index in taken),
                outputs=tuple(_named(details, index) for index in outputs),
                values=_floats(values),
            )
        )
    return steps


def _named(details: dict[int, Any], index: int) -> str:
    """Return a tensor's number and name: converters give the same name to many tensors."""
    return f"{index} {details[index]['name']}".strip() if index in details else str(index)


def _dequantised(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(array.dtype, np.integer):
        return np.asarray((array.astype(np.float32) - zero_point) * scale)
    return array


def _floats(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in values.items() if np.issubdtype(array.dtype, np.floating)}


def _user_line(trace: str | None) -> str | None:
    """Return the innermost line of a stack trace outside of installed packages and edgeprune."""
    for file, line in reversed(_FRAME.findall(trace or "")):
        path = Path(file).resolve()
        if "site-packages" not in path.parts and not path.is_relative_to(_OWN):
            return f"{file}:{line}"
    return None
