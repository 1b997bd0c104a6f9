"""Frozen values that several modules share, and the parsing of quantities.

Everything here is plain data: no torch, no files. JSON holds SI base units (seconds, bytes); formatting for
people happens in `console.py` and `report/`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeprune.errors import ConfigError

Format = Literal["onnx", "tflite"]
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-weights"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights")
Layout = Literal["nchw", "nhwc"]
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")
Json = dict[str, Any]
Countable = Literal["macs", "params"]
COUNTED: dict[Countable, str] = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, shape and dtype of one input or output.

    `shape` has `None` where the size is free (the batch). `dtype` is numpy's name, such as `float32`. `low` and
    `high` bound the values seen in the user's example, so that random inputs stay in range (tokens, pixels).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    low: float = -1.0
    high: float = 1.0

    def as_dict(self) -> Json:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: Json) -> TensorSpec:
        return cls(
            name=data["name"], shape=tuple(data["shape"]), dtype=data["dtype"], low=data["low"], high=data["high"]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A deployable file: where it is, what it is, and the digest of its bytes."""

    path: str
    format: Format
    precision: Precision
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, str]

    def as_dict(self) -> Json:
        return {
            "path": self.path,
            "format": self.format,
            "precision": self.precision,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "inputs": [spec.as_dict() for spec in self.inputs],
            "outputs": [spec.as_dict() for spec in self.outputs],
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: Json) -> Artifact:
        return cls(
            path=data["path"],
            format=data["format"],
            precision=data["precision"],
            sha256=data["sha256"],
            size_bytes=data["size_bytes"],
            inputs=tuple(TensorSpec.from_dict(spec) for spec in data["inputs"]),
            outputs=tuple(TensorSpec.from_dict(spec) for spec in data["outputs"]),
            metadata=dict(data["metadata"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison of two sides on one set of inputs.

    `max_abs` is the largest absolute difference over all outputs; `max_rel` divides it by the largest absolute
    value of the reference output (at least 1e-6). Both are infinite when the outputs have other shapes or a value is
    not finite. `sqnr_db` is the energy of the reference over that of the difference in decibels, between -200 and 200,
    `cosine` that of the angle between both, `argmax` the share of samples whose largest value is at the same place;
    None where they were not asked for or mean nothing. The check passes when `max_rel` is at most `tolerance`, or,
    where `min_sqnr_db` is set, when `sqnr_db` is at least that.
    """

    name: str
    inputs: str
    batch_size: int
    max_abs: float
    max_rel: float
    tolerance: float
    output: str
    passed: bool
    sqnr_db: float | None = None
    cosine: float | None = None
    argmax: float | None = None
    min_sqnr_db: float | None = None

    def as_dict(self) -> Json:
        """Return the fields; a difference that is not finite is None, as JSON has no infinity."""
        fields = {field: getattr(self, field) for field in self.__dataclass_fields__}
        return fields | {key: fields[key] if math.isfinite(fields[key]) else None for key in ("max_abs", "max_rel")}

    @classmethod
    def from_dict(cls, data: Json) -> Check:
        return cls(**data | {key: math.inf if data[key] is None else data[key] for key in ("max_abs", "max_rel")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A warning as a value: it travels in results and is shown once, by the console or the report."""

    code: str
    text: str
    fix: str | None = None

    def as_dict(self) -> Json:
        return {"code": self.code, "text": self.text, "fix": self.fix}


def finite(value: Any) -> Any:
    """Return plain data with null where a number is not finite, which JSON cannot hold; tuples become lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lower_is_better(metric: str) -> bool:
    """Return whether small values of a metric are good: it is named, or ends in, `loss` or `error`."""
    return metric in ("loss", "error") or metric.endswith(("_loss", "_error"))


def leading_metric(found: Mapping[str, object], asked: str | None) -> str:
    """Return the name of the metric that counts: the one that was asked for, else the first."""
    return asked if asked is not None else next(iter(found))


def worsening(metric: str, before: float, after: float) -> float:
    """Return how much worse a metric became; negative when it became better."""
    return after - before if lower_is_better(metric) else before - after


_SIZE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as `2MB` or `512KiB` means (MB = 10^6).

    Raises:
        ConfigError: The number or the unit cannot be read.
    """
    value, unit = _split_quantity(text, "a size", "2MB")
    if unit.lower() not in _SIZE_UNITS:
        raise ConfigError(f"'{text}' is not a size", fix="write a number and a unit, such as 2MB or 512KiB")
    return round(value * _SIZE_UNITS[unit.lower()])


def parse_seconds(text: str) -> float:
    """Return the seconds that a text such as `15ms` means.

    Raises:
        ConfigError: The number or the unit cannot be read.
    """
    value, unit = _split_quantity(text, "a time", "15ms")
    if unit.lower() not in _TIME_UNITS:
        raise ConfigError(f"'{text}' is not a time", fix="write a number and a unit, such as 15ms or 2s")
    return value * _TIME_UNITS[unit.lower()]


def parse_count(text: str, kind: Countable) -> tuple[float, Literal["share", "count"]]:
    """Return a limit on MACs or parameters: `0.5x` is a share of the dense network, `120M` or `1.2G` a count.


    Raises:
        ConfigError: The number or the unit cannot be read, or a share lies outside (0, 1].
    """
    value, unit = _split_quantity(text, f"a number of {COUNTED[kind]}", "0.5x")
    counts = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    if unit.lower() == "x":
        if not 0 < value <= 1:
            raise ConfigError(f"'{text}' is outside (0x, 1x]", fix="write a share such as 0.5x")
        return value, "share"
    if unit.lower() not in counts:
        raise ConfigError(f"'{text}' is not a number of {COUNTED[kind]}", fix="write 0.5x, 120M or 1.2G")
    return value * counts[unit.lower()], "count"


def _split_quantity(text: str, kind: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ConfigError(f"'{text}' is not {kind}", fix=f"write a number and a unit, such as {example}")
    value = float(match.group(1))
    if not math.isfinite(value):
        raise ConfigError(f"'{text}' is too large for {kind}", fix=f"write a number and a unit, such as {example}")
    return value, match.group(2)
