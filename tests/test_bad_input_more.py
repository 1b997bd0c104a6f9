"""More networks that are hard to handle: hooks, wrappers, outputs, modes, inputs and forwards that vary."""

from __future__ import annotations

import dataclasses
import re
import types
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import edgeprune as ep
from edgeprune.errors import ModelError, NothingToPrune, TraceError
from edgeprune.graph import trace
from edgeprune.graph.cost import count_params
from edgeprune.graph.enter import bake, enter
from edgeprune.graph.structure import output_tensors
from tests.test_bad_input import Net, net, plain, pruned, refused, x

# 6. Hooks and computed weights


def test_hooks_of_the_user_go_on_working() -> None:
    model = net(plain)
    calls: list[torch.Size] = []
    model.b.register_forward_hook(lambda module, args, result: calls.append(result.shape))
    model.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.b.register_forward_hook(lambda module, args, result: result + 1)
    small = pruned(model, x()).model
    calls.clear()
    small(x())
    assert [tuple(shape) for shape in calls] == [(2, 4)]


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", sorted(COMPUTED))
def test_computed_weights_are_written_down_and_said(name: str, training: bool) -> None:
    model = net(plain)
    COMPUTED[name](model.b)
    model.eval()(x())
    model.train(training)
    entered = enter(model)
    assert [notice.code for notice in entered.notices] == ["baked"]
    assert "b.weight" in entered.notices[0].text
    assert "b.weight" in dict(entered.model.named_parameters())
    assert entered.model.training == training
    expected = model.eval()(x())
    torch.testing.assert_close(entered.model.eval()(x()), expected)
    small = pruned(model.train(training), x()).model
    assert small.b.weight.shape == (4, 4)
    assert small.training == training
    small(x()).sum().backward()
    assert small.b.weight.grad is not None
    plan = ep.plan(model, (x(),), align=1)
    assert plan.groups["a"].units == 8
    assert ep.apply(model, plan, (x(),)).b.weight.shape == (4, 4)


def test_a_network_without_computed_weights_enters_as_it_is() -> None:
    model = net(plain)
    assert enter(model).model is model
    assert enter(model).notices == ()
    assert bake(model) is not model


def test_weight_norm_written_by_hand_is_that_of_the_kept_channels() -> None:
    model = net(lambda m, x: m.c(F.relu(F.linear(F.relu(m.a(x)), torch._weight_norm(m.b.weight, m.g, 0)))))
    model.g = nn.Parameter(torch.ones(8, 1))
    graph = trace(model, x())
    assert {group.name: group.statistics for group in graph.free}["a"]
    assert pruned(model, x()).check.passed


# 7. Wrappers and programs


class Outer(nn.Module):
    """A wrapper of the user, with a forward of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) * 2


def test_distributing_and_compiling_wrappers_are_taken_off() -> None:
    model = net(plain)
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert enter(wrapped).model is model
        assert enter(wrapped).notices[0].code == "unwrapped"
        assert type(pruned(wrapped, x()).model) is Net
        assert type(ep.apply(wrapped, ep.plan(wrapped, (x(),), align=1), (x(),))) is Net


def test_a_wrapper_with_a_forward_of_its_own_stays() -> None:
    model = Outer(net(plain)).eval()
    small = pruned(model, x()).model
    assert isinstance(small, Outer)
    assert small.module.a.weight.shape == (4, 6)


def test_compiled_parts_are_pruned_uncompiled() -> None:
    inner = net(plain)
    model = nn.Sequential(torch.compile(nn.Linear(6, 6)), inner).eval()
    model[1].b = torch.compile(model[1].b)
    small = pruned(model, x()).model
    assert small[1].b.weight.shape == (4, 4)
    compiled_in_place = net(plain)
    compiled_in_place.compile()
    pruned(compiled_in_place, x())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_programs_of_torchscript_are_refused(how: str) -> None:
    inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = torch.jit.script(inner) if how == "script" else torch.jit.trace(inner, x())
    with pytest.raises(TraceError, match="TorchScript") as caught:
        ep.plan(model, (x(),))
    assert "nn.Module" in str(caught.value.fix)


def test_symbolically_traced_networks_are_pruned() -> None:
    inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert pruned(torch.fx.symbolic_trace(inner), x()).mode == "eager"


@pytest.mark.parametrize("literal", [False, True])
def test_exported_programs_are_pruned_as_modules(literal: bool) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 16, 3)

        def forward(self, x):
            y = F.relu(self.norm(self.conv(x)))
            return self.fc(y.reshape(2, 128) if literal else y.flatten(1))

    torch.manual_seed(0)
    program = torch.export.export(Small().eval(), (x(2, 3, 6, 6),))
    with pytest.raises(ModelError, match="exported program") as caught:
        ep.plan(program, (x(2, 3, 6, 6),))
    assert caught.value.fix == "pass program.module()"
    result = pruned(program.module(), x(2, 3, 6, 6))
    assert result.model(x(2, 3, 6, 6)).shape == (2, 3)


def test_something_that_is_no_network_is_refused() -> None:
    for value in (lambda x: x, "net.pt", {"weight": x()}):
        assert "not an nn.Module" in refused(value, x(), kind=ModelError).message


# 8. Outputs


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    note: str = "fine"
    loss: torch.Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """Keys as attributes too, as in well-known libraries."""

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else super().__getattribute__(name)


Pair = namedtuple("Pair", "left right")
OUTPUTS = {
    "dataclass": lambda a, b: Answer(a),
    "namedtuple": Pair,
    "dict": lambda a, b: {"a": a, "note": "x", "none": None, "deep": [{"b": b}, 3]},
    "model_output": lambda a, b: ModelOutput(logits=a, hidden=(b,)),
    "namespace": lambda a, b: types.SimpleNamespace(a=a, b=[b]),
    "ordered": lambda a, b: OrderedDict(a=a, b=b),
    "nested": lambda a, b: ((a, (b, None)), "text", []),
}


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_outputs_of_any_structure(name: str, literal: bool) -> None:
    def forward(m, x):
        y = F.relu(m.b(F.relu(m.a(x))))
        y = y.view(-1, 8) if literal else y
        return OUTPUTS[name](m.c(y), m.c(y * 2))

    model = net(forward)
    result = pruned(model, x())
    assert type(result.model(x())) is type(model(x()))
    shapes = [tensor.shape for tensor in output_tensors(model(x()))]
    assert [tensor.shape for tensor in output_tensors(result.model(x()))] == shapes


@pytest.mark.parametrize("value", [None, "text", {"a": None}, 3.0])
def test_outputs_without_tensors_are_refused(value: Any) -> None:
    assert "returned no tensor" in refused(net(lambda m, x: (plain(m, x), value)[1]), x()).message


def test_empty_outputs_are_refused() -> None:
    assert "returned empty tensors" in refused(net(lambda m, x: plain(m, x)[:0]), x()).message


# 9. Modes


def test_a_network_in_training_mode_comes_back_in_training_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[1].eval()
    small = pruned(model, x(1, 6)).model  # one sample: batch norm cannot train on it
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]


def test_what_only_training_uses_is_pruned_along() -> None:
    def forward(m, x):
        y = F.relu(m.b(F.relu(m.a(x))))
        return (m.c(y), m.aux(y)) if m.training else m.c(y)

    small = pruned(net(forward, aux=nn.Linear(8, 2)).train(), x()).model
    assert len(small.train()(x())) == 2
    assert small.aux.weight.shape == (2, 4)


# 10. Inputs and weights that say nothing


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.ModuleList(), Net(lambda m, x: x * 2)])
def test_networks_without_parameters_have_nothing_to_prune(model: nn.Module) -> None:
    with pytest.raises((NothingToPrune, TraceError)) as caught:
        ep.plan(model, (x(),))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((x(2, 5),), r"input 0: float32 \(2, 5\)"),
        ((x().long(),), r"input 0: int64 \(2, 6\)"),
        ((x(), x()), r"input 1: float32 \(2, 6\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_the_users_line(inputs: tuple[torch.Tensor, ...], message: str) -> None:
    error = refused(net(lambda m, x: plain(m, x)), *inputs)
    assert re.search(message, error.message)
    assert "/test_bad_input" in str(error.where)


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, *, pixels):
        return self.a(pixels)


class Named(KeywordOnly):
    def forward(self, pixels, mask=None):
        return self.a(pixels)


def test_a_forward_of_keywords_only_has_a_fix() -> None:
    assert "wrap the network in a module" in str(refused(KeywordOnly().eval(), x()).fix)


def test_an_input_is_named_after_its_argument() -> None:
    assert "(pixels: float32 (2, 5))" in refused(Named().eval(), x(2, 5)).message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = net(lambda m, x: m.c(m.b(m.a(x))).softmax(1))
    with torch.no_grad():
        model.b.weight[1, 2] = value
    assert "b.weight is not finite" in refused(model, x(), kind=ModelError).message


@pytest.mark.parametrize("value", [3, "text", None, [1.0], {"a": 1}])
def test_inputs_that_are_no_tensors_are_refused(value: Any) -> None:
    error = refused(net(plain), x(), value, kind=ModelError)
    assert "as input 1" in error.message
    assert "wrap the network in a module" in str(error.fix)


def test_inputs_without_values_are_refused() -> None:
    assert "input 0 has the shape (0, 6)" in refused(net(plain), x(0, 6), kind=ModelError).message
    assert "not a tuple of tensors" in refused(net(plain), kind=ModelError).message


# 11. Forwards that vary


def _random(m, x):
    return m.c(F.relu(m.b(m.a(x)))) + torch.rand(3)


def _counting(m, x):
    m.count = getattr(m, "count", 0) + 1
    return plain(m, x) * m.count


def _growing(m, x):
    m.seen = torch.cat([getattr(m, "seen", x[:0]), x])
    return plain(m, m.seen)


def _only_once(m, x):
    if getattr(m, "done", False):
        raise RuntimeError("used up")
    m.done = True
    return plain(m, x)


@pytest.mark.parametrize("function", [_random, _counting, _growing, _only_once], ids=lambda f: f.__name__[1:])
def test_forwards_that_are_not_repeatable_are_refused(function: Any) -> None:
    error = refused(net(function), x())
    assert "runs again" in error.message
    if function is _random:
        assert error.where == f"{__file__}:{_random.__code__.co_firstlineno + 1}"


def test_caches_and_counters_that_do_not_show_are_allowed() -> None:
    def forward(m, x):
        m.calls = getattr(m, "calls", 0) + 1
        if not hasattr(m, "cache"):
            m.cache = torch.linspace(0, 1, 6)
        return plain(m, x + m.cache)

    small = pruned(net(forward), x()).model
    assert count_params(small) < count_params(net(plain))
    assert trace(net(forward), (x(),)).free
