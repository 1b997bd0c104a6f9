"""A captured program made easier to quantise, with the same results: channels of like size, weights without bias.

Owns three changes of weights before conversion. Folding multiplies BatchNorm into the convolution before it.
Equalisation divides a channel where it is made and multiplies it where it is read, so that one step size suits all
channels of a tensor: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, with
the measured size of activations in place of the first weight's, as in Xiao et al., "SmoothQuant", 2023, since output
channels of weights have steps of their own. Bias correction subtracts the mean error that rounded weights will cause
(Nagel et al.). The first two leave results as they are; the third is right for the quantised network only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeprune.export.rewrite import Rewrite

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default)
_PRODUCTS = (_ATEN.linear.default, *_CONVOLUTIONS)
# f(c x) = c f(x) for c > 0, value by value.
_HOMOGENEOUS = (_ATEN.relu.default, _ATEN.relu_.default, _ATEN.leaky_relu.default, _ATEN.dropout.default)
# The same channel by channel, where channels come before the places that are pooled: behind convolutions.
_POOLS = (
    _ATEN.max_pool1d.default,
    _ATEN.max_pool2d.default,
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
)
_NORM = _ATEN.batch_norm.default
_LAYER_NORM = _ATEN.layer_norm.default
_FARTHEST = 32.0  # no channel is scaled by more, or by less than its inverse
_LARGEST = 127
Samples = Sequence[tuple[torch.Tensor, ...]]


def rewrite_equalised(samples: Samples, round_weights: Callable[[torch.Tensor], torch.Tensor]) -> Rewrite:
    """Return a rewrite that folds, equalises and corrects, for `capture`.

    Args:
        samples: Inputs of the network, to measure activations on.
        round_weights: What the format's quantiser will make of a weight, output channels first.
    """

    def rewrite(graph: torch.fx.Graph) -> int:
        module = graph.owning_module
        assert module is not None
        _own_parameters_(module)
        changed = fold_batch_norm_(module)
        changed += equalise_(module, samples)
        return changed + correct_bias_(module, samples, round_weights)

    return rewrite


def fold_norms_(graph: torch.fx.Graph) -> int:
    """Multiply BatchNorm into the product before it: the same results from fewer operators, for `capture`.

    Converters do that too, but only after they took every BatchNorm apart, which costs more than all else in a CNN.
    """
    module = graph.owning_module
    if module is None or not any(node.target is _NORM for node in graph.nodes):
        return 0
    _own_parameters_(module)
    return fold_batch_norm_(module)


def _own_parameters_(module: torch.fx.GraphModule) -> None:
    """Give the program parameters of its own that share their values with the network's, until they are replaced."""
    own: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = own.setdefault(id(value), nn.Parameter(value.detach(), requires_grad=False))


def fold_batch_norm_(module: torch.fx.GraphModule) -> int:
    """Multiply every BatchNorm into the product before it, where nothing else reads that one's result."""
    folded = 0
    for node in list(module.graph.nodes):
        if node.target is not _NORM or node.args[5]:
            continue
        source = node.args[0]
        weight = _own_weight(module, source)
        if weight is None or len(source.users) != 1 or _channels(weight, source.meta["val"]) != 1:
            continue
        scale_node, shift_node, mean_node, variance_node = node.args[1:5]
        if mean_node is None or variance_node is None:
            continue
        mean, variance = _value(module, mean_node), _value(module, variance_node)
        scale = (variance + node.args[7]).rsqrt()
        if scale_node is not None:
            scale = scale * _value(module, scale_node)
        bias = _bias(module, source)
        shifted = (bias if bias is not None else torch.zeros_like(mean)) - mean
        shift = _value(module, shift_node) if shift_node is not None else torch.zeros_like(mean)
        weight.data = weight.data * scale.view(-1, *[1] * (weight.dim() - 1))
        _set_bias_(module, source, shifted * scale + shift)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        folded += 1
    if folded:
        module.recompile()
    return folded


@dataclass(frozen=True, slots=True)
class _Link:
    """A tensor whose channels can be scaled: what makes them, the tensor, and the products that read it."""

    source: Any
    read: Any
    readers: tuple[Any, ...]


def equalise_(module: torch.fx.GraphModule, samples: Samples) -> int:
    """Scale channels so that large activations become smaller, at the cost of the weights that read them."""
    links = [link for node in module.graph.nodes if (link := _link(module, node)) is not None]
    sizes = _sizes(module, links, samples)
    for link in links:
        size = sizes[link.read]
        weights = torch.stack([_reading_size(module, reader) for reader in link.readers]).amax(0)
        factor = (size.clamp(min=1e-8) / weights.clamp(min=1e-8)).sqrt()
        factor = factor / factor.log().mean().exp()  # the tensor as a whole keeps its size
        factor = torch.where(size > 0, factor.clamp(1 / _FARTHEST, _FARTHEST), torch.ones_like(factor))
        _divide_source_(module, link.source, factor)
        for reader in link.readers:
            weight = _value(module, reader.args[1])
            depthwise = _depthwise(weight, reader)
            weight.data = weight.data * factor.view(*([-1, 1] if depthwise else [1, -1]), *[1] * (weight.dim() - 2))
    return len(links)


def correct_bias_(
    module: torch.fx.GraphModule, samples: Samples, round_weights: Callable[[torch.Tensor], torch.Tensor]
) -> int:
    """Subtract from every bias the mean error of its product with rounded weights."""
    products = [node for node in module.graph.nodes if _own_weight(module, node) is not None]
    errors: dict[Any, torch.Tensor] = {}
    differences = {node: round_weights(w := _value(module, node.args[1]).detach()) - w for node in products}

    def note(node: Any, result: Any, arguments: tuple[Any, ...]) -> None:
        if node in differences:
            error = node.target(arguments[0], differences[node], None, *arguments[3:])
            mean = error.transpose(0, _channels(differences[node], error)).flatten(1).mean(1)
            errors[node] = errors.get(node, torch.zeros_like(mean)) + mean / len(samples)

    _watched(module, samples, note)
    for node in products:
        bias = _bias(module, node)
        _set_bias_(module, node, (bias if bias is not None else torch.zeros_like(errors[node])) - errors[node])
    if products:
        module.recompile()
    return len(products)


def symmetric(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight rounded to int8 per output channel, symmetric about zero."""
    flat = weight.flatten(1)
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return ((flat / scale).round() * scale).view_as(weight)


def asymmetric(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight rounded to uint8 per output channel, with a zero point."""
    flat = weight.flatten(1)
    low, high = flat.amin(1, keepdim=True).clamp(max=0), flat.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low).clamp(min=1e-12) / 255
    zero = (-low / scale).round()
    return (((flat / scale + zero).round().clamp(0, 255) - zero) * scale).view_as(weight)


def _link(module: torch.fx.GraphModule, source: Any) -> _Link | None:
    """Return the tensor that a product or norm leads to, where only homogeneous operators lie between."""
    if not _scalable(module, source):
        return None
    read, images = source, source.target in _CONVOLUTIONS
    between = (*_HOMOGENEOUS, *_POOLS) if images else _HOMOGENEOUS
    while len(read.users) == 1 and next(iter(read.users)).target in between:
        read = next(iter(read.users))
    readers = tuple(read.users)
    if not readers or not all(_reads(module, reader, read) for reader in readers):
        return None
    if any((reader.target in _CONVOLUTIONS) != images for reader in readers):
        return None
    return _Link(source, read, readers)


def _scalable(module: torch.fx.GraphModule, node: Any) -> bool:
    if node.target is _LAYER_NORM:
        own = [argument for argument in (*node.args, None, None)[2:4] if argument is not None]
        return len(node.args[1]) == 1 and len(own) == 2 and all(_owned(module, argument) for argument in own)
    return _own_weight(module, node) is not None


def _reads(module: torch.fx.GraphModule, node: Any, read: Any) -> bool:
    weight = _own_weight(module, node)
    if weight is None or node.args[0] is not read:
        return False
    groups = node.args[6] if len(node.args) > 6 else 1
    return groups == 1 or _depthwise(weight, node)


def _depthwise(weight: torch.Tensor, node: Any) -> bool:
    groups = node.args[6] if node.target in _CONVOLUTIONS and len(node.args) > 6 else 1
    return bool(groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1)


def _channels(weight: torch.Tensor, result: torch.Tensor) -> int:
    """Return the dimension of the channels in a product's result: the last, or before the places of a convolution."""
    return result.dim() + 1 - weight.dim()


def _reading_size(module: torch.fx.GraphModule, reader: Any) -> torch.Tensor:
    """Return the largest weight that reads each input channel."""
    weight = _value(module, reader.args[1]).detach().abs()
    sizes: torch.Tensor = (weight if _depthwise(weight, reader) else weight.transpose(0, 1)).flatten(1).amax(1)
    return sizes


def _divide_source_(module: torch.fx.GraphModule, source: Any, factor: torch.Tensor) -> None:
    if source.target is _LAYER_NORM:
        for argument in source.args[2:4]:
            value = _value(module, argument)
            value.data = value.data / factor
        return
    weight = _value(module, source.args[1])
    weight.data = weight.data / factor.view(-1, *[1] * (weight.dim() - 1))
    bias = _bias(module, source)
    if bias is not None:
        bias.data = bias.data / factor


def _sizes(module: torch.fx.GraphModule, links: Sequence[_Link], samples: Samples) -> dict[Any, torch.Tensor]:
    """Return the largest absolute value of every channel of the links' tensors over the samples."""
    wanted = {link.read: _value(module, link.readers[0].args[1]) for link in links}
    found = dict[Any, torch.Tensor]()

    def note(node: Any, result: Any, arguments: tuple[Any, ...]) -> None:
        if node in wanted:
            size = result.abs().transpose(0, _channels(wanted[node], result)).flatten(1).amax(1)
            found[node] = torch.maximum(found[node], size) if node in found else size

    _watched(module, samples, note)
    return found


class _Watching(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, note: Callable[[Any, Any, tuple[Any, ...]], None]) -> None:
        super().__init__(module)
        self._note = note

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            self._note(n, result, self.fetch_args_kwargs_from_env(n)[0])
        return result


def _watched(module: torch.fx.GraphModule, samples: Samples, note: Callable[[Any, Any, tuple[Any, ...]], None]) -> None:
    with torch.no_grad():
        for sample in samples:
            _Watching(module, note).run(*sample)


def _own_weight(module: torch.fx.GraphModule, node: Any) -> nn.Parameter | None:
    """Return the weight of a product or convolution that nothing else reads, None for any other node."""
    if getattr(node, "target", None) not in _PRODUCTS or not _owned(module, node.args[1]):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None and not _owned(module, bias):
        return None
    weight: nn.Parameter = _value(module, node.args[1])
    return weight


def _owned(module: torch.fx.GraphModule, node: Any) -> bool:
    """Return whether a node is a parameter that only one operator reads."""
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr" or len(node.users) != 1:
        return False
    storage = _value(module, node).data_ptr()
    same = [other for other in module.graph.nodes if other.op == "get_attr" and other is not node]
    values = [_value(module, other) for other in same]
    return not any(isinstance(value, torch.Tensor) and value.data_ptr() == storage for value in values)


def _value(module: torch.fx.GraphModule, node: Any) -> Any:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _bias(module: torch.fx.GraphModule, node: Any) -> Any:
    argument = node.args[2] if len(node.args) > 2 else None
    return _value(module, argument) if argument is not None else None


def _set_bias_(module: torch.fx.GraphModule, node: Any, value: torch.Tensor) -> None:
    known = _bias(module, node)
    if known is not None:
        known.data = value.detach().to(known.dtype)
        return
    name = f"{node.name}_bias"
    module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    with module.graph.inserting_before(node):
        created = module.graph.get_attr(name)
    node.args = (*node.args[:2], created, *node.args[3:])
