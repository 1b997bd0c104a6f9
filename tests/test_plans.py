"""Plans on networks: a plan must fit, and weights must fit the network that the plan gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeprune.compact import analyse, apply, rebuild
from edgeprune.compact.plans import load_pruned_
from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pruning import GroupPlan, PrunePlan, make_plan, score

INPUTS = (torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),)


def plan_of(**groups: tuple[int, list[int]]) -> PrunePlan:
    entries = {name: GroupPlan(units=units, keep=tuple(keep)) for name, (units, keep) in groups.items()}
    return PrunePlan(network="Net", groups=entries, inputs=(), settings={})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        first, second = torch.cat([self.a(x), self.b(x)], 1).chunk(2, 1)
        return self.out(first.relu()) + second.tanh().sum(1, keepdim=True)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_a_plan_is_applied_without_a_graph(model: Net) -> None:
    small = apply(model, plan_of(a=(8, [0, 3]), b=(8, [1, 2])), INPUTS).model
    assert torch.equal(small.a.weight, model.a.weight[[0, 3]])
    assert torch.equal(small.b.weight, model.b.weight[[1, 2]])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of(a=(9, [0]), b=(8, [0])), "the plan has 9 units for group 'a', the network 8"),
        (plan_of(z=(8, [0])), "the plan prunes group 'z', which does not exist in this network"),
        (plan_of(out=(2, [0])), "the plan prunes group 'out', which is pinned: model output"),
        (plan_of(a=(8, [0]), b=(8, [0, 1])), "must keep the same number of units do not: {'a': 1, 'b': 2}"),
        (plan_of(a=(8, [0])), "must keep the same number of units do not: {'a': 1, 'b': 8}"),
    ],
)
def test_a_plan_that_does_not_fit_is_a_config_error(model: Net, plan: PrunePlan, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply(model, plan, INPUTS)
    assert message in caught.value.message


def test_a_plan_may_name_groups_that_it_leaves_whole(model: Net) -> None:
    plan = plan_of(a=(8, [0]), b=(8, [1]), gone=(4, [0, 1, 2, 3]))
    assert apply(model, plan, INPUTS).model.a.out_features == 1


def pruned(model: Net) -> tuple[PrunePlan, nn.Module]:
    graph = analyse(model, INPUTS)
    scores = score(model, graph, "l2", inputs=INPUTS)
    plan = make_plan(graph, scores, PruneConfig(ratio=0.5), align=1, model=model, inputs=INPUTS)
    return plan, apply(model, plan, INPUTS, graph).model


def test_weights_that_do_not_fit_are_refused_with_the_tensor(model: Net) -> None:
    plan, small = pruned(model)
    weights = small.state_dict()
    with pytest.raises(ResolveError, match=r"missing \['a.bias'\], unknown \[\]"):
        rebuild(model, plan, {key: value for key, value in weights.items() if key != "a.bias"}, INPUTS)
    with pytest.raises(ResolveError, match=r"missing \[\], unknown \['extra'\]"):
        rebuild(model, plan, {**weights, "extra": torch.zeros(1)}, INPUTS)
    with pytest.raises(ResolveError, match=r"a.weight is \(8, 6\), the plan gives \(4, 6\)") as caught:
        rebuild(model, plan, {**weights, "a.weight": model.a.weight}, INPUTS)
    assert caught.value.fix is not None


def test_refused_weights_change_nothing(model: Net) -> None:
    _, small = pruned(model)
    before = copy.deepcopy(small.state_dict())
    wrong = {**{key: value + 1 for key, value in before.items()}, "out.weight": torch.zeros(2, 8)}
    with pytest.raises(ResolveError):
        load_pruned_(small, wrong)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_a_shared_tensor_may_come_under_one_of_its_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    weights = {key: torch.full_like(value, 3.0) for key, value in model.state_dict().items() if key != "1.weight"}
    load_pruned_(model, weights)
    assert (model[1].weight == 3).all()
    assert model[1].weight is model[0].weight
