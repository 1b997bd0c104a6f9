"""Single weights that go or move during training: zeros are exact, counts are met, RigL follows the gradient."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.dynamic.weights import regrown
from edgeprune.errors import ConfigError, NothingToPrune
from tests.training_case import SmallNet, samples, small_net, train_step


def some_batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = samples(16 * 20, seed=1)
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    return [batches[number % 20] for number in range(count)]


def trained(net: nn.Module, pruner: ep.Gradual, steps: int, look: Any = None, first: int = 0, **optimiser: Any) -> None:
    """Train with much momentum and decay, and look at the network after every step."""
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01} | optimiser
    optimizer = torch.optim.SGD(net.train().parameters(), **settings)
    for number, batch in enumerate(some_batches(first + steps)[first:], first + 1):
        torch.manual_seed(number)
        optimizer.zero_grad()
        train_step(net, batch).backward()
        optimizer.step()
        pruner.step()
        if look is not None:
            look(number)


@pytest.mark.parametrize("by", ["magnitude", "lamp", "erk"])
def test_weights_go_along_the_schedule_and_stay_zero(by: str) -> None:
    net = small_net()
    pruner = ep.Gradual(net, method="weights", by=by, amount=0.8, begin=2, end=12, every=2)
    zeros: list[float] = []
    masks: list[ep.Masks] = []

    def look(step: int) -> None:
        pruner.masks.check(net)
        zeros.append(pruner.masks.sparsity)
        masks.append(pruner.masks)
        for name, kept in pruner.masks.kept.items():
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            assert step < 4 or (gradient[~masks[-2].kept[name] & ~kept] == 0).all()

    trained(net, pruner, 16, look)
    expected = [0.8 * (1 - (1 - min(max(step // 2 * 2 - 2, 0), 10) / 10) ** 3) for step in range(1, 17)]
    assert zeros == pytest.approx(expected, abs=0.01)
    assert masks[-1].zeros == round(0.8 * masks[-1].weights)
    assert pruner.settled
    for before, after in itertools.pairwise(masks):  # what is gone stays gone
        assert all((~before.kept[name] <= ~kept).all() for name, kept in after.kept.items())
    sparse = pruner.finish()
    assert sparse is not net
    pruner.masks.check(sparse)


def test_a_pattern_is_whole_at_the_end() -> None:
    net = small_net()
    pruner = ep.Gradual(net, method="weights", by="n:m", pattern="2:4", end=8, every=1)
    trained(net, pruner, 8)
    kept = pruner.masks.kept["head.weight"].view(4, -1, 4)
    assert (kept.sum(-1) == 2).all()
    assert pruner.zeros == pruner.masks.sparsity


def test_finishing_early_reaches_the_target_at_once() -> None:
    net = small_net()
    pruner = ep.Gradual(net, method="weights", amount=0.9, end=100)
    trained(net, pruner, 3)
    assert pruner.zeros < 0.1
    sparse = pruner.finish()
    assert pruner.masks.sparsity == pytest.approx(0.9, abs=0.01)
    pruner.masks.check(sparse)
    assert pruner.settled


def reference(kept: np.ndarray, weight: np.ndarray, gradient: np.ndarray, fraction: float) -> np.ndarray:
    """RigL's update of one layer, by sorting lists."""
    flat = kept.ravel()
    active = [int(i) for i in np.flatnonzero(flat)]
    count = round(fraction * len(active))
    dropped = sorted(active, key=lambda i: (abs(weight.ravel()[i]), i))[:count]
    stays = set(active) - set(dropped)
    others = [i for i in range(flat.size) if i not in stays]
    grown = sorted(others, key=lambda i: (-abs(gradient.ravel()[i]), i))[:count]
    result = np.zeros(flat.size, dtype=bool)
    result[[*stays, *grown]] = True
    return result.reshape(kept.shape)


@pytest.mark.parametrize("seed", range(8))
def test_weights_are_dropped_by_size_and_grown_by_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(7, 5, 3, generator=generator).double() for _ in range(2))
    kept = torch.rand(7, 5, 3, generator=generator) < 0.4
    for fraction in (0.0, 0.3, 1.0):
        found = regrown(kept, weight * kept, gradient, fraction)
        assert found.sum() == kept.sum()
        expected = reference(kept.numpy(), (weight * kept).numpy(), gradient.numpy(), fraction)
        assert np.array_equal(found.numpy(), expected)


def test_rigl_moves_weights_and_keeps_the_density_of_every_layer() -> None:
    net = small_net()
    pruner = ep.Gradual(net, method="rigl", by="erk", amount=0.7, end=12, every=3, fraction=0.5)
    seen: list[dict[str, torch.Tensor]] = []
    before: dict[str, torch.Tensor] = {}
    changed = []

    def look(step: int) -> None:
        pruner.masks.check(net)
        kept = {name: mask.clone() for name, mask in pruner.masks.kept.items()}
        if seen:
            assert [int(mask.sum()) for mask in kept.values()] == [int(mask.sum()) for mask in before.values()]
            if any(not torch.equal(kept[name], seen[-1][name]) for name in kept):
                changed.append(step)
            for name, mask in kept.items():
                assert (net.get_parameter(name)[mask & ~seen[-1][name]] == 0).all()  # what grows starts at zero
        seen.append(kept)
        before.update(kept)

    trained(net, pruner, 18, look)
    assert changed == [3, 6, 9]  # at the end of the schedule the fraction is zero
    assert pruner.masks.sparsity == pytest.approx(0.7, abs=0.01)


def test_rigl_grows_where_the_gradient_of_the_loss_is_largest() -> None:
    net = small_net()
    pruner = ep.Gradual(net, method="rigl", amount=0.5, end=100, every=2, fraction=0.4)
    trained(net, pruner, 1, lr=0.01)
    kept = {name: mask.clone() for name, mask in pruner.masks.kept.items()}
    batch = some_batches(2)[1]
    twin = copy.deepcopy(net)  # a copy without hooks has the whole gradient
    torch.manual_seed(4)
    twin.zero_grad()
    train_step(twin, batch).backward()
    torch.manual_seed(4)
    net.zero_grad()
    train_step(net, batch).backward()
    assert all((net.get_parameter(name).grad[~mask] == 0).all() for name, mask in kept.items())  # type: ignore[index]
    pruner.step()
    fraction = 0.4 / 2 * (1 + np.cos(np.pi * 2 / 100))
    for name, mask in kept.items():
        weight, gradient = twin.get_parameter(name).detach().numpy(), twin.get_parameter(name).grad
        assert gradient is not None
        expected = reference(mask.numpy(), weight, gradient.numpy(), fraction)
        assert np.array_equal(pruner.masks.kept[name].numpy(), expected)


@pytest.mark.parametrize("method", ["weights", "rigl"])
def test_a_loop_goes_on_from_a_saved_state_with_the_same_bits(method: str) -> None:
    def run(stop: int | None) -> SmallNet:
        torch.manual_seed(0)
        net = small_net()
        pruner = ep.Gradual(net, method=method, amount=0.7, end=9, every=2)
        for number, batch in enumerate(some_batches(12)):
            if number == stop:
                state, weights = pruner.state(), copy.deepcopy(net.state_dict())
                net = small_net(5)
                pruner = ep.Gradual(net, method=method, amount=0.7, end=9, every=2)
                net.load_state_dict(weights)
                pruner.load_state_(state)
            net.train()
            torch.manual_seed(number)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            optimizer.zero_grad()
            train_step(net, batch).backward()
            optimizer.step()
            pruner.step()
        found = pruner.finish()
        assert isinstance(found, SmallNet)
        return found

    whole, again = run(None).state_dict(), run(5).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"by": "threshold", "threshold": 0.1}, ConfigError, "one of magnitude, lamp, erk, n:m"),
        ({"amount": 0.5, "ratio": 0.5}, ConfigError, "unknown key 'sparsify.ratio'"),
        ({"amount": 1.5}, ConfigError, "sparsify.amount = 1.5"),
        ({"amount": 0.5, "fraction": 0.1}, ConfigError, "fraction means nothing to gradual.method = 'weights'"),
        ({"amount": 0.5, "begin": 20}, ConfigError, "begin = 20 is not before gradual.end = 10"),
        ({"amount": 1e-9}, NothingToPrune, "prunes none of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        ep.Gradual(small_net(), method="weights", end=10, **settings)


def test_a_pruner_of_weights_has_no_plan() -> None:
    pruner = ep.Gradual(small_net(), method="weights", amount=0.5, end=10)
    with pytest.raises(ConfigError, match="it is not one of units"):
        _ = pruner.plan
