"""Budgets: what a choice of units leaves is what is counted afterwards, and a budget of parameters is met and used."""

from __future__ import annotations

import pytest
import torch

from edgeprune.compact import analyse, apply
from edgeprune.config import PruneConfig, validate
from edgeprune.errors import ConfigError
from edgeprune.graph.cost import count_params
from edgeprune.pruning import make_plan, score
from edgeprune.pruning.budget import budget_of, left_of
from tests.zoo import NETWORKS

NAMES = [
    "mobilenet_v2",
    "shufflenet_v1_g3",
    "densenet",
    "mlp_mixer",
    "tied_weights",
    "lstm_classifier",
    "gru_residual_stack",
    "transposed",
    "embedding",
    "transformer_encoder_pre",
    "attention_grouped",
]


@pytest.mark.parametrize("share", [0.8, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_parameters_is_met_and_used(name: str, share: float) -> None:
    model, inputs = NETWORKS[name].build().eval(), NETWORKS[name].inputs()
    graph = analyse(model, inputs)
    scores = score(model, graph, "l2", inputs=inputs)
    settings = PruneConfig(max_params=f"{share}x", streams="free")
    plan = make_plan(graph, scores, settings, align=1, model=model, inputs=inputs)
    dense, small = count_params(model), count_params(apply(model, plan, inputs, graph).model)
    assert left_of("params", graph, model, dense)(plan.keep) == pytest.approx(small, rel=1e-9)
    assert share - 0.12 < small / dense <= share


def test_a_budget_can_be_a_count_and_says_what_is_reachable() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    inputs = (torch.zeros(2, 8),)
    graph = analyse(model, inputs)
    scores = score(model, graph, "l2", inputs=inputs)

    def plan(limit: str) -> int:
        made = make_plan(graph, scores, PruneConfig(max_params=limit), align=1, model=model, inputs=inputs)
        return len(made.keep["0"])

    # A unit has 8 weights, a bias and 4 readers; the last layer's 4 biases stay.
    assert plan("134") == 10
    assert plan("0.134k") == 10
    with pytest.raises(ConfigError, match=r"max_params = 0.01x cannot be met: .* of the parameters"):
        plan("0.01x")
    budget = budget_of(("params", "0.5x"), graph, model, inputs, dense=1000)
    assert budget is not None
    assert (budget.limit, budget.dense, budget.current) == (500, 1000, 420)


def test_two_budgets_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        validate({"prune": {"max_macs": "0.5x", "max_params": "0.5x"}}, "plan()")
