"""Recurrent layers: hidden units tie the rows of all gates, the columns of the recurrent weights and the states.

One fused call has one hidden size (and one projected size), so the units of all its layers and directions go together
position by position. A removed unit may hold something that is not zero (a state that was given decays, it does not
vanish), but it is read only through columns that went with it: the smaller network equals the zero-masked one exactly,
as long as the weights are parameters. Computed weights need not be zero where their parameters are, so they pin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, refs, rule
from edgeprune.graph.labels import Label

# Blocks of rows in a weight, one per gate, by operator.
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """The weights of one layer in one direction: (gates * H, in), (gates * H, O), biases (gates * H,), (O, H)."""

    ih: Ref
    hh: Ref
    biases: tuple[Ref, ...]
    hr: Ref | None

    @property
    def tensors(self) -> tuple[Ref, ...]:
        return (self.ih, self.hh, *self.biases, *([] if self.hr is None else [self.hr]))


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(flow: Flow, call: Call) -> None:
    """A fused call on (T, N, in), (N, T, in) when batch_first, or packed (steps, in)."""
    packed = "data" in call.args
    x = call.args["data" if packed else "input"]
    directions = 2 if call.args["bidirectional"] else 1
    states = refs(call.args["hx"])
    layers = _layers(call, states)
    if _computed(flow, call, [ref for layer in layers for ref in layer.tensors]):
        return
    labels = list(flow.of(x))
    batch: Label = None
    if packed:
        flow.pin(labels[0], call, "steps of packed sequences")
        labels[0] = None
    else:
        time = 1 if call.args["batch_first"] else 0
        flow.pin(labels[time], call, f"torch.{call.name} runs over this dimension")
        labels[time], batch = None, labels[1 - time]
    hidden, out = _widths(flow, layers[0])
    both = flow.atoms.concatenate([out] * directions, [layers[0].hh.shape[1]] * directions)
    for number, layer in enumerate(layers):
        _tie(flow, call, layer, labels[-1] if number < directions else both, hidden, out)
        _count(flow, layer, int(np.prod(x.shape[:-1])), labels[:-1])
    _tie_states(flow, call, states, batch, hidden, out)
    output, *final = refs(call.result)
    flow.set(output, [*labels[:-1], both])
    for state, label in zip(final, (out, hidden), strict=False):
        flow.set(state, [None, batch, label])


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(flow: Flow, call: Call) -> None:
    """One step on (N, in) with states (N, H)."""
    x, states = call.args["input"], refs(call.args["hx"])
    biases = tuple(call.args[name] for name in ("b_ih", "b_hh") if isinstance(call.args.get(name), Ref))
    layer = _Layer(ih=call.args["w_ih"], hh=call.args["w_hh"], biases=biases, hr=None)
    if _computed(flow, call, layer.tensors):
        return
    labels = flow.of(x)
    hidden, out = _widths(flow, layer)
    _tie(flow, call, layer, labels[-1], hidden, out)
    _count(flow, layer, int(np.prod(x.shape[:-1])), labels[:-1])
    for state in states:
        for label, own in zip([*labels[:-1], hidden], flow.of(state), strict=True):
            flow.join(label, own, call)
    for state in refs(call.result):
        flow.set(state, [*labels[:-1], hidden])


@rule("pad_sequence")
def pad_sequence(flow: Flow, call: Call) -> None:
    """Sequences (steps, *) of any lengths to one (T, N, *) or (N, T, *): their features are one."""
    sequences = refs(call.args["sequences"])
    first = flow.of(sequences[0])
    for ref in sequences:
        flow.pin(flow.of(ref)[0], call, "sequences are padded along it")
        for mine, other in zip(first[1:], flow.of(ref)[1:], strict=True):
            flow.join(mine, other, call)
    flow.set(call.result, [None, None, *first[1:]])


@rule("_pack_padded_sequence")
def pack(flow: Flow, call: Call) -> None:
    """Steps of all sequences one after the other, (T, N, *) or (N, T, *) to (steps, *)."""
    labels = flow.of(call.args["input"])
    for label in [*labels[:2], *flow.of(call.args["lengths"])]:
        flow.pin(label, call, "sequences are packed by their lengths")
    data, batch_sizes = refs(call.result)
    flow.set(data, [None, *labels[2:]])
    flow.set(batch_sizes, [None])


@rule("_pad_packed_sequence")
def unpack(flow: Flow, call: Call) -> None:
    """The way back: (steps, *) to (T, N, *) or (N, T, *); what is filled in is one value everywhere."""
    labels = flow.of(call.args["data"])
    flow.pin(labels[0], call, "steps of packed sequences")
    padded, lengths = refs(call.result)
    flow.set(padded, [None, None, *labels[1:]])
    flow.set(lengths, [None])


def _layers(call: Call, states: Sequence[Ref]) -> list[_Layer]:
    """Take the flat list of weights apart, in torch's order: layer by layer, forward before reverse."""
    weights = refs(call.args["params"])
    projected = call.name == "lstm" and states[0].shape[-1] != states[1].shape[-1]
    each = 2 + 2 * bool(call.args["has_biases"]) + projected
    count = int(call.args["num_layers"]) * (2 if call.args["bidirectional"] else 1)
    if len(weights) != count * each:
        raise ValueError(f"{len(weights)} weights for {count} layers of {each}")
    layers = []
    for start in range(0, len(weights), each):
        ih, hh, *rest = weights[start : start + each]
        hr = rest.pop() if projected else None
        layers.append(_Layer(ih=ih, hh=hh, biases=tuple(rest), hr=hr))
    return layers


def _computed(flow: Flow, call: Call, weights: Sequence[Ref]) -> bool:
    """Pin everything when a weight is not a parameter of its own; return whether that was so."""
    if all(flow.parameter(ref) is not None for ref in weights):
        return False
    for ref in refs(call.args) + refs(call.result):
        for label in flow.of(ref):
            flow.pin(label, call, f"the weights of {call.name} are computed", fix="store the computed weights instead")
    return True


def _widths(flow: Flow, layer: _Layer) -> tuple[Label, Label]:
    """Return the labels of the hidden units and of what leaves the layer: the same without a projection."""
    out = flow.of(layer.hh)[1]
    return (out if layer.hr is None else flow.of(layer.hr)[1]), out


def _tie(flow: Flow, call: Call, layer: _Layer, read: Label, hidden: Label, out: Label) -> None:
    """Join the weights of one layer with what it reads, with its hidden units and with what it puts out."""
    gates = _GATES[call.name.removesuffix("_cell")]
    rows = None if hidden is None else np.tile(hidden, (1, gates))
    flow.join(read, flow.of(layer.ih)[1], call)
    for ref in (layer.ih, layer.hh, *layer.biases):
        flow.join(rows, flow.of(ref)[0], call)
    flow.join(out, flow.of(layer.hh)[1], call)
    if layer.hr is not None:
        flow.join(out, flow.of(layer.hr)[0], call)
        flow.join(hidden, flow.of(layer.hr)[1], call)
        flow.produced(layer.hr, 1)
        flow.produced(layer.hr, 0)
    else:  # not the rows of the gates: a group is as wide as it has hidden units
        flow.produced(layer.hh, 1)


def _tie_states(flow: Flow, call: Call, states: Sequence[Ref], batch: Label, hidden: Label, out: Label) -> None:
    """Join initial states of shape (layers * directions, N, width): all layers share one width."""
    for state, width in zip(states, (out, hidden), strict=False):
        number, across, own = flow.of(state)
        flow.pin(number, call, "layers and directions of a state")
        flow.join(batch, across, call)
        flow.join(width, own, call)


def _count(flow: Flow, layer: _Layer, positions: int, leading: Sequence[Label]) -> None:
    for ref in (layer.ih, layer.hh, *([] if layer.hr is None else [layer.hr])):
        macs = int(np.prod(ref.shape)) * positions
        flow.contracted(flow.parameter(ref), macs, [*flow.of(ref), *leading])
