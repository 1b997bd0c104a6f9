"""The archive of a bundle: the same bytes for the same content.

Owns order, times and checksums in the zip. The caller gives a temporary path, and renames it.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def write_archive(path: Path, contents: Mapping[str, bytes | Path]) -> None:
    """Write contents by their names as a zip, with the digests of all in `SHA256SUMS`.

    Args:
        contents: Bytes, or a file to read them from.

    Raises:
        OSError: It cannot be written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        sums = []
        for name, content in sorted(contents.items()):
            data = content.read_bytes() if isinstance(content, Path) else content
            sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
            _add(archive, name, data)
        _add(archive, SUMS, "".join(sums).encode())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.external_attr = 0o100644 << 16
    entry.create_system = 3  # Unix, whatever this machine is: the bytes stay the same
    archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
