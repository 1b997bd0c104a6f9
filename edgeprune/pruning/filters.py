"""A criterion of the distances between weights: what others can stand in for goes first.

`fpgm` (He et al. 2019, Filter Pruning via Geometric Median): a filter with a small summed distance to all others of its
layer lies near their geometric median, and the others express it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.graph import ChannelGraph
from edgeprune.graph.classes import BLOCKED


def distances(model: nn.Module, graph: ChannelGraph) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return per position of every weight's rows the summed distance to all other rows, shape (size,).

    Rows are what makes a channel: dimension 0, and the dimension that a group is made along (the second of transposed
    convolutions and embeddings).
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    producers = {group.producer for group in graph.free}
    values = {}
    for name, axis in graph.dims:
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() < 2 or axis == BLOCKED or (axis != 0 and (name, axis) not in producers):
            continue
        rows = tensor.detach().movedim(axis, 0).flatten(1).double()
        values[(name, axis)] = torch.cdist(rows, rows).sum(1).cpu().numpy()
    return values
