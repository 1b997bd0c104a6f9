"""Reductions. Over a removable dimension they depend on which positions exist, so they are marked."""

from __future__ import annotations

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, dims, refs, rule
from edgeprune.graph.labels import Label
from edgeprune.graph.rules.elementwise import aligned, pointwise


@rule(
    "mean", "sum", "nansum", "nanmean", "amax", "amin", "linalg_vector_norm", "norm", "frobenius_norm", "var", "std",
    "var_mean", "std_mean", "logsumexp", "prod", "any", "all", "count_nonzero", "aminmax", "linalg_norm",
    "linalg_matrix_norm", "nuclear_norm", "special_logsumexp",
)  # fmt: skip
def reduction(flow: Flow, call: Call) -> None:
    """Dimensions that are reduced away; the rest keep their labels."""
    _reduce(flow, call, _axes(call), marked=True)


@rule("max", "min", "median", "nanmedian", "mode", "kthvalue")
def extreme(flow: Flow, call: Call) -> None:
    """Elementwise for two tensors, else a reduction; where its indices are used they would be renumbered."""
    if "other" in call.args:
        pointwise(flow, call)
        return
    axes = _axes(call)
    indices = refs(call.result)[1:]
    named = bool(indices) and _used(flow, indices[0])
    for axis in axes if named else []:
        flow.pin(flow.of(call.args["self"])[axis], call, f"the indices of torch.{call.name} count its positions")
    _reduce(flow, call, axes, marked=not named)


@rule("argmax", "argmin", "quantile", "nanquantile")
def positional(flow: Flow, call: Call) -> None:
    """Results that name positions or stand between them: the dimension is fixed."""
    _pin_axes(flow, call, _axes(call))
    if call.name in ("quantile", "nanquantile") and isinstance(call.args["q"], Ref) and call.args["q"].shape:
        _reduce(flow, call, _axes(call), marked=False, first=[flow.of(call.args["q"])[0]])
        return
    _reduce(flow, call, _axes(call), marked=False)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "msort", "topk", "diff")
def running(flow: Flow, call: Call) -> None:
    """Results that run along a dimension: it is fixed, the others pass."""
    source = call.args["self"]
    labels = list(flow.of(source))
    if labels:
        axis = call.args.get("dim", 0 if call.name == "msort" else -1) % len(labels)
        _pin_axes(flow, call, [axis])
        for ref in refs({key: call.args.get(key) for key in ("prepend", "append")}):
            _join_others(flow, call, labels, ref, axis)
        if refs(call.result)[0].shape[axis] != source.shape[axis]:
            labels[axis] = None
    for result in refs(call.result):
        flow.set(result, labels)


def _join_others(flow: Flow, call: Call, labels: list[Label], ref: Ref, axis: int) -> None:
    """Join all dimensions with those of another tensor but one, which is fixed."""
    for place, (mine, other) in enumerate(zip(labels, flow.of(ref), strict=True)):
        if place == axis:
            flow.pin(other, call, f"torch.{call.name} runs over this dimension")
        else:
            flow.join(mine, other, call)


@rule("cosine_similarity", "pairwise_distance")
def similarity(flow: Flow, call: Call) -> None:
    """Two tensors that broadcast, compared along one dimension."""
    x, y = call.args["x1"], call.args["x2"]
    rank = max(len(x.shape), len(y.shape))
    shape = [
        max(ref.shape[axis - rank + len(ref.shape)] for ref in (x, y) if axis - rank + len(ref.shape) >= 0)
        for axis in range(rank)
    ]
    labels = aligned(flow, call, [(flow.of(ref), ref.shape) for ref in (x, y)], shape)
    axis = call.args.get("dim", -1) % rank
    marks: dict[tuple[str, int], Label] = {}
    for name, ref in (("x1", x), ("x2", y)):
        own = axis - rank + len(ref.shape)
        if own >= 0 and ref.shape[own] == 1 and shape[axis] > 1:
            flow.pin(labels[axis], call, "one value is compared with all of it")
        elif own >= 0:
            marks[(name, own)] = flow.of(ref)[own]
    flow.mark(call, marks)
    kept = [None] if call.args.get("keepdim") else []
    flow.set(call.result, [*labels[:axis], *kept, *labels[axis + 1 :]])


@rule("cdist", "_euclidean_dist")
def cdist(flow: Flow, call: Call) -> None:
    """Distances of all rows (..., P, M) of one tensor from all rows (..., R, M) of another."""
    x, y, result = call.args["x1"], call.args["x2"], call.result
    mine, other = flow.of(x), flow.of(y)
    flow.join(mine[-1], other[-1], call)
    flow.mark(call, {("x1", len(mine) - 1): mine[-1], ("x2", len(other) - 1): other[-1]})
    rows = [(mine[:-2], x.shape[:-2]), (other[:-2], y.shape[:-2])]
    flow.set(result, [*aligned(flow, call, rows, result.shape[:-2]), mine[-2], other[-2]])


@rule("dist")
def dist(flow: Flow, call: Call) -> None:
    """One distance between all values of two tensors."""
    x, y = call.args["self"], call.args["other"]
    if x.shape != y.shape:
        flow.give_up(call)
        return
    labels = aligned(flow, call, [(flow.of(ref), ref.shape) for ref in (x, y)], x.shape)
    flow.mark(call, {(name, axis): label for name in ("self", "other") for axis, label in enumerate(labels)})
    flow.set(call.result, [])


def _axes(call: Call) -> list[int]:
    return dims(call.args.get("dim"), len(call.args["self"].shape))


def _used(flow: Flow, ref: Ref) -> bool:
    """Tell whether a tensor is an argument of any call or returned."""
    wanted = ref.id
    calls = (other for call in flow.record.calls for other in refs(call.args))
    return any(other.id == wanted for other in [*flow.record.outputs, *calls])


def _pin_axes(flow: Flow, call: Call, axes: list[int]) -> None:
    for axis in axes:
        flow.pin(flow.of(call.args["self"])[axis], call, f"torch.{call.name} runs over this dimension")


def _reduce(flow: Flow, call: Call, axes: list[int], marked: bool, first: list[Label] | None = None) -> None:
    labels = list(flow.of(call.args["self"]))
    if marked:
        flow.mark(call, {("self", axis): labels[axis] for axis in axes})
    for result in refs(call.result):
        if call.args.get("keepdim"):
            kept = [None if axis in axes else label for axis, label in enumerate(labels)]
        else:
            kept = [label for axis, label in enumerate(labels) if axis not in axes]
        flow.set(result, [*(first or []), *kept])
