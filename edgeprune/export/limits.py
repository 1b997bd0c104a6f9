"""What is enough for a file of a precision to be accepted.

Owns the limits and the judgement of one comparison by them. Measures nothing: `quality.py` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgeprune.errors import ConfigError
from edgeprune.export.quality import MOST_DB, Quality
from edgeprune.values import PRECISIONS, Check, Precision

TOLERANCE = 1e-4
# 17 dB are a cosine of 0.99: the noise has a fiftieth of the signal's energy.
_MIN_SQNR_DB: dict[Precision, float] = {"fp16": 40.0, "int8": 17.0, "int8-dynamic": 17.0, "int8-weights": 17.0}
# A file in its runtime's default kernels against itself in reference arithmetic. Measured on 22 networks: kernels
# that are right agree to 108 dB where the arithmetic is float, and to 28 or more where activations are integers too.
# Steps of rounding add up with depth as quantisation does, so those may differ by as much as a file from its
# network. Where it is wrong without an error, it is by far: dynamic int8 in tflite-runtime 2.14 comes to about 0 dB.
_MIN_REFERENCE_DB: dict[Precision, float] = {"fp16": 40.0, "int8": 17.0, "int8-dynamic": 17.0, "int8-weights": 40.0}
# A constant through a normalisation is noise multiplied by a few hundred, in float arithmetic too.
_EDGE_DB = 17.0
# Whole numbers, such as the best class: half must agree where there are enough values to say so.
_LEAST_EQUAL, _FEW_VALUES = 0.5, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a comparison passes.

    Without `min_sqnr_db`, as for float32 files, the relative difference has to be at most `tolerance` on all inputs.
    With it, the user's inputs are judged by that many decibels; inputs outside of what a file was calibrated on are
    judged by comparing the file with itself in reference arithmetic, by `min_reference_db`.
    """

    precision: Precision
    tolerance: float
    min_sqnr_db: float | None = None
    min_reference_db: float | None = None


def limits_of(precision: Precision, tolerance: float = TOLERANCE, min_sqnr_db: float | None = None) -> Limits:
    """Return the limits of a precision.

    Args:
        tolerance: Largest accepted relative difference of a float32 file.
        min_sqnr_db: Decibels to ask for instead of the precision's own; a float32 file is then judged by them too.

    Raises:
        ConfigError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is unknown", fix=f"use one of {', '.join(PRECISIONS)}")
    reference = _MIN_REFERENCE_DB.get(precision)
    if reference is not None and min_sqnr_db is not None:
        reference = min(reference, min_sqnr_db)
    return Limits(
        precision=precision,
        tolerance=tolerance,
        min_sqnr_db=min_sqnr_db if min_sqnr_db is not None else _MIN_SQNR_DB.get(precision),
        min_reference_db=reference,
    )


def check_limits(tolerance: float, min_sqnr_db: float | None) -> None:
    """Check limits that a user gave.

    Raises:
        ConfigError: One is not a number, or lies where it could not decide anything.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ConfigError(f"the tolerance {tolerance} is not above 0", fix="use 1e-4")
    if min_sqnr_db is not None and not -MOST_DB < min_sqnr_db < MOST_DB:
        raise ConfigError(f"{min_sqnr_db} dB is not between -{MOST_DB:g} and {MOST_DB:g}", fix="use 17")


def reference_limits(limits: Limits, *, edges: bool = False) -> Limits:
    """Return the limits for one file in two kinds of arithmetic, instead of those against its network."""
    least = limits.min_reference_db
    return replace(limits, min_sqnr_db=min(least, _EDGE_DB) if edges and least is not None else least)


def judged(
    quality: Quality,
    *,
    name: str,
    inputs: str,
    batch_size: int,
    output: str,
    tolerance: float,
    min_sqnr_db: float | None,
) -> Check:
    """Return a comparison of one output with its verdict; what is not finite never passes."""
    if min_sqnr_db is None:
        passed = quality.max_rel <= tolerance
    elif quality.whole:
        passed = quality.equal >= _LEAST_EQUAL or quality.values < _FEW_VALUES
    else:
        passed = quality.sqnr_db >= min_sqnr_db
    whole = quality.whole
    return Check(
        name=name,
        inputs=inputs,
        batch_size=batch_size,
        max_abs=quality.max_abs,
        max_rel=quality.max_rel,
        tolerance=tolerance,
        output=output,
        passed=passed and quality.finite,
        sqnr_db=None if whole else quality.sqnr_db,
        cosine=None if whole else quality.cosine,
        argmax=quality.equal if whole else quality.argmax,
        min_sqnr_db=None if whole else min_sqnr_db,
    )
