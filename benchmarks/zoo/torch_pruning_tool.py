"""Torch-Pruning on one network, as its users call it: magnitude, half of every group, no hints about the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.judge import Kept, Undecided
from edgeprune.graph.structure import output_tensors

RATIO = 0.5
Report = Callable[..., None]


def version() -> str:
    """Return the installed version."""
    return installed("torch-pruning")


def prune(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], report: Report, _seed: int = 0
) -> tuple[nn.Module, Kept, None]:
    """Prune half of every group that does not make the output; return the smaller network and the kept positions.

    Args:
        report: Takes fields of the row as they become known. The network is changed in place.
    """
    import torch_pruning as tp

    log = _Log(model)
    ignored = output_layers(model, inputs)
    parameters = dict(model.named_parameters())
    before = {name: parameter.numel() for name, parameter in parameters.items()}
    started = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs[0] if len(inputs) == 1 else tuple(inputs),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        global_pruning=False,
        round_to=1,
    )
    traced = time.process_time()
    report(captured=True)
    compacting = 0.0
    with log:
        for group in pruner.step(interactive=True):
            began = time.process_time()
            group.prune()
            compacting += time.process_time() - began
    ended = time.process_time()
    kept = log.kept(model)
    shrunk = {name for name, _ in kept}
    spent = {"trace": traced - started, "plan": ended - traced - compacting, "compact": compacting}
    spent |= {"verify": 0.0, "total": ended - started}
    report(
        ignored=len(ignored),
        reach_params=round(sum(n for name, n in before.items() if name in shrunk) / max(sum(before.values()), 1), 4),
        cpu_s={key: round(value, 4) for key, value in spent.items()},
    )
    return model, kept, None


def output_layers(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[nn.Module]:
    """Return the layers that make the outputs: for each output the last one run with as many channels as it has."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, args, result: order.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with torch.no_grad():
            outputs = output_tensors(model(*(tensor.clone() for tensor in inputs)))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[int, nn.Module] = {}
    for output in outputs:
        sizes = {output.shape[axis] for axis in (1, -1) if output.dim() > 1}
        last = next((module for module in reversed(order) if _channels(module) in sizes), None)
        if last is not None:
            found[id(last)] = last
    return list(found.values())


def _channels(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


class _Log:
    """Writes down which positions of which parameter the tool keeps, while it prunes."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters(remove_duplicate=False))
        self._names = {id(parameter): name for name, parameter in reversed(named)}
        self._alive: list[torch.Tensor] = [parameter for _, parameter in named]
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._original: Any = None

    def __enter__(self) -> _Log:
        from torch_pruning.pruner.function import BasePruningFunc

        self._original = original = BasePruningFunc._prune_parameter_and_grad
        log = self

        def noted(self: Any, weight: Any, keep_idxs: Any, pruning_dim: int) -> Any:
            result = original(self, weight, keep_idxs, pruning_dim)
            log._note(weight, torch.as_tensor(list(keep_idxs), dtype=torch.long), pruning_dim, result)
            return result

        BasePruningFunc._prune_parameter_and_grad = noted
        return self

    def __exit__(self, *error: object) -> None:
        from torch_pruning.pruner.function import BasePruningFunc

        BasePruningFunc._prune_parameter_and_grad = self._original

    def _note(self, weight: torch.Tensor, keep: torch.Tensor, axis: int, result: torch.Tensor) -> None:
        if id(weight) not in self._names:
            raise Undecided("a parameter was pruned that the network does not name")
        name = self._names[id(weight)]
        dim = axis % weight.dim()
        known = self._kept.get((name, dim))
        self._kept[(name, dim)] = keep if known is None else known[keep]
        self._names[id(result)] = name
        self._alive += [weight, result]

    def kept(self, model: nn.Module) -> dict[tuple[str, int], torch.Tensor]:
        """Return the kept positions, with those of running statistics, which go with the scales of their norm.

        Raises:
            Undecided: A tensor shrank that nothing was written down about.
        """
        kept = {(n, d): keep for (n, d), keep in self._kept.items() if len(keep) != self._shapes[n][d]}
        for name, tensor in model.state_dict().items():
            if tuple(tensor.shape) == self._shapes.get(name) or any(known == name for known, _ in kept):
                continue
            scale = (f"{name.rpartition('.')[0]}.weight", 0)
            if scale not in kept or len(kept[scale]) != tensor.shape[0]:
                raise Undecided(f"{name} shrank, and its scale tells not where")
            kept[(name, 0)] = kept[scale]
        return kept
