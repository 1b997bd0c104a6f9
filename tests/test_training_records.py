"""Positions and the choice of the best epoch."""

from __future__ import annotations

import json
import math

import pytest

from edgeprune.errors import ConfigError
from edgeprune.training.records import EpochRecord, Position, better
from edgeprune.values import lower_is_better


def _record(validation: dict[str, float], loss: float = 1.0) -> EpochRecord:
    return EpochRecord(epoch=1, train={"loss": loss}, validation=validation, lr=0.1, seconds=2.0)


@pytest.mark.parametrize(
    ("validation", "metric", "best", "value"),
    [
        ({"top1": 0.9}, None, None, 0.9),
        ({"top1": 0.9}, None, 0.8, 0.9),
        ({"top1": 0.9}, None, 0.9, 0.9),  # a tie goes to the later epoch
        ({"top1": 0.8}, None, 0.9, None),
        ({"top1": 0.9, "val_loss": 0.3}, "val_loss", 0.4, 0.3),
        ({"top1": 0.9, "val_loss": 0.3}, "val_loss", 0.2, None),
        ({"word_error": 0.1}, None, 0.2, 0.1),
        ({}, None, 2.0, 1.0),
        ({}, None, 0.5, None),
        ({"top1": math.nan}, None, 0.1, None),
        ({"top1": 0.1}, None, math.nan, 0.1),
    ],
)
def test_which_epoch_is_better(
    validation: dict[str, float], metric: str | None, best: float | None, value: float | None
) -> None:
    assert better(_record(validation), metric, best) == value


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'top5', and evaluate.. returned top1, recall"):
        better(_record({"top1": 0.9, "recall": 0.2}), "top5", None)


@pytest.mark.parametrize(
    ("name", "lower"), [("loss", True), ("val_loss", True), ("word_error", True), ("top1", False), ("lossless", False)]
)
def test_the_direction_of_a_metric_is_in_its_name(name: str, lower: bool) -> None:
    assert lower_is_better(name) is lower


def test_a_position_moves_from_step_to_step_and_epoch_to_epoch() -> None:
    start = Position(sums={})
    place = start.after_step({"loss": 3.0}, lr=0.2, seconds=1.0).after_step({"loss": 1.0}, lr=0.1, seconds=1.5)
    assert (place.epoch, place.step, place.done, place.lr) == (0, 2, 2, 0.1)
    record = place.record({"top1": 0.5}, seconds=0.5)
    assert record == EpochRecord(epoch=1, train={"loss": 2.0}, validation={"top1": 0.5}, lr=0.1, seconds=3.0)
    following = place.after_epoch(record, 0.5)
    assert (following.epoch, following.step, following.done, following.steps) == (1, 0, 2, 2)
    assert (following.sums, following.seconds, following.history) == ({}, 0.0, (record,))
    assert (following.best_epoch, following.best_value) == (1, 0.5)
    worse = following.after_epoch(record, None)
    assert (worse.best_epoch, worse.best_value, len(worse.history)) == (1, 0.5, 2)
    assert start == Position(sums={})


def test_a_position_survives_json_exactly() -> None:
    place = Position(sums={"loss": 0.1 + 0.2}, lr=1 / 3, best_value=math.pi, history=(_record({"top1": 2 / 3}),))
    assert Position.from_dict(json.loads(json.dumps(place.as_dict()))) == place
