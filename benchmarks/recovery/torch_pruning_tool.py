"""Torch-Pruning: its criteria, called as its own examples call them; only the layers that make the outputs are kept."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from torch import nn

from benchmarks.recovery.candidate import Candidate, nearest
from benchmarks.recovery.cases import Case
from benchmarks.zoo.torch_pruning_tool import output_layers
from edgeprune.graph.cost import count_macs

CRITERIA = ("l1", "l2", "lamp", "bn_scale", "fpgm", "taylor", "random")
SCOPES = ("local", "global")
_BATCHES, _STEPS = 8, 14


def prune(case: Case, dense: nn.Module, seed: int, share: float, criterion: str, scope: str) -> Candidate:
    """Return the network with a share of the dense one's multiply-accumulates, by bisection on the pruning ratio.

    Raises:
        UnmetError: No ratio brings it near enough.
    """
    inputs = case.inputs()
    gradients = _gradients(case, dense, seed) if criterion == "taylor" else {}
    wanted = share * count_macs(dense, inputs)
    low, high = 0.0, 1.0
    found: dict[int, Candidate] = {}
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        started = time.process_time()
        small = _pruned(case, dense, gradients, seed, criterion, scope, ratio)
        spent = time.process_time() - started
        macs = count_macs(small, inputs)
        found.setdefault(macs, Candidate(model=small, macs=macs, prune_cpu_s=spent))
        low, high = (low, ratio) if macs <= wanted else (ratio, high)
    dense_macs = count_macs(dense, inputs)
    return nearest([item for item in found.values() if item.macs < dense_macs], wanted, f"{criterion} {scope}")


def _gradients(case: Case, dense: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(dense).eval()
    for batch in case.labelled(seed, _BATCHES):
        case.step(model, batch).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _pruned(
    case: Case,
    dense: nn.Module,
    gradients: dict[str, torch.Tensor],
    seed: int,
    criterion: str,
    scope: str,
    ratio: float,
) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(dense).eval()
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    heads = {model.get_submodule(name): count for name, count in case.heads.items()}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            case.inputs(),
            importance=_importance(criterion),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            ignored_layers=output_layers(model, case.inputs()),
            num_heads=heads,
            in_channel_groups={},  # its default argument is shared between pruners
            out_channel_groups={},
            channel_groups={},
        )
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model


def _importance(criterion: str) -> Any:
    import torch_pruning as tp

    importance = tp.importance
    makers: dict[str, Any] = {
        "l1": lambda: importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "lamp": lambda: importance.LAMPImportance(p=2),
        "bn_scale": lambda: importance.BNScaleImportance(),
        "fpgm": lambda: importance.FPGMImportance(p=2),
        "taylor": lambda: importance.GroupTaylorImportance(),
        "random": lambda: importance.RandomImportance(),
    }
    return makers[criterion]()
