"""Values that are zero now: held there after every step of an optimiser, and kept out of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Kept = dict[str, torch.Tensor]
Watch = Callable[[str, torch.Tensor], None]


class Zeros:
    """Which values of some parameters stay, by name in `kept`; it may be replaced at any time.

    The gradients of pruned values are zero as soon as they are computed, also where they are not finite, so that
    neither a gradient norm nor the optimiser's memory knows of them; `apply_` sets the values themselves.

    Args:
        watch: Called with a parameter's name and its whole gradient before that.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], watch: Watch | None = None) -> None:
        self.kept: Kept = {}
        self._parameters = dict(parameters)
        self._watch = watch
        self._handles = [self._hook(name, p) for name, p in self._parameters.items() if p.requires_grad]

    def _hook(self, name: str, parameter: nn.Parameter) -> Any:
        def on_gradient(gradient: torch.Tensor) -> torch.Tensor:
            if self._watch is not None:
                self._watch(name, gradient)
            kept = self.kept.get(name)
            return gradient if kept is None else gradient.masked_fill(~kept.to(gradient.device), 0.0)

        hooked: Any = parameter
        return hooked.register_hook(on_gradient)

    def apply_(self) -> None:
        """Set the pruned values to 0.0."""
        zero_(self._parameters, self.kept)

    def release(self) -> None:
        """Let the optimiser move all values again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def zero_(parameters: Mapping[str, nn.Parameter], kept: Kept) -> None:
    """Set the values of parameters to 0.0 that do not stay."""
    with torch.no_grad():
        for name, stays in kept.items():
            parameters[name].masked_fill_(~stays.to(parameters[name].device), 0.0)


def shrink_(parameters: Mapping[str, nn.Parameter], kept: Kept, factor: float) -> None:
    """Multiply the values of parameters that do not stay."""
    with torch.no_grad():
        for name, stays in kept.items():
            parameters[name].mul_(torch.where(stays, 1.0, factor).to(parameters[name].dtype))
