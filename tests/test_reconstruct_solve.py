"""The least-squares problem: streamed rows give what all rows at once give, and the ridge pulls to the old weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.reconstruct.solve import LeastSquares, SingularError


def problem(
    blocks: int, rows: int, unknowns: int, outputs: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(blocks, rows, unknowns, generator=generator, dtype=torch.float64) + 1
    target = torch.randn(blocks, rows, outputs, generator=generator, dtype=torch.float64) - 2
    start = torch.randn(blocks, outputs, unknowns, generator=generator, dtype=torch.float64)
    return x, target, start


def cost(
    x: torch.Tensor, target: torch.Tensor, start: torch.Tensor, ridge: float, *, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the minimum by the normal equations of the rows with the constant as one more unknown."""
    blocks, rows, unknowns = x.shape
    centred = x - x.mean(1, keepdim=True) if intercept else x
    scale = centred.square().sum(1).mean(1) * ridge
    weights, shifts = [], []
    for block in range(blocks):
        ones = torch.ones(rows, 1, dtype=x.dtype)
        design = torch.cat([x[block], ones], 1) if intercept else x[block]
        penalty = torch.diag(torch.cat([scale[block].expand(unknowns), torch.zeros(int(intercept), dtype=x.dtype)]))
        anchor = torch.cat([start[block].T, torch.zeros(int(intercept), start.shape[1], dtype=x.dtype)])
        system = design.T @ design + penalty
        found = torch.linalg.lstsq(system, design.T @ target[block] + penalty @ anchor, driver="gelsd").solution
        weights.append(found[:unknowns].T)
        shifts.append(found[unknowns:].flatten())
    return torch.stack(weights), torch.stack(shifts) if intercept else None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 40), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(1, 5))
def test_streamed_rows_give_the_minimum(
    blocks: int, rows: int, unknowns: int, outputs: int, intercept: bool, parts: int
) -> None:
    x, target, start = problem(blocks, rows, unknowns, outputs)
    squares = LeastSquares(start, intercept=intercept)
    for one, other in zip(x.chunk(parts, 1), target.chunk(parts, 1), strict=True):
        squares.add(one, other)
    solution = squares.solve(1e-2)
    assert solution is not None
    weight, shift = cost(x, target, start, 1e-2, intercept=intercept)
    torch.testing.assert_close(solution.weight, weight, rtol=1e-6, atol=1e-6)
    if shift is not None:
        assert solution.intercept is not None
        torch.testing.assert_close(solution.intercept, shift, rtol=1e-6, atol=1e-6)
    assert -1e-9 <= solution.explained <= 1 + 1e-9


def test_many_rows_are_gathered_on_the_way_and_give_the_same() -> None:
    x, target, start = problem(2, 10_000, 6, 3)
    squares = LeastSquares(start, intercept=True)
    for one, other in zip(x.split(700, 1), target.split(700, 1), strict=True):
        squares.add(one.float(), other.float())
    assert squares.count == 10_000
    solution = squares.solve(1e-3)
    assert solution is not None
    weight, _ = cost(x.float().double(), target.float().double(), start, 1e-3, intercept=True)
    torch.testing.assert_close(solution.weight, weight, rtol=1e-6, atol=1e-6)


def test_what_is_linear_is_found_and_wholly_explained() -> None:
    x, _, start = problem(1, 500, 8, 3)
    wanted = torch.randn(1, 3, 8, dtype=torch.float64)
    squares = LeastSquares(start, intercept=True)
    squares.add(x, x @ wanted.transpose(1, 2) + 5)
    solution = squares.solve(1e-9)
    assert solution is not None
    torch.testing.assert_close(solution.weight, wanted, rtol=1e-5, atol=1e-5)
    assert solution.intercept is not None
    torch.testing.assert_close(solution.intercept, torch.full((1, 3), 5.0, dtype=torch.float64), rtol=1e-5, atol=1e-4)
    assert solution.explained > 0.999999


def test_the_ridge_grows_where_rows_are_few() -> None:
    x, target, start = problem(1, 30, 10, 2)
    results = []
    for ridge in (None, 1e-2, 1e-3):
        squares = LeastSquares(start, intercept=True)
        squares.add(x, target)
        solution = squares.solve(ridge)
        assert solution is not None
        results.append(solution.weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_inputs_that_do_not_vary_leave_the_weights_and_correct_the_constant() -> None:
    _, target, start = problem(1, 30, 4, 2)
    squares = LeastSquares(start, intercept=True)
    squares.add(torch.zeros(1, 30, 4, dtype=torch.float64), target)
    solution = squares.solve()
    assert solution is not None
    assert torch.equal(solution.weight, start)
    assert solution.intercept is not None
    torch.testing.assert_close(solution.intercept, target.mean(1))


def test_a_block_whose_inputs_are_dead_keeps_its_weights() -> None:
    x, target, start = problem(2, 60, 4, 2)
    x[1] = 0
    squares = LeastSquares(start, intercept=False)
    squares.add(x, target)
    solution = squares.solve()
    assert solution is not None
    torch.testing.assert_close(solution.weight[1], start[1])
    assert not torch.allclose(solution.weight[0], start[0])


def test_no_rows_have_no_solution() -> None:
    assert LeastSquares(torch.ones(1, 2, 3), intercept=True).solve() is None


@pytest.mark.parametrize("rows", [2, 60])
def test_values_that_are_not_finite_are_an_error(rows: int) -> None:
    x, target, start = problem(1, rows, 4, 2)
    x[0, 0, 0] = torch.inf
    squares = LeastSquares(start, intercept=True)
    squares.add(x, target)
    with pytest.raises(SingularError, match="not finite"):
        squares.solve()
