"""Replay: the recorded calls of a network, made one by one on other tensors.

Nothing of the user's Python runs. Whoever holds a replay can look at every tensor between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edgeprune.errors import ModelError
from edgeprune.graph.capture import Call, Record, Ref
from edgeprune.graph.flow import refs

Step = tuple[Any, dict[str, Any]]

# Calls that make tensors out of nothing: their type and device are those of the network, wherever it is moved.
_FACTORIES = frozenset({
    "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm",
    "scalar_tensor", "tril_indices", "triu_indices", "new_zeros", "new_ones", "new_full", "new_empty",
})  # fmt: skip


class Replay:
    """One forward as recorded calls; `values` are the tensors that are still needed, by identity.

    Args:
        steps: Operator and arguments of every call, resized.
        tensors: Parameters and buffers by first name, cut.
    """

    def __init__(
        self,
        record: Record,
        steps: Sequence[Step],
        tensors: Mapping[str, torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        last: Mapping[int, int] | None = None,
    ) -> None:
        self.record, self.steps = record, steps
        self.values: dict[int, torch.Tensor] = {key: tensors[name] for key, name in record.tensors.items()}
        self.values.update(record.constants)
        self.values.update(zip((ref.id for ref in record.inputs), (tensor.clone() for tensor in inputs), strict=True))
        self._last = last_uses(record) if last is None else last
        key = first_float([*record.tensors, *(ref.id for ref in record.inputs)], record)
        self._types = (record.dtypes[key], self.values[key].dtype) if key is not None else (None, None)

    def value(self, argument: Any) -> Any:
        """Return an argument with tensors in place of references."""
        if isinstance(argument, Ref):
            return self.values[argument.id]
        if isinstance(argument, list | tuple):
            return [self.value(item) for item in argument]
        return argument

    def make(self, index: int) -> None:
        """Make one call.

        Raises:
            ModelError: It does not run on these tensors; `where` is the user's line.
        """
        call, (func, arguments) = self.record.calls[index], self.steps[index]
        written, given = self._types
        if written != given and arguments.get("dtype") == written and makes_floats(call):
            arguments = {**arguments, "dtype": given}
        try:
            positional, named = as_given(func, arguments)
            found = func(*map(self.value, positional), **{key: self.value(item) for key, item in named.items()})
        except Exception as error:  # operators of the user may raise anything
            raise ModelError(
                f"{call.overload} cannot run on the smaller tensors: {error}", where=call.where or None
            ) from error
        self.values.update(_results(call.result, found))

    def drop(self, index: int) -> None:
        """Forget the tensors that no call behind this one takes."""
        call = self.record.calls[index]
        for ref in refs(call.args) + refs(call.result):
            if self._last[ref.id] == index:
                self.values.pop(ref.id, None)

    @property
    def outputs(self) -> list[torch.Tensor]:
        """The outputs of the network, once all calls are made."""
        return [self.values[ref.id] for ref in self.record.outputs]


def replay(
    record: Record,
    steps: Sequence[Step],
    tensors: Mapping[str, torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    watch: Callable[[int, Mapping[int, torch.Tensor]], None] | None = None,
) -> list[torch.Tensor]:
    """Run resized calls one by one and return the outputs; no code is made.

    Args:
        tensors: Parameters and buffers by first name, cut.
        watch: Called after every call with the number of calls made and the tensors that are still needed.
    """
    forward = Replay(record, steps, tensors, inputs)
    with torch.inference_mode():
        if watch is not None:
            watch(0, forward.values)
        for index in range(len(record.calls)):
            forward.make(index)
            if watch is not None:
                watch(index + 1, forward.values)
            forward.drop(index)
    return forward.outputs


def last_uses(record: Record) -> dict[int, int]:
    """Return the last call that needs a tensor, by identity; what modules return counts until they end."""
    last = {ref.id: index for index, call in enumerate(record.calls) for ref in refs(call.args) + refs(call.result)}
    for span in record.spans:
        kept = {leaf.id: max(last.get(leaf.id, 0), span.end - 1) for leaf in span.result if isinstance(leaf, Ref)}
        last.update(kept)
    last.update({ref.id: len(record.calls) for ref in record.outputs})
    return last


def makes_floats(call: Call) -> bool:
    """Tell whether a call names the type that floats have anyway: code that says `dtype=x.dtype`."""
    if call.name in _FACTORIES:
        return True
    source = next((ref.dtype for ref in refs(call.args)), None)
    made = call.name in ("to", "_to_copy") or call.name.endswith("_like")
    return made and source is not None and (not source.is_floating_point or source == call.args.get("dtype"))


def first_float(keys: Sequence[int], record: Record) -> int | None:
    """Return the first floating parameter, buffer or input."""
    return next((key for key in keys if key in record.dtypes and record.dtypes[key].is_floating_point), None)


def as_given(func: Any, bound: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments bound by name as a call of the operator takes them: by position, and by keyword."""
    given = [argument for argument in func._schema.arguments if argument.name in bound]
    positional = [bound[argument.name] for argument in given if not argument.kwarg_only]
    named = {argument.name: bound[argument.name] for argument in given if argument.kwarg_only}
    return positional, {name: value for name, value in named.items() if value is not None}


def _results(result: Any, found: Any) -> dict[int, torch.Tensor]:
    if isinstance(result, Ref):
        return {result.id: found}
    if isinstance(result, list):
        return {ref.id: tensor for ref, tensor in zip(result, found, strict=True) if isinstance(ref, Ref)}
    return {}
