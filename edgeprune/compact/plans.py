"""Plans on networks: apply a plan, or rebuild the pruned network from a plan and its weights.

Owns the checks that plan and weights fit. Blocks are removed by `depth`, units by `outputs`, after `rehearse`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from edgeprune.compact.depth import unknown_block, without_blocks
from edgeprune.compact.outputs import Compacted, Output, compact
from edgeprune.compact.recurrent import split_recurrent
from edgeprune.compact.rehearse import analyse
from edgeprune.compact.verify import difference, run
from edgeprune.errors import ConfigError, ResolveError, VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.checks import check_weights
from edgeprune.graph.enter import enter
from edgeprune.graph.flow import UserRules
from edgeprune.pruning import PrunePlan
from edgeprune.workload import as_inputs


def apply(
    model: nn.Module,
    plan: PrunePlan,
    inputs: tuple[torch.Tensor, ...],
    graph: ChannelGraph | None = None,
    rules: UserRules | None = None,
) -> Compacted:
    """Return the network with the blocks and units a plan drops physically removed. The given one is not changed.

    Blocks go first; the groups of the plan are those of the shallower network.

    Args:
        model: The dense network that the plan was made for, with any weights.
        inputs: Example tensors; the compacted network is compared with the masked dense one on them.
        graph: The channel groups of the network without the plan's blocks, where they are already known.
        rules: The user's rules for operators, as the plan was made with.

    Raises:
        ConfigError: The plan does not fit the network.
        ModelError: The smaller network cannot run; `where` is the user's line that expects the old size.
        VerificationError: It runs, but differs from the masked dense network.
    """
    inputs = as_inputs(inputs)
    model = prepared(model, inputs, split=bool(plan.settings.get("split_recurrent")))
    check_weights(model)
    if not plan.blocks:
        graph = graph or analyse(model, inputs, output_of(plan), rules)
        check_fits(graph, plan)
        return compact(model, graph, plan.keep, inputs, output_of(plan))
    shallow, check = without_blocks(model, plan.blocks, inputs)
    graph = graph or analyse(shallow, inputs, output_of(plan), rules)
    check_fits(graph, plan)
    compacted = compact(shallow, graph, plan.keep, inputs, output_of(plan))
    return compacted if compacted.check.max_rel >= check.max_rel else replace(compacted, check=check)


def prepared(model: nn.Module, inputs: tuple[torch.Tensor, ...], *, split: bool) -> nn.Module:
    """Return the network that plans speak of: without wrappers and computed weights, recurrent layers split on demand.

    Raises:
        VerificationError: The network with split layers differs.
    """
    entered = enter(model, inputs).model
    if not split:
        return entered
    apart: nn.Module = split_recurrent(entered)
    check = difference(run(entered, inputs), run(apart, inputs))
    if not check.passed:
        raise VerificationError(
            f"the network with split recurrent layers differs on {check.output}: {check.max_rel:.1e}",
            fix="-s prune.split_recurrent=false",
        )
    return apart


def output_of(plan: PrunePlan) -> Output:
    """Return which output a plan was made for; older plans accept any."""
    found: Output = plan.settings.get("output", "auto")
    return found


def check_fits(graph: ChannelGraph, plan: PrunePlan) -> None:
    """Check that every group of a plan exists in the graph, is free and has the planned number of units.

    Args:
        graph: Of the network without the plan's blocks.

    Raises:
        ConfigError: It does not, groups or blocks that must stay equal do not, or a block of the plan is unknown.
    """
    ran = {span.path for span in graph.trail.record.spans}
    for name in plan.blocks:
        if name not in ran:
            raise unknown_block(name)
    free = {group.name: group for group in graph.free}
    pinned = {group.name: group for group in graph.groups if group.pinned is not None}
    for name, entry in plan.groups.items():
        if name in free and free[name].size == entry.units:
            continue
        if len(entry.keep) == entry.units and name not in free:
            continue
        if name in free:
            raise ConfigError(f"the plan has {entry.units} units for group '{name}', the network {free[name].size}")
        why = f"is pinned: {pinned[name].pinned}" if name in pinned else "does not exist in this network"
        raise ConfigError(f"the plan prunes group '{name}', which {why}", fix="edgeprune prune makes a new plan")
    for linked in graph.links:
        counts = {name: len(plan.groups[name].keep) if name in plan.groups else free[name].size for name in linked}
        if len(set(counts.values())) > 1:
            raise ConfigError(
                f"groups that must keep the same number of units do not: {counts}",
                fix="keep equally many of each",
            )
    kept = {group.name: group.size for group in graph.groups}
    kept |= {name: len(entry.keep) for name, entry in plan.groups.items()}
    for balance in graph.balances:
        if len(set(found := balance.counts(kept))) > 1:
            names = sorted({name for block in balance.blocks for name in block})
            raise ConfigError(
                f"blocks that must keep the same number of channels do not: {balance.what} keep {found}",
                fix=f"keep fewer or more units of {', '.join(names)}",
            )


def rebuild(
    model: nn.Module,
    plan: PrunePlan,
    weights: Mapping[str, torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    rules: UserRules | None = None,
) -> nn.Module:
    """Return the pruned network from a fresh dense one, a plan and the pruned weights.

    Raises:
        ConfigError: The plan does not fit the network.
        ResolveError: The weights do not fit the pruned network.
    """
    small = apply(model, plan, inputs, rules=rules).model
    load_pruned_(small, weights)
    return small


def load_pruned_(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a pruned network, in place; shared tensors may be given under any of their names.

    Raises:
        ResolveError: A tensor is missing, unknown or has another shape.
    """
    state = model.state_dict()
    unknown = sorted(set(weights) - set(state))
    missing = sorted(set(state) - set(weights) - _shared(state, weights))
    if unknown or missing:
        raise ResolveError(f"weights do not fit the pruned network: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, tensor in weights.items():
        if state[name].shape != tensor.shape:
            raise ResolveError(
                f"weights do not fit the pruned network: {name} is {tuple(tensor.shape)}, "
                f"the plan gives {tuple(state[name].shape)}",
                fix="use the plan that was saved next to these weights",
            )
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)


def _shared(state: Mapping[str, torch.Tensor], weights: Iterable[str]) -> set[str]:
    """Return the names whose storage is also known under a given name."""
    given = {state[name].data_ptr() for name in weights if name in state}
    return {name for name, tensor in state.items() if tensor.data_ptr() in given}
