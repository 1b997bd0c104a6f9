"""Fine-tuning: it learns, keeps the best epoch, leaves the user's network alone, and says what is wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.config import FinetuneConfig
from edgeprune.errors import ConfigError, ModelError, TrainingError
from edgeprune.training import Progress, finetune
from tests.training_case import evaluate, samples, settings, small_net, train, train_data, train_step


def test_it_learns_and_reports_every_step() -> None:
    steps: list[Progress] = []
    result = train(on_progress=steps.append, epochs=8)
    assert evaluate(small_net())["top1"] < 0.5
    assert evaluate(result.model)["top1"] > 0.8
    assert [record.epoch for record in result.history] == list(range(1, 9))
    assert result.history[-1].train["loss"] < result.history[0].train["loss"]
    assert [(p.epoch, p.step) for p in steps] == [(e, s) for e in range(1, 9) for s in range(1, 7)]
    assert steps[0].steps is None  # a generator has no length before it was used up once
    assert steps[-1].steps == 6
    assert result.notices == ()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_optimiser_and_schedule_lowers_the_loss(optimizer: str, schedule: str) -> None:
    result = train(optimizer=optimizer, schedule=schedule, epochs=4, max_grad_norm=5.0)
    losses = [record.train["loss"] for record in result.history]
    assert losses[-1] < losses[0]
    rates = [record.lr for record in result.history]
    assert rates[-1] == 0.01 if schedule == "constant" else rates[-1] < rates[0]


def test_the_networks_and_generators_of_the_user_are_untouched() -> None:
    model, teacher = small_net().train(), small_net(1)
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taught = {name: value.clone() for name, value in teacher.train().state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    result = finetune(
        model, step=train_step, data=train_data, config=settings(distill=0.5), evaluate=evaluate, teacher=teacher
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert [module.training for module in model.modules()] == [module.training for module in result.model.modules()]
    assert not result.model.drop.training
    assert all(parameter.grad is None for parameter in [*model.parameters(), *teacher.parameters()])
    assert all(parameter.requires_grad for parameter in [*result.model.parameters(), *teacher.parameters()])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_frozen_parameters_stay_and_the_others_move() -> None:
    model = small_net()
    model.conv.requires_grad_(False)
    result = finetune(model, step=train_step, data=train_data, config=settings(epochs=1, weight_decay=0.5))
    assert torch.equal(result.model.conv.weight, model.conv.weight)
    assert not torch.equal(result.model.head.weight, model.head.weight)
    assert not result.model.conv.weight.requires_grad
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="every parameter is frozen"):
        finetune(model, step=train_step, data=train_data, config=settings())


@pytest.mark.parametrize(("name", "kept"), [("top1", 4), ("cross_entropy_loss", 3), ("loss", 3)])
def test_the_best_epoch_is_kept(name: str, kept: int) -> None:
    heads: list[torch.Tensor] = []
    values = iter([0.5, 0.9, 0.2, 0.9])

    def metrics(model: nn.Module) -> dict[str, float]:
        assert not model.training
        heads.append(model.head.weight.detach().clone())
        return {name: next(values), "other": 1.0 / len(heads)}

    result = finetune(small_net(), step=train_step, data=train_data, config=settings(epochs=4), evaluate=metrics)
    assert result.best_epoch == kept
    assert torch.equal(result.model.head.weight, heads[kept - 1])
    assert [record.validation[name] for record in result.history] == [0.5, 0.9, 0.2, 0.9]


def test_the_named_metric_decides_and_nan_is_never_best() -> None:
    values = iter([float("nan"), 0.3, 0.1])

    def metrics(_: nn.Module) -> dict[str, float]:
        return {"first": 1.0, "second": next(values)}

    config = settings(metric="second")
    result = finetune(small_net(), step=train_step, data=train_data, config=config, evaluate=metrics)
    assert result.best_epoch == 2


def test_without_a_metric_the_lowest_training_loss_is_best() -> None:
    epochs = iter([1.0, -1.0, 1.0])

    def data() -> list[float]:
        return [next(epochs)] * 3

    def step(model: nn.Module, sign: float) -> torch.Tensor:
        return sign * 100 + model.head.weight.square().mean()

    result = finetune(small_net(), step=step, data=data, config=settings(epochs=3))
    assert result.best_epoch == 2


def test_an_evaluation_that_changes_its_network_changes_nothing() -> None:
    def meddling(model: nn.Module) -> dict[str, float]:
        metrics = evaluate(model)
        torch.manual_seed(0)
        nn.init.zeros_(model.head.weight)
        model.train().requires_grad_(False)
        return metrics

    def run(metric: Any) -> torch.Tensor:
        config = settings(schedule="constant")
        result = finetune(small_net(), step=train_step, data=train_data, config=config, evaluate=metric)
        assert [record.validation for record in result.history] == [record.validation for record in train_plain]
        return result.model.head.weight

    plain = finetune(
        small_net(), step=train_step, data=train_data, config=settings(schedule="constant"), evaluate=evaluate
    )
    train_plain = plain.history
    assert torch.equal(run(meddling), plain.model.head.weight)


def test_no_epochs_give_the_network_back() -> None:
    model = small_net()
    result = finetune(model, step=train_step, data=train_data, config=settings(epochs=0))
    assert result.model is not model
    assert torch.equal(result.model.head.weight, model.head.weight)
    assert (result.history, result.best_epoch) == ((), 0)


def test_a_network_that_diverges_is_an_error_and_the_best_epoch_stays(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    calls = iter(range(100))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return train_step(model, batch) * (float("nan") if next(calls) == 8 else 1.0)

    with pytest.raises(TrainingError, match=r"loss became nan at epoch 2 of 3, step 3, learning rate") as caught:
        train(checkpoint, step=step)
    assert "epoch so far, 1, is kept in" in caught.value.message
    assert "finetune.lr=0.001 (it is 0.01)" in str(caught.value.fix)

    result = train(checkpoint)  # the same training with a step that works goes on from there
    assert result.notices == ()
    assert torch.equal(result.model.head.weight, train().model.head.weight)


def test_a_loss_that_is_not_finite_from_the_start_blames_the_data() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return train_step(model, batch) + float("inf")

    with pytest.raises(TrainingError, match="became inf before the first update") as caught:
        finetune(small_net(), step=step, data=train_data, config=settings())
    assert "the data are finite" in str(caught.value.fix)


def test_infinite_gradients_are_found_before_they_reach_the_weights(tmp_path: Path) -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        tiny = (model.head.weight[0, 0] - model.head.weight[0, 0].detach()).clamp_min(0.0)
        return train_step(model, batch) + tiny.sqrt()

    with pytest.raises(TrainingError, match=r"gradient's norm became (nan|inf)"):
        finetune(small_net(), step=step, data=train_data, config=settings(), checkpoint=tmp_path / "checkpoint")


def test_weights_that_overflow_are_never_written(tmp_path: Path) -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model.head.bias * 1e10).sum()

    config = settings(optimizer="sgd", lr=1e30, warmup_steps=0)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(TrainingError, match=r"'head.bias' is not finite"):
        finetune(small_net(), step=step, data=train_data, config=config, checkpoint=checkpoint)
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (0.5, "returned float, not a tensor"),
        (torch.zeros(3, requires_grad=True), r"shape \(3,\), not a scalar"),
        (torch.zeros(()), "does not depend on any parameter"),
    ],
)
def test_a_step_that_returns_no_loss_is_an_error(result: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        finetune(small_net(), step=lambda model, batch: result, data=train_data, config=settings())


@pytest.mark.parametrize(
    ("metrics", "message"), [(0.9, "returned float, not a dict"), ({"top1": "high"}, "returned str for 'top1'")]
)
def test_an_evaluation_without_numbers_is_an_error(metrics: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        finetune(
            small_net(), step=train_step, data=train_data, config=settings(epochs=1), evaluate=lambda model: metrics
        )


def test_impossible_settings_are_errors() -> None:
    def run(config: FinetuneConfig, **arguments: Any) -> None:
        finetune(small_net(), **({"step": train_step, "data": train_data, "config": config} | arguments))

    with pytest.raises(ConfigError, match="needs a train_step or a teacher"):
        run(settings(), step=None)
    with pytest.raises(ConfigError, match=r"distill is 0.5 and there is no teacher"):
        run(settings(distill=0.5))
    with pytest.raises(ConfigError, match="there is no evaluate"):
        run(settings(metric="top1"))
    with pytest.raises(ConfigError, match=r"'top5', and evaluate.. returned top1"):
        run(settings(metric="top5", epochs=1), evaluate=evaluate)


def test_data_that_is_used_up_or_empty_is_an_error() -> None:
    with pytest.raises(ModelError, match="no batches in epoch 1"):
        finetune(small_net(), step=train_step, data=tuple, config=settings())
    once = train_data()
    with pytest.raises(ModelError, match="no batches in epoch 2"):
        finetune(small_net(), step=train_step, data=lambda: once, config=settings())


def test_a_data_loader_gives_the_number_of_steps_at_once() -> None:
    dataset = torch.utils.data.TensorDataset(*samples(50, seed=3))
    steps: list[Progress] = []
    finetune(
        small_net(),
        step=train_step,
        data=lambda: torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True),
        config=settings(epochs=1),
        on_progress=steps.append,
    )
    assert [progress.steps for progress in steps] == [7] * 7


def test_batches_of_any_kind_reach_the_step() -> None:
    images, labels = samples(32, seed=4)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["image"]), batch["more"][0])

    data = [{"image": images, "more": [labels, "a name"]}]
    result = finetune(small_net(), step=step, data=lambda: data, config=settings(epochs=20))
    assert result.history[-1].train["loss"] < 0.5 * result.history[0].train["loss"]
