"""Weights with fewer bits: which are weights, along which axis, and how far they may be off."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from edgeprune.quantise.onnx_weights import per_channel, with_half_weights, with_integer_weights


@settings(deadline=None, max_examples=150)
@given(
    arrays(np.float32, (3, 4, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.integers(0, 2),
)
def test_no_weight_is_off_by_more_than_half_a_step_of_its_channel(values: np.ndarray, axis: int) -> None:
    integers, scales = per_channel(values, axis)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert integers.min() >= -127
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    found = integers.astype(np.float64) * scales
    assert (np.abs(found - values) <= np.maximum(0.5001 * scales.astype(np.float64), 2e-43)).all() or (
        np.abs(values).max() < 1e-36  # steps of the smallest numbers are themselves rounded
    )


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-44, -1e-40])
def test_channels_that_are_too_small_to_be_divided_give_no_nonsense(value: float) -> None:
    integers, scales = per_channel(np.full((2, 3), value, np.float32), 0)
    np.testing.assert_allclose(integers * scales, value, atol=1e-41)
    assert (scales > 0).all()


def model_of(
    kind: str, *shape: int, position: int = 1, constants: dict[str, np.ndarray] | None = None, **attributes: int
):  # type: ignore[no-untyped-def]
    names = ["x", "w"] if position == 1 else ["w", "x"]
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.logspace(-2, 2, shape[-1], dtype="f")
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], **attributes)],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def scale_shape(model: onnx.ModelProto) -> tuple[int, ...] | None:
    found = with_integer_weights(model).graph.initializer
    return next((tuple(tensor.dims) for tensor in found if tensor.name == "w_scale"), None)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (model_of("Conv", 16, 8, 3, 3), (16, 1, 1, 1)),
        (model_of("ConvTranspose", 8, 16, 3, 3), (1, 16, 1, 1)),
        (model_of("Gemm", 32, 16), (1, 16)),
        (model_of("Gemm", 32, 16, transB=1), (32, 1)),
        (model_of("MatMul", 32, 16), (1, 16)),
        (model_of("MatMul", 32, 16, position=0), (32, 1)),
        (model_of("MatMul", 2, 32, 16), (1, 1, 16)),
        (model_of("Gather", 50, 16, position=0), (50, 1)),
        (model_of("MatMul", 4, 4), None),  # too small to be worth it
        (model_of("Add", 32, 16), None),
        (model_of("MatMul", 512), None),
    ],
)
def test_each_kind_of_weight_has_a_scale_per_output_channel(
    model: onnx.ModelProto, shape: tuple[int, ...] | None
) -> None:
    assert scale_shape(model) == shape


def test_weights_whose_readers_disagree_and_those_that_are_outputs_stay() -> None:
    both = model_of("MatMul", 32, 32)
    both.graph.node.append(helper.make_node("Gemm", ["y", "w"], ["z"], transB=1))
    assert scale_shape(both) is None
    shown = model_of("MatMul", 32, 32)
    shown.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 32]))
    assert scale_shape(shown) is None
    endless = model_of("MatMul", 32, 32)
    endless.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((32, 32), -np.inf, np.float32), "w"))
    assert scale_shape(endless) is None


def test_halves_are_widened_again_and_what_does_not_fit_stays() -> None:
    model = model_of("MatMul", 4, 4)
    for name, value in (("big", 1e5), ("endless", -np.inf), ("one", 1.0)):
        size = 1 if name == "one" else 3
        model.graph.initializer.append(numpy_helper.from_array(np.full(size, value, np.float32), name))
    made = with_half_weights(model)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {
        "w_half": TensorProto.FLOAT16,
        "big": TensorProto.FLOAT,
        "endless": TensorProto.FLOAT,
        "one": TensorProto.FLOAT,
    }
    assert [node.op_type for node in made.graph.node] == ["Cast", "MatMul"]
