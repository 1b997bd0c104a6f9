"""Grouped convolutions whose channels come out pinned: they may do better when their weights are cut block by block.

Where removed channels leave with their position in every block, or with their whole block, nothing more is needed. That
fails where something else (a shuffle, a concatenation, a sum) orders the channels across the borders of the blocks.
"""

from __future__ import annotations

from collections import Counter

from edgeprune.graph.flow import Flow, refs
from edgeprune.graph.labels import Label


def crossing(flow: Flow) -> frozenset[str]:
    """Return the weights of grouped convolutions with pinned channels that could be cut block by block.

    A weight can where nothing else takes it: its dimension 1 means other channels in every block of its rows.

    Args:
        flow: After propagation.
    """
    uses = Counter(
        record.tensors[ref.id]
        for record in (flow.record, *flow.others)
        for call in record.calls
        for ref in refs(call.args)
        if ref.id in record.tensors
    )
    calls = Counter(grouped.weight for grouped in flow.grouped)
    blocks: dict[str, set[int]] = {}
    for grouped in flow.grouped:
        blocks.setdefault(grouped.weight, set()).add(grouped.groups)
    labels = [label for grouped in flow.grouped for label in (grouped.channels, grouped.rows) if label is not None]
    if not any(_pinned(flow, label) for label in labels):  # what was fixed from the start (an image) is no reason
        return flow.in_blocks
    return flow.in_blocks | frozenset(
        grouped.weight
        for grouped in flow.grouped
        if (_pinned(flow, grouped.channels) or _pinned(flow, grouped.rows))
        and uses[grouped.weight] == calls[grouped.weight]
        and len(blocks[grouped.weight]) == 1
    )


def _pinned(flow: Flow, label: Label) -> bool:
    """Tell whether positions of a label can never go, pinned or fixed."""
    found = flow.atoms.resolve(label)
    return found is None or not bool(found.any(axis=0).all())
