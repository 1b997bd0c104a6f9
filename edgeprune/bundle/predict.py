"""Run the network of this bundle, with numpy and one runtime and nothing else.

    python predict.py                            the samples of the bundle, on every file that a runtime is there for
    python predict.py model.onnx                 the same on one file; exit code 1 where an output is not as expected
    python predict.py model.onnx x.npy [y.npy]   your own inputs, one file for each input of the network
    python predict.py --raw model.onnx x.npy     the same, after scale, mean and std of input.json

The runtime is onnxruntime for .onnx, and ai-edge-litert or tflite-runtime for .tflite. input.json says everything that
this program knows about the network: start a program of your own from both. Works with Python 3.9.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def open_model(path: Path, spec: dict[str, Any]) -> Any:
    """Return a function that takes the arrays of a file's inputs and returns those of its outputs."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ins, outs = ([tensor["file_name"] for tensor in spec[side]] for side in ("inputs", "outputs"))
        return lambda arrays: session.run(outs, dict(zip(ins, arrays)))
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run(arrays: list[Any]) -> list[Any]:
        for tensor, array in zip(spec["inputs"], arrays):
            interpreter.set_tensor(inputs[tensor["position"]]["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(outputs[tensor["position"]]["index"]) for tensor in spec["outputs"]]

    return run


def normalised(raw: Any, spec: dict[str, Any]) -> Any:
    """Return (raw * scale - mean) / std of an input, each one number or one for every channel."""
    array, found = np.asarray(raw, dtype=np.float32), spec["preprocessing"]
    along = [-1 if axis == spec["channel_axis"] else 1 for axis in range(array.ndim)]
    scale, mean, std = (
        np.float32(found.get(key, [base])).reshape(along) for key, base in (("scale", 1), ("mean", 0), ("std", 1))
    )
    return (array * scale - mean) / std


def to_file(array: Any, tensor: dict[str, Any]) -> Any:
    """Return an input of the network as the file takes it: its order of axes, and quantised where the file is."""
    array = np.transpose(array, tensor["axes"]) if tensor["axes"] else np.asarray(array)
    shape = tensor["shape"]
    if array.ndim != len(shape) or any(size not in (None, own) for size, own in zip(shape, array.shape)):
        sys.exit(f"{tensor['name']} has the shape {list(array.shape)}, the file takes {shape} (null: any size)")
    if tensor["quantization"]:
        limits = np.iinfo(tensor["dtype"])
        steps = np.round(array / tensor["quantization"]["scale"]) + tensor["quantization"]["zero_point"]
        array = np.clip(steps, limits.min, limits.max)
    return np.ascontiguousarray(array, dtype=tensor["dtype"]).reshape(array.shape)


def from_file(array: Any, tensor: dict[str, Any]) -> Any:
    """Return an output of a file as the network gives it."""
    found = tensor["quantization"]
    if found:
        array = (array.astype(np.float32) - found["zero_point"]) * np.float32(found["scale"])
    return np.transpose(array, np.argsort(tensor["axes"])) if tensor["axes"] else array


def predict(run: Any, spec: dict[str, Any], arrays: list[Any]) -> list[Any]:
    """Return the network's outputs for its inputs, both in the order of input.json."""
    outputs = run([to_file(array, tensor) for array, tensor in zip(arrays, spec["inputs"])])
    return [from_file(array, tensor) for array, tensor in zip(outputs, spec["outputs"])]


def difference(output: Any, expected: Any) -> float:
    """Return the largest difference over the largest expected value; infinite where they cannot be compared."""
    if output.shape != expected.shape or not np.isfinite(output.astype(np.float64)).all():
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.abs(output - wide).max(initial=0) / np.abs(wide).max(initial=1e-6))


def text_of(output: Any, labels: list[str]) -> str:
    """Return an output in a few words: its label or largest place, else its first values."""
    if output.ndim > 1 and (labels or (output.shape[-1] > 1 and output.ndim == 2 and output.dtype.kind == "f")):
        best = output.reshape(-1, output.shape[-1]).argmax(-1)[:4].tolist()
        return ", ".join(labels[place] if labels else f"largest at {place}" for place in best)
    return " ".join(f"{value:.4g}" for value in output.ravel()[:4].tolist())


def labels_of(bundle: dict[str, Any], number: int) -> list[str]:
    """Return the labels of an output, none where it has none."""
    file = bundle["outputs"][number]["labels"]
    return (HERE / file).read_text(encoding="utf-8").splitlines() if file else []


def check(name: str, bundle: dict[str, Any]) -> bool:
    """Run the samples on one file, print what comes out, and return whether all is as expected."""
    spec, agree = bundle["files"][name], True
    run = open_model(HERE / name, spec)
    for sample in bundle["samples"]:
        inputs = [np.load(HERE / sample / f"input.{number}.npy") for number in range(len(bundle["inputs"]))]
        for number, output in enumerate(predict(run, spec, inputs)):
            tensor, labels = spec["outputs"][number], labels_of(bundle, number)
            expected = np.load(HERE / sample / f"{spec['role']}.{number}.npy")
            found, limit = difference(output, expected), tensor["tolerance"]
            agree = agree and found <= limit
            texts = f"{tensor['name']} = {text_of(output, labels)}, expected {text_of(expected, labels)}"
            verdict = "agrees" if found <= limit else "DIFFERS"
            print(f"{name} {sample}: {texts} ({verdict}: difference {found:.1e}, limit {limit:.1e})")
    return agree


def main(words: list[str]) -> int:
    """Do what the command line says and return the exit code."""
    bundle = json.loads((HERE / "input.json").read_text(encoding="utf-8"))
    raw, words = "--raw" in words, [word for word in words if word != "--raw"]
    names = [Path(words[0]).name] if words else list(bundle["files"])
    if names[0] not in bundle["files"] or len(words) not in (0, 1, 1 + len(bundle["inputs"])):
        print(f"usage: python predict.py [--raw] [{' | '.join(bundle['files'])}] [{len(bundle['inputs'])} x .npy]")
        return 2
    if len(words) > 1:
        arrays = [np.load(word) for word in words[1:]]
        arrays = [normalised(*pair) if raw else pair[0] for pair in zip(arrays, bundle["inputs"])]
        spec = bundle["files"][names[0]]
        for number, output in enumerate(predict(open_model(HERE / names[0], spec), spec, arrays)):
            print(f"{bundle['outputs'][number]['name']} = {text_of(output, labels_of(bundle, number))}")
        return 0
    results = []
    for name in names:
        try:
            results.append(check(name, bundle))
        except ImportError as error:
            print(f"{name} was not run: {error}")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
