"""From scores to a plan: which units stay, how widths are rounded, how budgets are met, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact import analyse, apply
from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.cost import count_macs
from edgeprune.pruning import PrunePlan, make_plan, score
from edgeprune.pruning.budget import remaining_macs
from edgeprune.pruning.select import _round, resting
from tests.zoo import NETWORKS


class Chain(nn.Module):
    """Three free groups (40, 24 and 64 wide) and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 40, 3), nn.Conv2d(40, 24, 3)
        self.fc1, self.fc2 = nn.Linear(24, 64), nn.Linear(64, 5)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


class Halves(nn.Module):
    """Two convolutions of different width per unit whose results are cut into halves: they must stay equal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 64, 1)
        self.c, self.d = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        y = torch.cat([F.interpolate(self.a(x), scale_factor=2), F.pixel_shuffle(self.b(x), 2)], 1)
        p, q = y.chunk(2, 1)
        return (F.relu(self.c(F.relu(p)) + self.d(F.relu(q)))).mean((1, 2, 3))


class Case:
    """A network with everything that a plan is made of."""

    def __init__(self, model: nn.Module, *shape: int) -> None:
        self.model = model.eval()
        self.inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)
        self.graph: ChannelGraph = trace(self.model, self.inputs)
        self.scores = score(self.model, self.graph, "l2", inputs=self.inputs)

    def plan(self, align: int = 1, **settings: Any) -> PrunePlan:
        config = PruneConfig(**settings)
        return make_plan(self.graph, self.scores, config, align=align, model=self.model, inputs=self.inputs)

    def widths(self, align: int = 1, **settings: Any) -> dict[str, int]:
        return {name: len(group.keep) for name, group in self.plan(align, **settings).groups.items()}


@pytest.fixture(scope="module")
def chain() -> Case:
    torch.manual_seed(0)
    return Case(Chain(), 2, 3, 8, 8)


@pytest.fixture(scope="module")
def halves() -> Case:
    torch.manual_seed(0)
    return Case(Halves(), 2, 3, 4, 4)


def test_a_ratio_is_the_share_of_units_that_goes(chain: Case) -> None:
    assert chain.widths(ratio=0.5) == {"conv1": 20, "conv2": 12, "fc1": 32}
    assert chain.widths(ratio=0.25) == {"conv1": 30, "conv2": 18, "fc1": 48}


def test_the_best_units_stay_in_ascending_order(chain: Case) -> None:
    for name, group in chain.plan(ratio=0.5).groups.items():
        ranked = np.argsort(-chain.scores[name], kind="stable")[: len(group.keep)]
        assert set(group.keep) == set(ranked.tolist())
        assert list(group.keep) == sorted(group.keep)


def test_widths_are_multiples_of_align_or_whole(chain: Case) -> None:
    assert chain.widths(8, ratio=0.5) == {"conv1": 24, "conv2": 16, "fc1": 32}  # ties keep more
    assert chain.widths(16, ratio=0.5) == {"conv1": 16, "conv2": 16, "fc1": 32}
    assert chain.widths(32, ratio=0.5) == {"conv1": 32, "conv2": 24, "fc1": 32}


def test_align_of_the_settings_wins_over_the_target(chain: Case) -> None:
    own = make_plan(chain.graph, chain.scores, PruneConfig(align=4), align=16, model=chain.model, inputs=chain.inputs)
    assert {name: len(group.keep) for name, group in own.groups.items()} == {"conv1": 20, "conv2": 12, "fc1": 32}
    assert own.settings["align"] == 4
    assert chain.plan(16).settings["align"] == 16


@given(wanted=st.floats(0, 200), step=st.integers(1, 32), minimum=st.integers(1, 40), size=st.integers(1, 200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounding_is_a_multiple_in_range_and_nearest(wanted: float, step: int, minimum: int, size: int) -> None:
    found = _round(min(wanted, size), step, minimum, size)
    assert 1 <= found <= size
    assert found == size or (found % step == 0 and found >= minimum)
    if found < size and found - step >= minimum:
        assert abs(found - min(wanted, size)) <= step / 2 + 1e-9


def test_min_channels_counts_channels_not_units(halves: Case, chain: Case) -> None:
    assert chain.widths(ratio=0.9, min_channels=10) == {"conv1": 10, "conv2": 10, "fc1": 10}
    assert chain.widths(ratio=0.9, min_channels=50) == {"conv1": 40, "conv2": 24, "fc1": 50}
    # b makes four channels per unit, a one; they stay equal, so the stricter bound holds for both
    assert halves.widths(ratio=0.9, min_channels=4)["a"] == halves.widths(ratio=0.9, min_channels=4)["b"] == 4


def test_linked_groups_keep_equal_numbers(halves: Case) -> None:
    assert halves.graph.links == (("a", "b"),)
    for settings_ in ({"ratio": 0.4}, {"ratio": 0.5, "ratios": {"a": 0.75}}, {"ratio": 0.6, "scope": "global"}):
        plan = halves.plan(**settings_)
        assert len(plan.groups["a"].keep) == len(plan.groups["b"].keep)
        assert apply(halves.model, plan, halves.inputs, halves.graph).check.passed
    assert halves.widths(ratio=0.0, ratios={"a": 0.5})["b"] == 12  # between what both want
    # one unit is one channel of a and four of b: in steps of eight channels both go by eight units
    assert halves.widths(8, ratio=0.4)["a"] == halves.widths(8, ratio=0.4)["b"] == 8


def test_a_ratio_per_group_wins(chain: Case) -> None:
    assert chain.widths(ratio=0.5, ratios={"conv2": 0.75, "fc1": 0.0}) == {"conv1": 20, "conv2": 6, "fc1": 64}


@pytest.mark.parametrize("name", ["conv9", "fc2"])
def test_a_ratio_for_a_group_that_is_not_free_is_refused(chain: Case, name: str) -> None:
    with pytest.raises(ConfigError, match=f"names '{name}', which is not a free group") as caught:
        chain.plan(ratios={name: 0.5})
    assert "conv1" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("conv1", {"conv2", "fc1"}),
        ("conv*", {"fc1"}),
        ("conv[2-9]", {"conv1", "fc1"}),
        ("(conv1|fc1)", {"conv2"}),
        ("conv2.weight", {"fc1"}),  # a tensor: what it reads and what it makes
        ("fc2", {"conv1", "conv2", "fc1"}),
    ],
)
def test_keep_patterns_hold_groups_by_name_or_tensor(chain: Case, pattern: str, left: set[str]) -> None:
    plan = chain.plan(ratio=0.5, keep=(pattern,))
    assert set(plan.groups) == left
    assert set(plan.keep) == left


def test_keeping_one_linked_group_keeps_the_other(halves: Case) -> None:
    assert set(halves.plan(ratio=0.5, keep=("b",)).groups) == set(halves.plan(ratio=0.5).groups) - {"a", "b"}


def test_a_pattern_that_matches_nothing_lists_the_groups(chain: Case) -> None:
    with pytest.raises(ConfigError, match="keep = 'head' matches no group or tensor") as caught:
        chain.plan(keep=("head",))
    assert "conv1" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="neither a shell pattern nor a regular expression"):
        chain.plan(keep=("conv1(",))


def test_keeping_everything_leaves_nothing_to_prune(chain: Case) -> None:
    with pytest.raises(NothingToPrune) as caught:
        chain.plan(keep=("*",))
    assert "conv1: kept by '*'" in str(caught.value.fix)


def test_rounding_that_removes_nothing_says_so(chain: Case) -> None:
    with pytest.raises(NothingToPrune, match=r"a ratio of 0\.01 removes nothing when widths are multiples of 8"):
        chain.plan(8, ratio=0.01)
    with pytest.raises(NothingToPrune, match="max_macs = 1x removes nothing"):
        chain.plan(max_macs="1x")
    assert chain.plan(ratio=0.0).keep == {}  # nothing was asked for


def test_a_global_ratio_takes_the_weakest_units_of_all_groups(chain: Case) -> None:
    scores = {name: np.ones_like(values) for name, values in chain.scores.items()}
    scores["fc1"] = np.concatenate([np.full(44, 0.1), np.full(20, 2.98)])
    config = PruneConfig(ratio=44 / 128, scope="global")
    plan = make_plan(chain.graph, scores, config, align=1, model=chain.model, inputs=chain.inputs)
    assert set(plan.keep) == {"fc1"}
    assert plan.groups["fc1"].keep == tuple(range(44, 64))


def test_a_global_ratio_leaves_every_group_something(chain: Case) -> None:
    widths = chain.widths(ratio=0.97, scope="global")
    assert all(width >= 1 for width in widths.values())
    assert sum(widths.values()) <= 0.1 * 128


def test_groups_that_share_positions_are_not_pruned_both() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.GroupNorm(8, 64), nn.ReLU(), nn.Conv2d(64, 4, 1))
    case = Case(model, 2, 3, 4, 4)
    assert {group.size for group in case.graph.free} == {8}
    assert len(case.graph.free) == 2
    assert len(resting(case.graph, PruneConfig())) == 1
    for ratio in (0.25, 0.5, 0.75):
        plan = case.plan(ratio=ratio)
        assert len(plan.keep) == 1
        (mask,) = [mask for (name, dim), mask in case.graph.masks(plan.keep).items() if (name, dim) == ("0.weight", 0)]
        assert mask.mean() == 1 - ratio


class Tokens(nn.Module):
    """Two layers of a Transformer, 32 wide, four heads of 8."""

    def __init__(self, norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(32)) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 32), nn.Linear(32, 3)
        self.norms = nn.ModuleList(norm() for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(32, 48) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(48, 32) for _ in range(2))

    def forward(self, x):
        x = self.enter(x)
        for n in range(2):
            q, k, v = self.qkv[n](self.norms[2 * n](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            x = x + self.out[n](F.scaled_dot_product_attention(q, k, v, scale=0.35).transpose(1, 2).flatten(2))
            x = x + self.narrow[n](F.gelu(self.wide[n](self.norms[2 * n + 1](x))))
        return self.leave(x)


def _tensors(case: Case, **settings: Any) -> dict[str, tuple[int, ...]]:
    small = apply(case.model, case.plan(ratio=0.5, **settings), case.inputs, case.graph).model
    return {name: tuple(tensor.shape) for name, tensor in small.state_dict().items() if name.endswith("weight")}


def test_a_stream_is_left_whole_and_attention_loses_width() -> None:
    torch.manual_seed(0)
    case = Case(Tokens(), 2, 5, 6)
    assert [group.name for group in case.graph.groups if group.stream] == ["enter"]
    shapes = _tensors(case)
    assert (shapes["enter.weight"], shapes["wide.0.weight"], shapes["qkv.0.weight"]) == ((32, 6), (24, 32), (48, 32))
    rest = resting(case.graph, PruneConfig(attention="heads"))
    heads = [group for group in case.graph.free if group.name in rest]
    assert {group.size for group in heads if group.inside_heads} == {8}
    for attention in ("width", "heads"):
        assert _tensors(case, attention=attention, streams="free")["enter.weight"] == (16, 6)
    width, whole = (case.plan(ratio=0.5, attention=attention).keep for attention in ("width", "heads"))
    sizes = {group.name: group.size for group in case.graph.free}
    assert {sizes[name] for name in width if len(width[name]) < sizes[name]} == {8, 48}
    assert {sizes[name] for name in whole if len(whole[name]) < sizes[name]} == {4, 48}


def test_a_stream_is_pruned_where_its_ratio_is_named_or_nothing_else_will_do() -> None:
    torch.manual_seed(0)
    case = Case(Tokens(), 2, 5, 6)
    assert len(case.plan(ratio=0.5, ratios={"enter": 0.25}).keep["enter"]) == 24
    assert case.widths(max_macs="0.6x")["enter"] == 32
    assert case.widths(max_macs="0.02x")["enter"] < 32
    with pytest.raises(ConfigError, match=r"max_macs = 0.02x cannot be met"):
        case.plan(max_macs="0.02x", streams="whole")
    others = [group.name for group in case.graph.free if not group.stream]
    assert len(case.plan(ratio=0.5, keep=tuple(others)).keep["enter"]) == 16


def test_without_a_norm_that_counts_it_a_shortcut_is_no_stream() -> None:
    torch.manual_seed(0)
    case = Case(Tokens(nn.Identity), 2, 5, 6)
    assert not any(group.stream for group in case.graph.groups)
    assert _tensors(case)["enter.weight"] == (16, 6)


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet", "mlp_mixer", "tied_weights"])
def test_a_macs_budget_is_met_and_used(name: str, budget: float) -> None:
    model, inputs = NETWORKS[name].build(), NETWORKS[name].inputs()
    graph = trace(model, inputs)
    scores = score(model, graph, "l2", inputs=inputs)
    plan = make_plan(graph, scores, PruneConfig(max_macs=f"{budget}x"), align=1, model=model, inputs=inputs)
    small = apply(model, plan, inputs, graph).model
    assert budget - 0.06 < count_macs(small, inputs) / count_macs(model, inputs) <= budget


def test_a_macs_budget_can_be_a_count(chain: Case) -> None:
    dense = count_macs(chain.model, chain.inputs)
    plan = chain.plan(max_macs=f"{dense * 0.5 / 1e3:.3f}k")
    left = count_macs(apply(chain.model, plan, chain.inputs, chain.graph).model, chain.inputs)
    assert 0.45 * dense < left <= 0.5 * dense


def test_a_macs_budget_counts_what_cannot_be_pruned() -> None:
    """The LSTM, whose outputs are sorted, keeps its cost: what must go comes out of the rest."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.fc1, self.fc2 = nn.Linear(8, 64), nn.Linear(64, 4)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(self.lstm(x)[0].sort(-1)[0])))

    torch.manual_seed(0)
    case = Case(Mixed(), 2, 6, 8)
    plan = case.plan(max_macs="0.8x")
    left = count_macs(apply(case.model, plan, case.inputs, case.graph).model, case.inputs)
    assert 0.75 < left / count_macs(case.model, case.inputs) <= 0.8


def test_an_unreachable_macs_budget_says_what_is_reachable(chain: Case) -> None:
    with pytest.raises(ConfigError, match=r"max_macs = 0.0001x cannot be met") as caught:
        chain.plan(max_macs="0.0001x")
    reachable = str(caught.value.fix).split()[2]
    assert chain.plan(max_macs=reachable).keep
    with pytest.raises(ConfigError, match="is not a number of MACs"):
        chain.plan(max_macs="half")


@pytest.mark.parametrize("make", [Chain, Halves])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_predicted_macs_are_counted_macs(make: Callable[[], nn.Module], ratio: float) -> None:
    torch.manual_seed(0)
    case = Case(make(), 2, 3, 8, 8)
    plan = case.plan(ratio=ratio)
    dense = count_macs(case.model, case.inputs)
    left = count_macs(apply(case.model, plan, case.inputs, case.graph).model, case.inputs)
    assert remaining_macs(case.graph, plan.keep, dense) == pytest.approx(left / dense, rel=1e-12)


def test_the_plan_says_what_it_was_made_for(chain: Case) -> None:
    plan = chain.plan(8, ratio=0.5, criterion="l2")
    assert plan.network == "Chain"
    (spec,) = plan.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("input", (None, 3, 8, 8), "float32")
    assert spec.low == pytest.approx(float(chain.inputs[0].min()))
    assert spec.high == pytest.approx(float(chain.inputs[0].max()))
    assert plan.settings["ratio"] == 0.5
    assert set(plan.groups) == {"conv1", "conv2", "fc1"}


def test_several_inputs_get_numbers() -> None:
    model, inputs = NETWORKS["multi_input"].build(), NETWORKS["multi_input"].inputs()
    graph = analyse(model, inputs)
    scores = score(model, graph, "l1", inputs=inputs)
    plan = make_plan(graph, scores, PruneConfig(), align=1, model=model, inputs=inputs)
    assert [spec.name for spec in plan.inputs] == ["input0", "input1"]
