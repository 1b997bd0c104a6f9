"""What the pipeline asks of networks and artifacts: the user's metrics, group tables, scores through runtimes."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ModelError
from edgeprune.values import Json
from edgeprune.workload import Workload, call

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from edgeprune.graph import ChannelGraph
    from edgeprune.pruning import PrunePlan


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


def score_artifact(workload: Workload, path: Path, input_count: int) -> tuple[dict[str, float], str]:
    """Score a file through its runtime.

    Returns:
        The metrics, and where they come from: `test_data` (with `evaluate_outputs`) or `evaluate`.

    Raises:
        ModelError: One of the user's functions failed.
    """
    from edgeprune.export import ArtifactModule

    module = ArtifactModule(path)
    if workload.test_data is not None and workload.evaluate_outputs is not None:
        pairs = _outputs(module, workload, input_count)
        return _metrics(workload, "evaluate_outputs", call(workload, "evaluate_outputs", pairs)), "test_data"
    return _metrics(workload, "evaluate", call(workload, "evaluate", module.eval())), "evaluate"


def batch_inputs(batch: Any, count: int) -> tuple[torch.Tensor, ...]:
    """Return the network's inputs out of a batch: the batch itself, or its first `count` items.

    Raises:
        ModelError: There are no tensors where the inputs should be.
    """
    import torch

    if isinstance(batch, torch.Tensor):
        return (batch,)
    items: Sequence[Any] = batch if isinstance(batch, tuple | list) else ()
    if items and isinstance(items[0], tuple | list):
        items = items[0]
    found = tuple(items[:count])
    if len(found) < count or not all(isinstance(item, torch.Tensor) for item in found):
        raise ModelError(
            f"a batch of type {type(batch).__name__} does not begin with the network's {count} input tensors",
            fix="yield (input, ...) tuples, the inputs first",
        )
    return found


def describe_groups(graph: ChannelGraph, plan: PrunePlan | None) -> list[Json]:
    """Return one row per group: its size before and after the plan, and why it is pinned if it is."""
    rows = []
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
                "params": group.params,
                "macs_share": shares.get(group.name, 0.0),
                "tensors": len(group.tensors),
            }
        )
    return rows


def has_statistics(model: nn.Module) -> bool:
    """Return whether the network keeps running statistics that pruning makes stale."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def _outputs(
    module: nn.Module, workload: Workload, input_count: int
) -> Iterator[tuple[list[np.ndarray[Any, Any]], Any]]:
    import torch

    for batch in call(workload, "test_data"):
        with torch.no_grad():
            value = module(*batch_inputs(batch, input_count))
        outputs = value if isinstance(value, tuple | list) else (value,)
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
