"""The comparison that every compaction must pass: against the masked dense network, on the example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.compact.slice import cut_tensors, with_tensors
from edgeprune.errors import EdgePruneError, ModelError, VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.structure import double_copy, output_tensors, shared_copy
from edgeprune.values import Check
from edgeprune.workload import user_line

TOLERANCE = 1e-4
# Rounding of float32 seldom exceeds this; a larger difference must vanish in float64, however small it looks.
ROUNDING = 1e-5

Inputs = tuple[torch.Tensor, ...]


class Reference:
    """The dense network with the removed units zeroed, run once on the example inputs.

    Args:
        keep: Kept units by group name; groups not named stay whole.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, keep: Mapping[str, tuple[int, ...]], inputs: Inputs
    ) -> None:
        self.model, self.graph, self.keep, self.inputs = model, graph, keep, inputs
        self.masks = graph.masks(keep)

    @cached_property
    def _cut(self) -> dict[str, torch.Tensor]:
        return cut_tensors(self.model, self.masks)

    def small(self) -> nn.Module:
        """Return a copy of the network with its tensors cut and nothing else changed, as `sliced` does.

        Its weights lie in the same memory as those of other copies from here: only one of them may be kept.
        """
        return with_tensors(self.model, self._cut)

    @cached_property
    def outputs(self) -> list[torch.Tensor]:
        """The outputs in the network's own precision."""
        return reference_outputs(masked_copy(self.model, self.masks), self.graph, self.keep, self.inputs)

    def check(self, small: nn.Module) -> Check:
        """Compare a smaller network on every example; where float32 leaves doubt, repeat in float64.

        Raises:
            ModelError: It cannot run; `where` is the user's line that expects the old size.
            VerificationError: A shape differs, a value is not finite, or the difference exceeds the tolerance.
        """
        for one in self.graph.examples:
            graph = replace(self.graph, statistics=one.statistics, examples=())
            Reference(self.model, graph, self.keep, one.inputs).check(small)
        return self._judge(run(small, self.inputs), lambda inputs: run(double_copy(small), inputs))

    def check_outputs(self, found: Callable[[bool], list[torch.Tensor]]) -> Check:
        """Compare outputs that are computed by a function of "in float64".

        Raises:
            VerificationError: As in `check`.
        """
        return self._judge(found(False), lambda _inputs: found(True))

    def _judge(self, found: list[torch.Tensor], precisely: Callable[[Inputs], list[torch.Tensor]]) -> Check:
        result = difference(self.outputs, found)
        if result.max_rel > ROUNDING:
            inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in self.inputs)
            try:
                masked = double_copy(masked_copy(self.model, self.masks))
                expected = reference_outputs(masked, self.graph, self.keep, inputs)
                result = difference(expected, precisely(inputs), ROUNDING)
            except (RuntimeError, EdgePruneError):  # a network that fixes float32 is judged in float32
                result = difference(self.outputs, found)
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


def compared(model: nn.Module, other: nn.Module, inputs: Inputs) -> Check:
    """Return how much the outputs of two networks differ in evaluation mode, relative to those of the first."""
    before, after = (run(shared_copy(network).eval(), inputs) for network in (model, other))
    return difference(before, after)


def run(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Run a copy of a network on copies of the inputs and return the tensors in what it returns.

    Raises:
        ModelError: It cannot run; `where` is the user's line that expects the old size.
    """
    return run_(shared_copy(model), inputs)


def run_(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Run a network itself, which may leave things behind in it, and return as `run` does."""
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


def check_training(model: nn.Module, small: nn.Module, inputs: Inputs) -> None:
    """Check that a network with parts that evaluation does not use still runs in training mode, if it did before.

    Raises:
        ModelError: Such a part expects the old size; `where` is its line.
    """
    with torch.random.fork_rng():
        try:
            run(shared_copy(model).train(), inputs)
        except ModelError:  # a batch of one in front of a batch norm, for example: nothing to hold the small network to
            return
        run(shared_copy(small).train(), inputs)
