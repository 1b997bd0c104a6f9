"""Folding, equalisation and bias correction: results stay, the user's network stays, and what is shared stays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.export import equalise
from edgeprune.export.equalise import asymmetric, correct_bias_, equalise_, fold_batch_norm_, symmetric

Tensors = tuple[torch.Tensor, ...]
FEW = settings(deadline=None, max_examples=6, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # each is captured


def rewritten(model: nn.Module, samples: Sequence[Tensors], *steps: str, rounded: Any = symmetric) -> tuple[Any, int]:
    """Return the captured program after some of the steps, as a module, and how much they changed."""
    module: Any = torch.export.export(model, samples[0]).module(check_guards=False)
    equalise._own_parameters_(module)
    calls: dict[str, Callable[[], int]] = {
        "fold": lambda: fold_batch_norm_(module),
        "equalise": lambda: equalise_(module, samples),
        "correct": lambda: correct_bias_(module, samples, rounded),
    }
    changed = sum(calls[step]() for step in steps)
    module.graph.lint()
    module.recompile()
    return module, changed


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Return a float64 network whose channels differ by a factor of a thousand in size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 4)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                shape = [-1] + [1] * (module.weight.dim() - 1)
                module.weight.data *= torch.logspace(-1.5, 1.5, len(module.weight)).double().view(shape)
    return model


def drawn(*shape: int, count: int = 3) -> list[Tensors]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(*shape, generator=generator, dtype=torch.float64),) for _ in range(count)]


class TokenMixer(nn.Module):
    """BatchNorm over the positions of a sequence, behind a product over its features."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.mix, self.norm, self.out = nn.Linear(width, width), nn.BatchNorm1d(length), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.mix(x)))


class Pooled(nn.Module):
    """A product whose features are pooled before the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.max_pool1d(self.first(x), 2))


class Mixed(nn.Module):
    """One tensor read by a convolution, and by a product over its last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.linear = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        return self.conv(y) + self.linear(y)


class AlsoOutput(nn.Module):
    """A product's result is read by another one, and is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Tensors:
        y = torch.relu(self.first(x))
        return y, self.second(y)


class Branches(nn.Module):
    """One tensor read by two products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.leaky_relu(self.first(x))
        return self.left(y) * self.right(y)


def convolutional(width: int, groups: int, bias: bool, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=bias),
        nn.BatchNorm2d(width, affine=affine),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=not bias),
        nn.ReLU(),
        nn.Conv2d(width, 4, 1, bias=bias),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 2, 1),
    )


def perceptron(width: int, bias: bool, norm: bool) -> nn.Module:
    middle: list[nn.Module] = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(6, width, bias=bias), *middle, nn.ReLU(), nn.Linear(width, 5), nn.Linear(5, 2))


def normed(width: int, affine: bool) -> nn.Module:
    norm = nn.LayerNorm(width, elementwise_affine=affine)
    return nn.Sequential(nn.Linear(6, width), norm, nn.Linear(width, 5), nn.GELU(), nn.Linear(5, 3))


def waves(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, width, 3), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(width, 3, 3)
    )


def same(model: nn.Module, samples: Sequence[Tensors], *steps: str) -> int:
    """Check that the steps leave the results as they are, and return how much they changed."""
    state = copy.deepcopy(model.state_dict())
    module, changed = rewritten(model, samples, *steps)
    for (x,) in samples:
        found, expected = module(x), model(x)
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    return changed


@FEW
@given(st.integers(0, 99), st.sampled_from([1, 2, 6]), st.booleans(), st.booleans())
def test_convolutions_keep_their_function(seed: int, groups: int, bias: bool, affine: bool) -> None:
    model = seeded(seed, lambda: convolutional(6, groups, bias, affine))
    changed = same(model, drawn(2, 3, 14, 14), "fold", "equalise")
    assert changed == 2 + (2 if groups == 2 else 3)  # a grouped convolution is not read through


@FEW
@given(st.integers(0, 99), st.integers(2, 9), st.booleans(), st.booleans())
def test_perceptrons_keep_their_function(seed: int, width: int, bias: bool, norm: bool) -> None:
    model = seeded(seed, lambda: perceptron(width, bias, norm))
    assert same(model, drawn(4, 6), "fold", "equalise") == 2 + norm


@FEW
@given(st.integers(0, 99), st.integers(2, 9), st.booleans())
def test_layer_norms_keep_their_function(seed: int, width: int, affine: bool) -> None:
    assert same(seeded(seed, lambda: normed(width, affine)), drawn(2, 5, 6), "fold", "equalise") == affine


@FEW
@given(st.integers(0, 99), st.integers(1, 7))
def test_one_dimensional_convolutions_keep_their_function(seed: int, width: int) -> None:
    assert same(seeded(seed, lambda: waves(width)), drawn(2, 2, 16), "fold", "equalise") == 2


@pytest.mark.parametrize(
    ("build", "shape", "changes"),
    [
        (lambda: TokenMixer(4, 4), (2, 4, 4), 0),
        (lambda: TokenMixer(3, 5), (2, 3, 5), 0),
        (Pooled, (2, 6), 0),
        (lambda: Mixed(5), (2, 2, 5, 5), 0),
        (lambda: Mixed(6), (2, 2, 6, 6), 0),
        (AlsoOutput, (2, 6), 0),
        (Branches, (2, 6), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), (3, 8, 8), 1),  # without a batch
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (2, 3, 3, 6), 1),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 6), 0),
    ],
)
def test_what_channels_do_not_pass_through_is_left_alone(
    build: Callable[[], nn.Module], shape: tuple[int, ...], changes: int
) -> None:
    assert same(seeded(1, build), drawn(*shape), "fold", "equalise") == changes


def test_weights_that_are_read_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(6, 6, bias=False) for _ in range(3))
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(torch.relu(self.second(torch.relu(self.first(x)))))

    for build in (Twice, Tied):
        model = seeded(2, build)
        assert same(model, drawn(2, 6), "fold", "equalise") == 0
    _, corrected = rewritten(model, drawn(2, 6), "correct")
    assert corrected == 1  # the third


def test_equal_weights_of_two_layers_are_not_taken_for_one() -> None:
    model = seeded(3, lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    model[2].load_state_dict(model[0].state_dict())  # type: ignore[operator,index]
    assert same(model, drawn(2, 6), "fold", "equalise") == 1


def test_equalised_channels_are_nearer_in_size() -> None:
    model, samples = seeded(4, lambda: perceptron(8, True, False)), drawn(16, 6)
    before, after = model, rewritten(model, samples, "equalise")[0]

    def spread(module: Any) -> float:
        weight, bias = (dict(module.named_parameters())[f"0.{name}"].detach() for name in ("weight", "bias"))
        sizes = torch.stack([(x @ weight.T + bias).abs().amax(0) for (x,) in samples]).amax(0)
        return float((sizes.max() / sizes.min()).log2())

    assert spread(after) < spread(before) - 2


def test_corrected_biases_give_the_rounded_network_the_mean_of_the_network() -> None:
    layers = [nn.Linear(6, 8, bias=False), nn.Linear(8, 5), nn.Linear(5, 3, bias=False)]
    model, samples = seeded(5, lambda: nn.Sequential(*layers)), drawn(8, 6, count=4)
    samples = [(x + 2,) for (x,) in samples]

    def coarse(weight: torch.Tensor) -> torch.Tensor:
        return (weight * 4).round() / 4

    module, corrected = rewritten(model, samples, "correct", rounded=coarse)
    assert corrected == 3
    for name, value in module.named_parameters():
        if value.dim() == 2:
            value.data = coarse(value.data)
            assert not torch.equal(value, model.state_dict()[name])
    wanted = torch.stack([model(x) for (x,) in samples]).mean((0, 1))
    found = torch.stack([module(x) for (x,) in samples]).mean((0, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_biases_of_convolutions_are_corrected_over_places() -> None:
    model = seeded(6, lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False, groups=3)))
    samples = [(x + 1,) for (x,) in drawn(2, 3, 6, 6)]
    module, corrected = rewritten(model, samples, "correct", rounded=lambda weight: weight.round())
    assert corrected == 1
    for value in module.parameters():
        if value.dim() == 4:
            value.data = value.data.round()
    wanted = torch.stack([model(x) for (x,) in samples]).mean((0, 1, 3, 4))
    found = torch.stack([module(x) for (x,) in samples]).mean((0, 1, 3, 4))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_network_without_products_is_left_alone() -> None:
    assert rewritten(nn.Sequential(nn.ReLU()).double(), drawn(2, 6), "fold", "equalise", "correct")[1] == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.sampled_from([(4, 5), (3, 2, 3), (3, 2, 3, 3)]))
def test_roundings_have_as_many_steps_as_they_say(seed: int, shape: tuple[int, ...]) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    for rounded, levels in ((symmetric(weight), 254), (asymmetric(weight), 255)):
        assert rounded.shape == weight.shape
        for row, original in zip(rounded.flatten(1), weight.flatten(1), strict=True):
            width = (
                2 * original.abs().max() if levels == 254 else original.clamp(min=0).max() - original.clamp(max=0).min()
            )
            assert (row - original).abs().max() <= width / levels * 1.01
    assert torch.equal(symmetric(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert torch.equal(asymmetric(torch.zeros(2, 3)), torch.zeros(2, 3))
