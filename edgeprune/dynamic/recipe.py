"""From settings to a pruner, once the network that is trained exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgeprune.compact import analyse
from edgeprune.config import OF_WEIGHTS, GradualConfig, PruneConfig, SparsifyConfig, validate
from edgeprune.dynamic.channels import UnitPruner
from edgeprune.dynamic.records import Pruner, Tensors
from edgeprune.dynamic.schedule import make_schedule
from edgeprune.dynamic.singles import WeightPruner
from edgeprune.errors import ConfigError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.enter import enter
from edgeprune.graph.flow import UserRules
from edgeprune.pruning import Masks, PrunePlan
from edgeprune.pruning.criteria import check_name
from edgeprune.values import Check, Json
from edgeprune.workload import as_inputs

if TYPE_CHECKING:
    from edgeprune.graph.rules.custom import Entry

FRACTION = 0.3
STRENGTH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How networks of one kind are pruned while they are trained.

    `graph` and `inputs` are those of units, None for single weights; `prune` and `sparsify` say what is gone in the
    end.
    """

    gradual: GradualConfig
    prune: PruneConfig
    sparsify: SparsifyConfig
    align: int
    graph: ChannelGraph | None = None
    inputs: tuple[torch.Tensor, ...] = ()
    rules: UserRules | None = None

    def settings(self) -> Json:
        """Return what the result depends on besides the network."""
        what = self.prune.model_dump(mode="json") | {"align": self.align}
        target = {"sparsify": self.sparsify.model_dump(mode="json")} if self.graph is None else {"prune": what}
        return {"gradual": self.gradual.model_dump(mode="json", exclude={"epochs"}), **target}

    def make(self, model: nn.Module, total: Callable[[], int | None]) -> Pruner:
        """Return a pruner of a network.

        Args:
            total: Returns the steps of its training, None where they are not known; asked where the end is not given.

        Raises:
            ConfigError: The settings do not fit the network or the training.
            NothingToPrune: They prune nothing.
        """
        config = self.gradual
        schedule = make_schedule(config.begin, config.end, config.every, total() if config.end is None else None)
        if config.method == "weights" or config.method == "rigl":
            return WeightPruner(model, self.sparsify, schedule, config.method, config.fraction or FRACTION)
        if config.method is None or self.graph is None:
            raise ConfigError("no method was named", fix="gradual.method = 'channels'")
        return UnitPruner(
            model,
            self.graph,
            self.prune,
            schedule,
            config.method,
            align=self.align,
            inputs=self.inputs,
            strength=config.strength or STRENGTH,
            rules=self.rules,
        )


def recipe(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    gradual: GradualConfig,
    *,
    prune: PruneConfig,
    sparsify: SparsifyConfig,
    align: int,
    rules: UserRules | None = None,
) -> Recipe:
    """Return how copies of a network are pruned while they are trained.

    Args:
        inputs: Example tensors on which the network is followed; not looked at for single weights.

    Raises:
        TraceError: The forward cannot be followed.
        ConfigError: The network has weights that its forward computes.
    """
    if gradual.of_weights:
        return Recipe(gradual=gradual, prune=prune, sparsify=sparsify, align=align)
    check_name(prune.criterion)
    inputs = as_inputs(inputs)
    entered = enter(model, inputs)
    baked = [notice.text for notice in entered.notices if notice.code == "baked"]
    if baked:
        raise ConfigError(
            f"zeros cannot be held in this network: {baked[0]}",
            fix="train the network with plain parameters: remove parametrizations first",
        )
    graph = analyse(entered.model, inputs, prune.output, rules)
    return Recipe(gradual=gradual, prune=prune, sparsify=sparsify, align=align, graph=graph, inputs=inputs, rules=rules)


class Gradual:
    """Prunes a network while a loop of your own trains it.

        pruner = ep.Gradual(model, inputs, ratio=0.5, end=1000)
        for batch in data:
            ...
            optimizer.step()
            pruner.step()
        small = pruner.finish()

    Methods: `channels` (the units with the lowest scores go by and by), `soft` (their filters are zeroed again and
    again and may come back), `regularise` (they shrink until nothing is left), `slim` (the scales of normalisations
    are made sparse); `weights` (single weights go by and by) and `rigl` (as many of them as are dropped grow
    elsewhere).

    Args:
        model: The network that is trained, in place, perhaps wrapped by DistributedDataParallel.
        inputs: As for `plan`, on the device of the network; not needed for single weights.
        end: The step after which nothing more goes. Train on after it: the network makes up for what is gone.
        begin: The step after which pruning begins.
        every: Steps from one pruning to the next, by default a fortieth of the way.
        by: The method of `sparsify` for single weights: `magnitude`, `lamp`, `erk` or `n:m`.
        align: Kept units are a multiple of it.
        fraction: Of the weights of a layer that change places at first (`rigl`), 0.3 by default.
        strength: How much smaller a scale without gradient would be in the end, in means of its layer (`slim`).
        rules: Rules for operators that edgeprune does not know.
        target: What is gone in the end. Settings of the section `prune` for units, such as `ratio=0.5` or `scope`; of
            `sparsify` for single weights, such as `amount=0.9`.

    Raises:
        ConfigError: A setting is unknown, out of range or does not fit the method or the network.
        TraceError: The forward cannot be followed.
        NothingToPrune: The settings prune nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[torch.Tensor, ...] | list[tuple[torch.Tensor, ...]] | None = None,
        *,
        end: int,
        method: str = "channels",
        begin: int = 0,
        every: int | None = None,
        by: str = "magnitude",
        align: int = 8,
        fraction: float | None = None,
        strength: float | None = None,
        rules: tuple[Entry, ...] = (),
        **target: Any,
    ) -> None:
        from edgeprune.graph.rules.custom import load_rules, reference

        section: Json = {"method": method, "begin": begin, "end": end, "every": every}
        section |= {"fraction": fraction, "strength": strength}
        settings: Json = {"gradual": section}
        if method in OF_WEIGHTS:
            settings["sparsify"] = {"method": by} | target
        else:
            settings["prune"] = {"align": align, "rules": tuple(map(reference, rules))} | target
        config = validate(settings, "Gradual()")
        if not config.gradual.of_weights and inputs is None:
            raise ConfigError(f"method '{method}' needs example inputs", fix="Gradual(model, inputs, ...)")
        examples: Any = inputs if inputs is not None else ()
        found = recipe(
            model,
            examples,
            config.gradual,
            prune=config.prune,
            sparsify=config.sparsify,
            align=align,
            rules=load_rules(rules),
        )
        self._pruner: Any = found.make(model, lambda: None)

    @property
    def settled(self) -> bool:
        """Whether the target is reached; the network only makes up for it from here on."""
        found: bool = self._pruner.settled
        return found

    @property
    def zeros(self) -> float:
        """The share of the units, or of the single weights, that were zero after the last pruning."""
        rows: list[tuple[int, float]] = self._pruner.trail.rows
        return rows[-1][1] if rows else 0.0

    @property
    def masks(self) -> Masks:
        """Which single weights stay (`weights`, `rigl`)."""
        found: Masks = self._of("masks", "single weights")
        return found

    @property
    def plan(self) -> PrunePlan:
        """The plan that removes exactly the units that are held at zero."""
        found: PrunePlan = self._of("plan", "units")
        return found

    def step(self) -> None:
        """Prune what is due after a step of the optimiser, and set to zero what the step has moved."""
        self._pruner.step()

    def state(self) -> Tensors:
        """Return all that is needed to go on, besides the network: tensors by name, for your own checkpoint."""
        found: Tensors = self._pruner.state()
        return found

    def load_state_(self, state: Tensors) -> None:
        """Go on from a saved state, with the network as it was then."""
        self._pruner.load_state_(state)

    def finish(self) -> nn.Module:
        """Return the smaller network, verified, or for single weights a copy of the network with its zeros.

        What the schedule has not reached yet goes at once. The network that was trained is let go.

        Raises:
            VerificationError: The smaller network differs from the masked one.
        """
        found: nn.Module = self._pruner.finish()
        return found

    def cost(self, small: nn.Module) -> Check:
        """Compare the network that was trained with the one that `finish` returned, on the example inputs.

        Equal but for rounding, unless zeros count in something that is computed over channels, as in a LayerNorm.
        """
        measure: Callable[[nn.Module], Check] = self._of("cost", "units")
        return measure(small)

    def _of(self, name: str, what: str) -> Any:
        if not hasattr(type(self._pruner), name):
            raise ConfigError(f"this pruner has no {name}: it is not one of {what}")
        return getattr(self._pruner, name)
