"""How a machine is reached: the seam, and this machine's own side of it.

Owns starting a program in a process group of its own, reading its lines, and ending it when it takes too long
or when edgeprune is interrupted. It does not know what the program says.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgeprune.errors import DeviceError

STDERR_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended. `returncode` is negative where a signal ended it."""

    returncode: int
    stderr_tail: str


class Transport(Protocol):
    """What a way to reach a machine must do. Paths on the machine are plain strings."""

    def push(self, path: Path) -> str:
        """Make a local file available on the machine and return its path there."""
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> Finished:
        """Run a program to its end, handing over each line of its stdout as it comes."""
        ...

    def pull(self, remote: str, path: Path) -> None:
        """Copy a file of the machine to a local path."""
        ...


class LocalTransport:
    """This machine. Files are already there; programs are fresh processes."""

    def push(self, path: Path) -> str:
        """Return the absolute path of the file.

        Raises:
            DeviceError: There is no such file (step: push).
        """
        if not path.is_file():
            raise DeviceError(f"push failed: there is no file {path}", where=str(path))
        return str(path.resolve())

    def pull(self, remote: str, path: Path) -> None:
        """Copy a file, unless it is already where it is wanted.

        Raises:
            DeviceError: There is no such file, or it cannot be copied (step: pull).
        """
        try:
            if Path(remote).resolve() != path.resolve():
                shutil.copyfile(remote, path)
        except OSError as error:
            raise DeviceError(f"pull failed: {remote}: {error.strerror}", where=remote) from error

    def run(self, argv: Sequence[str], *, timeout_s: float, on_line: Callable[[str], None]) -> Finished:
        """Run a program in a process group of its own; whatever happens, it is gone when this returns.

        Its stdin stays open until the end, so that a program that watches it ends with this process.

        Raises:
            DeviceError: The program cannot be started (step: connect), or took longer than `timeout_s`
                (step: run).
        """
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"connect failed: cannot start {argv[0]}: {error.strerror}") from error
        try:
            return _follow(process, time.monotonic() + timeout_s, timeout_s, on_line)
        finally:
            _end(process)


def _follow(
    process: subprocess.Popen[str], deadline: float, timeout_s: float, on_line: Callable[[str], None]
) -> Finished:
    """Hand over lines until the program has closed its stdout and ended."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    tail: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
    readers = [
        threading.Thread(target=_read_lines, args=(stream, put), daemon=True)
        for stream, put in ((process.stdout, lines.put), (process.stderr, tail.append))
    ]
    for reader in readers:
        reader.start()
    try:
        while (line := lines.get(timeout=max(deadline - time.monotonic(), 0.0))) is not None:
            on_line(line)
        returncode = process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except (queue.Empty, subprocess.TimeoutExpired):
        raise DeviceError(
            f"run failed: no end after {timeout_s:g} s{_last_words(tail)}",
            fix="close other programs, or lower bench.max_seconds",
        ) from None
    readers[1].join(timeout=1.0)
    return Finished(returncode=returncode, stderr_tail="\n".join(entry for entry in tail if entry is not None))


def _read_lines(stream: IO[str], put: Callable[[str | None], None]) -> None:
    """Pass on every line, then None. The reader closes its own stream: nobody else may while it reads."""
    with stream:
        for line in stream:
            put(line.rstrip("\n"))
    put(None)


def _last_words(tail: Sequence[str | None]) -> str:
    words = [line for line in tail if line]
    return f"; last line of stderr: {words[-1]}" if words else ""


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process group if the program still runs, and let go of its stdin."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
