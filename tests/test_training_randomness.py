"""Random streams that repeat and do not touch each other."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch

from edgeprune.training.randomness import EpochData, capture, preserved, restore, seed_stream


def _draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def _data() -> Iterator[tuple[float, float, float]]:
    for _ in range(4):
        yield _draw()


def test_a_stream_repeats_and_differs_from_others() -> None:
    drawn = []
    with preserved():
        for parts in (("step", 0, 1), ("step", 0, 1), ("step", 1, 0), ("data", 0, 1)):
            seed_stream(*parts)
            drawn.append(_draw())
    assert drawn[0] == drawn[1]
    for generator in range(3):
        assert len({values[generator] for values in drawn}) == 3


def test_states_are_captured_restored_and_preserved() -> None:
    state = capture()
    first = _draw()
    restore(state)
    assert _draw() == first
    restore(state)
    with preserved():
        seed_stream(3)
        _draw()
    assert _draw() == first


def test_batches_do_not_depend_on_what_is_drawn_between_them() -> None:
    state = capture()
    plain = list(EpochData(_data, seed=3, epoch=1))
    disturbed = []
    for batch in EpochData(_data, seed=3, epoch=1):
        seed_stream("anything")
        _draw()
        disturbed.append(batch)
    assert disturbed == plain
    assert len(plain) == 4
    assert list(EpochData(_data, seed=3, epoch=2)) != plain
    assert list(EpochData(_data, seed=4, epoch=1)) != plain
    restore(state)


def test_the_length_of_an_epoch_is_known_where_the_data_know_it() -> None:
    with preserved():
        data = EpochData(lambda: [_draw() for _ in range(3)], seed=0, epoch=0)
        assert data.length == 3
        assert len(list(data)) == 3
        assert EpochData(_data, seed=0, epoch=0).length is None
