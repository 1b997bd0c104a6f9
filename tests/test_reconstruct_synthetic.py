"""Made-up inputs: shaped by what BatchNorm remembers where there is any, noise of the right kind elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeprune.reconstruct import synthetic
from edgeprune.reconstruct.synthetic import made_up


def remembering() -> nn.Sequential:
    """Return a network whose BatchNorm layers have seen bright, flat pictures."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
    )
    model.train()
    with torch.no_grad():
        for _ in range(8):
            model(3 + torch.rand(16, 1, 1, 1) + 0.3 * torch.randn(16, 1, 12, 12))
    return model.eval()


def test_inputs_are_shaped_to_what_batch_norm_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_STEPS", 120)
    monkeypatch.setattr(synthetic, "_RATE", 0.3)
    model = remembering()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples, shaped = made_up(model, (torch.randn(1, 1, 12, 12),), 32)
    assert shaped
    assert len(samples) == 32
    assert all(tuple(sample[0].shape) == (1, 1, 12, 12) for sample in samples)
    # The examples are around 0; what the network remembers was around 3.5.
    assert float(torch.cat([sample[0] for sample in samples]).mean()) > 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_without_statistics_the_inputs_are_noise_with_the_moments_of_the_example() -> None:
    model = nn.Sequential(nn.Linear(50, 4), nn.ReLU())
    samples, shaped = made_up(model, (5 + 2 * torch.randn(4, 50),), 64)
    assert not shaped
    assert len(samples) == 16
    values = torch.cat([sample[0] for sample in samples])
    assert tuple(values.shape) == (64, 50)
    assert 4.5 < float(values.mean()) < 5.5
    assert 1.7 < float(values.std()) < 2.3


def test_whole_numbers_are_drawn_from_those_of_the_example() -> None:
    model = nn.Embedding(100, 4)
    samples, shaped = made_up(model, (torch.tensor([[3, 17, 99]]),), 20)
    assert not shaped
    assert {int(value) for sample in samples for value in sample[0].flatten()} <= {3, 17, 99}
    assert samples[0][0].dtype == torch.int64


def test_the_same_seed_gives_the_same_inputs() -> None:
    model = nn.Linear(5, 2)
    first, second, other = (made_up(model, (torch.ones(1, 5),), 4, seed=seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize(
    ("macs", "expected"), [(10**6, (8, 200)), (10**10, (1, 200)), (4 * 10**9, (4, 200)), (10**12, (1, 50))]
)
def test_expensive_networks_get_fewer_batches_and_then_fewer_steps(macs: int, expected: tuple[int, int]) -> None:
    assert synthetic._affordable(8, macs) == expected


def test_progress_runs_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_STEPS", 3)
    seen: list[tuple[int, int]] = []
    made_up(remembering(), (torch.randn(1, 1, 12, 12),), 128, progress=lambda *step: seen.append(step))
    assert seen == [(step, 6) for step in range(1, 7)]
