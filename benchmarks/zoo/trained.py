"""Is a pruned network still right after a step of training? Both are trained, and compared again.

The dense network with the removed positions zeroed and the pruned one are the same function of the weights that are
left, so the same step must lead to the same outputs: wrong ties, lost gradients and buffers that ought to be cut show
here at the latest.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.zoo.judge import Inputs, Kept, cast, clear_, largest_difference, masked_dense
from edgeprune.graph.structure import output_tensors

SAME = 1e-5
_STEP = 1e-2  # of the weights' norm


def trained_difference(model: nn.Module, small: nn.Module, kept: Kept, inputs: Inputs) -> float | None:
    """Return the largest relative difference of the outputs after one step of gradient descent.

    In float64, and in float32 where a convolution has groups: their gradients in float64 take minutes and gigabytes.
    None where zeroing is not all that pruning does (norms and softmax over narrower dimensions), where the network
    cannot be trained or not in float64, and where the step changes nothing.
    """
    try:
        grouped = any(getattr(module, "groups", 1) > 1 for module in model.modules())
        precision = torch.float32 if grouped else torch.float64
        masked, tensors = masked_dense(model, kept, precision)
        pruned = cast(small, precision)
        own = tuple(tensor.to(precision) if tensor.is_floating_point() else tensor for tensor in inputs)
        before = _outputs(masked, own)
        if largest_difference(before, _outputs(pruned, own)) > SAME:
            return None
        gradients = _gradients(masked, own)
        for (name, axis), keep in kept.items():
            if id(tensors[name]) in gradients:
                clear_(gradients[id(tensors[name])], masked, name, axis, keep)
        rate = _rate(masked, gradients)
        _descend_(masked, gradients, rate)
        _descend_(pruned, _gradients(pruned, own), rate)
        after = _outputs(masked, own)
        return largest_difference(after, _outputs(pruned, own)) if largest_difference(before, after) > SAME else None
    except (RuntimeError, TypeError, ValueError):  # a network that fixes float32, or has no gradients
        return None


def _outputs(network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in output_tensors(network(*(tensor.clone() for tensor in inputs)))]


def _gradients(network: nn.Module, inputs: Inputs) -> dict[int, torch.Tensor]:
    """Return the gradients of the outputs' mean squares, by the identity of the parameters."""
    parameters = [parameter.requires_grad_() for parameter in network.parameters() if parameter.is_floating_point()]
    with torch.enable_grad():
        outputs = [t for t in output_tensors(network(*(tensor.clone() for tensor in inputs))) if t.requires_grad]
        loss = torch.stack([tensor.square().mean() for tensor in outputs]).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {id(p): gradient for p, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _rate(network: nn.Module, gradients: dict[int, torch.Tensor]) -> float:
    weights = sum(float(p.detach().square().sum()) for p in network.parameters() if id(p) in gradients)
    slopes = sum(float(gradient.square().sum()) for gradient in gradients.values())
    return _STEP * (weights / max(slopes, 1e-30)) ** 0.5


def _descend_(network: nn.Module, gradients: dict[int, torch.Tensor], rate: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if id(parameter) in gradients:
                parameter.sub_(rate * gradients[id(parameter)])
