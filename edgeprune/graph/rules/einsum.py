"""Sums of products in general: every letter is one dimension, in whichever tensors it stands."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, refs, rule
from edgeprune.graph.labels import Label
from edgeprune.graph.rules.contract import added, fixed_weight
from edgeprune.graph.rules.elementwise import pointwise


@rule("einsum")
def einsum(flow: Flow, call: Call) -> None:
    """Letters as in the equation, an ellipsis for those that broadcast."""
    operands = {f"tensors.{n}": ref for n, ref in enumerate(refs(call.args["tensors"]))}
    terms, output = parse(call.args["equation"], [len(ref.shape) for ref in operands.values()])
    flow.set(call.result, sum_of_products(flow, call, operands, terms, output))


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Return the letters of every operand and of the output; an ellipsis stands for `.1` (its last), `.2`, ..."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    covered = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    letters = [_spread(term, count) for term, count in zip(terms, covered, strict=True)]
    if arrow:
        return letters, _spread(right, max(covered))
    every = [letter for own in letters for letter in own if not letter.startswith(".")]
    once = sorted(letter for letter in set(every) if every.count(letter) == 1)
    return letters, [*_spread("...", max(covered)), *once]


def _spread(term: str, covered: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f".{back}" for back in range(covered if dots else 0, 0, -1)), *after]


def sum_of_products(
    flow: Flow, call: Call, operands: dict[str, Ref], terms: Sequence[Sequence[str]], output: Sequence[str]
) -> list[Label]:
    """Join every letter over the tensors in which it stands and return the labels of the output.

    Args:
        operands: Tensors by argument name; `tensors.1` is the second one of a list.
        terms: A letter for every dimension of every operand.
    """
    labels: dict[str, Label] = {}
    sizes: dict[str, int] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    for (name, ref), term in zip(operands.items(), terms, strict=True):
        for axis, (letter, label, size) in enumerate(zip(term, flow.of(ref), ref.shape, strict=True)):
            if size == 1:  # stretched, or nothing that could be removed
                continue
            if letter in labels:
                flow.join(labels[letter], label, call)
            labels.setdefault(letter, label)
            sizes[letter] = size
            places.setdefault(letter, []).append((name, axis))
            if term.count(letter) > 1:
                flow.pin(label, call, "a diagonal is taken along it")
    marks = {
        place: labels[letter]
        for letter, found in places.items()
        if letter not in output and not _weighted(flow, [operands[name] for name, _ in found])
        for place in found
    }
    flow.mark(call, marks)
    _name_producers(flow, operands, terms, output)
    _count(flow, list(operands.values()), terms, output, labels, sizes)
    return [labels.get(letter) for letter in output]


def _weighted(flow: Flow, tensors: Sequence[Ref]) -> bool:
    """Tell whether a weight multiplies an activation: then removed positions add nothing to the sum."""
    return any(fixed_weight(flow, ref) for ref in tensors) and any(ref.id in flow.activations for ref in tensors)


def _name_producers(
    flow: Flow, operands: dict[str, Ref], terms: Sequence[Sequence[str]], output: Sequence[str]
) -> None:
    tensors = list(operands.values())
    for index, (ref, term) in enumerate(zip(tensors, terms, strict=True)):
        others = {letter for number, own in enumerate(terms) if number != index for letter in own}
        for axis, letter in enumerate(term):
            if letter in output and letter not in others and fixed_weight(flow, ref):
                flow.produced(ref, axis)


def _count(
    flow: Flow,
    tensors: Sequence[Ref],
    terms: Sequence[Sequence[str]],
    output: Sequence[str],
    labels: dict[str, Label],
    sizes: dict[str, int],
) -> None:
    """Count the products from the first operand to the last; letters of one operand alone are summed before."""
    known = [{letter for letter in term if letter in sizes} for term in terms]
    current = known[0]
    for index in range(1, len(terms)):
        own = known[index]
        needed = set(output).union(*known[index + 1 :])
        if (current & own) - needed:
            met = sorted((current & own) | ((current | own) & needed))
            weight = flow.parameter(tensors[index]) or (flow.parameter(tensors[0]) if index == 1 else None)
            flow.contracted(weight, prod(sizes[letter] for letter in met), [labels[letter] for letter in met])
        current = (current | own) & needed


@rule("tensordot")
def tensordot(flow: Flow, call: Call) -> None:
    """The named dimensions of both are summed, the others follow one another."""
    a, b = call.args["self"], call.args["other"]
    first = [f"a{axis}" for axis in range(len(a.shape))]
    second = [f"b{axis}" for axis in range(len(b.shape))]
    summed = set()
    for mine, other in zip(call.args["dims_self"], call.args["dims_other"], strict=True):
        second[other % len(second)] = first[mine % len(first)]
        summed.add(first[mine % len(first)])
    output = [letter for letter in [*first, *second] if letter not in summed]
    flow.set(call.result, sum_of_products(flow, call, {"self": a, "other": b}, [first, second], output))


@rule("inner")
def inner(flow: Flow, call: Call) -> None:
    """Sums over the last dimensions of both."""
    a, b = call.args["self"], call.args["other"]
    if not a.shape or not b.shape:
        pointwise(flow, call)
        return
    first = [f"a{axis}" for axis in range(len(a.shape) - 1)]
    second = [f"b{axis}" for axis in range(len(b.shape) - 1)]
    terms = [[*first, "k"], [*second, "k"]]
    flow.set(call.result, sum_of_products(flow, call, {"self": a, "other": b}, terms, [*first, *second]))


@rule("outer", "ger")
def outer(flow: Flow, call: Call) -> None:
    """Every value of one vector times every value of the other."""
    name = "vec2" if "vec2" in call.args else "other"
    operands = {"self": call.args["self"], name: call.args[name]}
    flow.set(call.result, sum_of_products(flow, call, operands, ["i", "j"], "ij"))


@rule("linalg_vecdot")
def vecdot(flow: Flow, call: Call) -> None:
    """Sums over one dimension of two tensors that broadcast."""
    x, y = call.args["x"], call.args["y"]
    rank = max(len(x.shape), len(y.shape))
    letters = [f".{axis}" for axis in range(rank)]
    terms = [letters[rank - len(ref.shape) :] for ref in (x, y)]
    output = list(letters)
    del output[call.args["dim"] % rank]
    flow.set(call.result, sum_of_products(flow, call, {"x": x, "y": y}, terms, output))


@rule("bilinear")
def bilinear(flow: Flow, call: Call) -> None:
    """x (..., a) times weight (out, a, b) times y (..., b)."""
    x, y, weight, bias = (call.args[name] for name in ("input1", "input2", "weight", "bias"))
    lead = [f".{axis}" for axis in range(len(x.shape) - 1)]
    operands = {"input1": x, "weight": weight, "input2": y}
    labels = sum_of_products(flow, call, operands, [[*lead, "a"], ["o", "a", "b"], [*lead, "b"]], [*lead, "o"])
    if isinstance(bias, Ref):
        flow.join(labels[-1], flow.of(bias)[0], call)
    flow.set(call.result, labels)


@rule("chain_matmul", "linalg_multi_dot")
def chain(flow: Flow, call: Call) -> None:
    """Matrices one after the other; the first and the last may be vectors."""
    name = "matrices" if "matrices" in call.args else "tensors"
    tensors = refs(call.args[name])
    terms = [[f"d{n}", f"d{n + 1}"] for n in range(len(tensors))]
    if len(tensors[0].shape) == 1:
        terms[0] = ["d1"]
    if len(tensors[-1].shape) == 1:
        terms[-1] = terms[-1][:1]
    operands = {f"{name}.{n}": ref for n, ref in enumerate(tensors)}
    ends = {"d0", f"d{len(tensors)}"}
    output = [letter for term in terms for letter in term if letter in ends]
    flow.set(call.result, sum_of_products(flow, call, operands, terms, output))


_SUMS = {
    "baddbmm": (("batch1", "batch2"), ("bnk", "bkm"), "bnm"),
    "addbmm": (("batch1", "batch2"), ("bnk", "bkm"), "nm"),
    "addmv": (("mat", "vec"), ("nk", "k"), "n"),
    "addr": (("vec1", "vec2"), ("n", "m"), "nm"),
}


@rule("baddbmm", "addbmm", "addmv", "addr")
def sum_with_product(flow: Flow, call: Call) -> None:
    """A tensor plus a product of two others."""
    names, terms, output = _SUMS[call.name]
    labels = sum_of_products(flow, call, {name: call.args[name] for name in names}, terms, output)
    flow.set(call.result, added(flow, call, labels, call.args["self"]))


@rule("kron")
def kron(flow: Flow, call: Call) -> None:
    """Every dimension is that of the first tensor, each position of it as long as the second."""
    a, b = call.args["self"], call.args["other"]
    rank = len(call.result.shape)
    first = [*[None] * (rank - len(a.shape)), *flow.of(a)]
    second = [*[None] * (rank - len(b.shape)), *flow.of(b)]
    sizes = [(1,) * (rank - len(ref.shape)) + ref.shape for ref in (a, b)]
    pairs = zip(first, second, *sizes, strict=True)
    flow.set(call.result, [flow.atoms.flatten([x, y], [n, m]) for x, y, n, m in pairs])
