"""Layers that standardise their weight in every forward: found by running each alone, and the result written down.

Weight standardisation (BiT, NF-ResNet, NFNet) and cosine-normalised layers are subclasses of torch's convolutions and
linear layer whose forward computes another weight from their parameters, through statistics over them. Fewer channels
would mean other statistics, and so another function. With the computed weight as the parameter, such a layer is
torch's own again. Owns the proof that it is: in float64, on inputs of several sizes, in both modes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.graph.checks import alike, own_inputs
from edgeprune.graph.operators import bind, operator_name, tensors_in
from edgeprune.graph.structure import copy_model, named_tensors, output_tensors, shared_copy
from edgeprune.workload import Examples

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BASES = (nn.Linear, *_CONVOLUTIONS)
_USES = frozenset({
    "linear", "matmul", "mm", "addmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
})  # fmt: skip
# Operators through which one position of a parameter changes what becomes of the others.
_STATISTICS = frozenset({
    "batch_norm", "instance_norm", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm",
    "native_group_norm", "softmax", "log_softmax", "_softmax", "_log_softmax", "_weight_norm",
    "_weight_norm_interface", "renorm", "mean", "sum", "amax", "amin", "max", "min", "median", "prod", "var", "std",
    "var_mean", "std_mean", "logsumexp", "norm", "frobenius_norm", "nuclear_norm", "linalg_norm",
    "linalg_vector_norm", "linalg_matrix_norm", "linalg_svdvals", "linalg_svd", "_linalg_svd", "mv", "dot", "vdot",
    "cosine_similarity",
})  # fmt: skip
_FROM_DATA, _FROM_PARAMETERS, _FROM_STATISTICS = 1, 2, 4
# Of the largest value; in float64 the same sums in another order stay far below it.
_LIMIT = 1e-10


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that pads so much that one output stands for every `stride` inputs, the odd zero at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high, wide = (
            max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """What a layer is without the computation: torch's class of it, and the tensors that it worked with.

    `bias` is None where the layer's own, or none, was used.
    """

    kind: type[nn.Module]
    weight: torch.Tensor
    bias: torch.Tensor | None


def written_down(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of the network whose layers hold the weights that they standardised, and the paths of those.

    The very same object where there are none, or where the copy returns something else on the example inputs.
    """
    layers = {path: module for path, module in model.named_modules() if _may_standardise(module)}
    found = {path: plain for path, module in layers.items() if (plain := _plain(module)) is not None}
    found = _with_ties(model, layers, found)
    if not found:
        return model, ()
    copied = copy_model(model)
    made: dict[int, nn.Parameter] = {}
    for path, plain in found.items():
        layer: Any = copied.get_submodule(path)
        _become_(layer, plain)
        layer.weight = made.setdefault(id(layers[path].weight), layer.weight)
    examples = (inputs, *inputs.others) if isinstance(inputs, Examples) else (inputs,)
    return (copied, tuple(found)) if all(_alike_on(model, copied, example) for example in examples) else (model, ())


def _may_standardise(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch's with a forward of somebody else."""
    kind: Any = type(module)
    base: Any = next((base for base in kind.__mro__ if base in _BASES), None)
    if base is None or kind.__module__.startswith("torch.") or "forward" in vars(module) or _has_filled_parts(module):
        return False
    weight = module._parameters.get("weight")
    if weight is None or nn.parameter.is_lazy(weight) or weight.is_meta or not weight.is_floating_point():
        return False
    names = ("forward",) if base is nn.Linear else ("forward", "_conv_forward")
    return kind is not SamePaddedConv2d and any(getattr(kind, n, None) is not getattr(base, n, None) for n in names)


def _has_filled_parts(module: nn.Module) -> bool:
    """Tell whether modules inside of a module hold tensors; one that only pads does not."""
    return any(named_tensors(part) for part in module.children())


def _plain(module: nn.Module) -> _Plain | None:
    """Return what a layer is once its weight is computed; None where it computes none, or where that is not all."""
    try:
        with torch.random.fork_rng(), torch.no_grad():
            layer = copy.deepcopy(module).eval()
            first = _taken(layer)
            exact = _taken(layer.double()) if first is not None else None
            if first is None or exact is None:
                return None
            base = next(base for base in type(module).__mro__ if base in _BASES)
            for kind in (base, SamePaddedConv2d) if base is nn.Conv2d else (base,):
                if _stands_for(layer, _Plain(kind=kind, weight=exact[0], bias=exact[1])):
                    return _Plain(kind=kind, weight=first[0], bias=first[1])
    except Exception:  # noqa: BLE001  the user's code may fail in any way on inputs that are not the network's
        return None
    return None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows through one forward of a layer where tensors come from, and notes the calls that use a weight."""

    def __init__(self, module: nn.Module, x: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.followed = True
        self._origin = {_memory(parameter): _FROM_PARAMETERS for parameter in module.parameters()}
        self._origin[_memory(x)] = _FROM_DATA
        self._alive: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        origin = 0
        for tensor in tensors_in((args, kwargs)):
            origin |= self.origin(tensor)
        if name in _STATISTICS and origin == _FROM_PARAMETERS:
            origin |= _FROM_STATISTICS
        if name in _USES and origin & _FROM_DATA:
            self.used.append(_weight_and_bias(name, bind(func, args, kwargs)))
        result = func(*args, **kwargs)
        results = tensors_in(result)
        if torch.Tag.nondeterministic_seeded in func.tags or (origin & _FROM_DATA and not results):
            self.followed = False
        for tensor in results:
            self._alive.append(tensor)
            self._origin[_memory(tensor)] = self.origin(tensor) | origin
        return result

    def origin(self, tensor: torch.Tensor) -> int:
        """Return what a tensor comes from, as flags."""
        return self._origin.get(_memory(tensor), 0)


def _memory(tensor: torch.Tensor) -> int:
    """Return what tells the memory of a tensor apart; views share it."""
    return int(tensor.untyped_storage()._cdata)


def _taken(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Run a layer alone and return the weight and the bias that it computed by statistics; None where it does not.

    The bias is None where it is the layer's own. A layer that changes its tensors computes something else next time.
    """
    x = _example(layer, (0, 0))
    before = _versions(layer)
    with torch.inference_mode(), _Watch(layer, x) as watch:
        type(layer).forward(layer, x)
    if not watch.followed or len(watch.used) != 1 or _versions(layer) != before:
        return None
    weight, bias = watch.used[0]
    if watch.origin(weight) != _FROM_PARAMETERS | _FROM_STATISTICS or weight.shape != layer.weight.shape:
        return None
    if bias is None or (layer.bias is not None and _memory(bias) == _memory(layer.bias)):
        return weight.clone(), None
    return None if watch.origin(bias) & _FROM_DATA else (weight.clone(), bias.clone())


def _weight_and_bias(name: str, bound: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the tensors of a product as those of a layer, from its arguments."""
    if name in ("matmul", "mm"):
        return bound["other" if name == "matmul" else "mat2"].mT, None
    return (bound["mat2"].mT, bound["self"]) if name == "addmm" else (bound["weight"], bound["bias"])


def _versions(layer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return what changes when a tensor of a layer is written to or replaced."""
    return {name: (id(tensor), tensor._version) for name, tensor in named_tensors(layer).items()}


def _example(layer: Any, more: Sequence[int]) -> torch.Tensor:
    """Return random input on which every value of the weight counts.

    Args:
        more: How many positions the last two dimensions have beyond that.
    """
    like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    if isinstance(layer, nn.Linear):
        return torch.randn(2 + more[0], layer.in_features, **like)
    sizes = []
    for axis, (kernel, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        reach = (kernel - 1) * dilation + 1
        padding = (reach - 1) // 2 if isinstance(layer.padding, str) else layer.padding[axis]
        sizes.append(max(reach - padding, 1) + (more[axis] if axis < len(more) else 0))
    return torch.randn(1, layer.in_channels, *sizes, **like)


def _stands_for(layer: nn.Module, plain: _Plain) -> bool:
    """Tell whether a layer returns what torch's own does with a given weight, in both modes and at several sizes."""
    trial: Any = shared_copy(layer)
    _become_(trial, plain)
    strides = max(getattr(layer, "stride", (1,)))
    for training, more in [(False, (0, 1)), *((False, (n, n - 1)) for n in range(1, strides)), (True, (1, 0))]:
        x = _example(layer, more)
        with torch.inference_mode():
            expected = type(layer).forward(layer.train(training), x.clone())
            found = plain.kind.forward(trial, x)
        if not isinstance(expected, torch.Tensor) or expected.shape != found.shape:
            return False
        if float((expected - found).abs().max()) > _LIMIT * max(float(expected.abs().max()), 1e-6):
            return False
    return True


def _with_ties(model: nn.Module, layers: dict[str, nn.Module], found: dict[str, _Plain]) -> dict[str, _Plain]:
    """Leave out layers whose weight, or whose computed bias, others hold too, unless those compute the very same."""
    kept = dict(found)
    for key, holders in _holders(model).items():
        mine = {path: plain for path, plain in kept.items() if id(layers[path].weight) == key}
        computed = [p for p, plain in kept.items() if plain.bias is not None and id(layers[p].bias) == key]
        weights = [plain.weight for plain in mine.values()]
        tied = len(mine) == holders and all(torch.equal(weights[0], other) for other in weights)
        for path in [*([] if tied else mine), *(computed if holders > 1 else [])]:
            kept.pop(path, None)
    return kept


def _holders(model: nn.Module) -> dict[int, int]:
    """Return in how many places the modules of a network hold every parameter."""
    found: dict[int, int] = {}
    for parameter in _held(model):
        found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def _held(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        yield from (parameter for parameter in module._parameters.values() if parameter is not None)


def _become_(module: Any, plain: _Plain) -> None:
    """Make a layer one of torch's that holds the given tensors, in place; nothing but them is left of its own."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    module.__class__ = plain.kind
    module.weight = nn.Parameter(plain.weight.clone(), requires_grad=trained)
    if plain.bias is not None:
        module.bias = nn.Parameter(plain.bias.clone(), requires_grad=trained)
    for name in module._parameters.keys() - {"weight", "bias"}:
        module._parameters[name] = None
    for name in module._buffers:
        module._buffers[name] = None
    module._modules.clear()


def _alike_on(model: nn.Module, other: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Tell whether two networks return the same in evaluation mode; one that fails will say so when it is recorded."""
    results = []
    for network in (model, other):
        try:
            with torch.random.fork_rng(), torch.inference_mode():
                results.append(output_tensors(shared_copy(network).eval()(*own_inputs(network, inputs))))
        except Exception:  # noqa: BLE001  the user's code may fail in any way
            return False
    return len(results[0]) == len(results[1]) and all(map(alike, *results))
