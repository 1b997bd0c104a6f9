"""Recurrent layers: what enters the gates is linear in the input and in the state before, so it can be solved for.

The states that a pruned layer would reach depend on the weights that are looked for. They are first taken from the
dense network (the kept ones), then once more from the pruned layer as it was solved; what follows the dense states
best stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.compact.replay import Replay, Step
from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.operators import operator_name
from edgeprune.reconstruct.solve import LeastSquares, Solution

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_PASSES = 2

Masks = Mapping[tuple[str, int], NDArray[np.bool_]]
Pairs = Sequence[tuple[Replay, Replay]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The parameters of one layer in one direction: by role, `w_ih`, `w_hh`, and what else there is."""

    refs: dict[str, Ref]
    backward: bool

    def tensors(self, forward: Replay) -> dict[str, torch.Tensor]:
        """Return the parameters of one of the two networks."""
        return {role: forward.values[ref.id] for role, ref in self.refs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """One call of a whole recurrent network: its layers, each with one cell per direction.

    `own` are operator and arguments on the smaller network.
    """

    name: str
    input: Ref
    states: tuple[Ref, ...]
    layers: tuple[tuple[Cell, ...], ...]
    batch_first: bool
    own: Step

    @property
    def gates(self) -> int:
        """How many vectors of the state's width enter the cell."""
        return _GATES[self.name]


@dataclass(slots=True)
class Solved:
    """New tensors by identity, and one row of facts per weight that was solved for."""

    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    explained: list[tuple[Ref, int, int, float]] = field(default_factory=list)


def recurrent_of(call: Call, step: Step, parameters: Mapping[int, str]) -> Recurrent | None:
    """Return what a call is as a recurrent network, or None where it is none, or takes packed sequences."""
    func, arguments = step
    if call.name not in _GATES or operator_name(func) != call.name or "params" not in arguments:
        return None
    weights = arguments["params"]
    if "input" not in arguments or not all(isinstance(ref, Ref) and ref.id in parameters for ref in weights):
        return None
    biases, both = bool(arguments["has_biases"]), bool(arguments["bidirectional"])
    roles = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if biases else [])]
    hx = arguments["hx"]
    states = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
    cells = int(arguments["num_layers"]) * (1 + both)
    each = len(weights) // cells
    roles += ["w_hr"] if each > len(roles) else []
    found = [
        Cell(
            refs=dict(zip(roles, weights[n * each : (n + 1) * each], strict=True)),
            backward=both and n % 2 == 1,
        )
        for n in range(cells)
    ]
    width = 1 + both
    return Recurrent(
        name=call.name,
        input=arguments["input"],
        states=states,
        layers=tuple(tuple(found[n : n + width]) for n in range(0, cells, width)),
        batch_first=bool(arguments["batch_first"]),
        own=step,
    )


def solve(found: Recurrent, pairs: Pairs, masks: Masks, names: Mapping[int, str], ridge: float | None) -> Solved:
    """Solve for the weights of all layers, from the first to the last.

    Args:
        masks: Which positions of every parameter's dimensions stay, where some go.
        names: Of the parameters by identity.
    """
    solved = Solved()
    dense = [_sequence(found, big.values[found.input.id]) for big, _ in pairs]
    small = [_sequence(found, little.values[found.input.id]) for _, little in pairs]
    for number, cells in enumerate(found.layers):
        dense_out, small_out = [], []
        for direction, cell in enumerate(cells):
            place = number * len(cells) + direction
            problem = _Cell(found, cell, place, pairs, dense, small, masks, names)
            wanted, given = problem.solve(ridge, solved)
            dense_out.append(wanted)
            small_out.append(given)
        dense = [torch.cat(parts, 2) for parts in zip(*dense_out, strict=True)]
        small = [torch.cat(parts, 2) for parts in zip(*small_out, strict=True)]
    return solved


def _sequence(found: Recurrent, x: torch.Tensor) -> torch.Tensor:
    """Return an input as (time, batch, features)."""
    if x.dim() == 2:
        return x[:, None]
    return x.transpose(0, 1) if found.batch_first else x


class _Cell:
    """One direction of one layer: its sequences in both networks, and the search for its weights."""

    def __init__(
        self,
        found: Recurrent,
        cell: Cell,
        place: int,
        pairs: Pairs,
        dense: Sequence[torch.Tensor],
        small: Sequence[torch.Tensor],
        masks: Masks,
        names: Mapping[int, str],
    ) -> None:
        self.found, self.cell, self.place, self.pairs = found, cell, place, pairs
        self.dense, self.small = ([x.flip(0) if cell.backward else x for x in xs] for xs in (dense, small))
        rows, states = (masks.get((names[cell.refs[role].id], axis)) for role, axis in (("w_ih", 0), ("w_hh", 1)))
        self.rows = slice(None) if rows is None else torch.from_numpy(np.flatnonzero(rows))
        self.states = slice(None) if states is None else torch.from_numpy(np.flatnonzero(states))
        self.old = cell.tensors(pairs[0][1])

    def solve(self, ridge: float | None, solved: Solved) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the sequences of the dense cell and those of the pruned one with the weights that follow it best."""
        big = self.cell.tensors(self.pairs[0][0])
        wanted = [self._run(big, x, pair[0]) for x, pair in zip(self.dense, self.pairs, strict=True)]
        kept = [h[:, :, self.states] for h in wanted]
        best, given = self.old, self._outputs(self.old)
        error, facts = _distance(given, kept), []
        if (
            any(x.shape != y.shape or not torch.equal(x, y) for x, y in zip(self.dense, self.small, strict=True))
            or error
        ):
            states = kept
            for _ in range(_PASSES):
                tensors, explained = self._fit(big, wanted, states, ridge)
                states = self._outputs(tensors)
                if (reached := _distance(states, kept)) < error:
                    best, given, error, facts = tensors, states, reached, explained
        solved.tensors.update(
            {self.cell.refs[role].id: best[role] for role in best if best[role] is not self.old[role]}
        )
        solved.explained.extend((self.cell.refs[role], unknowns, rows, share) for role, unknowns, rows, share in facts)
        turned = [[h.flip(0) if self.cell.backward else h for h in hs] for hs in (wanted, given)]
        return turned[0], turned[1]

    def _outputs(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [self._run(tensors, x, pair[1]) for x, pair in zip(self.small, self.pairs, strict=True)]

    def _run(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, forward: Replay) -> torch.Tensor:
        """Return the states after every step, (time, batch, width); time runs as this direction reads it."""
        func, _ = self.found.own
        states = [state[:, None] if state.dim() == 2 else state for state in self._first(forward)]
        hx: Any = states if self.found.name == "lstm" else states[0]
        biases = "b_ih" in tensors
        outputs = func(x, hx, list(tensors.values()), biases, 1, 0.0, False, False, False)
        result: torch.Tensor = outputs[0]
        return result

    def _first(self, forward: Replay) -> list[torch.Tensor]:
        return [forward.values[ref.id][self.place : self.place + 1] for ref in self.found.states]

    def _before(self, states: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        first = first[:, None] if first.dim() == 2 else first
        return torch.cat([first, states[:-1]])

    def _fit(
        self,
        big: Mapping[str, torch.Tensor],
        wanted: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        ridge: float | None,
    ) -> tuple[dict[str, torch.Tensor], list[tuple[str, int, int, float]]]:
        """Solve for what enters the gates, with given states before every step.

        In a GRU the candidate's parts from the input and from the state enter apart, so they are solved apart.
        """
        width = self.old["w_hh"].shape[0] // self.found.gates
        joint = (self.found.gates - (self.found.name == "gru")) * width
        biases = "b_ih" in self.old
        start_x, start_h = self.old["w_ih"], self.old["w_hh"]
        together = LeastSquares(torch.cat([start_x[:joint], start_h[:joint]], 1)[None], intercept=biases)
        apart = [LeastSquares(start[joint:][None], intercept=biases) for start in (start_x, start_h)]
        for n, (big_forward, small_forward) in enumerate(self.pairs):
            x, h = self.small[n].flatten(0, 1), self._before(states[n], self._first(small_forward)[0]).flatten(0, 1)
            h_dense = self._before(wanted[n], self._first(big_forward)[0]).flatten(0, 1)
            from_x = self._part(self.dense[n].flatten(0, 1), big["w_ih"], big.get("b_ih"), self.old.get("b_ih"))
            from_h = self._part(h_dense, big["w_hh"], big.get("b_hh"), self.old.get("b_hh"))
            together.add(torch.cat([x, h], 1)[None], (from_x + from_h)[None, :, :joint])
            if joint < len(start_x):
                apart[0].add(x[None], from_x[None, :, joint:])
                apart[1].add(h[None], from_h[None, :, joint:])
        return self._assembled(together.solve(ridge), [problem.solve(ridge) for problem in apart], joint, together)

    def _part(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, own: torch.Tensor | None
    ) -> torch.Tensor:
        """Return what one side gives to the kept gates in the dense network, without the pruned cell's own bias."""
        found = (rows.double() @ weight.double().T)[:, self.rows]
        if bias is not None and own is not None:
            found = found + bias.double()[self.rows] - own.double()
        return found

    def _assembled(
        self, together: Solution | None, apart: Sequence[Solution | None], joint: int, problem: LeastSquares
    ) -> tuple[dict[str, torch.Tensor], list[tuple[str, int, int, float]]]:
        """Return all parameters of the cell with the solutions in their places."""
        tensors = {role: tensor.clone() for role, tensor in self.old.items()}
        facts = []
        inputs = self.old["w_ih"].shape[1]
        if together is not None:
            tensors["w_ih"][:joint] = together.weight[0, :, :inputs].to(tensors["w_ih"].dtype)
            tensors["w_hh"][:joint] = together.weight[0, :, inputs:].to(tensors["w_hh"].dtype)
            facts = [(role, problem.unknowns, problem.count, together.explained) for role in ("w_ih", "w_hh")]
            if together.intercept is not None:
                tensors["b_ih"][:joint] += together.intercept[0].to(tensors["b_ih"].dtype)
        for side, solution in zip(("ih", "hh"), apart, strict=True):
            if solution is not None and joint < len(tensors["w_ih"]):
                tensors[f"w_{side}"][joint:] = solution.weight[0].to(tensors[f"w_{side}"].dtype)
                if solution.intercept is not None:
                    tensors[f"b_{side}"][joint:] += solution.intercept[0].to(tensors[f"b_{side}"].dtype)
        return tensors, facts


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def _distance(given: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Return the mean square difference of two lists of sequences."""
    total = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(given, wanted, strict=True))
    return total / max(sum(a.numel() for a in wanted), 1)
