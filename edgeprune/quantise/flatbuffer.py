"""TFLite files as objects, and back as bytes.

Owns the two things that a generated reader and writer leave out: weights that lie behind the flatbuffer, and the
alignment of 16 bytes that the schema asks for constants. Without it some kernels read misaligned addresses, which
32-bit ARM processors do not allow.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_ALIGNMENT = 16


def unpacked(content: bytes) -> Any:
    """Return a file's content as the schema's `ModelT`, all weights in their buffers."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(content))
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, dtype=np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any) -> bytes:
    """Return a `ModelT` as the content of a file, every constant at a multiple of 16 bytes."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        """A builder that aligns vectors of bytes: constants are nothing else."""

        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, _ALIGNMENT if elemSize == 1 else alignment)

    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    builder = Aligned(size + 65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def operator_kind(model: Any, operator: Any) -> str:
    """Return TFLite's name for what an operator does, such as `CONV_2D`."""
    code = model.operatorCodes[operator.opcodeIndex]
    return builtin_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


@functools.cache
def builtin_names() -> dict[int, str]:
    """Return the names of TFLite's operators by their number."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
