"""Masks of single weights: which stay, and what keeps the others at zero while the network is trained.

Owns the zeros once they are chosen: setting, holding and checking them. Which weights go is decided in `weights.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ConfigError, VerificationError
from edgeprune.graph.enter import unwrapped
from edgeprune.values import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Which weights of a network stay: by parameter name a bool tensor of its shape, True where the weight stays."""

    kept: dict[str, torch.Tensor]

    @property
    def weights(self) -> int:
        """How many weights the masks speak of."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def zeros(self) -> int:
        """How many of them are pruned."""
        return sum(int((~mask).sum()) for mask in self.kept.values())

    @property
    def sparsity(self) -> float:
        """The pruned fraction of these weights, in [0, 1]."""
        return self.zeros / max(self.weights, 1)

    @property
    def digest(self) -> str:
        """sha256 of names, shapes and values."""
        found = hashlib.sha256()
        for name, mask in sorted(self.kept.items()):
            found.update(f"{name} {tuple(mask.shape)}\n".encode())
            found.update(mask.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def rows(self) -> list[Json]:
        """Return one row for each layer: name, shape, number of weights and how many are zero."""
        return [
            {"name": name, "shape": list(mask.shape), "weights": mask.numel(), "zeros": int((~mask).sum())}
            for name, mask in self.kept.items()
        ]

    def apply_(self, model: nn.Module) -> None:
        """Set the pruned weights of a network to 0.0, in place.

        Raises:
            ConfigError: The masks were made for another network.
        """
        with torch.no_grad():
            for parameter, mask in self._pairs(model):
                parameter.masked_fill_(~mask.to(parameter.device), 0.0)

    def check(self, model: nn.Module) -> None:
        """Check that every pruned weight of a network is 0.0.

        Raises:
            ConfigError: The masks were made for another network.
            VerificationError: A pruned weight is not zero.
        """
        for (name, mask), (parameter, _) in zip(self.kept.items(), self._pairs(model), strict=True):
            alive = (parameter.detach() != 0) & ~mask.to(parameter.device)
            if alive.any():
                count, total = int(alive.sum()), int((~mask).sum())
                raise VerificationError(
                    f"{count} of {total} pruned weights of '{name}' are not zero",
                    fix="hold them while training: masks.hold(model, optimizer), or finetune(..., masks=masks)",
                )

    def hold(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Hold:
        """Keep the pruned weights at 0.0: they are so now and after every step of the optimiser.

        Their gradients are zero too, so that neither a gradient norm nor the optimiser's memory knows of them.

        Args:
            model: The network that is trained, perhaps wrapped by DistributedDataParallel.
            optimizer: Any optimiser of torch over the parameters of the network.

        Raises:
            ConfigError: The masks were made for another network, or the optimiser trains none of its pruned weights.
        """
        self.apply_(model)
        pairs = self._pairs(model)
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in own for parameter, _ in pairs):
            raise ConfigError(
                "the optimizer holds none of the pruned weights",
                fix="make it over the parameters of the sparse network",
            )
        return Hold(pairs, optimizer)

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Return every masked parameter of a network with its mask."""
        parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        for name, mask in self.kept.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = f"is {tuple(parameters[name].shape)}" if name in parameters else "does not exist in the network"
                raise ConfigError(
                    f"the masks are of another network: '{name}' is {tuple(mask.shape)} and {found}",
                    fix="make them for this network: sparsify(model, ...)",
                )
        return [(parameters[name], mask) for name, mask in self.kept.items()]


class Hold:
    """Hooks on parameters and their optimiser that keep pruned weights at zero, until `remove`."""

    def __init__(self, pairs: list[tuple[nn.Parameter, torch.Tensor]], optimizer: torch.optim.Optimizer) -> None:
        self._pruned = [(parameter, ~mask.to(parameter.device)) for parameter, mask in pairs]
        trained = [(parameter, pruned) for parameter, pruned in self._pruned if parameter.requires_grad]
        self._handles: list[Any] = [_on_gradient(parameter, pruned) for parameter, pruned in trained]
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        """Let the optimiser move all weights again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _after_step(self, *_: Any) -> None:
        with torch.no_grad():
            for parameter, pruned in self._pruned:
                parameter.masked_fill_(pruned.to(parameter.device), 0.0)


def _on_gradient(parameter: nn.Parameter, pruned: torch.Tensor) -> Any:
    """Set the gradient of pruned weights to zero whenever one is computed, also where it is not finite."""
    hooked: Any = parameter
    return hooked.register_hook(lambda gradient: gradient.masked_fill(pruned.to(gradient.device), 0.0))
