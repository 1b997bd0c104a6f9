"""The recorder: what it relies on in torch, what it sees, what it refuses, and that it leaves the network alone."""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import ModelError, TraceError
from edgeprune.graph.capture import Record, record
from edgeprune.graph.structure import output_tensors

HERE = str(Path(__file__))


class Wrap(nn.Module):
    """A network that is one function of its input, with any modules the function needs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def names(captured: Record) -> list[str]:
    return [call.name for call in captured.calls]


class Names(TorchDispatchMode):
    """Collects the names of the calls that reach a plain dispatch mode."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func._schema.name.split("::")[-1])
        return func(*args, **(kwargs or {}))


WHOLE = {
    "linear": (lambda m, x: F.linear(x, torch.ones(3, 8))),
    "conv2d": (lambda m, x: F.conv2d(x, torch.ones(4, 8, 3, 3))),
    "conv_transpose2d": (lambda m, x: F.conv_transpose2d(x, torch.ones(8, 4, 3, 3))),
    "batch_norm": (lambda m, x: F.batch_norm(x, torch.zeros(8), torch.ones(8))),
    "layer_norm": (lambda m, x: F.layer_norm(x, (8,))),
    "group_norm": (lambda m, x: F.group_norm(x, 2)),
    "scaled_dot_product_attention": (lambda m, x: F.scaled_dot_product_attention(x, x, x)),
    "softmax": (lambda m, x: x.softmax(1)),
    "reshape": (lambda m, x: x.transpose(1, 2).reshape(2, -1)),
    "flatten": (lambda m, x: x.flatten(1)),
    "chunk": (lambda m, x: x.chunk(2, 1)),
    "matmul": (lambda m, x: x @ x),
    "silu": (lambda m, x: F.silu(x)),
    "adaptive_avg_pool2d": (lambda m, x: F.adaptive_avg_pool2d(x, 1)),
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_composite_operators_arrive_whole_in_inference_mode(name: str) -> None:
    captured = record(Wrap(WHOLE[name]), (torch.randn(2, 8, 8, 8),))
    assert name in names(captured)
    made = {"linear", "ones", "zeros", "transpose", name}
    assert set(names(captured)) <= made | {"detach"}


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch_norm", "layer_norm", "chunk", "matmul", "reshape"])
def test_they_arrive_decomposed_without_inference_mode(name: str) -> None:
    """The reason for the recorder's inference mode; when this changes in torch, the mode may go."""
    mode = Names()
    with torch.no_grad(), mode:
        Wrap(WHOLE[name])(torch.randn(2, 8, 8, 8))
    assert name not in mode.found
    assert mode.found


def test_arguments_are_bound_by_name_with_defaults() -> None:
    captured = record(Wrap(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 4, 3, padding=1)), (torch.randn(2, 3, 6, 6),))
    (call,) = captured.calls
    assert call.name == "conv2d"
    assert call.overload == "aten.conv2d.default"
    assert call.args["stride"] == [1, 1]
    assert call.args["padding"] == [1, 1]
    assert call.args["groups"] == 1
    assert call.args["input"].shape == (2, 3, 6, 6)
    assert call.result.shape == (2, 4, 6, 6)
    assert captured.tensors[call.args["weight"].id] == "conv.weight"
    assert captured.tensors[call.args["bias"].id] == "conv.bias"
    assert captured.inputs[0].id == call.args["input"].id
    assert captured.outputs[0].id == call.result.id


def test_calls_carry_their_source_line_and_module() -> None:
    def forward(m, x):
        x = m.first(x)
        return m.second(
            F.relu(x),
        )

    line = forward.__code__.co_firstlineno
    network = Wrap(forward, first=nn.Linear(3, 4), second=nn.Sequential(nn.Linear(4, 2)))
    captured = record(network, (torch.randn(2, 3),))
    assert [call.where for call in captured.calls] == [f"{HERE}:{line + n}" for n in (1, 3, 2)]
    assert [call.module for call in captured.calls] == ["first", "", "second.0"]


def test_in_place_calls_keep_the_identity_and_the_base_name() -> None:
    def forward(m, x):
        y = x * 2
        y.add_(1).relu_()
        return y.unsqueeze_(0)

    captured = record(Wrap(forward), (torch.randn(2, 3),))
    mul, add, relu, unsqueeze = captured.calls
    assert [call.name for call in captured.calls] == ["mul", "add", "relu", "unsqueeze"]
    assert {call.result.id for call in (mul, add, relu, unsqueeze)} == {mul.result.id}
    assert unsqueeze.args["self"].shape == (2, 3)  # as it was before
    assert unsqueeze.result.shape == (1, 2, 3)


def test_special_method_names_keep_their_underscores() -> None:
    captured = record(Wrap(lambda m, x: x.__and__(x)), (torch.ones(2, 3, dtype=torch.bool),))
    assert names(captured) == ["__and__"]


def test_shared_tensors_are_listed_under_all_their_names() -> None:
    network = Wrap(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    network.b.weight = network.a.weight
    captured = record(network, (torch.randn(2, 4),))
    assert captured.names["a.weight"] == ("a.weight", "b.weight")
    assert "b.weight" not in captured.names
    assert captured.names["b.bias"] == ("b.bias",)
    assert captured.shapes["a.weight"] == (4, 4)


class Stateful(nn.Module):
    """Counts its calls, remembers features, changes its input in place; a mixture of modes and hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8).eval()
        self.calls = 0
        self.features: Any = None
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        x.sub_(0.5)
        self.calls += 1
        self.steps += 1
        self.features = self.frozen(self.norm(self.conv(x)))
        return self.features


def test_nothing_of_the_network_and_its_inputs_changes() -> None:
    network = Stateful()
    seen: list[torch.Size] = []
    network.conv.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    inputs = (torch.randn(2, 3, 6, 6),)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    held = dict(network.named_parameters())
    example = inputs[0].clone()
    record(network, inputs)
    assert torch.equal(inputs[0], example)
    assert network.calls == 0
    assert network.features is None
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value is held[name] and value.grad is None for name, value in network.named_parameters())
    assert len(network.conv._forward_hooks) == 1
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert not network.norm._forward_hooks
    network(torch.randn(2, 3, 6, 6)).sum().backward()  # no inference tensor got in
    assert network.conv.weight.grad is not None


def test_a_network_that_fills_a_cache_keeps_it_empty() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid: torch.Tensor | None = None

        def forward(self, x):
            if self.grid is None:
                self.grid = torch.linspace(-1, 1, x.shape[-1])
            return x * self.grid

    network = Cached()
    record(network, (torch.randn(2, 5),))
    assert network.grid is None


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "if": lambda x: x + 1 if x.sum() > 0 else x,
    "item": lambda x: x * x.mean().item(),
    "float": lambda x: x * float(x.max()),
    "int": lambda x: x.reshape(int(x.abs().sum()) * 0 + 2, -1),
    "tolist": lambda x: x + x.sum(1).tolist()[0],
    "numpy": lambda x: x + torch.from_numpy(x.numpy()),
    "detach_numpy": lambda x: x + torch.from_numpy(x.detach().cpu().numpy()),
    "data_numpy": lambda x: x + torch.from_numpy(x.data.numpy()),
    "in": lambda x: x + (1.0 in x),
    "equal": lambda x: x + torch.equal(x, x * 2),
    "allclose": lambda x: x + torch.allclose(x, x * 2),
    "while": lambda x: next(x / 2**k for k in range(100) if (x / 2**k).abs().max() < 1),
    "assert": lambda x: (torch._assert((x > -9).all(), "small"), x)[1] if x.any() else x,
}


@pytest.mark.parametrize("name", sorted(READS))
def test_reading_data_into_python_is_refused_with_its_line(name: str) -> None:
    function = READS[name]
    with pytest.raises(TraceError, match="reads values of its data into Python") as caught:
        record(Wrap(lambda m, x: function(x)), (torch.randn(2, 3),))
    assert caught.value.where == f"{HERE}:{function.__code__.co_firstlineno}"
    assert caught.value.fix is not None


def test_a_network_cannot_swallow_the_refusal() -> None:
    def forward(m, x):
        try:
            return x * float(x.sum())
        except Exception:  # noqa: BLE001  as users do
            return x * 2

    with pytest.raises(TraceError, match="reads values of its data") as caught:
        record(Wrap(forward), (torch.randn(2, 3),))
    assert caught.value.where == f"{HERE}:{forward.__code__.co_firstlineno + 2}"


def test_reading_parameters_sizes_and_constants_is_allowed() -> None:
    def forward(m, x):
        scale = float(m.lin.weight.abs().max())
        if m.lin.bias.sum().item() > 1e9 or x.shape[0] > 5 or torch.arange(3).tolist()[0]:
            return x
        text = f"{x}"
        return m.lin(x) * scale if text else x

    assert "linear" in names(record(Wrap(forward, lin=nn.Linear(3, 4)), (torch.randn(2, 3),)))


def test_a_failing_forward_names_the_users_line() -> None:
    def forward(m, x):
        x = m.lin(x)
        return F.relu(x.view(2, 99))

    with pytest.raises(TraceError, match=r"RuntimeError: shape '\[2, 99\]' is invalid") as caught:
        record(Wrap(forward, lin=nn.Linear(3, 4)), (torch.randn(2, 3),))
    assert caught.value.where == f"{HERE}:{forward.__code__.co_firstlineno + 2}"


def test_hooks_are_gone_after_a_failure_too() -> None:
    network = Wrap(lambda m, x: m.lin(x.view(99)), lin=nn.Linear(3, 4))
    with pytest.raises(TraceError):
        record(network, (torch.randn(2, 3),))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_that_cannot_be_copied_is_a_model_error() -> None:
    network = Wrap(lambda m, x: x + 1)
    network.generator = (value for value in range(3))
    with pytest.raises(ModelError, match="Wrap cannot be copied"):
        record(network, (torch.randn(2, 3),))


def test_lazy_parameters_are_a_model_error_with_the_fix() -> None:
    network = Wrap(lambda m, x: m.lin(x), lin=nn.LazyLinear(4))
    with pytest.raises(ModelError, match=r"lin.weight has no shape yet") as caught:
        record(network, (torch.randn(2, 3),))
    assert "run one forward" in str(caught.value.fix)
    network(torch.randn(2, 3))
    assert names(record(network, (torch.randn(2, 3),))) == ["linear"]


def test_a_network_that_returns_nan_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="returns NaN"):
        record(Wrap(lambda m, x: (x * 0).log() * 0), (torch.randn(2, 3),))


@dataclasses.dataclass
class Inner:
    logits: Any
    name: str = "inner"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    values: Any


class Plain:
    def __init__(self, value: torch.Tensor) -> None:
        self.value = value
        self.itself = self


Pair = namedtuple("Pair", "left right")

STRUCTURES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list_with_none": lambda a, b: [a, None, 3, "x", [b]],
    "dict": lambda a, b: {"z": a, "a": {"deep": b}},
    "dataclass": lambda a, b: Inner([a, b]),
    "dataclass_in_dict": lambda a, b: {"a": a, "inner": Inner(b)},
    "slots": lambda a, b: Slotted((a, b)),
    "namedtuple": lambda a, b: Pair(a, b),
    "namespace": lambda a, b: types.SimpleNamespace(a=a, rest=[b]),
    "object": lambda a, b: (a, Plain(b)),
    "distribution": lambda a, b: torch.distributions.Normal(a, b, validate_args=False),
}


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_tensors_of_any_output_structure_are_found(name: str) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 5) if name != "distribution" else torch.ones(2, 3)
    found = output_tensors(STRUCTURES[name](a, b))
    assert [id(tensor) for tensor in found] == [id(a), id(b)] or name == "distribution"
    captured = record(Wrap(lambda m, x: STRUCTURES[name](x + 1, x * 2)), (torch.ones(2, 3),))
    assert len(captured.outputs) == 2


@pytest.mark.parametrize("result", [None, 3, "text", [], {"a": None}, nn.Linear(2, 2)])
def test_an_output_without_tensors_is_refused(result: Any) -> None:
    with pytest.raises(TraceError, match="returned no tensor"):
        record(Wrap(lambda m, x: (x + 1, result)[1]), (torch.randn(2, 3),))


def test_numbers_of_calls_do_not_depend_on_who_holds_the_tensors() -> None:
    """torch inserts a detach where the recorder holds the result of a factory; it must not shift the numbering."""

    def forward(m, x):
        y = torch.zeros_like(x)
        y[:, :2] = x[:, 2:]
        return y.mean(1)

    x = torch.randn(2, 4)
    captured = record(Wrap(forward), (x,))
    mode = Names()
    with torch.inference_mode(), mode:
        forward(None, x)
    numbered = [call.overload.split(".")[1] for call in captured.calls if call.name != "detach"]
    assert numbered == [name for name in mode.found if name != "detach"]
    (mean,) = [call for call in captured.calls if call.name == "mean"]
    assert mean.index == mode.found.index("mean") - mode.found[: mode.found.index("mean")].count("detach")


IDLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "warning": lambda x: [warnings.warn("small", stacklevel=1) for _ in [0] if (x > 9).any()],
    "assertion": lambda x: torch._assert((x > -99).all(), "too small"),
    "contains": lambda x: 7.0 in x,
    "equal": lambda x: torch.equal(x, x + 1),
    "two": lambda x: [bool((x > 9).any()), bool((x < -9).any())],
}


@pytest.mark.parametrize("name", sorted(set(IDLE) - {"assertion"}))
def test_a_question_whose_answer_changes_no_call_is_accepted(name: str) -> None:
    function = IDLE[name]

    def forward(m, x):
        function(x)
        return m.a(x * 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = record(Wrap(forward, a=nn.Linear(3, 2)), (torch.randn(2, 3),))
    assert names(captured)[-2:] == ["mul", "linear"]


def test_a_question_whose_other_answer_ends_the_forward_is_refused() -> None:
    """Nobody knows whether other data ends it too: what an assertion asks is left to the user."""
    with pytest.raises(TraceError, match="reads values of its data"):
        record(Wrap(lambda m, x: (IDLE["assertion"](x), x * 2)[1]), (torch.randn(2, 3),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if (x > 0).any() else x,
        lambda x: x * (3 if (x > 0).all() else 2),
        lambda x: x.sum(int((x > 0).any())),
        lambda x: x + float((x > 0).any()),
    ],
)
def test_a_question_whose_answer_changes_a_call_or_its_numbers_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TraceError, match="reads values of its data") as caught:
        record(Wrap(lambda m, x: function(x)), (torch.randn(2, 3),))
    assert str(caught.value.where).endswith(f":{function.__code__.co_firstlineno}")


def test_many_questions_are_refused() -> None:
    with pytest.raises(TraceError, match="reads values of its data"):
        record(Wrap(lambda m, x: [bool(v > 9) for v in x.flatten()] and x * 2), (torch.randn(4, 4),))
