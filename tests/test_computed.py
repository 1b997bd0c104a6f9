"""Layers that standardise their weight in forward: which are written down, and that the network stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeprune as ep
from edgeprune.compact.plans import rebuild
from edgeprune.graph import trace
from edgeprune.graph.computed import SamePaddedConv2d
from edgeprune.graph.enter import enter
from edgeprune.workload import Examples, as_inputs
from tests.masking import largest_difference


class Scaled(nn.Conv2d):
    """Standardised by a batch norm over the rows, with a gain that is learnt."""

    def __init__(self, *args: Any, gain: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), gain))
        self.scale = self.weight[0].numel() ** -0.5

    def standardised(self) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByMoments(nn.Conv2d):
    """Standardised by mean and deviation, in the method that torch's forward calls."""

    def _conv_forward(self, x, weight, bias):
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return super()._conv_forward(x, (weight - mean) / (deviation + 1e-5), bias)


class Same(Scaled):
    """With as much padding as the size of the input asks for."""

    def forward(self, x):
        (s, _), (k, _) = self.stride, self.kernel_size
        high, wide = (max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return super().forward(x)


class WithPart(Scaled):
    """Its padding is a module of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return super().forward(self.pad(x))


class Transposed(nn.ConvTranspose2d):
    def forward(self, x, output_size=None):
        weight = self.weight / self.weight.norm()
        return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding)


class Unit(nn.Linear):
    """Rows of length one."""

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight), self.bias)


class Product(nn.Linear):
    """Written as a product and a sum."""

    def forward(self, x):
        return x @ F.normalize(self.weight).T + self.bias


class Sum(nn.Linear):
    def forward(self, x):
        return torch.addmm(self.bias, x, torch.softmax(self.weight, 1).t())


class UnitWithBias(nn.Linear):
    """The bias is computed, too."""

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight), self.bias * 2)


class Images(nn.Module):
    """Two layers of one kind and a head."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.body, self.head = make(3, 8), make(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3)))


def rows(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Sigmoid(), nn.Sequential(second), nn.ReLU(), nn.Linear(12, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": lambda: Images(lambda i, o: Scaled(i, o, 3, stride=2, padding=1)),
    "grouped": lambda: nn.Sequential(
        Scaled(3, 8, 3, padding="same"), Scaled(8, 8, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(288, 4)
    ),
    "moments": lambda: Images(lambda i, o: ByMoments(i, o, 3, padding=1, padding_mode="circular")),
    "same": lambda: Images(lambda i, o: Same(i, o, 3, stride=2)),
    "padded_by_a_part": lambda: Images(lambda i, o: WithPart(i, o, 2)),
    "transposed": lambda: Images(lambda i, o: Transposed(i, o, 2, stride=2)),
    "normalised_rows": lambda: rows(Unit(6, 8), Unit(8, 12)),
    "product": lambda: rows(Product(6, 8), Sum(8, 12)),
    "computed_bias": lambda: rows(UnitWithBias(6, 8), UnitWithBias(8, 12)),
}


def example(name: str) -> tuple[torch.Tensor, ...]:
    rows_of_six = name in ("normalised_rows", "product", "computed_bias")
    return (torch.randn(2, 6) if rows_of_six else torch.randn(2, 3, 8, 8),)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_standardised_weight_is_written_down_and_the_network_stays_what_it_was(name: str) -> None:
    model, inputs = made(name), example(name)
    before, kinds = state(model), [type(module) for module in model.modules()]
    entered = enter(model, inputs)
    assert [notice.code for notice in entered.notices] == ["baked"]
    assert entered.model is not model
    layers = [module for module in entered.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {type(layer) for layer in layers} <= {nn.Conv2d, nn.Linear, SamePaddedConv2d}
    torch.testing.assert_close(entered.model(*inputs), model(*inputs), rtol=1e-6, atol=1e-6)
    assert kinds == [type(module) for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert enter(entered.model, inputs).model is entered.model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_standardised_weights_is_pruned_exactly(name: str) -> None:
    model, inputs = made(name), example(name)
    graph = trace(model, inputs)
    assert len(graph.free) >= 2
    assert not any(group.statistics for group in graph.free)
    plan = ep.plan(model, inputs, align=1)
    small = ep.apply(model, plan, inputs)
    entered = enter(model, inputs).model
    masked = copy.deepcopy(entered)
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for (tensor, axis), mask in graph.masks(plan.keep).items():
            if axis >= 0:
                tensors[tensor].index_fill_(axis, torch.from_numpy((~mask).nonzero()[0]), 0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in entered.parameters())
    assert largest_difference(masked, small, inputs) < 1e-5


def test_the_padding_that_follows_the_size_still_does() -> None:
    model = made("same")
    found = enter(model, example("same")).model
    for size in range(5, 12):
        x = torch.randn(1, 3, size, size + 3)
        torch.testing.assert_close(found(x), model(x))


def test_training_goes_on_with_plain_weights() -> None:
    model = made("batch_norm").train()
    model.body.requires_grad_(False)
    small = ep.apply(model, ep.plan(model, example(""), align=1), example(""))
    assert small.training
    assert not small.body.weight.requires_grad
    before = small.stem.weight.detach().clone()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
    small(example("")[0]).square().sum().backward()
    optimiser.step()
    assert not torch.equal(small.stem.weight, before)
    assert "stem.gain" not in dict(small.named_parameters())


def test_a_pruned_network_is_built_again_from_its_plan_and_weights() -> None:
    model, inputs = made("same"), example("same")
    plan = ep.plan(model, inputs, align=1)
    small = ep.apply(model, plan, inputs)
    weights = {name: tensor * 2 for name, tensor in state(small).items()}
    again = rebuild(made("same"), plan, weights, inputs)
    assert type(again.stem) is SamePaddedConv2d
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())


def test_wrappers_hooks_and_a_layer_that_runs_twice() -> None:
    class Twice(Images):
        def forward(self, x):
            return super().forward(self.again(self.again(x)))

    model = Twice(lambda i, o: Scaled(i, o, 3, padding=1))
    model.again = Scaled(3, 3, 1)
    model.also = model.again
    model.eval()
    model.again.register_forward_hook(lambda module, args, result: result + 1)
    found = enter(nn.DataParallel(model), example(""))
    assert [notice.code for notice in found.notices] == ["unwrapped", "baked"]
    assert found.model.again is found.model.also
    assert torch.equal(found.model(*example_once), model(*example_once))


example_once = (torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8),)


def test_a_tied_weight_stays_tied() -> None:
    model = nn.Sequential(Scaled(3, 3, 3), Scaled(3, 3, 3, stride=2), nn.Flatten(), nn.Linear(12, 4)).eval()
    model[1].weight = model[0].weight
    found = enter(model, example("")).model
    assert type(found[0]) is nn.Conv2d
    assert found[0].weight is found[1].weight
    assert torch.equal(found(*example_once), model(*example_once))


def test_a_tied_weight_of_which_two_things_are_made_is_left() -> None:
    model = nn.Sequential(Scaled(3, 3, 3), Scaled(3, 3, 3, stride=2, gain=2.0), nn.Flatten(), nn.Linear(12, 4)).eval()
    model[1].weight = model[0].weight
    assert enter(model, example("")).model is model
    mixed = nn.Sequential(Scaled(3, 3, 3), nn.Conv2d(3, 3, 3)).eval()
    mixed[1].weight = mixed[0].weight
    assert enter(mixed, example("")).model is mixed


class FromData(Scaled):
    def forward(self, x):
        return F.conv2d(x, self.standardised() * x.mean(), self.bias)


class ByData(Scaled):
    def forward(self, x):
        weight = self.standardised() if float(x.mean()) > 0 else self.weight
        return F.conv2d(x, weight, self.bias)


class BySize(Scaled):
    def forward(self, x):
        return F.conv2d(x, self.standardised() * x.shape[2], self.bias)


class Noisy(Scaled):
    def forward(self, x):
        return F.conv2d(x, F.dropout(self.standardised(), 0.5, self.training), self.bias)


class Counting(Scaled):
    """The weight of the next forward is another one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("runs", torch.ones(()))

    def forward(self, x):
        self.runs += 1
        return F.conv2d(x, self.standardised() / self.runs, self.bias)


class ScaledAfter(Scaled):
    def forward(self, x):
        return super().forward(x) * 2


class Reached(Scaled):
    """More than one argument may come."""

    def forward(self, x, factor):
        return super().forward(x) * factor


class Pointwise(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, torch.tanh(self.weight) * 2, self.bias)


@pytest.mark.parametrize(
    "kind", [FromData, ByData, BySize, Noisy, Counting, ScaledAfter, Reached, Pointwise], ids=lambda kind: kind.__name__
)
def test_what_is_no_more_than_a_computed_weight_is_proved(kind: type[nn.Conv2d]) -> None:
    layer = kind(3, 8, 3)
    outer = nn.Sequential(layer, nn.Flatten(), nn.Linear(288, 4)).eval()
    if kind is Reached:
        outer.forward = lambda x: outer[2](outer[1](layer(x, 1.0)))
    before = state(outer)
    found = enter(outer, example(""))
    assert found.model is outer
    assert found.notices == ()
    assert all(torch.equal(before[key], value) for key, value in outer.state_dict().items())


def test_a_network_that_looks_at_the_class_of_its_layers_is_left() -> None:
    class Looking(Images):
        def forward(self, x):
            return super().forward(x) * (2 if isinstance(self.stem, Scaled) else 1)

    model = Looking(lambda i, o: Scaled(i, o, 3)).eval()
    assert enter(model, example("")).model is model

    class Reading(Images):
        def forward(self, x):
            return super().forward(x) * self.stem.gain.mean()

    model = Reading(lambda i, o: Scaled(i, o, 3)).eval()
    assert enter(model, example("")).model is model


def test_every_example_must_come_out_the_same() -> None:
    class Looking(Images):
        def forward(self, x):
            return super().forward(x) * (2 if x.shape[0] == 3 and isinstance(self.stem, Scaled) else 1)

    model = Looking(lambda i, o: Scaled(i, o, 3)).eval()
    assert enter(model, example("")).model is not model
    examples = as_inputs([example(""), (torch.randn(3, 3, 8, 8),)])
    assert isinstance(examples, Examples)
    assert enter(model, examples).model is model


def test_without_examples_nothing_is_written_down() -> None:
    model = made("batch_norm")
    assert enter(model).model is model
    assert enter(model.to("meta"), example("")).model is model
