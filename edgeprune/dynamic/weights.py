"""Single weights that go, or change places, while the network is trained.

`weights` prunes by magnitude along the schedule; which weights would go in the end is asked of `pruning` each time.
`rigl` keeps the number of weights of every layer and moves them to where the gradient is largest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgeprune.config import SparsifyConfig
from edgeprune.pruning import Masks, make_masks

Kept = dict[str, torch.Tensor]


def thinned(model: nn.Module, config: SparsifyConfig, progress: float, before: Kept) -> Kept:
    """Return which weights stay when a share of those that are to go in the end is gone.

    Of what the settings would prune now, every layer loses the smallest weights; what is gone stays so.

    Args:
        progress: The share that is gone, in [0, 1]; at 1 the result is what the settings prune.
        before: Which stayed until now.
    """
    found: Kept = {}
    for name, final in make_masks(model, config).kept.items():
        goes = ~final.flatten()
        held = ~before[name].flatten() if name in before else torch.zeros_like(goes)
        size = model.get_parameter(name).detach().abs().flatten().double()
        rank = torch.where(held, -1.0, torch.where(goes, size, torch.inf))
        found[name] = ~lowest(rank, round(progress * int(goes.sum()))).view_as(final) & ~held.view_as(final)
    return found


def regrown(kept: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a layer's weights that stay after some changed places (Evci et al. 2020, arXiv 1911.11134).

    The smallest of the kept weights are dropped, and as many grow where the gradient of the loss is largest among all
    that are not kept then; a dropped one may be back at once.

    Args:
        kept: Which weights stay until now.
        gradient: That of the whole weight, pruned positions included.
        fraction: Of the kept weights that are dropped.
    """
    count = round(fraction * int(kept.sum()))
    magnitude = torch.where(kept, weight.detach().abs().double(), torch.inf).flatten()
    left = kept.flatten() & ~lowest(magnitude, count)
    slope = torch.where(left, torch.inf, -gradient.detach().abs().double().flatten())
    return (left | lowest(slope, count)).view_as(kept)


def lowest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return which of flat values are the lowest; of equal ones those with the lower index."""
    found = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    if count > 0:
        found[torch.argsort(values, stable=True)[:count]] = True
    return found


def zero_share(kept: Mapping[str, torch.Tensor]) -> float:
    """Return the share of weights that are pruned."""
    return Masks(kept=dict(kept)).sparsity
