"""Frozen values survive JSON; quantities are read as written, and what is no quantity is an error."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import ConfigError
from edgeprune.values import (
    Artifact,
    Check,
    Notice,
    TensorSpec,
    lower_is_better,
    parse_bytes,
    parse_count,
    parse_seconds,
)

names = st.text(min_size=1, max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)
specs = st.builds(
    TensorSpec,
    name=names,
    shape=st.lists(st.none() | st.integers(0, 4096), max_size=5).map(tuple),
    dtype=st.sampled_from(["float32", "int64", "uint8"]),
    low=floats,
    high=floats,
)
artifacts = st.builds(
    Artifact,
    path=names,
    format=st.sampled_from(["onnx", "tflite"]),
    precision=st.just("fp32"),
    sha256=names,
    size_bytes=st.integers(0),
    inputs=st.lists(specs, max_size=2).map(tuple),
    outputs=st.lists(specs, max_size=2).map(tuple),
    metadata=st.dictionaries(names, names, max_size=3),
)
checks = st.builds(
    Check,
    name=names,
    inputs=names,
    batch_size=st.integers(1, 99),
    max_abs=floats,
    max_rel=floats,
    tolerance=floats,
    output=names,
    passed=st.booleans(),
)


@given(specs)
def test_a_tensor_spec_survives_json(spec: TensorSpec) -> None:
    assert TensorSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@given(artifacts)
def test_an_artifact_survives_json(artifact: Artifact) -> None:
    assert Artifact.from_dict(json.loads(json.dumps(artifact.as_dict()))) == artifact


@given(checks)
def test_a_check_survives_json(check: Check) -> None:
    assert Check.from_dict(json.loads(json.dumps(check.as_dict()))) == check


def test_a_notice_is_plain_data_and_frozen() -> None:
    notice = Notice(code="no-data", text="nothing was trained")
    assert notice.as_dict() == {"code": "no-data", "text": "nothing was trained", "fix": None}
    with pytest.raises(dataclasses.FrozenInstanceError):
        notice.code = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("2MB", 2_000_000), ("1.5 kB", 1500), ("512KiB", 524_288), (".5mib", 524_288), ("7b", 7), ("1e3 GB", 10**12)],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(("text", "seconds"), [("15ms", 0.015), ("2 s", 2.0), ("300us", 0.0003), (".5S", 0.5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


def test_limits_on_macs_are_shares_or_counts() -> None:
    assert parse_count("0.5x", "macs") == (0.5, "share")
    assert parse_count("1X", "macs") == (1.0, "share")
    assert parse_count("120M", "macs") == (120e6, "count")
    assert parse_count("1.2g", "macs") == (1.2e9, "count")
    assert parse_count("5000", "macs") == (5000, "count")


@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds, partial(parse_count, kind="macs")])
@pytest.mark.parametrize("text", ["", "MB", "-2MB", "2 parsecs", "2MB 3", "nan", "inf", "1e999", "1e999s", "1..2s"])
def test_what_is_no_quantity_is_an_error_with_an_example(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert repr(text)[1:-1] in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("text", ["0x", "1.01x", "2x"])
def test_a_share_of_macs_lies_between_nothing_and_all(text: str) -> None:
    with pytest.raises(ConfigError, match="outside"):
        parse_count(text, "macs")


@given(st.floats(0.001, 1e6), st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]))
def test_any_positive_time_is_read(value: float, unit: tuple[str, float]) -> None:
    assert parse_seconds(f"{value!r}{unit[0]}") == pytest.approx(value * unit[1])


def test_losses_and_errors_are_better_when_small() -> None:
    assert [
        name for name in ("top1", "loss", "val_loss", "error", "cents_error", "lossless") if lower_is_better(name)
    ] == [
        "loss",
        "val_loss",
        "error",
        "cents_error",
    ]
