"""Eager compaction: the user's own module with the removed positions cut out of its tensors, verified.

Owns slicing and the comparison that every compaction must pass. Takes kept units; knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.compact.attributes import guessed, repair_norms_, repair_sizes_, repair_torch_
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.errors import EdgePruneError, ModelError, VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import copy_model, output_tensors
from edgeprune.graph.groups import Dim
from edgeprune.values import Check
from edgeprune.workload import user_line

TOLERANCE = 1e-4
# Rounding of float32 seldom exceeds this; a larger difference must vanish in float64, however small it looks.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """A smaller network, how it was made, and the comparison it passed."""

    model: nn.Module
    check: Check
    mode: Literal["eager"]


def compact(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, tuple[int, ...]],
    inputs: tuple[torch.Tensor, ...],
) -> Compacted:
    """Return the network with all units but the kept ones removed, after it passed the comparison.

    Args:
        keep: Kept units by group name; groups not named stay whole.

    Raises:
        ModelError: The smaller network cannot run; `where` is the user's line that expects the old size.
        VerificationError: It runs, but differs from the masked dense network.
    """
    masks = graph.masks(keep)
    expected = reference_outputs(masked_copy(model, masks), graph, keep, inputs)
    failures: list[EdgePruneError] = []
    for guess in (False, True):
        small = sliced(model, graph, masks, guess_sizes=guess)
        if small is None:
            continue

        def verify(small: nn.Module = small) -> Check:
            found = _run(copy_model(small), inputs)
            return compare(expected, found, inputs, model, small, graph, keep)

        try:
            repair_norms_(small, lambda trial: _run(trial, inputs))
            check = verify()
            if graph.unused:
                _check_training(model, small, inputs)
        except EdgePruneError as error:
            failures.append(error)
        else:
            if guess:
                _undo_needless_guesses_(model, small, verify)
            for mine, original in zip(small.modules(), model.modules(), strict=True):
                mine.training = original.training
            return Compacted(model=small, check=check, mode="eager")
    raise failures[0]


def _undo_needless_guesses_(model: nn.Module, small: nn.Module, verify: Callable[[], Check]) -> None:
    """Give attributes their old value back where the network passes with it: they may mean something else."""
    for module, name, old in guessed(model, small):
        new = getattr(module, name)
        setattr(module, name, old)
        try:
            verify()
        except EdgePruneError:
            setattr(module, name, new)


def compare(
    expected: list[torch.Tensor],
    found: list[torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    model: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, tuple[int, ...]],
) -> Check:
    """Compare outputs; where float32 leaves doubt, repeat in float64.

    Raises:
        VerificationError: A shape differs, a value is not finite, or the difference exceeds the tolerance.
    """
    result = difference(expected, found)
    if result.max_rel > ROUNDING:
        precise = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
        try:
            reference = reference_outputs(masked_copy(model, graph.masks(keep)).double(), graph, keep, precise)
            result = difference(reference, _run(copy_model(small).double(), precise), ROUNDING)
        except (RuntimeError, EdgePruneError):  # a network that fixes float32 is judged in float32
            result = difference(expected, found)
    if not result.passed:
        raise VerificationError(
            f"the compacted network differs from the masked dense one on {result.output}: "
            f"max relative difference {result.max_rel:.1e}, limit {result.tolerance:.0e}",
            fix="keep the groups involved (edgeprune inspect lists them), or report the network",
        )
    return result


def difference(expected: list[torch.Tensor], found: list[torch.Tensor], tolerance: float = TOLERANCE) -> Check:
    """Return the largest difference over outputs, relative to the largest reference value of each output."""
    if [tuple(tensor.shape) for tensor in expected] != [tuple(tensor.shape) for tensor in found]:
        raise VerificationError(
            f"the compacted network returns shapes {[tuple(t.shape) for t in found]}, "
            f"the dense one {[tuple(t.shape) for t in expected]}"
        )
    worst = (0.0, 0.0, "output 0")
    for index, (reference, value) in enumerate(zip(expected, found, strict=True)):
        if reference.numel() == 0:
            continue
        a, b = reference.double(), value.double()
        gap = float(torch.where(a == b, torch.zeros_like(a), (a - b).abs()).nan_to_num(nan=np.inf).max())
        finite = a[a.isfinite()]
        scale = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-6)
        if gap / scale >= worst[1]:
            worst = (gap, gap / scale, f"output {index}")
    return Check(
        name="compacted network against masked dense network",
        inputs="example inputs",
        batch_size=int(expected[0].shape[0]) if expected and expected[0].dim() else 1,
        max_abs=worst[0],
        max_rel=worst[1],
        tolerance=tolerance,
        output=worst[2],
        passed=worst[1] <= tolerance,
    )


def _run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Run a network on copies of the inputs; hand in a copy, as a forward may leave things behind in its module."""
    own = tuple(tensor.clone() for tensor in inputs)
    try:
        with torch.inference_mode():
            return output_tensors(model(*own))
    except Exception as error:
        raise ModelError(
            f"the smaller network cannot run: {type(error).__name__}: {error}",
            where=user_line(error, type(model).__name__),
            fix="take sizes from the tensor (x.shape, torch.flatten(x, 1)) instead of writing them as numbers",
        ) from error


def _check_training(model: nn.Module, small: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Check that a network with parts that evaluation does not use still runs in training mode, if it did before.

    Raises:
        ModelError: Such a part expects the old size; `where` is its line.
    """
    with torch.random.fork_rng():
        try:
            _run(copy_model(model).train(), inputs)
        except ModelError:  # a batch of one in front of a batch norm, for example: nothing to hold the small network to
            return
        _run(copy_model(small).train(), inputs)


def sliced(
    model: nn.Module, graph: ChannelGraph, masks: Mapping[Dim, NDArray[np.bool_]], guess_sizes: bool
) -> nn.Module | None:
    """Return a copy of the network with its tensors cut and its attributes repaired.

    Args:
        guess_sizes: Also replace integers in the user's modules that equal a changed size. None when there is none.
    """
    small = copy_model(model).eval()
    shapes = dict(graph.shapes)
    for names in graph.names.values():
        shapes.update(dict.fromkeys(names, graph.shapes[names[0]]))
    by_tensor: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for (name, axis), mask in masks.items():
        by_tensor.setdefault(name, {})[axis] = mask
    for name, cuts in by_tensor.items():
        _cut_(small, graph.names[name], cuts)
    repair_torch_(small)
    changed = {(alias, axis) for name, axis in masks for alias in graph.names[name]}
    if guess_sizes and not repair_sizes_(small, shapes, changed):
        return None
    return small


def _cut_(model: nn.Module, names: tuple[str, ...], cuts: Mapping[int, NDArray[np.bool_]]) -> None:
    """Replace a tensor, under all its names, by its kept positions."""
    path, _, attribute = names[0].rpartition(".")
    old = getattr(model.get_submodule(path), attribute)
    value = old.detach()
    for axis, mask in cuts.items():
        value = value.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
    if value.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        value = value.contiguous(memory_format=torch.channels_last)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for name in names:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, new)
