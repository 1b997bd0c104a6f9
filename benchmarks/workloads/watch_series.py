"""Movements recorded by a smartwatch: how their file is read, and windows cut out of them.

The package seglearn holds 140 series of six channels at 50 Hz, accelerations and turning rates, of ten people who
repeat seven exercises of the shoulder. Its one file is a NumPy array of Python objects, which is a pickle, and
unpickling can run any code: here nothing but lists, dictionaries and arrays of numbers comes out of it, and a file
that asks for more is refused. Neither NumPy's unpickling nor the package is called.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("BENCHMARK_SERIES", Path(__file__).resolve().parent.parent / ".data"))
FILE = Path("seglearn") / "data" / "watch_dataset.npy"
NUMBERS = ("i1", "i2", "i4", "i8", "u1", "f4", "f8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One recording: values (samples, channels), the number of its exercise, and who moved."""

    values: np.ndarray
    label: int
    subject: int


def read() -> list[Series]:
    """Return the recordings in the order of the file.

    Raises:
        FileNotFoundError: The package is not installed where it is looked for.
        pickle.UnpicklingError: The file asks for anything but arrays of numbers.
    """
    path = DATA / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; run  pip install --no-deps --target {DATA} seglearn  "
            "or set BENCHMARK_SERIES to the folder it is installed in"
        )
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        (table,) = _Reader(file).load().content
    columns = zip(table["X"], table["y"].content, table["subject"].content, strict=True)
    return [Series(values=x.content, label=int(label), subject=int(subject)) for x, label, subject in columns]


def windows(series: Series, length: int, step: int) -> np.ndarray:
    """Return windows (N, channels, length) of a recording, one every `step` samples."""
    every = np.lib.stride_tricks.sliding_window_view(series.values, length, axis=0)
    return every[::step]


class _Type:
    """Stands for numpy.dtype: the name of a type of numbers, or of objects."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in (*NUMBERS, "O8"):
            raise pickle.UnpicklingError(f"the file holds an array of {name!r}")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for numpy.ndarray: what it holds, a true array of numbers or a list of objects."""

    def __init__(self, *_: object) -> None:
        self.content: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if kind.name == "O8":
            self.content = content
            return
        numbers = np.frombuffer(content, np.dtype(kind.order + kind.name))
        self.content = numbers.reshape(shape, order="F" if by_columns else "C")


def _as_bytes(text: str, encoding: str) -> bytes:
    """Return bytes that were written as text, one character each."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file holds text in {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "_codecs.encode": _as_bytes,
}


class _Reader(pickle.Unpickler):
    """Reads a pickle of arrays. Every name in a pickle goes through `find_class`, so it can call the stand-ins only."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no array of numbers")
        return _STAND_INS[f"{module}.{name}"]
