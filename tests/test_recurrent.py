"""The split per layer against the fused module, alone and pruned, and LSTMs with equal hidden and projected sizes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from edgeprune.compact import analyse, split_recurrent
from edgeprune.compact.outputs import compact
from edgeprune.compact.recurrent import LayeredRecurrent, LayerStates
from edgeprune.errors import ModelError
from edgeprune.graph import trace
from edgeprune.graph.cost import count_macs, count_params
from tests.recurrent_case import GATES, KINDS, Form
from tests.test_rules_recurrent import FAST, Called, agree, forms, network

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@FAST
@given(forms(), st.booleans())
def test_split_network_equals_the_fused_one(form: Form, directions: bool) -> None:
    model, inputs = network(form)
    split = split_recurrent(model, directions=directions)
    several = form.layers > 1 or (form.bidirectional and directions)
    assert isinstance(split.rnn, LayeredRecurrent) == several
    assert count_params(split) == count_params(model)
    for x in (*inputs, torch.randn(5, 2, 3, dtype=torch.float64)):
        agree(split(x), model(x))


@settings(FAST, max_examples=30)
@given(forms(), st.booleans())
def test_split_module_has_the_fused_signature(form: Form, directions: bool) -> None:
    """Batched and unbatched, with and without states, output and final states, alone as a network of its own."""
    fused = form.layer().double().eval()
    split = split_recurrent(fused, directions=directions)
    count, sizes = form.layers * form.directions, [form.out, form.hidden][: 1 + (form.kind == "lstm")]
    for shape in ((4, 3, form.features), (4, form.features)):
        batch = () if len(shape) == 2 else (shape[0 if form.batch_first else 1],)
        states = tuple(torch.randn(count, *batch, size, dtype=torch.float64) for size in sizes)
        x = torch.randn(shape, dtype=torch.float64)
        for given_states in (None, states if form.kind == "lstm" else states[0]):
            (y, last), (expected, expected_last) = split(x, given_states), fused(x, given_states)
            agree([y], [expected])
            assert isinstance(last, tuple) == isinstance(expected_last, tuple)
            agree(last if isinstance(last, tuple) else [last], list(expected_last) if sizes[1:] else [expected_last])


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_as_the_fused_module_does(kind: str) -> None:
    form = Form(kind=kind, layers=3, bidirectional=True)
    fused = form.layer(dropout=0.4).train()
    split = split_recurrent(fused)
    assert all(module.training for module in split.modules())
    x = torch.randn(5, 3, 4)
    results = []
    for module in (fused, split, split):
        torch.manual_seed(len(results) // 2)
        results.append(module(x)[0])
    torch.testing.assert_close(results[1], results[0])
    assert not torch.allclose(results[2], results[0])
    assert torch.equal(split.eval()(x)[0], split(x)[0])


def output_only(rnn: Any, x: torch.Tensor) -> torch.Tensor:
    return rnn(x)[0]


def zeroed(fused: Any, gone: dict[tuple[int, int], list[int]]) -> Any:
    """Return a copy of a fused module without projection whose removed units, by layer and direction, are zeroed."""
    masked, size = copy.deepcopy(fused), fused.hidden_size
    for (layer, direction), units in gone.items():
        suffix = f"l{layer}" + "_reverse" * direction
        rows = [gate * size + unit for gate in range(GATES[fused.mode.lower()]) for unit in units]
        read = [block * size + unit for block in range(2) for unit in gone.get((layer - 1, block), [])]
        with torch.no_grad():
            for name, tensor in masked.named_parameters():
                if name.endswith(f"_{suffix}"):
                    tensor[rows] = 0
                if name == f"weight_hh_{suffix}":
                    tensor[:, units] = 0
                if name == f"weight_ih_{suffix}":
                    tensor[:, read] = 0
    return masked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", [True, False])
def test_every_layer_gets_a_size_of_its_own(kind: str, directions: bool) -> None:
    torch.manual_seed(0)
    model = Called(Form(kind=kind, layers=3, bidirectional=True, features=6, hidden=8).layer(), output_only, 16)
    model = model.double().eval()
    inputs = (torch.randn(4, 2, 3, dtype=torch.float64),)
    assert [group.size for group in trace(model, inputs).free] == [6, 8]
    split = split_recurrent(model, directions=directions)
    graph = analyse(split, inputs)
    names = [f"rnn.{part}.{n}" for n in range(3) for part in ("layers", "reverse_layers")[: 1 + directions]]
    assert [group.name for group in graph.free] == ["before", *names]
    generator = np.random.default_rng(0)
    keep = {
        name: tuple(sorted(generator.choice(8, size, replace=False).tolist()))
        for name, size in zip(names, (3, 8, 1, 5, 7, 2), strict=False)
    }
    small = compact(split, graph, keep, inputs).model
    assert count_params(small) < count_params(model)
    assert count_macs(small, inputs) < count_macs(model, inputs)
    assert [layer.hidden_size for layer in small.rnn.layers] == [len(keep[f"rnn.layers.{n}"]) for n in range(3)]
    with pytest.raises(ModelError, match="differ in hidden_size"):
        _ = small.rnn.hidden_size
    gone = {}
    for layer in range(3):
        for direction in range(2):
            name = f"rnn.{'reverse_' * (directions and direction)}layers.{layer}"
            gone[layer, direction] = [unit for unit in range(8) if unit not in keep[name]]
    expected = copy.deepcopy(model)
    expected.rnn = zeroed(model.rnn, gone)
    with torch.no_grad():
        for direction in range(2):
            expected.after.weight[:, [8 * direction + unit for unit in gone[2, direction]]] = 0
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    agree([small(x)], [expected(x)])
    small.train()(x).square().sum().backward()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert not torch.equal(small(x), expected(x))


def test_states_of_single_layers_do_not_couple_the_layers() -> None:
    model = Called(nn.LSTM(6, 8, 3), lambda rnn, x: rnn(x)[1][0][-1])
    graph = analyse(split_recurrent(model), (torch.randn(4, 2, 3),))
    assert [group.name for group in graph.free] == ["before", "rnn.layers.0", "rnn.layers.1", "rnn.layers.2"]


def test_states_that_are_used_as_one_tensor_couple_the_layers() -> None:
    model = Called(nn.LSTM(6, 8, 3), lambda rnn, x: rnn(x)[1][1].mean(0))
    graph = analyse(split_recurrent(model), (torch.randn(4, 2, 3),))
    assert [group.name for group in graph.free] == ["before", "rnn.layers.0"]


class Translator(nn.Module):
    """An encoder hands its final states to a decoder; returns the decoder's too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 8, 2, batch_first=True, **settings)
        self.decoder = nn.LSTM(3, 8, 2, batch_first=True, **settings)
        self.out = nn.Linear(8 * (1 + self.encoder.bidirectional), 3)

    def forward(self, x):
        _, states = self.encoder(x)
        y, _ = self.decoder(x.flip(1), states)
        return {"y": self.out(y)}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_states_pass_from_layer_to_layer(bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = Translator(bidirectional=bidirectional).double().eval()
    inputs = (torch.randn(2, 5, 3, dtype=torch.float64),)
    split = split_recurrent(model)
    agree([split(*inputs)["y"]], [model(*inputs)["y"]])
    graph = analyse(split, inputs)
    assert len(graph.free) == 2 * (1 + bidirectional)
    keep = {group.name: tuple(range(2 + number)) for number, group in enumerate(graph.free)}
    small = compact(split, graph, keep, inputs)
    assert small.check.max_rel < 1e-9
    assert small.model.encoder.layers[1].hidden_size == small.model.decoder.layers[1].hidden_size != 8
    mixed = copy.deepcopy(split)
    mixed.decoder = model.decoder  # a fused module takes what a split one hands on
    agree([mixed(*inputs)["y"]], [model(*inputs)["y"]])


def test_what_leaves_the_network_are_tensors() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, 2)

        def forward(self, x):
            y, (h, c) = self.rnn(x)
            return {"y": y, "states": [h, (c, None)]}

    found = split_recurrent(Nested())(torch.randn(5, 2, 3))
    assert type(found["states"][0]) is torch.Tensor
    assert found["states"][1][0].shape == (2, 2, 4)


def test_layer_states_behave_like_a_tensor() -> None:
    pieces = [torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
    states, tensor = LayerStates(pieces), torch.cat(pieces)
    uses: list[Any] = [
        lambda h: h[0], lambda h: h[-1], lambda h: h[1:3], lambda h: h[..., 0], lambda h: h[[0, 3]], lambda h: h[True],
        lambda h: torch.cat([h[-2], h[-1]], 1), lambda h: torch.cat([h, h], -1), lambda h: torch.tanh(h),
        lambda h: h.view(2, 2, 3, 4), lambda h: h.transpose(0, 1).flatten(1), lambda h: h.mean(0), lambda h: h + 1,
        lambda h: 1 - h, lambda h: tensor * h, lambda h: h * tensor, lambda h: -h, lambda h: h @ torch.ones(4),
        lambda h: h > 0, lambda h: abs(h), lambda h: nn.functional.linear(h, torch.ones(2, 4)),
        lambda h: torch.stack(list(h), 1), lambda h: torch.cat([*h], 1), lambda h: h.sum(dim=0, keepdim=True),
    ]  # fmt: skip
    for use in uses:
        torch.testing.assert_close(use(states), use(tensor), rtol=0, atol=0)
    assert (len(states), states.shape, states.dtype, states.device, states.dim()) == (
        4, tensor.shape, tensor.dtype, tensor.device, 3,
    )  # fmt: skip
    with pytest.raises(IndexError):
        states[4]
    with pytest.raises(AttributeError):
        _ = states.no_such_thing
    assert torch.equal(copy.deepcopy(states).stacked(), tensor)


def packed(rnn: Any, x: torch.Tensor) -> torch.Tensor:
    y, last = rnn(pack_padded_sequence(x, [3, 5], batch_first=True, enforce_sorted=False))
    h = last[0] if isinstance(last, tuple) else last
    return pad_packed_sequence(y, batch_first=True)[0].sum(1) + torch.cat([h[0], h[-1]], 1)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_packed_sequences_run_by_layer_but_not_by_direction(make: Any) -> None:
    model = Called(make(6, 8, 2, bidirectional=True, dropout=0.3), packed, 16).double().eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    split = split_recurrent(model, directions=False)
    agree([split(x)], [model(x)])
    assert torch.isfinite(split.train()(x)).all()
    with pytest.raises(ModelError) as caught:
        split_recurrent(model)(x)
    assert "directions=False" in str(caught.value.fix)


class OwnLSTM(nn.LSTM):
    """A user's own layer."""

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_what_cannot_be_split_stays() -> None:
    hooked, computed = nn.LSTM(3, 4, 2), nn.GRU(3, 4, 2)
    hooked.register_forward_hook(lambda module, args, result: result)
    nn.utils.parametrizations.weight_norm(computed, "weight_hh_l0")
    model = nn.ModuleDict({"one": nn.LSTM(3, 4), "own": OwnLSTM(3, 4, 2), "hooked": hooked, "computed": computed})
    split = split_recurrent(model)
    assert [type(module) for module in split.values()] == [type(module) for module in model.values()]
    assert split is not model


def test_sharing_survives() -> None:
    rnn, other = nn.GRU(4, 4, 2), nn.GRU(4, 4, 2)
    other.weight_hh_l1 = rnn.weight_hh_l0
    model = nn.ModuleDict({"a": rnn, "b": rnn, "other": other})
    split: Any = split_recurrent(model)
    assert split["a"] is split["b"]
    assert split["other"].layers[1].weight_hh_l0 is split["a"].layers[0].weight_hh_l0
    assert count_params(split) == count_params(model)
    assert isinstance(model["a"], nn.GRU)
    split["a"].flatten_parameters()
    assert (split["a"].num_layers, split["a"].input_size, split["a"].hidden_size, split["a"].proj_size) == (2, 4, 4, 0)


def test_a_projection_as_wide_as_the_hidden_size_gets_an_idle_unit() -> None:
    """torch tells a projection by its other width, so equal widths cannot run; one unit of zeros changes nothing."""
    form = Form(layers=2, bidirectional=True, hidden=6, projected=3, states="learned", reads_cell=True)
    model, inputs = network(form)
    graph = analyse(model, inputs)
    named = {group.producer: group.name for group in graph.free}
    hidden, projected = named["rnn.weight_hr_l0", 1], named["rnn.weight_hr_l0", 0]
    small = compact(model, graph, {hidden: (0, 2), projected: (1, 2)}, inputs).model
    assert (small.rnn.proj_size, small.rnn.hidden_size) == (2, 2)
    assert small.rnn.weight_hh_l1_reverse.shape == (12, 2)
    assert small.c0.shape[-1] == 2
    assert not small.rnn.weight_hr_l0[:, 2].any()
    sum(output.square().sum() for output in small(*inputs)).backward()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert not small.rnn.weight_hr_l0[:, 2].any()
    again = analyse(small, inputs)
    assert {group.size for group in again.free if group.name.startswith("rnn")} <= {2}
    narrow = compact(model, graph, {hidden: (0,)}, inputs).model
    assert (narrow.rnn.proj_size, narrow.rnn.hidden_size) == (3, 1)


def test_numbers_of_an_lstm_with_an_idle_unit_are_not_taken_for_the_users() -> None:
    """Its input size equals the old projected size here, but it did not change; the user's `size` did."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size = 3
            self.rnn = nn.LSTM(3, 6, proj_size=self.size)
            self.after = nn.Linear(self.size, 2)

        def forward(self, x):
            return self.after(self.rnn(x)[0].reshape(-1, self.size))

    torch.manual_seed(0)
    model, inputs = Cut().double().eval(), (torch.randn(4, 2, 3, dtype=torch.float64),)
    graph = trace(model, inputs)
    named = {group.producer: group.name for group in graph.free}
    keep = {named["rnn.weight_hr_l0", 1]: (0, 2), named["rnn.weight_hr_l0", 0]: (1, 2)}
    small = compact(model, graph, keep, inputs).model
    assert (small.size, small.rnn.input_size, small.rnn.hidden_size, small.rnn.proj_size) == (2, 3, 2, 2)
