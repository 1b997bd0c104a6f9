"""Criteria against values computed by hand on a network small enough to do so."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.errors import ConfigError, ModelError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.pruning import score
from edgeprune.pruning.gradients import curvature

INPUTS = (torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)),)


class Tiny(nn.Module):
    """One prunable group of three channels: conv rows, batch norm, fc columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])[:, :, None, None])
            self.fc.weight.copy_(torch.tensor([[1.0, 2.0, -3.0], [0.0, -2.0, 1.0]]))
            self.bn.weight.copy_(torch.tensor([0.5, -2.0, 1.0]))

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture
def graph(model: Tiny) -> ChannelGraph:
    return trace(model, INPUTS)


def relative(*values: float) -> np.ndarray:
    return np.array(values) / np.mean(values)


def test_l1_adds_the_absolute_weights_of_rows_and_columns(model: Tiny, graph: ChannelGraph) -> None:
    scores = score(model, graph, "l1", inputs=INPUTS)
    assert list(scores) == ["conv"]
    np.testing.assert_allclose(scores["conv"], relative(3, 3, 2) + relative(1, 4, 4))


def test_l2_adds_their_squares(model: Tiny, graph: ChannelGraph) -> None:
    scores = score(model, graph, "l2", inputs=INPUTS)
    np.testing.assert_allclose(scores["conv"], relative(5, 9, 2) + relative(1, 8, 10))


def test_bn_scale_takes_the_absolute_scale(model: Tiny, graph: ChannelGraph) -> None:
    scores = score(model, graph, "bn_scale", inputs=INPUTS)
    np.testing.assert_allclose(scores["conv"], relative(0.5, 2, 1))


def test_bn_scale_falls_back_to_l2_where_there_is_no_norm(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    inputs = (torch.randn(2, 4),)
    graph = trace(model, inputs)
    with caplog.at_level(logging.INFO, "edgeprune"):
        scores = score(model, graph, "bn_scale", inputs=inputs)
    np.testing.assert_array_equal(scores["0"], score(model, graph, "l2", inputs=inputs)["0"])
    assert "falls back to l2" in caplog.text


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(1, 4)])
def test_bn_scale_knows_other_norms(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2)).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -3.0, 0.0, 4.0]))
    scores = score(model, trace(model, (torch.randn(2, 3),)), "bn_scale", inputs=(torch.randn(2, 3),))
    np.testing.assert_allclose(scores["0"], relative(1, 3, 0, 4))


def test_taylor_is_gradient_times_weight_over_batches(model: Tiny, graph: ChannelGraph) -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3)]

    def step(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch).square().sum()

    rows, columns = np.zeros(3), np.zeros(3)
    for batch in batches:
        conv, fc = torch.autograd.grad(step(model, batch), [model.conv.weight, model.fc.weight])
        rows += (conv * model.conv.weight).sum((1, 2, 3)).detach().double().numpy() ** 2
        columns += (fc * model.fc.weight).sum(0).detach().double().numpy() ** 2
    scores = score(model, graph, "taylor", inputs=INPUTS, train_step=step, batches=batches)
    np.testing.assert_allclose(scores["conv"], relative(*rows) + relative(*columns), rtol=1e-5)


def test_taylor_leaves_the_network_alone_and_scores_frozen_weights(model: Tiny, graph: ChannelGraph) -> None:
    model.conv.weight.requires_grad_(False)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = score(
        model, graph, "taylor", inputs=INPUTS, train_step=lambda net, batch: net(batch).sum(), batches=[INPUTS[0]]
    )
    assert np.isfinite(scores["conv"]).all()
    assert scores["conv"].max() > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.conv.weight.requires_grad
    assert model.fc.weight.grad is None
    assert model.training


def test_taylor_without_training_is_a_config_error(model: Tiny, graph: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match="needs gradients") as caught:
        score(model, graph, "taylor", inputs=INPUTS)
    assert "train_step" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="got no batch"):
        score(model, graph, "taylor", inputs=INPUTS, train_step=lambda net, batch: net(batch).sum(), batches=[])


def test_taylor_on_a_loss_that_is_not_finite_is_a_model_error(model: Tiny, graph: ChannelGraph) -> None:
    with pytest.raises(ModelError, match="the loss of batch 1 is nan"):
        score(
            model,
            graph,
            "taylor",
            inputs=INPUTS,
            train_step=lambda net, batch: (net(INPUTS[0]) * batch).sum(),
            batches=[1.0, float("nan")],
        )


@pytest.mark.parametrize(("loss", "what"), [(lambda out: out, r"shape \(2, 2\)"), (lambda out: 3.0, "float")])
def test_taylor_on_something_else_than_a_loss_is_a_model_error(model, graph, loss, what) -> None:
    with pytest.raises(ModelError, match=what):
        score(model, graph, "taylor", inputs=INPUTS, train_step=lambda net, x: loss(net(x)), batches=[INPUTS[0]])


def test_random_scores_follow_the_seed(model: Tiny, graph: ChannelGraph) -> None:
    first, again, other = (score(model, graph, "random", inputs=INPUTS, seed=seed)["conv"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (3,)


def test_an_unknown_criterion_names_the_nearest(model: Tiny, graph: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match="unknown criterion 'tailor'; did you mean 'taylor'"):
        score(model, graph, "tailor", inputs=INPUTS)


def test_scores_follow_units_not_positions() -> None:
    """A unit that makes several channels is scored by all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.PixelShuffle(2), nn.Conv2d(2, 1, 1, bias=False)).eval()
    inputs = (torch.randn(1, 1, 4, 4),)
    (unit_scores,) = score(model, trace(model, inputs), "l1", inputs=inputs).values()
    rows = model[0].weight.detach().abs().reshape(2, 4).sum(1).double().numpy()
    columns = model[2].weight.detach().abs().reshape(2).double().numpy()
    np.testing.assert_allclose(unit_scores, relative(*rows) + relative(*columns))


def test_a_shared_weight_is_counted_on_both_of_its_sides() -> None:
    torch.manual_seed(0)
    first, shared = nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, shared, shared, nn.Linear(4, 2, bias=False)).eval()
    inputs = (torch.randn(2, 3),)
    (found,) = score(model, trace(model, inputs), "l1", inputs=inputs).values()
    absolute = [layer.weight.detach().abs().double().numpy() for layer in (first, shared, model[3])]
    expected = sum(
        relative(*values) for values in (absolute[0].sum(1), absolute[1].sum(1), absolute[1].sum(0), absolute[2].sum(0))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_large_weights_are_summed_in_pieces_without_a_difference(criterion: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 300, 3), nn.ReLU(), nn.Conv2d(300, 5, 3))
    inputs = (torch.randn(1, 3, 9, 9),)
    graph = trace(network, inputs)
    found = score(network, graph, criterion, inputs=inputs)
    power = 1 if criterion == "l1" else 2
    for name, rows, columns in (("0", network[0], network[2]), ("2", network[2], network[4])):
        parts = [rows.weight.detach().double().abs() ** power, columns.weight.detach().double().abs() ** power]
        sums = [parts[0].sum((1, 2, 3)), parts[1].sum((0, 2, 3))]
        expected = sum(part / part.mean() for part in sums)
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-9)


def test_fpgm_adds_the_distances_to_the_other_rows(model: Tiny, graph: ChannelGraph) -> None:
    rows = np.array([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(1)
    np.testing.assert_allclose(score(model, graph, "fpgm", inputs=INPUTS)["conv"], relative(*expected))


def test_activation_and_apoz_look_at_what_the_next_layer_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 3)).eval()
    graph = trace(model, INPUTS)
    batches = [(torch.randn(4, 2, 6, 6),), (torch.randn(4, 2, 6, 6),)]
    with torch.no_grad():
        seen = torch.cat([model[1](model[0](x)) for (x,) in batches]).double()
    found = score(model, graph, "activation", inputs=INPUTS, samples=batches)["0"]
    np.testing.assert_allclose(found, seen.abs().mean((0, 2, 3)).numpy())
    found = score(model, graph, "apoz", inputs=INPUTS, samples=batches)["0"]
    np.testing.assert_allclose(found, (seen != 0).double().mean((0, 2, 3)).numpy())


def test_activations_are_seen_in_recurrent_networks_and_attention() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    inputs = (torch.randn(2, 5, 8),)
    graph = trace(model, inputs)
    for criterion in ("activation", "apoz"):
        scores = score(model, graph, criterion, inputs=inputs)
        assert set(scores) == {group.name for group in graph.free}
        assert all(values.shape == (group.size,) for group in graph.free for values in [scores[group.name]])


def test_a_batch_on_which_the_network_takes_another_path_is_refused_by_name() -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.middle, self.down = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.up(x)
            return self.down(x.relu() if x.shape[0] > 4 else self.middle(x))

    model, inputs = Lengths().eval(), (torch.randn(2, 4),)
    graph = trace(model, inputs)
    with pytest.raises(ModelError, match="where it called linear on the example inputs"):
        score(model, graph, "activation", inputs=inputs, samples=[(torch.randn(9, 4),)])


def test_hessian_is_half_the_diagonal_times_the_squared_weights() -> None:
    """For a quadratic loss of independent weights, random signs give the diagonal without an error."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double().eval()
    inputs = (torch.randn(2, 3, dtype=torch.float64),)
    graph = trace(model, inputs)
    curve = torch.rand(4, 3, dtype=torch.float64) + 0.5

    def step(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (curve * network[0].weight.square()).sum() / 2 + 0 * network(batch).sum()

    found = score(model, graph, "hessian", inputs=inputs, train_step=step, batches=[inputs[0]] * 2)["0"]
    expected = (curve * model[0].weight.detach().square()).sum(1).numpy() / 2
    np.testing.assert_allclose(found, relative(*expected))


def test_hessian_comes_close_to_the_exact_diagonal() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    inputs = (torch.randn(16, 3, dtype=torch.float64),)

    def step(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch).square().mean()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"0.weight": weight}, inputs).square().mean()

    weight = model[0].weight.detach()
    exact = torch.autograd.functional.hessian(loss, weight).reshape(18, 18).diagonal().view(6, 3).clamp(min=0)
    values = curvature(model, trace(model, inputs), step, [inputs[0]] * 600)
    np.testing.assert_allclose(values["0.weight", 0], (exact * weight.square()).sum(1) / 2, rtol=0.35, atol=2e-3)


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    inputs = (torch.randn(2, 5, 8),)
    graph = trace(model, inputs)
    scores = score(
        model, graph, "hessian", inputs=inputs, train_step=lambda m, x: m(x).square().mean(), batches=[inputs[0]]
    )
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in scores.values())


def test_a_function_of_the_user_is_a_criterion(model: Tiny, graph: ChannelGraph, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def by_number(model, graph):\n    return {'conv': [3, 1, 2]}\n")
    found = score(model, graph, f"{tmp_path}/mine.py:by_number", inputs=INPUTS)
    np.testing.assert_array_equal(found["conv"], [3, 1, 2])
    found = score(model, graph, lambda network, graph: {"conv": [1.0, 2.0, 3.0]}, inputs=INPUTS)
    np.testing.assert_array_equal(found["conv"], [1, 2, 3])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def wrong(model, graph):\n    return {'conv': [1, 2]}\n", r"returned shape \(2,\) for group 'conv'"),
        ("def wrong(model, graph):\n    return {}\n", "returned nothing for group 'conv'"),
        ("def wrong(model, graph):\n    return {'conv': [1, 2, float('nan')]}\n", "not finite"),
        ("wrong = 3\n", "is int, not a function"),
        ("", "is NoneType, not a function"),
    ],
)
def test_a_function_of_the_user_that_is_wrong_is_named(
    model: Tiny, graph: ChannelGraph, tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "wrong_one.py").write_text(body)
    with pytest.raises(ConfigError, match=message):
        score(model, graph, f"{tmp_path}/wrong_one.py:wrong", inputs=INPUTS)
