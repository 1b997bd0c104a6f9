"""The parts of a result that belong together: each artifact with its measurement and its comparison.

Owns the joining of `artifacts`, `measurements` and `comparisons`, the choice of the leading metric, and the
Pareto front. Formats nothing; the text tables and the HTML report both read these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeprune.values import PRECISIONS, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One artifact as timed with one number of threads. What was not measured is `None`.

    `sqnr_db` is what a file that is not float32 reaches against its network, on the user's inputs. `refused` says why
    there is no such file.
    """

    name: str
    role: str
    format: str
    precision: str
    size_bytes: int | None
    metrics: dict[str, float | None]
    measurement: Json | None
    comparison: Json | None
    sqnr_db: float | None = None
    refused: str | None = None

    @property
    def label(self) -> str:
        """Format, and precision where that is not float32."""
        return self.format if self.precision == "fp32" else f"{self.format} {self.precision}"

    @property
    def latency(self) -> Json:
        """The latency fields, an empty dict where the measurement is missing or failed."""
        return (self.measurement or {}).get("latency") or {}

    @property
    def threads(self) -> int | None:
        return ((self.measurement or {}).get("runtime") or {}).get("threads")

    @property
    def target(self) -> str | None:
        return (self.measurement or {}).get("target")

    @property
    def quality(self) -> str | None:
        """`ok`, `noisy`, `failed`, or None without a measurement."""
        return (self.measurement or {}).get("quality")

    @property
    def problem(self) -> str | None:
        """Why there is no file, or its measurement failed or is not to be trusted; None when all is sound."""
        if self.refused is not None:
            return self.refused
        if self.measurement is None or self.quality == "ok":
            return None
        reasons = [str(reason) for reason in self.measurement.get("reasons") or []]
        error = self.measurement.get("error")
        if error:
            reasons.append(str(error.get("message", error)) if isinstance(error, dict) else str(error))
        return "; ".join(dict.fromkeys(reasons)) or f"{self.quality}, no reason recorded"


def join(
    artifacts: Sequence[Json],
    measurements: Sequence[Json],
    comparisons: Sequence[Json] = (),
    refused: Sequence[Json] = (),
) -> tuple[Row, ...]:
    """Return one row for each artifact and number of threads, baseline before model within each format.

    Args:
        artifacts: Entries of `result["artifacts"]`. Where empty, every measurement is a row of its own.
        measurements: Measurement dicts; with artifacts, a later one replaces an earlier one of the same file
            and threads.
        comparisons: Comparison dicts, attached to their row by `row_id`.
        refused: What a precision did not become, as in `result["refused"]`: a row each.
    """
    latest = {_key(item) if artifacts else item["row_id"]: item for item in measurements}
    compared = {item["row"]: item for item in comparisons}
    rows = []
    for entry in artifacts:
        artifact = entry["artifact"]
        place = (artifact["sha256"], entry["role"])
        own = [item for item in latest.values() if (item["artifact"]["sha256"], item["role"]) == place]
        for item in own or (None,):
            rows.append(_row(artifact, entry["role"], entry.get("metrics"), item, compared, _sqnr_db(entry)))
    known = {entry["artifact"]["sha256"] for entry in artifacts}
    for item in latest.values():
        if item["artifact"]["sha256"] not in known:
            rows.append(_row(item["artifact"], item["role"], None, item, compared))
    rows += [_refused(item) for item in refused]
    formats = list(dict.fromkeys(row.format for row in rows))
    roles = {"baseline": 0, "model": 1}
    fewest = min((row.threads for row in rows if row.threads is not None), default=1)

    def order(row: Row) -> tuple[int, int, int, int]:
        place = formats.index(row.format), row.threads or fewest, roles.get(row.role, 2)
        return *place, _PRECISIONS.get(row.precision, len(PRECISIONS))

    return tuple(sorted(rows, key=order))


_PRECISIONS: dict[str, int] = {name: place for place, name in enumerate(PRECISIONS)}


def _refused(item: Json) -> Row:
    return Row(
        name=str(item["path"]),
        role=item["role"],
        format=item["format"],
        precision=item["precision"],
        size_bytes=None,
        metrics={},
        measurement=None,
        comparison=None,
        refused=str(item["message"]),
    )


def _sqnr_db(entry: Json) -> float | None:
    """Return the decibels of a file against its network on the user's inputs, the worst output's."""
    if entry["artifact"].get("precision", "fp32") == "fp32":
        return None
    checks = [check for check in entry.get("checks") or () if check["name"].endswith("the network")]
    found = [check.get("sqnr_db") for check in checks if str(check["inputs"]).startswith("user inputs")]
    known = [value for value in (*found, (entry.get("quantisation") or {}).get("sqnr_db")) if value is not None]
    return min(known, default=None)


def _key(measurement: Json) -> tuple[str, int | None, str]:
    return (
        measurement["artifact"]["sha256"],
        (measurement.get("runtime") or {}).get("threads"),
        measurement["role"],
    )


def _row(
    artifact: Json,
    role: str,
    metrics: Json | None,
    measurement: Json | None,
    compared: dict[str, Json],
    sqnr_db: float | None = None,
) -> Row:
    path = str(artifact.get("name") or artifact.get("path") or "?")
    return Row(
        name=path.replace("\\", "/").rpartition("/")[2],
        role=role,
        format=artifact["format"],
        precision=artifact.get("precision", "fp32"),
        size_bytes=artifact.get("size_bytes"),
        metrics=dict(metrics or {}),
        measurement=measurement,
        comparison=compared.get(measurement["row_id"]) if measurement else None,
        sqnr_db=sqnr_db,
    )


def rows_of(result: Json) -> tuple[Row, ...]:
    """Return the rows of one `result.json`."""
    return join(result["artifacts"], result["measurements"], result["comparisons"], result.get("refused") or ())


def metric_names(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the metrics that any row has, in the order of their first appearance."""
    return tuple(dict.fromkeys(name for row in rows for name in row.metrics))


def front(points: Sequence[tuple[float, float]], smaller_second: bool) -> tuple[int, ...]:
    """Return the indices of the points that no other point beats on both axes, by rising first coordinate.

    Args:
        points: Pairs; a small first coordinate is always good, a second one when `smaller_second` is true.
    """
    sign = 1.0 if smaller_second else -1.0
    chosen: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1])):
        if sign * points[index][1] < best:
            best = sign * points[index][1]
            chosen.append(index)
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Place:
    """What two measurements must share for their latencies to stand in one plot."""

    target: str
    device: str
    device_id: str
    threads: int | None
    batch_size: int | None
    clock: str


def place_of(measurement: Json) -> Place:
    """Return where and how a measurement was made."""
    device, runtime = measurement.get("device") or {}, measurement.get("runtime") or {}
    return Place(
        target=str(measurement.get("target")),
        device=str(device.get("board") or device.get("cpu") or device.get("machine") or ""),
        device_id=str(device.get("id")),
        threads=runtime.get("threads"),
        batch_size=(measurement.get("method") or {}).get("batch_size"),
        clock=str((measurement.get("latency") or {}).get("clock") or "wall"),
    )
