"""The one way from a network and its settings to a plan: blocks first, then the channels of the shallower network."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.config import PruneConfig
from edgeprune.errors import ModelError
from edgeprune.values import Json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan
    from edgeprune.pruning.blocks import Block

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, the channel groups that it speaks of, and one row for every block that was considered.

    `graph` is that of the network without the plan's blocks.
    """

    plan: PrunePlan
    graph: ChannelGraph
    blocks: list[Json]


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
) -> Planned:
    """Choose the blocks and the units of a network that go.

    Args:
        rules: The user's rules for operators.
        step: Returns the loss of a batch, for criteria with gradients.
        data: Batches of the user; `config.batches` of them are seen, and only where a setting needs them.

    Raises:
        NothingToPrune: Every group is pinned, or no block can go though some were asked for.
        ConfigError: The settings do not fit the network.
    """
    from edgeprune.compact import analyse, remove_blocks
    from edgeprune.compact.plans import prepared
    from edgeprune.graph.cost import count_macs
    from edgeprune.pruning import make_plan, score
    from edgeprune.pruning.blocks import choose
    from edgeprune.pruning.criteria import OF_ACTIVATIONS, OF_LOSS
    from edgeprune.workload import as_inputs

    inputs = as_inputs(inputs)
    model = prepared(model, inputs, split=config.split_recurrent)
    deep = config.depth > 0 or bool(config.blocks)
    wanted = data is not None and (deep or config.criterion in (*OF_LOSS, *OF_ACTIVATIONS))
    batches = list(itertools.islice(data(), config.batches)) if wanted and data is not None else None
    shallow, dense_macs = model, None
    names: tuple[str, ...] = ()
    rows: list[Json] = []
    protected: list[str] = []
    if deep:
        blocks, change = weighed(model, inputs, config, batches)
        names = choose(blocks, change, config)
        rows = [_row(block, change[block.name], removed=block.name in names) for block in blocks]
        protected = [name for block in blocks for name in (block.name, *block.tensors)]
        shallow = remove_blocks(model, names, inputs)
        dense_macs = count_macs(model, inputs)
    graph = analyse(shallow, inputs, config.output, rules)
    scores = score(
        shallow,
        graph,
        config.criterion,
        inputs=inputs,
        train_step=step,
        batches=batches,
        samples=_samples(batches) if config.criterion in OF_ACTIVATIONS else None,
        seed=seed,
    )
    plan = make_plan(
        graph,
        scores,
        config,
        align=align,
        model=shallow,
        inputs=inputs,
        blocks=names,
        protected=protected,
        dense_macs=dense_macs,
    )
    return Planned(plan=plan, graph=graph, blocks=rows)


def _samples(batches: list[Any] | None) -> list[tuple[torch.Tensor, ...]] | None:
    from edgeprune.training.batches import model_inputs

    return [model_inputs(batch) for batch in batches] if batches else None


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
