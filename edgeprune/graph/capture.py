"""The recorder: one forward of a network as a list of ATen calls with composite operators kept whole.

A `TorchDispatchMode` under `torch.inference_mode()` sees linear, convolution, normalisation and attention as single
calls, whatever Python control flow surrounds them. (Under `no_grad` it would not: views make new tensors there and
composite operators arrive decomposed; `tests/test_capture.py` holds torch to this.) Owns the record and the source
lines; knows nothing about labels.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import ModelError, TraceError
from edgeprune.workload import user_line

# Operators that turn tensor data into Python numbers; on data from the inputs they mean data-dependent control flow.
# `numpy()` and `tolist()` show themselves by the `resolve_neg` that they call before they read.
_READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "resolve_neg"})
# Calls without a number: torch inserts a detach where somebody else, such as a recorder, holds the tensor.
UNNUMBERED = frozenset({"detach"})
_PACKAGE = str(Path(__file__).resolve().parent.parent)
_TORCH = str(Path(torch.__file__).resolve().parent)


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor as an argument or result of a call: its identity and its shape at that moment."""

    id: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One ATen call. `name` is the base name without overload and in-place underscore; `args` are bound by name.

    `index` counts the calls before it, without those in `UNNUMBERED`.
    """

    index: int
    name: str
    overload: str
    args: dict[str, Any]
    result: Any
    pointwise: bool
    where: str
    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One forward: the calls in order, the parameters and buffers by identity, the outputs."""

    calls: tuple[Call, ...]
    tensors: dict[int, str]
    names: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the calls of one forward. Tensors are kept alive so that identities stay unique."""

    def __init__(self, known: dict[int, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.module = ""
        self.refusal: TraceError | None = None
        self._index = 0
        self._alive: dict[int, torch.Tensor] = dict(known)
        self._from_inputs = {id(tensor) for tensor in inputs}
        self._batch_sizes: set[int] = set()
        self._alive.update({id(tensor): tensor for tensor in inputs})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        inputs = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        depends = any(id(tensor) in self._from_inputs for tensor in inputs)
        where = source_line()
        if name in _READS and depends:
            self.refusal = TraceError(
                "the network reads values of its data into Python (an if, a size or a computation outside torch)",
                where=where,
                fix="express the choice with torch.where or masks, or take it out of forward",
            )
            raise self.refusal
        bound = _refer(bind(func, args, kwargs))  # shapes as they are before an in-place change
        result = func(*args, **kwargs)
        outputs = [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        for tensor in inputs + outputs:
            self._alive[id(tensor)] = tensor
        if name == "_pack_padded_sequence":
            self._batch_sizes.add(id(outputs[1]))
        if depends and not self._counts_sequences(name, args):
            self._from_inputs.update(id(tensor) for tensor in outputs)
        base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        self.calls.append(
            Call(
                index=self._index,
                name=base,
                overload=str(func),
                args=bound,
                result=_refer(result),
                pointwise=torch.Tag.pointwise in func.tags,
                where=where,
                module=self.module,
            )
        )
        self._index += base not in UNNUMBERED
        return result

    def _counts_sequences(self, name: str, args: tuple[Any, ...]) -> bool:
        """Say whether a call picks the first batch size of packed sequences: their number, a shape and no data."""
        return name == "select" and id(args[0]) in self._batch_sizes and tuple(args[1:]) == (0, 0)


def record(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Record:
    """Run the network once in evaluation mode on a copy and return what it called.

    Raises:
        TraceError: The forward fails, reads data into Python, or returns something without tensors.
        ModelError: The network cannot be copied, has parameters without a shape or returns NaN.
    """
    working = copy_model(model).eval()
    inputs = tuple(tensor.clone() for tensor in inputs)  # a forward may change its inputs in place
    names: dict[int, list[str]] = {}
    known: dict[int, torch.Tensor] = {}
    for name, tensor in _named_tensors(working):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name} has no shape yet", fix="run one forward before: model(*inputs)")
        names.setdefault(id(tensor), []).append(name)
        known[id(tensor)] = tensor
    recorder = Recorder(known, inputs)
    hooks = _follow_modules(working, recorder)
    try:
        with torch.inference_mode(), recorder:
            result = working(*inputs)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"the forward failed on the example inputs: {type(error).__name__}: {error}",
            where=user_line(error, type(model).__name__),
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if recorder.refusal is not None:  # the network caught it
        raise recorder.refusal
    returned = output_tensors(result)
    if not returned:
        raise TraceError(f"{type(model).__name__} returned no tensor but {type(result).__name__}")
    if any(bool(tensor.isnan().any()) for tensor in returned):
        raise ModelError(
            f"{type(model).__name__} returns NaN on the example inputs, so nothing can be compared with it",
            fix="check the weights and the inputs of the workload",
        )
    first = {key: found[0] for key, found in names.items()}
    return Record(
        calls=tuple(recorder.calls),
        tensors=first,
        names={found[0]: tuple(found) for found in names.values()},
        shapes={first[key]: tuple(tensor.shape) for key, tensor in known.items()},
        inputs=tuple(Ref(id(t), tuple(t.shape)) for t in inputs),
        outputs=tuple(Ref(id(t), tuple(t.shape)) for t in returned),
    )


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of the network.

    Raises:
        ModelError: Something in the network cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            fix="keep only tensors, modules and plain values as attributes of the network",
        ) from error


def output_tensors(result: Any) -> list[torch.Tensor]:
    """Return the tensors of any output structure in a stable order.

    Looks into containers, dataclasses and the attributes of other objects, as deep as they go: a tensor that is missed
    here would be taken for one that nobody needs.
    """
    found: list[torch.Tensor] = []
    _collect(result, found, set())
    return found


def _collect(value: Any, found: list[torch.Tensor], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    if id(value) in seen or isinstance(value, nn.Module | type | ModuleType | FunctionType):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, tuple | list | set | frozenset):
        parts = list(value)
    else:
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        parts = [getattr(value, name) for name in names if hasattr(value, name)]
    for part in parts:
        _collect(part, found, seen)


def source_line() -> str:
    """Return `file:line` of the innermost frame that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, "<")) and not _own(path):
            return f"{path}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def _own(path: str) -> bool:
    return path.startswith(_PACKAGE) and not path.startswith(str(Path(_PACKAGE) / "demo"))


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _follow_modules(model: nn.Module, recorder: Recorder) -> list[Any]:
    """Keep `recorder.module` at the path of the module whose forward is running."""
    stack: list[str] = []
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            stack.append(recorder.module)
            recorder.module = path

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            recorder.module = stack.pop()

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    return hooks


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names in the operator's schema, defaults included."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def _refer(value: Any) -> Any:
    """Replace tensors by references, in any nesting of lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return Ref(id(value), tuple(value.shape))
    if isinstance(value, dict):
        return {key: _refer(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_refer(item) for item in value]
    return value
