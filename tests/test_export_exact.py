"""What rounding explains: a lot behind a normalisation of constants, little elsewhere, nothing of a real difference."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgeprune.export import verify_pair
from edgeprune.export.capture import prepare
from edgeprune.export.exact import ExactNetwork
from edgeprune.export.feeds import input_sets
from edgeprune.export.limits import limits_of
from edgeprune.export.quality import distance
from edgeprune.export.verify import Side, compare, network_side


class Normalised(nn.Module):
    """An instance norm without running statistics: of a constant image it makes noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.norm = nn.InstanceNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(self.conv(x)) * 100)


INPUT = (torch.rand(1, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 10,)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Normalised().eval()


def test_rounding_explains_much_for_constants_and_little_elsewhere() -> None:
    exact = ExactNetwork(prepare(network(), INPUT))
    usual, constant = exact.run([INPUT[0].numpy()]), exact.run([np.full((1, 2, 5, 5), 7.3, np.float32)])
    assert usual is not None
    assert constant is not None
    assert usual[0][0].dtype == np.float64
    assert usual[1][0] < 1e-4
    assert constant[1][0] > 1e-2


def test_the_network_stays_float32() -> None:
    subject = prepare(network(), INPUT)
    ExactNetwork(subject).run([INPUT[0].numpy()])
    assert {weight.dtype for weight in subject.network.parameters()} == {torch.float32}


def test_noise_of_rounding_is_not_called_different() -> None:
    """A side that rounds in another order fails by the numbers of a constant image, and passes on second thought."""
    subject = prepare(network(), INPUT)
    double = copy.deepcopy(subject.network).double()

    def rounded(feeds: object) -> list[list[np.ndarray]]:
        found = []
        for (x,) in feeds:  # type: ignore[attr-defined]
            with torch.no_grad():
                values = torch.from_numpy(x).double() * (1 + 1e-7 * torch.rand(x.shape, dtype=torch.float64))
                found.append([double(values)[0].float().numpy()])
        return found

    other = Side(run_each=rounded, outputs=subject.outputs, batch=None, label="other")
    sets = input_sets(subject.inputs, [[INPUT[0].numpy()]], None, edges=True)
    limits = limits_of("fp32")
    alone = compare(network_side(subject), other, sets, limits)
    assert not all(check.passed for check in alone if check.inputs == "edge values")
    assert all(check.passed for check in alone if check.inputs != "edge values")
    judged = compare(network_side(subject), other, sets, limits, ExactNetwork(subject))
    assert all(check.passed for check in judged)
    second = next(check for check in judged if check.inputs == "edge values")
    assert second.name == "other against the network in float64"
    assert second.tolerance > 1e-2


def test_a_real_difference_is_no_rounding() -> None:
    other = network()
    with torch.no_grad():
        other.get_submodule("conv").weight[0, 0] += 0.01  # type: ignore[operator, index]
    checks = verify_pair(network(), other, inputs=INPUT)
    assert not any(check.passed for check in checks if check.inputs != "edge values")


def test_a_network_that_insists_on_float32_is_left_alone() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.float())

    subject = prepare(Insists().eval(), (torch.ones(1, 3),))
    assert ExactNetwork(subject).run([np.ones((1, 3), np.float32)]) is None
    assert distance(subject.run([np.ones((1, 3), np.float32)])[0], np.full((1, 3), np.nan))[0] == np.inf
