"""The masked reference: statistics over kept positions equal the same operator on those positions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.errors import VerificationError
from edgeprune.graph import trace
from edgeprune.graph.enter import enter

KEPT = (0, 1, 3, 6)
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Eight channels that are not zero where nothing is left of them, one operator, a sum."""

    def __init__(self, operator: Callable[..., torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.operator = operator
        self.a = nn.Linear(6, 8)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.operator(self, torch.sigmoid(self.a(x)) + 0.5)


def x3(h: torch.Tensor) -> torch.Tensor:
    """Return values for three keys, whatever the channels."""
    return torch.arange(6, dtype=h.dtype).reshape(1, 3, 2)


STATISTICS: dict[str, Callable[..., torch.Tensor]] = {
    "mean": lambda m, h: h.mean(1),
    "mean_of_all": lambda m, h: h.mean(),
    "mean_keepdim": lambda m, h: h.mean(-1, keepdim=True),
    "sum": lambda m, h: h.sum(1),
    "sum_of_all": lambda m, h: h.sum(),
    "amax": lambda m, h: h.amax(1),
    "amax_negative": lambda m, h: (-h).amax(1),
    "amin": lambda m, h: h.amin(1),
    "max": lambda m, h: h.max(1)[0],
    "min": lambda m, h: (-h).min(1).values,
    "max_of_all": lambda m, h: (-h).max(),
    "norm": lambda m, h: h.norm(dim=1),
    "norm1": lambda m, h: h.norm(p=1, dim=1),
    "vector_norm": lambda m, h: torch.linalg.vector_norm(h, dim=1),
    "var": lambda m, h: h.var(1),
    "std": lambda m, h: h.std(1, unbiased=False),
    "softmax": lambda m, h: (h.softmax(1) * h).sum(1),
    "log_softmax": lambda m, h: (h.log_softmax(1) * h).sum(1),
    "softmax_in_two_dims": lambda m, h: ((h[:, None] * h[:, :, None]).softmax(-1) @ h[:, :, None]).sum(1),
    "gram": lambda m, h: h @ h.t(),
    "bmm": lambda m, h: torch.bmm(h[:, None], h[:, :, None]).flatten(1),
    "layer_norm": lambda m, h: F.layer_norm(h, h.shape[1:]).square().sum(1),
    "rms_norm": lambda m, h: F.rms_norm(h, h.shape[1:]).square().sum(1),
    "group_norm_of_all": lambda m, h: F.group_norm(h, 1).abs().sum(1),
    "normalize": lambda m, h: F.normalize(h, dim=1).sum(1),
    "detached": lambda m, h: (h - h.detach().mean(1, keepdim=True)).square().sum(1),
    "vector_norm_inf": lambda m, h: torch.linalg.vector_norm(h, ord=float("inf"), dim=1),
    "vector_norm_of_least": lambda m, h: torch.linalg.vector_norm(h, ord=-float("inf"), dim=1),
    "vector_norm1": lambda m, h: torch.linalg.vector_norm(h, 1, 1),
    "linalg_norm": lambda m, h: torch.linalg.norm(h, dim=1),
    "matrix_norm": lambda m, h: torch.linalg.matrix_norm(h) + torch.linalg.matrix_norm(h, ord=-1, dim=(1, 0)),
    "nuclear_norm": lambda m, h: torch.linalg.matrix_norm(h, ord="nuc"),
    "norm_of_all": lambda m, h: h.norm() + torch.norm(h, p=3),
    "var_mean": lambda m, h: torch.cat(torch.var_mean(h, 1)),
    "std_mean": lambda m, h: torch.cat(torch.std_mean(h, 1, correction=0)),
    "var_of_all": lambda m, h: h.var(),
    "logsumexp": lambda m, h: (-h).logsumexp(1),
    "special": lambda m, h: torch.special.logsumexp(h, 1) + (torch.special.log_softmax(h, 1) * h).sum(1),
    "prod": lambda m, h: h.prod(1),
    "prod_of_all": lambda m, h: h.prod(),
    "nansum": lambda m, h: h.nansum(1) + h.nanmean(1),
    "aminmax": lambda m, h: torch.cat(torch.aminmax(h, dim=1)),
    "median": lambda m, h: h.median(1)[0] + h.median(),
    "mode": lambda m, h: h.mode(1)[0],
    "kthvalue": lambda m, h: h.kthvalue(2, 1)[0],
    "count_nonzero": lambda m, h: (h > 0.9).count_nonzero(1) + (h > 1).count_nonzero(1).exp(),
    "all": lambda m, h: (h[..., None] > torch.linspace(0.8, 1.4, 50)).all(1).sum(-1).double(),
    "any": lambda m, h: (h[..., None] > torch.linspace(0.8, 1.4, 50)).any(1).sum(-1).double(),
    "max_keepdim": lambda m, h: h.max(1, keepdim=True)[0] * 2,
    "cosine_similarity": lambda m, h: F.cosine_similarity(h, h.square(), 1),
    "cosine_similarity_of_pairs": lambda m, h: F.cosine_similarity(h[:, None], h[None].square(), -1),
    "pairwise_distance": lambda m, h: F.pairwise_distance(h, h.square()) + F.pairwise_distance(h, -h, 1, keepdim=True),
    "cdist": lambda m, h: torch.cdist(h, h.square()) + torch.cdist(h, -h, p=1),
    "dist": lambda m, h: torch.dist(h, h.square()),
    "softmin": lambda m, h: (F.softmin(h, 1) * h).sum(1),
    "softmax_of_all_heads": lambda m, h: (h[:, :, None].expand(-1, -1, 3).softmax(1) * h[..., None]).sum(1),
    "grn": lambda m, h: (h * (h.norm(dim=0) / h.norm(dim=0).mean(-1, keepdim=True))).sum(1),
    "centred_cosine": lambda m, h: F.normalize(h - h.mean(1, keepdim=True), dim=1).abs().sum(1),
    "native_layer_norm": lambda m, h: sum(
        part.square().sum(1) for part in torch.native_layer_norm(h, h.shape[1:], None, None, 1e-5)
    ),
    "native_group_norm": lambda m, h: sum(
        part.square().sum(1)
        for part in torch.native_group_norm(h[..., None], None, None, len(h), h.shape[1], 1, 1, 1e-5)
    ),
    "renorm": lambda m, h: h.renorm(2, 0, 0.1).sum(1),
    "weight_of_data": lambda m, h: F.linear(h, h.square()),
    "kernel_of_data": lambda m, h: F.conv1d(h[..., None], h[..., None])[..., 0],
    "inner": lambda m, h: torch.inner(h, h.square()) + torch.linalg.vecdot(h, h),
    "vdot": lambda m, h: torch.vdot(h[0], h[1]) + torch.dot(h[0], h[2]),
    "tensordot": lambda m, h: torch.tensordot(h, h.square(), ([1], [1])),
    "einsum": lambda m, h: torch.einsum("bc,dc->bd", h, h.square()) + torch.einsum("b...->b", h),
    "einsum_of_three": lambda m, h: torch.einsum("bc, dc, ec -> bde", h, h, h.square()),
    "baddbmm": lambda m, h: torch.baddbmm(h.new_ones(1, 1, 1), h[:, None], h[..., None])[:, 0],
    "attention": lambda m, h: F.scaled_dot_product_attention(h[None], h[None].square(), x3(h), scale=0.3)[0],
    "by_hand": lambda m, h: ((h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)).abs().sum(1),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_a_statistic_is_that_of_the_kept_channels(name: str) -> None:
    operator = STATISTICS[name]
    model = Net(operator).double().eval()
    graph = trace(model, (X,))
    (group,) = graph.free
    assert group.statistics
    keep = {group.name: KEPT}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        hidden = torch.sigmoid(model.a(X)) + 0.5
        torch.testing.assert_close(found, operator(model, hidden[:, list(KEPT)]), rtol=1e-12, atol=1e-12)
        if name not in {"softmax_in_two_dims"}:
            assert not torch.allclose(found, operator(model, hidden))  # the mask matters


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(1, 8)])
def test_a_norm_with_parameters_uses_those_of_the_kept_channels(norm: nn.Module) -> None:
    model = Net(lambda m, h: m.norm(h).square().sum(1), norm=norm).double().eval()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    graph = trace(model, (X,))
    keep = {graph.free[0].name: KEPT}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        hidden = (torch.sigmoid(model.a(X)) + 0.5)[:, list(KEPT)]
        kept = {name: value[list(KEPT)] for name, value in norm.named_parameters()}
        if isinstance(norm, nn.LayerNorm):
            expected = F.layer_norm(hidden, (4,), **kept)
        elif isinstance(norm, nn.RMSNorm):
            expected = F.rms_norm(hidden, (4,), **kept)
        else:
            expected = F.group_norm(hidden, 1, **kept)
    torch.testing.assert_close(found, expected.square().sum(1), rtol=1e-12, atol=1e-12)


def test_group_norm_counts_what_is_left_of_every_block() -> None:
    model = Net(lambda m, h: m.norm(h[:, :, None]).square().sum((1, 2)), norm=nn.GroupNorm(2, 8)).double().eval()
    graph = trace(model, (X,))
    (places,) = [group for group in graph.free if group.size == 4]
    keep = {places.name: (0, 3)}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        hidden = (torch.sigmoid(model.a(X)) + 0.5)[:, [0, 3, 4, 7], None]
        torch.testing.assert_close(found, F.group_norm(hidden, 2).square().sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_without_statistics_the_reference_is_the_masked_network() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 2)).double().eval()
    graph = trace(model, (X,))
    keep = {"0": KEPT}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        hidden = torch.sigmoid(model[0](X))[:, list(KEPT)]
        torch.testing.assert_close(found, hidden @ model[2].weight[:, list(KEPT)].t() + model[2].bias)


def test_the_masked_copy_zeroes_every_member_and_leaves_the_network() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = trace(model, (X.float(),))
    masked = masked_copy(model, graph.masks({"0": KEPT}))
    gone = [unit for unit in range(8) if unit not in KEPT]
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert (masked.state_dict()[name][gone] == 0).all()
        assert torch.equal(masked.state_dict()[name][list(KEPT)], before[name][list(KEPT)])
    assert (masked.state_dict()["3.weight"][:, gone] == 0).all()
    assert not masked.training
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_inputs_changed_in_place_stay_with_the_user() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    x = X.clone()
    graph = trace(model, (x,))
    reference_outputs(masked_copy(model, graph.masks({"1": KEPT})), graph, {"1": KEPT}, (x,))
    assert torch.equal(x, X)


def test_slice_assignment_does_not_shift_the_marks() -> None:
    """torch calls detach once more while a recorder holds the result of zeros_like."""

    def operator(m: Any, h: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(h)
        half = h.shape[1] // 2
        y[:, :half], y[:, half:] = h[:, half:], h[:, :half]
        return y.softmax(1).square().sum(1)

    model = Net(operator).double().eval()
    graph = trace(model, (X,))
    (group,) = graph.free
    assert (group.size, group.channels) == (4, 8)
    keep = {group.name: (0, 1)}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        hidden = (torch.sigmoid(model.a(X)) + 0.5)[:, [0, 1, 4, 5]]
        torch.testing.assert_close(found, hidden.softmax(1).square().sum(1), rtol=1e-12, atol=1e-12)


def test_a_forward_that_is_not_repeatable_is_refused() -> None:
    class Changing(nn.Module):
        turns = 0

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8)

        def forward(self, x):
            Changing.turns += 1
            h = self.a(x)
            return h.mean(1) if Changing.turns <= 2 else h.exp().sum(1)  # the recorder looks twice

    model = Changing().double().eval()
    graph = trace(model, (X,))
    with pytest.raises(VerificationError, match="called exp where it called mean before"):
        reference_outputs(masked_copy(model, graph.masks({"a": KEPT})), graph, {"a": KEPT}, (X,))


class WeightOfItsOwn(nn.Module):
    """Two convolutions whose weights are computed before they are used; the second reads what the first makes."""

    def __init__(self, made: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 6, 1))
        self.second = nn.Parameter(torch.randn(3, 8, 1))
        self.made = made

    def forward(self, x):
        return run_with(self.made, self.first, self.second, x)


def run_with(made: Callable[[torch.Tensor], torch.Tensor], first: Any, second: Any, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(torch.sigmoid(F.conv1d(x[..., None], made(first))), made(second))[..., 0]


MADE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "standardised": lambda w: (w - w.mean((1, 2), keepdim=True)) / (w.var((1, 2), keepdim=True) + 1e-5).sqrt(),
    "weight_norm": lambda w: torch._weight_norm(w, w.new_full((len(w), 1, 1), 2.0), 0),
    "normalised": lambda w: w / (w.norm(dim=(1, 2), keepdim=True) + 0.1),
    "not_zero_at_zero": lambda w: torch.sigmoid(w),
    "var_mean": lambda w: w - torch.var_mean(w, (1, 2), keepdim=True)[1],
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_weight_that_is_computed_is_that_of_the_kept_channels(name: str) -> None:
    model = WeightOfItsOwn(MADE[name]).double().eval()
    graph = trace(model, (X,))
    (group,) = graph.free
    keep = {group.name: KEPT}
    (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (X,))
    with torch.no_grad():
        expected = run_with(MADE[name], model.first[list(KEPT)], model.second[:, list(KEPT)], X)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_parametrized_weight_is_cut_as_it_was() -> None:
    """It is written down before analysis, so what is left of it does not grow to its old length."""
    weight_norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.Sigmoid(), weight_norm(nn.Linear(8, 2))).double().eval()
    graph = trace(model, (X,))
    (group,) = graph.free
    baked = enter(model).model
    (found,) = reference_outputs(masked_copy(baked, graph.masks({group.name: KEPT})), graph, {group.name: KEPT}, (X,))
    with torch.no_grad():
        hidden = torch.sigmoid(F.linear(X, model[0].weight, model[0].bias))[:, list(KEPT)]
        expected = F.linear(hidden, model[2].weight[:, list(KEPT)], model[2].bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_indices_of_a_maximum_that_are_used_pin_its_dimension() -> None:
    model = Net(lambda m, h: h.max(1)[0] + h.max(1)[1]).double().eval()
    (group,) = trace(model, (X,)).groups
    assert "the indices of torch.max count its positions" in str(group.pinned)
    assert trace(Net(lambda m, h: h.max(1)[0] + h.min(1).values).double().eval(), (X,)).free
