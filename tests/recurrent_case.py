"""A network around one recurrent layer, and the same network written out step by step with plain operators.

The written-out one takes masks of hidden units, projected units and input features, zeroes by itself every row and
column that belongs to them, and runs. It owes nothing to edgeprune, nor to torch's recurrent kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
STATES = ("none", "zeros", "learned", "computed")


@dataclass(frozen=True, kw_only=True)
class Form:
    """Everything that shapes a recurrent layer and how it is called.

    `states` is one of STATES, how the initial states are made; `reads_cell` says whether the last cell state is used.
    """

    kind: str = "lstm"
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    projected: int = 0
    hidden: int = 6
    features: int = 4
    states: str = "none"
    reads_cell: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def out(self) -> int:
        return self.projected or self.hidden

    def layer(self, **changes: Any) -> nn.Module:
        settings = {
            "num_layers": self.layers, "bidirectional": self.bidirectional, "batch_first": self.batch_first,
            "bias": self.bias, **changes,
        }  # fmt: skip
        if self.kind == "lstm":
            return nn.LSTM(self.features, self.hidden, proj_size=self.projected, **settings)
        if self.kind == "gru":
            return nn.GRU(self.features, self.hidden, **settings)
        return nn.RNN(self.features, self.hidden, nonlinearity=self.kind.removeprefix("rnn_"), **settings)


class Around(nn.Module):
    """A linear layer, the recurrent layer, and one linear layer on each of its results."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.before = nn.Linear(3, form.features)
        self.rnn = form.layer()
        count = form.layers * form.directions
        if form.states == "learned":
            self.h0 = nn.Parameter(torch.randn(count, 1, form.out))
            self.c0 = nn.Parameter(torch.randn(count, 1, form.hidden)) if form.kind == "lstm" else None
        if form.states == "computed":
            self.to_h = nn.Linear(3, count * form.out)
            self.to_c = nn.Linear(3, count * form.hidden) if form.kind == "lstm" else None
        self.after = nn.Linear(form.directions * form.out, 2)
        self.after_h = nn.Linear(form.out, 2)
        if form.reads_cell:
            self.after_c = nn.Linear(form.hidden, 2)

    def initial(self, x):
        hidden = self.rnn.hidden_size
        n = x.shape[0 if self.form.batch_first else 1]
        sizes = [self.rnn.proj_size or hidden, hidden] if self.form.kind == "lstm" else [hidden]
        count = self.form.layers * self.form.directions
        if self.form.states == "zeros":
            return [x.new_zeros(count, n, size) for size in sizes]
        if self.form.states == "learned":
            return [state.expand(-1, n, -1).contiguous() for state in (self.h0, self.c0) if state is not None]
        first = x[:, 0] if self.form.batch_first else x[0]
        made = [layer(first) for layer in (self.to_h, self.to_c) if layer is not None]
        return [m.view(n, count, size).transpose(0, 1).contiguous() for m, size in zip(made, sizes, strict=True)]

    def forward(self, x):
        states = None if self.form.states == "none" else self.initial(x)
        if states is not None:
            states = tuple(states) if self.form.kind == "lstm" else states[0]
        y, last = self.rnn(self.before(x), states)
        h, c = last if self.form.kind == "lstm" else (last, None)
        result = [self.after(y), self.after_h(h)]
        return [*result, self.after_c(c)] if self.form.reads_cell else result


def written_out(model: Around, x: torch.Tensor, gone: dict[str, list[int]]) -> list[torch.Tensor]:
    """Run the network with every row and column zeroed that belongs to removed units.

    Args:
        gone: Removed positions of "features", "hidden" and "projected"; without a projection the last is unused.
    """
    form = model.form
    w = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    hidden = gone["hidden"]
    out = gone["projected"] if form.projected else hidden
    both = [d * form.out + unit for d in range(form.directions) for unit in out]
    rows = [gate * form.hidden + unit for gate in range(GATES[form.kind]) for unit in hidden]
    w["before.weight"][gone["features"]] = 0
    w["before.bias"][gone["features"]] = 0
    w["after.weight"][:, both] = 0
    w["after_h.weight"][:, out] = 0
    if form.reads_cell:
        w["after_c.weight"][:, hidden] = 0
    for name in [name for name in w if name.startswith("rnn.")]:
        if "weight_hr" in name:
            w[name][out] = 0
            w[name][:, hidden] = 0
            continue
        w[name][rows] = 0
        if "weight_hh" in name:
            w[name][:, out] = 0
        elif "weight_ih" in name:
            w[name][:, gone["features"] if "_l0" in name else both] = 0
    with torch.no_grad():
        given = [] if form.states == "none" else model.initial(x)  # what is removed in them is read by nobody
        h, c = [*given, None, None][:2]
        y = x @ w["before.weight"].T + w["before.bias"]
        y = y.transpose(0, 1) if form.batch_first else y
        y, h, c = _layers(form, w, y, h, c)
        y = y.transpose(0, 1) if form.batch_first else y
        results = [y @ w["after.weight"].T + w["after.bias"], h @ w["after_h.weight"].T + w["after_h.bias"]]
        if form.reads_cell:
            results.append(c @ w["after_c.weight"].T + w["after_c.bias"])
    return results


class Stepwise(nn.Module):
    """A recurrent module of torch run step by step, with removed units zeroed after every step; no weight is touched.

    Args:
        hidden: Which hidden units stay, `out` which positions of the output of each direction.
    """

    def __init__(self, rnn: Any, hidden: torch.Tensor, out: torch.Tensor) -> None:
        super().__init__()
        self.rnn = rnn
        self.hidden, self.out = hidden, out
        self.form = Form(
            kind=rnn.mode.lower(), layers=rnn.num_layers, bidirectional=rnn.bidirectional, projected=rnn.proj_size,
            hidden=rnn.hidden_size,
        )  # fmt: skip

    def forward(self, x, states=None):
        weights = dict(self.named_parameters())
        given = () if states is None else states if self.form.kind == "lstm" else (states,)
        x = x.transpose(0, 1) if self.rnn.batch_first else x
        keeps = self.hidden.to(x.dtype), self.out.to(x.dtype)
        y, h, c = _layers(self.form, weights, x, *[*given, None, None][:2], keeps=keeps)
        y = y.transpose(0, 1) if self.rnn.batch_first else y
        return y, (h, c) if self.form.kind == "lstm" else h


def _layers(
    form: Form, w: dict[str, torch.Tensor], y: Any, h0: Any, c0: Any, keeps: tuple[Any, Any] = (1, 1)
) -> tuple[torch.Tensor, ...]:
    n, last_h, last_c = y.shape[1], [], []
    for layer in range(form.layers):
        found = []
        for direction in range(form.directions):
            suffix = f"l{layer}" + "_reverse" * direction
            index = layer * form.directions + direction
            h = y.new_zeros(n, form.out) if h0 is None else h0[index] * keeps[1]
            c = y.new_zeros(n, form.hidden) if c0 is None else c0[index]
            steps = []
            for x in y.flip(0) if direction else y:
                h, c = _step(form.kind, x, h, c, w, suffix, keeps[0])
                h = h * keeps[1]
                steps.append(h)
            found.append(torch.stack(steps[::-1] if direction else steps))
            last_h.append(h)
            last_c.append(c)
        y = torch.cat(found, -1)
    return y, torch.stack(last_h), torch.stack(last_c)


def _step(
    kind: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, w: dict[str, torch.Tensor], suffix: str, keep: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    a = x @ w[f"rnn.weight_ih_{suffix}"].T + w.get(f"rnn.bias_ih_{suffix}", 0)
    b = h @ w[f"rnn.weight_hh_{suffix}"].T + w.get(f"rnn.bias_hh_{suffix}", 0)
    if kind == "lstm":
        i, f, g, o = (a + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh() * keep
        return (h @ w[f"rnn.weight_hr_{suffix}"].T if f"rnn.weight_hr_{suffix}" in w else h), c
    if kind == "gru":
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        n = (an + (ar + br).sigmoid() * bn).tanh()
        z = (az + bz).sigmoid()
        return (1 - z) * n + z * h, c
    return ((a + b).tanh() if kind == "rnn_tanh" else (a + b).relu()), c
