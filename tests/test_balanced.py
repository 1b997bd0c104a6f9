"""Grouped convolutions whose blocks cut across other structure: any channels may go, equally many of every block."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact import analyse, apply, rebuild
from edgeprune.compact.outputs import compact
from edgeprune.compact.plans import check_fits
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.balance import balanced_counts, balanced_units, rigid
from edgeprune.graph.classes import BLOCKED
from edgeprune.graph.cost import count_macs
from edgeprune.graph.flow import Flow
from edgeprune.graph.groups import Balance
from edgeprune.pruning import GroupPlan, PrunePlan, make_plan, score
from edgeprune.pruning.budget import remaining_macs
from tests.legal import halves, legal
from tests.masking import largest_difference, masked_by_hooks

INPUTS = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
OTHERS = (torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64),)


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Joined(nn.Module):
    """Branches, some grouped, put together in front of a grouped convolution; then perhaps a shuffle and another one.

    `branches` are widths and groups, which divide 12.
    """

    def __init__(self, branches: tuple[tuple[int, int], ...], groups: int, rows: int, after: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.branches = nn.ModuleList([nn.Conv2d(12, width, 1, groups=each) for width, each in branches])
        self.mix = nn.Conv2d(sum(width for width, _ in branches), groups * rows, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(groups * rows)
        self.groups, self.after = groups, after
        if after:
            self.last = nn.Conv2d(groups * rows, after * 2, 1, groups=after, bias=False)
        self.head = nn.Conv2d(after * 2 if after else groups * rows, 2, 1)

    def joined(self, x):
        x = F.relu(self.stem(x))
        return torch.cat([F.relu(branch(x)) for branch in self.branches], 1)

    def forward(self, x):
        x = F.relu(self.norm(self.mix(self.joined(x))))
        if self.after:
            x = F.relu(self.last(shuffled(x, self.groups)))
        return self.head(x)


class Unit(nn.Module):
    """ShuffleNet v1; with `side` the merge and evolution of MENet beside it."""

    def __init__(self, inp: int, out: int, groups: int, stride: int, first: int, side: int = 0) -> None:
        super().__init__()
        mid = out // 4
        self.groups, self.stride = groups, stride
        self.c1, self.b1 = nn.Conv2d(inp, mid, 1, groups=first, bias=False), nn.BatchNorm2d(mid)
        self.dw, self.b2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid)
        rest = out - inp if stride == 2 else out
        self.c2, self.b3 = nn.Conv2d(mid, rest, 1, groups=groups, bias=False), nn.BatchNorm2d(rest)
        self.merge = nn.Conv2d(mid, side, 1) if side else None
        self.evolve = nn.Conv2d(side, mid, 3, stride, 1) if side else None

    def forward(self, x):
        y = shuffled(F.relu(self.b1(self.c1(x))), self.groups)
        z = self.b2(self.dw(y))
        if self.merge is not None:
            z = z * torch.sigmoid(self.evolve(F.relu(self.merge(y))))
        y = self.b3(self.c2(z))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class Stage(nn.Module):
    def __init__(self, side: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.units = nn.Sequential(
            Unit(12, 192, 3, 2, 1, side), Unit(192, 192, 3, 1, 3, side), Unit(192, 288, 3, 2, 3, side),
        )  # fmt: skip
        self.fc = nn.Linear(288, 4)

    def forward(self, x):
        return self.fc(self.units(F.relu(self.stem(x))).mean((2, 3)))


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.double().eval()


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively({
        "cat": lambda: Joined(((4, 1), (20, 2)), 3, 4),
        "shuffle": lambda: Joined(((12, 3),), 3, 16, 3),
        "unit": lambda: nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), Unit(24, 24, 2, 1, 2), nn.Conv2d(24, 2, 1)),
        "stage": Stage,
        "merge": lambda: Stage(4),
    }[name]())  # fmt: skip


NAMES = ("cat", "shuffle", "stage", "merge")


def check_exact(model: nn.Module, graph: ChannelGraph, keep: dict[str, tuple[int, ...]]) -> nn.Module:
    """Compact, compare with both masked networks on other inputs, as the user's module and as calls."""
    masks = graph.masks(keep)
    (expected,) = reference_outputs(masked_copy(model, masks), graph, keep, OTHERS)
    hooked = masked_by_hooks(model, graph.names, masks)
    found = compact(model, graph, keep, INPUTS)
    for small in (found.model, compact(model, graph, keep, INPUTS, "graph").model):
        with torch.no_grad():
            torch.testing.assert_close(small(*OTHERS), expected, rtol=1e-9, atol=1e-9)
        assert largest_difference(hooked, small, OTHERS) < 1e-9
    return found.model


def blocks_of(graph: ChannelGraph, keep: dict[str, tuple[int, ...]]) -> list[set[int]]:
    kept = {group.name: group.size for group in graph.groups} | {name: len(units) for name, units in keep.items()}
    return [set(balance.counts(kept)) for balance in graph.balances]


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_free_where_borders_cross(name: str) -> None:
    graph = trace(build(name), INPUTS)
    assert graph.balances
    assert any(axis == BLOCKED for _, axis in graph.dims)
    pinned = [group for group in graph.groups if group.pinned not in (None, "model output")]
    assert all("blocks" in str(group.pinned) or "no like" in str(group.pinned) for group in pinned)
    assert sum(group.channels for group in graph.free) > 4 * sum(group.channels for group in pinned)


def test_groups_of_a_cat_are_cut_at_the_borders_of_blocks() -> None:
    graph = trace(build("cat"), INPUTS)
    assert [(g.name, g.size) for g in graph.free] == [
        ("stem", 6), ("stem#2", 6),
        ("branches.0", 4), ("branches.1", 4), ("branches.1#2", 6), ("branches.1#3", 2), ("branches.1#4", 8),
        ("mix", 4), ("mix#2", 4), ("mix#3", 4),
    ]  # fmt: skip
    balances = {balance.what: balance for balance in graph.balances}
    assert set(balances) == {
        "the inputs of branches.1.weight", "the rows of branches.1.weight", "the inputs of mix.weight",
        "the rows of mix.weight",
    }  # fmt: skip
    inputs = balances["the inputs of mix.weight"]
    assert inputs.blocks == (
        {"branches.0": 1, "branches.1": 1}, {"branches.1#2": 1, "branches.1#3": 1}, {"branches.1#4": 1},
    )  # fmt: skip
    assert inputs.fixed == (0, 0, 0)


def test_a_channel_alone_in_its_block_stays_with_a_reason() -> None:
    torch.manual_seed(0)
    graph = trace(Joined(((4, 1), (14, 2)), 3, 4).double(), INPUTS)
    (border,) = [group for group in graph.groups if group.pinned and group.pinned != "model output"]
    assert (border.name, border.channels) == ("branches.1#4", 1)
    assert border.pinned == "it has no like in the rows of branches.1.weight"
    assert Path(__file__).name in str(border.where)
    (inputs,) = [balance for balance in graph.balances if balance.what == "the inputs of mix.weight"]
    assert inputs.fixed == (0, 1, 0)


@pytest.mark.parametrize("name", [*NAMES, "unit"])
def test_halves_compact_exactly(name: str) -> None:
    model = build(name)
    graph = trace(model, INPUTS)
    keep = halves(graph)
    assert all(len(found) == 1 for found in blocks_of(graph, keep))
    small = check_exact(model, graph, keep)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())


def test_rows_of_each_block_keep_their_own_inputs() -> None:
    model = build("cat")
    graph = trace(model, INPUTS)
    keep = {
        "branches.0": (3,), "branches.1": (0, 2), "branches.1#2": (4, 5), "branches.1#3": (1,),
        "branches.1#4": (0, 3, 7), "mix": (0, 3), "mix#2": (1, 2), "mix#3": (0, 1),
    }  # fmt: skip
    small = check_exact(model, graph, keep)
    rows = [0, 3, 5, 6, 8, 9]
    columns = [[3, 4, 6]] * 2 + [[4, 5, 7]] * 2 + [[0, 3, 7]] * 2
    expected = torch.stack([model.mix.weight[row, own] for row, own in zip(rows, columns, strict=True)])
    assert torch.equal(small.mix.weight, expected)
    assert (small.mix.in_channels, small.mix.out_channels, small.mix.groups) == (9, 6, 3)


@st.composite
def joined(draw: Any) -> Joined:
    groups = draw(st.integers(2, 4))
    total = groups * draw(st.integers(2, 5))
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=3)))
    widths = np.diff([0, *cuts, total]).tolist()
    splits = tuple((n, draw(st.sampled_from([k for k in (1, 2, 3, 4, 6) if n % k == 0]))) for n in widths)
    rows = draw(st.integers(1, 6))
    after = draw(st.sampled_from([0, *(k for k in (2, 3, 4) if groups * rows % k == 0)]))
    torch.manual_seed(draw(st.integers(0, 99)))
    model = lively(Joined(splits, groups, rows, after))
    assert isinstance(model, Joined)
    return model


SLOW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
crossed: list[bool] = []


@SLOW
@given(model=joined(), data=st.data())
def check_random(model: Joined, data: st.DataObject) -> None:
    graph = trace(model, INPUTS)
    crossed.append(bool(graph.balances))
    keep: dict[str, tuple[int, ...]] = {}
    for group in graph.free:
        if not set(group.overlaps) & set(keep):
            keep[group.name] = tuple(data.draw(st.sets(st.integers(0, group.size - 1), min_size=1)))
    keep = legal(graph, keep)
    assert all(len(found) == 1 for found in blocks_of(graph, keep))
    if keep:
        check_exact(model, graph, keep)


def test_random_networks_at_random_legal_units() -> None:
    crossed.clear()
    check_random()
    assert 3 * sum(crossed) > len(crossed)


@settings(SLOW, max_examples=40)
@given(
    name=st.sampled_from(NAMES), ratio=st.floats(0.01, 0.99), scope=st.sampled_from(["local", "global"]),
    align=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 9),
)  # fmt: skip
def test_selection_is_legal(name: str, ratio: float, scope: Any, align: int, seed: int) -> None:
    model = build(name)
    graph = trace(model, INPUTS)
    scores = score(model, graph, "random", inputs=INPUTS, seed=seed)
    config = PruneConfig(ratio=ratio, scope=scope)
    try:
        plan = make_plan(graph, scores, config, align=align, model=model, inputs=INPUTS)
    except NothingToPrune:
        assert ratio < 0.25 or align > 1
        return
    check_fits(graph, plan)
    keep = {name: group.keep for name, group in plan.groups.items()}
    assert all(len(found) == 1 for found in blocks_of(graph, keep))
    assert all(group.keep for group in plan.groups.values())


def planned(model: nn.Module, graph: ChannelGraph, align: int = 1, **settings: Any) -> PrunePlan:
    scores = score(model, graph, "l2", inputs=INPUTS)
    return make_plan(graph, scores, PruneConfig(**settings), align=align, model=model, inputs=INPUTS)


def test_the_best_units_of_every_block_stay() -> None:
    model = build("cat")
    graph = trace(model, INPUTS)
    scores = score(model, graph, "l2", inputs=INPUTS)
    for name, group in planned(model, graph, ratio=0.5).groups.items():
        best = np.argsort(-scores[name], kind="stable")[: len(group.keep)]
        assert set(group.keep) == set(best.tolist())
        assert 2 * len(group.keep) == group.units


def test_blocks_are_aligned_where_that_removes_anything() -> None:
    torch.manual_seed(0)
    model = lively(Joined(((16, 1), (80, 2)), 3, 16))
    graph = trace(model, INPUTS)
    kept = {name: len(group.keep) for name, group in planned(model, graph, 8, ratio=0.5).groups.items()}
    counts = {balance.what: set(balance.counts(kept)) for balance in graph.balances}
    assert counts == {
        "the inputs of branches.1.weight": {3},  # blocks of 6 are too narrow
        "the rows of branches.1.weight": {32},  # of 40: 24 would leave nothing of the first branch
        "the inputs of mix.weight": {24},  # of 32
        "the rows of mix.weight": {8},
    }
    narrow = build("cat")
    graph = trace(narrow, INPUTS)
    assert planned(narrow, graph, 16, ratio=0.5).keep == planned(narrow, graph, 1, ratio=0.5).keep


def test_a_macs_budget_is_met_with_equal_blocks() -> None:
    model = build("stage")
    graph = trace(model, INPUTS)
    plan = planned(model, graph, max_macs="0.5x")
    check_fits(graph, plan)
    macs = count_macs(model, INPUTS)
    small = apply(model, plan, INPUTS, graph).model
    left = count_macs(small, INPUTS) / macs
    assert 0.4 < left <= 0.5
    assert left == pytest.approx(remaining_macs(graph, plan.keep, macs), rel=1e-9)


def test_a_group_that_is_kept_holds_its_blocks_whole() -> None:
    model = build("cat")
    graph = trace(model, INPUTS)
    plan = planned(model, graph, ratio=0.5, keep=["branches.1.weight"])
    assert {name: len(group.keep) for name, group in plan.groups.items()} == {
        "branches.0": 4, "mix": 2, "mix#2": 2, "mix#3": 2,
    }  # fmt: skip
    check_fits(graph, plan)


def test_groups_at_rest_are_not_taken_along() -> None:
    graph = trace(build("cat"), INPUTS)
    keep = balanced_units(graph, ["mix"], lambda unit: unit % 2 == 0)
    assert {name: len(units) for name, units in keep.items()} == {"mix": 2, "mix#2": 2, "mix#3": 2}
    assert balanced_units(graph, ["mix"], lambda unit: unit % 2 == 0, rest=["mix#3"]) == {}
    counts = balanced_counts(graph, {"mix": 1.0, "mix#2": 3.0, "mix#3": 3.0}, least={"mix#2": 2})
    assert counts["mix"] == counts["mix#2"] == counts["mix#3"] == 3


def test_an_edited_plan_that_breaks_a_balance_is_refused() -> None:
    model = build("cat")
    graph = trace(model, INPUTS)
    plan = planned(model, graph, ratio=0.5)
    groups = dict(plan.groups)
    groups["branches.0"] = GroupPlan(units=4, keep=(1, 2, 3))
    edited = PrunePlan(network=plan.network, groups=groups, inputs=plan.inputs, settings=plan.settings)
    with pytest.raises(ConfigError) as caught:
        apply(model, edited, INPUTS, graph)
    assert "the inputs of mix.weight keep [5, 4, 4]" in caught.value.message
    assert "branches.0" in str(caught.value.fix)
    with pytest.raises(ConfigError, match=r"different numbers of inputs: \[5, 4, 4\]"):
        compact(model, graph, edited.keep, INPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_pruned_network_trains_and_is_rebuilt_from_a_saved_plan(name: str, tmp_path: Path) -> None:
    model = build(name)
    graph = analyse(model, INPUTS)
    plan = planned(model, graph, ratio=0.5)
    plan.save(tmp_path / "plan.json")
    plan = PrunePlan.load(tmp_path / "plan.json")
    compacted = apply(model, plan, INPUTS)
    assert compacted.mode == "eager"
    small = compacted.model.train()
    before = copy.deepcopy(small.state_dict())
    optimiser = torch.optim.SGD(small.parameters(), lr=1e-2)
    small(*INPUTS).square().mean().backward()
    optimiser.step()
    changed = {key for key, value in small.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key, _ in small.named_parameters() if "mix" in key or "c1" in key} <= changed
    again = rebuild(build(name), plan, small.state_dict(), INPUTS)
    with torch.no_grad():
        assert torch.equal(again(*OTHERS), small.eval()(*OTHERS))


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
def test_criteria_see_the_inputs_of_every_block(criterion: str) -> None:
    """A channel whose weights in its own block are large is worth most, whatever the other blocks hold there."""
    model = build("cat").float()
    inputs = (INPUTS[0].float(),)
    graph = trace(model, inputs)
    with torch.no_grad():
        model.mix.weight[4:8, 7] = 100.0  # the last input of the second block: unit 1 of branches.1#3
    step = {"train_step": lambda network, batch: network(batch).square().mean(), "batches": [inputs[0]]}
    scores = score(model, graph, criterion, inputs=inputs, **(step if criterion == "taylor" else {}))
    assert scores["branches.1#3"].argmax() == 1
    if criterion != "taylor":
        weight = model.mix.weight.detach().double().abs() ** (1 if criterion == "l1" else 2)
        own = weight[8:12].sum((0, 2, 3)).numpy()
        made = model.branches[1].weight.detach().double().abs() ** (1 if criterion == "l1" else 2)
        producer = made[12:].sum((1, 2, 3)).numpy()
        expected = own / own.mean() + producer / producer.mean()
        np.testing.assert_allclose(scores["branches.1#4"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, groups=8), nn.ReLU(), nn.Conv2d(16, 2, 1)), 1),
        (lambda: Joined(((4, 1), (4, 1)), 2, 4), 1),
        (lambda: Joined(((4, 1), (20, 2)), 3, 4), 2),
    ],
)
def test_only_crossing_borders_take_a_second_pass(model: Any, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    follow = Flow.propagate
    monkeypatch.setattr(Flow, "propagate", lambda flow: count.append(flow) or follow(flow))
    graph = trace(model().double(), INPUTS)
    assert len(count) == passes
    assert bool(graph.balances) == (passes > 1)


def test_a_weight_that_is_read_elsewhere_is_left_alone() -> None:
    class Penalised(Joined):
        def forward(self, x):
            return super().forward(x) + self.mix.weight.sum((0, 2, 3))[0]

    torch.manual_seed(0)
    model = Penalised(((4, 1), (20, 2)), 3, 4).double().eval()
    graph = trace(model, INPUTS)
    assert ("mix.weight", BLOCKED) not in graph.dims
    assert graph.balances == ()


def test_a_weight_used_twice_is_cut_once() -> None:
    class Twice(Joined):
        def forward(self, x):
            return self.head(F.relu(self.norm(self.mix(F.relu(self.mix(self.joined(x)))))))

    torch.manual_seed(0)
    model = lively(Twice(((4, 1), (20, 2)), 3, 8))
    graph = trace(model, INPUTS)
    keep = halves(graph)
    assert graph.balances
    assert keep
    check_exact(model, graph, keep)


def test_fixed_channels_count_in_their_block() -> None:
    class WithImage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mix, self.head = nn.Conv2d(3, 9, 1), nn.Conv2d(12, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(F.relu(self.mix(torch.cat([x, F.relu(self.first(x))], 1))))

    torch.manual_seed(0)
    model = WithImage().double().eval()
    graph = trace(model, INPUTS)
    inputs = graph.balances[0]
    assert (inputs.blocks, inputs.fixed) == (({"first": 1}, {"first#2": 1}), (3, 0))
    keep = legal(graph, {"first": (1,), "mix": (0, 2)})
    assert [len(keep[name]) for name in ("first", "first#2")] == [1, 4]
    check_exact(model, graph, keep)


def test_blocks_that_are_equal_only_as_a_whole_are_pinned_with_the_reason() -> None:
    torch.manual_seed(0)
    model = lively(Joined(((18, 3), (4, 4), (5, 1)), 3, 4))
    graph = trace(model, INPUTS)
    stiff = [group for group in graph.groups if "stay equal only when all of them stay" in str(group.pinned)]
    assert len(stiff) == 4
    assert rigid(graph) == []
    fewest = balanced_counts(graph, dict.fromkeys([group.name for group in graph.free], 1.0))
    assert any(fewest[group.name] < group.size for group in graph.free if group.name in fewest)
    keep = halves(graph)
    assert all(len(found) == 1 for found in blocks_of(graph, keep))
    check_exact(model, graph, keep)


def test_numbers_that_only_the_whole_satisfies_stay_whole() -> None:
    graph = trace(build("cat"), INPUTS)
    same = Balance(what="same", blocks=({"mix": 1}, {"mix#2": 1}), fixed=(0, 0))
    twice = Balance(what="twice", blocks=({"mix": 2}, {"mix#2": 1}), fixed=(0, 4))
    assert rigid(replace(graph, balances=(same,))) == []
    stiff = replace(graph, balances=(same, twice))
    assert rigid(stiff) == [(frozenset({"mix", "mix#2"}), "same")]
    assert balanced_counts(stiff, {"mix": 1.0, "mix#2": 2.0}) == {"mix": 4, "mix#2": 4}


def test_links_count_as_equalities() -> None:
    graph = trace(build("cat"), INPUTS)
    assert graph.links == ()
    linked = replace(graph, links=(("mix", "branches.0"),))
    wanted = {group.name: group.size / 2 for group in graph.free} | {"mix": 3.0, "branches.0": 1.0}
    counts = balanced_counts(linked, wanted, weights={"branches.0": 1000.0})
    assert counts["mix"] == counts["mix#2"] == counts["mix#3"] == counts["branches.0"] < 3
    assert all(len(set(balance.counts(counts))) == 1 for balance in graph.balances)


def test_ratios_by_name_weigh_more_than_what_goes_along() -> None:
    model = build("cat")
    graph = trace(model, INPUTS)
    plan = planned(model, graph, ratio=0.0, ratios={"mix": 0.75})
    assert {name: len(group.keep) for name, group in plan.groups.items() if name.startswith("mix")} == {
        "mix": 1, "mix#2": 1, "mix#3": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (3, 3, 3))])
def test_blocks_of_one_and_three_dimensions(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = layer(3, 12, 1), layer(12, 4, 1)
            self.b, self.mix = layer(12, 20, 1, groups=2), layer(24, 12, 3, groups=3)
            self.head = layer(12, 2, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head(F.relu(self.mix(F.relu(torch.cat([self.a(x), self.b(x)], 1)))))

    torch.manual_seed(0)
    model, inputs = Lines().double().eval(), (torch.randn(2, 3, *shape, dtype=torch.float64),)
    graph = trace(model, inputs)
    assert ("mix.weight", BLOCKED) in graph.dims
    keep = halves(graph)
    found = compact(model, graph, keep, inputs)
    assert (found.mode, tuple(found.model.mix.weight.shape[:2])) == ("eager", (6, 4))
    assert found.check.max_rel < 1e-9
    assert (
        largest_difference(masked_by_hooks(model, graph.names, graph.masks(halves(graph))), found.model, inputs) < 1e-9
    )


def test_the_memory_format_of_a_weight_stays() -> None:
    model = build("cat").to(memory_format=torch.channels_last)
    graph = trace(model, INPUTS)
    small = check_exact(model, graph, halves(graph))
    assert small.mix.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.mix.weight.is_contiguous()


def test_branches_for_training_take_part() -> None:
    class Aided(Joined):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.aid = nn.Conv2d(24, 12, 1, groups=3)

        def forward(self, x):
            if not self.training:
                return super().forward(x)
            joined = self.joined(x)
            return self.head(F.relu(self.norm(self.mix(joined)))) + self.head(self.aid(joined))

    torch.manual_seed(0)
    model = lively(Aided(((4, 1), (20, 2)), 3, 4))
    graph = trace(model, INPUTS)
    assert "the inputs of aid.weight" in {balance.what for balance in graph.balances}
    small = check_exact(model, graph, halves(graph))
    assert (small.aid.in_channels, small.aid.out_channels) == (small.mix.in_channels, 6)
    small.train()(*INPUTS).mean().backward()
    assert small.aid.weight.grad is not None
