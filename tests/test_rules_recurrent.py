"""Recurrent layers: labels against the operators, and pruned networks against ones masked and run step by step."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from edgeprune.compact import analyse
from edgeprune.compact.outputs import compact
from edgeprune.errors import TraceError
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.capture import Ref, record
from edgeprune.graph.cost import count_macs, count_params
from edgeprune.graph.flow import Flow
from edgeprune.pruning.budget import remaining_macs
from tests.recurrent_case import KINDS, STATES, Around, Form, written_out

FAST = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@st.composite
def forms(draw: Any) -> Form:
    kind = draw(st.sampled_from(KINDS))
    hidden = draw(st.integers(2, 9))
    return Form(
        kind=kind,
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        projected=draw(st.sampled_from([0, *range(1, hidden)])) if kind == "lstm" else 0,
        hidden=hidden,
        features=draw(st.integers(1, 6)),
        states=draw(st.sampled_from(STATES)),
        reads_cell=kind == "lstm" and draw(st.booleans()),
    )


def network(form: Form, seed: int = 0) -> tuple[Around, tuple[torch.Tensor, ...]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Around(form).double().eval()
        return model, (torch.randn(3, 4, 3, dtype=torch.float64),)


def removed(graph: ChannelGraph, keep: dict[str, tuple[int, ...]], form: Form) -> dict[str, list[int]]:
    """Return the positions of removed units by what they are, read off one weight each."""
    masks = graph.masks(keep)
    hidden = "rnn.weight_hr_l0" if form.projected else "rnn.weight_hh_l0"
    places = {"features": ("before.weight", 0), "hidden": (hidden, 1), "projected": ("rnn.weight_hr_l0", 0)}
    return {kind: np.flatnonzero(~masks[place]).tolist() if place in masks else [] for kind, place in places.items()}


def agree(found: Any, expected: list[torch.Tensor]) -> None:
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-10)


@FAST
@given(forms())
def test_the_written_out_network_is_the_network(form: Form) -> None:
    model, inputs = network(form)
    agree(model(*inputs), written_out(model, *inputs, {"features": [], "hidden": [], "projected": []}))


def test_pruned_networks_equal_masked_ones() -> None:
    shrunk: list[str] = []

    @settings(FAST, max_examples=150)
    @given(forms(), st.data())
    def check(form: Form, data: st.DataObject) -> None:
        model, inputs = network(form, seed=form.hidden)
        graph = analyse(model, inputs)
        assert {group.producer[0].split(".")[0] for group in graph.groups if group.pinned is not None} <= {
            "before", "rnn", "after", "after_h", "after_c", "to_h", "to_c", "h0", "c0",
        }  # fmt: skip
        free = {group.name for group in graph.free for name in group.tensors if name.startswith("rnn.weight_hh")}
        assert free or form.out == 1, "the hidden units are pinned"
        keep = {}
        for group in graph.free:
            units = st.sets(st.integers(0, group.size - 1), min_size=1)
            keep[group.name] = tuple(sorted(data.draw(units)))
        gone = removed(graph, keep, form)
        equal = form.projected - len(gone["projected"]) == form.hidden - len(gone["hidden"])
        small = compact(model, graph, keep, inputs).model
        assert small.rnn.hidden_size == form.hidden - len(gone["hidden"])
        if any(gone.values()) and not equal:
            assert count_params(small) < count_params(model)
            shrunk.append(form.kind)
        for x in (*inputs, torch.randn(5, 2, 3, dtype=torch.float64)):
            agree(small(x), written_out(model, x, gone))
        optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
        outputs = small.train()(*inputs)
        sum(output.square().sum() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        optimiser.step()
        assert not any(torch.equal(old, new) for old, new in zip(outputs, small(*inputs), strict=True))

    check()
    assert set(shrunk) == set(KINDS)


class Revealing(nn.Module):
    """A recurrent layer whose outputs at every position tell which unit they are of."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.rnn = form.layer()
        with torch.no_grad():
            unit = torch.arange(1, form.hidden + 1) / (2.0 * form.hidden)
            for name, tensor in self.rnn.named_parameters():
                tensor.zero_()
                if "weight_ih" in name:
                    tensor[:, 0] = unit.repeat(len(tensor) // form.hidden)
                if "weight_hr" in name:
                    tensor[:, 0] = torch.arange(1, len(tensor) + 1)

    def forward(self, x):
        y, last = self.rnn(x)
        return (y, *last) if self.form.kind == "lstm" else (y, last)


@FAST
@given(forms())
def test_labels_tell_which_positions_carry_which_unit(form: Form) -> None:
    """Weights that depend on the unit alone make equal values where units are equal, within one layer and direction."""
    model, x = Revealing(form).double().eval(), torch.ones(3, 4, form.features, dtype=torch.float64)
    captured = record(model, (x,))
    flow = Flow(captured)
    flow.propagate()
    known = {name: Ref(key, captured.shapes[name]) for key, name in captured.tensors.items()}
    with torch.no_grad():
        results = model(x)
    widths = [
        flow.of(known["rnn.weight_hh_l0"])[1],
        flow.of(known["rnn.weight_hh_l0"])[1],
        flow.of(known["rnn.weight_hr_l0" if form.projected else "rnn.weight_hh_l0"])[1],
    ]
    for ref, value, width in zip(captured.outputs, results, widths, strict=False):
        found = flow.atoms.resolve(flow.of(ref)[-1])
        units = flow.atoms.resolve(width)
        if units is None:
            assert found is None
            continue
        assert found is not None
        number = {int(atom): unit for unit, atom in enumerate(units[0])}
        carried = torch.tensor([number[int(atom)] for atom in found[0]])
        blocks = value.shape[-1] // units.shape[1]
        assert len(found) == 1
        for row in value.reshape(-1, blocks, units.shape[1]):
            for block, numbers in zip(row, carried.reshape(blocks, -1), strict=True):
                assert torch.equal(block.argsort(), numbers.argsort())
                assert len(set(block.tolist())) == len(numbers)
        assert all(label is None for label in map(flow.atoms.resolve, flow.of(ref)[:-1]))


class Called(nn.Module):
    """A linear layer, a recurrent module called in some way, and a linear layer."""

    def __init__(self, rnn: nn.Module, call: Any, width: int = 8) -> None:
        super().__init__()
        self.before = nn.Linear(3, 6)
        self.rnn = rnn
        self.after = nn.Linear(width, 2)
        self.call = call

    def forward(self, x):
        return self.after(self.call(self.rnn, self.before(x)))


def steps(cell: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a cell over (N, T, in) and return its last output."""
    state = None
    for part in x.unbind(1):
        state = cell(part, state)
    return state[0] if isinstance(state, tuple) else state


def packed(rnn: Any, x: torch.Tensor) -> torch.Tensor:
    lengths = torch.arange(x.shape[1], x.shape[1] - len(x), -1)
    y, _ = rnn(pack_padded_sequence(x, lengths, batch_first=True))
    return pad_packed_sequence(y, batch_first=True, padding_value=0.5)[0]


def packed_from_list(rnn: Any, x: torch.Tensor) -> torch.Tensor:
    padded = pad_sequence([x[0], x[1, :2]], batch_first=True)
    _, (h, _) = rnn(pack_padded_sequence(padded, [x.shape[1], 2], batch_first=True))
    return h[-1]


CALLS: dict[str, tuple[Any, Any, int]] = {
    "lstm_cell": (lambda: nn.LSTMCell(6, 8), steps, 8),
    "gru_cell": (lambda: nn.GRUCell(6, 8, bias=False), steps, 8),
    "rnn_cell": (lambda: nn.RNNCell(6, 8), steps, 8),
    "rnn_relu_cell": (lambda: nn.RNNCell(6, 8, nonlinearity="relu", bias=False), steps, 8),
    "one_sequence": (lambda: nn.LSTM(6, 8, 2), lambda rnn, x: rnn(x[0])[0], 8),
    "one_step_of_a_cell": (lambda: nn.GRUCell(6, 8), lambda cell, x: cell(x[0, 0])[None], 8),
    "packed": (lambda: nn.LSTM(6, 8, 2, bidirectional=True), packed, 16),
    "packed_gru": (lambda: nn.GRU(6, 8), packed, 8),
    "packed_from_list": (lambda: nn.LSTM(6, 8), packed_from_list, 8),
    "twice": (lambda: nn.GRU(6, 8), lambda rnn, x: rnn(x, rnn(x.flip(0))[1])[0], 8),
    "last_states_side_by_side": (
        lambda: nn.GRU(6, 8, 2, bidirectional=True), lambda rnn, x: rnn(x)[1].transpose(0, 1).flatten(1), 32,
    ),
    "states_by_layer": (
        lambda: nn.LSTM(6, 8, 2, bidirectional=True),
        lambda rnn, x: rnn(x)[1][0].view(2, 2, x.shape[1], rnn.hidden_size)[-1].sum(0), 8,
    ),
    "last_of_both_directions": (
        lambda: nn.LSTM(6, 8, 2, bidirectional=True), lambda rnn, x: torch.cat([*rnn(x)[1][0][-2:]], 1), 16,
    ),
    "with_residual": (lambda: nn.GRU(6, 6, 2), lambda rnn, x: x + rnn(x)[0], 6),
    "normalised": (lambda: nn.LSTM(6, 8), lambda rnn, x: F.layer_norm(rnn(x)[0], (rnn.hidden_size,)), 8),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CALLS))
def test_ways_to_call_compact_exactly(name: str) -> None:
    make, call, width = CALLS[name]
    torch.manual_seed(0)
    model = Called(make(), call, width).double().eval()
    inputs = (torch.randn(2, 5, 3, dtype=torch.float64),)
    graph = analyse(model, inputs)
    assert {group.size for group in graph.free} == ({6} if name == "with_residual" else {6, 8})
    macs = count_macs(model, inputs)
    for kept in (lambda unit: unit % 3 != 1, lambda unit: unit == 2):
        keep = {group.name: tuple(filter(kept, range(group.size))) for group in graph.free}
        found = compact(model, graph, keep, inputs)
        assert found.check.max_rel < 1e-9
        rnn = found.model.rnn
        assert (rnn.input_size, rnn.hidden_size) == (
            len(keep["before"]), len(keep["before" if name == "with_residual" else "rnn"]),
        )  # fmt: skip
        assert count_params(found.model) < count_params(model)
        left = count_macs(found.model, inputs) / macs
        assert left == pytest.approx(remaining_macs(graph, keep, macs), rel=1e-9)


def test_a_group_is_as_wide_as_the_hidden_size() -> None:
    graph = trace(Called(nn.LSTM(6, 8), lambda rnn, x: rnn(x)[0]), (torch.randn(2, 5, 3),))
    group = next(group for group in graph.free if group.name == "rnn")
    assert (group.size, group.channels) == (8, 8)
    assert 0.5 < graph.macs_share["rnn"] < 1
    assert graph.prunable_share == 1


@pytest.mark.parametrize("batch_first", [True, False])
def test_time_is_pinned_and_the_batch_is_not_tied(batch_first: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.randn(4, 5, 3))
            self.rnn = nn.GRU(3, 6, batch_first=batch_first)

        def forward(self, unused):
            return self.rnn(self.x)[0].sum((1, 2))

    captured = record(Network(), (torch.zeros(1),))
    flow = Flow(captured)
    flow.propagate()
    key = next(key for key, name in captured.tensors.items() if name == "x")
    first, second, features = (flow.atoms.resolve(label) for label in flow.labels[key])
    assert (first is None, second is None) == (not batch_first, batch_first)
    assert features is not None


class Halved(nn.Module):
    def forward(self, weight):
        return weight.sigmoid()


def test_computed_weights_are_pinned_with_a_reason() -> None:
    """A computed weight need not be zero where its parameter is, so the masked network would be another one."""

    def halved(rnn: nn.LSTM, x: torch.Tensor) -> torch.Tensor:
        weights = [weight / 2 for weight in rnn.parameters()]
        state = torch.zeros(1, x.shape[1], 8)
        return torch.lstm(x, (state, state), weights, True, 1, 0.0, False, False, False)[0]

    graph = trace(Called(nn.LSTM(6, 8), halved), (torch.randn(2, 5, 3),))
    assert graph.free == ()
    assert "the weights of lstm are computed" in {group.pinned for group in graph.groups}


def test_parametrized_weights_are_written_down_first() -> None:
    model = Called(nn.LSTM(6, 8), lambda rnn, x: rnn(x)[0])
    nn.utils.parametrize.register_parametrization(model.rnn, "weight_hh_l0", Halved())
    assert "rnn" in {group.name for group in trace(model, (torch.randn(2, 5, 3),)).free}


def test_sequence_lengths_that_are_data_can_be_packed_but_not_read() -> None:
    """How many sequences there are is a shape; how long they are is not."""
    model = Called(
        nn.GRU(6, 8, batch_first=True),
        lambda rnn, x: pad_packed_sequence(
            rnn(pack_padded_sequence(x, torch.full((len(x),), x.shape[1]) + (x[:, 0, 0] > 9), batch_first=True))[0],
            batch_first=True,
        )[0],
    )
    assert "rnn" in {group.name for group in trace(model, (torch.randn(2, 5, 3),)).free}

    def read(rnn: Any, x: torch.Tensor) -> torch.Tensor:
        sequences = pack_padded_sequence(x, torch.full((len(x),), x.shape[1]) + (x[:, 0, 0] > 9), batch_first=True)
        return rnn(x)[0] * int(sequences.batch_sizes[1])

    with pytest.raises(TraceError):
        trace(Called(nn.GRU(6, 8, batch_first=True), read), (torch.randn(2, 5, 3),))


def test_one_unit_is_never_removed_and_the_network_still_runs_without_warnings() -> None:
    form = Form(hidden=1, features=1)
    model, inputs = network(form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {group.name for group in analyse(model, inputs).free} == set()
