"""BatchNorm statistics renewed from data, without training.

Pruning changes what every layer sees, and the running statistics of BatchNorm still describe the dense network. This
module measures them again. It changes nothing else: weights, other modules and random generators stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.errors import ModelError
from edgeprune.training.batches import inputs_for, to_device


class _Moments:
    """Count, mean and sum of squared deviations per channel, in float64, over everything seen so far."""

    def __init__(self) -> None:
        self.batches = 0
        self.count = 0
        self.mean: torch.Tensor | None = None
        self.deviations: torch.Tensor | None = None

    def add(self, values: torch.Tensor) -> None:
        """Merge values of shape (N, C, ...) in: exact for batches of any sizes (the parallel variance formula)."""
        exact = values.detach().double().transpose(0, 1).flatten(1)
        count = exact.shape[1]
        mean = exact.mean(1)
        deviations = (exact - mean[:, None]).square().sum(1)
        if self.mean is not None and self.deviations is not None:
            total = self.count + count
            shift = mean - self.mean
            deviations = self.deviations + deviations + shift.square() * (self.count * count / total)
            mean = self.mean + shift * (count / total)
        self.batches, self.count, self.mean, self.deviations = self.batches + 1, self.count + count, mean, deviations


def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> nn.Module:
    """Return a copy of the network whose BatchNorm statistics are those of the given batches.

    Each BatchNorm normalises with the statistics of the batch at hand, as in training, so that the layers behind it
    see well-scaled values; everything else is in evaluation mode (no dropout). The new running mean and variance of
    a layer are the exact mean and the unbiased variance over all values that it saw, every sample with equal weight,
    accumulated in float64. Layers that were not reached, and those that keep no running statistics, stay as they are.

    Args:
        batches: Batches of 32 samples or more give good statistics. Labels are allowed and not used.
        forward: Calls the network on a batch; by default `model(*model_inputs(batch))`.

    Returns:
        A copy with the modes of `model`. Without BatchNorm it is a plain copy, and `batches` is not touched.

    Raises:
        ModelError: There are no batches, a batch has one value per channel, or a layer sees values that are not
            finite.
    """
    renewed = copy.deepcopy(model)
    norms = {name: module for name, module in renewed.named_modules() if isinstance(module, _BatchNorm)}
    layers = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    if not layers:
        return renewed
    modes = {module: module.training for module in renewed.modules()}
    moments = {name: _Moments() for name in layers}
    hooks = [module.register_forward_pre_hook(partial(_see, name, moments[name])) for name, module in layers.items()]
    try:
        renewed.eval()
        for layer in layers.values():
            layer.training = True
        _pass_over(renewed, batches, forward)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for name, layer in layers.items():
        _set_statistics_(name, layer, moments[name])
    return renewed


def _pass_over(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None) -> None:
    tensor = next(iter(model.buffers()))
    count = 0
    with torch.no_grad():
        for batch in batches:
            count += 1
            local = to_device(batch, tensor.device)
            if forward is not None:
                forward(model, local)
            else:
                model(*inputs_for(model, local))
    if count == 0:
        raise ModelError(
            "there are no batches to recalibrate BatchNorm with",
            fix="return at least one batch from calibration_data() or train_data(), "
            "or set finetune.recalibrate_batches=0",
        )


def _see(name: str, moments: _Moments, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    values = args[0]
    if values.numel() == values.shape[1]:
        raise ModelError(
            f"BatchNorm '{name}' gets {tuple(values.shape)}: one value per channel has no variance",
            fix="recalibrate with batches of at least 2 samples, better 32",
        )
    moments.add(values)


def _set_statistics_(name: str, module: _BatchNorm, moments: _Moments) -> None:
    """Write the measured statistics into a layer; one that saw nothing keeps its own."""
    if moments.mean is None or moments.deviations is None:
        return
    variance = moments.deviations / (moments.count - 1)
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(variance).all()):
        raise ModelError(
            f"BatchNorm '{name}' sees values that are not finite",
            fix="check the calibration batches and the network's weights for nan and inf",
        )
    for buffer, value in ((module.running_mean, moments.mean), (module.running_var, variance)):
        if buffer is not None:
            buffer.copy_(value)
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.fill_(moments.batches)
