"""The optimiser and the learning rate of every step, as the settings name them."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeprune.config import FinetuneConfig
from edgeprune.errors import ModelError


def make_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return the optimiser over the parameters that require gradients; frozen ones stay out of it.

    Raises:
        ModelError: No parameter requires gradients.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(
            "every parameter is frozen, so there is nothing to fine-tune",
            fix="set requires_grad_(True) on the layers to train, or use finetune.epochs=0",
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: FinetuneConfig, *, epoch: int, step: int, steps: int | None, done: int) -> float:
    """Return the learning rate of one step.

    The schedule follows the fraction of the training that is behind: cosine and linear fall from `lr` towards 0, the
    last step is still above it. The first `warmup_steps` steps, at most half of all, rise linearly to the schedule.

    Args:
        epoch: From 0.
        step: Position in the epoch, from 0.
        steps: Steps per epoch; None while unknown, and then the rate stays that of the epoch's beginning.
        done: Steps since the training began.
    """
    within = min(1.0, step / steps) if steps else 0.0
    fraction = (epoch + within) / config.epochs
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * fraction))
    elif config.schedule == "linear":
        factor = 1.0 - fraction
    warmup = config.warmup_steps if steps is None else min(config.warmup_steps, steps * config.epochs // 2)
    return config.lr * factor * min(1.0, (done + 1) / max(1, warmup))


def set_learning_rate_(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use a learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
