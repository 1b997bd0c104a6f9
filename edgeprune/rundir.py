"""A run on disk: its files, its lock, its journal, and writes that are complete or absent.

Owns the layout of a run directory and the question whether a finished stage may be reused. Does not know what the
stages do or in which order they come: that is `pipeline`.

A stage is reused when the key of its settings, inputs and version equals the journal's, and every file it wrote
still has the digest that the journal holds. The journal is only ever appended to; a damaged line counts as if its
stage had not run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeprune.errors import ConfigError, ResolveError, StorageError
from edgeprune.values import Json
from edgeprune.version import VERSION

SETTINGS = "run.toml"
JOURNAL = "journal.jsonl"
LOCK = "lock"
TRAINED = "trained.safetensors"
ZEROED = "zeroed.json"
PLAN = "plan.json"
PRUNED = "pruned.safetensors"
RECONSTRUCTED = "reconstructed.safetensors"
RECALIBRATED = "recalibrated.safetensors"
SPARSE = "sparse.safetensors"
MASKS = "masks.safetensors"
FINETUNED = "finetuned.safetensors"
STEP = "step-"
QAT = "qat.safetensors"
FINETUNED_MASKS = "finetuned.masks.safetensors"
CHECKPOINT = "checkpoint."
QAT_CHECKPOINT = "qat.checkpoint."
TRAIN_CHECKPOINT = "train.checkpoint."
HISTORY = "history.json"
CHECKS = "verify.json"
ROWS = "results.jsonl"
RESULT = "result.json"
REPORT = "report.html"

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.tmp)?")
_locked: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKey:
    """What a stage depends on: dotted settings with their values, and named inputs with their digests."""

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the sha256 of the stage's name, settings, inputs and of this program's version."""
        parts = [VERSION, self.stage, dict(self.settings), dict(self.inputs)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One finished stage as the journal holds it. `facts` is what later stages and the report need from it."""

    stage: str
    key: str
    settings: Json
    inputs: dict[str, str]
    outputs: dict[str, str]
    facts: Json
    seconds: float
    version: str = VERSION


class RunDirectory:
    """A run directory, locked for as long as it is open.

    Use it as a context manager. Opening creates the folder and its journal where there is none.
    """

    def __init__(self, path: Path, source: str, source_sha256: str) -> None:
        """Prepare to open `path` for the workload `source`, whose code has the digest `source_sha256`."""
        self.path = path
        self._source = source
        self._source_sha256 = source_sha256
        self._lock: int | None = None
        self._records: dict[str, StageRecord] = {}
        self._unfinished: set[str] = set()

    def __enter__(self) -> RunDirectory:
        """Lock the directory and read its journal.

        Raises:
            ResolveError: The directory belongs to another workload, or is neither empty nor a run.
            ConfigError: Another process works on it.
            StorageError: It cannot be created or written.
        """
        check_output(self.path, self._source, self._source_sha256)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create {self.path}: {error.strerror}", fix="choose another -o") from error
        self._lock = _acquire(self.path / LOCK)
        try:
            lines = read_journal(self.path)
            self._records = dict(_records(lines))
            self._unfinished = _unfinished(lines)
            remove_temporary(self.path)
            header = {"event": "run", "workload": self._source, "workload_sha256": self._source_sha256}
            if _header(self.path) != (self._source, self._source_sha256):
                self._append(header | {"version": VERSION, "time": time.time()})
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def last(self, stage: str) -> StageRecord | None:
        """Return the newest record of a stage, whether or not it can be reused."""
        return self._records.get(stage)

    def reusable(self, key: StageKey) -> StageRecord | None:
        """Return the record of a stage that ran with this key and whose files are still as it wrote them.

        A stage whose facts hold something under `failed` is never reused.
        """
        record = self._records.get(key.stage)
        if record is None or record.key != key.digest() or record.facts.get("failed") or self.damaged(record):
            return None
        return record

    def damaged(self, record: StageRecord) -> list[str]:
        """Return the names of the files of a stage that are missing or changed."""
        return [name for name, digest in record.outputs.items() if file_digest(self.path / name) != digest]

    def changes(self, key: StageKey) -> list[str]:
        """Return, in words, why a stage that ran before has to run again; empty when it never ran."""
        record = self._records.get(key.stage)
        if record is None:
            return []
        found = [f"edgeprune {record.version} -> {VERSION}"] if record.version != VERSION else []
        for name in sorted({*record.settings, *key.settings}):
            before, after = record.settings.get(name), _plain(key.settings.get(name))
            if before != after:
                found.append(f"{name} {_show(before)} -> {_show(after)}")
        for name in sorted({*record.inputs, *key.inputs}):
            if record.inputs.get(name) != key.inputs.get(name):
                found.append(f"{name} changed")
        return found or [f"{name} is missing or was changed" for name in self.damaged(record)]

    def was_interrupted(self, stage: str) -> bool:
        """Return whether a stage began and did not finish, so that its files may be half new and half old."""
        return stage in self._unfinished

    def begin(self, key: StageKey) -> None:
        """Write to the journal that a stage begins."""
        self._append({"event": "begin", "stage": key.stage, "key": key.digest(), "time": time.time()})
        self._unfinished.add(key.stage)

    def finish(self, key: StageKey, outputs: tuple[str, ...], facts: Json, seconds: float) -> StageRecord:
        """Append a finished stage to the journal and return its record."""
        digests = {}
        for name in outputs:
            digest = file_digest(self.path / name)
            if digest is None:
                raise StorageError(f"{self.path / name} vanished while {key.stage} ran")
            digests[name] = digest
        record = StageRecord(
            stage=key.stage,
            key=key.digest(),
            settings=_plain(dict(key.settings)),
            inputs=dict(key.inputs),
            outputs=digests,
            facts=_plain(facts),
            seconds=seconds,
        )
        body = {name: getattr(record, name) for name in StageRecord.__dataclass_fields__}
        self._append({"event": "stage", "time": time.time()} | body)
        self._records[key.stage] = record
        self._unfinished.discard(key.stage)
        return record

    def _append(self, record: Json) -> None:
        append_line(self.path / JOURNAL, record)

    def _release(self) -> None:
        if self._lock is not None:
            _release(self._lock, self.path / LOCK)
            self._lock = None


def check_output(path: Path, source: str, source_sha256: str) -> None:
    """Check that a directory may hold a run of this workload: absent, empty, or a run of it.

    Raises:
        ResolveError: It is a file, holds something else, or is a run of another workload.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ResolveError(f"{path} is a file, not a run directory", fix="choose another directory with -o")
    header = _header(path)
    if header is None:
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in (LOCK, SETTINGS, JOURNAL))
        if others or (path / SETTINGS).exists():
            raise ResolveError(
                f"{path} is not empty and is not a run ({', '.join(others[:3]) or SETTINGS})",
                fix="choose another directory with -o",
            )
    elif header[0] != source and header[1] != source_sha256:
        raise ResolveError(
            f"{path} is a run of another workload, {header[0]}",
            where=str(path / JOURNAL),
            fix="choose another directory with -o",
        )


def append_line(path: Path, record: Json) -> None:
    """Append one JSON object as a line to a file; it is on disk when this returns.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        with path.open("ab") as file:
            start = b"\n" if file.tell() and _last_byte(path) != b"\n" else b""
            file.write(start + json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _storage_error(path, error) from error


def read_journal(path: Path) -> list[Json]:
    """Return the readable lines of a run's journal, oldest first.

    Raises:
        ResolveError: The journal exists and cannot be read.
    """
    return read_lines(path / JOURNAL)


def read_lines(path: Path) -> list[Json]:
    """Return the JSON objects of a file, one a line; damaged lines are left out, and no file is an empty one.

    Raises:
        ResolveError: The file exists and cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def require_run(path: Path) -> None:
    """Check that a directory is a run.

    Raises:
        ResolveError: It does not exist, or holds no run; the runs beside it are named.
    """
    if (path / SETTINGS).is_file():
        return
    folder = path if path.is_dir() else path.parent
    known = sorted(str(entry.parent) for entry in folder.glob(f"*/{SETTINGS}")) if folder.is_dir() else []
    known = known or sorted(str(entry.parent) for entry in Path("runs").glob(f"*/{SETTINGS}"))
    what = "is not a run directory (no run.toml)" if path.exists() else "does not exist"
    raise ResolveError(f"{path} {what}", fix=f"runs here: {', '.join(known[:8])}" if known else None)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file completely or not at all: a temporary file in the same folder, then a rename.

    Raises:
        StorageError: It cannot be written, for example because the disk is full; the old file is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the final name when the block ends well.

    Raises:
        StorageError: It cannot be written or renamed; what `path` held before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what a killed process left in a folder: files and folders named `.NAME.` and eight random characters."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_checkpoints(folder: Path, keep: Path | None = None, prefix: str = CHECKPOINT) -> None:
    """Remove the checkpoints of a folder but one; those that training set aside as `.stale` stay."""
    for path in folder.glob(f"{prefix}*"):
        if path != keep and path.suffix != ".stale":
            path.unlink(missing_ok=True)


def file_digest(path: Path) -> str | None:
    """Return the sha256 of a file, or None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is not a run for a block.

    Raises:
        ConfigError: Another process works on it.
    """
    handle = _acquire(folder / LOCK)
    try:
        yield
    finally:
        _release(handle, folder / LOCK)


def _acquire(path: Path) -> int:
    """Lock a file for this process. The lock belongs to the process, so a killed one never leaves it behind."""
    name = str(path.resolve())
    if name in _locked:
        raise ConfigError(f"{path.parent} is already open in this process")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise ConfigError(
            f"{path.parent} is in use by process {holder}",
            where=str(path),
            fix="wait until it ends, or choose another directory with -o",
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    _locked.add(name)
    return handle


def _release(handle: int, path: Path) -> None:
    os.close(handle)
    _locked.discard(str(path.resolve()))


def _header(path: Path) -> tuple[str, str] | None:
    """Return workload and code digest of the newest run line of a journal."""
    lines = [line for line in read_journal(path) if line.get("event") == "run"]
    return (str(lines[-1].get("workload")), str(lines[-1].get("workload_sha256"))) if lines else None


def _records(lines: list[Json]) -> Iterator[tuple[str, StageRecord]]:
    fields = StageRecord.__dataclass_fields__
    for line in lines:
        if line.get("event") == "stage" and all(name in line for name in fields):
            record = StageRecord(**{name: line[name] for name in fields})
            yield record.stage, record


def _unfinished(lines: list[Json]) -> set[str]:
    last = {line.get("stage"): line["event"] for line in lines if line.get("event") in ("begin", "stage")}
    return {str(stage) for stage, event in last.items() if event == "begin"}


def _plain(value: Any) -> Any:
    """Return a value as it looks after a trip through JSON, so that tuples equal lists."""
    return json.loads(json.dumps(value))


def _show(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _storage_error(path: Path, error: OSError) -> StorageError:
    fix = "free some space and run the same command again" if error.errno in (28, 122) else None
    return StorageError(f"cannot write {path}: {error.strerror or error}", fix=fix)
