"""Rewritten operators give the same values and leave nothing behind that converters refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.export.capture import capture, prepare
from edgeprune.export.rewrite import FOR_TFLITE, implicit_expand_


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function: object, *parameters: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(parameters)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors, *self.weights)  # type: ignore[no-any-return, operator]


def rewritten(model: nn.Module, *inputs: torch.Tensor) -> tuple[list[str], float]:
    """Return the operators of the rewritten graph and the largest difference from the network."""
    subject = prepare(model, inputs)
    program = capture(subject, dynamic=False, rewrites=FOR_TFLITE)
    with torch.no_grad():
        found, wanted = program.module()(*subject.examples), subject.network(*subject.examples)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return operators, max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))


@given(
    dims=st.integers(1, 3),
    stride=st.integers(2, 3),
    padding=st.integers(0, 2),
    extra=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_output_padding_becomes_a_crop(
    dims: int, stride: int, padding: int, extra: int, dilation: int, groups: int, bias: bool
) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    extra = min(extra, max(stride, dilation) - 1)
    layer = kind(4, 6, 3, stride, padding, extra, groups, bias, dilation)
    torch.nn.init.normal_(layer.weight)
    operators, difference = rewritten(layer, torch.randn(1, 4, *[5] * dims))
    assert difference < 1e-5
    assert any("slice" in name for name in operators)


def test_output_padding_per_dimension_and_from_a_function() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, weight, stride=(3, 2), padding=(0, 1), output_padding=(2, 0))

    _, difference = rewritten(Call(function, torch.randn(4, 2, 3, 3)), torch.randn(1, 4, 5, 6))
    assert difference < 1e-5


@pytest.mark.parametrize(("size", "wanted"), [((7, 5), (3, 2)), ((4, 4), (1, 1)), ((4, 6), (4, 2)), ((3, 3), (5, 5))])
def test_adaptive_max_pooling_becomes_maxima(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    operators, difference = rewritten(nn.AdaptiveMaxPool2d(wanted), torch.randn(1, 3, *size))
    assert difference == 0
    assert not any("adaptive" in name for name in operators)


def test_pooling_with_used_indices_stays() -> None:
    model = Call(lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True))
    operators, difference = rewritten(model, torch.randn(1, 3, 4, 4))
    assert difference == 0
    assert any("adaptive_max_pool2d" in name for name in operators)


@pytest.mark.parametrize("model", [nn.RReLU(), nn.RReLU(0.1, 0.9), Call(F.rrelu)])
def test_rrelu_becomes_a_leaky_relu(model: nn.Module) -> None:
    operators, difference = rewritten(model, torch.randn(1, 40))
    assert difference < 1e-6
    assert operators == ["aten.leaky_relu.default"]


def test_expand_is_dropped_where_arithmetic_broadcasts() -> None:
    gate, x = torch.randn(1, 3, 1, 1), torch.randn(1, 3, 4, 4)
    operators, difference = rewritten(Call(lambda g, x: g.expand_as(x) * x + g.expand(1, 3, 4, 4)), gate, x)
    assert difference == 0
    assert operators == ["aten.mul.Tensor", "aten.add.Tensor"]


def test_expand_stays_where_it_gives_the_shape() -> None:
    gate = torch.randn(1, 3, 1, 1)
    operators, difference = rewritten(Call(lambda g: g.expand(1, 3, 4, 4) * g), gate)
    assert difference == 0
    assert "aten.expand.default" in operators


def test_nothing_to_rewrite_is_said() -> None:
    program = capture(prepare(nn.ReLU(), (torch.ones(1, 2),)), dynamic=False, rewrites=())
    assert implicit_expand_(program.graph) == 0
