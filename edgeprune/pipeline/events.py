"""What a running pipeline tells its listener. Plain values; the console decides how they look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from edgeprune.values import Json, Notice

State = Literal["run", "begin", "progress", "done", "reused", "notice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    `stage` is the stage's name and `subject` the file it is about, if any. `run` carries the directory in `facts`;
    `begin` carries `because`, the changed settings that make a finished stage run again; `progress` has `done` of
    `total` (None where the end is unknown); `done` and `reused` carry the stage's facts.
    """

    stage: str
    state: State
    subject: str | None = None
    facts: Json = field(default_factory=dict)
    done: float | None = None
    total: float | None = None
    seconds: float | None = None
    notice: Notice | None = None


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
