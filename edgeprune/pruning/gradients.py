"""Criteria that ask the loss: what it costs to set a unit's weights to zero, to first or to second order.

`taylor`: gradient times weight over real batches (Molchanov et al. 2019). `hessian`: half the diagonal of the Hessian
times the squared weight (LeCun et al. 1990, Optimal Brain Damage); the diagonal is estimated by products of the Hessian
with random signs (Hutchinson 1990; Bekas et al. 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgeprune.errors import ConfigError, ModelError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.classes import BLOCKED
from edgeprune.graph.structure import copy_model

Step = Callable[[nn.Module, Any], torch.Tensor]
Values = dict[tuple[str, int], NDArray[np.float64]]


def taylor(model: nn.Module, graph: ChannelGraph, step: Step, batches: Iterable[Any]) -> Values:
    """Return per position the sum over batches of the squared sum of gradient times weight over its slice.

    Raises:
        ConfigError: There is no batch.
        ModelError: The loss is not finite or not one value.
    """
    working, tensors = _trainable(model)
    values: Values = {}
    for number, batch in enumerate(batches):
        working.zero_grad(set_to_none=True)
        _loss(step, working, batch, number, "taylor").backward()  # type: ignore[no-untyped-call]
        for dim, units in graph.dims.items():
            tensor = tensors.get(dim[0])
            if tensor is not None and tensor.dim() > 1 and tensor.grad is not None:
                change = _sums((tensor.detach() * tensor.grad).double(), dim[1], units.shape[1]) ** 2
                values[dim] = values.get(dim, np.zeros_like(change)) + change
    if not values:
        raise ConfigError("criterion 'taylor' got no batch", fix="let train_data() return at least one batch")
    return values


def curvature(model: nn.Module, graph: ChannelGraph, step: Step, batches: Iterable[Any], seed: int = 0) -> Values:
    """Return per position half the sum of the Hessian's diagonal times the squared weights over its slice.

    A negative diagonal counts as zero: no weight is worth less than nothing.

    Raises:
        ConfigError: There is no batch.
        ModelError: The loss is not finite or not one value, or has no second derivatives.
    """
    working, tensors = _trainable(model)
    parameters = [parameter for parameter in working.parameters() if parameter.requires_grad]
    diagonal = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for count, batch in enumerate(batches, 1):
        estimates = _diagonal(step, working, parameters, batch, count - 1, generator)
        for total, found in zip(diagonal, estimates, strict=True):
            total += found
    if not count:
        raise ConfigError("criterion 'hessian' got no batch", fix="let train_data() return at least one batch")
    by_identity = {id(parameter): total for parameter, total in zip(parameters, diagonal, strict=True)}
    values: Values = {}
    for dim, units in graph.dims.items():
        tensor = tensors.get(dim[0])
        if tensor is not None and tensor.dim() > 1 and id(tensor) in by_identity:
            worth = by_identity[id(tensor)].clamp(min=0) * tensor.detach().double().square() / (2 * count)
            values[dim] = _sums(worth, dim[1], units.shape[1])
    return values


def _diagonal(
    step: Step,
    working: nn.Module,
    parameters: list[nn.Parameter],
    batch: Any,
    number: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Return one estimate of the diagonal on a batch: random signs times the product of the Hessian with them."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        loss = _loss(step, working, batch, number, "hessian")
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        signs = [torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1 for p in parameters]
        product = [(g * z).sum() for g, z in zip(first, signs, strict=True) if g is not None and g.requires_grad]
        if not product:
            raise ModelError("the loss has no second derivatives", fix="use  -s prune.criterion=taylor")
        try:
            second = torch.autograd.grad(torch.stack(product).sum(), parameters, allow_unused=True)
        except RuntimeError as error:
            raise ModelError(
                f"the loss cannot be derived twice: {error}", fix="use  -s prune.criterion=taylor"
            ) from error
    return [
        torch.zeros_like(z) if found is None else (found * z).detach() for found, z in zip(second, signs, strict=True)
    ]


def _trainable(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a copy in evaluation mode that takes gradients, and its parameters under all their names."""
    working = copy_model(model).eval()
    for parameter in working.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return working, dict(working.named_parameters(remove_duplicate=False))


def _loss(step: Step, working: nn.Module, batch: Any, number: int, criterion: str) -> torch.Tensor:
    loss = step(working, batch)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ModelError(f"train_step returned {what} instead of one loss value", fix="return loss.mean()")
    if not torch.isfinite(loss).all():
        raise ModelError(f"the loss of batch {number} is {float(loss.detach())} while scoring with '{criterion}'")
    return loss


def _sums(tensor: torch.Tensor, axis: int, size: int) -> NDArray[np.float64]:
    """Return the sums over all other dimensions; `BLOCKED` keeps the inputs of every block apart.

    Args:
        size: Positions along the axis.
    """
    if axis == BLOCKED:
        tensor = tensor.reshape(size // tensor.shape[1], -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
        axis = 0
    result: NDArray[np.float64] = sum_over_others(tensor, axis).cpu().numpy()
    return result


def sum_over_others(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the sums over all dimensions but one."""
    others = [dim for dim in range(tensor.dim()) if dim != axis]
    return tensor.sum(dim=others) if others else tensor
