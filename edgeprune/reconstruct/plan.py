"""Reconstruction of a network that a plan pruned, on batches of the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from edgeprune.compact import analyse, remove_blocks
from edgeprune.compact.plans import check_fits, output_of, prepared
from edgeprune.config import ReconstructConfig
from edgeprune.errors import ModelError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.flow import UserRules
from edgeprune.pruning import PrunePlan
from edgeprune.reconstruct.network import Inputs, Progress, Reconstructed, Settings, reconstruct, slices
from edgeprune.training.batches import model_inputs, to_device
from edgeprune.workload import as_inputs


def settings_of(config: ReconstructConfig) -> Settings:
    """Return what a section of a run's settings means."""
    return Settings(
        samples=config.samples,
        memory_bytes=config.memory_mb << 20,
        max_unknowns=config.max_unknowns,
        ridge=config.ridge,
    )


def reconstruct_plan(
    small: nn.Module,
    dense: nn.Module,
    plan: PrunePlan,
    inputs: tuple[torch.Tensor, ...],
    batches: Iterable[Any],
    settings: Settings | None = None,
    rules: UserRules | None = None,
    progress: Progress | None = None,
    graph: ChannelGraph | None = None,
) -> Reconstructed:
    """Return the pruned network with weights that bring every layer closest to the dense network's.

    Args:
        small: What the plan left of the dense network; it is not changed.
        dense: The network that the plan was made for.
        inputs: Example tensors; the batches' samples must have their shape.
        batches: Of the user's data, labels allowed; only as many are read as the settings ask for.
        rules: The user's rules for operators, as the plan was made with.
        graph: The channel groups of the network without the plan's blocks, where they are already known.

    Raises:
        ConfigError: The plan does not fit the network.
        ModelError: No sample has the shape of the example inputs, the network takes different paths for different
            data, or a layer's inputs are not finite.
        VerificationError: The network with the new weights does not give what was solved for.
    """
    inputs = as_inputs(inputs)
    whole = prepared(dense, inputs, split=bool(plan.settings.get("split_recurrent")))
    shallow = remove_blocks(whole, plan.blocks, inputs) if plan.blocks else whole
    graph = graph or analyse(shallow, inputs, output_of(plan), rules)
    check_fits(graph, plan)
    if graph.branching:
        raise ModelError(
            "the network takes different paths for different data, and layers are solved along one path",
            where=next(iter(graph.trail.record.reads), None),
        )
    device = next(small.parameters()).device
    return reconstruct(small, shallow, graph, plan.keep, _samples(batches, inputs, device), settings, progress)


def _samples(batches: Iterable[Any], inputs: Inputs, device: torch.device) -> Iterator[Inputs]:
    shapes = [tuple(tensor.shape) for tensor in inputs]
    for batch in batches:
        yield from slices(to_device(model_inputs(batch), device), shapes)
