"""Look at a network and its workload for `edgeprune advise`, and say what the rules advise. Nothing is written."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sized
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgeprune.advice import Facts, Family, advise, words_of
from edgeprune.config import RunConfig
from edgeprune.pipeline.folders import open_network
from edgeprune.pipeline.prepare import check_settings
from edgeprune.values import Json
from edgeprune.workload import Workload, batches

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.graph import ChannelGraph

# Counting samples may have to read the data: no longer than this.
SECONDS, BATCHES = 5.0, 1000


def advice(config: RunConfig) -> Json:
    """Return what the rules advise for a workload, and the command that follows from it.

    Args:
        config: `workload`, `weights`, `trust_pickle`, `seed`, ratio or budgets, `prune.output` and `prune.rules` count.

    Raises:
        TraceError: The forward cannot be followed.
        ConfigError: A budget cannot be read.
        ModelError: The data cannot be read.
    """
    from edgeprune.compact import analyse
    from edgeprune.graph.rules.custom import load_rules

    check_settings(config)
    loaded = open_network(config.workload, weights=config.weights, trust_pickle=config.trust_pickle, seed=config.seed)
    graph = analyse(loaded.model, loaded.inputs, config.prune.output, load_rules(config.prune.rules))
    return proposal(config, facts_of(loaded.model, graph, loaded.workload, config, samples_of(loaded.workload)))


def proposal(config: RunConfig, facts: Facts) -> Json:
    """Return facts, advice and the command as plain data."""
    found = advise(facts)
    words = ["edgeprune", "compress", config.workload]
    words += ["--weights", config.weights] if config.weights is not None else []
    words += ["--target", config.target] if config.target != "host" else []
    return {
        "workload": config.workload,
        "facts": asdict(facts),
        "advice": [{**asdict(one), "words": list(one.words)} for one in found],
        "command": shlex.join([*words, *words_of(found)]),
    }


def facts_of(
    model: nn.Module, graph: ChannelGraph, workload: Workload, config: RunConfig, samples: int | None = None
) -> Facts:
    """Return what the rules look at.

    Args:
        samples: Training samples of an epoch, where they were counted.
    """
    from torch.nn.modules.conv import _ConvNd

    from edgeprune.graph.cost import count_params

    streams = sorted((group for group in graph.groups if group.stream), key=lambda group: -group.params)
    return Facts(
        family=family_of(model, graph),
        depthwise=any(isinstance(m, _ConvNd) and m.groups == m.in_channels > 1 for m in model.modules()),
        stream=streams[0].name if streams and streams[0].pinned is None else None,
        embeddings=_embeddings(model) / max(count_params(model), 1),
        prunable=graph.prunable_share,
        params=count_params(model),
        labels=workload.train_data is not None and workload.train_step is not None,
        inputs=workload.train_data is not None or workload.calibration_data is not None,
        scored=workload.evaluate is not None,
        samples=samples,
        budget=config.prune.budget,
        ratio=config.prune.ratio,
        max_size=config.max_size,
        max_latency=config.max_latency,
    )


def family_of(model: nn.Module, graph: ChannelGraph) -> Family:
    """Return what kind of network it is: attention where there are heads, else what makes most of the MACs."""
    from torch.nn.modules.conv import _ConvNd
    from torch.nn.modules.rnn import RNNBase, RNNCellBase

    if any(group.inside_heads for group in graph.groups):
        return "attention"
    shares: dict[Family, float] = {"convolutional": 0, "recurrent": 0, "linear": 0}
    for item in graph.contractions:
        owner = model.get_submodule(item.weight.rpartition(".")[0]) if item.weight else None
        if isinstance(owner, _ConvNd):
            shares["convolutional"] += item.macs
        elif isinstance(owner, RNNBase | RNNCellBase):
            shares["recurrent"] += item.macs
        else:
            shares["linear"] += item.macs
    return max(shares, key=lambda kind: shares[kind])


def _embeddings(model: nn.Module) -> int:
    from torch import nn as layers

    tables = [m for m in model.modules() if isinstance(m, layers.Embedding | layers.EmbeddingBag)]
    return sum(table.weight.numel() for table in tables)


def samples_of(workload: Workload) -> int | None:
    """Return how many samples an epoch has; None without data or where counting would take long.

    Raises:
        ModelError: The data cannot be read.
    """
    from edgeprune.training.batches import model_inputs

    if workload.train_data is None:
        return None
    source = batches(workload, "train_data")
    if isinstance(source.source, Sized):
        first = next(iter(source), None)
        return 0 if first is None else len(source.source) * len(model_inputs(first)[0])
    started, count = time.monotonic(), 0
    for number, batch in enumerate(source):
        if number >= BATCHES or time.monotonic() - started > SECONDS:
            return None
        count += len(model_inputs(batch)[0])
    return count
