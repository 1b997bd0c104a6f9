"""Least squares from streamed rows: the weights that bring a layer's output closest to a target.

Rows are added as they come and forgotten; what stays is the Gram matrix of the unknowns in float64. Where there are
fewer rows than unknowns the rows themselves are the smaller thing, and the dual problem is solved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Below this many rows per unknown the problem is badly determined: measured, a ridge of 1e-3 is then too small.
FEW_ROWS = 4
RIDGE, RIDGE_FEW_ROWS = 1e-3, 1e-2


class SingularError(ArithmeticError):
    """A problem that has no solution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """New weights, shape (blocks, outputs, unknowns), and what to add to the output, shape (blocks, outputs) or None.

    `explained` is the share of the targets' variation around the old weights' output that the new ones take away.
    """

    weight: torch.Tensor
    intercept: torch.Tensor | None
    explained: float


class LeastSquares:
    """min over W, b of |X W' + b - T|^2 + ridge |W - W0|^2, for several blocks with unknowns of their own.

    The blocks are the groups of a grouped convolution; most layers have one.

    Args:
        start: The weights W0 to which the ridge pulls, shape (blocks, outputs, unknowns).
        intercept: Whether a constant b may be added to every output.
    """

    def __init__(self, start: torch.Tensor, *, intercept: bool) -> None:
        self._start = start.detach().double()
        self._intercept = intercept
        self.count = 0
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rows_waiting = 0
        self._gram: torch.Tensor | None = None
        blocks, outputs, unknowns = self._start.shape
        self._cross = self._start.new_zeros(blocks, unknowns, outputs)
        self._sum_x, self._sum_r = self._start.new_zeros(blocks, unknowns), self._start.new_zeros(blocks, outputs)
        self._square_r = 0.0

    @property
    def unknowns(self) -> int:
        """How many weights every output has."""
        return self._start.shape[2]

    def add(self, x: torch.Tensor, target: torch.Tensor) -> None:
        """Add rows: unknowns' inputs (blocks, rows, unknowns) and the wanted outputs (blocks, rows, outputs)."""
        self._waiting.append((x, target))
        self.count += x.shape[1]
        self._rows_waiting += x.shape[1]
        if self._rows_waiting > max(self._start.shape[2], 4096):
            self._gather()

    def _gather(self) -> None:
        """Take the waiting rows into the Gram matrix. What is regressed is the residual of the old weights."""
        x, residual = self._rows()
        self._waiting, self._rows_waiting = [], 0
        if self._gram is None:
            self._gram = self._start.new_zeros(x.shape[0], x.shape[2], x.shape[2])
        self._gram.baddbmm_(x.transpose(1, 2), x)
        self._cross.baddbmm_(x.transpose(1, 2), residual)
        self._sum_x += x.sum(1)
        self._sum_r += residual.sum(1)
        self._square_r += float(residual.square().sum())

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([x for x, _ in self._waiting], 1).double()
        target = torch.cat([t for _, t in self._waiting], 1).double()
        return x, target - x @ self._start.transpose(1, 2)

    def solve(self, ridge: float | None = None) -> Solution | None:
        """Return the solution, or None where the old weights cannot be bettered: no rows, or none that says anything.

        Args:
            ridge: Relative to the mean of the Gram matrix's diagonal; by default chosen from the rows per unknown.

        Raises:
            SingularError: The inputs or targets are not finite.
        """
        if self.count == 0:
            return None
        unknowns = self._start.shape[2]
        if ridge is None:
            ridge = RIDGE if self.count >= FEW_ROWS * unknowns else RIDGE_FEW_ROWS
        if self._gram is None and self.count <= unknowns:
            return self._dual(ridge)
        if self._waiting:
            self._gather()
        assert self._gram is not None
        gram, cross, square = self._gram, self._cross, self._square_r
        mean_x, mean_r = self._sum_x / self.count, self._sum_r / self.count
        if self._intercept:
            gram = gram - self.count * mean_x[:, :, None] * mean_x[:, None, :]
            cross = cross - self.count * mean_x[:, :, None] * mean_r[:, None, :]
            square -= self.count * float(mean_r.square().sum())
        weight_of_start = _ridge(gram, ridge)
        if weight_of_start is None:
            return self._only_shift(mean_r)
        system = gram + weight_of_start[:, None, None] * torch.eye(unknowns, dtype=gram.dtype, device=gram.device)
        change = torch.cholesky_solve(cross, _factor(system))
        left = square - 2 * float((change * cross).sum()) + float((change * (gram @ change)).sum())
        return self._solution(change, mean_x, mean_r, 1 - left / square if square > 0 else 0.0)

    def _dual(self, ridge: float) -> Solution | None:
        x, residual = self._rows()
        mean_x, mean_r = x.mean(1), residual.mean(1)
        if self._intercept:
            x, residual = x - mean_x[:, None], residual - mean_r[:, None]
        kernel = x @ x.transpose(1, 2)
        # The two Gram matrices have one trace; the ridge is relative to its mean over the unknowns.
        weight_of_start = _ridge(kernel, ridge * kernel.shape[1] / self._start.shape[2])
        if weight_of_start is None:
            return self._only_shift(mean_r)
        system = kernel + weight_of_start[:, None, None] * torch.eye(kernel.shape[1], dtype=x.dtype, device=x.device)
        change = x.transpose(1, 2) @ torch.cholesky_solve(residual, _factor(system))
        square, left = float(residual.square().sum()), float((residual - x @ change).square().sum())
        return self._solution(change, mean_x, mean_r, 1 - left / square if square > 0 else 0.0)

    def _only_shift(self, mean_r: torch.Tensor) -> Solution | None:
        """Return the old weights with a constant, for inputs that do not vary."""
        if not self._intercept:
            return None
        return Solution(weight=self._start, intercept=mean_r, explained=0.0)

    def _solution(self, change: torch.Tensor, mean_x: torch.Tensor, mean_r: torch.Tensor, explained: float) -> Solution:
        intercept = mean_r - (mean_x[:, None] @ change)[:, 0] if self._intercept else None
        return Solution(weight=self._start + change.transpose(1, 2), intercept=intercept, explained=explained)


def _ridge(gram: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Return the absolute ridge per block, or None where no input of any block varies."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    if not bool(torch.isfinite(mean).all()):
        raise SingularError("its inputs are not finite")
    largest = mean.max()
    if largest <= 0:
        return None
    # A block without any variation gets the ridge of the others, and so keeps its weights.
    return ridge * torch.where(mean > largest * 1e-12, mean, largest)


def _factor(system: torch.Tensor) -> torch.Tensor:
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
        raise SingularError("its inputs or targets are not finite, or the ridge is too small")
    lower: torch.Tensor = factor
    return lower
