"""Int8 ONNX files: which types their weights and values have, and that all kernels compute the same from them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import ExportError, ModelError
from edgeprune.export.opened import open_artifact
from edgeprune.export.quality import sqnr_db
from edgeprune.quantise.onnx import OnnxFloat, _quiet
from edgeprune.quantise.ranges import Interval
from edgeprune.values import Precision
from tests.quantised_networks import inputs, lowered


def made(nodes: list[Any], constants: dict[str, np.ndarray], given: str, wanted: str, *sizes: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, list(sizes))],
        [helper.make_tensor_value_info(wanted, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def constants_of(content: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_model_from_string(content).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.mark.parametrize(
    ("precision", "least"), [("int8", 40), ("int8-weights", 100), ("int8-dynamic", 40), ("fp16", 100)]
)
def test_default_kernels_agree_with_reference_arithmetic_on_large_weights(precision: Precision, least: float) -> None:
    """Signed weights saturate without VNNI; DequantizeLinear and MatMul are joined into a product on integers."""
    path = lowered("loud", ".onnx", precision)[0]
    given = [inputs("loud", 16, seed=5)[0].numpy()]
    found, exact = (open_artifact(path, reference=reference).run(given)[0] for reference in (False, True))
    assert sqnr_db(exact, found) > least


def test_weights_are_unsigned_per_output_channel_and_activations_signed() -> None:
    graph = onnx.load_model_from_string(lowered("loud", ".onnx", "int8")[0].read_bytes()).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    matrices = [node for node in weights if constants[node.input[0]].ndim == 2]
    assert len(matrices) == 2
    for node in matrices:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        assert weight.dtype == np.uint8
        assert scale.shape in {(64,), (8,)}
        assert len(np.unique(scale)) > 1
    moving = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert moving
    assert all(constants[node.input[2]].dtype == np.int8 for node in moving)


def test_an_operator_that_stays_in_float_computes_in_float_from_integer_weights() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(32, 32)).astype(np.float32) for name in "ab"}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["y", "b"], ["z"])]
    file = OnnxFloat(made(nodes, weights, "x", "z", 4, 32))
    assert [operator.name for operator in file.operators()] == ["y", "z"]
    ranges = {name: Interval(low=-40.0, high=40.0) for name in "xyz"}
    content = file.quantise(ranges, frozenset(["z"]))
    graph = onnx.load_model_from_string(content).graph
    (product,) = (node for node in graph.node if "z" in node.output)
    makers = {name: node for node in graph.node for name in node.output}
    assert product.op_type == "MatMul"
    assert makers[product.input[1]].op_type == "Mul"  # a Cast and a Mul: no DequantizeLinear that could be joined
    assert constants_of(content)["b_int8"].dtype == np.int8
    none = file.quantise(ranges, frozenset(["y", "z"]))
    kinds = {node.op_type for node in onnx.load_model_from_string(none).graph.node}
    assert kinds == {"Cast", "Mul", "MatMul"}


def test_values_between_operators_are_watched_and_constants_are_not() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1),
        helper.make_node("Cast", ["best"], ["z"], to=TensorProto.FLOAT),
    ]
    seen: dict[str, list[np.ndarray]] = {}
    samples = [{"x": np.array([[-1.0, value]], np.float32)} for value in (2.0, 3.0)]
    OnnxFloat(made(nodes, {}, "x", "z", 1, 2)).watch(
        samples, lambda name, array: seen.setdefault(name, []).append(array)
    )
    assert set(seen) == {"x", "y", "z"}
    assert [float(array.max()) for array in seen["y"]] == [2.0, 3.0]


def test_a_sample_that_cannot_run_is_told() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["y"]),
    ]
    file = OnnxFloat(made(nodes, {"table": np.ones((3, 2), np.float32)}, "x", "y", 1))
    with pytest.raises(ModelError, match="calibration sample") as caught:
        file.watch([{"x": np.array([7.0], np.float32)}], lambda name, array: None)
    assert caught.value.fix


def test_nodes_are_called_by_the_first_output_that_is_used() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(1, 16, 3)), "r": rng.normal(size=(1, 16, 4))}
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=4)
    content = made([lstm, helper.make_node("Relu", ["h"], ["z"])], {k: v.astype("f") for k, v in weights.items()}, "x",
                   "z", 5, 1, 3)  # fmt: skip
    assert [node.name for node in OnnxFloat(content)._model.graph.node] == ["h", "z"]


def test_what_the_quantiser_raises_is_an_error_with_a_fix_and_logging_goes_on() -> None:
    logging.disable(logging.INFO)
    try:
        with pytest.raises(ExportError, match="ValueError: no") as caught, _quiet():
            raise ValueError("no")
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
    assert caught.value.fix
