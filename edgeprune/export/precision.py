"""From a verified float32 file to the same file in another precision.

Owns what each precision needs: calibration data, a search over int8 forms, and the record of the new file. Does not
verify and does not choose the final name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import ConfigError, ResolveError, VerificationError
from edgeprune.export.calibration import Seen, check_seen, kept_samples, samples_of
from edgeprune.export.opened import open_artifact
from edgeprune.export.quality import sqnr_db
from edgeprune.export.record import Record, with_record
from edgeprune.quantise import Int8, OnnxFloat, Quantisation, TfliteFloat, histograms, mixed, with_best_ranges
from edgeprune.quantise.ends import Ends
from edgeprune.quantise.files import FloatFile, Without
from edgeprune.quantise.ranges import Histogram, Interval, interval
from edgeprune.quantise.search import unworkable
from edgeprune.values import Json, Notice, Precision

if TYPE_CHECKING:
    from edgeprune.export.capture import Subject

# Candidates are compared on so many calibration samples.
_MEASURED = 32
_BIG_BYTES, _MEASURED_BIG = 2**24, 8
_FEW = 32
_WORST_DB = -200.0
_KEPT_BYTES = 2**28
Equalised = Callable[[Sequence[Sequence[np.ndarray]]], Path]


def open_float(source: Path) -> OnnxFloat | TfliteFloat:
    """Return a float32 file as something that can be watched and quantised."""
    return (OnnxFloat if source.suffix == ".onnx" else TfliteFloat)(source.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """The content of a file in another precision, how it was made, and what the user should know.

    `samples` are calibration samples: where there are any, they are the inputs that the file is judged on.
    """

    content: bytes = field(repr=False)
    facts: Json | None = None
    samples: tuple[tuple[np.ndarray, ...], ...] = field(default=(), repr=False)
    notices: tuple[Notice, ...] = ()


def lower(
    source: Path,
    record: Record,
    subject: Subject,
    precision: Precision,
    *,
    calibration: Iterable[Any] | None,
    settings: Quantisation,
    equalised: Equalised | None,
    name: str,
) -> Lowered:
    """Return a float32 file in another precision.

    Args:
        source: A verified float32 file; candidates are written beside it for a moment.
        record: What the new file shall say of itself.
        calibration: Batches of the network's inputs; only `int8` needs them.
        equalised: Writes the float32 file of the equalised network, from samples to measure it on.
        name: What notices call the new file.

    Raises:
        ConfigError: There are no calibration data, or they say nothing.
        ModelError: They do not fit the network.
        ExportError: The quantiser failed.
    """
    if precision == "int8":
        if calibration is None:
            raise ConfigError(
                "int8 needs calibration data: a hundred true inputs, prepared as in training",
                fix="--calibration FILE.npz, or a workload with  def calibration_data(): ...",
            )
        return _int8(source, record, subject, calibration, settings, equalised, name)
    file = open_float(source)
    content = {"fp16": file.half, "int8-weights": file.integer_weights, "int8-dynamic": file.dynamic}[precision]()
    return Lowered(content=with_record(content, source.suffix, record))


@dataclass(slots=True)
class _Candidates:
    """The samples that candidates are measured on, and what the network says of them."""

    samples: list[list[np.ndarray]]
    expected: list[list[np.ndarray]]
    path: Path

    def opens(self, content: bytes) -> bool:
        """Return whether the runtime opens a candidate."""
        self.path.write_bytes(content)
        try:
            open_artifact(self.path)
        except ResolveError:
            return False
        return True

    def measure(self, content: bytes) -> float:
        """Return the output SQNR of a candidate in dB."""
        self.path.write_bytes(content)
        return output_sqnr_db(self.path, self.samples, self.expected)


def _int8(
    source: Path,
    record: Record,
    subject: Subject,
    calibration: Iterable[Any],
    settings: Quantisation,
    equalised: Equalised | None,
    name: str,
) -> Lowered:
    seen, kept = Seen(), list[list[np.ndarray]]()
    read = kept_samples(samples_of(calibration, subject, settings.samples, seen), _KEPT_BYTES, kept)
    plain = open_float(source)
    counts = histograms(plain, map(open_artifact(source).feeds, read), settings.on_progress, settings.samples)
    check_seen(seen, subject.inputs)
    few = kept[: _MEASURED if source.stat().st_size < _BIG_BYTES else _MEASURED_BIG]
    measured = _Candidates(few, [subject.run(sample) for sample in few], source.with_name(f"candidate{source.suffix}"))
    chosen, (file, whole) = source, _whole(plain, counts, measured, settings)
    cost = _cost_of_few(file, source, counts, kept, subject, settings, measured.path) if seen.samples < _FEW else None
    if equalised is not None and _WORST_DB < whole.sqnr_db < settings.equalise_db:
        other_source = equalised(kept)
        other_plain, feeds = open_float(other_source), map(open_artifact(other_source).feeds, kept)
        other_counts = histograms(other_plain, feeds, settings.on_progress, len(kept))
        other_file, other = _whole(other_plain, other_counts, measured, settings)
        methods = whole.methods | {f"{method}, equalised": value for method, value in other.methods.items()}
        if other.sqnr_db > whole.sqnr_db:
            chosen, file, whole = other_source, other_file, replace(other, equalised=True)
        whole = replace(whole, methods=methods)

    def accept(sqnr: float, content: bytes) -> bool:
        if sqnr < settings.wanted_db or settings.accept is None:
            return sqnr >= settings.wanted_db
        measured.path.write_bytes(content)
        return settings.accept(measured.path)

    if not accept(whole.sqnr_db, whole.content):
        whole = mixed(file, whole, measured.measure, accept, settings.on_progress)
    content, ends = whole.content, Ends()
    if settings.io != "float32":
        content, ends = open_float(chosen).with_ends(whole.ranges, whole.floats | file.never, settings.io)
    unwritten = {operator.kind for operator in file.file.operators() if operator.name in file.never}
    return Lowered(
        content=with_record(content, source.suffix, replace(record, quantisation=ends)),
        facts=whole.as_dict(),
        samples=tuple(tuple(sample) for sample in few),
        notices=tuple(_notices(whole, seen, unwritten, cost, name)),
    )


def _whole(
    plain: FloatFile, counts: Mapping[str, Histogram], measured: _Candidates, settings: Quantisation
) -> tuple[Without, Int8]:
    """Return the int8 file with every operator on integers that can be, and the float file without the others."""
    file = Without(plain, unworkable(plain, _extremes(counts), measured.opens))
    found = with_best_ranges(
        file,
        counts,
        measured.measure,
        methods=settings.methods,
        percentile=settings.percentile,
        on_progress=settings.on_progress,
    )
    return file, found


def _cost_of_few(
    file: FloatFile,
    source: Path,
    counts: Mapping[str, Histogram],
    kept: Sequence[Sequence[np.ndarray]],
    subject: Subject,
    settings: Quantisation,
    path: Path,
) -> float | None:
    """Return how many dB the second half of the samples loses with ranges of the first half, against ranges of all.

    None for a single sample. What twice as many samples would still gain is no more than that, as a rule.
    """
    middle = len(kept) // 2
    if middle == 0:
        return None
    second = [list(sample) for sample in kept[middle:]]
    candidates = _Candidates(second, [subject.run(sample) for sample in second], path)
    first = histograms(file, map(open_artifact(source).feeds, kept[:middle]), settings.on_progress, middle)
    half, all_ = (candidates.measure(file.quantise(_extremes(known), frozenset())) for known in (first, counts))
    return max(all_ - half, 0.0)


def _extremes(counts: Mapping[str, Histogram]) -> dict[str, Interval]:
    """Return the intervals that cover all values."""
    return {tensor: interval(counted, "minmax") for tensor, counted in counts.items()}


def output_sqnr_db(
    path: Path, samples: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]
) -> float:
    """Return the SQNR in dB of a file's worst floating-point output over samples; -200 where it cannot be run."""
    try:
        opened = open_artifact(path)
        found = [opened.run(sample) for sample in samples]
    except (ResolveError, VerificationError):  # the quantiser wrote what the runtime cannot open or run
        return _WORST_DB
    worst = math.inf
    for position, first in enumerate(expected[0]):
        if np.issubdtype(first.dtype, np.floating):
            a = np.concatenate([outputs[position].ravel() for outputs in expected])
            b = np.concatenate([outputs[position].ravel() for outputs in found])
            worst = min(worst, sqnr_db(a, b))
    return worst if math.isfinite(worst) else -_WORST_DB


def _notices(found: Int8, seen: Seen, unwritten: set[str], cost: float | None, name: str) -> list[Notice]:
    notices = []
    if unwritten:
        text = f"{name}: {', '.join(sorted(unwritten))} stay in float32: the quantiser cannot write them"
        notices.append(Notice(code="unwritten", text=text))
    if found.kept:
        floats = sum(len(part.operators) for part in found.ranking[: found.kept])
        kinds = list(dict.fromkeys(part.kind for part in found.ranking[: found.kept]))
        text = f"{name}: {floats} operators stay in float32 ({', '.join(kinds[:6])}): in int8 they cost too much"
        notices.append(Notice(code="mixed-precision", text=text))
    if seen.samples < _FEW:
        text = f"{name} was calibrated on {seen.samples} samples"
        if cost is not None:
            text += f"; on samples that the ranges do not know, half of them cost {cost:.1f} dB"
        notices.append(Notice(code="few-samples", text=text, fix="give about a hundred"))
    return notices
