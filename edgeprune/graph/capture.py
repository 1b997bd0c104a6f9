"""The recorder: one forward of a network as a list of ATen calls with composite operators kept whole.

A `TorchDispatchMode` under `torch.inference_mode()` sees linear, convolution, normalisation and attention as single
calls, whatever Python control flow surrounds them. (Under `no_grad` it would not: views make new tensors there and
composite operators arrive decomposed; `tests/test_capture.py` holds torch to this.) Owns the record and the source
lines; knows nothing about labels.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import ModelError, TraceError
from edgeprune.graph.checks import check_outputs, check_repeated, failed, own_inputs, reads_refused
from edgeprune.graph.operators import bind, facts_of, tensors_in, written_tensors
from edgeprune.graph.results import take_apart
from edgeprune.graph.structure import named_tensors, output_tensors, shared_copy

# Operators that turn tensor data into Python numbers; on data from the inputs they mean data-dependent control flow.
# `numpy()` and `tolist()` show themselves by the `resolve_neg` that they call before they read.
_READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "resolve_neg"})
# Reads of one value, as an `if` makes them: with several examples every path can be recorded.
_BRANCHES = frozenset({"_local_scalar_dense", "item", "is_nonzero"})
# Questions to the data that may turn out to change nothing (a warning, an assertion); each costs one more recording.
_MAX_QUESTIONS = 8
# Calls without a number: torch inserts a detach where somebody else, such as a recorder, holds the tensor, and makes no
# call of `contiguous()` where the tensor is contiguous already, which depends on the kernels before it.
UNNUMBERED = frozenset({"detach", "contiguous"})
# Operators that pick positions by the values of a tensor; constant values are kept so that labels can follow them.
_PICKS = frozenset({"index_select", "index", "gather", "take_along_dim", "index_put", "index_add", "index_copy"})
_MAX_PICKED = 1 << 20
_PLAIN = frozenset({type(None), bool, int, float, str})
_ONE_TENSOR = pytree.tree_flatten(((torch.empty(0),), {}))[1]
_IDENTITIES = itertools.count(1)
_PACKAGE = str(Path(__file__).resolve().parent.parent)
_TORCH = str(Path(torch.__file__).resolve().parent)


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor as an argument or result of a call: its identity and its shape at that moment.

    Identities are numbers that no other recording uses, so that several can be followed together.
    """

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operator. `name` is what `operator_name` makes of it; `args` are bound by name.

    `index` counts the calls before it, without those in `UNNUMBERED`. `depends` tells whether any argument comes from
    the inputs or is a parameter or buffer. `picked` holds the values of constant tensors that pick positions.
    """

    index: int
    name: str
    func: Any
    args: dict[str, Any]
    result: Any
    pointwise: bool
    where: str
    module: str
    depends: bool = True
    picked: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def overload(self) -> str:
        """The operator with its overload, such as `aten.add.Tensor`."""
        return str(self.func)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One run of one module: the calls `[start, end)`, what went in and what came out.

    `args` are the leaves of `(args, kwargs)` and `result` those of what forward returned, tensors as references; the
    specs put them together again.
    """

    path: str
    start: int
    end: int
    args: tuple[Any, ...]
    args_spec: Any
    result: tuple[Any, ...]
    result_spec: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One forward: the calls in order, the parameters and buffers by identity, the outputs.

    `constants` are the tensors that are neither: plain attributes of modules and tensors made outside of torch.
    `spans` are the runs of all modules in the order in which they ended; the last one is the network's own.
    `dtypes` are those of parameters, buffers and inputs. `reads` are the lines at which values of the data decided on
    the path.
    """

    calls: tuple[Call, ...]
    tensors: dict[int, str]
    names: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    constants: dict[int, torch.Tensor]
    spans: tuple[Span, ...]
    dtypes: dict[int, torch.dtype]
    reads: tuple[str, ...] = ()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the calls of one forward. Tensors are kept alive so that identities stay unique."""

    def __init__(
        self,
        known: list[torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        *,
        branches: bool = False,
        denied: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.branches = branches
        self.reads: list[str] = []
        self.questions: list[tuple[str, str]] = []
        self._denied = denied
        self.random = ""
        self.calls: list[Call] = []
        self.spans: list[Span] = []
        self.constants: dict[int, torch.Tensor] = {}
        self.module = ""
        self.refusal: TraceError | None = None
        self._index = 0
        self._known = {id(tensor) for tensor in known}
        self._parameters = {_storage(tensor) for tensor in known if isinstance(tensor, nn.Parameter)}
        self._alive: dict[int, torch.Tensor] = {id(tensor): tensor for tensor in [*known, *inputs]}
        self._identity: dict[int, int] = {key: next(_IDENTITIES) for key in self._alive}
        # By storage: writing data into a view makes the whole tensor depend on it.
        self._from_inputs = {_storage(tensor) for tensor in inputs}
        self._batch_sizes: set[int] = set()
        self._counts: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        facts = facts_of(func)
        base = facts.name
        inputs = tensors_in((args, kwargs))
        depends = any(_storage(tensor) in self._from_inputs and id(tensor) not in self._counts for tensor in inputs)
        where = source_line()
        if base in _READS and depends:
            if not self.branches or base not in _BRANCHES:
                return self._answer(func(*args, **kwargs), base, where)
            self.reads.append(where)
        if facts.writes and any(_storage(tensor) in self._parameters for tensor in written_tensors(func, args, kwargs)):
            self.refusal = TraceError(
                "the network writes to one of its parameters in forward",
                where=where,
                fix="make it a buffer: self.register_buffer(...)",
            )
            raise self.refusal
        if facts.random and not self.random:
            self.random = where
        for tensor in inputs:
            if id(tensor) not in self._alive:
                self.constants[self.refer(tensor).id] = tensor.clone()
        picked = self._picked(inputs) if base in _PICKS else {}
        bound = self.refer(bind(func, args, kwargs))  # shapes as they are before an in-place change
        result = func(*args, **kwargs)
        outputs = tensors_in(result)
        if base == "_pack_padded_sequence":
            self._batch_sizes.add(id(outputs[1]))
        if self._counts_sequences(base, args):
            self._counts.add(id(result))
        elif depends:
            self._from_inputs.update(_storage(tensor) for tensor in outputs)
        self.calls.append(
            Call(
                index=self._index,
                name=base,
                func=func,
                args=bound,
                result=self.refer(result),
                pointwise=facts.pointwise,
                where=where,
                module=self.module,
                depends=depends or any(id(tensor) in self._known for tensor in inputs),
                picked=picked,
            )
        )
        self._index += base not in UNNUMBERED
        return result

    def _answer(self, result: Any, name: str, where: str) -> bool:
        """Return the answer to a yes-or-no question about the data, or its opposite where that is to be tried."""
        if type(result) is not bool or len(self.questions) == _MAX_QUESTIONS:
            self.refusal = reads_refused(where, branch=name in _BRANCHES)
            raise self.refusal
        self._index += 1
        self.questions.append((where, name))
        return result != (len(self.questions) - 1 == self._denied)

    def _counts_sequences(self, name: str, args: tuple[Any, ...]) -> bool:
        """Say whether a call picks the first batch size of packed sequences: their number, a shape and no data."""
        return name == "select" and id(args[0]) in self._batch_sizes and tuple(args[1:]) == (0, 0)

    def refer(self, value: Any) -> Any:
        """Replace tensors by references, in any nesting of lists, tuples and dicts."""
        if isinstance(value, torch.Tensor):
            key = id(value)
            if key not in self._identity:
                self._identity[key] = next(_IDENTITIES)
                self._alive[key] = value
            return Ref(self._identity[key], tuple(value.shape), value.dtype)
        if isinstance(value, dict):
            return {key: item if type(item) in _PLAIN else self.refer(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [item if type(item) in _PLAIN else self.refer(item) for item in value]
        return value

    def _picked(self, inputs: list[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return the values of whole-number tensors that do not depend on the inputs, by identity."""
        return {
            self.refer(tensor).id: tensor.clone()
            for tensor in inputs
            if not tensor.is_floating_point()
            and tensor.numel() <= _MAX_PICKED
            and tensor.device.type != "meta"
            and _storage(tensor) not in self._from_inputs
        }


def record(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    training: bool = False,
    branches: bool = False,
    repeat: bool = False,
) -> Record:
    """Run the network once on a copy, in evaluation mode, and return what it called.

    Args:
        training: In training mode instead.
        branches: Values of the data may decide on the path; the record says where.
        repeat: Run the copy once more and refuse a network that then returns something else.

    A yes-or-no question about the data (`if mask.all():`) is accepted where the opposite answer leads to the same
    calls, as with warnings and assertions.

    Raises:
        TraceError: The forward fails, reads data into Python, is not repeatable or returns nothing with tensors.
        ModelError: The network cannot be copied, has parameters without a shape or returns NaN.
    """
    found, questions = _recorded(model, inputs, training=training, branches=branches, repeat=repeat)
    for number, (where, name) in enumerate(questions):
        try:
            other, _ = _recorded(model, inputs, training=training, branches=branches, denied=number)
        except (TraceError, ModelError):
            other = None
        if other is None or _path(other) != _path(found):
            raise reads_refused(where, branch=name in _BRANCHES)
    return found


def _recorded(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    training: bool,
    branches: bool,
    repeat: bool = False,
    denied: int | None = None,
) -> tuple[Record, list[tuple[str, str]]]:
    """Return the record of one run and its yes-or-no questions about the data: their lines and operators.

    Args:
        denied: The question that gets the opposite of its answer.
    """
    working = shared_copy(model).train(training)
    names: dict[int, list[str]] = {}
    known: dict[int, torch.Tensor] = {}
    for name, tensor in named_tensors(working).items():
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name} has no shape yet", fix="run one forward before: model(*inputs)")
        names.setdefault(id(tensor), []).append(name)
        known[id(tensor)] = tensor
    own = own_inputs(model, inputs)
    again = tuple(tensor.clone() for tensor in own)  # a forward may change its inputs in place
    recorder = Recorder(list(known.values()), own, branches=branches, denied=denied)
    hooks = _follow_modules(working, recorder)
    try:
        with torch.random.fork_rng(), torch.inference_mode(), attention_in_parts(), recorder:
            result = working(*own)
    except TraceError:
        raise
    except Exception as error:
        raise failed(model, inputs, error) from error
    finally:
        for hook in hooks:
            hook.remove()
    if recorder.refusal is not None:  # the network caught it
        raise recorder.refusal
    returned = output_tensors(result)
    check_outputs(model, result, returned, training)
    if repeat and not training:
        check_repeated(model, returned, lambda: _again(working, again), recorder.random)
    found = Record(
        calls=tuple(recorder.calls),
        tensors={recorder.refer(known[key]).id: found[0] for key, found in names.items()},
        names={found[0]: tuple(found) for found in names.values()},
        shapes={names[key][0]: tuple(tensor.shape) for key, tensor in known.items()},
        inputs=tuple(recorder.refer(tensor) for tensor in own),
        outputs=tuple(recorder.refer(tensor) for tensor in returned),
        constants=recorder.constants,
        spans=tuple(recorder.spans),
        dtypes={recorder.refer(tensor).id: tensor.dtype for tensor in (*known.values(), *inputs)},
        reads=tuple(dict.fromkeys(recorder.reads)),
    )
    return found, recorder.questions


def _path(found: Record) -> list[Any]:
    """Return what a forward called, with tensors numbered in the order in which they appear."""
    numbers: dict[int, int] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Ref):
            return numbers.setdefault(value.id, len(numbers)), value.shape
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    return [(call.func, plain(call.args), plain(call.result)) for call in found.calls] + [plain(found.outputs)]


def _again(working: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Run a copy that has run before once more, with other random numbers."""
    with torch.random.fork_rng(), torch.inference_mode(), attention_in_parts():
        torch.rand(7)
        return output_tensors(working(*inputs))


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Switch off the fused attention of `nn.MultiheadAttention` and `nn.TransformerEncoder` in evaluation mode.

    It is one opaque call that training does not make; without it the same modules call operators with rules.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def source_line() -> str:
    """Return `file:line` of the innermost frame that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if _foreign(path):
            return f"{path}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


@lru_cache(maxsize=1024)
def _foreign(path: str) -> bool:
    """Tell whether a file is neither torch's nor this package's; its demo counts as the user's."""
    own = path.startswith(_PACKAGE) and not path.startswith(str(Path(_PACKAGE) / "demo"))
    return not own and not path.startswith((_TORCH, "<"))


def _follow_modules(model: nn.Module, recorder: Recorder) -> list[Any]:
    """Keep `recorder.module` at the path of the module whose forward is running, and note its span."""
    stack: list[tuple[str, int, tuple[list[Any], Any]]] = []
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            stack.append((recorder.module, len(recorder.calls), _flat(args, kwargs)))
            recorder.module = path

        def leave(_module: nn.Module, _args: Any, _kwargs: Any, result: Any) -> None:
            path = recorder.module
            recorder.module, start, (args, args_spec) = stack.pop()
            leaves, spec = take_apart(result)
            recorder.spans.append(
                Span(
                    path=path,
                    start=start,
                    end=len(recorder.calls),
                    args=tuple(map(recorder.refer, args)),
                    args_spec=args_spec,
                    result=tuple(map(recorder.refer, leaves)),
                    result_spec=spec,
                )
            )

        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    return hooks


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return the leaves of arguments and their structure, as pytree does."""
    if not kwargs and len(args) == 1 and isinstance(args[0], torch.Tensor):
        return [args[0]], _ONE_TENSOR
    return pytree.tree_flatten((args, kwargs))


def _storage(tensor: torch.Tensor) -> int:
    """Return what tells the memory of a tensor apart from that of others; tensors without one have their identity."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # sparse tensors have none
        return id(tensor)
