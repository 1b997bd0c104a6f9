"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.graph.capture import copy_model


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the multiply-accumulates of one forward (1 MAC = 2 FLOPs).

    Counted by torch on a copy on the meta device, where composite operators are seen whole.
    """
    shadow = copy_model(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(*(tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops()) // 2
