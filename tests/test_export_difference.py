"""Where a wrong file first goes wrong: files with one broken operator, in both formats, float and quantised."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.export import export
from edgeprune.export.capture import Subject, prepare
from edgeprune.export.difference import Difference, first_difference, write_verdict
from edgeprune.export.limits import limits_of
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.export.verify import verify_artifact
from edgeprune.values import Check, Precision
from tests.export_networks import converted, everything
from tests.quantised_files import quantised_tflite


class Three(nn.Module):
    """Three convolutions, each on a line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.tanh(self.second(x))  # the second
        return self.third(x)


SECOND = 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if line.endswith("# the second"))


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Three().eval()
    return model, (torch.randn(1, 3, 10, 10, generator=generator),)


@pytest.fixture(scope="module")
def files(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    made = {suffix: folder / f"m.{suffix}" for suffix in ("onnx", "tflite")}
    for path in made.values():
        export(*network, path)
    return made


def judged(
    network: Any, path: Path, precision: Precision = "fp32"
) -> tuple[Subject, OpenArtifact, tuple[Check, ...], Difference | None]:
    subject, opened, limits = prepare(*network), open_artifact(path), limits_of(precision)
    checks = verify_artifact(subject, opened, examples=[network[1]], limits=limits, name=path.name)
    assert not all(check.passed for check in checks)
    found = first_difference(subject, opened, examples=[network[1]], limits=limits, checks=checks)
    return subject, opened, checks, found


def broken_onnx(source: Path, path: Path, change: Any) -> Path:
    import onnx

    model = onnx.load_model(str(source))
    change(model.graph)
    onnx.save_model(model, str(path))
    return path


def negate(name: str) -> Any:
    from onnx import numpy_helper

    def change(graph: Any) -> None:
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), name))
                return
        raise AssertionError(f"no weight {name}: {[tensor.name for tensor in graph.initializer]}")

    return change


def test_a_weight_that_is_wrong_in_an_onnx_file(network: Any, files: dict[str, Path], tmp_path: Path) -> None:
    path = broken_onnx(files["onnx"], tmp_path / "wrong.onnx", negate("second.weight"))
    found = judged(network, path)[3]
    assert found is not None
    assert found.operator == "Conv"
    assert found.before_db > 100
    assert found.sqnr_db < 20
    assert found.where == f"{Path(__file__)}:{SECOND}"
    assert f"It goes wrong in Conv, tensor '{found.tensor}': SQNR falls from" in found.told()
    assert found.where in found.told()


def test_an_operator_that_is_another_one(network: Any, files: dict[str, Path], tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == "Tanh")
        node.op_type = "Softsign"

    found = judged(network, broken_onnx(files["onnx"], tmp_path / "wrong.onnx", change))[3]
    assert found is not None
    assert (found.operator, found.node) == ("Softsign", "tanh")


def broken_tflite(source: Path, path: Path, channels: int) -> Path:
    """Negate the weights of the convolution with that many outputs; quantised weights stay in range."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(source.read_bytes()))
    graph = model.subgraphs[0]
    convolutions = [
        operator
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D
        and graph.tensors[operator.inputs[1]].shape[0] == channels
    ]
    place = convolutions[0].inputs[1]
    # Weights of a weight-only file go through an operator of their own.
    source_of = {operator.outputs[0]: operator.inputs[0] for operator in graph.operators}
    weight = graph.tensors[source_of.get(place, place)]
    kind = np.float32 if weight.type == schema.TensorType.FLOAT32 else np.int8
    values = np.frombuffer(bytes(model.buffers[weight.buffer].data), kind)
    model.buffers[weight.buffer].data = np.frombuffer((-values).astype(kind).tobytes(), np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_a_weight_that_is_wrong_in_a_tflite_file(network: Any, files: dict[str, Path], tmp_path: Path) -> None:
    found = judged(network, broken_tflite(files["tflite"], tmp_path / "wrong.tflite", 12))[3]
    assert found is not None
    assert found.operator == "CONV_2D"
    assert (found.before_db > 100, found.sqnr_db < 20) == (True, True)
    assert found.where == f"{Path(__file__)}:{SECOND}"


@pytest.mark.parametrize("kind", ["int8", "int8-weights"])
def test_a_weight_that_is_wrong_in_a_quantised_file(
    network: Any, files: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    feeds = [[network[1][0].numpy()]]
    good = quantised_tflite(files["tflite"], tmp_path / "good.tflite", kind, feeds)
    subject, limits = prepare(*network), limits_of(kind)
    checks = verify_artifact(subject, open_artifact(good), examples=[network[1]], limits=limits, name="good")
    assert all(check.passed for check in checks), checks
    found = judged(network, broken_tflite(good, tmp_path / "wrong.tflite", 12), kind)[3]
    assert found is not None
    assert found.operator == "CONV_2D"
    assert found.sqnr_db < 15 < found.before_db
    assert found.where == f"{Path(__file__)}:{SECOND}"


def test_several_inputs_tokens_and_outputs(tmp_path: Path) -> None:
    """The network with everything: where the head is wrong, the head is named."""
    path = broken_onnx(converted("everything", ".onnx")[0], tmp_path / "wrong.onnx", negate("head.weight"))
    found = judged(everything(), path)[3]
    assert found is not None
    assert found.operator in ("Gemm", "MatMul")
    assert found.node == "linear_1"


def test_kernels_that_are_wrong_are_not_blamed_on_the_file(network: Any, files: dict[str, Path]) -> None:
    subject, opened, limits = prepare(*network), open_artifact(files["onnx"]), limits_of("fp32")

    class Wrong:
        """The file's own runtime, whose results are off."""

        name, package, version = "onnxruntime", "onnxruntime", "0"
        inputs, outputs = opened.infos()

        def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
            return [value + 1 for value in opened.run(arrays)]

    wrong = opened.in_runtime(Wrong(), "wrong.onnx")
    checks = verify_artifact(subject, wrong, examples=[network[1]], limits=limits, name="wrong.onnx")
    found = first_difference(subject, wrong, examples=[network[1]], limits=limits, checks=checks)
    assert found is not None
    assert found.kernels
    assert "optimised kernels are wrong" in found.told()


def test_the_verdict_is_json_whatever_is_in_it(tmp_path: Path) -> None:
    check = Check(
        name="m.onnx against the network",
        inputs="user inputs",
        batch_size=1,
        max_abs=math.inf,
        max_rel=math.inf,
        tolerance=1e-4,
        output="y",
        passed=False,
        sqnr_db=-200.0,
    )
    found = Difference(tensor="conv", operator="Conv", before_db=120.0, sqnr_db=3.0, node="conv2d", where="net.py:3")
    write_verdict(tmp_path / "m.onnx", [check], found)
    written = json.loads((tmp_path / "m.onnx.verify.json").read_text())
    assert written["passed"] is False
    assert written["checks"][0]["max_rel"] is None
    assert written["where"]["where"] == "net.py:3"
    write_verdict(tmp_path / "m.onnx", [check], None)
    assert json.loads((tmp_path / "m.onnx.verify.json").read_text())["where"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx.verify.json"]
