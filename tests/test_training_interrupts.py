"""Ctrl-C held back for the length of a block."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edgeprune.training.interrupts import HeldInterrupt


def _press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_block_ends_before_the_interrupt_is_raised() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupt() as held:  # noqa: PT012 the block is what is tested
        _press()
        reached.append(held.pending)
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_interrupt_is_raised_at_once() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupt():  # noqa: PT012 the block is what is tested
        _press()
        _press()
        reached.append("end")
    assert reached == []


def test_an_interrupt_wins_over_an_error_of_the_block() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, HeldInterrupt():  # noqa: PT012 the block is what is tested
        _press()
        raise ValueError("lost connection")
    assert isinstance(caught.value.__context__, ValueError)


def test_without_an_interrupt_nothing_happens() -> None:
    with HeldInterrupt() as held:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert not held.pending
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldInterrupt() as held:
            _press()
            assert not held.pending
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_may_use_it() -> None:
    seen: list[bool] = []

    def work() -> None:
        with HeldInterrupt() as held:
            seen.append(held.pending)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
