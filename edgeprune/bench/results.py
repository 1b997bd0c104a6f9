"""Measurements on disk: one JSON object per line, appended.

Owns reading and appending. An append is one write under a lock, and is undone when it cannot be completed; a
process that is killed inside it leaves at most one broken last line, which readers leave out and say so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from edgeprune.bench.rows import Measurement
from edgeprune.errors import ResolveError, StorageError
from edgeprune.values import Notice

BLOCK_BYTES = 65536

logger = logging.getLogger(__name__)


def append_results(path: Path, rows: Iterable[Measurement]) -> None:
    """Append measurements to a file, making it if there is none.

    Raises:
        StorageError: They could not be written completely; what was there before is untouched.
    """
    lines = "".join(json.dumps(row.as_dict(), allow_nan=False, separators=(",", ":")) + "\n" for row in rows)
    data = lines.encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end, separator = _end_of_rows(file.fileno())
            try:
                os.truncate(file.fileno(), end)
                if file.write(separator + data) != len(separator + data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                os.truncate(file.fileno(), end)
                raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", where=str(path)) from error


def read_results(path: Path, *, on_notice: Callable[[Notice], None] | None = None) -> list[Measurement]:
    """Return the measurements of a file in their order.

    Args:
        path: A JSONL file.
        on_notice: Told when the last line is broken and was left out; without it, that is logged as a warning.

    Raises:
        ResolveError: The file cannot be read, or a line is not a measurement of this schema version.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}", fix="edgeprune bench writes one") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                _tell(where, on_notice)
                continue
            raise ResolveError(f"line {number} of {path} is not JSON: {error}", where=where) from error
        if not isinstance(data, dict):
            raise ResolveError(f"line {number} of {path} is not a measurement", where=where)
        try:
            rows.append(Measurement.from_dict(data))
        except ResolveError as error:
            raise ResolveError(f"line {number} of {path}: {error.message}", fix=error.fix, where=where) from error
    return rows


def _end_of_rows(descriptor: int) -> tuple[int, bytes]:
    """Return where the next row goes and what must stand before it; a broken last line is written over."""
    end = size = os.fstat(descriptor).st_size
    last = b""
    while end > 0 and b"\n" not in last:
        start = max(end - BLOCK_BYTES, 0)
        last = os.pread(descriptor, end - start, start) + last
        end = start
    last = last[last.rfind(b"\n") + 1 :]
    return (size - len(last), b"") if last and not _is_json(last) else (size, b"\n" if last else b"")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _tell(where: str, on_notice: Callable[[Notice], None] | None) -> None:
    notice = Notice(
        code="results_truncated",
        text=f"{where}: the last line is incomplete and was left out; its measurement was interrupted",
        fix="measure it again",
    )
    if on_notice is None:
        logger.warning("%s", notice.text)
    else:
        on_notice(notice)
