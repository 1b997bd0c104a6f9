"""Reductions. Over a removable dimension they depend on which positions exist, so they are marked."""

from __future__ import annotations

from edgeprune.graph.capture import Call
from edgeprune.graph.flow import Flow, dims, refs, rule


@rule("mean", "sum", "amax", "amin", "linalg_vector_norm", "norm", "var", "std")
def reduction(flow: Flow, call: Call) -> None:
    """Dimensions that are reduced away; the rest keep their labels."""
    _reduce(flow, call, dims(call.args.get("dim"), len(call.args["self"].shape)), marked=True)


@rule("max", "min")
def extreme(flow: Flow, call: Call) -> None:
    """Elementwise for two tensors, else a reduction; positions of a removable dimension would be renumbered."""
    from edgeprune.graph.rules.elementwise import pointwise

    if "other" in call.args:
        pointwise(flow, call)
        return
    axes = dims(call.args.get("dim"), len(call.args["self"].shape))
    _reduce(flow, call, axes, marked=len(refs(call.result)) == 1 or "dim" in call.args)


@rule("argmax", "argmin", "any", "all", "prod", "logsumexp", "cumsum", "cumprod", "sort", "topk", "median")
def positional(flow: Flow, call: Call) -> None:
    """Results that name positions or run along them: the dimension is fixed."""
    source = call.args["self"]
    axes = dims(call.args.get("dim"), len(source.shape))
    for axis in axes:
        flow.pin(flow.of(source)[axis], call, f"torch.{call.name} runs over this dimension")
    _reduce(flow, call, axes, marked=False)


def _reduce(flow: Flow, call: Call, axes: list[int], marked: bool) -> None:
    source = call.args["self"]
    labels = list(flow.of(source))
    if marked:
        flow.mark(call, {("self", axis): labels[axis] for axis in axes})
    for result in refs(call.result):
        if len(result.shape) == len(labels):
            flow.set(result, [None if axis in axes and result.shape[axis] == 1 else labels[axis]
                              for axis in range(len(labels))])  # fmt: skip
        else:
            flow.set(result, [label for axis, label in enumerate(labels) if axis not in axes])
