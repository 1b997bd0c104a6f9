"""A network made ready for converters: a private copy, names, specs, its batch, and its traced program.

Owns what every format needs before conversion: the copy in evaluation mode on the CPU, which leaves the user's network
untouched, the flat list of outputs, and whether samples of a batch are independent. Does not know any format.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from edgeprune.errors import EdgePruneError, ExportError, ModelError
from edgeprune.export.feeds import draw
from edgeprune.export.rewrite import FOR_ALL, Rewrite
from edgeprune.export.structure import flatten, unique_names
from edgeprune.values import Json, Layout, TensorSpec
from edgeprune.workload import user_line

_LOG = logging.getLogger(__name__)
_ROWS_TOLERANCE = 1e-4
Tensors = tuple[torch.Tensor, ...]


class FlatNetwork(nn.Module):
    """A network whose outputs come as a flat tuple of tensors, in the order of `structure.flatten`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Return the tensors of the network's output."""
        leaves, _ = flatten(self.network(*tensors))
        return tuple(tensor for _, tensor in leaves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network ready for export.

    `inputs` and `outputs` have None where the batch is. `batch` is None when the network takes any number of samples
    and treats each on its own; otherwise it is the only size that is known to work, and `reason` says why. `examples`
    fit `batch`: one sample when it is None.
    """

    network: FlatNetwork
    examples: Tensors
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Json
    batch: int | None
    reason: str | None

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the network's outputs as arrays."""
        return [to_array(tensor) for tensor in run_network(self.network, [torch.from_numpy(a) for a in arrays])]


def prepare(model: nn.Module, inputs: Sequence[torch.Tensor], more: Sequence[Tensors] = ()) -> Subject:
    """Return a copy of the network that can be captured, with its names and what is known about its batch.

    Args:
        inputs: Example tensors, batch first.
        more: Further inputs; only their values are used, to widen the range of random inputs.

    Raises:
        ModelError: The network cannot run on the inputs, or gives other outputs for the same inputs.
        ExportError: It cannot be copied, returns something else than tensors, or values that are not finite.
    """
    network = FlatNetwork(_copy(model))
    examples = tuple(tensor.detach().to("cpu") for tensor in inputs)
    if not examples:
        raise ModelError("no inputs were given", fix="give a tuple of example tensors, batch first")
    with torch.no_grad():
        try:
            leaves, structure = flatten(network.network(*examples))
        except EdgePruneError:
            raise
        except Exception as error:  # the user's forward may raise anything; it is reported, never hidden
            raise ModelError(
                f"the network failed on its example inputs: {_first_line(error)}", where=user_line(error, "forward")
            ) from error
    _check_outputs(network, examples, leaves)
    in_names = input_names(model, len(examples))
    size = _batch_size(examples)
    specs = tuple(
        _input_spec(name, tensor, [row[index] for row in more], size)
        for index, (name, tensor) in enumerate(zip(in_names, examples, strict=True))
    )
    out_names = unique_names((name for name, _ in leaves), in_names)
    batch, reason = _probe(network, examples, specs, size)
    outputs = tuple(
        TensorSpec(name=name, shape=_shape(tensor, size, batch is None), dtype=dtype_name(tensor))
        for name, (_, tensor) in zip(out_names, leaves, strict=True)
    )
    if batch is None:
        examples = _rows(examples, specs, slice(0, 1))
    return Subject(
        network=network,
        examples=examples,
        inputs=specs,
        outputs=outputs,
        structure=structure,
        batch=batch,
        reason=reason,
    )


class ProgramNetwork(nn.Module):
    """A program of torch.export as a network: it is past its mode, so that it has no training to leave."""

    def __init__(self, program: nn.Module, positional: int, named: Sequence[str] = ()) -> None:
        """Wrap what `ExportedProgram.module()` returns.

        Args:
            positional: How many inputs it takes by position.
            named: The inputs that it takes by name, after those.
        """
        super().__init__()
        self.program = program
        self._positional, self._named = positional, tuple(named)
        self.training = False

    def train(self, mode: bool = True) -> ProgramNetwork:
        """Return the network as it is: a program refuses to change its mode."""
        return self

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return the program's outputs."""
        named = zip(self._named, tensors[self._positional :], strict=True)
        return self.program(*tensors[: self._positional], **dict(named))


class ChannelsLast(nn.Module):
    """A flat network whose 4-D inputs and outputs have their channels last, as cameras and TFLite have them."""

    def __init__(self, network: FlatNetwork) -> None:
        super().__init__()
        self.network = network.network

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Return the outputs, channels last."""
        leaves, _ = flatten(self.network(*(_turned(tensor, (0, 3, 1, 2)) for tensor in tensors)))
        return tuple(_turned(tensor, (0, 2, 3, 1)) for _, tensor in leaves)


def channels_last(tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return tensors with the channels of 4-D ones last."""
    return tuple(_turned(tensor, (0, 2, 3, 1)) for tensor in tensors)


def _turned(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return tensor.permute(order) if tensor.dim() == 4 else tensor


def capture(
    subject: Subject, *, dynamic: bool, rewrites: Sequence[Rewrite] = FOR_ALL, layout: Layout = "nchw"
) -> torch.export.ExportedProgram:
    """Return the network's graph, rewritten for a converter, with a free batch or at the size of its examples.

    Raises:
        ExportError: Its forward cannot be captured; `where` is the user's line.
    """
    examples, network = subject.examples, cast(nn.Module, subject.network)
    shapes: Any = None
    if dynamic:
        # torch.export treats a size of 1 as fixed, so the example needs two samples.
        examples = tuple(
            torch.cat([tensor, tensor]) if spec.shape[:1] == (None,) else tensor
            for tensor, spec in zip(examples, subject.inputs, strict=True)
        )
        axis = torch.export.Dim("batch")
        shapes = (tuple({0: axis} if spec.shape[:1] == (None,) else {} for spec in subject.inputs),)
    if layout == "nhwc":
        examples, network = (
            tuple(tensor.contiguous() for tensor in channels_last(examples)),
            ChannelsLast(subject.network),
        )
    first: Exception | None = None
    for strict in (False,) if dynamic else (False, True):
        try:
            with torch.no_grad():
                program = torch.export.export(network, examples, dynamic_shapes=shapes, strict=strict)
                return _rewritten(program, examples, shapes, rewrites)
        except Exception as error:  # noqa: BLE001 capture runs the user's code, which may raise anything
            _LOG.info("torch.export (strict=%s, dynamic=%s) failed: %s", strict, dynamic, error)
            first = first or error
    assert first is not None
    raise ExportError(
        f"torch.export cannot capture the network: {_first_line(first)}", where=user_line(first, "forward")
    ) from first


def _rewritten(
    program: torch.export.ExportedProgram, examples: Tensors, shapes: Any, rewrites: Sequence[Rewrite]
) -> torch.export.ExportedProgram:
    graph_module: Any = program.module(check_guards=False)
    if not sum(rewrite(graph_module.graph) for rewrite in rewrites):
        return program
    graph_module.recompile()
    # The graph takes its inputs one by one, the network took them as *args.
    return torch.export.export(graph_module, examples, dynamic_shapes=shapes and shapes[0])


def run_network(network: nn.Module, tensors: Sequence[torch.Tensor]) -> Tensors:
    """Return the flat outputs of a network for tensors that are already on its device."""
    with torch.no_grad():
        outputs: Tensors = network(*tensors)
    return outputs


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values as an array, bfloat16 as float32."""
    tensor = tensor.detach().to("cpu")
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def dtype_name(tensor: torch.Tensor) -> str:
    """Return numpy's name of a tensor's dtype, such as `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval().to("cpu")
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ExportError(
            f"the network cannot be copied: {_first_line(error)}",
            fix="store parameters and plain values on the network, no open files, locks or computed tensors",
        ) from error


def _check_outputs(network: FlatNetwork, examples: Tensors, leaves: list[tuple[str, torch.Tensor]]) -> None:
    again = run_network(network, examples)
    for (name, tensor), other in zip(leaves, again, strict=True):
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"output '{name}' is not finite on the example inputs, so no file can be compared with it",
                fix="check the weights and the example inputs for NaN and infinity",
            )
        if tensor.shape != other.shape or _distance(tensor, other) > _ROWS_TOLERANCE:
            raise ModelError(
                f"output '{name}' differs between two runs on the same inputs in evaluation mode",
                fix="use nn.Dropout, or F.dropout(x, p, self.training), and keep no state between calls",
            )


def input_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of forward's parameters, numbered where it takes *args."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    model = model.program if isinstance(model, ProgramNetwork) else model
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in positional][:count]
    names += [f"input_{index}" for index in range(len(names), count)]
    return ["input" if name == "input_0" and count == 1 else name for name in unique_names(names)]


def _batch_size(examples: Tensors) -> int | None:
    return examples[0].shape[0] if examples[0].ndim else None


def _shape(tensor: torch.Tensor, size: int | None, free: bool) -> tuple[int | None, ...]:
    shape = tuple(tensor.shape)
    return (None, *shape[1:]) if free and shape and shape[0] == size else shape


def _input_spec(name: str, tensor: torch.Tensor, more: list[torch.Tensor], size: int | None) -> TensorSpec:
    if tensor.is_complex() or tensor.dtype == torch.bfloat16:
        raise ExportError(f"input '{name}' is {dtype_name(tensor)}, which files cannot hold", fix="use float32")
    low, high = -1.0, 1.0
    values = torch.cat([value.detach().to("cpu").flatten() for value in (tensor, *more)]).double()
    values = values[torch.isfinite(values)]
    if values.numel():
        low, high = values.min().item(), values.max().item()
    return TensorSpec(name=name, shape=_shape(tensor, size, True), dtype=dtype_name(tensor), low=low, high=high)


def _rows(tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec], rows: slice) -> Tensors:
    pairs = zip(tensors, specs, strict=True)
    return tuple(tensor[rows] if spec.shape[:1] == (None,) else tensor for tensor, spec in pairs)


def _probe(
    network: FlatNetwork, examples: Tensors, specs: tuple[TensorSpec, ...], size: int | None
) -> tuple[int | None, str | None]:
    """Return None when any batch works and samples are independent, else the example's size and why."""
    if size is None:
        return 1, "its first input has no batch dimension"
    if size == 0:
        raise ModelError("the example inputs hold no samples", fix="give at least one sample")
    second = [torch.from_numpy(array) for array in draw(specs, 1, seed=1)]
    wide = examples
    if size == 1:
        wide = tuple(
            torch.cat([tensor, other]) if spec.shape[:1] == (None,) else tensor
            for tensor, other, spec in zip(examples, second, specs, strict=True)
        )
    total = max(size, 2)
    try:
        together = run_network(network, wide)
        alone = run_network(network, _rows(wide, specs, slice(0, 1)))
    except Exception as error:  # noqa: BLE001 the user's forward may refuse another batch size in any way
        return size, f"it fails at another batch size: {_first_line(error)}"
    for many, one in zip(together, alone, strict=False):
        if many.shape[:1] != (total,) or one.shape[:1] != (1,) or many.shape[1:] != one.shape[1:]:
            return size, "an output has no batch dimension"
        if _distance(many[:1], one) > _ROWS_TOLERANCE:
            return size, "samples of a batch influence each other"
    return None, None


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    difference = (a.double() - b.double()).abs().max().item()
    return difference / max(a.double().abs().max().item(), 1e-6)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
