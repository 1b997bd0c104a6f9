"""Is a pruned network right? A judge that trusts no tool and treats all alike.

The dense network with the removed positions of every tensor zeroed, rows and columns, says what the pruned network
must return. Where a call depends on which positions exist (a norm, a mean, a softmax over channels), it is computed
over the kept ones alone; which calls those are is read off the pruned network, whose tensors are narrower there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.graph.operators import bind
from edgeprune.graph.structure import output_tensors

TOLERANCE = 1e-4
# Kept positions along dimensions of parameters and buffers; -1 stands for the inputs of all blocks of a grouped
# convolution, whose weight holds other ones in every block of its rows.
Kept = Mapping[tuple[str, int], torch.Tensor]
Inputs = tuple[torch.Tensor, ...]
Outputs = list[torch.Tensor]
Calls = list[tuple[str, torch.Size]]
_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "native_layer_norm", "_fused_rms_norm"})
_REDUCTIONS = frozenset(
    {"mean", "var", "std", "var_mean", "std_mean", "softmax", "_softmax", "log_softmax", "amax", "amin", "max", "min"}
    | {"logsumexp", "sum", "linalg_vector_norm"}
)
# Products that sum over a dimension: positions that are not zero on both sides count.
_PRODUCTS = frozenset({"matmul", "mm", "bmm"})
_ATTENTION = "scaled_dot_product_attention"


class Undecided(Exception):
    """The judge cannot tell what the pruned network should return; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`max_rel`: largest difference relative to the largest output; `effect`: what pruning itself changed, likewise.

    `scale_only` says that nothing but the softmax scale of narrower heads makes the difference.
    """

    exact: bool
    max_rel: float
    effect: float
    scale_only: bool = False
    reason: str = ""


def judge(model: nn.Module, small: nn.Module, kept: Kept, inputs: Inputs) -> Verdict:
    """Compare a pruned network with the dense one whose removed positions are zeroed, in float64 where both run in it.

    Args:
        kept: Kept positions of the dense network's parameters and buffers, by any of their names and a dimension.

    Raises:
        Undecided: The statistics of the two networks cannot be put side by side.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the statistics of a whole encoder layer in one call
    try:
        try:
            dense, found, widths = _both(model, small, inputs, torch.float64)
            precision = torch.float64
        except (RuntimeError, TypeError, ValueError):  # a network that fixes float32 somewhere
            dense, found, widths = _both(model, small, inputs, torch.float32)
            precision = torch.float32
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in dense]:
            reason = f"output shapes became {[tuple(tensor.shape) for tensor in found][:4]}"
            return Verdict(exact=False, max_rel=float("inf"), effect=1.0, reason=reason)
        if any(bool(tensor.isnan().any()) for tensor in dense):
            raise Undecided("the dense network returns NaN")
        expected = _reference(model, kept, inputs, precision, widths)
        gap = largest_difference(expected, found)
        rescaled = False
        if gap > TOLERANCE and any(name == _ATTENTION for name, _ in widths):
            other = _reference(model, kept, inputs, precision, widths, rescale=True)
            rescaled = largest_difference(other, found) <= TOLERANCE
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    effect = largest_difference(dense, expected)
    return Verdict(exact=gap <= TOLERANCE, max_rel=gap, effect=effect, scale_only=rescaled)


def _both(model: nn.Module, small: nn.Module, inputs: Inputs, precision: torch.dtype) -> tuple[Outputs, Outputs, Calls]:
    """Return the outputs of the dense and of the pruned network, and the statistics that the latter computes."""
    widths = _Widths()
    dense = _run(cast(model, precision), inputs, precision)
    return dense, _run(cast(small, precision), inputs, precision, widths), widths.calls


def _reference(
    model: nn.Module, kept: Kept, inputs: Inputs, precision: torch.dtype, widths: Calls, rescale: bool = False
) -> Outputs:
    """Return the outputs of the dense network with everything zeroed that is not kept."""
    masked, tensors = masked_dense(model, kept, precision)
    return _run(masked, inputs, precision, _Statistics(widths, tensors, kept, rescale))


def largest_difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Return the largest difference over outputs, each relative to its largest finite expected value."""
    worst = 0.0
    for reference, value in zip(expected, found, strict=True):
        if reference.numel() == 0:
            continue
        a, b = reference.double(), value.double()
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(a), (a - b).abs())
        scale = max(float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0, 1e-6)
        worst = max(worst, float(gap.nan_to_num(nan=torch.inf).max()) / scale)
    return worst


def cast(model: nn.Module, precision: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(precision).eval()


def _run(model: nn.Module, inputs: Inputs, precision: torch.dtype, mode: TorchDispatchMode | None = None) -> Outputs:
    own = tuple(t.to(precision) if t.is_floating_point() else t for t in inputs)
    with torch.inference_mode(), mode or nullcontext():
        return output_tensors(model(*(tensor.clone() for tensor in own)))


def masked_dense(model: nn.Module, kept: Kept, precision: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """Return a copy with everything zeroed that is not kept, and its tensors by name."""
    masked = cast(model, precision)
    tensors: dict[str, Any] = dict(masked.named_buffers(remove_duplicate=False))
    tensors.update(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, axis), keep in kept.items():
            if name not in tensors:
                raise Undecided(f"{name} is no tensor of the dense network")
            clear_(tensors[name], masked, name, axis, keep)
    return masked, tensors


def clear_(values: torch.Tensor, network: nn.Module, name: str, axis: int, keep: torch.Tensor) -> None:
    """Zero what is not kept of a tensor of a network, or of its gradient.

    Args:
        values: Of the shape of the tensor called `name`.
        axis: As in `Kept`.
    """
    if axis < 0:
        blocks = values.unflatten(0, (network.get_submodule(name.rpartition(".")[0]).groups, -1))
        removed = _removed(keep, blocks.shape[0] * blocks.shape[2]).reshape(len(blocks), 1, -1)
        blocks.masked_fill_(removed[(...,) + (None,) * (blocks.dim() - 3)], 0)
        return
    values.index_fill_(axis, _removed(keep, values.shape[axis]).nonzero().flatten(), 0)


def _statistic(func: Any) -> str | None:
    name: str = func._schema.name.split("::")[-1].rstrip("_")
    return name if name in _NORMS | _REDUCTIONS | _PRODUCTS | {_ATTENTION} else None


class _Widths(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the statistics that a network computes and the shapes over which it does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Calls = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _statistic(func)
        if name is not None:
            self.calls.append((name, args[0].shape))
        return func(*args, **(kwargs or {}))


class _Statistics(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes every statistic over kept positions where the pruned network computed it over fewer."""

    def __init__(self, calls: Calls, tensors: dict[str, Any], kept: Kept, rescale: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = iter(calls)
        self._rescale = rescale
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._sides = [(tensors[name].shape[axis], keep) for (name, axis), keep in kept.items() if axis >= 0]
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _statistic(func)
        if name is None:
            return func(*args, **kwargs)
        other, shape = next(self._calls, ("", torch.Size()))
        x = args[0]
        if other != name or len(shape) != x.dim():
            raise Undecided(f"the pruned network computes '{other}' where the dense one computes '{name}'")
        if name == _ATTENTION:
            if self._rescale and kwargs.get("scale") is None:
                kwargs = {**kwargs, "scale": shape[-1] ** -0.5}
            return func(*args, **kwargs)
        bound = bind(func, args, kwargs)
        narrow = [axis for axis in _reduced(name, bound, x) if shape[axis] != x.shape[axis]]
        if not narrow:
            return func(*args, **kwargs)
        keep = {axis: self._positions(x, axis, shape[axis], bound) for axis in narrow}
        if name == "group_norm":
            return _group_norm(bound, keep)
        if name in _PRODUCTS:
            removed = _removed(keep[narrow[0]], x.shape[-1])
            return func(x.masked_fill(removed, 0), *args[1:], **kwargs)
        return _over_kept(func, bound, keep, name)

    def _positions(self, x: torch.Tensor, axis: int, count: int, bound: dict[str, Any]) -> torch.Tensor:
        """Return which positions the pruned network still has: those of the norm's own weight, else those in use."""
        size = x.shape[axis]
        weight = bound.get("weight")
        if isinstance(weight, torch.Tensor) and id(weight) in self._names:
            own = self._kept.get((self._names[id(weight)], weight.dim() - 1))
            if own is not None and len(own) == count:
                return own
        rows = x.movedim(axis, 0).reshape(size, -1)
        in_use = (rows != 0).any(dim=1), (rows != rows[:, :1]).any(dim=1)  # not zero; more than a constant
        for used in in_use:
            if int(used.sum()) == count:
                return used.nonzero().flatten()
        for used in in_use:
            for whole, keep in self._sides:
                if whole == size and len(keep) == count and not bool((used & _removed(keep, size)).any()):
                    return keep
        raise Undecided(f"which {count} of {size} positions are left for a statistic cannot be told")


def _removed(keep: torch.Tensor, size: int) -> torch.Tensor:
    removed = torch.ones(size, dtype=torch.bool)
    removed[keep] = False
    return removed


def _reduced(name: str, bound: dict[str, Any], x: torch.Tensor) -> list[int]:
    """Return the dimensions over which a statistic is computed."""
    if "normalized_shape" in bound:
        return list(range(x.dim() - len(bound["normalized_shape"]), x.dim()))
    if name == "group_norm":
        return list(range(1, x.dim()))
    if name in _PRODUCTS:
        return [x.dim() - 1]
    axes = bound.get("dim")
    if axes is None or axes == []:
        return list(range(x.dim()))
    return [axis % max(x.dim(), 1) for axis in (axes if isinstance(axes, tuple | list) else [axes])]


def _over_kept(func: Any, bound: dict[str, Any], keep: dict[int, torch.Tensor], name: str) -> Any:
    """Cut the input to the kept positions, call the operator, and put the result back where it came from."""
    arguments = list(func._schema.arguments)
    x = bound[arguments[0].name]
    cut = x
    for axis, positions in keep.items():
        cut = cut.index_select(axis, positions)
    call = {**bound, arguments[0].name: cut}
    if name in _NORMS:
        first = x.dim() - len(bound["normalized_shape"])
        call["normalized_shape"] = list(cut.shape[first:])
        for part in ("weight", "bias"):
            for axis, positions in keep.items() if isinstance(bound.get(part), torch.Tensor) else ():
                call[part] = call[part].index_select(axis - first, positions)
    positional = [call[a.name] for a in arguments if not a.kwarg_only and a.name in call]
    result = func(*positional, **{a.name: call[a.name] for a in arguments if a.kwarg_only and a.name in call})
    if name in _NORMS or "softmax" in name:
        parts = result if isinstance(result, tuple | list) else (result,)
        spread = tuple(_spread(part, x, keep) for part in parts)
        return spread if isinstance(result, tuple | list) else spread[0]
    return result


def _spread(result: torch.Tensor, x: torch.Tensor, keep: dict[int, torch.Tensor]) -> torch.Tensor:
    """Return the result at its old positions, zero elsewhere."""
    for axis, positions in keep.items():
        if result.shape[axis] == len(positions):
            shape = list(result.shape)
            shape[axis] = x.shape[axis]
            result = result.new_zeros(shape).index_copy(axis, positions, result)
    return result


def _group_norm(bound: dict[str, Any], kept: dict[int, torch.Tensor]) -> torch.Tensor:
    """Normalise the groups of the dense network, each over its kept channels."""
    x, groups = bound["input"], bound["num_groups"]
    if set(kept) != {1}:
        raise Undecided("a group norm is narrower along a dimension that is not its channels")
    keep = kept[1]
    result = torch.zeros_like(x)
    for block in range(groups):
        width = x.shape[1] // groups
        mine = keep[(keep >= block * width) & (keep < (block + 1) * width)]
        if len(mine):
            part = x.index_select(1, mine)
            axes = tuple(range(1, x.dim()))
            variance = part.var(dim=axes, unbiased=False, keepdim=True)
            normal = (part - part.mean(dim=axes, keepdim=True)) * torch.rsqrt(variance + bound["eps"])
            result.index_copy_(1, mine, normal)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if bound.get("weight") is not None:
        result = result * bound["weight"].reshape(shape)
    if bound.get("bias") is not None:
        result = result + bound["bias"].reshape(shape)
    return result
