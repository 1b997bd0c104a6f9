"""Recurrent modules in another form: one call per layer instead of a fused one, and LSTMs with equal sizes.

A fused LSTM, GRU or RNN of several layers has one hidden size, so pruning must take the same units out of all its
layers. `split_recurrent` replaces it by one call per layer and direction, with the same weights and results. The final
states are stacked only where somebody uses them as one tensor, as stacking asks for equal sizes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelError
from edgeprune.graph.structure import copy_model

# Blocks of rows in a weight, one per gate, by the mode of the module.
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def split_recurrent(model: nn.Module, *, directions: bool = True) -> nn.Module:
    """Return a copy of a network whose recurrent modules run one call per layer: each layer can be pruned by itself.

    Modules of one layer stay, and so do subclasses of torch's modules, modules with hooks and modules whose weights are
    computed. Outside of the network, final states are tensors as before; inside they behave like tensors.

    Args:
        directions: Also run the two directions of a layer apart. Packed sequences need False.

    Raises:
        ModelError: Something in the network cannot be copied.
    """
    copied = copy_model(model)
    found: dict[int, nn.Module] = {}
    for module in copied.modules():
        if _can_be_split(module, directions):
            found[id(module)] = LayeredRecurrent(module, directions)
    if not found:
        return copied
    for module in list(copied.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in found:
                module._modules[name] = found[id(child)]
    copied = found.get(id(copied), copied)
    copied.register_forward_hook(_stack_states)
    return copied


def _can_be_split(module: Any, directions: bool) -> bool:
    if type(module) not in (nn.LSTM, nn.GRU, nn.RNN) or module._forward_hooks or module._forward_pre_hooks:
        return False
    own = dict(module.named_parameters(recurse=False))
    several = module.num_layers > 1 or (directions and module.bidirectional)
    return bool(several) and list(own) == module._flat_weights_names


def _stack_states(_module: nn.Module, _args: Any, result: Any) -> Any:
    """Forward hook: what leaves the network are tensors."""
    return pytree.tree_map_only(LayerStates, LayerStates.stacked, result)


class LayeredRecurrent(nn.Module):
    """A multi-layer LSTM, GRU or RNN as one call per layer, called like the fused module.

    `layers` are the layers in order, and `reverse_layers` those that run from the end to the start, where directions
    are apart; each is a torch module of one layer. The parameters are those of the fused module, not copies.
    """

    def __init__(self, fused: Any, directions: bool) -> None:
        super().__init__()
        self.batch_first: bool = fused.batch_first
        self.bidirectional: bool = fused.bidirectional
        self.dropout: float = fused.dropout
        self.mode: str = fused.mode
        ahead = ("", "_reverse") if fused.bidirectional and not directions else ("",)
        numbers = range(fused.num_layers)
        self.layers = nn.ModuleList([_one_layer(fused, number, ahead) for number in numbers])
        back = numbers if fused.bidirectional and directions else ()
        self.reverse_layers = nn.ModuleList([_one_layer(fused, number, ("_reverse",)) for number in back])
        self.train(fused.training)

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def input_size(self) -> int:
        """The number of features that the first layer reads."""
        return int(self.layers[0].input_size)  # type: ignore[arg-type]

    @property
    def hidden_size(self) -> int:
        """The hidden size of all layers.

        Raises:
            ModelError: They differ.
        """
        return self._same("hidden_size")

    @property
    def proj_size(self) -> int:
        """The projected size of all layers, 0 without a projection.

        Raises:
            ModelError: They differ.
        """
        return self._same("proj_size")

    def flatten_parameters(self) -> None:
        """Let every layer lay its weights out for faster kernels, as the fused module's method does."""
        for layer in [*self.layers, *self.reverse_layers]:
            layer.flatten_parameters()

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Return the output and the final states of all layers.

        Args:
            input: (T, N, in), (N, T, in) when batch_first, (T, in), or a packed sequence.
            hx: Initial states as the fused module takes them, (layers * directions, N, width) each.

        Raises:
            ModelError: The sequence is packed and the directions are apart.
        """
        packed = isinstance(input, PackedSequence)
        if packed and self.reverse_layers:
            raise ModelError(
                "packed sequences cannot run through directions that are apart: split with directions=False",
                fix="split_recurrent(model, directions=False)",
            )
        time = 1 if self.batch_first and not packed and input.dim() == 3 else 0
        given = None if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        finals: list[tuple[torch.Tensor, ...]] = []
        for number, layer in enumerate(self.layers):
            if number and self.dropout:
                input = _dropped(input, self.dropout, self.training)
            results = [self._run(layer, input, given, finals)]
            if self.reverse_layers:
                turned = self._run(self.reverse_layers[number], input.flip(time), given, finals)
                results.append(turned.flip(time))
            input = results[0] if len(results) == 1 else torch.cat(results, -1)
        states = tuple(LayerStates(pieces) for pieces in zip(*finals, strict=True))
        return input, states if self.mode == "LSTM" else states[0]

    def _run(self, layer: Any, x: Any, given: tuple[Any, ...] | None, finals: list[tuple[torch.Tensor, ...]]) -> Any:
        """Run one layer on its share of the given states and keep its final states."""
        width = 2 if layer.bidirectional else 1
        own = None
        if given is not None:
            own = tuple(_piece(state, len(finals) * width, width) for state in given)
        y, last = layer(x, own if own is None or self.mode == "LSTM" else own[0])
        finals.append(tuple(last) if self.mode == "LSTM" else (last,))
        return y

    def _same(self, name: str) -> int:
        sizes = {int(getattr(layer, name)) for layer in [*self.layers, *self.reverse_layers]}
        if len(sizes) > 1:
            raise ModelError(
                f"the layers differ in {name}: {sorted(sizes)}", fix="ask the layers: module.layers[0].hidden_size"
            )
        return sizes.pop()


class LayerStates:
    """The final states of layers of different sizes: like a tensor (layers * directions, N, width), stacked when used.

    A single layer's state (`states[-1]`) is taken without stacking, and so is a layer's share of initial states.
    """

    def __init__(self, pieces: Sequence[torch.Tensor]) -> None:
        self.pieces = tuple(pieces)

    def stacked(self) -> torch.Tensor:
        """Return one tensor; all layers must have the same width."""
        return torch.cat(self.pieces)

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (state for piece in self.pieces for state in piece)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if type(index) is not int or not -len(self) <= index < len(self):
            return self.stacked()[index]
        each = len(self.pieces[0])
        return self.pieces[index % len(self) // each][index % each]

    def __getattr__(self, name: str) -> Any:
        if name == "pieces" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.pieces[0] if name in ("dtype", "device") else self.stacked(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let torch's functions see the stacked tensor."""
        args, kwargs = pytree.tree_map_only(cls, cls.stacked, (args, kwargs or {}))
        return func(*args, **kwargs)


def _stacked_first(name: str) -> Callable[..., Any]:
    def operator(self: LayerStates, *others: Any) -> Any:
        return getattr(self.stacked(), name)(*others)

    operator.__name__ = name
    return operator


# Python looks operators up on the type, where `__getattr__` does not help.
for _name in ("add", "sub", "mul", "truediv", "matmul", "pow", "lt", "le", "gt", "ge", "eq", "ne", "neg", "abs"):
    setattr(LayerStates, f"__{_name}__", _stacked_first(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "matmul"):
    setattr(LayerStates, f"__r{_name}__", _stacked_first(f"__r{_name}__"))


def _one_layer(fused: Any, number: int, directions: tuple[str, ...]) -> nn.Module:
    """Return a module of one layer that holds the fused module's parameters of that layer."""
    first = getattr(fused, f"weight_ih_l{number}{directions[0]}")
    settings: dict[str, Any] = {
        "bias": fused.bias,
        "batch_first": fused.batch_first,
        "bidirectional": len(directions) > 1,
        "device": "meta",  # its own parameters are replaced at once
    }
    if fused.mode.startswith("RNN"):
        settings["nonlinearity"] = fused.nonlinearity
    if fused.proj_size:
        settings["proj_size"] = fused.proj_size
    # torch refuses to make a layer whose projection is not smaller, though it runs one that became so.
    layer = type(fused)(first.shape[1], max(fused.hidden_size, fused.proj_size + 1), **settings)
    layer.hidden_size = fused.hidden_size
    for own in layer._flat_weights_names:
        kind, _, direction = own.partition("_l0")
        setattr(layer, own, getattr(fused, f"{kind}_l{number}{direction or directions[0]}"))
    layer.flatten_parameters()
    return layer  # type: ignore[no-any-return]


def _dropped(x: Any, share: float, training: bool) -> Any:
    if isinstance(x, PackedSequence):
        return x._replace(data=functional.dropout(x.data, share, training))
    return functional.dropout(x, share, training)


def _piece(states: Any, start: int, width: int) -> torch.Tensor:
    """Return the states of one layer, (width, N, own size)."""
    if isinstance(states, LayerStates) and len(states.pieces[0]) == width:
        return states.pieces[start // width]
    if isinstance(states, LayerStates):
        states = states.stacked()
    return states.narrow(0, start, width)  # type: ignore[no-any-return]


class LSTMWithIdleUnit(nn.LSTM):
    """An LSTM with one hidden unit of zeros that its callers do not see.

    torch tells a projection by its width: where as many hidden units as projected ones are left, it would take the
    layer for one without a projection. The idle unit makes the widths differ and changes no result.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return what an LSTM returns; cell states come and go without the idle unit."""
        if hx is not None:
            hx = (hx[0], functional.pad(hx[1], (0, 1)))
        with self._idle_unit_counted():
            output, (h, c) = super().forward(input, hx)
        return output, (h, c[..., :-1])

    def flatten_parameters(self) -> None:
        """Lay the weights out for faster kernels, those of the idle unit too."""
        with self._idle_unit_counted():
            super().flatten_parameters()

    @contextmanager
    def _idle_unit_counted(self) -> Iterator[None]:
        """Let torch see the size of the weights; everybody else sees `hidden_size` without the idle unit."""
        self.hidden_size += 1
        try:
            yield
        finally:
            self.hidden_size -= 1


def add_idle_unit_(module: Any) -> None:
    """Give an LSTM that has as many hidden units as projected ones an idle unit, in place."""
    for name in module._flat_weights_names:
        old = getattr(module, name)
        if name.startswith("weight_hr"):
            value = functional.pad(old.detach(), (0, 1))
        else:
            blocks = old.detach().unflatten(0, (GATES[module.mode], -1))
            value = torch.cat([blocks, torch.zeros_like(blocks[:, :1])], 1).flatten(0, 1)
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
    if type(module) is nn.LSTM:
        module.__class__ = LSTMWithIdleUnit
