"""Ctrl-C held back until a training step is complete, so that a checkpoint never holds half a step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

_logger = logging.getLogger(__name__)


class HeldInterrupt:
    """While it is open, the first Ctrl-C only sets `pending`; the second one interrupts at once.

    Leaving the block with an interrupt pending raises KeyboardInterrupt. Outside the main thread, and where SIGINT is
    ignored, it changes nothing.
    """

    def __init__(self) -> None:
        self.pending = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and previous not in (signal.SIG_IGN, None):
            self._previous = previous
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is None:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
        _logger.info("stopping after this step; press Ctrl-C again to stop at once")
