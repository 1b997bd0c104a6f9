"""Torch-Pruning: its criteria, called as its own examples call them; only the layers that make the outputs are kept."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from torch import nn

from benchmarks.recovery.candidate import TOLERANCE, Candidate, UnmetError, nearest
from benchmarks.recovery.cases import KEPT, Case
from benchmarks.zoo.torch_pruning_tool import output_layers
from edgeprune.graph.cost import count_macs

CRITERIA = ("l1", "l2", "lamp", "bn_scale", "fpgm", "taylor", "random")
_BATCHES, _STEPS, _CLOSE = 8, 14, 0.004
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def prune(case: Case, dense: nn.Module, seed: int, share: float, criterion: str, scope: str) -> Candidate:
    """Return the network with a share of the dense one's multiply-accumulates, by bisection on the pruning ratio.

    Raises:
        UnmetError: No ratio brings it near enough.
    """
    search = _Search(case, dense, seed, share, criterion, scope)
    try:
        search.ratio()
        if scope.startswith("local") and not search.near():
            search.mixture()
    except _FAILURES as error:
        raise UnmetError(f"{criterion} {scope}: {type(error).__name__}: {error}".partition("\n")[0]) from error
    return nearest(list(search.found.values()), search.wanted, f"{criterion} {scope}")


class _Search:
    """The networks of one criterion and scope that were tried, by their multiply-accumulates."""

    def __init__(self, case: Case, dense: nn.Module, seed: int, share: float, criterion: str, scope: str) -> None:
        self.case, self.dense, self.seed, self.criterion, self.scope = case, dense, seed, criterion, scope
        self.dense_macs = count_macs(dense, case.inputs())
        self.wanted = share * self.dense_macs
        self.gradients = _gradients(case, dense, seed) if criterion == "taylor" else {}
        self.found: dict[int, Candidate] = {}
        self.low, self.high = 0.0, 1.0

    def near(self, tolerance: float = TOLERANCE) -> bool:
        """Say whether a network is near enough."""
        return any(abs(macs / self.wanted - 1) <= tolerance for macs in self.found)

    def ratio(self) -> None:
        """Look for one ratio for all layers, by bisection."""
        for _ in range(_STEPS):
            middle = (self.low + self.high) / 2
            small = self._try(middle, {})
            self.low, self.high = (self.low, middle) if small else (middle, self.high)
            if self.near(_CLOSE):
                break

    def mixture(self) -> None:
        """Give the first so many layers the lower of the two ratios at the wanted one, and the others the higher."""
        names = [name for name, layer in self.dense.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        fewest, most = 0, len(names)
        while most - fewest > 1 and not self.near(_CLOSE):
            middle = (fewest + most) // 2
            small = self._try(self.high, dict.fromkeys(names[:middle], self.low))
            fewest, most = (middle, most) if small else (fewest, middle)

    def _try(self, ratio: float, ratios: dict[str, float]) -> bool:
        """Prune and keep the result; say whether it is within the wanted multiply-accumulates."""
        started = time.process_time()
        small = _pruned(self, ratio, ratios)
        spent = time.process_time() - started
        macs = count_macs(small, self.case.inputs())
        if macs < self.dense_macs:
            self.found.setdefault(macs, Candidate(model=small, macs=macs, prune_cpu_s=spent))
        return macs <= self.wanted


def _gradients(case: Case, dense: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(dense).eval()
    for batch in case.labelled(seed, _BATCHES):
        case.step(model, batch).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _pruned(search: _Search, ratio: float, ratios: dict[str, float]) -> nn.Module:
    import torch_pruning as tp

    case, model = search.case, copy.deepcopy(search.dense).eval()
    for name, parameter in model.named_parameters():
        parameter.grad = search.gradients[name].clone() if name in search.gradients else None
    heads = {model.get_submodule(name): count for name, count in case.heads.items()}
    stream = [model.get_submodule(name) for name in case.stream] if search.scope.endswith(KEPT) else []
    torch.manual_seed(search.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            case.inputs(),
            importance=_importance(search.criterion),
            global_pruning=search.scope.startswith("global"),
            pruning_ratio=ratio,
            pruning_ratio_dict={model.get_submodule(name): own for name, own in ratios.items()},
            ignored_layers=[*output_layers(model, case.inputs()), *stream],
            num_heads=heads,
            in_channel_groups={},  # its default arguments are shared between pruners
            out_channel_groups={},
            channel_groups={},
            customized_pruners={nn.LSTM: _lstm_pruner()},
        )
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model


def _lstm_pruner() -> Any:
    """Return a pruner of LSTM layers: version 1.6.1's own cuts four gates as if they were one and raises IndexError."""
    from torch_pruning.pruner.function import LSTMPruner

    class Repaired(LSTMPruner):  # type: ignore[misc]
        """All four gates lose the same units, and so does the state."""

        def prune_out_channels(self, layer: nn.LSTM, idxs: list[int]) -> nn.Module:
            width = layer.hidden_size
            keep = sorted(set(range(width)) - set(idxs))
            gates = [gate * width + unit for gate in range(4) for unit in keep]
            for name, parameter in list(layer.named_parameters()):
                changed = self._prune_parameter_and_grad(parameter, gates, 0)
                if name.startswith("weight_hh"):
                    changed = self._prune_parameter_and_grad(changed, keep, 1)
                setattr(layer, name, changed)
            layer.hidden_size = len(keep)
            return layer

    return Repaired()


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
