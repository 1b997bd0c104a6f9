"""Attention kept whole: heads go together, the query and key are blanked where their channels are removed."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths, resize, rule
from edgeprune.graph.labels import Label
from edgeprune.graph.rules.elementwise import aligned


@rule("scaled_dot_product_attention")
def attention(flow: Flow, call: Call) -> None:
    """Query (..., L, E), key (..., S, E), value (..., S, Ev): a softmax over S of the products along E.

    E is marked: removed channels of two activations need not be zero. The scale stays that of the dense network.
    """
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    mask = call.args.get("attn_mask")
    q, k, v = (list(flow.of(ref)) for ref in (query, key, value))
    shape = call.result.shape
    lead, rank = list(shape[:-2]), len(shape)
    rows: list[tuple[list[Label], list[int]]] = [(q[:-2], list(query.shape[:-2]))]
    for ref, labels in ((key, k), (value, v)):
        rows.append(_shared_heads(flow, labels[:-2], ref.shape[:-2], query.shape, bool(call.args.get("enable_gqa"))))
    flow.join(k[-2], v[-2], call)
    flow.pin(k[-2], call, "attention runs over it")
    flow.pin(v[-2], call, "attention runs over it")
    if call.args.get("is_causal"):
        flow.pin(q[-2], call, "causal attention counts its positions")
    flow.join(q[-1], k[-1], call)
    flow.inside_heads(q[-1])
    flow.inside_heads(v[-1])
    flow.mark(call, {("query", len(q) - 1): q[-1], ("key", len(k) - 1): k[-1]})
    heads = aligned(flow, call, rows, lead)
    if isinstance(mask, Ref):
        scores = [([*heads, q[-2], k[-2]], [*lead, query.shape[-2], key.shape[-2]]), (flow.of(mask), mask.shape)]
        aligned(flow, call, scores, [*lead, query.shape[-2], key.shape[-2]])
    pairs = prod(lead) * query.shape[-2] * key.shape[-2]
    flow.contracted(None, pairs * query.shape[-1], [*heads, q[-2], q[-1]])
    flow.contracted(None, pairs * value.shape[-1], [*heads, q[-2], v[-1]])
    flow.set(call.result, [*heads, q[-2], v[-1]][-rank:])


@resize("scaled_dot_product_attention")
def dense_scale(call: Call, widths: Widths) -> dict[str, Any]:
    """Without a scale the operator takes it from the width of the query, which was that of the dense network."""
    scale = call.args.get("scale")
    return {**call.args, "scale": call.args["query"].shape[-1] ** -0.5 if scale is None else scale}


def _shared_heads(
    flow: Flow, labels: list[Label], sizes: tuple[int, ...], query: tuple[int, ...], grouped: bool
) -> tuple[list[Label], list[int]]:
    """Return the leading dimensions of a key or value; several heads in a row of the query use each of its heads."""
    stretched, shape = list(labels), list(sizes)
    if grouped and len(shape) and len(query) > 2 and 1 < shape[-1] < query[-3]:
        times = query[-3] // shape[-1]
        label = flow.atoms.resolve(stretched[-1])
        stretched[-1] = None if label is None else np.repeat(label, times, axis=1)
        shape[-1] = query[-3]
    return stretched, shape
