"""Pruners inside of fine-tuning: the target is met, the best epoch is a pruned one, interruptions are bit-exact."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.dynamic import UnitPruner, WeightPruner
from edgeprune.training import FinetuneResult
from edgeprune.training.checkpoint import read_checkpoint
from tests.training_case import assert_same_training, evaluate, kill_at, killed, train_gradual

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("channels", "soft", "regularise", "slim", "weights", "rigl")


def _assert_same(one: FinetuneResult, other: FinetuneResult) -> None:
    assert_same_training(one, other)
    assert one.pruner is not None
    assert other.pruner is not None
    assert one.pruner.trail.rows == other.pruner.trail.rows
    states = one.pruner.state(), other.pruner.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("method", METHODS)
def test_a_training_killed_while_it_prunes_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed(f"killed {method}", checkpoint)
    found = read_checkpoint(checkpoint)
    assert found.position.done == 8
    assert found.pruner["step"].tolist() == [8, 0]
    _assert_same(train_gradual(method, checkpoint), train_gradual(method))


def test_ctrl_c_after_the_target_is_reached_costs_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train_gradual("channels", checkpoint, kill_at(3, 4, signal.SIGINT))
    assert read_checkpoint(checkpoint).pruner["step"].tolist() == [16, 1]
    _assert_same(train_gradual("channels", checkpoint), train_gradual("channels"))


@pytest.mark.parametrize("method", METHODS)
def test_the_result_has_its_zeros(method: str) -> None:
    result = train_gradual(method)
    pruner = result.pruner
    assert pruner is not None
    assert pruner.settled
    assert pruner.trail.rows[-1][0] == 14  # three quarters of 18 steps
    if isinstance(pruner, WeightPruner):
        assert pruner.masks.sparsity == pytest.approx(0.6, abs=0.01)
        pruner.masks.check(result.model)
    else:
        assert isinstance(pruner, UnitPruner)
        gone = torch.from_numpy(pruner.removed["conv"])
        assert gone.sum() == 4
        assert (result.model.get_parameter("conv.weight")[gone] == 0).all()
        assert (result.model.get_parameter("conv.weight")[~gone].flatten(1) != 0).any(1).all()


def test_an_epoch_before_the_target_is_never_the_best() -> None:
    found = iter([0.9, 0.8, 0.1])
    result = train_gradual("weights", evaluate=lambda _: {"top1": next(found)})
    assert result.best_epoch == 3
    found = iter([0.9, 0.5, 0.1])
    assert train_gradual("weights", evaluate=lambda _: {"top1": next(found)}, end=8).best_epoch == 2


def test_a_schedule_that_outlasts_the_training_is_cut_short(tmp_path: Path) -> None:
    result = train_gradual("channels", tmp_path / "checkpoint", end=1000)
    assert isinstance(result.pruner, UnitPruner)
    gone = torch.from_numpy(result.pruner.removed["conv"])
    assert gone.sum() == 4
    assert (result.model.get_parameter("conv.weight")[gone] == 0).all()
    _assert_same(train_gradual("channels", tmp_path / "checkpoint", end=1000), result)  # a finished one is read again


def test_other_settings_are_another_training(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train_gradual("weights", checkpoint, kill_at(2, 1, signal.SIGINT))
    result = train_gradual("weights", checkpoint, every=2)
    assert [notice.code for notice in result.notices] == ["checkpoint-not-used"]
    assert "the pruning differs" in result.notices[0].text


def test_metrics_are_those_of_the_network_with_its_zeros() -> None:
    seen: list[float] = []

    def look(model: nn.Module) -> dict[str, float]:
        weights: Any = torch.cat([model.get_parameter(name).flatten() for name in ("conv.weight", "head.weight")])
        seen.append(float((weights == 0).double().mean()))
        return evaluate(model)

    train_gradual("weights", evaluate=look, end=12)
    assert seen[0] == pytest.approx(0.6 * (1 - 0.5**3), abs=0.01)
    assert seen[1:] == pytest.approx([0.6, 0.6], abs=0.01)
