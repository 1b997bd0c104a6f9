"""How much of a network is in reach: the share of its parameters in tensors that can shrink.

The widths of what a network returns are its interface: nothing may shrink there, whatever a tool can do. A tensor that
stays whole for that reason alone would be in reach if the outputs might shrink. A bare encoder returns its residual
stream; its embeddings and norms are such tensors, while the rest of it is inside. A classifier's weight whose columns
stay whole for another reason is not: it is out of reach.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from edgeprune.errors import EdgePruneError
from edgeprune.graph import trace
from edgeprune.graph.capture import Record
from edgeprune.graph.flow import Flow, refs

PICKED_ROWS = "rows of an embedding are picked by number"


def reached(graph: Any) -> frozenset[str]:
    """Return the tensors that removing some free unit would shrink, by first name."""
    free = torch.zeros(graph.unit_count + 1, dtype=torch.bool)
    for group in graph.free:
        free[torch.from_numpy(group.units)] = True
    return frozenset(name for (name, _), units in graph.dims.items() if bool(free[torch.from_numpy(units)].any()))


def held_by_outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> frozenset[str]:
    """Return the tensors that could shrink if the network's outputs might, and cannot as they may not.

    Only those that nothing else holds: no dimension of theirs stays whole even then, apart from kernels, rows that
    numbers pick, and what meets the network's inputs.

    Raises:
        EdgePruneError: The network cannot be followed.
    """
    flows: list[Flow] = []
    pin_outputs = Flow.pin_outputs
    Flow.pin_outputs = lambda flow: flows.append(flow)  # type: ignore[method-assign, assignment]
    try:
        without = reached(trace(model, inputs))
    finally:
        Flow.pin_outputs = pin_outputs  # type: ignore[method-assign]
    return without - reached(trace(model, inputs)) - _held_otherwise(flows[0])


def _held_otherwise(flow: Flow) -> frozenset[str]:
    """Return the tensors with a dimension that is pinned, and neither by its kind nor by the network's inputs."""
    outer = _at_inputs(flow.record)
    found = set()
    for key, name in flow.record.tensors.items():
        for label in flow.labels.get(key, [])[:2]:
            pinned = None if label is None else flow.atoms.explain(label)
            if pinned is not None and pinned[1].reason != PICKED_ROWS and name not in outer:
                found.add(name)
    return frozenset(found)


def _at_inputs(record: Record) -> frozenset[str]:
    """Return the parameters that meet the network's inputs, or what is made of them without any parameter."""
    raw = {ref.id for ref in record.inputs}
    found = set()
    for call in record.calls:
        arguments = refs(call.args)
        own = {record.tensors[ref.id] for ref in arguments if ref.id in record.tensors}
        if any(ref.id in raw for ref in arguments):
            found |= own
            raw |= set() if own else {ref.id for ref in refs(call.result)}
    return frozenset(found)


def share(model: nn.Module, names: Collection[str], without: Collection[str] = ()) -> float:
    """Return the share of the parameters that are in the named tensors.

    Args:
        without: Tensors that count neither as reached nor as parameters.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if name not in without}
    return round(sum(size for name, size in sizes.items() if name in names) / max(sum(sizes.values()), 1), 4)


def share_inside(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: Collection[str]) -> float | None:
    """Return the share without what the outputs hold; None where the network cannot be followed.

    Args:
        names: The tensors that a tool reaches. One that it reaches although edgeprune does not counts nowhere.
    """
    try:
        return share(model, names, held_by_outputs(model, inputs))
    except EdgePruneError:
        return None
