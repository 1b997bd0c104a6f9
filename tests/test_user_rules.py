"""Rules that users write for operators of their own: found, followed, judged, and gone after the analysis."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.compact import analyse
from edgeprune.compact import apply as compact
from edgeprune.compact.outputs import compact as to_output
from edgeprune.config import PruneConfig, load_config
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.flow import RESIZES, RULES
from edgeprune.graph.rules.custom import CustomRule, Entry, load_rules
from edgeprune.pipeline.steps import inspect, prune
from edgeprune.pruning import make_plan, score
from edgeprune.rules import Call, Flow, Widths, resize, rule


@torch.library.custom_op("edgeprune_test::gate", mutates_args=())
def gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(weight), one weight per channel."""
    return x * torch.sigmoid(weight).reshape(-1, 1, 1)


@gate.register_fake
def _(x, weight):
    return torch.empty_like(x)


def _backward(context, grad):
    x, weight = context.saved_tensors
    scale = torch.sigmoid(weight).reshape(-1, 1, 1)
    return grad * scale, (grad * x * scale * (1 - scale)).sum((0, 2, 3))


gate.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


@torch.library.custom_op("edgeprune_test::masked_depthwise", mutates_args=())
def masked_depthwise(x: torch.Tensor, weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A depthwise convolution over the upper triangle of its kernel; the number of channels is an argument."""
    return torch.nn.functional.conv2d(x, torch.triu(weight), padding=1, groups=channels)


@torch.library.custom_op("edgeprune_test::add", mutates_args=())
def add(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Has the name of one of PyTorch's operators, and mixes the channels."""
    return x.flip(1) + weight.reshape(-1, 1, 1)


@rule("edgeprune_test::gate")
def gate_rule(flow: Flow, call: Call) -> None:
    x, weight = call.args["x"], call.args["weight"]
    flow.join(flow.of(x)[1], flow.of(weight)[0], call)
    flow.set(call.result, flow.of(x))


@rule("edgeprune_test::masked_depthwise")
def depthwise_rule(flow: Flow, call: Call) -> None:
    x, weight = call.args["x"], call.args["weight"]
    flow.join(flow.of(x)[1], flow.of(weight)[0], call)
    flow.set(call.result, flow.of(x))


@resize("edgeprune_test::masked_depthwise")
def depthwise_sizes(call: Call, widths: Widths) -> dict[str, object]:
    return {**call.args, "channels": int(widths.kept(call.args["x"], 1).sum())}


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(16))
        self.b = nn.Conv2d(16, 8, 3)
        self.c = nn.Conv2d(8, 2, 1)

    def mixed(self, x):
        return torch.ops.edgeprune_test.gate(x, self.scale)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.mixed(torch.relu(self.a(x))))))


class Depthwise(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(16, 1, 3, 3))

    def mixed(self, x):
        return torch.ops.edgeprune_test.masked_depthwise(x, self.scale, 16)


class Added(Gated):
    def mixed(self, x):
        return torch.ops.edgeprune_test.add(x, self.scale)


INPUTS = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def built(kind: type[Gated]) -> Gated:
    torch.manual_seed(0)
    return kind().eval()


def pinned(graph: ChannelGraph, name: str) -> str | None:
    return next(group.pinned for group in graph.groups if group.name == name)


def free(graph: ChannelGraph) -> list[str]:
    return [group.name for group in graph.free]


def own(function, *names: str, kind: str = "rule", override: bool = False) -> CustomRule:
    """Mark a function that is defined inside of a test."""
    return (rule if kind == "rule" else resize)(*names, override=override)(function)


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    before = dict(RULES), dict(RESIZES)
    yield
    assert before == (RULES, RESIZES)


def test_without_a_rule_the_operator_is_pinned_by_its_full_name() -> None:
    graph = analyse(built(Gated), INPUTS)
    assert pinned(graph, "a") == "edgeprune_test::gate is not understood"
    assert free(graph) == ["b"]


def test_a_rule_frees_the_channels_and_holds_for_one_analysis() -> None:
    model = built(Gated)
    graph = analyse(model, INPUTS, rules=load_rules([gate_rule]))
    assert free(graph) == ["a", "b"]
    assert "scale" in next(group.tensors for group in graph.groups if group.name == "a")
    assert free(analyse(model, INPUTS)) == ["b"]


@pytest.mark.parametrize("output", ["eager", "graph"])
def test_a_network_with_a_custom_operator_is_compacted_both_ways(output: str) -> None:
    model = built(Gated)
    graph = analyse(model, INPUTS, rules=load_rules([gate_rule]))
    found = to_output(model, graph, {"a": (0, 2, 3, 9), "b": (1, 4)}, INPUTS, output)
    assert found.mode == output
    assert found.check.passed
    assert found.model.scale.shape == (4,)
    found.model.train()(INPUTS[0]).sum().backward()
    assert found.model.scale.grad is not None


def test_a_resize_comes_with_the_rule_of_its_module_and_rewrites_sizes() -> None:
    model = built(Depthwise)
    rules = load_rules([f"{__name__}:depthwise_rule"])
    assert set(rules.resizes) == {"edgeprune_test::masked_depthwise"}
    graph = analyse(model, INPUTS, rules=rules)
    assert free(graph) == ["a", "b"]
    found = to_output(model, graph, {"a": tuple(range(5))}, INPUTS)
    assert found.mode == "graph"  # the user's code says 16
    assert found.model(INPUTS[0]).shape == model(INPUTS[0]).shape


def test_plan_and_apply_take_rules_and_a_plan_names_them() -> None:
    model = built(Gated)
    plan = ep.plan(model, INPUTS, align=1, rules=[gate_rule])
    assert plan.settings["rules"] == [f"{__name__}:gate_rule"]
    small = ep.apply(model, plan, INPUTS, rules=[f"{__name__}:gate_rule"])
    assert small.scale.shape == (8,)
    with pytest.raises(ConfigError, match="edgeprune_test::gate is not understood"):
        ep.apply(model, plan, INPUTS)


def test_an_operator_with_the_name_of_a_built_in_one_has_not_its_rule() -> None:
    graph = trace(built(Added), INPUTS)
    assert pinned(graph, "a") == "edgeprune_test::add is not understood"


def test_a_rule_that_raises_is_named_with_its_line_and_the_operator_pinned() -> None:
    def broken(flow: Flow, call: Call) -> None:
        call.args["weigth"]

    line = f"{__file__}:{broken.__code__.co_firstlineno + 1}"
    graph = analyse(built(Gated), INPUTS, rules=load_rules([own(broken, "edgeprune_test::gate")]))
    assert pinned(graph, "a") == f"the rule broken of edgeprune_test::gate raised KeyError: 'weigth' at {line}"
    assert free(graph) == ["b"]


def test_a_rule_that_forgets_its_result_pins_the_operator() -> None:
    def forgetful(flow: Flow, call: Call) -> None:
        flow.of(call.args["x"])

    graph = analyse(built(Gated), INPUTS, rules=load_rules([own(forgetful, "edgeprune_test::gate")]))
    assert pinned(graph, "a") == "the rule forgetful of edgeprune_test::gate gives its result no labels"


def _keeps_order(flow: Flow, call: Call) -> None:
    """Wrong: the operator turns the channels round."""
    flow.join(flow.of(call.args["x"])[1], flow.of(call.args["weight"])[0], call)
    flow.set(call.result, flow.of(call.args["x"]))


def _ignores_weight(flow: Flow, call: Call) -> None:
    """Wrong: the weight has the same channels."""
    flow.set(call.result, flow.of(call.args["x"]))


@pytest.mark.parametrize(
    ("kind", "function", "operator"),
    [
        (Added, _keeps_order, "edgeprune_test::add"),
        (Gated, _ignores_weight, "edgeprune_test::gate"),
    ],
)
def test_a_wrong_rule_is_found_out_and_pinned(kind: type[Gated], function, operator: str) -> None:
    model = built(kind)
    rules = load_rules([own(function, operator)])
    assert "a" in free(trace(model, INPUTS, rules))
    graph = analyse(model, INPUTS, rules=rules)
    assert pinned(graph, "a") in ("pruning it changes the result", "the code expects the old size here")
    assert free(graph) == ["b"]


@pytest.mark.parametrize(
    "function",
    [
        lambda call, widths: {**call.args, "channels": call.args["chanels"]},
        lambda call, widths: None,
        lambda call, widths: (1, 2),
        lambda call, widths: {**call.args, "channels": 3},
        lambda call, widths: {**call.args, "x": "text"},
        lambda call, widths: {"x": call.args["x"]},
    ],
)
def test_a_wrong_resize_pins_and_does_not_crash(function) -> None:
    entries = [own(_ties_both, "edgeprune_test::masked_depthwise")]
    entries.append(own(function, "edgeprune_test::masked_depthwise", kind="resize"))
    graph = analyse(built(Depthwise), INPUTS, rules=load_rules(entries))
    assert free(graph) == ["b"]
    assert pinned(graph, "a") in ("pruning it changes the result", "the code expects the old size here")


def _ties_both(flow: Flow, call: Call) -> None:
    flow.join(flow.of(call.args["x"])[1], flow.of(call.args["weight"])[0], call)
    flow.set(call.result, flow.of(call.args["x"]))


@torch.library.custom_op("edgeprune_test::strict", mutates_args=())
def strict(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Knows one width only."""
    assert x.shape[1] == 16
    return x * weight.reshape(-1, 1, 1)


class Strict(Gated):
    def mixed(self, x):
        return torch.ops.edgeprune_test.strict(x, self.scale)


def test_an_operator_that_raises_on_fewer_channels_is_pinned() -> None:
    graph = analyse(built(Strict), INPUTS, rules=load_rules([own(_ties_both, "edgeprune_test::strict")]))
    assert pinned(graph, "a") == "the code expects the old size here"
    assert free(graph) == ["b"]


def test_a_built_in_rule_is_not_replaced_without_a_word() -> None:
    def pins_all(flow: Flow, call: Call) -> None:
        flow.give_up(call, "not today")

    for name in ("aten::conv2d", "aten::relu_", "aten::erfinv"):
        with pytest.raises(ConfigError, match=f"would replace the built-in rule of {name}") as caught:
            load_rules([own(pins_all, name)])
        assert "override=True" in str(caught.value.fix)
    allowed = load_rules([own(pins_all, "aten::conv2d", override=True)])
    assert analyse(built(Gated), INPUTS, rules=allowed).free == ()
    assert free(analyse(built(Gated), INPUTS)) == ["b"]


def test_two_rules_for_one_operator_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gate_rule and .*_ignores_weight are both the rule of edgeprune_test::gate"):
        load_rules([gate_rule, own(_ignores_weight, "edgeprune_test::gate")])
    assert load_rules([gate_rule, f"{__name__}:gate_rule"]).rules


def test_a_rule_for_an_operator_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such operator; did you mean 'edgeprune_test::gate'"):
        trace(built(Gated), INPUTS, load_rules([own(_ties_both, "edgeprune_test::gates")]))
    trace(built(Gated), INPUTS, load_rules([own(_ties_both, "edgeprune_test::masked_depthwise")]))  # exists, not called


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gate_rule", "names no function"),
        ("no_such_module_here:rule", "cannot import no_such_module_here"),
        ("no/such/file.py:rule", "no file no/such/file.py"),
        (f"{__name__}:gate_ruel", "did you mean 'gate_rule'"),
        (f"{__name__}:built", "is function, not a rule"),
        (3, "is int, not a rule"),
        (_ties_both, "is function, not a rule"),
    ],
)
def test_wrong_references_are_errors_with_a_fix(entry: Entry, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_rules([entry])
    assert caught.value.fix


def test_a_rule_names_operators_with_their_namespace() -> None:
    for operators in ((), ("gate",), ("a::b::c",)):
        with pytest.raises(ConfigError, match="names no operator"):
            rule(*operators)


WORKLOAD = """
import torch
from torch import nn
from edgeprune.rules import Call, Flow, rule

@torch.library.custom_op("edgeprune_test_{number}::scale", mutates_args=())
def scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * weight

@rule("edgeprune_test_{number}::scale")
def scale_rule(flow: Flow, call: Call) -> None:
    flow.join(flow.of(call.args["x"])[1], flow.of(call.args["weight"])[0], call)
    flow.set(call.result, flow.of(call.args["x"]))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.s = nn.Linear(4, 16), nn.Linear(16, 2), nn.Parameter(torch.ones(16))
    def forward(self, x):
        return self.b(scale(self.a(x), self.s))

def model(): return Net()
def inputs(): return (torch.randn(2, 4),)
"""


def test_a_run_names_its_rules_in_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a file that is the workload itself: it is loaded once. What was pruned is opened from any folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "gated_workload.py").write_text(WORKLOAD.format(number=1))
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["prune.rules=['gated_workload.py:scale_rule']", "prune.align=1"])
    config = config.model_copy(update={"workload": "gated_workload.py", "output": "small"})
    groups = {row["name"]: row["pinned"] for row in inspect(config)["groups"]}
    assert groups["a"] is None
    plain = config.model_copy(update={"prune": PruneConfig(align=1)})
    assert "not understood" in {row["name"]: row["pinned"] for row in inspect(plain)["groups"]}["a"]
    result = prune(config, None, listen=lambda event: None)
    assert result["check"]["passed"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    reopened = inspect(config.model_copy(update={"workload": str(tmp_path / "small"), "prune": PruneConfig()}))
    assert reopened["network"]["params"] == 4 * 8 + 8 + 8 + 8 * 2 + 2
    del sys.modules["edgeprune_workload_gated_workload"]


def test_unknown_rules_in_the_settings_stop_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "other_workload.py").write_text(WORKLOAD.format(number=2))
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["prune.rules=['other_workload.py:scael_rule']"])
    with pytest.raises(ConfigError, match="did you mean 'scale_rule'"):
        inspect(config.model_copy(update={"workload": "other_workload.py"}))
    del sys.modules["edgeprune_workload_other_workload"]


def test_a_graph_without_anything_free_still_says_why() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    inputs = (torch.randn(2, 3),)
    graph = analyse(model, inputs, rules=load_rules([gate_rule]))
    with pytest.raises(NothingToPrune):
        make_plan(graph, score(model, graph, "l2", inputs=inputs), PruneConfig(), align=1, model=model, inputs=inputs)


def test_a_plan_fits_only_with_the_rules_it_was_made_with() -> None:
    model = built(Gated)
    rules = load_rules([gate_rule])
    graph = analyse(model, INPUTS, rules=rules)
    plan = make_plan(
        graph, score(model, graph, "l1", inputs=INPUTS), PruneConfig(), align=1, model=model, inputs=INPUTS
    )
    assert compact(model, plan, INPUTS, rules=rules).model.scale.shape == (8,)
