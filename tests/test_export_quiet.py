"""Noise of the exporting thread goes to the log, everything else passes."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings

import pytest

from edgeprune.export.quiet import quiet, silent_stderr


def test_prints_warnings_and_logs_go_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    logger = logging.getLogger("torch.onnx._test")
    handlers = list(logging.getLogger("torch").handlers)
    with quiet(log):
        print("printed")
        print("to stderr", file=sys.stderr)
        warnings.warn("warned", UserWarning, stacklevel=1)
        logger.warning("logged")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert all(word in log.getvalue() for word in ("printed", "to stderr", "warned", "logged"))
    assert logging.getLogger("torch").handlers == handlers


def test_other_threads_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    with quiet(log):
        other = threading.Thread(target=print, args=("progress",))
        other.start()
        other.join()
    assert capsys.readouterr().out == "progress\n"
    assert log.getvalue() == ""


def test_streams_come_back_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), quiet(io.StringIO()):
        raise KeyError("x")
    print("seen")
    assert capsys.readouterr().out == "seen\n"


def test_compiled_code_is_silent_for_a_moment(capfd: pytest.CaptureFixture[str]) -> None:
    with silent_stderr():
        os.write(2, b"INFO: delegate\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
