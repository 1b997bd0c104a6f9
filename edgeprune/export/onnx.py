"""Convert a captured program to ONNX.

Owns the call of torch's exporter and what is cleaned up afterwards: names, the name of the batch dimension, and the
source paths that the exporter leaves in the file. Does not verify and does not choose the final name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError, MissingDependency
from edgeprune.export.record import KEY, Record

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
# A protobuf file ends at 2 GiB; the rest is room for the graph itself.
WEIGHTS_LIMIT_BYTES = 2**31 - 2**24
_PREFIX = "network."
_MOVING = ("Concat", "Slice", "Squeeze", "Split", "Transpose", "Unsqueeze")
_SMALL = 16  # elements of a constant that stays a node, where viewers show its values


def check_packages() -> None:
    """Check that torch's ONNX exporter can run.

    Raises:
        MissingDependency: onnx or onnxscript is not installed.
    """
    from importlib.util import find_spec

    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingDependency(
                f"ONNX export needs {package}, which is not installed", fix=f"pip install {package}"
            )


def convert_to_onnx(program: torch.export.ExportedProgram, record: Record, path: Path) -> None:
    """Write a captured program as one ONNX file with its weights inside, at the exporter's default opset.

    Raises:
        ExportError: The exporter has no ONNX form for an operator, or the weights do not fit into one file.
        OSError: The file cannot be written.
    """
    import torch

    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > WEIGHTS_LIMIT_BYTES:
        raise ExportError(
            f"the network holds {weights / 1e9:.2f} GB of weights, and an ONNX file ends at 2 GB",
            fix="prune more, or export .tflite",
        )
    in_names = [spec.name for spec in record.inputs]
    out_names = [spec.name for spec in record.outputs]
    try:
        result = torch.onnx.export(program, dynamo=True, verbose=False, input_names=in_names, output_names=out_names)
    except Exception as error:  # the exporter raises many kinds, user-registered operators any
        raise ExportError(f"torch.onnx cannot convert the network: {_cause(error)}") from error
    assert result is not None
    model = result.model
    _fold_weights_(model)
    _clean_(model, _batch_symbol(program))
    model.metadata_props[KEY] = record.as_text()
    path.write_bytes(result.model_proto.SerializeToString())


def _fold_weights_(model: Any) -> None:
    """Do once, here, what the file would do with its weights in every inference: cut them, join them, turn them.

    The exporter leaves that where weights are large. Gates of recurrent layers are in another order in ONNX, so for an
    LSTM it is most of the nodes. What else it left stays: an `Expand` of a weight is smaller than its result.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
    from onnxscript import optimizer

    def moves(node: Any) -> bool:
        return node.domain in ("", "ai.onnx") and node.op_type in _MOVING

    if not any(moves(node) and any(_weight(value) for value in node.inputs) for node in model.graph):
        return
    limits = {"input_size_limit": WEIGHTS_LIMIT_BYTES, "output_size_limit": WEIGHTS_LIMIT_BYTES}
    optimizer.fold_constants(model, should_fold=moves, **limits)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=_SMALL)(model)
    RemoveUnusedNodesPass()(model)


def _weight(value: Any) -> bool:
    return value is not None and value.is_initializer()


def _batch_symbol(program: torch.export.ExportedProgram) -> str | None:
    """Return the name that torch.export gave to the free batch, such as `s77`."""
    import torch

    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, torch.Tensor) and value.ndim and not isinstance(value.shape[0], int):
            return str(value.shape[0])
    return None


def _clean_(model: Any, symbol: str | None) -> None:
    """Drop the exporter's notes (stack traces, source paths), and name weights and batch as the user knows them."""
    import onnx_ir

    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.metadata_props.clear()
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()
        if symbol is not None and value.shape is not None:
            value.shape = onnx_ir.Shape([_renamed(size, symbol) for size in value.shape])
    graph.metadata_props.clear()
    for name, value in list(graph.initializers.items()):
        short = name.removeprefix(_PREFIX)
        if short != name and short not in graph.initializers:
            value.name = short


def _renamed(size: Any, symbol: str) -> Any:
    text = getattr(size, "value", size)
    return text.replace(symbol, "batch") if isinstance(text, str) else text


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost error: the operator that has no ONNX form, and why."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    if innermost is not error:
        _LOG.info("torch.onnx: %s", error)
    lines = [line.strip() for line in str(innermost).splitlines() if line.strip()]
    return f"{type(innermost).__name__}: {lines[0][:300]}" if lines else type(innermost).__name__
