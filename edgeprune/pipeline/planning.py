"""The one way from a network and its settings to a plan: blocks first, then the channels of the shallower network."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeprune.config import PruneConfig, RunConfig
from edgeprune.errors import ModelError
from edgeprune.pipeline.layerwise import Layerwise, search
from edgeprune.values import Json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan
    from edgeprune.pruning.blocks import Block
    from edgeprune.pruning.criteria import Scores
    from edgeprune.search import Sensitivity

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """An earlier plan and the channel groups it speaks of, with the weights that the network it left has by now."""

    plan: PrunePlan
    graph: ChannelGraph
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, the channel groups that it speaks of, and one row for every block that was considered.

    `graph` is that of the network without the plan's blocks. `layerwise` holds what was tried where groups were
    pruned one after the other.
    """

    plan: PrunePlan
    graph: ChannelGraph
    blocks: list[Json]
    layerwise: Json | None = None


def make(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    config: PruneConfig,
    *,
    align: int,
    step: Callable[[nn.Module, Any], torch.Tensor] | None,
    data: Callable[[], Iterable[Any]] | None,
    seed: int,
    rules: UserRules | None = None,
    sensitivity: Sensitivity | None = None,
    last: Last | None = None,
    layerwise: Layerwise | None = None,
) -> Planned:
    """Choose the blocks and the units of a network that go.

    Args:
        rules: The user's rules for operators.
        sensitivity: What every group costs alone: ratios are chosen so that the losses add up to the least.
        last: An earlier plan for the same network, whose blocks stay gone and whose units alone may be kept.
        layerwise: Prune one group after the other in this way, instead of all at once.
        step: Returns the loss of a batch, for criteria with gradients.
        data: Batches of the user; `config.batches` of them are seen, and only where a setting needs them.

    Raises:
        NothingToPrune: Every group is pinned, or no block can go though some were asked for.
        ConfigError: The settings do not fit the network.
    """
    from edgeprune.compact import analyse
    from edgeprune.compact.plans import prepared
    from edgeprune.pruning import make_plan
    from edgeprune.pruning.select import hold
    from edgeprune.workload import as_inputs

    inputs = as_inputs(inputs)
    model = prepared(model, inputs, split=config.split_recurrent)
    batches = seen(config, data)
    start = _start(model, inputs, config, batches, last)
    graph = last.graph if last is not None else analyse(start.model, inputs, config.output, rules)
    scores = scored(start.model, graph, inputs, config, step=step, batches=batches, seed=seed)
    share = None if layerwise is not None else sensitivity

    def planned(settings: PruneConfig) -> PrunePlan:
        return make_plan(
            graph,
            scores,
            settings,
            align=align,
            model=start.model,
            inputs=inputs,
            blocks=start.blocks,
            protected=start.protected,
            dense=start.dense,
            allocate=allocation(graph, settings, share, start.model, inputs, blocks=start.protected),
            within=None if last is None else {name: group.keep for name, group in last.plan.groups.items()},
        )

    if layerwise is None:
        return Planned(plan=planned(config), graph=graph, blocks=start.rows)
    held = hold(graph, config.keep, start.protected)
    if not held.free:
        planned(config)
    if sensitivity is not None:
        sensitivity.check_fits({group.name: group.size for group in graph.groups}, gone=bool(start.protected))
    plan, journal = search(layerwise, held, config, sensitivity, planned)
    return Planned(plan=plan, graph=graph, blocks=start.rows, layerwise=journal)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """The network whose channels are planned, and the blocks that it is without.

    `rows` describe all blocks; `protected` names them and their tensors. `dense` is what the network with them
    has of what there is a budget for, None where none is gone.
    """

    model: nn.Module
    blocks: tuple[str, ...] = ()
    rows: list[Json] = field(default_factory=list)
    protected: tuple[str, ...] = ()
    dense: int | None = None


def _start(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    config: PruneConfig,
    batches: list[Any] | None,
    last: Last | None,
) -> _Start:
    """Choose the blocks that go, or take them and the weights over from an earlier plan."""
    from edgeprune.compact import grown, remove_blocks
    from edgeprune.compact.depth import removable
    from edgeprune.pruning.blocks import choose
    from edgeprune.pruning.budget import count

    if last is None and not _deep(config):
        return _Start(model=model)
    rows: list[Json] = []
    if last is not None:
        model, names = grown(model, last.graph, last.plan.keep, last.weights), last.plan.blocks
        blocks = removable(model, inputs) if _deep(config) else ()
    else:
        blocks, change = weighed(model, inputs, config, batches)
        names = choose(blocks, change, config)
        rows = [_row(block, change[block.name], removed=block.name in names) for block in blocks]
    return _Start(
        model=remove_blocks(model, names, inputs) if names else model,
        blocks=names,
        rows=rows,
        protected=tuple(name for block in blocks for name in (block.name, *block.tensors)),
        dense=None if config.budget is None else count(config.budget[0], model, inputs),
    )


def _deep(config: PruneConfig) -> bool:
    return config.depth > 0 or bool(config.blocks)


def layerwise_settings(config: RunConfig) -> Json:
    """Return the settings that a plan depends on where groups are pruned one after the other, by their dotted names."""
    if config.prune.strategy != "layerwise":
        return {}
    found = {f"layerwise.{name}": value for name, value in config.layerwise.model_dump(mode="json").items()}
    found |= {f"reconstruct.{name}": value for name, value in config.reconstruct.model_dump(mode="json").items()}
    return found | {"finetune.metric": config.finetune.metric}


def read_sensitivity(config: PruneConfig) -> Sensitivity | None:
    """Return what the settings say the groups cost, if they do.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: It is no sensitivity.
    """
    from edgeprune.search import Sensitivity

    return Sensitivity.load(config.sensitivity) if config.sensitivity is not None else None


def allocation(
    graph: ChannelGraph,
    config: PruneConfig,
    sensitivity: Sensitivity | None,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    blocks: Sequence[str] = (),
) -> Callable[[float], dict[str, float]] | None:
    """Return the ratio of every group from the share of units, or of multiply-accumulates, that is to go.

    Args:
        blocks: Names of blocks and their tensors. Some were removed, perhaps with groups that were measured.

    Raises:
        ConfigError: The sensitivity is of another network.
    """
    from edgeprune.pruning.budget import count, left_of
    from edgeprune.pruning.select import active, hold

    if sensitivity is None:
        return None
    sensitivity.check_fits({group.name: group.size for group in graph.groups}, gone=bool(blocks))
    held = hold(graph, config.keep, blocks)
    names = active(held, config)
    sizes = {group.name: float(group.size) for group in held.free if group.name in names}
    if config.budget is None:
        return sensitivity.allocate(sizes, sum(sizes.values()), config.ratios)
    kind, _ = config.budget
    current = count(kind, model, inputs)
    left = left_of(kind, graph, model, current)
    freed = {name: current - left({name: ()}) for name in sizes}
    return sensitivity.allocate(freed, sum(freed.values()), config.ratios)


def seen(config: PruneConfig, data: Callable[[], Iterable[Any]] | None) -> list[Any] | None:
    """Return the batches that blocks and criteria see, where the settings need any and there is data."""
    from edgeprune.pruning.criteria import OF_ACTIVATIONS, OF_LOSS

    if data is None or not (_deep(config) or config.criterion in (*OF_LOSS, *OF_ACTIVATIONS)):
        return None
    return list(itertools.islice(data(), config.batches))


def scored(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: tuple[torch.Tensor, ...],
    config: PruneConfig,
    *,
    step: Callable[[nn.Module, Any], torch.Tensor] | None,
    batches: list[Any] | None,
    seed: int,
) -> Scores:
    """Return the importance of every unit by the criterion of the settings."""
    from edgeprune.pruning import score
    from edgeprune.pruning.criteria import OF_ACTIVATIONS
    from edgeprune.training.batches import model_inputs

    activations = config.criterion in OF_ACTIVATIONS and batches
    return score(
        model,
        graph,
        config.criterion,
        inputs=inputs,
        train_step=step,
        batches=batches,
        samples=[model_inputs(batch) for batch in batches] if activations and batches else None,
        seed=seed,
    )


def given(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], plan: PrunePlan, rules: UserRules | None = None
) -> Planned:
    """Return a plan that was made before with what it says of this network.

    Raises:
        ConfigError: It removes a block that the network does not have.
    """
    from edgeprune.compact import analyse, remove_blocks
    from edgeprune.compact.plans import output_of, prepared
    from edgeprune.graph.cost import count_params

    model = prepared(model, inputs, split=bool(plan.settings.get("split_recurrent")))
    shallow = remove_blocks(model, plan.blocks, inputs) if plan.blocks else model
    rows = [
        {
            "name": name,
            "params": count_params(model.get_submodule(name)),
            "influence": None,
            "removed": True,
            "pinned": None,
        }
        for name in plan.blocks
    ]
    return Planned(plan=plan, graph=analyse(shallow, inputs, output_of(plan), rules), blocks=rows)


def weighed(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], config: PruneConfig, batches: Iterable[Any] | None
) -> tuple[tuple[Block, ...], dict[str, float]]:
    """Return the blocks of a network, with those that `config.keep` protects pinned, and their influence by name.

    Args:
        batches: The user's batches; without any, or where they are not what the network is called on, influence is
            measured on the example inputs.
    """
    from edgeprune.compact.depth import removable
    from edgeprune.pruning.blocks import influence, protect
    from edgeprune.training.batches import model_inputs

    blocks = protect(removable(model, inputs), config.keep)
    if batches is not None:
        try:
            return blocks, influence(model, blocks, [model_inputs(batch) for batch in batches] or [inputs])
        except (ModelError, TypeError, RuntimeError) as error:  # a train_step may unpack batches in its own way
            _log.info("influence is measured on the example inputs: %s", error)
    return blocks, influence(model, blocks, [inputs])


def block_rows(model: nn.Module, inputs: tuple[torch.Tensor, ...], config: PruneConfig) -> list[Json]:
    """Return one row for every block of a network, measured on the example inputs; nothing is chosen."""
    blocks, change = weighed(model, inputs, config, None)
    return [_row(block, change[block.name], removed=False) for block in blocks]


def _row(block: Block, change: float, *, removed: bool) -> Json:
    return {
        "name": block.name,
        "params": block.params,
        "influence": change,
        "removed": removed,
        "pinned": block.pinned,
    }
