"""Pruning of single weights while a network is trained: gradually by magnitude, or RigL."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from edgeprune.config import SparsifyConfig
from edgeprune.dynamic.records import Tensors, Trail, part
from edgeprune.dynamic.schedule import Schedule
from edgeprune.dynamic.weights import regrown, thinned, zero_share
from edgeprune.errors import ConfigError
from edgeprune.graph.enter import unwrapped
from edgeprune.pruning import Masks, make_masks
from edgeprune.pruning.hold import Kept, Zeros


class WeightPruner:
    """A pruner of single weights.

    Args:
        model: The network that is trained, perhaps wrapped by DistributedDataParallel.
        config: Which weights are zero in the end; for `rigl`, which ones are at the beginning.
        fraction: Of the weights of a layer that change places at first (`rigl`).

    Raises:
        ConfigError: The settings do not fit the network.
        NothingToPrune: They prune nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SparsifyConfig,
        schedule: Schedule,
        method: Literal["weights", "rigl"],
        fraction: float,
    ) -> None:
        self._model = unwrapped(model)
        self._config, self._schedule, self._method, self._fraction = config, schedule, method, fraction
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        names = make_masks(self._model, config).kept
        computed = [name for name in names if name not in parameters]
        if computed:
            raise ConfigError(f"'{computed[0]}' is computed in forward", fix="remove parametrizations before")
        self._parameters = {name: parameters[name] for name in names}
        self._zeros = Zeros(self._parameters, self._watch if method == "rigl" else None)
        self._dense: Kept = {}
        self._step = 0
        self._settled = False
        self.trail = Trail(what="weights")

    @property
    def masks(self) -> Masks:
        """Which weights stay."""
        whole = {name: torch.ones(p.shape, dtype=torch.bool, device=p.device) for name, p in self._parameters.items()}
        return Masks(kept=whole | self._zeros.kept)

    @property
    def settled(self) -> bool:
        """Whether nothing is pruned any more: from here on the weights only train."""
        return self._settled

    def step(self) -> None:
        """Prune what is due after a step of the optimiser, and set to zero what the step has moved."""
        self._step += 1
        self._zeros.apply_()  # before anything is ranked: an optimiser's memory moves them
        if not self._settled and self._step >= self._schedule.begin:
            self._advance()
        self._dense = {}
        self._zeros.apply_()

    def settle_(self) -> None:
        """Reach the target at once."""
        if not self._settled:
            self._zeros.kept = self._final()
            self._settled = True
            self.trail.add(self._step, zero_share(self._zeros.kept))
            self._zeros.apply_()

    def finish(self) -> nn.Module:
        """Return a copy of the network whose pruned weights are 0.0, and let go of the one that was trained."""
        self.settle_()
        self._zeros.release()
        self.masks.check(self._model)
        return copy.deepcopy(self._model)

    def state(self) -> Tensors:
        """Return all that is needed to go on, besides the network."""
        kept = {f"kept.{name}": mask for name, mask in self._zeros.kept.items()}
        return {"step": torch.tensor([self._step, int(self._settled)]), "trail": self.trail.tensor(), **kept}

    def load_state_(self, state: Tensors) -> None:
        """Go on from a saved state."""
        self._step, settled = (int(value) for value in state["step"])
        self._settled = bool(settled)
        self.trail.load_(state["trail"])
        kept = part(state, "kept.")
        self._zeros.kept = {name: mask.to(self._parameters[name].device) for name, mask in kept.items()}

    def _final(self) -> Kept:
        if self._method == "rigl":
            return self._zeros.kept or make_masks(self._model, self._config).kept
        return thinned(self._model, self._config, 1.0, self._zeros.kept)

    def _advance(self) -> None:
        if self._step >= self._schedule.end:
            self.settle_()
            return
        started = bool(self._zeros.kept)
        if self._method == "rigl" and not started:
            self._zeros.kept = make_masks(self._model, self._config).kept
        elif not self._schedule.due(self._step):
            return
        elif self._method == "rigl":
            self._regrow()
        else:
            progress = self._schedule.progress(self._step)
            self._zeros.kept = thinned(self._model, self._config, progress, self._zeros.kept)
        self.trail.add(self._step, zero_share(self._zeros.kept))

    def _regrow(self) -> None:
        fraction = self._schedule.fraction(self._step, self._fraction)
        for name, kept in self._zeros.kept.items():
            if name in self._dense:  # a layer that took no part in this step has nothing to go by
                gradient = _over_processes(self._dense[name])
                self._zeros.kept[name] = regrown(kept, self._parameters[name], gradient, fraction)

    def _watch(self, name: str, gradient: torch.Tensor) -> None:
        if self._zeros.kept and not self._settled and self._schedule.due(self._step + 1):
            before = self._dense.get(name)
            self._dense[name] = gradient.detach().clone() if before is None else before + gradient.detach()


def _over_processes(gradient: torch.Tensor) -> torch.Tensor:
    """Return the sum of a gradient over the processes of a training: all of them must choose the same weights."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(gradient)
    return gradient
