"""Numbers as people read them: times, sizes, counts, ratios and metrics.

Owns units and rounding. Values arrive in SI units (seconds, bytes); `None` means not measured and is never
shown as zero. Knows nothing of tables or HTML.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit that a whole column shares: its name and how much of the SI unit one of it is."""

    name: str
    scale: float


NANOSECONDS = Unit(name="ns", scale=1e-9)
MICROSECONDS = Unit(name="µs", scale=1e-6)
MILLISECONDS = Unit(name="ms", scale=1e-3)
SECONDS = Unit(name="s", scale=1.0)
BYTES = Unit(name="B", scale=1.0)
KILOBYTES = Unit(name="kB", scale=1e3)
MEGABYTES = Unit(name="MB", scale=1e6)
GIGABYTES = Unit(name="GB", scale=1e9)

_TIMES = (NANOSECONDS, MICROSECONDS, MILLISECONDS, SECONDS)
_SIZES = (BYTES, KILOBYTES, MEGABYTES, GIGABYTES)


def time_unit(seconds: Iterable[float | None]) -> Unit:
    """Return one unit for all times: the smallest is at least 1 of it, or the largest needs a bigger one."""
    return _unit(_TIMES, seconds, MILLISECONDS)


def size_unit(sizes_bytes: Iterable[float | None]) -> Unit:
    """Return one unit for all the sizes, chosen like `time_unit`; MB is 10^6 bytes."""
    return _unit(_SIZES, sizes_bytes, MEGABYTES)


def _unit(units: Sequence[Unit], values: Iterable[float | None], default: Unit) -> Unit:
    known = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if not known:
        return default
    chosen = units[0]
    for unit in units[1:]:
        if min(known) >= unit.scale or max(known) >= 1000 * chosen.scale:
            chosen = unit
    return chosen


def duration(seconds: float | None, unit: Unit | None = None) -> str:
    """Return a time such as `41.2 ms` or `67.9 µs`."""
    return _quantity(seconds, unit or time_unit([seconds]))


def size(size_bytes: float | None, unit: Unit | None = None) -> str:
    """Return a size such as `11.3 MB` or `416 kB`."""
    return _quantity(size_bytes, unit or size_unit([size_bytes]))


def _quantity(value: float | None, unit: Unit) -> str:
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return str(value)
    if unit is BYTES:
        return f"{value:.0f} B"
    scaled = value / unit.scale
    return f"{scaled:.{decimals(scaled)}f} {unit.name}"


def decimals(value: float, digits: int = 3) -> int:
    """Return how many decimals show `digits` significant digits of a value, at most 6."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(6, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def plus_minus(value: float | None, interval: Sequence[float | None] | None, unit: Unit) -> str:
    """Return the half width of a 95 % interval, `± 0.3`, with as many decimals as the value beside it shows.

    An interval too narrow for them is shown as the last digit's unit, preceded by `<`. Empty where unknown.
    """
    half = half_width(interval)
    if value is None or half is None:
        return ""
    places = decimals(value / unit.scale)
    return f"± {_at_least(half / unit.scale, places)}"


def _at_least(value: float, places: int) -> str:
    smallest = 10.0**-places
    if 0 < value < smallest / 2:
        return f"<{smallest:.{places}f}"
    return f"{value:.{places}f}"


def half_width(interval: Sequence[float | None] | None) -> float | None:
    """Return half the width of an interval, or None where a bound is unknown."""
    if interval is None or len(interval) != 2:
        return None
    low, high = interval
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return (high - low) / 2


def count(value: float | None) -> str:
    """Return a number of parameters such as `11.18 M`, `103.2 k` or `812`."""
    return NOT_MEASURED if value is None else _prefixed(value)


def macs(value: float | None) -> str:
    """Return a number of multiply-accumulates such as `0.56 GMACs` or `5.21 MMACs`."""
    if value is None:
        return NOT_MEASURED
    if value >= 1e8:
        return f"{value / 1e9:.2f} GMACs"
    number, _, prefix = _prefixed(value).partition(" ")
    return f"{number} {prefix}MACs"


def _prefixed(value: float) -> str:
    for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            scaled = value / scale
            return f"{scaled:.{2 if scaled < 100 else 1}f}{prefix}"
    return f"{value:.0f}"


def ratio(value: float | None, interval: Sequence[float | None] | None = None, places: int = 2) -> str:
    """Return a ratio such as `3.19x` or, with its interval, `3.19x ± 0.05`."""
    if value is None:
        return NOT_MEASURED
    half = half_width(interval)
    return f"{value:.{places}f}x" + (f" ± {_at_least(half, places)}" if half is not None else "")


def metric(value: float | None, places: int = 3) -> str:
    """Return a metric such as `0.917`; large values with 5 significant digits, tiny ones with an exponent."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return str(value)
    if value != 0 and abs(value) < 10.0**-places:
        return f"{value:.1e}"
    return f"{value:.{places}f}" if abs(value) < 100 else f"{value:.5g}"


def share(value: float | None) -> str:
    """Return a share of one as a percentage with one decimal."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}%"


def elapsed(seconds: float | None) -> str:
    """Return how long a stage took: `0.3 s`, `21 s`, `6 m 12 s`, `2 h 03 m`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def difference(value: float | None) -> str:
    """Return a numerical difference such as `3.4e-06`; None stands for one that is infinite or not a number."""
    return "not finite" if value is None else f"{value:.1e}"


def decibels(value: float | None) -> str:
    """Return a ratio such as `38.4 dB`, or a dash; beyond 199 dB nothing differs."""
    if value is None:
        return "-"
    return "exact" if value >= 200 else f"{value:.1f} dB"


def agreement(check: Mapping[str, Any]) -> str:
    """Return what a check was judged by: `3.4e-06` of the largest value, `38.4 dB`, or the share of equal values."""
    if check.get("min_sqnr_db") is not None and check["max_rel"] is not None:
        return decibels(check["sqnr_db"])
    if by_share(check):
        return f"{share(check['argmax'])} equal"
    return difference(check["max_rel"])


def check_limit(check: Mapping[str, Any]) -> str:
    """Return the limit that a check was judged by."""
    if check.get("min_sqnr_db") is not None:
        return f"{check['min_sqnr_db']:g} dB"
    return "-" if by_share(check) else difference(check["tolerance"])


def verdict(check: Mapping[str, Any]) -> str:
    """Return `equal`, `near` where decibels or a share of equal values decided, or `differs`."""
    if not check["passed"]:
        return "differs"
    return "near" if check.get("min_sqnr_db") is not None or by_share(check) else "equal"


def by_share(check: Mapping[str, Any]) -> bool:
    """Return whether whole numbers passed although they differ: classes of a file of reduced precision."""
    whole = check.get("sqnr_db") is None and check.get("argmax") is not None
    return bool(whole and check["passed"] and check["max_rel"] is not None and check["max_rel"] > check["tolerance"])


def excess(check: Mapping[str, Any]) -> float:
    """Return a difference as a multiple of its limit; one that is not a number is the worst."""
    value = check["max_rel"]
    if value is None or value != value:
        return float("inf")
    if check.get("min_sqnr_db") is not None:
        return float(10 ** ((check["min_sqnr_db"] - check["sqnr_db"]) / 20))
    return 1.0 if by_share(check) else float(value / check["tolerance"])


RUNTIMES = {"onnxruntime": "ONNX Runtime", "tflite": "TFLite"}


def runtime(facts: Mapping[str, Any]) -> str:
    """Return a runtime such as `ONNX Runtime 1.32.0, 1 thread` from name, version and threads; empty if unnamed."""
    if not facts.get("name"):
        return ""
    text = RUNTIMES.get(str(facts["name"]), str(facts["name"]))
    text += f" {facts['version']}" if facts.get("version") else ""
    count = facts.get("threads")
    return f"{text}, {count} thread{'' if count == 1 else 's'}" if count else text


def shape(dimensions: Sequence[int | None]) -> str:
    """Return a tensor shape such as `(N, 3, 32, 32)`; N stands for a free dimension."""
    inside = ", ".join("N" if dimension is None else str(dimension) for dimension in dimensions)
    return f"({inside},)" if len(dimensions) == 1 else f"({inside})"


def place(where: str) -> str:
    """Return `file:line` as it is read from the working directory, where it lies below it."""
    return where.removeprefix(os.getcwd() + os.sep)
