"""Layers as rows: inputs times matrix is what the operator computes, for every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.graph.capture import Record, record
from edgeprune.reconstruct.rows import Layer, layer_of


def layer_in(model: nn.Module, *inputs: torch.Tensor) -> tuple[Layer, Record]:
    """Return the one layer of a network, and its record."""
    found = record(model, inputs)
    steps = [(call.func, call.args) for call in found.calls]
    layers = [layer_of(call, n, steps[n], found.tensors) for n, call in enumerate(found.calls)]
    (layer,) = [layer for layer in layers if layer is not None]
    return layer, found


def assert_rows(model: nn.Module, x: torch.Tensor, places: torch.Tensor | None = None) -> None:
    model = model.double().eval()
    layer, found = layer_in(model, x.double())
    tensors = dict(model.named_parameters())
    weight = tensors[found.tensors[layer.weight.id]].detach()
    with torch.inference_mode():
        output = model(x.double())
        if layer.bias is not None:
            shape = [1] * output.dim()
            shape[layer.axis] = -1
            output = output - tensors[found.tensors[layer.bias.id]].view(shape)
        rows, matrix = layer.rows.inputs(x.double(), places), layer.rows.matrix(weight)
        torch.testing.assert_close(rows @ matrix.transpose(1, 2), layer.rows.outputs(output, places))
        assert torch.equal(layer.rows.weight(matrix, weight), weight)


convolutions = st.fixed_dictionaries(
    {
        "dims": st.integers(1, 3),
        "kernel": st.integers(1, 3),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "groups": st.sampled_from([1, 2, 4]),
        "bias": st.booleans(),
        "batch": st.integers(1, 2),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=60, deadline=None)
@given(convolutions)
def test_the_rows_of_a_convolution_give_its_output(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[case["dims"] - 1]
    layer = kind(
        4,
        8,
        case["kernel"],
        stride=case["stride"],
        dilation=case["dilation"],
        padding=case["padding"],
        groups=case["groups"],
        bias=case["bias"],
    )
    assert_rows(layer, torch.randn(case["batch"], 4, *[7, 6, 5][: case["dims"]]))


@settings(max_examples=60, deadline=None)
@given(convolutions, st.integers(0, 2))
def test_the_rows_of_a_transposed_convolution_give_its_output(case: dict[str, Any], more: int) -> None:
    torch.manual_seed(case["seed"])
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[case["dims"] - 1]
    layer = kind(
        4,
        8,
        case["kernel"],
        stride=case["stride"],
        dilation=case["dilation"],
        padding=min(case["padding"], case["dilation"] * (case["kernel"] - 1)),
        output_padding=min(more, max(case["stride"], case["dilation"]) - 1),
        groups=case["groups"],
        bias=case["bias"],
    )
    assert_rows(layer, torch.randn(case["batch"], 4, *[5, 4, 3][: case["dims"]]))


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_padding_may_be_given_by_a_word(kernel: int) -> None:
    assert_rows(nn.Conv1d(2, 4, kernel, padding="same", dilation=2), torch.randn(2, 2, 9))
    assert_rows(nn.Conv1d(2, 4, kernel, padding="valid"), torch.randn(2, 2, 9))


def test_a_convolution_may_have_no_batch() -> None:
    assert_rows(nn.Conv2d(2, 4, 3), torch.randn(2, 7, 6))


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_rows_of_a_linear_layer_give_its_output(shape: tuple[int, ...], bias: bool) -> None:
    assert_rows(nn.Linear(5, 7, bias=bias), torch.randn(shape))


class Products(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        return x @ self.weight if self.kind == "matmul" else x.mm(self.weight)


@pytest.mark.parametrize("kind", ["addmm", "matmul", "mm"])
def test_the_rows_of_a_product_with_a_parameter_give_its_output(kind: str) -> None:
    assert_rows(Products(kind), torch.randn(4, 5))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2)])
def test_chosen_places_are_the_same_in_inputs_and_outputs(layer: nn.Module) -> None:
    assert_rows(layer, torch.randn(2, 4, 6, 5), torch.tensor([7, 0, 19, 3]))


def test_a_scaled_sum_of_products_is_no_layer() -> None:
    class Scaled(Products):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x, self.weight, alpha=2)

    found = record(Scaled("addmm"), (torch.randn(4, 5),))
    steps = [(call.func, call.args) for call in found.calls]
    assert [layer_of(call, n, steps[n], found.tensors) for n, call in enumerate(found.calls)] == [None]
