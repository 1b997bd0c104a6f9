"""Costs against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.graph.cost import count_macs, count_params


def test_parameters_count_once_when_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert count_params(model) == 40
    model[1].weight = model[0].weight
    assert count_params(model) == 24
    assert count_params(nn.ReLU()) == 0


CASES = {
    "linear": (nn.Linear(3, 5), (2, 3), 2 * 3 * 5),
    "linear_on_sequence": (nn.Linear(3, 5), (2, 7, 3), 2 * 7 * 3 * 5),
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 6, 6), 2 * 8 * 36 * 27),
    "stride": (nn.Conv2d(3, 8, 3, stride=2), (1, 3, 7, 7), 8 * 9 * 27),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 8 * 16 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, 2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
    "conv1d": (nn.Conv1d(3, 4, 5), (1, 3, 9), 5 * 4 * 15),
    "conv3d": (nn.Conv3d(2, 4, 2), (1, 2, 3, 3, 3), 8 * 4 * 16),
    "norm_and_activation": (nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), (2, 3), 0),
    "lstm": (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 2 * 5 * 64 * (8 + 16)),
    "attention": (nn.MultiheadAttention(16, 4, batch_first=True), (2, 5, 16), 2 * (4 * 5 * 16 * 16 + 2 * 5 * 5 * 16)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_macs_are_multiplications(name: str) -> None:
    model, shape, macs = CASES[name]
    inputs = (torch.randn(shape),)
    if name == "attention":

        class Itself(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, x):
                return self.inner(x, x, x)

        assert count_macs(Itself(), inputs) == macs
    else:
        assert count_macs(model, inputs) == macs


class OffMeta(nn.Module):
    """Holds a plain tensor and makes tensors on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.plain = torch.ones(4)

    def forward(self, x):
        y = torch.zeros(2, 4)
        y[:, :2] = self.fc(x * self.plain + torch.arange(4.0))[:, :2]
        return y + torch.linspace(0, 1, 4)


class ReadsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) * float(self.fc.weight.abs().max()) + torch.from_numpy(self.fc.bias.detach().numpy())


@pytest.mark.parametrize("model", [OffMeta(), ReadsParameter()])
def test_networks_that_leave_the_meta_device_are_counted(model: nn.Module) -> None:
    assert count_macs(model, (torch.randn(2, 4),)) == 32


def test_counting_changes_nothing() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            x.mul_(2)
            return F.relu(self.fc(x)) * float(self.fc.bias[0])  # counted on the CPU

    model, x = Counter(), torch.ones(1, 3)
    model.train()
    assert count_macs(model, (x,)) == 9
    assert model.calls == 0
    assert torch.equal(x, torch.ones(1, 3))
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
