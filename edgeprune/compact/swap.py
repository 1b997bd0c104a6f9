"""Swapping: modules whose code expects the old sizes run as recorded calls, everything around them stays the user's.

The smaller network is run beside the recorded calls; the first module whose result differs, or in which the run ends,
is captured, together with its like. Then again, until the network passes or only the whole network would be left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import nn

from edgeprune.compact.eager import repaired
from edgeprune.compact.program import Uncapturable, capture
from edgeprune.compact.replay import Step, replay
from edgeprune.compact.verify import Reference, check_training
from edgeprune.errors import EdgePruneError
from edgeprune.graph.capture import Record, Ref, Span, attention_in_parts
from edgeprune.graph.results import take_apart
from edgeprune.graph.structure import named_tensors, shared_copy
from edgeprune.values import Check

# Traces of a tensor that tell two results apart: its shape, its sum and the sum of its absolute values.
Trace = tuple[tuple[int, ...], float, float]
_TOLERANCE = 1e-3


def swap(
    reference: Reference, steps: Sequence[Step], other: Record | None
) -> tuple[nn.Module, Check, tuple[str, ...]] | None:
    """Return the user's network with some modules captured, its comparison and their paths; None when that fails."""
    recorded = reference.graph.trail.record
    small = reference.small()
    try:
        expected = _expected(recorded, steps, named_tensors(small), reference.inputs)
    except EdgePruneError:
        return None
    for guess in (False, True):
        trial = repaired(reference, guess_sizes=guess)
        found = None if trial is None else _until_right(trial, reference, steps, other, expected)
        if found is not None:
            return found
    return None


def _until_right(
    small: nn.Module,
    reference: Reference,
    steps: Sequence[Step],
    other: Record | None,
    expected: Sequence[list[Trace]],
) -> tuple[nn.Module, Check, tuple[str, ...]] | None:
    """Capture one module after the other, in place, until the network passes; None when only all of it does."""
    recorded = reference.graph.trail.record
    once = {path: span for path, span in _by_path(recorded.spans).items() if span is not None}
    done: list[str] = []
    while True:
        culprit = _first_wrong(small, reference.inputs, recorded.spans, expected, done)
        if culprit is None:
            try:
                check = reference.check(small)
                if reference.graph.unused:
                    check_training(reference.model, small, reference.inputs)
                return small, check, tuple(done)
            except EdgePruneError:  # something around a captured module looks into it
                culprit = done[-1] if done else ""
        while culprit and (culprit not in once or _is_leaf(reference.model.get_submodule(culprit)) or culprit in done):
            culprit = culprit.rpartition(".")[0]
        if not culprit:
            return None
        kind = type(reference.model.get_submodule(culprit))
        alike = [path for path in once if path and type(reference.model.get_submodule(path)) is kind]
        chosen = [path for path in alike if not any(_inside(path, taken) for taken in [*done, *alike])] or [culprit]
        try:
            for path in chosen:
                _replace_(small, path, recorded, steps, once[path], other, kind.__name__)
        except Uncapturable:
            done.append(culprit)  # its parent is next
            continue
        done = [path for path in done if not any(_inside(path, taken) for taken in chosen)] + chosen


def _by_path(spans: Sequence[Span]) -> dict[str, Span | None]:
    """Return the run of every module by path, None where it ran more than once."""
    found: dict[str, Span | None] = {}
    for span in spans:
        found[span.path] = None if span.path in found else span
    return found


def _inside(path: str, outer: str) -> bool:
    return path != outer and path.startswith(f"{outer}.")


def _is_leaf(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's without parts: what is wrong there came from around it."""
    return type(module).__module__.startswith("torch.nn.modules") and not any(True for _ in module.children())


def _replace_(
    small: nn.Module, path: str, recorded: Record, steps: Sequence[Step], span: Span, other: Record | None, kind: str
) -> None:
    parent, _, name = path.rpartition(".")
    captured = capture(small.get_submodule(path), recorded, steps, span, other, kind)
    setattr(small.get_submodule(parent), name, captured)


def _expected(
    recorded: Record, steps: Sequence[Step], tensors: Mapping[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> list[list[Trace]]:
    """Return the traces of what every module returns when the recorded calls run on the smaller tensors."""
    found: list[list[Trace]] = []
    at_end: dict[int, list[Span]] = {}
    for span in recorded.spans:
        at_end.setdefault(span.end, []).append(span)

    def watch(index: int, values: Mapping[int, torch.Tensor]) -> None:
        for span in at_end.get(index, ()):
            found.append([_trace(values[leaf.id]) for leaf in span.result if isinstance(leaf, Ref)])

    replay(recorded, steps, tensors, inputs, watch)
    return found


def _trace(tensor: torch.Tensor) -> Trace:
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if values.dtype in (torch.float32, torch.float64):
        total, size = float(values.sum()), float(values.abs().sum())
        if isfinite(size):
            return tuple(tensor.shape), total, size
    values = values.double().nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30)
    return tuple(tensor.shape), float(values.sum()), float(values.abs().sum())


def _differ(first: list[Trace], second: list[Trace]) -> bool:
    if len(first) != len(second):
        return True
    for (shape, total, size), (shape2, total2, size2) in zip(first, second, strict=True):
        limit = _TOLERANCE * max(size, 1e-6)
        if shape != shape2 or abs(total - total2) > limit or abs(size - size2) > limit:
            return True
    return False


@dataclass(slots=True)
class _Watch:
    """What a run beside the recorded calls saw: the modules that are open, and the first wrong one."""

    open: list[str] = field(default_factory=list)
    count: int = 0
    wrong: str | None = None


class _Found(RuntimeError):
    """Ends a run at its first wrong result."""


def _first_wrong(
    small: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    spans: Sequence[Span],
    expected: Sequence[list[Trace]],
    done: Sequence[str],
) -> str | None:
    """Return the path of the first module whose result differs from the recorded calls' or that cannot run."""
    trial = shared_copy(small).eval()
    rows = [(s.path, e) for s, e in zip(spans, expected, strict=True) if not any(_inside(s.path, d) for d in done)]
    watch = _Watch()

    def enter(path: str) -> None:
        watch.open.append(path)

    def leave(path: str, result: Any) -> None:
        watch.open.pop()
        traces = [_trace(leaf) for leaf in take_apart(result)[0] if isinstance(leaf, torch.Tensor)]
        known = rows[watch.count] if watch.count < len(rows) else ("", [])
        watch.count += 1
        if known[0] != path or _differ(known[1], traces):
            watch.wrong = path
            raise _Found

    for path, module in trial.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or any(_inside(path, d) for d in done):
            continue
        module.register_forward_pre_hook(lambda _module, _args, path=path: enter(path))
        module.register_forward_hook(lambda _module, _args, result, path=path: leave(path, result))
    try:
        with torch.inference_mode(), attention_in_parts():
            trial(*(tensor.clone() for tensor in inputs))
    except _Found:
        return watch.wrong
    except Exception:  # noqa: BLE001  the user's code may fail in any way on sizes it does not expect
        return watch.open[-1] if watch.open else ""
    return None
