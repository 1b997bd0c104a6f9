"""Inputs made up where there is no data at all: noise, or noise shaped until it looks right to the BatchNorm layers.

The running statistics of BatchNorm are what a network remembers of its training data. Inputs whose statistics in every
such layer are close to them (Cai et al. 2020, ZeroQ) are worth much more than noise, and much less than real inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.graph.cost import count_macs
from edgeprune.graph.structure import copy_model

Inputs = tuple[torch.Tensor, ...]
Progress = Callable[[int, int], None]

_BATCH, _STEPS, _FEWEST_STEPS, _RATE = 64, 200, 50, 0.1
# Shaping is training of the inputs: forward and backward cost three forwards. This much takes some ten minutes.
_PASSES, _MOST_MACS = 3, 10**13


def made_up(
    model: nn.Module, inputs: Inputs, count: int, *, seed: int = 0, progress: Progress | None = None
) -> tuple[list[Inputs], bool]:
    """Return samples of the shape of the example inputs, and whether BatchNorm statistics shaped them.

    Args:
        model: The dense network, in evaluation mode; it is not changed.
        inputs: Example tensors, batch first: they tell range and type. Whole numbers are drawn from those in them.
        count: How many samples, counting every sample of a batch.
        progress: Called with how many of how many steps are done.
    """
    generator = torch.Generator().manual_seed(seed)
    size = inputs[0].shape[0] if inputs[0].dim() else 1
    wanted = max(count // max(size, 1), 1)
    norms = [module for module in model.modules() if _remembers(module)]
    shaped = bool(norms) and all(tensor.is_floating_point() for tensor in inputs)
    if not shaped:
        return [tuple(_noise(tensor, 1, generator) for tensor in inputs) for _ in range(wanted)], False
    samples: list[Inputs] = []
    each = max(_BATCH // max(size, 1), 1)
    batches, steps = _affordable(-(-wanted // each), each * count_macs(model, inputs))
    for number in range(batches):
        start = [_noise(tensor, each, generator) for tensor in inputs]
        told = partial(_tell, progress, number * steps, batches * steps)
        found = _shape(model, start, steps, told)
        samples += [
            tuple(whole[n * one.shape[0] : (n + 1) * one.shape[0]] for whole, one in zip(found, inputs, strict=True))
            for n in range(each)
        ]
    return samples[:wanted], True


def _affordable(batches: int, macs: int) -> tuple[int, int]:
    """Return how many batches to shape and in how many steps: fewer batches first, then fewer steps.

    Args:
        macs: Multiply-accumulates of one forward of one batch.
    """
    most = _MOST_MACS // (_PASSES * max(macs, 1))
    if batches * _STEPS <= most:
        return batches, _STEPS
    if most >= _STEPS:
        return most // _STEPS, _STEPS
    return 1, max(most, _FEWEST_STEPS)


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _tell(progress: Progress | None, before: int, total: int, step: int) -> None:
    if progress is not None:
        progress(before + step, total)


def _noise(example: torch.Tensor, times: int, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor like several of the example in a row: its own numbers drawn anew, or normal with its moments."""
    shape = (example.shape[0] * times, *example.shape[1:]) if example.dim() else example.shape
    if not example.is_floating_point():
        drawn = torch.randint(0, example.numel(), shape, generator=generator)
        return example.flatten()[drawn.to(example.device)]
    values = torch.randn(shape, generator=generator).to(example.device, example.dtype)
    spread = float(example.std()) if example.numel() > 1 else 1.0
    return values * (spread or 1.0) + float(example.mean())


def _shape(model: nn.Module, start: list[torch.Tensor], steps: int, told: Callable[[int], None]) -> list[torch.Tensor]:
    """Return the inputs after Adam has brought what BatchNorm layers see of them to what they remember."""
    working = copy_model(model).eval()
    for parameter in working.parameters():
        parameter.requires_grad_(False)
    seen: list[torch.Tensor] = []

    def look(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, axes, unbiased=False)
        scale = module.running_var + module.eps
        seen.append(((mean - module.running_mean).square() / scale).mean())
        seen.append(((variance + module.eps).sqrt() / scale.sqrt() - 1).square().mean())

    hooks = [module.register_forward_pre_hook(look) for module in working.modules() if _remembers(module)]
    inputs = [tensor.clone().requires_grad_() for tensor in start]
    optimiser = torch.optim.Adam(inputs, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        seen.clear()
        optimiser.zero_grad()
        with torch.enable_grad():
            working(*inputs)
            torch.stack(seen).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        told(step + 1)
    for hook in hooks:
        hook.remove()
    return [tensor.detach() for tensor in inputs]
