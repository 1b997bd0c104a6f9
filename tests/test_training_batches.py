"""What a batch means: inputs, places, shares."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.training import model_inputs
from edgeprune.training.batches import count_batches, inputs_for, share, to_device

IMAGE, LABEL = torch.zeros(2, 3), torch.ones(2)
Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (IMAGE, 1),
        ((IMAGE,), 1),
        ([IMAGE, LABEL], 1),
        ((IMAGE, LABEL, "name"), 1),
        (((IMAGE, LABEL), LABEL), 2),
        ([[IMAGE, LABEL]], 2),
        (Pair(IMAGE, LABEL), 1),
    ],
)
def test_inputs_of_a_batch(batch: Any, count: int) -> None:
    inputs = model_inputs(batch)
    assert isinstance(inputs, tuple)
    assert inputs[0] is IMAGE
    assert len(inputs) == count


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": IMAGE, "label": LABEL}, r"a batch is a dict \(image, label\)"),
        ((), "an empty tuple"),
        (((), LABEL), r"batch\[0\] is empty"),
        (("text", LABEL), r"batch\[0\] is str"),
        (((IMAGE, 3), LABEL), r"batch\[0\]\[1\] is int"),
        (7, "a batch is int"),
    ],
)
def test_a_batch_without_clear_inputs_is_an_error_with_a_fix(batch: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        model_inputs(batch)
    assert "first element is the input" in str(caught.value.fix)


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return (a + b) * scale


def test_inputs_that_a_forward_does_not_take_are_an_error_that_says_how_several_are_given() -> None:
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    assert len(inputs_for(Sum(), ((a, b), None))) == 2
    with pytest.raises(ModelError, match=r"gives the network 1 inputs.*'b'") as caught:
        inputs_for(Sum(), (a, b))
    assert "((a, b), labels)" in str(caught.value.fix)
    with pytest.raises(ModelError, match="gives the network 4 inputs"):
        inputs_for(Sum(), ((a, b, a, b), None))


def test_every_tensor_is_moved_and_structures_keep_their_type() -> None:
    batch = {"a": [IMAGE, "text"], "b": Pair(LABEL, (IMAGE, None))}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == "text"
    assert type(moved["b"]) is Pair
    assert moved["b"].first.is_meta
    assert moved["b"].second[0].is_meta
    assert moved["b"].second[1] is None
    assert not IMAGE.is_meta


@given(count=st.integers(0, 30), processes=st.integers(1, 5))
def test_shares_are_equally_long_and_lose_nothing(count: int, processes: int) -> None:
    shares = [list(share(range(count), rank, processes)) for rank in range(processes)]
    assert {len(part) for part in shares} == {-(-count // processes)}
    dealt = [batch for group in zip(*shares, strict=True) for batch in group]
    assert dealt[:count] == list(range(count))
    assert all(extra == index % max(1, count) for index, extra in enumerate(dealt[count:]))


def test_lengths_are_known_where_they_are() -> None:
    class Unknown(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    assert count_batches([1, 2]) == 2
    assert count_batches(iter([1])) is None
    assert count_batches(torch.utils.data.DataLoader(Unknown())) is None
