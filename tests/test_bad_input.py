"""Networks and inputs that are hard to handle: each comes out right or is refused by name, and stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.compact import Compacted, analyse
from edgeprune.compact import apply as compact
from edgeprune.config import PruneConfig
from edgeprune.errors import EdgePruneError, ModelError, NothingToPrune, TraceError
from edgeprune.graph import trace
from edgeprune.graph.cost import count_params
from edgeprune.graph.enter import enter
from edgeprune.pruning import make_plan, score
from edgeprune.workload import Examples, as_inputs

HERE = __file__


class Net(nn.Module):
    """A network that is one function of its inputs, with the modules and tensors that the function needs."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def net(function: Callable[..., Any], **parts: Any) -> Net:
    """Return a network with three linear layers 6-8-8-3 and more parts."""
    torch.manual_seed(0)
    return Net(function, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3), **parts).eval()


def plain(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.c(F.relu(m.b(F.relu(m.a(x)))))


def x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape or (2, 6), generator=torch.Generator().manual_seed(seed))


def seen(model: nn.Module) -> dict[str, Any]:
    """Return everything of a network that must stay: values bit by bit, identities, hooks, modes, attributes."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {
        "values": {n: (t.dtype, t.device, None if t.is_meta else t.detach().clone()) for n, t in tensors.items()},
        "identities": {n: (id(t), t.requires_grad, id(t.grad)) for n, t in tensors.items()},
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [
            [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for module in model.modules()
        ],
        "attributes": [
            {k: v for k, v in vars(module).items() if not k.startswith("_") and not isinstance(v, torch.Tensor)}
            for module in model.modules()
        ],
    }


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values, again = before.pop("values"), after.pop("values")
    assert before == after
    assert values.keys() == again.keys()
    for name, (dtype, device, value) in values.items():
        assert again[name][:2] == (dtype, device)
        if value is not None:
            assert bits(value) == bits(again[name][2])


def pruned(model: nn.Module, *inputs: torch.Tensor, examples: Any = None) -> Compacted:
    """Plan at a half and apply, checking that the network and its inputs stay as they were."""
    given = examples if examples is not None else inputs
    before, kept = seen(model), copy.deepcopy(given)
    found = as_inputs(given)
    entered = enter(model, found).model
    graph = analyse(entered, found)
    scores = score(entered, graph, "l2", inputs=found)
    plan = make_plan(graph, scores, PruneConfig(ratio=0.5), align=1, model=entered, inputs=found)
    result = compact(model, plan, given, graph)
    assert result.check.passed
    assert count_params(result.model) < count_params(entered)
    assert_same(before, seen(model))
    for mine, theirs in zip(_flat(given), _flat(kept), strict=True):
        assert torch.equal(mine, theirs)
    return result


def _flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in _flat(part)]


def refused(model: Any, *inputs: Any, kind: type[EdgePruneError] = TraceError) -> EdgePruneError:
    """Check that planning is refused by name, with a fix, and that the network stays as it was."""
    before = seen(model) if isinstance(model, nn.Module) else None
    with pytest.raises(kind) as caught:
        ep.plan(model, inputs, align=1)
    assert type(caught.value) is kind
    assert caught.value.fix
    if before is not None:
        assert_same(before, seen(model))
    return caught.value


# 1. Data that decides on the path


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(6, 16), nn.LayerNorm(16)
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        if x.sum() > 40:
            x = x + torch.relu(self.b(self.n(x)))
        return self.c(x)


def branches() -> Branches:
    torch.manual_seed(0)
    return Branches().eval()


def test_one_example_of_a_branch_is_refused_and_the_fix_names_several() -> None:
    error = refused(branches(), x())
    assert "several examples that take every path" in str(error.fix)
    line = Branches.forward.__code__.co_firstlineno + 2
    assert error.where == f"{HERE}:{line}"


def test_several_examples_of_a_branch_tie_channels_and_are_all_verified() -> None:
    model, small_x, large_x = branches(), x(), x() * 20
    result = pruned(model, examples=[(small_x,), (large_x,)])
    assert result.mode == "eager"
    assert result.model.b.weight.shape == (8, 8)  # reached by the second example only
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for one in (small_x, large_x):
            assert result.model(one).shape == masked(one).shape


def test_the_first_example_may_take_either_path() -> None:
    result = pruned(branches(), examples=[(x() * 20,), (x(),)])
    assert result.model.b.weight.shape == (8, 8)


def test_a_branch_that_no_example_takes_is_refused() -> None:
    with pytest.raises(TraceError, match=r"no example reaches n\.weight") as caught:
        ep.plan(branches(), [(x(),), (x(seed=1),)])
    assert "list of tuples" in str(caught.value.fix)


def test_a_size_in_the_path_of_the_second_example_pins() -> None:
    def forward(m, x):
        x = F.relu(m.a(x))
        if x.sum() > 20:
            x = x.view(-1, 8) * 2
        return m.c(F.relu(m.b(x)))

    graph = analyse(net(forward), [(x(),), (x() * 20,)])
    assert [group.name for group in graph.free] == ["b"]
    assert graph.branching


def test_examples_of_one_path_still_allow_recorded_calls() -> None:
    result = pruned(net(lambda m, x: m.c(F.relu(m.b(m.a(x)).view(-1, 8)))), examples=[(x(),), (x(4, 6),)])
    assert result.mode != "eager"


def test_arrays_of_data_in_python_are_refused_with_several_examples_too() -> None:
    model = net(lambda m, x: m.c(torch.from_numpy(F.relu(m.b(m.a(x))).numpy())))
    with pytest.raises(TraceError, match="reads values"):
        trace(model, [(x(),), (x(seed=1),)])


def test_a_list_of_tuples_is_several_examples_and_nothing_else_is() -> None:
    found = as_inputs([(x(),), (x(seed=1),)])
    assert isinstance(found, Examples)
    assert len(found) == 1
    assert torch.equal(found.others[0][0], x(seed=1))
    assert type(as_inputs([(x(),)])) is tuple
    assert type(as_inputs([x(), x()])) is tuple
    with pytest.raises(ModelError, match="a list as input 0"):
        as_inputs(([x(), x()],))


# 2. Writing through views, in place and into given tensors


def _slice_assigned(m, x):
    x = F.relu(m.b(m.a(x))).clone()
    x[:, :4] = x[:, :4] * 2
    return m.c(x)


def _written_through_view(m, x):
    x = m.a(x)
    left = x[:, :4]
    left.relu_()
    return m.c(F.relu(m.b(x)))


def _out_argument(m, x):
    y = F.relu(m.a(x))
    z = torch.empty_like(y)
    torch.mul(y, 2, out=z)
    return m.c(F.relu(m.b(z)))


def _resized(m, x):
    y = torch.empty(0)
    y.resize_(x.shape[0], 8)
    y.copy_(m.a(x))
    return m.c(F.relu(m.b(y)))


def _set(m, x):
    y = torch.empty(0)
    y.set_(m.a(x).clone())
    return m.c(F.relu(m.b(y)))


def _copied_into_a_part(m, x):
    y = torch.zeros(x.shape[0], 8)
    y[:, ::2] = F.relu(m.a(x))[:, ::2]
    return m.c(F.relu(m.b(y)))


def _data_swapped(m, x):
    y = m.a(x)
    y.data = F.relu(y.data)
    return m.c(F.relu(m.b(y)))


def _input_changed(m, x):
    x.mul_(0.5)
    x[:, 0] = 1
    return plain(m, x)


def _transposed_in_place(m, x):
    y = m.a(x)
    y.t_().relu_()
    return m.c(F.relu(m.b(y.t())))


ALIASING = [
    _slice_assigned, _written_through_view, _out_argument, _resized, _set, _copied_into_a_part,
    _input_changed, _transposed_in_place,
]  # fmt: skip


@pytest.mark.parametrize("function", ALIASING, ids=lambda function: function.__name__[1:])
def test_writing_in_place_is_right(function: Callable[..., Any]) -> None:
    result = pruned(net(function), x())
    assert result.check.max_rel < 1e-4


def test_data_behind_the_back_of_torch_is_right_in_the_users_own_module_alone() -> None:
    """The recorded calls do not show what `.data` did; the module itself passes the comparison."""
    found = pruned(net(_data_swapped), x())
    assert found.mode == "eager"
    assert found.check.passed


# 3. Shared parameters


def test_parameters_under_two_names_stay_one() -> None:
    def forward(m, x):
        return m.c(F.relu(m.b(F.relu(m.d(F.relu(m.b(m.a(x))))))))

    model = net(forward, d=nn.Linear(8, 8))
    model.d.weight = model.b.weight
    small = pruned(model, x()).model
    assert small.d.weight is small.b.weight


@pytest.mark.parametrize("literal", [False, True])
def test_a_decoder_that_is_the_transposed_embedding_stays_tied(literal: bool) -> None:
    def forward(m, ids):
        y = F.relu(m.mix(m.embed(ids)))
        if literal:
            y = y.view(-1, 5, 12)
        return F.linear(F.gelu(m.back(y)), m.head.weight)

    torch.manual_seed(0)
    parts = {"embed": nn.Embedding(20, 8), "mix": nn.Linear(8, 12), "back": nn.Linear(12, 8)}
    model = Net(forward, **parts, head=nn.Linear(8, 20, bias=False)).eval()
    model.head.weight = model.embed.weight
    ids = torch.arange(10).reshape(2, 5)
    result = pruned(model, ids)
    tied = [result.model.get_parameter(name) for name in ("head.weight", "embed.weight")]
    assert tied[0] is tied[1]
    assert result.model(ids).shape == (2, 5, 20)
    sizes = sum(p.numel() for p in {id(p): p for p in result.model.parameters()}.values())
    assert sizes == count_params(result.model)


def test_a_parameter_in_two_roles_is_cut_for_both() -> None:
    def forward(m, x):
        y = F.relu(m.a(x))
        return m.c(F.relu(F.linear(y, m.b.weight) + F.linear(y, m.b.weight.t())))

    pruned(net(forward), x())


# 4. What forward itself makes


class Lazy(nn.Module):
    """Makes a buffer, a plain attribute and a module in its first forward."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what = nn.Linear(6, 8), nn.Linear(8, 3), what

    def forward(self, x):
        y = F.relu(self.a(x))
        if self.what == "buffer" and not hasattr(self, "table"):
            self.register_buffer("table", torch.linspace(0.5, 1, x.shape[1]))
        if self.what == "attribute" and not hasattr(self, "table"):
            self.table = torch.linspace(0.5, 1, x.shape[1])
        if self.what == "wide" and not hasattr(self, "table"):
            self.register_buffer("table", torch.full((8,), 0.5))
        if self.what == "module" and not hasattr(self, "late"):
            self.late = nn.Linear(8, 8)
            nn.init.eye_(self.late.weight)
            nn.init.zeros_(self.late.bias)
        if self.what == "module":
            return self.b(self.late(y))
        if self.what == "wide":
            return self.b(y * self.table)
        return self.b(F.relu(self.a(x * self.table)))


@pytest.mark.parametrize("what", ["buffer", "attribute", "wide"])
def test_tables_made_in_forward_are_followed(what: str) -> None:
    pruned(Lazy(what).eval(), x())


def test_a_module_made_in_forward_keeps_what_it_reads() -> None:
    with pytest.raises(NothingToPrune) as caught:
        pruned(Lazy("module").eval(), x())
    assert "linear ties it to something of fixed size" in str(caught.value.fix)


# 5. Types and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_other_types_are_pruned_and_keep_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.LayerNorm([16, 4, 4])]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 3)).to(dtype).eval()
    small = pruned(model, x(2, 3, 8, 8).to(dtype)).model
    assert {tensor.dtype for tensor in small.parameters()} == {dtype}


def test_mixed_types_inside_of_forward() -> None:
    model = net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)).bfloat16())).float()))
    model.b.bfloat16()
    pruned(model, x())


def test_complex_parameters() -> None:
    model = net(lambda m, x: m.c((F.relu(m.b(m.a(x))) * m.turn).abs()), turn=None)
    model.turn = nn.Parameter(torch.randn(8, dtype=torch.complex64))
    pruned(model, x())


def test_whole_number_buffers() -> None:
    model = net(lambda m, x: m.c(F.relu(m.b(m.a(x))) * (m.levels.float() / 10)[None]))
    model.register_buffer("levels", torch.arange(8, dtype=torch.int8))
    model.register_buffer("count", torch.tensor(3))
    assert pruned(model, x()).model.levels.dtype == torch.int8


def test_a_network_on_the_meta_device_is_planned_by_shape_and_not_applied() -> None:
    with torch.device("meta"):
        model = Net(plain, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)).eval()
    for inputs in ((x(),), (x().to("meta"),)):
        assert [group.name for group in trace(model, inputs).free] == ["a", "b"]
    assert "no weights" in refused(model, x(), kind=ModelError).message
    plan = ep.plan(net(plain), (x(),), align=1)
    with pytest.raises(ModelError, match=r"a\.weight is on the meta device"):
        ep.apply(model, plan, (x(),))


def test_a_network_with_half_of_its_weights_is_refused() -> None:
    model = net(plain)
    model.b.to("meta")
    assert "b.weight is on the meta device" in refused(model, x(), kind=ModelError).message
    with pytest.raises(ModelError, match="and has no values"):
        trace(model, (x(),))
