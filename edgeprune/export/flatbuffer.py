"""Flatbuffers written by hand: tables of a schema that has no generated code here, and whole TFLite models.

Owns the order in which parts of a buffer have to be written, and the alignment of weights. Knows no schema: a table is
its fields by their number in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# TFLite's schema asks for it; runtimes read weights where they lie in the file.
BUFFER_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Byte:
    """A field of one byte: an enumeration's value, or the kind of a union's value."""

    value: int


@dataclass(frozen=True, slots=True)
class Table:
    """Fields by number: a text, a byte, a table, or a tuple of tables or of floats. Empty ones are left out."""

    fields: Mapping[int, str | Byte | Table | tuple[Table, ...] | tuple[float, ...] | None]


def build(root: Table, identifier: bytes) -> bytes:
    """Return a table as a finished buffer with its file identifier of four bytes."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, root), file_identifier=identifier)
    return bytes(builder.Output())


def pack_model(model: Any) -> bytes:
    """Return a TFLite model, an object of the generated schema, as a file whose buffers are aligned."""
    import flatbuffers

    content = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(content + content // 8 + 4096)
    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Aligned:
    """A buffer of a TFLite model that packs itself aligned, which the generated code does not do."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def Pack(self, builder: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        data = self._buffer.data
        start = None
        if data is not None and len(data):
            start = _bytes(builder, bytes(data))
        schema.BufferStart(builder)
        if start is not None:
            schema.BufferAddData(builder, start)
        schema.BufferAddOffset(builder, self._buffer.offset)
        schema.BufferAddSize(builder, self._buffer.size)
        return int(schema.BufferEnd(builder))


def _bytes(builder: Any, data: bytes) -> int:
    builder.StartVector(1, len(data), BUFFER_ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
    return int(builder.EndVector())


def _write(builder: Any, table: Table) -> int:
    """Write a table, its parts first, and return its place."""
    places = {number: _part(builder, value) for number, value in table.fields.items() if value not in (None, "", ())}
    builder.StartObject(max(table.fields, default=-1) + 1)
    for number, value in sorted(table.fields.items()):
        if isinstance(value, Byte):
            builder.PrependInt8Slot(number, value.value, 0)
        elif number in places:
            builder.PrependUOffsetTRelativeSlot(number, places[number], 0)
    return int(builder.EndObject())


def _part(builder: Any, value: Any) -> int:
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, Table):
        return _write(builder, value)
    if isinstance(value, Byte):
        return 0
    if isinstance(value[0], Table):
        places = [_write(builder, item) for item in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())
    builder.StartVector(4, len(value), 4)
    for number in reversed(value):
        builder.PrependFloat32(number)
    return int(builder.EndVector())
