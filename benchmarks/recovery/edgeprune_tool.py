"""edgeprune: one plan per criterion and scope, and reconstruction."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import nn

from benchmarks.recovery.candidate import TOLERANCE, Candidate, nearest
from benchmarks.recovery.cases import KEPT, Case
from edgeprune.compact import apply
from edgeprune.config import PruneConfig
from edgeprune.graph.cost import count_macs
from edgeprune.pipeline import planning
from edgeprune.reconstruct import Settings, reconstruct_plan

CRITERIA = ("l1", "l2", "bn_scale", "taylor")
_BATCHES = 8


def prune(case: Case, dense: nn.Module, seed: int, share: float, criterion: str, scope: str) -> Candidate:
    """Return the network with a share of the dense one's multiply-accumulates.

    Widths are whole numbers, so the budget is asked for as it is and with the tolerance; the nearer plan stays.

    Raises:
        UnmetError: No plan is near enough.
    """
    inputs = case.inputs()
    streams: Literal["whole", "free"] = "whole" if scope.endswith(KEPT) else "free"
    found = []
    for budget in (share, share * (1 + TOLERANCE)):
        config = PruneConfig(
            max_macs=f"{budget:.6f}x",
            criterion=criterion,
            scope="global" if scope.startswith("global") else "local",
            batches=_BATCHES,
            streams=streams,
        )
        started = time.process_time()
        planned = planning.make(
            dense, inputs, config, align=1, step=case.step, data=lambda: case.labelled(seed, _BATCHES), seed=seed
        )
        small = apply(dense, planned.plan, inputs, planned.graph).model
        spent = time.process_time() - started
        found.append(
            Candidate(model=small, macs=count_macs(small, inputs), prune_cpu_s=spent, plan=planned.plan),
        )
    return nearest(found, share * count_macs(dense, inputs), f"{criterion} {scope}")


def reconstructed(
    candidate: Candidate, dense: nn.Module, case: Case, calibration: list[tuple[torch.Tensor, ...]]
) -> nn.Module:
    """Return the candidate's network with the weights that are left solved for on all calibration samples."""
    count = sum(len(batch[0]) for batch in calibration)
    settings = Settings(samples=count)
    return reconstruct_plan(candidate.model, dense, candidate.plan, case.inputs(), calibration, settings).model
