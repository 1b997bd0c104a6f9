"""What a recording refuses, by name and with a fix: inputs, outputs and forwards that cannot be followed.

Owns the messages; the recorder decides when to look.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError, TraceError
from edgeprune.workload import user_line


def own_inputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return copies of the inputs, as a forward may change its inputs in place; by shape where the network has no data.

    Raises:
        ModelError: Some of the parameters have values and some have not.
    """
    by_shape = {name: parameter.is_meta for name, parameter in model.named_parameters()}
    if any(by_shape.values()):
        with_values = [name for name, meta in by_shape.items() if not meta]
        if with_values:
            without = next(name for name, meta in by_shape.items() if meta)
            raise ModelError(
                f"{without} is on the meta device and has no values, {with_values[0]} is not",
                fix="load all weights, or none",
            )
        inputs = tuple(tensor.to("meta") for tensor in inputs)
    return tuple(tensor.detach().clone() for tensor in inputs)


def reads_refused(where: str, *, branch: bool) -> TraceError:
    """Return the refusal of values that are read into Python; several examples allow a branch."""
    fix = "express the choice with torch.where or masks, or take it out of forward"
    if branch:
        fix += "; or give several examples that take every path: inputs() may return a list of tuples"
    return TraceError(
        "the network reads values of its data into Python (an if, a size or a computation outside torch)",
        where=where,
        fix=fix,
    )


def failed(model: nn.Module, inputs: tuple[torch.Tensor, ...], error: Exception) -> TraceError:
    """Say what forward got and where it failed; a call that does not fit its signature has a fix."""
    kind = type(model).__name__
    fix = None
    names = [f"input {number}" for number in range(len(inputs))]
    try:
        bound = inspect.signature(model.forward).bind(*inputs).arguments
        alone = [name for name, value in bound.items() if isinstance(value, torch.Tensor)]
        names = [*alone, *names[len(alone) :]]
    except TypeError:
        fix = (
            f"forward of {kind} cannot be called with {len(inputs)} tensors in order; wrap the network in a module "
            "whose forward takes the tensors in order and passes them on by name"
        )
    except ValueError:  # no signature
        fix = None
    given = ", ".join(
        f"{name}: {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for name, tensor in zip(names, inputs, strict=True)
    )
    return TraceError(
        f"the forward failed on the example inputs ({given}): {type(error).__name__}: {error}",
        where=user_line(error, kind),
        fix=fix or "check the types and shapes of the inputs",
    )


def check_outputs(model: nn.Module, result: Any, returned: list[torch.Tensor], training: bool) -> None:
    """Refuse results that nothing can be compared with."""
    kind = type(model).__name__
    if not returned:
        raise TraceError(
            f"{kind} returned no tensor but {type(result).__name__}", fix="return the tensors that forward computes"
        )
    if not training and any(bool(tensor.isnan().any()) for tensor in returned if tensor.device.type != "meta"):
        broken = [name for name, tensor in model.named_parameters() if not tensor.is_meta and not _finite(tensor)]
        what = f"; {broken[0]} is not finite" if broken else ""
        raise ModelError(
            f"{kind} returns NaN on the example inputs, so nothing can be compared with it{what}",
            fix="check the weights and the inputs of the workload",
        )


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())


def check_repeated(
    model: nn.Module, first: list[torch.Tensor], again: Callable[[], list[torch.Tensor]], random: str
) -> None:
    """Refuse a network that returns no values, or something else when it runs again.

    Args:
        again: Runs it once more and returns its tensors.
        random: The line that drew random numbers in the first run, if there is one.

    Raises:
        TraceError: It does, or fails.
    """
    kind = type(model).__name__
    if not any(tensor.numel() for tensor in first):
        raise TraceError(f"{kind} returned empty tensors only", fix="give inputs on which it returns values")
    try:
        second = again()
    except Exception as error:
        raise TraceError(
            f"{kind} runs once but fails when it runs again: {type(error).__name__}: {error}",
            where=user_line(error, kind),
            fix="keep no state between two forwards",
        ) from error
    if len(first) == len(second) and all(map(alike, first, second)):
        return
    raise TraceError(
        f"{kind} returns something else when it runs again on the same inputs",
        where=random or kind,
        fix="take randomness and counters out of forward, at least in evaluation mode",
    )


def alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_meta or first.numel() == 0:
        return True
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    a, b = first.double(), second.double()
    # Kernels may add up in another order; randomness and counters show themselves far above this.
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    limit = 1e-5 if first.dtype in (torch.float32, torch.float64) else 1e-2
    return bool(torch.isclose(a, b, rtol=0.0, atol=limit * scale, equal_nan=True).all())


def check_weights(model: nn.Module) -> None:
    """Refuse a network that has shapes but no values.

    Raises:
        ModelError: A parameter or buffer is on the meta device.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device: the network has shapes but no weights",
                fix="load the weights first; ep.trace finds the groups by shape alone",
            )
