"""Pruning of whole units while a network is trained: by and by, softly, by shrinking them, or by sparse scales.

All methods end alike: at the end of the schedule the units that the plan removes are zero in every tensor that holds
them, and stay so; the training that is left makes up for them, and the cut takes away nothing but zeros.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from edgeprune.compact import apply
from edgeprune.compact.verify import compared
from edgeprune.config import PruneConfig
from edgeprune.dynamic import units
from edgeprune.dynamic.records import Tensors, Trail, part
from edgeprune.dynamic.schedule import Schedule
from edgeprune.dynamic.units import Removed
from edgeprune.graph import ChannelGraph
from edgeprune.graph.enter import unwrapped
from edgeprune.graph.flow import UserRules
from edgeprune.pruning import GroupPlan, PrunePlan, Scores, make_plan, score
from edgeprune.pruning.hold import Kept, Zeros, shrink_, zero_
from edgeprune.pruning.select import describe
from edgeprune.values import Check

Method = Literal["channels", "soft", "regularise", "slim"]


class UnitPruner:
    """A pruner of the units of a graph.

    Args:
        model: The network that is trained, perhaps wrapped by DistributedDataParallel.
        graph: Its channel groups.
        config: What is removed in the end. A global ranking or a budget of MACs is asked anew at every choice, but for
            `channels`, where the first choice says how many units of every group go.
        strength: How much smaller a scale without gradient would be in the end, in means of its layer (`slim`).

    Raises:
        ConfigError: The settings do not fit the network.
        NothingToPrune: They prune nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        config: PruneConfig,
        schedule: Schedule,
        method: Method,
        *,
        align: int,
        inputs: tuple[torch.Tensor, ...],
        strength: float,
        rules: UserRules | None = None,
    ) -> None:
        self._model, self._graph, self._inputs, self._rules = unwrapped(model), graph, inputs, rules
        self._config = config.model_copy(update={"criterion": "bn_scale"}) if method == "slim" else config
        self._schedule, self._method, self._align, self._strength = schedule, method, align, strength
        self._parameters = units.parameters_of(model, graph)
        self._scales = units.norm_scales(model, graph) if method == "slim" else {}
        self._choose()  # settings that prune nothing are told before the training
        self._zeros = Zeros(self._parameters)
        self._removed: Removed = {}
        self._doomed: Removed = {}
        self._fading: Kept = {}
        self._counts: dict[str, int] = {}
        self._shrinks: dict[str, float] = {}
        self._step = 0
        self._settled = False
        self.trail = Trail(what="units")

    @property
    def settled(self) -> bool:
        """Whether nothing is pruned any more: from here on the zeros are held."""
        return self._settled

    @property
    def removed(self) -> Removed:
        """Which units are zero and held there, by group."""
        return dict(self._removed)

    @property
    def plan(self) -> PrunePlan:
        """The plan that removes exactly the units that are held at zero."""
        gone = {group.name: self._removed.get(group.name, np.zeros(group.size, bool)) for group in self._graph.free}
        groups = {
            name: GroupPlan(units=len(removed), keep=tuple(np.flatnonzero(~removed).tolist()))
            for name, removed in gone.items()
        }
        return PrunePlan(
            network=type(self._model).__name__,
            groups=groups,
            inputs=describe(self._inputs),
            settings={**self._config.model_dump(mode="json"), "align": self._align},
        )

    def step(self) -> None:
        """Prune what is due after a step of the optimiser, and set to zero what the step has moved."""
        self._step += 1
        self._zeros.apply_()  # before anything is ranked: an optimiser's memory moves them
        if not self._settled and self._step >= self._schedule.end:
            self.settle_()
        elif not self._settled and self._step > self._schedule.begin:
            self._advance()
        self._zeros.apply_()

    def settle_(self) -> None:
        """Zero all that is to go at once, and hold it."""
        if self._settled:
            return
        self._removed = self._gradual(1.0) if self._method == "channels" else self._choose()[0]
        self._hold()
        self._settled = True
        self.trail.add(self._step, units.unit_share(self._graph, self._removed))

    def finish(self) -> nn.Module:
        """Return the network without the zeroed units, verified, and let go of the one that was trained.

        Raises:
            VerificationError: The smaller network differs from the masked one.
            ModelError: The network cannot be compacted.
        """
        self.settle_()
        self._zeros.release()
        return apply(self._model, self.plan, self._inputs, self._graph, self._rules).model

    def cost(self, small: nn.Module) -> Check:
        """Compare the network that was trained with the one that `finish` returned, on the example inputs.

        Equal but for rounding, unless zeros count in something that is computed over channels, as in a LayerNorm.
        """
        return compared(self._model, small, self._inputs)

    def state(self) -> Tensors:
        """Return all that is needed to go on, besides the network."""
        found = {"step": torch.tensor([self._step, int(self._settled)]), "trail": self.trail.tensor()}
        found |= {f"removed.{name}": torch.from_numpy(gone) for name, gone in self._removed.items()}
        found |= {f"doomed.{name}": torch.from_numpy(gone) for name, gone in self._doomed.items()}
        found |= {f"count.{name}": torch.tensor([count]) for name, count in self._counts.items()}
        return found | {f"shrink.{n}": torch.tensor([v], dtype=torch.float64) for n, v in self._shrinks.items()}

    def load_state_(self, state: Tensors) -> None:
        """Go on from a saved state."""
        self._step, settled = (int(value) for value in state["step"])
        self._settled = bool(settled)
        self.trail.load_(state["trail"])
        self._removed = {name: gone.numpy() for name, gone in part(state, "removed.").items()}
        self._doomed = {name: gone.numpy() for name, gone in part(state, "doomed.").items()}
        self._fading = units.kept_values(self._graph, self._parameters, self._doomed)
        self._counts = {name: int(count) for name, count in part(state, "count.").items()}
        self._shrinks = {name: float(value) for name, value in part(state, "shrink.").items()}
        self._zeros.kept = units.kept_values(self._graph, self._parameters, self._removed)

    def _advance(self) -> None:
        """Do what the method does between the beginning and the end of the schedule."""
        due, progress = self._schedule.due(self._step), self._schedule.progress(self._step)
        if self._method == "slim":
            self._shrink_scales_()
        if self._method == "regularise":
            if due or not self._doomed:
                self._doomed, _ = self._choose()
                self._fading = units.kept_values(self._graph, self._parameters, self._doomed)
            shrink_(self._parameters, self._fading, 1.0 - 1.0 / (self._schedule.end - self._step + 1))
        if not due:
            return
        share = 0.0
        if self._method == "channels":
            self._removed = self._gradual(progress)
            self._hold()
            share = units.unit_share(self._graph, self._removed)
        elif self._method == "soft":
            removed, scores = self._choose()
            counts = {name: round(progress * int(gone.sum())) for name, gone in removed.items()}
            softly = _lowest(scores, counts, {})
            zero_(self._parameters, units.kept_filters(self._graph, self._parameters, softly))
            share = units.unit_share(self._graph, softly)
        elif self._method == "slim":
            values = torch.cat([scale.detach().flatten() for scale in self._scales.values()])
            share = float((values == 0).double().mean())
        self.trail.add(self._step, share)

    def _choose(self) -> tuple[Removed, Scores]:
        """Return the units that the settings remove from the network as it is now, and all scores."""
        scores = self._scores()
        plan = make_plan(self._graph, scores, self._config, align=self._align, model=self._model, inputs=self._inputs)
        removed = {name: np.ones(entry.units, dtype=bool) for name, entry in plan.groups.items()}
        for name, entry in plan.groups.items():
            removed[name][list(entry.keep)] = False
        return {name: gone for name, gone in removed.items() if gone.any()}, scores

    def _scores(self) -> Scores:
        place = next(self._model.parameters()).device  # the network may have moved since it was followed
        inputs = tuple(tensor.to(place) for tensor in self._inputs)
        return score(self._model, self._graph, self._config.criterion, inputs=inputs)

    def _gradual(self, progress: float) -> Removed:
        """Return the lowest units of every group, as many as are to be gone by now; those that are gone stay so."""
        if not self._counts:
            self._counts = {name: int(gone.sum()) for name, gone in self._choose()[0].items()}
        counts = {name: round(progress * count) for name, count in self._counts.items()}
        return _lowest(self._scores(), counts, self._removed)

    def _hold(self) -> None:
        self._zeros.kept = units.kept_values(self._graph, self._parameters, self._removed)
        self._zeros.apply_()

    def _shrink_scales_(self) -> None:
        """Take a proximal step of an L1 penalty on the scales: each comes closer to 0 by the same amount, not past it.

        The amount is the mean scale of the layer at the beginning, times `strength`, over the steps of the schedule.
        """
        with torch.no_grad():
            for name, scale in self._scales.items():
                if name not in self._shrinks:
                    steps = self._schedule.end - self._schedule.begin
                    self._shrinks[name] = self._strength * float(scale.abs().double().mean()) / steps
                scale.copy_(scale.sign() * (scale.abs() - self._shrinks[name]).clamp(min=0.0))


def _lowest(scores: Scores, counts: dict[str, int], held: Removed) -> Removed:
    """Return the units with the lowest scores of every group; those that are held come first."""
    found: Removed = {}
    for name, count in counts.items():
        values = scores[name]
        rank = np.where(held[name], -np.inf, values) if name in held else values
        found[name] = np.zeros(len(values), dtype=bool)
        found[name][np.argsort(rank, kind="stable")[:count]] = True
    return found
