"""Units that go during training: held at zero, softly, shrunk, by sparse scales; and the cut that costs nothing."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.dynamic import UnitPruner, units
from edgeprune.errors import ConfigError, NothingToPrune
from tests.test_dynamic_weights import trained
from tests.training_case import CLASSES, SmallNet, small_net

INPUTS = (torch.linspace(-1, 1, 2 * 36).view(2, 1, 6, 6),)
METHODS = ("channels", "soft", "regularise", "slim")


class Deep(nn.Module):
    """A residual block with a grouped and a plain convolution, on images of shape (N, 1, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 1, bias=False)
        self.inner_norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.outer = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(images)))
        y = F.relu(self.inner_norm(self.inner(x)))
        return self.head((x + self.outer(F.relu(self.depthwise(y)))).mean((2, 3)))


def deep() -> Deep:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Deep()


def inner(pruner: ep.Gradual) -> UnitPruner:
    found = pruner._pruner
    assert isinstance(found, UnitPruner)
    return found


def check_zeros(net: nn.Module, pruner: ep.Gradual) -> None:
    """Check every position of every unit that is gone, from the masks of the graph."""
    mine = inner(pruner)
    keep = {name: np.flatnonzero(~gone).tolist() for name, gone in mine.removed.items()}
    parameters = dict(net.named_parameters())
    for (name, axis), mask in mine._graph.masks(keep).items():
        if name in parameters and axis >= 0:
            rows = parameters[name].detach().movedim(axis, 0)
            assert (rows[torch.from_numpy(~mask)] == 0).all(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [small_net, deep])
def test_the_cut_takes_nothing_away(method: str, make: Any) -> None:
    net = make()
    pruner = ep.Gradual(net, INPUTS, method=method, ratio=0.5, align=4, end=8, every=2)
    trained(net, pruner, 12, lambda _: check_zeros(net, pruner))
    assert pruner.settled
    small = pruner.finish()
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())
    assert pruner.cost(small).max_rel < 1e-6
    with torch.no_grad():  # the same, on other inputs and by hand
        images = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(9))
        whole, cut = copy.deepcopy(net).eval()(images), copy.deepcopy(small).eval()(images)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    assert {name: len(group.keep) for name, group in pruner.plan.groups.items()} == {
        name: group.units // 2 for name, group in pruner.plan.groups.items()
    }


def test_units_go_along_the_schedule_and_stay_gone() -> None:
    net = deep()
    pruner = ep.Gradual(net, INPUTS, ratio=0.5, align=4, begin=1, end=11, every=2)
    shares: list[float] = []
    gone: list[dict[str, np.ndarray]] = []

    def look(step: int) -> None:
        check_zeros(net, pruner)
        gone.append({name: units.copy() for name, units in inner(pruner).removed.items()})
        shares.append(pruner.zeros)

    trained(net, pruner, 13, look)
    expected = [0.5 * (1 - (1 - min(max((step - 1) // 2 * 2, 0), 10) / 10) ** 3) for step in range(1, 14)]
    assert shares == pytest.approx(expected, abs=0.03)
    assert shares[-1] == 0.5
    for before, after in itertools.pairwise(gone):
        assert all((units <= after[name]).all() for name, units in before.items())


def test_a_softly_pruned_filter_comes_back() -> None:
    net = deep()
    pruner = ep.Gradual(net, INPUTS, method="soft", ratio=0.5, align=1, end=9, every=3)
    zero: dict[int, torch.Tensor] = {}

    def look(step: int) -> None:
        zero[step] = (net.inner.weight.detach().flatten(1) == 0).all(1)

    trained(net, pruner, 12, look)
    assert zero[3].sum() > 4  # zeroed ...
    assert zero[4].sum() == 0  # ... and trained on
    assert zero[6].sum() > zero[3].sum()
    assert zero[9].sum() == zero[12].sum() == 12  # for good
    assert (zero[9] == zero[12]).all()


def test_a_filter_that_was_zeroed_may_be_one_that_stays() -> None:
    net = deep()
    pruner = ep.Gradual(net, INPUTS, method="soft", ratio=0.5, align=1, end=9, every=3)

    def look(step: int) -> None:
        if step == 3:
            zeroed.append(int((net.inner.weight.detach().flatten(1) == 0).all(1).nonzero()[0]))
        if step == 5:  # what was zeroed has become the most important one
            with torch.no_grad():
                net.inner.weight[zeroed[0]] = 9.0
                net.inner_norm.weight[zeroed[0]] = 9.0

    zeroed: list[int] = []
    trained(net, pruner, 12, look)
    assert zeroed[0] in pruner.plan.groups["inner"].keep


def test_shrinking_ends_at_exactly_zero_and_little_by_little() -> None:
    net = deep()
    pruner = ep.Gradual(net, INPUTS, method="regularise", ratio=0.5, align=1, end=40, every=100)
    norms: list[torch.Tensor] = []
    trained(net, pruner, 40, lambda _: norms.append(net.inner.weight.detach().flatten(1).norm(dim=1)), lr=1e-4)
    removed = torch.from_numpy(inner(pruner).removed["inner"])
    paths = torch.stack(norms)[:, removed]
    assert (paths[-1] == 0).all()
    assert (paths[-2] > 0).all()
    assert (paths[-2] < 0.03 * paths[0]).all()  # what the last step takes is hardly anything
    assert (paths[1:] <= paths[:-1]).all()
    assert (torch.stack(norms)[-1, ~removed] > 0.5 * norms[0][~removed]).all()


def test_scales_become_sparse_by_proximal_steps() -> None:
    net = deep()
    with torch.no_grad():
        net.inner_norm.weight.copy_(torch.linspace(-0.1, 1.0, 24))
    before = net.inner_norm.weight.detach().clone()
    pruner = ep.Gradual(net, INPUTS, method="slim", ratio=0.5, align=1, end=11, strength=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(10):
        pruner.step()
    amount = 10 * 0.5 * float(before.abs().mean()) / 11
    expected = before.sign() * (before.abs() - amount).clamp(min=0)
    torch.testing.assert_close(net.inner_norm.weight.detach(), expected)
    assert (expected == 0).sum() > 2
    pruner.step()
    assert pruner.plan.groups["inner"].keep == tuple(range(12, 24))
    assert pruner.plan.settings["criterion"] == "bn_scale"


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_goes_on_from_a_saved_state_with_the_same_bits(method: str) -> None:
    def make(net: nn.Module) -> ep.Gradual:
        return ep.Gradual(net, INPUTS, method=method, ratio=0.5, align=1, begin=1, end=9, every=3)

    def run(stop: int) -> nn.Module:
        net = small_net()
        pruner = make(net)
        trained(net, pruner, stop, momentum=0.0)
        state, weights = pruner.state(), copy.deepcopy(net.state_dict())
        net = small_net(5)
        pruner = make(net)
        net.load_state_dict(weights)
        pruner.load_state_(state)
        trained(net, pruner, 12 - stop, momentum=0.0, first=stop)
        return pruner.finish()

    whole, again = run(0).state_dict(), run(5).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_plan_can_be_saved_and_applied_to_the_network_with_its_zeros(tmp_path: Any) -> None:
    net = small_net()
    pruner = ep.Gradual(net, INPUTS, ratio=0.5, align=2, end=6)
    trained(net, pruner, 6)
    small = pruner.finish()
    pruner.plan.save(tmp_path / "plan.json")
    again = ep.apply(net, ep.PrunePlan.load(tmp_path / "plan.json"), INPUTS)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items())


def test_a_norm_over_channels_makes_the_cut_cost_something_and_that_is_measured() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))
    pruner = ep.Gradual(net, INPUTS, ratio=0.5, align=1, end=6)
    trained(net, pruner, 8)
    small = pruner.finish()  # verified against the network whose norms leave out what is gone
    assert pruner.cost(small).max_rel > 1e-3
    assert units.with_statistics(inner(pruner)._graph, pruner.plan.keep) == ["1"]


class Grouped(nn.Module):
    """Convolutions in groups and transposed, whose units lie at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.up(F.relu(self.grouped(F.relu(self.first(x)))))).mean((2, 3)))


class Attentive(nn.Module):
    """One layer of a transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.attention = nn.MultiheadAttention(32, 8, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.squeeze(1))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.norm(x))))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 24, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


@pytest.mark.parametrize("method", ["channels", "soft", "regularise"])
@pytest.mark.parametrize(
    ("make", "settings", "group"),
    [
        (Grouped, {}, "grouped"),
        (Grouped, {"scope": "global"}, "up"),
        (Grouped, {"max_macs": "0.4x"}, "up"),
        (Attentive, {"attention": "heads"}, "attention"),
        (Attentive, {}, "attention#2"),
        (Recurrent, {}, "lstm"),
    ],
)
def test_units_of_every_kind_go(method: str, make: Any, settings: dict[str, Any], group: str) -> None:
    torch.manual_seed(0)
    net = make()
    pruner = ep.Gradual(net, INPUTS, method=method, ratio=0.5, align=1, end=8, every=2, **settings)
    trained(net, pruner, 10, lr=0.01)
    small = pruner.finish()
    entry = pruner.plan.groups[group]
    assert len(entry.keep) < entry.units
    assert pruner.cost(small).max_rel < 1e-6


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"method": "slim"}, ConfigError, "no channels that can go have any"),
        ({"method": "slow"}, ConfigError, "gradual.method = 'slow'"),
        ({"ratio": 0.0}, ConfigError, "does not go with prune.ratio = 0"),
        ({"criterion": "taylor"}, ConfigError, "does not go with prune.criterion = 'taylor'"),
        ({"criterion": "l3"}, ConfigError, "unknown criterion 'l3'"),
        ({"depth": 0.5}, ConfigError, "does not go with prune.depth"),
        ({"keep": ("conv",)}, NothingToPrune, "no group can be pruned"),
        ({"amount": 0.5}, ConfigError, "unknown key 'prune.amount'"),
        ({"strength": 0.5}, ConfigError, "strength means nothing"),
        ({"align": 16}, NothingToPrune, "removes nothing when widths are multiples of 16"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        ep.Gradual(Plain(), INPUTS, **({"end": 10, "align": 1} | settings))


def test_inputs_are_needed_and_computed_weights_refused() -> None:
    with pytest.raises(ConfigError, match="needs example inputs"):
        ep.Gradual(Plain(), end=10)
    net = Plain()
    nn.utils.parametrizations.weight_norm(net.conv)
    with pytest.raises(ConfigError, match="zeros cannot be held in this network"):
        ep.Gradual(net, INPUTS, end=10)


def test_the_network_of_the_loop_is_let_go() -> None:
    net = small_net()
    pruner = ep.Gradual(net, INPUTS, ratio=0.5, align=2, end=3)
    trained(net, pruner, 3)
    small = pruner.finish()
    assert isinstance(small, SmallNet)
    assert not any(parameter._backward_hooks for parameter in net.parameters())
