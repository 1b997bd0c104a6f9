"""The graph output: a network, or one of its modules, as the list of calls that it made, with its numbers rewritten.

Where the user's code holds sizes that no repair finds, the recorded calls still say what happens to every tensor. They
are written out as a module that trains, switches between training and evaluation and takes any batch size, with the
user's parameters under their names. What Python did beside the calls (hooks, branches, dropped paths) is not in it.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from edgeprune.compact.replay import Step, as_given, first_float, makes_floats
from edgeprune.errors import ModelError
from edgeprune.graph.capture import Record, Ref, Span
from edgeprune.graph.flow import refs
from edgeprune.graph.structure import output_tensors

# Arguments that say whether a call trains. Where evaluation said no, the module's own mode decides.
_MODES = {
    "batch_norm": "training",
    "rrelu": "training",
    "dropout": "train",
    "feature_dropout": "train",
    "alpha_dropout": "train",
    "feature_alpha_dropout": "train",
    "lstm": "train",
    "gru": "train",
    "rnn_tanh": "train",
    "rnn_relu": "train",
}


class Uncapturable(ModelError):
    """The calls of a module do not say all that it does."""


class _Code:
    """Compiled calls with the structure of their arguments and results: shared by all copies of a module.

    They hold no tensors. `names` are the tensors that the calls take after the inputs, `fixed` what the arguments that
    are no tensors were, by position among the leaves.
    """

    def __init__(
        self, graph: fx.Graph, names: tuple[str, ...], span: Span, fixed: Mapping[int, Any], origin: str
    ) -> None:
        self.run = fx.GraphModule(nn.Module(), graph)
        self.names = names
        self.args_spec, self.result_spec = span.args_spec, span.result_spec
        self.fixed = dict(fixed)
        self.origin = origin

    def __deepcopy__(self, memo: dict[int, Any]) -> _Code:
        return self


class Captured(nn.Module):
    """A module that makes recorded calls on its own tensors.

    Args:
        holder: Its parameters and buffers, by the names that the user's module gave them.
    """

    def __init__(self, holder: nn.Module, code: _Code) -> None:
        super().__init__()
        for name, module in holder.named_children():
            self.add_module(name, module)
        for name, parameter in holder._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in holder._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in holder._non_persistent_buffers_set)
        self._recorded_layer = vars(holder)["_recorded_layer"]
        self._code = code

    @property
    def code(self) -> str:
        """The calls as Python."""
        return str(self._code.run.code)

    def extra_repr(self) -> str:
        return f"calls recorded from {self._code.origin}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        code = self._code
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != code.args_spec:
            raise TypeError(f"{code.origin} was captured with other arguments; call it as before")
        for position, value in code.fixed.items():
            if leaves[position] != value:
                raise ValueError(f"{code.origin} was captured with {value!r} as an argument, not {leaves[position]!r}")
        tensors = [leaf for position, leaf in enumerate(leaves) if position not in code.fixed]
        own = [reduce(getattr, name.split("."), self) for name in code.names]
        return code.result_spec.unflatten(code.run(self.training, *tensors, *own))


def capture(
    small: nn.Module, record: Record, steps: Sequence[Step], span: Span, other: Record | None, origin: str
) -> Captured:
    """Return a module in evaluation mode that makes the calls of one span.

    Args:
        small: The module of that span with its tensors cut; they are taken over, not copied.
        steps: Operator and arguments of every call of the record, resized.
        other: The same forward at another batch size; without it, or where its numbers differ in a way that is not
            understood, the module keeps the batch size of the record.
        origin: The name of the user's class.

    Raises:
        Uncapturable: The module uses tensors from outside or returns something that cannot be put together again.
    """
    try:
        return _captured(small, record, steps, span, other, origin)
    except Uncapturable:
        if other is None:
            raise
        return _captured(small, record, steps, span, None, origin)


def _captured(
    small: nn.Module, record: Record, steps: Sequence[Step], span: Span, other: Record | None, origin: str
) -> Captured:
    prefix = f"{span.path}." if span.path else ""
    own = {
        key: alias.removeprefix(prefix)
        for key, first in record.tensors.items()
        for alias in record.names[first]
        if alias.startswith(prefix)
    }
    builder = _Builder(record, steps, span, own, _scale(span, _same_span(record, span, other)), other)
    graph = builder.build()
    holder = _holder(small)
    for name, tensor in builder.constants.items():
        holder.register_buffer(name, tensor, persistent=False)
    fixed = {n: leaf for n, leaf in enumerate(span.args) if not isinstance(leaf, Ref)}
    if any(
        not isinstance(value, int | float | str | bool | None | torch.dtype | torch.device) for value in fixed.values()
    ):
        raise Uncapturable(f"{origin} takes objects as arguments")
    return _signed(small)(holder, _Code(graph, tuple(builder.names), span, fixed, origin)).eval()


def _signed(module: nn.Module) -> type[Captured]:
    """Return the class of captured modules with the signature of a module's forward: exporters name inputs after it."""

    def forward(self: Captured, *args: Any, **kwargs: Any) -> Any:
        return Captured.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(type(module).forward)  # type: ignore[attr-defined]
    return type("Captured", (Captured,), {"forward": forward})


def _holder(module: nn.Module) -> nn.Module:
    """Return bare modules that hold the same parameters and buffers under the same names."""
    bare: dict[int, nn.Module] = {}

    def build(source: nn.Module) -> nn.Module:
        if id(source) in bare:
            return bare[id(source)]
        result = bare[id(source)] = nn.Module()
        # what kind of layer they are of: the pruning of single weights asks for it
        result._recorded_layer = vars(source).get("_recorded_layer", (type(source), vars(source).get("groups", 1)))
        for name, parameter in source._parameters.items():
            result.register_parameter(name, parameter)
        for name, buffer in source._buffers.items():
            result.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
        for name, child in source._modules.items():
            if child is not None and (any(True for _ in child.parameters()) or any(True for _ in child.buffers())):
                result.add_module(name, build(child))
        return result

    return build(module)


class _Scale:
    """One size of an input that differs between two recordings; numbers that differ too are computed from it."""

    def __init__(self, position: int, axis: int, first: int, second: int) -> None:
        self.position, self.axis = position, axis
        self.first, self.second = first, second


def _same_span(record: Record, span: Span, other: Record | None) -> Span | None:
    return None if other is None else other.spans[record.spans.index(span)]


def _scale(span: Span, other: Span | None) -> _Scale | None:
    if other is None:
        return None
    for position, (mine, theirs) in enumerate(zip(span.args, other.args, strict=True)):
        if isinstance(mine, Ref):
            for axis, (first, second) in enumerate(zip(mine.shape, theirs.shape, strict=True)):
                if first != second:
                    return _Scale(position, axis, first, second)
    return None


class _Builder:
    """Writes calls as a graph whose inputs are the training flag, the span's tensors, then its own tensors."""

    def __init__(
        self,
        record: Record,
        steps: Sequence[Step],
        span: Span,
        own: Mapping[int, str],
        scale: _Scale | None,
        other: Record | None,
    ) -> None:
        self.record, self.steps, self.span, self.own = record, steps, span, own
        self.scale, self.other = scale, other
        self.graph = fx.Graph()
        self.names: list[str] = []
        self.constants: dict[str, torch.Tensor] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._size: fx.Node | None = None
        self._last_input: fx.Node | None = None

    def build(self) -> fx.Graph:
        training = self._last_input = self.graph.placeholder("training")
        for position, leaf in enumerate(self.span.args):
            if isinstance(leaf, Ref):
                self._last_input = self._nodes[leaf.id] = self.graph.placeholder(f"input{position}")
        if self.scale is not None:
            size = torch.ops.aten.sym_size.int
            source = self._nodes[self.span.args[self.scale.position].id]
            self._size = self.graph.call_function(size, (source, self.scale.axis))
        for index in range(self.span.start, self.span.end):
            self._call(index, training)
        self._output()
        self.graph.eliminate_dead_code(lambda node: bool(node.op != "get_attr" and node.is_impure()))
        return self.graph

    def _output(self) -> None:
        found = {leaf.id for leaf in self.span.result if isinstance(leaf, Ref)}
        hidden = [leaf for leaf in self.span.result if not isinstance(leaf, Ref) and output_tensors(leaf)]
        if hidden or not found:
            what = type(hidden[0]).__name__ if hidden else "nothing"
            raise Uncapturable(f"it returns {what}, in which tensors cannot be replaced")
        self.graph.output(tuple(self._node(leaf) if isinstance(leaf, Ref) else leaf for leaf in self.span.result))

    def _call(self, index: int, training: fx.Node) -> None:
        call = self.record.calls[index]
        results = refs(call.result)
        if call.name == "detach" and not call.depends:  # torch's own, for the recorder
            self._nodes[results[0].id] = self._node(refs(call.args)[0])
            return
        func, arguments = self.steps[index]
        theirs = self.other.calls[index].args if self.other is not None else call.args
        values = {
            name: self._value(value, call.args.get(name, value), theirs.get(name, value))
            for name, value in arguments.items()
        }
        if makes_floats(call):
            values.update(self._placed(arguments))
        mode = _MODES.get(call.name)
        if mode is not None and values.get(mode) is False:
            values[mode] = training
        positional, named = as_given(func, values)
        node = self.graph.call_function(func, tuple(positional), named)
        if isinstance(call.result, Ref):
            self._nodes[call.result.id] = node
        elif isinstance(call.result, list):
            for position, ref in enumerate(call.result):
                if isinstance(ref, Ref):
                    self._nodes[ref.id] = self.graph.call_function(operator.getitem, (node, position))

    def _placed(self, arguments: Mapping[str, Any]) -> dict[str, fx.Node]:
        """Return the type and device that a factory was given as those of the first floating tensor at hand."""
        lead = first_float([*self.own, *(leaf.id for leaf in self.span.args if isinstance(leaf, Ref))], self.record)
        if lead is None:
            return {}
        found = {}
        dtype = self.record.dtypes[lead]
        for name in ("dtype", "device"):
            if arguments.get(name) is not None and (name == "device" or arguments[name] == dtype):
                found[name] = self.graph.call_function(getattr, (self._node(Ref(lead, ())), name))
        return found

    def _value(self, new: Any, old: Any, other: Any) -> Any:
        """Return an argument as the graph holds it; numbers that follow the batch become expressions."""
        if isinstance(new, Ref):
            return self._node(new)
        if isinstance(new, torch.Tensor):
            return self._constant(new)
        if isinstance(new, list | tuple):
            alike = (
                isinstance(old, list | tuple) and isinstance(other, list | tuple) and len(new) == len(old) == len(other)
            )
            rows = zip(new, old, other, strict=True) if alike else ((item, item, item) for item in new)
            return [self._value(*row) for row in rows]
        if type(new) in (int, float) and type(old) is type(other) is type(new) and old != other:
            return self._following(new, old, other)
        return new

    def _following(self, new: Any, old: Any, other: Any) -> fx.Node:
        if self.scale is None or self._size is None or type(old) is not int:
            raise Uncapturable(f"the number {old} changes with the batch size in a way that is not understood")
        slope = Fraction(other - old, self.scale.second - self.scale.first)
        offset = old - slope * self.scale.first
        if new != old:
            if offset != 0:
                raise Uncapturable(f"the number {old} changes with the batch size and with the width")
            slope = slope * new / old
        if offset.denominator != 1:
            raise Uncapturable(f"the number {old} is no whole multiple of the batch size")
        node = self._size
        steps: list[tuple[Callable[[int, int], int], int, int]] = [
            (operator.mul, slope.numerator, 1),
            (operator.floordiv, slope.denominator, 1),
            (operator.add, int(offset), 0),
        ]
        for function, number, neutral in steps:
            if number != neutral:
                node = self.graph.call_function(function, (node, number))
        return node

    def _node(self, ref: Ref) -> fx.Node:
        if ref.id in self._nodes:
            return self._nodes[ref.id]
        if ref.id in self.own:
            node = self._placeholder(self.own[ref.id])
        elif ref.id in self.record.constants:
            tensor = self.record.constants[ref.id]
            if self.other is not None and not _same_constants(self.record, self.other):
                raise Uncapturable("it makes tensors of another size for another batch outside of torch")
            node = self._constant(tensor)
        else:
            raise Uncapturable("it uses a tensor that comes neither from its arguments nor from itself")
        self._nodes[ref.id] = node
        return node

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        name = f"constant{len(self.constants)}"
        self.constants[name] = tensor.clone()
        return self._placeholder(name)

    def _placeholder(self, name: str) -> fx.Node:
        assert self._last_input is not None
        with self.graph.inserting_after(self._last_input):
            readable = re.sub(r"\W", "_", name)
            self._last_input = self.graph.placeholder(f"t{len(self.names)}_{readable}")
        self.names.append(name)
        return self._last_input


def _same_constants(first: Record, second: Record) -> bool:
    return [tuple(tensor.shape) for tensor in first.constants.values()] == [
        tuple(tensor.shape) for tensor in second.constants.values()
    ]


def same_calls(first: Record, second: Record) -> bool:
    """Tell whether two recordings made the same calls in the same order."""
    return (
        len(first.calls) == len(second.calls)
        and len(first.spans) == len(second.spans)
        and all(mine.func == theirs.func for mine, theirs in zip(first.calls, second.calls, strict=True))
        and all(
            (mine.path, mine.start, mine.end, mine.args_spec)
            == (theirs.path, theirs.start, theirs.end, theirs.args_spec)
            for mine, theirs in zip(first.spans, second.spans, strict=True)
        )
    )
