"""A reader of flatbuffers that knows nothing but the format: what edgeprune writes is read back without its code."""

from __future__ import annotations

import struct


class Read:
    """One table of a buffer; fields are read by their number in the schema."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place
        self.vtable = place - self._number("<i", place)

    @classmethod
    def root(cls, content: bytes) -> Read:
        return cls(content, struct.unpack_from("<I", content, 0)[0])

    def text(self, field: int) -> str | None:
        place = self._target(field)
        if place is None:
            return None
        length = self._number("<I", place)
        return self.content[place + 4 : place + 4 + length].decode()

    def byte(self, field: int) -> int:
        place = self._at(field)
        return 0 if place is None else self._number("<b", place)

    def table(self, field: int) -> Read | None:
        place = self._target(field)
        return None if place is None else Read(self.content, place)

    def tables(self, field: int) -> list[Read]:
        place = self._target(field)
        if place is None:
            return []
        starts = [place + 4 + 4 * index for index in range(self._number("<I", place))]
        return [Read(self.content, start + self._number("<I", start)) for start in starts]

    def floats(self, field: int) -> list[float]:
        place = self._target(field)
        if place is None:
            return []
        return list(struct.unpack_from(f"<{self._number('<I', place)}f", self.content, place + 4))

    def vector_start(self, field: int) -> tuple[int, int]:
        """Return place and length of a vector of bytes, zeros where there is none."""
        place = self._target(field)
        return (0, 0) if place is None else (place + 4, self._number("<I", place))

    def _at(self, field: int) -> int | None:
        if 4 + 2 * field >= self._number("<H", self.vtable):
            return None
        offset = self._number("<H", self.vtable + 4 + 2 * field)
        return self.place + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._at(field)
        return None if place is None else place + self._number("<I", place)

    def _number(self, kind: str, place: int) -> int:
        return int(struct.unpack_from(kind, self.content, place)[0])
