"""Criteria that look at what flows: how strong a channel is where a layer reads it, and how often it is zero.

`activation` is the mean absolute value, `apoz` the share of values that are not zero (Hu et al. 2016, Network Trimming:
the average percentage of zeros). Both are read where a weight is multiplied with the channel, behind its normalisation
and activation function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import Ref, attention_in_parts
from edgeprune.graph.labels import Ids
from edgeprune.graph.numbered import NumberedCalls
from edgeprune.graph.operators import bind
from edgeprune.graph.structure import shared_copy

_READERS = frozenset(
    {"linear", "mm", "addmm", "matmul", "bmm"}
    | {f"{kind}{dims}d" for kind in ("conv", "conv_transpose") for dims in (1, 2, 3)}
    | {"lstm", "gru", "rnn_tanh", "rnn_relu"}
)
_INPUTS = ("input", "self", "mat1")


def activation_scores(
    model: nn.Module, graph: ChannelGraph, kind: str, batches: Iterable[tuple[torch.Tensor, ...]]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean score of every unit of the groups that some layer reads, by group name.

    Args:
        kind: `activation` or `apoz`.
        batches: Inputs of the network, batch first, any number of samples in each.

    Raises:
        ModelError: There are no batches, the network takes another path on them than on the example inputs, or a value
            is not finite.
    """
    readers = _readers(graph)
    total, count = (np.zeros(graph.unit_count + 1) for _ in range(2))
    working = shared_copy(model).eval()
    seen = False
    for batch in batches:
        seen = True
        watcher, own = _Watcher(readers, kind), [tensor.clone() for tensor in batch]
        with torch.inference_mode(), attention_in_parts(), watcher:
            working(*own)
        for units, values in watcher.found:
            for layer in units:
                np.add.at(total, layer, values)
                np.add.at(count, layer, 1.0)
    if not seen:
        raise ModelError(
            f"criterion '{kind}' got no batch", fix="let train_data() or calibration_data() return at least one batch"
        )
    if not np.isfinite(total).all():
        raise ModelError(f"activations are not finite while scoring with '{kind}'")
    read = [group for group in graph.free if (count[group.units] > 0).all()]
    return {group.name: total[group.units] / count[group.units] for group in read}


def _readers(graph: ChannelGraph) -> dict[int, tuple[str, str, int, Ids]]:
    """Return which calls read removable channels: by number the operator, the argument, its dimension and the units."""
    found: dict[int, tuple[str, str, int, Ids]] = {}
    trail = graph.trail
    for place, call in enumerate(trail.record.calls):
        if call.name not in _READERS:
            continue
        for argument in _INPUTS:
            ref = call.args.get(argument)
            if not isinstance(ref, Ref) or ref.id in trail.record.tensors:
                continue
            for axis, units in enumerate(trail.units_of(place, ref)):
                if axis > 0 and units is not None:
                    found[call.index] = (call.name, argument, axis, units)
    return found


class _Watcher(NumberedCalls):  # type: ignore[no-untyped-call]
    """Sums up what the readers take in."""

    def __init__(self, readers: Mapping[int, tuple[str, str, int, Ids]], kind: str) -> None:
        super().__init__()
        self.found: list[tuple[Ids, NDArray[np.float64]]] = []
        self._readers, self._kind = readers, kind

    def call(self, index: int, base: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reader = self._readers.get(index)
        if reader is not None:
            name, argument, axis, units = reader
            tensor = bind(func, args, kwargs).get(argument)
            if base != name or not isinstance(tensor, torch.Tensor) or tensor.shape[axis] != units.shape[1]:
                raise ModelError(
                    f"the network calls {base} on this batch where it called {name} on the example inputs",
                    fix="use a criterion of the weights: -s prune.criterion=l2",
                )
            self.found.append((units, self._summed(tensor, axis)))
        return func(*args, **kwargs)

    def _summed(self, tensor: torch.Tensor, axis: int) -> NDArray[np.float64]:
        others = [dim for dim in range(tensor.dim()) if dim != axis]
        values = tensor.abs() if self._kind == "activation" else (tensor != 0).float()
        mean: NDArray[np.float64] = values.double().mean(dim=others).cpu().numpy()
        return mean
