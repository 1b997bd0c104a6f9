"""The rounding of int8 in training: what it computes, what it leaves alone, and that the file computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.config import FinetuneConfig
from edgeprune.errors import ConfigError, ModelError
from edgeprune.export.equalise import symmetric
from edgeprune.export.opened import open_artifact
from edgeprune.export.precision import open_float
from edgeprune.pipeline.aware import measured_ranges
from edgeprune.pruning import Masks
from edgeprune.quantise import histograms
from edgeprune.quantise.ranges import Interval
from edgeprune.training import FakeQuantised, FinetuneResult, finetune
from edgeprune.training.checkpoint import network_tensors
from edgeprune.training.fake_quantise import LEVELS, fake_range, fake_weight
from tests.training_case import EXAMPLE, evaluate, samples, small_net, train_data, train_step

RANGES = {"conv.weight": (-3.0, 3.0), "head.weight": (0.0, 4.0)}


def _trained(**changes: Any) -> FinetuneResult:
    """Return a short training with rounding, small enough to be run several times."""
    settings: dict[str, Any] = {"step": train_step, "evaluate": evaluate, "ranges": RANGES, "seed": 3}
    config = changes.pop("config", FinetuneConfig(epochs=2, lr=1e-3, checkpoint_every_s=0))
    return finetune(changes.pop("model", small_net()), data=train_data, config=config, **settings | changes)


def _images(count: int = 16) -> torch.Tensor:
    return samples(count, seed=8)[0]


def test_a_weight_lies_on_the_steps_of_its_channel() -> None:
    weight = (
        torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, 5)[:, None, None, None]
    )
    rounded = fake_weight(weight, 0)
    torch.testing.assert_close(rounded, symmetric(weight))
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    steps = rounded / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert float(steps.abs().max()) <= 127.001
    turned = fake_weight(weight.transpose(0, 1), 1)
    torch.testing.assert_close(turned, rounded.transpose(0, 1))
    assert torch.equal(fake_weight(torch.zeros(2, 2), 0), torch.zeros(2, 2))


def test_activations_lie_on_256_levels_with_zero_among_them() -> None:
    interval = Interval(low=-0.7, high=2.4)
    values = torch.linspace(-2.0, 4.0, 4001)
    rounded = fake_range(values, interval.low, interval.high)
    levels = (rounded / interval.scale).round().unique()
    assert len(levels) == LEVELS + 1 == 256
    assert float(fake_range(torch.zeros(1), interval.low, interval.high)) == 0.0
    inside = (values > interval.low) & (values < interval.high - interval.scale)
    assert float((rounded - values)[inside].abs().max()) <= interval.scale / 2 * 1.001
    assert float(fake_range(torch.ones(3), 0.0, 0.0).abs().max()) <= 1e-11
    tokens = torch.tensor([1, 2])
    assert fake_range(tokens, 0.0, 1.0) is tokens


def test_gradients_pass_rounding_as_if_it_were_not_there_and_stop_outside_of_the_range() -> None:
    values = torch.tensor([-5.0, -0.3, 0.123, 0.9, 7.0], requires_grad=True)
    fake_range(values, -1.0, 1.0).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    factors = torch.arange(12.0).view(3, 4)
    (fake_weight(weight, 0) * factors).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factors)


def test_nothing_of_the_network_changes_and_nothing_stays_behind() -> None:
    network = small_net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = network(_images())
    with FakeQuantised(network, RANGES) as rounding:
        rounded = network(_images())
        keys = list(network.state_dict())
    assert not torch.equal(plain, rounded)
    assert rounding.rounded == {"conv.weight", "head.weight"}
    assert torch.equal(network(_images()), plain)
    assert keys == list(network.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_other_networks_and_copies_are_not_rounded() -> None:
    network, teacher = small_net(), small_net(1)
    expected = teacher(_images())
    with FakeQuantised(network, RANGES):
        assert torch.equal(teacher(_images()), expected)
        assert torch.equal(copy.deepcopy(teacher)(_images()), expected)


def test_batch_norm_keeps_its_statistics_and_uses_them() -> None:
    network = small_net().train()
    network.drop.p = 0.0
    mean = network.norm.running_mean.clone()  # type: ignore[union-attr]
    with FakeQuantised(network, RANGES):
        trained = network(_images())
        assert torch.equal(network.eval()(_images()), trained)
    assert torch.equal(network.norm.running_mean, mean)  # type: ignore[arg-type]
    other = nn.BatchNorm2d(1).train()
    with FakeQuantised(network, RANGES):
        other(_images())
    assert not torch.equal(other.running_mean, torch.zeros(1))  # type: ignore[arg-type]


def test_rounding_before_batch_norm_is_folded_is_rounding_after() -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    factors = torch.logspace(-2, 2, 6)[:, None, None, None] * torch.tensor([1.0, -1.0] * 3)[:, None, None, None]
    torch.testing.assert_close(fake_weight(weight, 0) * factors, fake_weight(weight * factors, 0))


class Shared(nn.Module):
    """Two layers with one weight, one layer used twice, a transposed convolution, and a product by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.twice = nn.Linear(6, 6)
        self.up = nn.ConvTranspose1d(1, 2, 2, stride=2)
        self.own = nn.Parameter(torch.randn(3, 24) / 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tied(F.relu(self.first(x)))
        x = self.twice(F.relu(self.twice(input=x)))
        return F.linear(input=self.up(x[:, None]).flatten(1), weight=self.own)


def test_tied_weights_modules_used_twice_and_functions_count_too() -> None:
    torch.manual_seed(0)
    network = Shared().eval()
    data = [torch.randn(32, 6, generator=torch.Generator().manual_seed(4))]
    ranges = measured_ranges(network, data, 32)
    assert set(ranges) == {"first.weight", "twice.weight", "up.weight", "own"}
    seen: list[torch.Tensor] = []
    hook = network.twice.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("input", *args)), with_kwargs=True
    )
    network(data[0])
    hook.remove()
    low, high = ranges["twice.weight"]
    assert low <= 0.5 * min(float(values.detach().min()) for values in seen) < 0 < high
    plain = network(data[0])
    with FakeQuantised(network, ranges):
        rounded = network(data[0])
    error = float((rounded - plain).norm() / plain.norm())
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_rounded_weights_and_gradients(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    values = torch.randn(3, 4, 5)
    expected = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.dim() > 1:
                parameter.copy_(symmetric(parameter))
    with FakeQuantised(network, {}) as rounding:
        found = network(values)[0]
        found.sum().backward()
    torch.testing.assert_close(found, expected(values)[0])
    assert len(rounding.rounded) == 8
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_attention_cells_float64_and_channels_last() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with FakeQuantised(attention, {}) as rounding:
        attention(*[torch.randn(2, 3, 8)] * 3)
    assert rounding.rounded == {"in_proj_weight", "out_proj.weight"}
    cell = nn.LSTMCell(3, 4)
    with FakeQuantised(cell, {}) as rounding:
        cell(torch.randn(2, 3))
    assert rounding.rounded == {"weight_ih", "weight_hh"}
    network = small_net().double()
    images = _images().double()
    with FakeQuantised(network, RANGES):
        plain, last = network(images), network(images.contiguous(memory_format=torch.channels_last))
    assert plain.dtype == torch.float64
    torch.testing.assert_close(plain, last)


def test_recorded_calls_count_as_well() -> None:
    network = small_net()
    with torch.no_grad():
        recorded: Any = torch.export.export(network, (_images(),)).module()
    names = {name for name, parameter in recorded.named_parameters() if parameter.dim() > 1}
    ranges = measured_ranges(recorded, [_images()], 16)
    assert set(ranges) == names == set(RANGES)
    with FakeQuantised(recorded, RANGES), FakeQuantised(network, RANGES):
        torch.testing.assert_close(recorded(_images()), network(_images()))


@pytest.mark.parametrize(("suffix", "steps"), [(".tflite", 1.0), (".onnx", 2.0)])  # ONNX weights have a zero point
def test_the_int8_file_computes_what_the_rounded_network_does(tmp_path: Path, suffix: str, steps: float) -> None:
    network, images = _trained().model.eval(), _images(64)
    path, integer_path = tmp_path / f"float{suffix}", tmp_path / f"int8{suffix}"
    ep.export(network, EXAMPLE, path)
    file = open_float(path)
    samples_ = [[image[None].numpy()] for image in images]
    found = histograms(file, map(open_artifact(path).feeds, samples_), lambda *_: None, len(samples_))
    intervals = {
        name: Interval(low=min(counted.low, 0.0), high=max(counted.high, 0.0)) for name, counted in found.items()
    }
    integer_path.write_bytes(file.quantise(intervals, frozenset()))
    integers = open_artifact(integer_path)
    outputs = np.concatenate([integers.run(sample)[0] for sample in samples_])

    counts: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad(), FakeQuantised(network, {}, lambda name, values: counts.setdefault(name, []).append(values)):
        plain = network(images).numpy()
    ranges = {
        name: (min(0.0, *(float(part.min()) for part in parts)), max(0.0, *(float(part.max()) for part in parts)))
        for name, parts in counts.items()
    }
    low, high = min(float(plain.min()), 0.0), max(float(plain.max()), 0.0)
    with torch.no_grad(), FakeQuantised(network, ranges):
        rounded = fake_range(network(images), low, high).numpy()
    step = (high - low) / LEVELS
    assert np.abs(outputs - rounded).max() <= (steps + 0.01) * step
    same = (np.abs(outputs - rounded) < 0.01 * step).mean()
    assert same > (0.8 if suffix == ".tflite" else 0.4)
    nearest = fake_range(torch.from_numpy(plain), low, high).numpy()
    assert same > (np.abs(outputs - nearest) < 0.01 * step).mean()


def test_the_training_gives_plain_weights_that_suit_integers() -> None:
    network = small_net()
    result = _trained(model=network)
    assert list(result.model.state_dict()) == list(network.state_dict())
    assert not torch.equal(result.model.conv.weight, network.conv.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(result.model.norm.running_var, network.norm.running_var)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(fake_weight(result.model.conv.weight, 0), result.model.conv.weight)  # type: ignore[union-attr, arg-type]
    candidate = copy.deepcopy(result.model).eval()
    with FakeQuantised(candidate, RANGES):
        metrics = evaluate(candidate)
    assert metrics == result.history[result.best_epoch - 1].validation


def test_an_interrupted_training_with_rounding_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole = _trained()
    calls: list[int] = []

    def interrupted(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return train_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        _trained(step=interrupted, checkpoint=tmp_path / "checkpoint")
    again = _trained(checkpoint=tmp_path / "checkpoint")
    assert again.notices == ()
    for name, tensor in network_tensors(whole.model).items():
        assert torch.equal(network_tensors(again.model)[name], tensor), name
    other = _trained(checkpoint=tmp_path / "checkpoint", ranges={"conv.weight": (-2.0, 2.0)})
    assert [notice.code for notice in other.notices] == ["checkpoint-not-used"]
    assert "the ranges" in other.notices[0].text


def test_masks_hold_and_a_metric_of_a_copy_is_told() -> None:
    network = small_net()
    kept = {"head.weight": torch.rand_like(network.head.weight) > 0.5}
    result = _trained(model=network, masks=Masks(kept=kept))
    assert float(result.model.head.weight.detach()[~kept["head.weight"]].abs().max()) == 0.0  # type: ignore[union-attr, index]
    copied = _trained(evaluate=lambda model: evaluate(copy.deepcopy(model)))
    assert [notice.code for notice in copied.notices] == ["not-rounded"]


def test_the_function_returns_an_ordinary_network() -> None:
    network = small_net()
    made = ep.quantise_aware(network, data=train_data, step=train_step, evaluate=evaluate, epochs=1, lr=1e-3)
    assert type(made) is type(network)
    assert list(made.state_dict()) == list(network.state_dict())
    assert not torch.equal(made.state_dict()["conv.weight"], network.state_dict()["conv.weight"])
    distilled = ep.quantise_aware(network, data=lambda: [_images()], teacher=small_net(1), samples=8)
    assert not torch.equal(distilled.state_dict()["conv.weight"], network.state_dict()["conv.weight"])


def test_what_cannot_be_trained_is_told() -> None:
    network = small_net()
    with pytest.raises(ConfigError, match="neither a step nor a teacher"):
        ep.quantise_aware(network, data=train_data)
    with pytest.raises(ModelError, match="no data to measure"):
        ep.quantise_aware(network, data=[], step=train_step)
    with pytest.raises(ModelError, match="no convolution"):
        ep.quantise_aware(nn.BatchNorm2d(1), data=[_images()], step=train_step)
    with pytest.raises(ConfigError, match=r"finetune\.lr"):
        ep.quantise_aware(network, data=train_data, step=train_step, lr=0)

    def once() -> Iterator[torch.Tensor]:
        yield _images()

    with pytest.raises(ConfigError, match="iterator"):
        ep.quantise_aware(network, data=once(), step=train_step)
