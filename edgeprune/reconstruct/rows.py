"""Layers as linear equations: every output position of a layer is one row, its weights are the unknowns.

Knows the operators that multiply a parameter with what flows (linear, matrix products, convolutions of any number of
dimensions, transposed ones), and how the rows of each are read off its input. Solves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from edgeprune.compact.replay import Step
from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.operators import operator_name

_CONVOLUTIONS = {f"{kind}{dims}d": dims for kind in ("conv", "conv_transpose") for dims in (1, 2, 3)}


class Rows(Protocol):
    """How one layer's input, output and weight become rows."""

    def inputs(self, x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Return what the unknowns are multiplied with, shape (blocks, rows, unknowns)."""

    def outputs(self, y: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Return the values of an output, shape (blocks, rows, outputs)."""

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as (blocks, outputs, unknowns)."""

    def weight(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return a matrix as a weight of the layer, with the shape and type of the old one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One call that multiplies a parameter with what flows.

    `axis` is the dimension of its output along which a bias is added.
    """

    index: int
    input: Ref
    weight: Ref
    bias: Ref | None
    output: Ref
    axis: int
    rows: Rows


def layer_of(call: Call, index: int, step: Step, parameters: Mapping[int, str]) -> Layer | None:
    """Return what a call is as a layer, or None where it is none or was rewritten as something else.

    Args:
        index: Its place in the record.
        step: Operator and arguments of the call on the smaller network.
        parameters: Names of parameters by identity.
    """
    func, arguments = step
    if operator_name(func) != call.name or not isinstance(call.result, Ref):
        return None
    found = _parts(call.name, arguments)
    if found is None:
        return None
    x, weight, bias = found
    if not all(isinstance(ref, Ref) for ref in (x, weight)) or weight.id not in parameters or x.id in parameters:
        return None
    if bias is not None and (not isinstance(bias, Ref) or bias.id not in parameters or len(bias.shape) != 1):
        return None
    rows: Rows
    if call.name in _CONVOLUTIONS:
        rows = _convolution(call.name, arguments)
        axis = len(call.result.shape) - _CONVOLUTIONS[call.name] - 1
    elif len(weight.shape) == 2:
        rows = Product(outputs_first=call.name == "linear")
        axis = len(call.result.shape) - 1
    else:
        return None
    return Layer(index=index, input=x, weight=weight, bias=bias, output=call.result, axis=axis, rows=rows)


def _parts(name: str, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any] | None:
    """Return input, weight and bias of a call by the operator's name."""
    if name == "linear" or name in _CONVOLUTIONS:
        return arguments["input"], arguments["weight"], arguments.get("bias")
    if name in ("mm", "matmul"):
        return arguments["self"], arguments.get("mat2", arguments.get("other")), None
    if name == "addmm" and arguments.get("alpha", 1) == 1 and arguments.get("beta", 1) == 1:
        return arguments["mat1"], arguments["mat2"], arguments["self"]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product with a weight of shape (outputs, unknowns), or the other way round."""

    outputs_first: bool

    def inputs(self, x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return (flat if places is None else flat[places])[None]

    def outputs(self, y: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        return self.inputs(y, places)

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight if self.outputs_first else weight.T)[None]

    def weight(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return (matrix[0] if self.outputs_first else matrix[0].T).to(like.dtype).contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution; a transposed one is an ordinary one over the input with zeros between its values.

    `pads` are (before, after) per dimension, of the ordinary convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int
    transposed: bool

    def inputs(self, x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        windows = self._windows(_batched(x, len(self.kernel)))
        dims = len(self.kernel)
        batch, channels, *lengths = windows.shape[: 2 + dims]
        if places is None:
            rows = windows.movedim(1, 1 + dims).reshape(batch * math.prod(lengths), channels, -1)
        else:
            sample, *spots = torch.unravel_index(places, (batch, *lengths))
            chosen: tuple[Any, ...] = (sample, slice(None), *spots)
            rows = windows[chosen].flatten(2)
        rows = rows.reshape(rows.shape[0], self.groups, -1)
        return rows.transpose(0, 1)

    def outputs(self, y: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        flat = _batched(y, len(self.kernel)).movedim(1, -1)
        flat = flat.reshape(-1, flat.shape[-1])
        chosen = flat if places is None else flat[places]
        return chosen.reshape(chosen.shape[0], self.groups, -1).transpose(0, 1)

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        flipped = weight.flip(list(range(2, weight.dim())))
        blocks = flipped.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return blocks.transpose(1, 2).flatten(2)

    def weight(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if not self.transposed:
            return matrix.reshape(like.shape).to(like.dtype).contiguous()
        blocks = matrix.reshape(self.groups, like.shape[1], like.shape[0] // self.groups, *self.kernel)
        flipped = blocks.transpose(1, 2).reshape(like.shape)
        return flipped.flip(list(range(2, like.dim()))).to(like.dtype).contiguous()

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        """Return a view of shape (batch, channels, *output lengths, *kernel)."""
        dims = len(self.kernel)
        stride = self.stride
        if self.transposed:
            lengths = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
            spread = x.new_zeros(*x.shape[:2], *lengths)
            every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
            spread[every] = x
            x, stride = spread, (1,) * dims
        x = F.pad(x, [amount for pair in reversed(self.pads) for amount in pair])
        for axis, (size, step, apart) in enumerate(zip(self.kernel, stride, self.dilation, strict=True), 2):
            x = x.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
        return x


def _convolution(name: str, arguments: Mapping[str, Any]) -> Convolution:
    dims = _CONVOLUTIONS[name]
    kernel = tuple(arguments["weight"].shape[2:])
    stride, dilation = _each(arguments["stride"], dims), _each(arguments["dilation"], dims)
    transposed = name.startswith("conv_transpose")
    spans = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
    if arguments["padding"] == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    elif arguments["padding"] == "valid":
        pads = [(0, 0)] * dims
    else:
        pads = [(size, size) for size in _each(arguments["padding"], dims)]
    if transposed:
        more = _each(arguments["output_padding"], dims)
        pads = [(span - pad, span - pad + extra) for span, (pad, _), extra in zip(spans, pads, more, strict=True)]
    return Convolution(
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pads=tuple(pads),
        groups=arguments["groups"],
        transposed=transposed,
    )


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _batched(x: torch.Tensor, dims: int) -> torch.Tensor:
    return x if x.dim() == dims + 2 else x[None]
