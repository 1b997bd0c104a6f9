"""What the pipeline asks of networks and artifacts: the user's metrics, group tables, scores through runtimes."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ModelError
from edgeprune.preprocessing import Preprocessing, parse_labels, parse_preprocessing
from edgeprune.values import Json
from edgeprune.workload import Workload, batches, call

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from edgeprune.config import PruneConfig
    from edgeprune.graph import ChannelGraph
    from edgeprune.pruning import PrunePlan

    Outputs = Iterator[tuple[list[np.ndarray[Any, Any]], Any]]

SAMPLES = 16


def evaluate(workload: Workload, model: nn.Module) -> dict[str, float] | None:
    """Return the user's metrics of a network in evaluation mode, or None without `evaluate`.

    Raises:
        ModelError: The function failed or returned something else than named numbers.
    """
    if workload.evaluate is None:
        return None
    value = call(workload, "evaluate", model.eval())
    model.eval()
    return _metrics(workload, "evaluate", value)


def score_artifact(workload: Workload, path: Path) -> tuple[dict[str, float], str]:
    """Score a file through its runtime.

    Returns:
        The metrics, and where they come from: `test_data` (with `evaluate_outputs`) or `evaluate`.

    Raises:
        ModelError: One of the user's functions failed.
    """
    from edgeprune.export import ArtifactModule

    module = ArtifactModule(path)
    if workload.test_data is not None and workload.evaluate_outputs is not None:
        return metrics_of_outputs(workload, outputs_on(module, batches(workload, "test_data"))), "test_data"
    return validate_artifact(workload, path), "evaluate"


def validate_artifact(workload: Workload, path: Path) -> dict[str, float]:
    """Return what `evaluate` says of a file, run by its runtime.

    Raises:
        ModelError: The function failed, for example because it takes networks only.
    """
    from edgeprune.export import ArtifactModule

    return _metrics(workload, "evaluate", call(workload, "evaluate", ArtifactModule(path).eval()))


def describe_groups(graph: ChannelGraph, plan: PrunePlan | None, config: PruneConfig) -> list[Json]:
    """Return one row per group: its size before and after the plan, and why it is pinned or rests if it does."""
    from edgeprune.pruning.select import resting

    rows, rest = [], resting(graph, config)
    shares = graph.macs_share
    for group in graph.groups:
        chosen = plan.groups.get(group.name) if plan is not None else None
        kept = len(chosen.keep) if chosen is not None else group.size
        rows.append(
            {
                "name": group.name,
                "units_before": group.size,
                "units_after": kept,
                "channels_before": group.channels,
                "channels_after": group.channels * kept // group.size if group.size else 0,
                "pinned": group.pinned,
                "where": group.where,
                "fix": group.fix,
                "statistics": group.statistics,
                "rests": rest.get(group.name) if kept == group.size else None,
                "params": group.params,
                "macs_share": shares.get(group.name, 0.0),
                "tensors": len(group.tensors),
            }
        )
    return rows


def true_samples(workload: Workload, inputs: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Return the first samples of a workload's data, at most `SAMPLES`, to compare files on; none where others come.

    An example of one row says little about a network that looks rows up: files are compared on true ones, too.

    Raises:
        ModelError: The data cannot be read.
    """
    from edgeprune.training.batches import model_inputs

    names = ("test_data", "calibration_data", "train_data")
    name = next((name for name in names if getattr(workload, name) is not None), None)
    batch = next(iter(batches(workload, name)), None) if name is not None else None
    tensors = model_inputs(batch) if batch is not None else ()
    alike = [(tensor.shape[1:], tensor.dtype) for tensor in tensors] == [(own.shape[1:], own.dtype) for own in inputs]
    return [tuple(tensor[:SAMPLES] for tensor in tensors)] if alike and all(tensor.dim() for tensor in inputs) else []


def stated_labels(workload: Workload) -> tuple[str, ...]:
    """Return the names of the classes that a workload states, for the files that it becomes; none where it does not.

    Raises:
        ConfigError: They are not what they should be.
    """
    if workload.labels is None:
        return ()
    return parse_labels(call(workload, "labels"), workload.source)


def stated_preprocessing(workload: Workload, names: Sequence[str]) -> dict[str, Preprocessing]:
    """Return how a workload says that its inputs, by these names, are made; nothing where it does not.

    Raises:
        ConfigError: It is not what it should be.
    """
    if workload.preprocessing is None:
        return {}
    return parse_preprocessing(call(workload, "preprocessing"), names, workload.source)


def macs_of(graph: ChannelGraph, path: str) -> float:
    """Return the share of the multiply-accumulates in which the tensors of a module take part."""
    total = sum(item.macs for item in graph.contractions)
    own = sum(item.macs for item in graph.contractions if (item.weight or "").startswith(f"{path}."))
    return own / max(total, 1)


def has_statistics(model: nn.Module) -> bool:
    """Return whether the network keeps running statistics that pruning makes stale."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def metrics_of_outputs(workload: Workload, pairs: Outputs) -> dict[str, float]:
    """Return what `evaluate_outputs` of the workload says of pairs of outputs and batch.

    Raises:
        ModelError: The function failed or returned something else than named numbers.
    """
    return _metrics(workload, "evaluate_outputs", call(workload, "evaluate_outputs", pairs))


def outputs_on(module: nn.Module, data: Iterable[Any]) -> Outputs:
    """Yield a network's outputs as numpy arrays on every batch, with the batch."""
    import torch

    from edgeprune.graph.structure import output_tensors
    from edgeprune.training.batches import inputs_for

    for batch in data:
        with torch.no_grad():
            outputs = output_tensors(module(*inputs_for(module, batch)))
        yield [output.numpy() for output in outputs], batch


def _metrics(workload: Workload, function: str, value: Any) -> dict[str, float]:
    import torch

    found = {}
    if not isinstance(value, dict) or not value:
        raise ModelError(
            f"{function}() returned {type(value).__name__}, not named metrics",
            where=workload.source,
            fix='return a dict such as {"top1": 0.91}',
        )
    for name, item in value.items():
        if isinstance(item, torch.Tensor) and item.numel() == 1:
            item = item.item()
        if not isinstance(name, str) or not isinstance(item, numbers.Real):
            raise ModelError(f"{function}() returned {name!r}: {item!r}, which is not a number", where=workload.source)
        found[name] = float(item)
    return found
