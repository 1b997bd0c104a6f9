"""Masks of single weights: zeros that stay exactly zero under every optimiser, and through an interruption."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.errors import ConfigError, VerificationError
from edgeprune.pruning import Masks
from edgeprune.training import finetune
from tests.training_case import (
    assert_same_training,
    evaluate,
    kill_at,
    killed,
    samples,
    settings,
    small_net,
    train_data,
    train_sparse,
    train_step,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.02, momentum=0.9, weight_decay=0.1, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
}


def _closure(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    images, labels = samples(32, seed=1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_exact_under_every_optimiser(name: str) -> None:
    sparse, masks = ep.sparsify(small_net(), method="lamp", amount=0.6)
    sparse.train()
    optimizer = OPTIMIZERS[name](sparse.parameters())
    masks.hold(sparse, optimizer)
    closure = _closure(sparse, optimizer)
    before = {key: value.detach().clone() for key, value in sparse.named_parameters()}
    for _ in range(4):
        optimizer.step(closure)
        masks.check(sparse)
    for key, mask in masks.kept.items():
        weight = sparse.get_parameter(key).detach()
        assert (weight[~mask] == 0).all()
        assert not torch.signbit(weight[~mask]).any()
        assert not torch.equal(weight[mask], before[key][mask])


def test_a_momentum_from_before_the_pruning_does_not_bring_weights_back() -> None:
    net = small_net().train()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    optimizer.step(_closure(net, optimizer))
    _, masks = ep.sparsify(net, amount=0.5)
    masks.hold(net, optimizer)
    masks.check(net)
    optimizer.step(_closure(net, optimizer))
    masks.check(net)


def test_without_holding_the_zeros_are_lost_and_the_check_says_so() -> None:
    sparse, masks = ep.sparsify(small_net(), amount=0.5)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    held = masks.hold(sparse, optimizer)
    held.remove()
    optimizer.step(_closure(sparse, optimizer))
    with pytest.raises(VerificationError, match=r"pruned weights of 'conv\.weight' are not zero"):
        masks.check(sparse)


def test_gradients_of_pruned_weights_are_zero_even_where_they_are_not_finite() -> None:
    sparse, masks = ep.sparsify(nn.Linear(4, 2), amount=0.5)
    masks.hold(sparse, torch.optim.SGD(sparse.parameters(), lr=0.1))
    (sparse(torch.full((1, 4), torch.inf))).sum().backward()
    gradient = sparse.get_parameter("weight").grad
    assert gradient is not None
    assert (gradient[~masks.kept["weight"]] == 0).all()


def test_masks_of_another_network_are_refused() -> None:
    sparse, masks = ep.sparsify(small_net(), amount=0.5)
    with pytest.raises(ConfigError, match="does not exist in the network"):
        masks.apply_(nn.Linear(2, 2))
    other = copy.deepcopy(sparse)
    with pytest.raises(ConfigError, match="holds none of the pruned weights"):
        masks.hold(sparse, torch.optim.SGD(other.parameters(), lr=0.1))
    wide = nn.Sequential()
    wide.add_module("conv", nn.Conv2d(2, 8, 3))
    with pytest.raises(ConfigError, match=r"is \(8, 1, 3, 3\) and is \(8, 2, 3, 3\)"):
        masks.check(wide)
    with pytest.raises(ConfigError, match="the masks are of another network"):
        ep.finetune(nn.Linear(36, 4), data=list(train_data()), step=train_step, masks=masks)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fine_tuning_keeps_the_zeros_and_learns(optimizer: str) -> None:
    net = small_net()
    sparse, masks = ep.sparsify(net, method="erk", amount=0.5)
    result = finetune(
        sparse,
        step=train_step,
        data=train_data,
        config=settings(optimizer=optimizer, weight_decay=0.01, max_grad_norm=1.0),
        evaluate=evaluate,
        masks=masks,
    )
    masks.check(result.model)
    assert evaluate(result.model)["top1"] > evaluate(sparse)["top1"]


def test_fine_tuning_without_epochs_still_returns_the_zeros() -> None:
    net = small_net()
    masks = ep.sparsify(net, amount=0.5)[1]
    masks.check(ep.finetune(net, data=list(train_data()), step=train_step, epochs=0, masks=masks))
    with pytest.raises(VerificationError):
        masks.check(net)


def test_a_sparse_training_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed("killed sparse", checkpoint)
    seen: list[tuple[int, int]] = []
    masks, resumed = train_sparse(checkpoint, lambda progress: seen.append((progress.epoch, progress.step)))
    assert seen[0] == (2, 3)
    masks.check(resumed.model)
    assert_same_training(resumed, train_sparse()[1])


def test_ctrl_c_and_other_masks(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train_sparse(checkpoint, kill_at(2, 2, signal.SIGINT))
    masks, _ = train_sparse(checkpoint, amount=0.4)
    assert (tmp_path / "checkpoint.stale").exists()  # the checkpoint of other masks is not gone on with
    assert masks.sparsity == pytest.approx(0.4, abs=0.01)


def test_masks_know_their_digest() -> None:
    masks = Masks(kept={"a": torch.tensor([True, False])})
    assert masks.digest == Masks(kept={"a": torch.tensor([True, False])}).digest
    assert masks.digest != Masks(kept={"a": torch.tensor([False, True])}).digest
    assert masks.rows() == [{"name": "a", "shape": [2], "weights": 2, "zeros": 1}]
