"""What two sides are compared on: edge values inside the range, batches that fit, the first set twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.export.feeds import edge_values, in_batches, input_sets
from edgeprune.values import TensorSpec

IMAGE = TensorSpec(name="x", shape=(None, 3, 2), dtype="float32", low=-1.5, high=2.5)
TOKENS = TensorSpec(name="t", shape=(None, 4), dtype="int64", low=2, high=9)


def test_edges_are_low_high_zero_and_in_turn() -> None:
    low, high, zero, turn = (arrays[0] for arrays in edge_values([IMAGE], 2))
    assert low.shape == (2, 3, 2)
    assert (low.dtype, low.min(), low.max()) == (np.float32, -1.5, -1.5)
    assert (high.min(), high.max()) == (2.5, 2.5)
    assert not zero.any()
    np.testing.assert_array_equal(turn.reshape(-1)[:4], [-1.5, 2.5, -1.5, 2.5])


def test_zeros_outside_of_a_range_are_left_out() -> None:
    tried = edge_values([IMAGE, TOKENS], 1)
    assert len(tried) == 3
    assert [int(arrays[1].min()) for arrays in tried] == [2, 9, 2]
    assert all(arrays[1].dtype == np.int64 for arrays in tried)


def test_no_inputs_are_tried_twice() -> None:
    constant = TensorSpec(name="x", shape=(None, 3), dtype="float32", low=1, high=1)
    assert len(edge_values([constant], 1)) == 1
    mask = TensorSpec(name="m", shape=(None, 4), dtype="bool", low=0, high=0)
    values = [arrays[0].tolist() for arrays in edge_values([mask], 1)]
    assert values == [[[False] * 4], [[True] * 4], [[False, True, False, True]]]


@given(
    st.integers(-5, 5),
    st.integers(0, 9),
    st.sampled_from(["float32", "float64", "int32", "int64", "uint8"]),
    st.integers(1, 3),
)
def test_edges_stay_in_the_range(low: int, more: int, dtype: str, count: int) -> None:
    low = abs(low) if dtype == "uint8" else low
    spec = TensorSpec(name="x", shape=(None, 3), dtype=dtype, low=low, high=low + more)
    for (array,) in edge_values([spec], count):
        assert array.shape == (count, 3)
        assert array.dtype.name == dtype
        assert (array >= low).all()
        assert (array <= low + more).all()


@given(st.integers(1, 9), st.integers(1, 4))
def test_batches_hold_every_sample_and_are_filled_up(count: int, step: int) -> None:
    x, fixed = np.arange(count * 2).reshape(count, 2), np.ones(3)
    feeds = in_batches([x, fixed], [True, False], step)
    assert all(len(feed[0]) == step and feed[1] is fixed for feed in feeds)
    np.testing.assert_array_equal(np.concatenate([feed[0] for feed in feeds])[:count], x)
    assert len(in_batches([x, fixed], [True, False], None)) == 1


@pytest.mark.parametrize("step", [None, 1, 2])
def test_the_first_set_comes_again_at_the_end(step: int | None) -> None:
    example = [np.zeros((2, 3, 2), np.float32)]
    sets = input_sets([IMAGE], [example], step, edges=True)
    assert [tried.kind for tried in sets] == ["user", "random", "random", "edge", "user"]
    assert sets[-1].name == "user inputs again"
    assert sets[-1].feeds == sets[0].feeds
    assert all(len(feed[0]) == step for tried in sets for feed in tried.feeds if step)
    assert [tried.kind for tried in input_sets([IMAGE], [], step, edges=False)] == ["random", "random", "random"]
