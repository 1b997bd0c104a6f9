"""Eager compaction: what is cut, what survives the cut, what the comparison finds, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import analyse, apply
from edgeprune.compact.outputs import compact
from edgeprune.compact.slice import sliced
from edgeprune.compact.verify import ROUNDING, TOLERANCE, difference
from edgeprune.config import PruneConfig
from edgeprune.errors import ModelError, TraceError, VerificationError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.pruning import make_plan, score
from tests.legal import halves

VECTORS = (torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),)
IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def halved(model: nn.Module, inputs: tuple[torch.Tensor, ...], graph: ChannelGraph | None = None) -> nn.Module:
    """Return the user's own network with every second unit of every free group removed."""
    graph = graph or trace(model, inputs)
    return compact(model, graph, halves(graph), inputs, "eager").model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def test_rows_and_columns_are_cut_by_hand() -> None:
    model = mlp()
    graph = trace(model, VECTORS)
    small = compact(model, graph, {"0": (1, 2, 7), "2": (0, 3)}, VECTORS).model
    assert torch.equal(small[0].weight, model[0].weight[[1, 2, 7]])
    assert torch.equal(small[0].bias, model[0].bias[[1, 2, 7]])
    assert torch.equal(small[2].weight, model[2].weight[[0, 3]][:, [1, 2, 7]])
    assert torch.equal(small[4].weight, model[4].weight[:, [0, 3]])
    assert torch.equal(small[4].bias, model[4].bias)
    assert type(small) is nn.Sequential
    assert repr(small[2]) == "Linear(in_features=3, out_features=2, bias=True)"


def test_the_check_says_what_was_compared() -> None:
    model = mlp()
    compacted = compact(model, trace(model, VECTORS), {"0": (1, 2, 7)}, VECTORS)
    assert compacted.mode == "eager"
    assert compacted.check.passed
    assert compacted.check.batch_size == 2
    assert compacted.check.max_rel <= compacted.check.tolerance


def test_the_small_network_shares_no_memory_with_the_dense_one() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    small = compact(model, trace(model, VECTORS), {"0": tuple(range(7))}, VECTORS).model
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_modes_and_gradient_flags_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(1))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    small = halved(model, IMAGES)
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in small.named_parameters()} == flags


def test_formats_and_types_survive() -> None:
    model = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval().to(memory_format=torch.channels_last)
    )
    small = halved(model, IMAGES)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval().bfloat16()
    small = halved(model, (IMAGES[0].bfloat16(),))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}


def test_a_shared_tensor_is_still_shared() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    model.b.weight = model.a.weight

    def forward(m, x):
        x = F.relu(m.a(F.relu(m.stem(x))))
        return m.c(F.relu(m.b(x)))

    model.function = forward
    model.stem = nn.Linear(6, 6)
    small = halved(model.eval(), VECTORS)
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (3, 3)
    assert sum(parameter.numel() for parameter in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_buffers_are_cut_and_stay_what_they_were() -> None:
    model = Net(lambda m, x: m.b(m.a(x) * m.scale * m.gain), a=nn.Linear(6, 8), b=nn.Linear(8, 2))
    model.register_buffer("scale", torch.arange(8.0))
    model.register_buffer("gain", torch.rand(8), persistent=False)
    small = halved(model.eval(), VECTORS)
    assert torch.equal(small.scale, torch.arange(0.0, 8, 2))
    assert set(small.state_dict()) == set(model.state_dict())
    assert dict(small.named_buffers()).keys() == {"scale", "gain"}


def test_nothing_of_the_comparison_stays_in_the_module() -> None:
    """Caches made under inference mode would break training later."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
            self.calls, self.cache = 0, None

        def forward(self, x):
            self.calls += 1
            if self.cache is None:
                self.cache = torch.linspace(0, 1, x.shape[1])
            return self.b(F.relu(self.a(x * self.cache)))

    model = Cached()
    small = halved(model, VECTORS)
    assert (model.calls, model.cache, small.calls, small.cache) == (0, None, 0, None)
    small(VECTORS[0]).sum().backward()
    assert small.a.weight.grad.shape == (4, 6)


def test_a_literal_size_is_a_model_error_at_its_line() -> None:
    def forward(m, x):
        x = m.a(x)
        return m.b(x.view(-1, 8))

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    with pytest.raises(ModelError, match="the smaller network cannot run: RuntimeError") as caught:
        halved(model, VECTORS)
    assert str(caught.value.where).endswith(f"test_eager.py:{forward.__code__.co_firstlineno + 2}")
    assert caught.value.fix is not None


def test_a_size_in_an_attribute_is_repaired() -> None:
    model = Net(lambda m, x: m.b(m.a(x).view(-1, m.width)), a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    model.width = 8
    assert halved(model, VECTORS).width == 4
    assert model.width == 8


def test_an_attribute_that_only_looks_like_a_size_keeps_its_value() -> None:
    """The number of classes equals the hidden width by chance; the forward needs the width alone."""
    model = Net(lambda m, x: m.b(m.a(x).view(-1, m.width)), a=nn.Linear(6, 8), b=nn.Linear(8, 8)).eval()
    model.width, model.classes, model.shapes = 8, 8, [8, 8]
    model.tensors, model.nothing = [torch.ones(8), torch.ones(8)], None
    small = halved(model, VECTORS)
    assert (small.width, small.classes, small.shapes) == (4, 8, [8, 8])


WRONG: dict[str, Callable[..., Any]] = {
    "scale_by_width": lambda m, x: m.b(m.a(x) * x.new_tensor(m.a(x).shape[1]) ** -0.5),
    "mean_by_shape": lambda m, x: m.b(m.a(x) - m.a(x).sum(1, keepdim=True) / m.a.out_features),
    "other_branch": lambda m, x: m.b(m.a(x) if m.a.weight.shape[0] > 4 else -m.a(x)),
    "sorted_weight": lambda m, x: m.b(m.a(x)) * m.a.weight.shape[0],
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_network_whose_result_depends_on_its_width_is_refused(name: str) -> None:
    model = Net(WRONG[name], a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    with pytest.raises(VerificationError, match="differs from the masked dense one on output 0"):
        halved(model, VECTORS)


def test_a_small_but_real_difference_is_refused() -> None:
    """It hides below the tolerance behind a large constant; in float64 it does not vanish."""
    model = Net(lambda m, x: 1e5 + m.b(m.a(x)) * m.a.weight.shape[0], a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    graph = trace(model, VECTORS)
    with pytest.raises(VerificationError, match=f"limit {ROUNDING:.0e}") as caught:
        compact(model, graph, {"a": (0, 1, 2, 3)}, VECTORS, "eager")
    assert float(str(caught.value).split("difference ")[1].split(",")[0]) < TOLERANCE


def test_float32_noise_is_told_from_a_difference_in_float64() -> None:
    """Cancellation of large values leaves noise above the tolerance in float32 only."""
    model = Net(lambda m, x: (m.b(F.relu(m.a(x))) * 1e6 + 1e7) - 1e7, a=nn.Linear(6, 64), b=nn.Linear(64, 2)).eval()
    graph = trace(model, VECTORS)
    for keep in (range(0, 64, 2), range(1, 64, 2), range(0, 64, 3)):
        assert compact(model, graph, {"a": tuple(keep)}, VECTORS).check.passed


def test_a_network_that_fixes_float32_is_judged_in_float32() -> None:
    """It cannot run in float64, so noise below the tolerance must do."""
    model = Net(lambda m, x: m.b((F.relu(m.a(x)).float() + 2e2) - 2e2), a=nn.Linear(6, 32), b=nn.Linear(32, 2)).eval()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model).double()(VECTORS[0].double())
    graph = trace(model, VECTORS)
    noisy = [compact(model, graph, {"a": tuple(range(start, 32, 3))}, VECTORS).check.max_rel for start in range(3)]
    assert max(noisy) < TOLERANCE


def test_randomness_in_evaluation_is_refused() -> None:
    model = Net(lambda m, x: m.b(F.dropout(m.a(x), 0.5, training=True)), a=nn.Linear(6, 8), b=nn.Linear(8, 2)).eval()
    with pytest.raises(TraceError, match="runs again"):
        halved(model, VECTORS)


def test_a_branch_for_training_is_pruned_too() -> None:
    def forward(m, x):
        x = F.relu(m.a(x))
        return (m.b(x), m.aux(x)) if m.training else m.b(x)

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2), aux=nn.Linear(8, 3)).eval()
    state = torch.random.get_rng_state()
    small = halved(model, VECTORS)
    assert (small.aux.in_features, small.aux.out_features) == (4, 3)
    assert [tensor.shape[1] for tensor in small.train()(*VECTORS)] == [2, 3]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_branch_for_training_must_run_after_pruning_too() -> None:
    """Its size is written in the code, in a branch that evaluation never shows."""

    def forward(m, x):
        x = F.relu(m.a(x))
        return (m.b(x), m.aux(x.view(-1, 8))) if m.training else m.b(x)

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2), aux=nn.Linear(8, 2)).eval()
    with pytest.raises(ModelError, match=r"cannot be multiplied|shape") as caught:
        halved(model, VECTORS)
    assert str(caught.value.where).endswith(f":{forward.__code__.co_firstlineno + 2}")


def test_training_that_never_ran_is_not_held_against_the_small_network() -> None:
    model = Net(
        lambda m, x: m.aux(x) if m.training else m.b(F.relu(m.a(x))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 2),
        aux=nn.Linear(5, 2),
    ).eval()
    assert halved(model, VECTORS).a.out_features == 4


TENSORS = (torch.tensor([[1.0, -4.0], [2.0, 0.0]]), torch.tensor([100.0]))


def test_the_difference_is_relative_to_each_output() -> None:
    first, second = TENSORS
    check = difference([first, second], [first + torch.tensor([[0.0, 4e-5], [0, 0]]), second])
    assert check.passed
    assert check.output == "output 0"
    assert check.max_abs == pytest.approx(4e-5, rel=1e-2)
    assert check.max_rel == pytest.approx(1e-5, rel=1e-2)
    assert not difference([first, second], [first, second + 2e-2]).passed
    assert difference([first, second], [first, second + 2e-2]).output == "output 1"
    assert difference([first], [first]).max_rel == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_fail_unless_equal(bad: float) -> None:
    broken = torch.tensor([1.0, bad])
    assert not difference([torch.ones(2)], [broken]).passed
    assert not difference([broken], [torch.ones(2)]).passed
    assert difference([broken], [broken.clone()]).passed == (bad == bad)


def test_outputs_of_other_shapes_or_numbers_fail() -> None:
    first, second = TENSORS
    with pytest.raises(VerificationError, match=r"returns shapes \[\(2, 2\)\], the dense one \[\(2, 2\), \(1,\)\]"):
        difference([first, second], [first])
    with pytest.raises(VerificationError, match="returns shapes"):
        difference([first], [first.flatten()])


def test_empty_and_zero_outputs_compare() -> None:
    assert difference([torch.zeros(0, 3)], [torch.zeros(0, 3)]).passed
    assert difference([torch.zeros(2)], [torch.zeros(2)]).passed
    assert not difference([torch.zeros(2)], [torch.full((2,), 1e-6)]).passed
    assert difference([torch.tensor([1, 2])], [torch.tensor([1, 2])]).passed
    assert TOLERANCE == 1e-4


def test_slicing_without_masks_is_a_copy() -> None:
    model = mlp()
    graph = trace(model, VECTORS)
    copied = sliced(model, graph, {})
    pairs = list(zip(copied.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    cut = sliced(model, graph, {("0.weight", 0): np.array([True] * 4 + [False] * 4)})
    assert cut[0].weight.shape == (4, 6)
    assert cut[0].out_features == 8  # numbers are repaired by others
    assert model[0].weight.shape == (8, 6)


def test_outputs_of_objects_are_compared() -> None:
    """Features inside an object are an output: their channels stay."""

    class Output:
        def __init__(self, logits: torch.Tensor, features: torch.Tensor) -> None:
            self.logits, self.features = logits, features

    def forward(m, x):
        x = F.relu(m.a(x))
        features = F.relu(m.b(x))
        return {"out": Output(m.c(features), features)}

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)).eval()
    graph = trace(model, VECTORS)
    assert [group.name for group in graph.free] == ["a"]
    small = halved(model, VECTORS, graph)
    assert small(VECTORS[0])["out"].features.shape == (2, 6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_module_inside_is_cut() -> None:
    script = torch.jit.script(nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU()))
    model = Net(lambda m, x: m.c(m.b(F.relu(m.a(x))).mean((2, 3))), a=nn.Conv2d(3, 16, 3), b=script, c=nn.Linear(8, 4))
    inputs = IMAGES
    graph = analyse(model.eval(), inputs)
    scores = score(model, graph, "l2", inputs=inputs)
    plan = make_plan(graph, scores, PruneConfig(ratio=0.5), align=1, model=model, inputs=inputs)
    small = apply(model, plan, inputs, graph).model
    assert small.a.out_channels == 8
    assert small.b.state_dict()["0.weight"].shape == (4, 8, 1, 1)
    other = (torch.randn(3, 3, 8, 8),)
    with torch.no_grad():
        assert small(*other).shape == (3, 4)


class Doubled(nn.Conv2d):
    """A convolution of the user's, whose weight is computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * 2, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize("kind", [nn.Conv2d, Doubled])
def test_grouped_convolutions_know_their_groups(kind: type[nn.Conv2d]) -> None:
    """Half of the rows may be half of the groups, or half of every group: shapes do not say which."""

    def forward(m, x):
        return m.c(F.relu(m.b(F.relu(m.a(x)))))

    model = Net(forward, a=nn.Conv2d(3, 16, 1), b=kind(16, 16, 3, groups=4), c=nn.Conv2d(16, 2, 1)).eval()
    graph = trace(model, IMAGES)
    groups = set()
    for group in graph.free:
        small = compact(model, graph, {group.name: (0, 2)}, IMAGES, "eager").model
        assert small.b.weight.shape[1] * small.b.groups == small.b.in_channels == small.a.out_channels
        groups.add(small.b.groups)
    assert groups == {2, 4}
