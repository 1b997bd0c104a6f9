"""From a verified float32 file to the same file in another precision.

Owns what each precision needs: calibration data, a search over int8 forms, and the record of the new file. Does not
verify and does not choose the final name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import ConfigError, VerificationError
from edgeprune.export.calibration import Seen, check_seen, first_samples, samples_of
from edgeprune.export.opened import open_artifact
from edgeprune.export.record import Record, with_record
from edgeprune.export.verify import sqnr_db
from edgeprune.quantise import Int8, OnnxFloat, Quantisation, TfliteFloat, choose, histograms
from edgeprune.values import Json, Notice, Precision

if TYPE_CHECKING:
    from edgeprune.export.capture import Subject

# Candidates are compared on so many calibration samples.
_MEASURED = 32
_FEW = 32
_WORST_DB = -200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """The content of a file in another precision, how it was made, and what the user should know."""

    content: bytes = field(repr=False)
    facts: Json | None = None
    notices: tuple[Notice, ...] = ()


def lower(
    source: Path,
    record: Record,
    subject: Subject,
    precision: Precision,
    *,
    calibration: Iterable[Any] | None,
    settings: Quantisation,
    name: str,
) -> Lowered:
    """Return a float32 file in another precision.

    Args:
        source: A verified float32 file; candidates are written beside it for a moment.
        record: What the new file shall say of itself.
        calibration: Batches of the network's inputs; only `int8` needs them.
        name: What notices call the new file.

    Raises:
        ConfigError: There are no calibration data, or they say nothing.
        ModelError: They do not fit the network.
        ExportError: The quantiser failed.
    """
    file = (OnnxFloat if source.suffix == ".onnx" else TfliteFloat)(source.read_bytes())
    facts: Json | None = None
    notices: tuple[Notice, ...] = ()
    if precision == "fp16":
        content = file.half()
    elif precision == "int8-weights":
        content = file.integer_weights()
    elif precision == "int8-dynamic":
        content = file.dynamic()
    else:
        if calibration is None:
            raise ConfigError(
                "int8 needs calibration data: a hundred true inputs, prepared as in training",
                fix="--calibration FILE.npz, or a workload with  def calibration_data(): ...",
            )
        int8, notices = _int8(file, source, subject, calibration, settings, name)
        content, facts = int8.content, int8.as_dict()
    return Lowered(content=with_record(content, source.suffix, record), facts=facts, notices=notices)


def _int8(
    file: OnnxFloat | TfliteFloat,
    source: Path,
    subject: Subject,
    calibration: Iterable[Any],
    settings: Quantisation,
    name: str,
) -> tuple[Int8, tuple[Notice, ...]]:
    seen, kept = Seen(), list[list[np.ndarray]]()
    opened = open_artifact(source)
    read = first_samples(samples_of(calibration, subject, settings.samples, seen), _MEASURED, kept)
    counts = histograms(file, map(opened.feeds, read), settings.on_progress, settings.samples)
    check_seen(seen, subject.inputs)
    expected = [subject.run(sample) for sample in kept]
    candidate = source.with_name(f"candidate{source.suffix}")

    def measure(content: bytes) -> float:
        candidate.write_bytes(content)
        return output_sqnr_db(candidate, kept, expected)

    def accept(content: bytes) -> bool:
        candidate.write_bytes(content)
        return settings.accept is None or settings.accept(candidate)

    found = choose(
        file,
        counts,
        measure,
        methods=settings.methods,
        percentile=settings.percentile,
        wanted_db=settings.wanted_db,
        accept=accept,
        on_progress=settings.on_progress,
    )
    return found, tuple(_notices(found, seen, settings, name))


def output_sqnr_db(
    path: Path, samples: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]
) -> float:
    """Return the SQNR in dB of a file's worst floating-point output over samples; -200 where it cannot be run."""
    try:
        opened = open_artifact(path)
        found = [opened.run(sample) for sample in samples]
    except VerificationError:
        return _WORST_DB
    worst = math.inf
    for position, first in enumerate(expected[0]):
        if np.issubdtype(first.dtype, np.floating):
            a = np.concatenate([outputs[position].ravel() for outputs in expected])
            b = np.concatenate([outputs[position].ravel() for outputs in found])
            worst = min(worst, sqnr_db(a, b))
    return worst if math.isfinite(worst) else -_WORST_DB


def _notices(found: Int8, seen: Seen, settings: Quantisation, name: str) -> list[Notice]:
    notices = []
    if found.kept:
        floats = sum(len(part.operators) for part in found.ranking[: found.kept])
        kinds = list(dict.fromkeys(part.kind for part in found.ranking[: found.kept]))
        text = f"{name}: {floats} operators stay in float32 ({', '.join(kinds[:6])}): in int8 they cost too much"
        notices.append(Notice(code="mixed-precision", text=text))
    if seen.samples < _FEW:
        text = f"{name} was calibrated on {seen.samples} samples; ranges of so few are often too narrow"
        notices.append(Notice(code="few-samples", text=text, fix="give about a hundred"))
    return notices
