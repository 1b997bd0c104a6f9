"""Growing back: a pruned network's weights in the dense network's shapes, so that the next plan speaks of it again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact import analyse, apply, grown, rebuild
from edgeprune.compact.plans import load_pruned_
from edgeprune.compact.slice import sliced
from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, EdgePruneError
from edgeprune.graph import ChannelGraph
from edgeprune.pipeline import planning
from edgeprune.pipeline.planning import Last
from edgeprune.pruning import PrunePlan, make_plan, score
from edgeprune.pruning.plan import GroupPlan
from tests.random_networks import random_network
from tests.zoo import NETWORKS

Inputs = tuple[torch.Tensor, ...]


def _planned(graph: ChannelGraph, model: nn.Module, inputs: Inputs, ratio: float, **more: object) -> PrunePlan:
    scores = score(model, graph, "l2", inputs=inputs)
    config = PruneConfig(ratio=ratio, align=1, scope="global")
    return make_plan(graph, scores, config, align=1, model=model, inputs=inputs, **more)  # type: ignore[arg-type]


def _trained(small: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return the weights of a network after something that changes all of them, in place in the network, too."""
    generator = torch.Generator().manual_seed(seed)
    changed = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point() and "running_var" not in name
        else tensor
        for name, tensor in small.state_dict().items()
    }
    load_pruned_(small, changed)
    return small.state_dict()


@given(seed=st.integers(0, 400), first=st.floats(0.1, 0.5), more=st.floats(0.05, 0.4))
@settings(max_examples=12, deadline=None)
def test_pruning_twice_is_pruning_once(seed: int, first: float, more: float) -> None:
    """Kept units of kept units: the second plan on the dense network is the composition of both, with the weights."""
    model, inputs = random_network(seed), (torch.randn(2, 3, 4, 4).double(),)
    graph = analyse(model, inputs)
    assume(graph.free)
    try:
        one = _planned(graph, model, inputs, first)
        small = apply(model, one, inputs, graph).model
    except EdgePruneError:
        assume(False)
    weights = _trained(small, seed)
    again = grown(model, graph, one.keep, weights)
    cut = sliced(again, graph, graph.masks(one.keep)).state_dict()
    assert all(torch.equal(cut[name], weights[name]) for name in weights)

    two = _planned(graph, again, inputs, first + more, within={name: group.keep for name, group in one.groups.items()})
    assert all(set(group.keep) <= set(one.groups[name].keep) for name, group in two.groups.items())
    at_once = apply(again, two, inputs, graph).model
    own = analyse(small, inputs)
    relative = {
        name: GroupPlan(
            units=len(one.groups[name].keep),
            keep=tuple(index for index, unit in enumerate(one.groups[name].keep) if unit in group.keep),
        )
        for name, group in two.groups.items()
        if len(group.keep) < len(one.groups[name].keep)
    }
    assume({(name, entry.units) for name, entry in relative.items()} <= {(g.name, g.size) for g in own.free})
    step = PrunePlan(network="", groups=relative, inputs=two.inputs, settings=two.settings)
    after = apply(small, step, inputs, own).model
    assert {name: tensor.shape for name, tensor in after.state_dict().items()} == {
        name: tensor.shape for name, tensor in at_once.state_dict().items()
    }
    assert all(torch.equal(tensor, at_once.state_dict()[name]) for name, tensor in after.state_dict().items())
    assert torch.allclose(after(*inputs), at_once(*inputs))


QUICK = ("attention_fused_qkv", "depthwise", "grouped", "layer_norm", "lstm_classifier", "tied_weights", "transposed")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(NETWORKS)]
)
def test_all_kinds_of_layers_grow_back(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name].build().eval(), NETWORKS[name].inputs()
    plan = planning.make(model, inputs, PruneConfig(align=1), align=1, step=None, data=None, seed=0)
    small = apply(model, plan.plan, inputs, plan.graph).model
    weights = _trained(small, 1)
    again = grown(model, plan.graph, plan.plan.keep, weights)
    back = apply(again, plan.plan, inputs, plan.graph).model
    assert all(torch.equal(tensor, weights[key]) for key, tensor in back.state_dict().items())
    last = Last(plan=plan.plan, graph=plan.graph, weights=weights)
    after = planning.make(
        model, inputs, PruneConfig(ratio=0.75, align=1), align=1, step=None, data=None, seed=0, last=last
    ).plan
    for key, group in after.groups.items():
        assert set(group.keep) <= set(plan.plan.groups[key].keep)
    smaller = apply(again, after, inputs, plan.graph).model
    rebuilt = rebuild(model, after, smaller.state_dict(), inputs)
    assert all(torch.equal(tensor, smaller.state_dict()[key]) for key, tensor in rebuilt.state_dict().items())


def test_weights_of_another_plan_are_refused() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), (torch.randn(2, 4),)
    graph = analyse(model, inputs)
    plan = _planned(graph, model, inputs, 0.5)
    small = apply(model, plan, inputs, graph).model
    with pytest.raises(ConfigError, match=r"0\.weight is \(4, 4\), and the plan leaves \(5, 4\)"):
        grown(model, graph, {"0": (0, 1, 2, 3, 4)}, small.state_dict())
