"""Flatbuffers written by hand: tables of a schema that has no generated code here.

Owns the order in which parts of a buffer have to be written. Knows no schema: a table is its fields by their number in
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
