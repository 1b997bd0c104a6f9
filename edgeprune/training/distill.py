"""Learning from the dense network: its outputs as targets, whatever their structure.

Owns the choice of the loss for each output tensor, from the operator that made it and from the labels in the batch:

- the output comes from a sigmoid (pitch bins, masks, multi-label scores): binary cross-entropy against the teacher's
  probabilities, less the teacher's own entropy. Its gradient does not vanish where the student is sure and wrong,
  as that of a squared error does;
- it comes from a softmax or log-softmax, or the batch carries integer labels of the output's shape without the class
  dimension (the second or the last): Kullback-Leibler divergence from the teacher at the temperature, times its square;
- anything else, logits without labels among them (they may as well be coordinates): squared error, divided by the
  variance of the teacher's output.

Every loss is 0 where student and teacher agree. Integer outputs (indices, masks) are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.graph.capture import attention_in_parts
from edgeprune.training.features import Features, Tensors, relative_error, watched

_SHAPE_ONLY = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Permute",
    "T",
    "Clone",
    "Alias",
    "ToCopy",
)
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a network: what it was given, what it returned, and its features by path."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    inner: Tensors = dataclasses.field(default_factory=dict)


@contextmanager
def recorded(student: nn.Module, features: Features = ()) -> Iterator[list[Call]]:
    """Collect the calls of a network in the block, so that the teacher is asked about the same inputs."""
    calls: list[Call] = []
    with watched(student, features) as inner:

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append(Call(args=args, kwargs=kwargs, output=output, inner=dict(inner)))
            inner.clear()

        handle = student.register_forward_hook(keep, with_kwargs=True)
        try:
            yield calls
        finally:
            handle.remove()


def answers(teacher: nn.Module, calls: list[Call], features: Features = ()) -> list[Call]:
    """Return what the teacher makes of the student's calls, without gradients.

    Args:
        teacher: In evaluation mode.
        calls: Calls of the student, from `recorded`.

    Raises:
        ModelError: The student was not called.
    """
    if not calls:
        raise ModelError(
            "train_step did not call the network, so there is nothing to compare with the dense network",
            fix="call model(inputs) in train_step, not model.forward(inputs) or its parts; or set finetune.distill "
            "and finetune.features to 0",
        )
    # fused attention returns what no module of the student returns
    with torch.no_grad(), attention_in_parts() if features else nullcontext(), recorded(teacher, features) as made:
        for call in calls:
            teacher(*call.args, **call.kwargs)
    return made


def distillation_loss(calls: list[Call], wanted: list[Call], batch: Any, temperature: float) -> torch.Tensor:
    """Return how far the student's outputs are from the teacher's, averaged over calls and output tensors.

    Args:
        calls: Calls of the student, from `recorded`.
        wanted: Those of the teacher, from `answers`.
        batch: The user's batch; its integer tensors tell whether an output holds class scores.

    Raises:
        ModelError: The outputs do not match the teacher's.
    """
    labels = [tensor for tensor in output_tensors(batch).values() if not tensor.is_floating_point()]
    losses = [
        outputs_loss(call.output, answer.output, labels, temperature)
        for call, answer in zip(calls, wanted, strict=True)
    ]
    return torch.stack(losses).mean()


def outputs_loss(student: Any, teacher: Any, labels: list[torch.Tensor], temperature: float) -> torch.Tensor:
    """Return the mean loss over the floating-point tensors of two outputs of the same structure.

    Raises:
        ModelError: The structures or shapes differ, or there is no floating-point tensor.
    """
    found, wanted = output_tensors(student), output_tensors(teacher)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if shapes != expected:
        name = next(name for name in [*shapes, *expected] if shapes.get(name) != expected.get(name))
        raise ModelError(
            f"the outputs of the network and of the dense network differ at '{name or 'output'}': "
            f"{shapes.get(name, 'nothing')} against {expected.get(name, 'nothing')}",
            fix="return the same outputs in training and in evaluation mode, or set finetune.distill=0",
        )
    pairs = [(found[name], wanted[name]) for name in found if found[name].is_floating_point()]
    if not pairs:
        raise ModelError("the network returns no floating-point tensor to distil", fix="set finetune.distill=0")
    return torch.stack([tensor_loss(a, b, labels, temperature) for a, b in pairs]).mean()


def tensor_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: list[torch.Tensor], temperature: float
) -> torch.Tensor:
    """Return the loss between two tensors of one shape, of the kind that the module's docstring describes."""
    origin = _origin(student)
    if origin == "Sigmoid":
        return F.binary_cross_entropy(student, teacher) - F.binary_cross_entropy(teacher, teacher)
    if origin in ("Softmax", "LogSoftmax"):
        logs = (student, teacher) if origin == "LogSoftmax" else (_log(student), _log(teacher))
        dim = _normalised_dim(logs[1])
        if dim is not None:
            return _divergence(*logs, dim, temperature)
    dim = next((dim for dim in map(partial(_class_dim, student), labels) if dim is not None), None)
    if dim is not None:
        return _divergence(student, teacher, dim, temperature)
    return relative_error(student, teacher)


def output_tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors inside tuples, lists, mappings and dataclasses by their path, such as `boxes.0`."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items: dict[str, Any] = {}
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items()}
    elif isinstance(value, tuple | list):
        items = {str(index): item for index, item in enumerate(value)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    found: dict[str, torch.Tensor] = {}
    for key, item in items.items():
        found |= output_tensors(item, f"{name}.{key}" if name else key)
    return found


def _divergence(student: torch.Tensor, teacher: torch.Tensor, dim: int, temperature: float) -> torch.Tensor:
    """Return the mean over positions of KL(teacher, student), scaled so that its gradient keeps its size."""
    wanted = torch.log_softmax(teacher / temperature, dim)
    given = torch.log_softmax(student / temperature, dim)
    return F.kl_div(given, wanted, reduction="none", log_target=True).sum(dim).mean() * temperature**2


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(_TINY).log()


def _normalised_dim(logs: torch.Tensor) -> int | None:
    """Return the dimension over which log-probabilities add up to one; None where shapes have changed since."""
    for dim in dict.fromkeys((min(1, logs.dim() - 1), *reversed(range(logs.dim())))):
        if bool((logs.logsumexp(dim).abs() < 1e-2).all()):
            return dim
    return None


def _class_dim(output: torch.Tensor, labels: torch.Tensor) -> int | None:
    """Return the dimension of an output that holds the classes of integer labels, None where they do not fit.

    Labels have the output's shape without that dimension, and none reaches the number of classes (negative ones are
    left out of many losses). Tensors of numbers or sizes of samples seldom look like that.
    """
    if output.dim() < 2 or labels.dtype == torch.bool or labels.numel() == 0:
        return None
    for dim in (1, output.dim() - 1):
        fits = labels.shape == output.shape[:dim] + output.shape[dim + 1 :]
        if fits and output.shape[dim] > 1 and int(labels.max()) < output.shape[dim]:
            return dim
    return None


def _origin(output: torch.Tensor) -> str:
    """Return the operator that made a tensor, looking through changes of shape, such as `Sigmoid` or `Addmm`."""
    node = output.grad_fn
    while node is not None:
        name = node.name().rpartition(":")[2].removesuffix("0").removesuffix("Backward")
        if name not in _SHAPE_ONLY or not node.next_functions:
            return name
        node = node.next_functions[0][0]
    return ""
