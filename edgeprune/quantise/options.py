"""What a user can choose about quantisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeprune.quantise.ends import Io
from edgeprune.quantise.ranges import METHODS, Method
from edgeprune.quantise.search import Progress


def _no_progress(step: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a file gets int8 activations. Also the other precisions take `on_progress` from here.

    `methods` are the ways to choose ranges that are tried. `samples` bounds how many calibration samples are read.
    A file below `equalise_db` is also tried with equalised channels and corrected biases.
    Operators stay in float32 until the output has `wanted_db` of SQNR and `accept`, called with a candidate file,
    agrees. `io` is the type of the int8 file's inputs and outputs.
    """

    methods: tuple[Method, ...] = METHODS
    percentile: float = 99.99
    samples: int = 128
    wanted_db: float = 20.0
    equalise_db: float = 30.0
    accept: Callable[[Path], bool] | None = None
    io: Io = "float32"
    on_progress: Progress = _no_progress
