"""Operators that work position by position, with broadcasting, and those that only make or pass tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, refs, resize, rule
from edgeprune.graph.labels import Label


@rule(
    "pointwise", "where", "copy", "relu6", "hardtanh", "celu", "selu", "alpha_dropout", "feature_alpha_dropout",
    "dropout", "feature_dropout", "native_dropout", "gelu", "softplus", "mish", "log_sigmoid", "rrelu", "hardswish",
    "hardsigmoid", "silu", "softsign", "logsigmoid", "masked_fill", "clamp", "clamp_min", "clamp_max", "clip",
    "lerp", "addcmul", "addcdiv", "maximum", "minimum", "pow", "square", "true_divide", "divide", "multiply",
    "subtract", "float_power", "rsub", "fill", "zero", "floor_divide", "__and__", "__or__", "__xor__", "isclose",
    "polar", "complex", "exponential", "cauchy", "log_normal", "geometric",
    "abs", "copysign", "eq", "ge", "gt", "le", "lt", "ne", "gcd", "lcm", "heaviside", "threshold",
    "absolute", "negative", "fix", "greater", "greater_equal", "less", "less_equal", "not_equal", "isreal",
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "special_digamma", "special_erf",
    "special_erfc", "special_erfinv", "special_exp2", "special_expit", "special_expm1", "special_gammaln",
    "special_i0", "special_log1p", "special_logit", "special_ndtr", "special_psi", "special_round", "special_sinc",
    "special_xlogy",
)  # fmt: skip
def pointwise(flow: Flow, call: Call) -> None:
    """Dimensions that broadcast together are one; a size of 1 that is stretched says nothing."""
    tensors = refs(call.args)
    for result in refs(call.result):
        flow.set(result, broadcast(flow, call, tensors, result.shape))
    if call.name == "add" and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        flow.shortcut(tensors)


@rule(
    "alias", "clone", "contiguous", "detach", "to", "_to_copy", "type_as", "lift_fresh", "lift_fresh_copy", "positive",
    "float", "double", "half", "bfloat16", "requires_grad", "conj", "resolve_conj", "resolve_neg", "view_as_real_copy",
    "identity", "data", "real", "imag",
)  # fmt: skip
def same(flow: Flow, call: Call) -> None:
    """The result has the labels of the first tensor."""
    source = refs(call.args)[0]
    for result in refs(call.result):
        flow.set(result, flow.of(source))


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(flow: Flow, call: Call) -> None:
    """A tensor made in the shape of another one shrinks with it."""
    same(flow, call)


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def filled(flow: Flow, call: Call) -> None:
    """A tensor filled with one value: its sizes follow whatever it meets; trial runs tell whether the code agrees."""
    for result in refs(call.result):
        flow.set(result, [flow.atoms.fresh(size) for size in result.shape])


@resize("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def filled_size(call: Call, widths: Widths) -> dict[str, Any]:
    return {**call.args, "size": list(widths.shape(call.result))}


@rule(
    "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "scalar_tensor", "tensor",
    "tril_indices", "triu_indices", "hann_window", "sym_size", "bernoulli", "normal", "uniform",
)  # fmt: skip
def constant(flow: Flow, call: Call) -> None:
    """Values that depend on their position: fixed."""
    for ref in refs(call.args):
        for label in flow.of(ref):
            flow.pin(label, call, f"torch.{call.name} makes values that depend on the position")
    for result in refs(call.result):
        flow.set(result, [None] * len(result.shape))


@rule("prelu")
def prelu(flow: Flow, call: Call) -> None:
    """One slope for all, or one per channel (dimension 1)."""
    x, weight, result = call.args["self"], call.args["weight"], call.result
    labels = flow.of(x)
    if weight.shape and weight.shape[0] > 1:
        flow.join(labels[1], flow.of(weight)[0], call)
    flow.set(result, labels)


@rule("glu")
def glu(flow: Flow, call: Call) -> None:
    """The first half times the sigmoid of the second half: the halves go together."""
    x, result = call.args["self"], call.result
    dim = call.args["dim"] % len(x.shape)
    labels = list(flow.of(x))
    label = flow.atoms.resolve(labels[dim])
    if label is not None:
        half = x.shape[dim] // 2
        flow.join(label[:, :half], label[:, half:], call)
        labels[dim] = label[:, :half]
    flow.set(result, labels)


@rule("broadcast_tensors")
def broadcast_tensors(flow: Flow, call: Call) -> None:
    """Every tensor in the shape that they have together."""
    pointwise(flow, call)


@rule("view_as_real")
def view_as_real(flow: Flow, call: Call) -> None:
    """A new last dimension of size 2, real and imaginary part: fixed."""
    flow.set(call.result, [*flow.of(call.args["self"]), None])


@rule("view_as_complex")
def view_as_complex(flow: Flow, call: Call) -> None:
    """The last dimension of size 2 becomes one number."""
    labels = flow.of(call.args["self"])
    flow.pin(labels[-1], call, "the real and imaginary part stand there")
    flow.set(call.result, labels[:-1])


def broadcast(flow: Flow, call: Call, tensors: list[Ref], shape: tuple[int, ...]) -> list[Label]:
    """Return the labels of a broadcast result, joining the tensors along it."""
    return aligned(flow, call, [(flow.of(tensor), tensor.shape) for tensor in tensors], shape)


def aligned(
    flow: Flow, call: Call, rows: Sequence[tuple[Sequence[Label], Sequence[int]]], shape: Sequence[int]
) -> list[Label]:
    """Return the labels of a broadcast shape, joining rows of labels along it; rows end at the last dimension.

    Args:
        rows: Labels with the sizes of their dimensions; a size that is stretched says nothing.
    """
    labels: list[Label] = []
    for position in range(len(shape)):
        back = len(shape) - position
        met = [
            own[len(sizes) - back]
            for own, sizes in rows
            if len(sizes) >= back and sizes[len(sizes) - back] == shape[position]
        ]
        for other in met[1:]:
            flow.join(met[0], other, call)
        labels.append(met[0] if met and shape[position] > 1 else None)
    return labels
