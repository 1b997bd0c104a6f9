"""Names of the tensors of a TFLite file that say where in the network they come from, and are unique.

The converter names a tensor after everything that went into it, and gives one name to many. Here a result is called
after the user's module and its operator, `blocks.3.conv/CONV_2D`, and a constant after its place, such as
`blocks.3.conv.weight`.
"""

from __future__ import annotations

import re
from typing import Any

from edgeprune.quantise.flatbuffer import operator_kind

# The mark that edgeprune puts before a module's path, in the names that the converter builds.
_MARKED = re.compile(r"edgeprune_([^;]+)")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D")
_ROLES = {1: "weight", 2: "bias"}


def named(model: Any) -> bool:
    """Return whether every tensor of a file has a name of its own that quantisers can tell from others."""
    for graph in model.subgraphs:
        names = [bytes(tensor.name or b"") for tensor in graph.tensors]
        if len(set(names)) < len(names) or any(b";" in name or not name for name in names):
            return False
    return True


def name_tensors_(model: Any) -> None:
    """Give the tensors of a file, apart from its inputs and outputs, speaking and unique names, in place."""
    for graph in model.subgraphs:
        ends = {*(int(index) for index in graph.inputs), *(int(index) for index in graph.outputs)}
        taken = {_text(graph.tensors[index]) for index in ends}
        done = set(ends)
        for operator in graph.operators:
            path, kind = _path(graph, operator), operator_kind(model, operator)
            for position, index in enumerate(int(index) for index in operator.outputs):
                if index not in done:
                    done.add(index)
                    suffix = f".{position}" if position else ""
                    graph.tensors[index].name = _unique(f"{path}/{kind}{suffix}" if path else kind + suffix, taken)
            made = _text(graph.tensors[operator.outputs[0]]) if len(operator.outputs) else kind
            for position, index in enumerate(int(index) for index in operator.inputs):
                if index >= 0 and index not in done and _constant(model, graph.tensors[index]):
                    done.add(index)
                    role = _ROLES.get(position) if kind in _WEIGHTED else None
                    owner = path if role and path else made
                    graph.tensors[index].name = _unique(f"{owner}.{role or f'constant{position}'}", taken)
        for index, tensor in enumerate(graph.tensors):
            if index not in done:
                tensor.name = _unique(f"tensor{index}", taken)


def _path(graph: Any, operator: Any) -> str:
    """Return the innermost of the modules that an operator came from.

    Where several are as deep, it is the last: what was fused into an operator stands before it. The name of an output
    of the whole file is the user's, so there the operator's constants tell.
    """
    for index in (*operator.outputs, *reversed(operator.inputs)):
        paths = (
            [found.replace("/", ".") for found in _MARKED.findall(_text(graph.tensors[index]))] if index >= 0 else []
        )
        if paths:
            return str(max(reversed(paths), key=lambda path: path.count(".")))
    return ""


def _constant(model: Any, tensor: Any) -> bool:
    return model.buffers[tensor.buffer].data is not None


def _text(tensor: Any) -> str:
    name = tensor.name or b""
    return str(name.decode() if isinstance(name, bytes) else name)


def _unique(name: str, taken: set[str]) -> bytes:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found.encode()
