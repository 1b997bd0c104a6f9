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
