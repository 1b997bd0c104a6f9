"""How large a file is, how large once compressed, and which weights take the room.

Owns where each format keeps its constants and what they are called. Never imports torch.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.quantise.flatbuffer import builtin_names, unpacked
from edgeprune.values import Json

_CHUNK = 1 << 20
# LZMA takes 0.3 s for a megabyte: beyond this the answer is not worth the wait.
LZMA_LIMIT_BYTES = 32 * 10**6
_TFLITE_PARTS = {1: "weight", 2: "bias"}
_WITH_PARTS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One constant of a file: the first operator that uses it, and its share of the bytes of all constants."""

    name: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    share: float

    def as_dict(self) -> Json:
        return {
            "name": self.name,
            "operator": self.operator,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "size_bytes": self.size_bytes,
            "share": self.share,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A file's bytes: as it is, in a zip (deflate), as LZMA (None where it was not asked for), and by its weights."""

    size_bytes: int
    deflate_bytes: int
    lzma_bytes: int | None
    weights: tuple[Weight, ...]

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of all constants; the rest of the file is the graph and the metadata."""
        return sum(weight.size_bytes for weight in self.weights)

    def as_dict(self) -> Json:
        return {
            "size_bytes": self.size_bytes,
            "deflate_bytes": self.deflate_bytes,
            "lzma_bytes": self.lzma_bytes,
            "weights_bytes": self.weights_bytes,
            "weights": [weight.as_dict() for weight in self.weights],
        }


def sizes_of(path: Path, *, with_lzma: bool = True) -> Sizes:
    """Return the sizes of a file, its weights from the largest to the smallest; those of a `.ort` file are not listed.

    Args:
        with_lzma: Compress with LZMA too, where the file is not larger than `LZMA_LIMIT_BYTES`.

    Raises:
        ConfigError: The suffix is another one.
        ResolveError: The file cannot be read.
    """
    readers = {".onnx": _onnx_weights, ".ort": _unreadable_weights, ".tflite": _tflite_weights}
    if path.suffix not in readers:
        raise ConfigError(f"'{path}' is none of .onnx, .ort, .tflite", fix="name a file that ends in .onnx or .tflite")
    try:
        size = path.stat().st_size
        found = list(readers[path.suffix](path))
        pressed = compressed_bytes(path)
        small = len(lzma.compress(path.read_bytes())) if with_lzma and size <= LZMA_LIMIT_BYTES else None
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}") from error
    total = sum(row[-1] for row in found)
    weights = [
        Weight(name=name, operator=operator, dtype=dtype, shape=shape, size_bytes=count, share=count / max(total, 1))
        for name, operator, dtype, shape, count in found
    ]
    weights.sort(key=lambda weight: (-weight.size_bytes, weight.name))
    return Sizes(size_bytes=size, deflate_bytes=pressed, lzma_bytes=small, weights=tuple(weights))


def compressed_bytes(path: Path) -> int:
    """Return how many bytes a file has after deflate at zlib's default level."""
    pressed, total = zlib.compressobj(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total += len(pressed.compress(chunk))
    return total + len(pressed.flush())


_Row = tuple[str, str, str, tuple[int, ...], int]


def _unreadable_weights(path: Path) -> Iterator[_Row]:
    """Yield nothing: ONNX Runtime publishes no reader of its own format; the `.onnx` file has the same weights."""
    yield from ()


def _onnx_weights(path: Path) -> Iterator[_Row]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ResolveError(f"{path} is not an ONNX file: {error}") from error
    yield from _onnx_graph(model.graph)


def _onnx_graph(graph: Any) -> Iterator[_Row]:
    """Yield the constants of a graph and of the graphs in its nodes."""
    import onnx

    users: dict[str, str] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, node.op_type)
    for tensor in graph.initializer:
        yield _onnx_row(tensor.name, users.get(tensor.name, ""), tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield _onnx_row(node.output[0], users.get(node.output[0], node.op_type), attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _onnx_graph(attribute.g)


def _onnx_row(name: str, operator: str, tensor: Any) -> _Row:
    import onnx

    shape = tuple(int(size) for size in tensor.dims)
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    bits = {"int4": 4, "uint4": 4, "float4e2m1": 4}.get(dtype)
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return name, operator, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape, _bytes(shape, bits)


def _bytes(shape: tuple[int, ...], bits: int) -> int:
    return (math.prod(shape) * bits + 7) // 8


def _tflite_weights(path: Path) -> Iterator[_Row]:
    """Yield the buffers that tensors use, each once, called after their first operator: their own names say little."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ResolveError(f"{path} is not a TFLite file", fix="export the file again")
    model, operators = unpacked(content), builtin_names()
    dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    seen = {0}  # by the format's rule, buffer 0 is empty
    for graph in model.subgraphs:
        for number, operator in enumerate(graph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            kind = operators.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
            for position, index in enumerate(operator.inputs if operator.inputs is not None else ()):
                tensor = graph.tensors[index] if index >= 0 else None
                data = model.buffers[tensor.buffer].data if tensor is not None else None
                if tensor is None or data is None or tensor.buffer in seen:
                    continue
                seen.add(tensor.buffer)
                part = _TFLITE_PARTS.get(position) if kind in _WITH_PARTS else None
                shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
                name = f"{number} {part or f'input {position}'}"
                yield name, kind, dtypes.get(tensor.type, "?"), shape, len(data)
