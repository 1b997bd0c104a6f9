"""Keep what converters and runtimes say away from the user.

Converters print, warn and log while they work. Here their words go to a log file, which is kept only when something
fails. Output of other threads, such as a progress display, passes through untouched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

_NOISY = ("torch", "onnxscript", "onnx_ir", "onnx")


class _OwnThread:
    """A stream that sends the writes of one thread to a log, and those of all others where they went before."""

    def __init__(self, original: Any, log: TextIO) -> None:
        self._original = original
        self._log = log
        self._owner = threading.get_ident()

    def _stream(self) -> Any:
        return self._log if threading.get_ident() == self._owner else self._original

    def write(self, text: str) -> int:
        return int(self._stream().write(text))

    def flush(self) -> None:
        self._stream().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


@contextlib.contextmanager
def quiet(log: TextIO) -> Iterator[None]:
    """Send prints, warnings and log records of the converters in this thread to a log."""
    loggers = _noisy_loggers()
    saved = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    handler = logging.StreamHandler(log)
    for logger in loggers:
        top = "." not in logger.name
        logger.handlers = [handler] if top else []
        logger.propagate = not top
    out: Any = _OwnThread(sys.stdout, log)
    err: Any = _OwnThread(sys.stderr, log)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: print_to(
                log, f"{filename}:{lineno}: {category.__name__}: {message}"
            )
            yield
    finally:
        for logger, handlers, propagate in saved:
            logger.handlers = handlers
            logger.propagate = propagate


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what compiled code writes to the process's standard error, for the moment of opening a runtime.

    TFLite announces its CPU delegate there. Python's own stream is flushed first, so nothing of it is lost.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the process has no standard error, so nothing can be written to it
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def print_to(log: TextIO, text: str) -> None:
    """Write one line to a log."""
    log.write(text.rstrip("\n") + "\n")


def _noisy_loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.items())
    children = [
        logger
        for name, logger in known
        if isinstance(logger, logging.Logger) and "." in name and name.partition(".")[0] in _NOISY
    ]
    return [logging.getLogger(name) for name in _NOISY] + children
