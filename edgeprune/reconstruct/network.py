"""The walk: the dense and the pruned network side by side, call by call, on all inputs at once.

Where a call multiplies a weight of the pruned network, that weight is solved for: its inputs are what the already
solved layers before it give, its target is what the dense network has there. So every layer also makes up for what is
left of the errors before it, and nothing has to be run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.compact.replay import Replay, Step, last_uses, replay
from edgeprune.compact.verify import difference, run
from edgeprune.errors import ModelError, VerificationError
from edgeprune.graph import ChannelGraph
from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.structure import copy_model, named_tensors
from edgeprune.reconstruct.recurrent import Recurrent, recurrent_of
from edgeprune.reconstruct.recurrent import solve as solve_recurrent
from edgeprune.reconstruct.rows import Layer, layer_of
from edgeprune.reconstruct.shortcut import Paths, undone
from edgeprune.reconstruct.solve import FEW_ROWS, LeastSquares, SingularError, Solution
from edgeprune.values import Json

Inputs = tuple[torch.Tensor, ...]
Progress = Callable[[int, int], None]

_ROWS_PER_UNKNOWN, _ENOUGH_ROWS, _FEW_ROWS = 32, 65536, 2048
_MOST_WORK = 2 * 10**11  # rows times unknowns squared: some seconds
_HELD_OUT = 8
_AGREEMENT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`samples` is the most examples that are used, `memory_bytes` what their tensors may take at a time.

    A layer with more than `max_unknowns` inputs per output is solved on few rows only. `ridge` replaces the choice by
    the number of rows per unknown.
    """

    samples: int = 512
    memory_bytes: int = 2 << 30
    max_unknowns: int = 4096
    ridge: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructed:
    """The network with new weights, one row per layer, and the relative error of its outputs before and after.

    Errors are root mean squares relative to how much the dense outputs vary, on samples that were not used to solve
    where there were at least eight. `improved` is False where the error did not fall: the weights are the old ones.
    """

    model: nn.Module
    layers: tuple[Json, ...]
    samples: int
    error_before: float
    error_after: float
    improved: bool
    left_out: tuple[Json, ...] = ()

    def facts(self) -> Json:
        """Return what is kept of it beside the network."""
        return {
            "layers": list(self.layers),
            "left_out": list(self.left_out),
            "samples": self.samples,
            "error_before": self.error_before,
            "error_after": self.error_after,
            "improved": self.improved,
        }


def reconstruct(
    small: nn.Module,
    dense: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Iterable[int]],
    samples: Iterable[Inputs],
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Reconstructed:
    """Return the pruned network with weights that bring every layer closest to the dense network's.

    Args:
        small: The pruned network as compaction returned it; it is not changed.
        dense: The network that `graph` was made from.
        keep: Kept units by group name.
        samples: Inputs, cut by `slices` to the shapes of the recorded ones.
        progress: Called with how many of how many calls are done.

    Raises:
        ModelError: There are no samples, or a layer's inputs are not finite.
        VerificationError: The network with the new weights does not give what was solved for.
    """
    settings = settings or Settings()
    walk = _Walk(small, dense, graph, keep, settings)
    own = walk.within_memory(samples)
    if not own:
        raise ModelError(
            "there are no samples of the shape of the example inputs to reconstruct with",
            fix="let calibration_data() give batches whose samples have the shape of inputs()",
        )
    count = len(own) // _HELD_OUT
    held, used = (own[:count], own[count:]) if count else (own, own)
    walk.run(used, progress)
    changed = copy_model(small)
    with torch.no_grad():
        tensors = named_tensors(changed)
        for name, value in walk.solved.items():
            tensors[name].copy_(value)
    walk.check(changed, held[0])
    before, after = walk.errors(held)
    better = after < before
    return Reconstructed(
        model=changed if better else copy_model(small),
        layers=tuple(walk.rows),
        left_out=tuple(walk.left_out),
        samples=len(own) * (own[0][0].shape[0] if own[0][0].dim() else 1),
        error_before=before,
        error_after=after,
        improved=better,
    )


class _Walk:
    """Both networks as recorded calls, and what has been solved so far."""

    def __init__(
        self,
        small: nn.Module,
        dense: nn.Module,
        graph: ChannelGraph,
        keep: Mapping[str, Iterable[int]],
        settings: Settings,
    ) -> None:
        self.record: Record = graph.trail.record
        self.settings, self.trail = settings, graph.trail
        self.alive, self.masks = graph.alive(keep), graph.masks(keep)
        self.steps: Sequence[Step] = graph.trail.resized(self.alive)
        self.given: Sequence[Step] = [(call.func, call.args) for call in self.record.calls]
        self.dense = {name: tensor.detach() for name, tensor in named_tensors(dense).items()}
        self.start = {name: tensor.detach() for name, tensor in named_tensors(small).items()}
        self.paths, self.last = Paths(self.record), last_uses(self.record)
        self.parameters = {key: name for key, name in self.record.tensors.items() if name in self.start}
        self.solved: dict[str, torch.Tensor] = {}
        self.rows: list[Json] = []
        self.left_out: list[Json] = []

    def within_memory(self, samples: Iterable[Inputs]) -> list[Inputs]:
        """Return as many samples as the settings and the memory allow."""
        found: list[Inputs] = []
        most = 1
        with torch.inference_mode():
            for sample in samples:
                if not found:
                    size = sample[0].shape[0] if sample[0].dim() else 1
                    fitting = self.settings.memory_bytes // max(self._live_bytes(sample), 1)
                    most = max(min(self.settings.samples // max(size, 1), int(fitting)), 1)
                found.append(sample)
                if len(found) >= most:
                    break
        return found

    def _live_bytes(self, sample: Inputs) -> int:
        """Return the most bytes that both forwards hold at a time, parameters apart."""
        pair = self._pair(sample)
        ignored = {id(tensor) for forward in pair for tensor in forward.values.values()}
        peak = 0
        for index in range(len(self.record.calls)):
            for forward in pair:
                forward.make(index)
            alive = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for forward in pair
                for tensor in forward.values.values()
                if id(tensor) not in ignored
            }
            peak = max(peak, sum(alive.values()))
            for forward in pair:
                forward.drop(index)
        return peak

    def _pair(self, sample: Inputs) -> tuple[Replay, Replay]:
        return (
            Replay(self.record, self.given, self.dense, sample, self.last),
            Replay(self.record, self.steps, self.start, sample, self.last),
        )

    def run(self, samples: Sequence[Inputs], progress: Progress | None) -> None:
        """Make all calls of both networks and solve every layer on the way."""
        total = len(self.record.calls)
        with torch.inference_mode():
            pairs = [self._pair(sample) for sample in samples]
            for index in range(total):
                for big, _ in pairs:
                    big.make(index)
                self._at(index, pairs)
                for big, little in pairs:
                    little.make(index)
                    big.drop(index)
                    little.drop(index)
                if progress is not None:
                    progress(index + 1, total)

    def _at(self, index: int, pairs: Sequence[tuple[Replay, Replay]]) -> None:
        """Solve for the weights of a call, if it has any, before the pruned network makes it."""
        call, step = self.record.calls[index], self.steps[index]
        layer = layer_of(call, index, step, self.parameters)
        if layer is not None:
            self._solve(layer, pairs)
            return
        found = recurrent_of(call, step, self.parameters)
        if found is not None:
            self._solve_recurrent(found, call, pairs)

    def _solve_recurrent(self, found: Recurrent, call: Call, pairs: Sequence[tuple[Replay, Replay]]) -> None:
        """Solve for the weights of a recurrent network and put them into the pruned forwards."""
        weights = [ref for cells in found.layers for cell in cells for ref in cell.refs.values()]
        if any(len(self.paths.users[ref.id]) > 1 for ref in weights):
            name = self.parameters[weights[0].id]
            self._leave_out(name, "the weight is used more than once", call)
            return
        try:
            solved = solve_recurrent(found, pairs, self.masks, self.parameters, self.settings.ridge)
        except SingularError as error:
            raise _unsolvable(self.parameters[weights[0].id], call, error) from error
        self._change(solved.tensors, pairs)
        for ref, unknowns, rows, explained in solved.explained:
            self.rows.append(_row(self.parameters[ref.id], unknowns, rows, explained))

    def _leave_out(self, name: str, reason: str, call: Call) -> None:
        if all(row["weight"] != name for row in self.left_out):
            self.left_out.append({"weight": name, "reason": reason, "where": call.where or None})

    def _solve(self, layer: Layer, pairs: Sequence[tuple[Replay, Replay]]) -> None:
        """Solve for the weight of one layer and put it into the pruned forwards."""
        call = self.record.calls[layer.index]
        name = self.parameters[layer.weight.id]
        old = pairs[0][1].values[layer.weight.id]
        why = self._refused(layer, old)
        if why is not None:
            self._leave_out(name, why, call)
            return
        added = self.paths.added(layer.index)
        if self._same(layer, pairs[0], [item.other for item in added]):
            return
        place = self._intercept(layer)
        problem = LeastSquares(layer.rows.matrix(old), intercept=place is not None)
        generator = torch.Generator().manual_seed(layer.index)
        for big, little in pairs:
            target = self._target(layer, big, little)
            places = self._places(layer, target, len(pairs), problem, generator)
            problem.add(layer.rows.inputs(little.values[layer.input.id], places), layer.rows.outputs(target, places))
        try:
            solution = problem.solve(self.settings.ridge)
        except SingularError as error:
            raise _unsolvable(name, call, error) from error
        if solution is not None:
            self._put(layer, solution, place, old, pairs)
            self.rows.append(_row(name, problem.unknowns, problem.count, solution.explained, len(added)))

    def _refused(self, layer: Layer, old: torch.Tensor) -> str | None:
        if (
            len(self.paths.users[layer.weight.id]) > 1
            or len(self.record.names[self.record.tensors[layer.weight.id]]) > 1
        ):
            return "the weight is used more than once"
        return None

    def _same(self, layer: Layer, pair: tuple[Replay, Replay], others: Sequence[Ref]) -> bool:
        """Tell whether the layer sees what it saw in the dense network, so that there is nothing to make up for."""
        big, little = pair
        return all(
            big.values[ref.id].shape == little.values[ref.id].shape
            and torch.equal(big.values[ref.id], little.values[ref.id])
            for ref in (layer.input, *others)
        )

    def _intercept(self, layer: Layer) -> Ref | None:
        """Return the tensor that takes a constant: the layer's bias, or the mean of the batch norm behind it."""
        if layer.bias is not None:
            return layer.bias if len(self.paths.users[layer.bias.id]) == 1 else None
        norm = self.paths.normalisation(layer.index)
        if norm is None:
            return None
        mean: Ref = norm.args["running_mean"]
        alone = len(self.paths.users[mean.id]) == 1 and mean.id in self.parameters
        return mean if alone else None

    def _target(self, layer: Layer, big: Replay, little: Replay) -> torch.Tensor:
        """Return what the layer should give without its bias, shape of the pruned network's output, in float64."""
        output = big.values[layer.output.id]
        target = self._restricted(output, layer.index, layer.output).double()
        for item in self.paths.added(layer.index):
            difference = self._restricted(big.values[item.other.id], item.call, item.other).double()
            difference = difference - little.values[item.other.id].double()
            scale = self.paths.scale(item.scales, lambda ref: little.values[ref.id], layer.output)
            target = target + undone(difference, scale)
        if layer.bias is not None:
            bias = little.values[layer.bias.id].double()
            target = target - bias.view(-1, *[1] * (target.dim() - layer.axis - 1))
        return target

    def _restricted(self, tensor: torch.Tensor, call: int, ref: Ref) -> torch.Tensor:
        """Return a tensor of the dense network at the positions that the pruned one keeps."""
        for axis, mask in enumerate(self.trail.left(call, ref, self.alive)):
            if mask is not None:
                tensor = tensor.index_select(axis, torch.from_numpy(mask.nonzero()[0]).to(tensor.device))
        return tensor

    def _places(
        self, layer: Layer, target: torch.Tensor, samples: int, problem: LeastSquares, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Return which output positions of a sample are used, None for all: neighbours say much the same."""
        count = target.numel() // max(target.shape[layer.axis], 1)
        most = -(-_enough_rows(problem.unknowns, self.settings.max_unknowns) // samples)
        if count <= most:
            return None
        return torch.randperm(count, generator=generator)[:most].to(target.device)

    def _put(
        self,
        layer: Layer,
        solution: Solution,
        place: Ref | None,
        old: torch.Tensor,
        pairs: Sequence[tuple[Replay, Replay]],
    ) -> None:
        changed = {layer.weight.id: layer.rows.weight(solution.weight, old)}
        if place is not None and solution.intercept is not None:
            before = pairs[0][1].values[place.id]
            shift = solution.intercept.flatten()
            shift = shift if place is layer.bias else -shift
            changed[place.id] = (before.double() + shift).to(before.dtype)
        self._change(changed, pairs)

    def _change(self, changed: Mapping[int, torch.Tensor], pairs: Sequence[tuple[Replay, Replay]]) -> None:
        for key, value in changed.items():
            self.solved[self.parameters[key]] = value
            for _, little in pairs:
                little.values[key] = value

    def check(self, changed: nn.Module, sample: Inputs) -> None:
        """Check that the network itself gives what the replayed calls gave while they were solved.

        Raises:
            VerificationError: It does not.
        """
        with torch.inference_mode():
            expected = replay(self.record, self.steps, self.start | self.solved, sample)
        found = difference(expected, run(copy_model(changed).eval(), sample), _AGREEMENT)
        if not found.passed:
            raise VerificationError(
                f"the reconstructed network differs from what was solved for on {found.output}: {found.max_rel:.1e}",
                fix="-s reconstruct.samples=0 leaves the pruned weights as they are",
            )

    def errors(self, samples: Sequence[Inputs]) -> tuple[float, float]:
        """Return the relative error of the outputs with the pruned weights and with the solved ones."""
        solved = self.start | self.solved
        found: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
        for sample in samples:
            dense = replay(self.record, self.given, self.dense, sample)
            before = replay(self.record, self.steps, self.start, sample)
            after = replay(self.record, self.steps, solved, sample)
            found.append(
                [row for row in zip(dense, before, after, strict=True) if row[0].is_floating_point() and row[0].numel()]
            )
        return _relative(found, 1), _relative(found, 2)


def _enough_rows(unknowns: int, max_unknowns: int) -> int:
    """Return how many rows a problem gets: more cost time and hardly change the solution.

    The Gram matrix of more than `max_unknowns` would take too much memory: the dual problem of few rows is solved.
    """
    if unknowns > max_unknowns:
        return min(_FEW_ROWS, unknowns)
    wanted = max(_ROWS_PER_UNKNOWN * unknowns, _ENOUGH_ROWS)
    return min(wanted, max(FEW_ROWS * unknowns, _MOST_WORK // unknowns**2))


def _row(weight: str, unknowns: int, rows: int, explained: float, shortcuts: int = 0) -> Json:
    return {
        "weight": weight,
        "unknowns": unknowns,
        "rows": rows,
        "explained": round(explained, 4),
        "shortcuts": shortcuts,
    }


def _unsolvable(name: str, call: Call, error: SingularError) -> ModelError:
    return ModelError(
        f"'{name}' cannot be reconstructed: {error}",
        where=call.where or None,
        fix="check the calibration inputs and the network's weights for nan and inf",
    )


def _relative(found: Sequence[Sequence[tuple[torch.Tensor, ...]]], which: int) -> float:
    """Return the root mean square difference to the dense outputs over their own variation, averaged over outputs."""
    shares = []
    for outputs in zip(*found, strict=True):
        dense = torch.stack([output[0] for output in outputs]).double()
        other = torch.stack([output[which] for output in outputs]).double()
        varies = float((dense - dense.mean(0)).square().mean()) or float(dense.square().mean())
        shares.append((float((dense - other).square().mean()) / max(varies, 1e-30)) ** 0.5)
    return sum(shares) / len(shares) if shares else 0.0


def slices(batch: Inputs, shapes: Sequence[tuple[int, ...]]) -> list[Inputs]:
    """Cut the inputs of a batch into pieces of the shapes of the example inputs; none where they do not fit.

    Args:
        shapes: Of the example inputs, batch first.
    """
    if len(batch) != len(shapes) or any(
        tensor.dim() != len(shape) for tensor, shape in zip(batch, shapes, strict=True)
    ):
        return []
    if any(tuple(tensor.shape[1:]) != shape[1:] for tensor, shape in zip(batch, shapes, strict=True)):
        return []
    if not all(shapes):
        return [batch]
    counts = {tensor.shape[0] // shape[0] for tensor, shape in zip(batch, shapes, strict=True)}
    if len(counts) > 1:
        return []
    return [
        tuple(tensor[n * shape[0] : (n + 1) * shape[0]] for tensor, shape in zip(batch, shapes, strict=True))
        for n in range(counts.pop())
    ]
