"""BatchNorm recalibration: exact statistics, and nothing else changed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.training import recalibrate
from tests.training_case import samples, small_net


class TwoNorms(nn.Module):
    """Two BatchNorm layers; the reference below computes by hand what each of them sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3)
        self.norm1 = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(3, 4, 1)
        self.norm2 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(self.drop(F.relu(self.norm1(self.conv1(x))))))


def two_norms() -> TwoNorms:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoNorms()
        nn.init.uniform_(model.norm1.weight, 0.5, 2.0)
        nn.init.normal_(model.norm1.bias)
        return model.eval()


def batches_of(sizes: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 2, 5, 5, generator=generator) * (i + 1) + i for i, size in enumerate(sizes)]


def _moments(values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    joined = torch.cat([value.transpose(0, 1).flatten(1) for value in values], dim=1)
    return joined.mean(1), joined.var(1)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_statistics_equal_those_computed_directly_in_float64(sizes: list[int]) -> None:
    batches = batches_of(sizes)
    model = two_norms().double()
    seen1, seen2 = [], []
    for batch in batches:
        hidden = F.conv2d(batch.double(), model.conv1.weight, model.conv1.bias)
        seen1.append(hidden)
        mean = hidden.mean((0, 2, 3), keepdim=True)
        scale = model.norm1.weight[:, None, None] / (hidden.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        hidden = F.relu((hidden - mean) * scale + model.norm1.bias[:, None, None])
        seen2.append(F.conv2d(hidden, model.conv2.weight, model.conv2.bias))
    wide = recalibrate(model, [batch.double() for batch in batches])
    plain = recalibrate(two_norms(), batches)
    for name, seen in (("norm1", seen1), ("norm2", seen2)):
        for network, tolerance in ((wide, 1e-10), (plain, 1e-4)):
            norm = network.get_submodule(name)
            mean, var = _moments(seen)
            torch.testing.assert_close(norm.running_mean.double(), mean, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(norm.running_var.double(), var, atol=tolerance, rtol=tolerance)
            assert norm.num_batches_tracked == len(sizes)


def test_the_first_layer_does_not_depend_on_how_samples_are_batched() -> None:
    (whole,) = batches_of([12])
    one = recalibrate(two_norms(), [whole])
    other = recalibrate(two_norms(), [whole[:1], whole[1:8], whole[8:]])
    torch.testing.assert_close(one.norm1.running_var, other.norm1.running_var, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(one.norm1.running_mean, other.norm1.running_mean, atol=1e-6, rtol=1e-6)


def test_large_means_do_not_cost_precision() -> None:
    batches = [torch.randn(64, 3) + 1e4 for _ in range(3)]
    renewed = recalibrate(nn.Sequential(nn.BatchNorm1d(3)), batches)
    torch.testing.assert_close(renewed[0].running_var, torch.cat(batches).double().var(0).float(), rtol=1e-5, atol=0)


def test_only_statistics_change_and_only_in_the_copy() -> None:
    model = two_norms()
    model.drop.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    renewed = recalibrate(model, batches_of([8, 8]))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    changed = {name for name, tensor in renewed.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{norm}.{part}" for norm in ("norm1", "norm2") for part in parts}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in renewed.modules()] == [module.training for module in model.modules()]
    assert all(not module._forward_pre_hooks for module in renewed.modules())
    assert all(parameter.requires_grad for parameter in renewed.parameters())


def test_it_repairs_a_network_whose_statistics_are_wrong() -> None:
    images, _ = samples(64, seed=1)
    model = recalibrate(small_net(), [images])
    broken = small_net()
    nn.init.constant_(broken.norm.running_mean, 7.0)
    nn.init.constant_(broken.norm.running_var, 90.0)
    torch.testing.assert_close(recalibrate(broken, [images])(images), model(images))
    assert (broken(images) - model(images)).abs().max() > 0.1


def test_without_batchnorm_it_is_a_plain_copy_and_the_data_stay_untouched() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    data = iter([torch.zeros(3, 2)])
    renewed = recalibrate(model, data)
    assert renewed is not model
    assert torch.equal(renewed[0].weight, model[0].weight)
    assert next(data).shape == (3, 2)


def test_layers_without_running_statistics_and_layers_that_are_not_reached_stay() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free = nn.BatchNorm1d(2, track_running_stats=False)
            self.kept = nn.BatchNorm1d(2, momentum=None)
            self.unused = nn.BatchNorm1d(2)
            self.twice = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.twice(self.kept(self.free(x))) + self.twice(x)

    values = torch.randn(16, 2) * 3 + 1
    renewed = recalibrate(Mixed(), [values])
    assert renewed.free.running_mean is None
    assert renewed.unused.running_var.tolist() == [1, 1]
    assert renewed.unused.num_batches_tracked == 0
    assert renewed.kept.momentum is None
    torch.testing.assert_close(renewed.kept.running_var, torch.full((2,), 16 / 15), rtol=1e-3, atol=0)
    both = torch.cat([F.batch_norm(F.batch_norm(values, None, None, training=True), None, None, training=True), values])
    torch.testing.assert_close(renewed.twice.running_var, both.var(0), rtol=1e-3, atol=0)
    assert renewed.twice.num_batches_tracked == 2


def test_batches_are_called_by_the_convention_or_as_told() -> None:
    images, labels = samples(32, seed=1)
    plain = recalibrate(small_net(), [images])
    labelled = recalibrate(small_net(), [(images, labels)])

    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["image"])

    told = recalibrate(small_net(), [{"image": images}], forward=forward)
    for other in (labelled, told):
        assert torch.equal(other.norm.running_var, plain.norm.running_var)


def test_bad_data_are_errors() -> None:
    with pytest.raises(ModelError, match="no batches to recalibrate"):
        recalibrate(small_net(), [])
    with pytest.raises(ModelError, match=r"'0' gets \(1, 3\): one value per channel"):
        recalibrate(nn.Sequential(nn.BatchNorm1d(3)), [torch.zeros(1, 3)])
    with pytest.raises(ModelError, match="'norm' sees values that are not finite"):
        recalibrate(small_net(), [torch.full((4, 1, 6, 6), float("nan"))])
    with pytest.raises(ModelError, match="a batch is a dict"):
        recalibrate(small_net(), [{"image": torch.zeros(4, 1, 6, 6)}])
