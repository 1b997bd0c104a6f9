"""Learning rates and optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.config import FinetuneConfig
from edgeprune.errors import ModelError
from edgeprune.training.optimise import learning_rate, make_optimizer, set_learning_rate_


def _rates(config: FinetuneConfig, steps: int | None, length: int) -> list[float]:
    return [
        learning_rate(config, epoch=epoch, step=step, steps=steps, done=epoch * length + step)
        for epoch in range(config.epochs)
        for step in range(length)
    ]


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    epochs=st.integers(1, 5),
    steps=st.integers(1, 20),
    warmup=st.integers(0, 50),
)
def test_rates_are_positive_never_above_lr_and_fall_after_the_warm_up(
    schedule: Any, epochs: int, steps: int, warmup: int
) -> None:
    config = FinetuneConfig(schedule=schedule, epochs=epochs, warmup_steps=warmup, lr=0.1)
    rates = _rates(config, steps, steps)
    assert all(0 < rate <= 0.1 for rate in rates)
    after = rates[min(warmup, steps * epochs // 2) :]
    assert after == sorted(after, reverse=True)


def test_known_values() -> None:
    config = FinetuneConfig(schedule="linear", epochs=2, warmup_steps=0, lr=1.0)
    assert _rates(config, 2, 2) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    config = FinetuneConfig(schedule="cosine", epochs=2, warmup_steps=0, lr=1.0)
    assert _rates(config, 2, 2) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], rel=1e-5)
    config = FinetuneConfig(schedule="constant", epochs=2, warmup_steps=3, lr=1.0)
    assert _rates(config, 4, 4) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])
    assert _rates(config, 2, 2) == pytest.approx([1 / 2, 1, 1, 1])  # a warm-up takes half of the steps at most


def test_with_an_unknown_number_of_steps_the_rate_holds_for_the_epoch() -> None:
    config = FinetuneConfig(schedule="linear", epochs=2, warmup_steps=0, lr=1.0)
    assert _rates(config, None, 3) == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])


def test_optimisers_follow_the_settings_and_leave_frozen_parameters_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        optimizer = make_optimizer(model, FinetuneConfig(optimizer=name, weight_decay=0.3, momentum=0.7))
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
        assert group["weight_decay"] == 0.3
        assert group.get("momentum", 0.7) == 0.7
        set_learning_rate_(optimizer, 0.125)
        assert group["lr"] == 0.125


def test_a_network_without_parameters_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="every parameter is frozen"):
        make_optimizer(nn.ReLU(), FinetuneConfig())
