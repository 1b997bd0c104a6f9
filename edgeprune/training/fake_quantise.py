"""Training as if on integers: a network computes in floating point what its int8 file will compute.

    with FakeQuantised(network, ranges):
        loss = step(network, batch)

Owns which calls are rounded, to which steps, and how gradients pass. The calls themselves are watched, not the modules:
no module is replaced and no parameter renamed, so state dicts and checkpoints hold the plain weights at any moment, and
recorded calls, shared modules and attention count like any other. Ranges are measured elsewhere.

What is rounded: weights of products, symmetric int8 per output channel, and the inputs of convolutions and linear
layers, 255 steps per tensor. Rounding has the gradient 1 (the straight-through estimator), and values beyond a range
have the gradient 0: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018. The file has BatchNorm folded into the weights. Folding scales whole output channels, and each has a
step of its own, so rounding before it is the same as rounding after it; the statistics are those of the file, too: they
stay as they are. Sums and activations that the file rounds besides are not rounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

LEVELS = 255  # steps between the lowest and the highest of 256 integers
_LARGEST = 127
_SMALLEST_SCALE = 1e-12

Ranges = Mapping[str, tuple[float, float]]
Take = Callable[[str, torch.Tensor], None]

# Products by the names of the functions that compute them, with the weight's dimension of output channels.
_PRODUCTS = {
    "linear": 0,
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
}
# These get several weights; the file quantises their weights alone, or rounds in places that are not seen from outside.
_OF_SEVERAL = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
_OF_SEVERAL |= {"multi_head_attention_forward"}
_NORM, _TRAINS = "batch_norm", 5


class FakeQuantised(TorchFunctionMode):
    """Calls with the weights of one network are rounded while this context is entered; those of others are not.

    Args:
        network: Its parameters are known by what they are, not by name: a copy of it is another network.
        ranges: Lowest and highest input of every product, by the name of its weight. Inputs of others are not rounded.
            One weight that is used twice has one range.
        take: If given, nothing is rounded, and inputs of products are handed over by the name of the weight.

    `rounded` has the names of the weights that were seen so far.
    """

    def __init__(self, network: nn.Module, ranges: Ranges, take: Take | None = None) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in network.named_parameters() if parameter.dim() > 1}
        self._statistics = {id(buffer) for buffer in network.buffers()}
        self._ranges = ranges
        self._take = take
        self.rounded: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute a call, with rounded arguments where it is one of the network's products."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # recorded calls have their overload behind it
        if name in _PRODUCTS:
            args, kwargs = self._product(_PRODUCTS[name], args, kwargs)
        elif name in _OF_SEVERAL:
            args = [self._weights(value) for value in args]
            kwargs = {key: self._weights(value) for key, value in kwargs.items()}
        elif name == _NORM and any(id(value) in self._statistics for value in (*args, *kwargs.values())):
            args = (*args[:_TRAINS], False, *args[_TRAINS + 1 :]) if len(args) > _TRAINS else args
            kwargs = kwargs | {"training": False} if len(args) <= _TRAINS else kwargs
        return func(*args, **kwargs)

    def _product(self, axis: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = dict(zip(("input", "weight"), args[:2], strict=False)) | kwargs
        name = self._names.get(id(given["weight"]))
        if name is None:
            return args, kwargs
        values = given["input"]
        self.rounded.add(name)
        if self._take is not None:
            self._take(name, values.detach())
            return args, kwargs
        if name in self._ranges:
            given["input"] = fake_range(values, *self._ranges[name])
        given["weight"] = fake_weight(given["weight"], axis)
        return args[2:] if len(args) < 2 else (given.pop("input"), given.pop("weight"), *args[2:]), given

    def _weights(self, value: Any) -> Any:
        """Return a weight of the network rounded, also within a list, and anything else as it is."""
        if isinstance(value, list | tuple):
            found = [self._weights(item) for item in value]
            return found if isinstance(value, list) else tuple(found)
        name = self._names.get(id(value))
        if name is None:
            return value
        self.rounded.add(name)
        return fake_weight(value, 0) if self._take is None else value


def fake_weight(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a weight on the steps of symmetric int8 per channel of an axis, with the gradient of the weight itself."""
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    exact = weight.detach()
    scale = exact.abs().amax(others, keepdim=True).clamp(min=_SMALLEST_SCALE) / _LARGEST
    return weight + ((exact / scale).round() * scale - exact)


def fake_range(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return values on the 256 levels of a range that has zero among them, with no gradient outside of it.

    Args:
        low: Not above zero.
        high: Not below zero.
    """
    if not values.is_floating_point():
        return values
    scale = max(high - low, _SMALLEST_SCALE) / LEVELS
    zero = round(-low / scale)
    inside = values.clamp(-zero * scale, (LEVELS - zero) * scale)
    exact = inside.detach()
    return inside + ((exact / scale).round() * scale - exact)
