"""Terminal output: results on stdout, progress and errors on stderr, and one JSON document with `--json`.

The only module that prints. Owns wording of progress lines and of errors; tables come from `report.text`. Imports
nothing heavy, so that a usage error is told at once; rich is loaded only for a live line on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import DeviceError, EdgePruneError, VerificationError
from edgeprune.pipeline.events import Event
from edgeprune.values import Json, Notice, finite

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
BUG = 1
_STAGE_WIDTH = 12


@dataclass(slots=True, kw_only=True)
class Console:
    """Where output goes and what was said last. `work` must surround everything that may run the user's code."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    folder: str | None = None
    resume: str | None = None
    last: Event | None = None
    _live: Progress | None = None
    _task: TaskID | None = None

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Keep stdout for the result: what the user's code and libraries print goes to stderr."""
        try:
            with _logging_to_stderr(self.verbose), contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            self._stop_live()

    def listen(self, event: Event) -> None:
        """Show an event: a live line on a terminal, one plain line for a finished stage otherwise."""
        if event.state == "run":
            self.folder, self.resume = event.facts["folder"], event.facts["resume"]
            self._say(f" run {event.facts['folder']}  (settings: {event.facts['settings']})")
            return
        if event.state == "notice" and event.notice is not None:
            self.show_notice(event.notice)
            return
        self.last = event
        if event.state == "begin":
            because = event.facts.get("because")
            if because:
                self._say(_line(event.stage, f"again: {'; '.join(because[:3])}"))
        if event.state in ("begin", "progress"):
            self._show_live(event)
        else:
            self._stop_live()
            self._say(stage_line(event))

    def show(self, text: str, data: Any) -> None:
        """Print a result: the text, or the data as one JSON document."""
        print(json.dumps(finite(data), indent=1) if self.as_json else text, flush=True)

    def show_run(self, result: Json, folder: str) -> int:
        """Show a finished run and return its exit code: that of a refusal, a failed measurement or a missed budget."""
        from edgeprune.pipeline.verdict import failure
        from edgeprune.report.commands import run_text

        error = failure(result)
        if not (self.as_json and error is not None):
            self.show(run_text(result, folder, width()), result)
        return self.show_error(error, result) if error is not None else 0

    def show_verification(self, found: Json) -> int:
        """Show the checks of `verify` and return the exit code: 4 where they differ."""
        from edgeprune.report import quantities as q
        from edgeprune.report.commands import verification_text

        worst = [check for check in found["checks"] if not check["passed"]]
        if not worst:
            self.show(verification_text(found, width()), found)
            return 0
        if not self.as_json:
            self.show(verification_text(found, width()), found)
        first = worst[0]
        difference = (
            f"max |diff| {q.difference(first['max_abs'])}, relative {q.difference(first['max_rel'])}, "
            f"limit {first['tolerance']:.0e}"
        )
        if first.get("min_sqnr_db") is not None:
            difference = f"SQNR {q.decibels(first['sqnr_db'])}, limit {q.check_limit(first)}"
        sides = f"{found['first']} and {found['second']} differ"
        if "against itself" in first["name"]:
            sides = f"{first['name']} differs"
        error = VerificationError(f"{sides} on {first['output']}: {difference}")
        return self.show_error(error, found)

    def show_measurements(self, found: Json) -> int:
        """Show the table of `bench` or `compare` and return the exit code: 6 where a measurement failed."""
        from edgeprune.report.commands import measurements_text

        failed = [row for row in found["measurements"] if row["quality"] == "failed"]
        if not (self.as_json and failed):
            self.show(measurements_text(found, width()), found)
        if not failed:
            return 0
        reason = (failed[0]["error"] or {}).get("message") or "; ".join(failed[0]["reasons"])
        error = DeviceError(f"{failed[0]['artifact']['name']} could not be measured: {reason}")
        return self.show_error(error, found)

    def show_notice(self, notice: Notice) -> None:
        """Show a warning on stderr."""
        self._stop_live()
        if not self.quiet:
            _error_line(f"{_styled('warning:', 33)} {notice.text}")
            if notice.fix:
                _error_line(f"  fix: {notice.fix}")

    def show_error(self, error: EdgePruneError, document: Json | None = None) -> int:
        """Show an error and return its exit code.

        Args:
            document: What `--json` prints instead of the error alone; it gets the error under `error`.
        """
        self._stop_live()
        _error_line(f"{_styled('error:', 31)} {error.message}")
        if error.where:
            from edgeprune.report.quantities import place

            _error_line(f"  --> {place(error.where)}")
        if error.fix:
            _error_line(f"  fix: {error.fix}")
        if self.verbose and error.__cause__ is not None:
            _error_line("".join(traceback.format_exception(error.__cause__)).rstrip())
        if self.as_json:
            body = error.as_dict()
            print(json.dumps(finite(body if document is None else {**document, "error": body}), indent=1), flush=True)
        return error.exit_code

    def show_bug(self, error: BaseException) -> int:
        """Show an error that nobody foresaw: one line and the path of its traceback. Return the exit code."""
        text = "".join(traceback.format_exception(error))
        if self.verbose:
            _error_line(text.rstrip())
        bug = EdgePruneError(
            f"this is a bug in edgeprune: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            where=_write_log(self.folder, text),
            fix="report it with this log; the same command with -v shows it here",
        )
        return self.show_error(bug)

    def show_interrupted(self) -> int:
        """Say where Ctrl-C came in and how to go on. Return the exit code."""
        self._stop_live()
        where = f" during {self.last.stage}" if self.last is not None else ""
        facts = self.last.facts if self.last is not None and self.last.state == "progress" else {}
        if "epoch" in facts:
            where += f", epoch {facts['epoch']} of {facts['epochs']}"
        if self.folder is not None and any(Path(self.folder).glob("checkpoint.*")):
            where += " (checkpoint saved)"
        following = f"continue with: {self.resume}" if self.resume is not None else "the same command starts again"
        _error_line(f"interrupted{where}; {following}")
        if self.as_json:
            body = {"error": "Interrupted", "message": f"interrupted{where}", "fix": following, "where": self.folder}
            print(json.dumps(body | {"exit_code": INTERRUPTED}, indent=1), flush=True)
        return INTERRUPTED

    def _say(self, text: str) -> None:
        if not self.quiet:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                _error_line(text)

    def _show_live(self, event: Event) -> None:
        """Show a running stage on a terminal; say nothing elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            return
        if self._live is None:
            self._live = _live_display()
            self._live.start()
        text = _line(event.stage, _progress_text(event))
        if self._task is None:
            self._task = self._live.add_task(text, total=event.total)
        self._live.update(self._task, description=text, total=event.total, completed=event.done or 0)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live, self._task = None, None


def width() -> int:
    """Return the columns of the terminal, 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def stage_line(event: Event) -> str:
    """Return the line of a finished or reused stage."""
    from edgeprune.report.quantities import elapsed
    from edgeprune.report.stages import stage_text

    if event.state == "reused":
        files = [f"{name} {digest[:8]}" for name, digest in (event.facts.get("outputs") or {}).items()]
        what = f" ({files[0]})" if files else (f" ({event.subject})" if event.subject else "")
        return _line(event.stage, f"reused{what}")
    text = stage_text(event.stage, event.facts, event.subject)
    took = elapsed(event.seconds) if event.seconds is not None else ""
    return f"{_line(event.stage, text):<88}  {took:>8}".rstrip()


def _line(stage: str, text: str) -> str:
    return f" {stage:<{_STAGE_WIDTH}}{text}"


def _progress_text(event: Event) -> str:
    facts = event.facts
    if "epoch" in facts:
        return f"epoch {facts['epoch']} of {facts['epochs']}  loss {facts['loss']:.3g}"
    return str(facts.get("text") or event.subject or "")


def _live_display() -> Progress:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=RichConsole(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def _logging_to_stderr(verbose: bool) -> Iterator[None]:
    """Send log records and Python warnings to stderr with `-v`; without it only errors."""
    root, own = logging.getLogger(), logging.getLogger("edgeprune")
    levels = root.level, own.level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.captureWarnings(True)
    root.addHandler(handler)
    for logger in (root, own):
        logger.setLevel(logging.INFO if verbose else logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(handler)
        logging.captureWarnings(False)
        root.setLevel(levels[0])
        own.setLevel(levels[1])


def _write_log(folder: str | None, text: str) -> str:
    """Write a traceback where it can be found again: into the run, else into the temporary folder."""
    place = folder if folder is not None and Path(folder).is_dir() else None
    handle, name = tempfile.mkstemp(prefix="edgeprune-error-", suffix=".log", dir=place)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def _error_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _styled(text: str, colour: int) -> str:
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[1;{colour}m{text}\x1b[0m"
    return text
