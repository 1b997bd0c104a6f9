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
from edgeprune.pruning.hold import Kept, Zeros, zero_
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
        zero_(self._parameters(model), self.kept)

    def check(self, model: nn.Module) -> None:
        """Check that every pruned weight of a network is 0.0.

        Raises:
            ConfigError: The masks were made for another network.
            VerificationError: A pruned weight is not zero.
        """
        for name, parameter in self._parameters(model).items():
            pruned = ~self.kept[name].to(parameter.device)
            alive = (parameter.detach() != 0) & pruned
            if alive.any():
                count, total = int(alive.sum()), int(pruned.sum())
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
        parameters = self._parameters(model)
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in own for parameter in parameters.values()):
            raise ConfigError(
                "the optimizer holds none of the pruned weights",
                fix="make it over the parameters of the sparse network",
            )
        return Hold(parameters, self.kept, optimizer)

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the masked parameters of a network, by name in the order of the masks."""
        parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        for name, mask in self.kept.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = f"is {tuple(parameters[name].shape)}" if name in parameters else "does not exist in the network"
                raise ConfigError(
                    f"the masks are of another network: '{name}' is {tuple(mask.shape)} and {found}",
                    fix="make them for this network: sparsify(model, ...)",
                )
        return {name: parameters[name] for name in self.kept}


class Hold:
    """Hooks on parameters and their optimiser that keep pruned weights at zero, until `remove`."""

    def __init__(self, parameters: dict[str, nn.Parameter], kept: Kept, optimizer: torch.optim.Optimizer) -> None:
        self._zeros = Zeros(parameters)
        self._zeros.kept = {name: mask.to(parameters[name].device) for name, mask in kept.items()}
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def remove(self) -> None:
        """Let the optimiser move all weights again."""
        self._handle.remove()
        self._zeros.release()

    def _after_step(self, *_: Any) -> None:
        self._zeros.apply_()
