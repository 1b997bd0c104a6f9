"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.graph.structure import copy_model


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the multiply-accumulates of one forward in evaluation mode (1 MAC = 2 FLOPs).

    Counted by torch on a copy on the meta device, where composite operators are seen whole. A network that reads values
    of its own parameters cannot run there and is counted while it runs on the inputs.

    Raises:
        ModelError: The network cannot be copied.
    """
    try:
        return _counted(copy_model(model).to("meta"), inputs)
    except (RuntimeError, TypeError, ValueError):
        working = copy_model(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        working.eval()(*(tensor.clone() for tensor in inputs))
    return int(counter.get_total_flops()) // 2


def _counted(shadow: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter, _OnMeta(), torch.no_grad():  # type: ignore[no-untyped-call]
        shadow.eval()(*(tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops()) // 2


class _OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes tensors to the meta device that a network makes or holds elsewhere (grids, plain attributes)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))
