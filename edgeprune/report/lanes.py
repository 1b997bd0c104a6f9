"""The plot of raw latency samples: one lane for each artifact in each process, runs in the order they were made.

Owns lanes, thinning and the scale. Which runs count is decided as the benchmark decides it. Builds dicts only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgeprune.report import quantities as q
from edgeprune.report.plots import DENSE, Figure, Mark, Panel, axis, label, layout, run_mark
from edgeprune.report.rows import Row
from edgeprune.values import Json

CLEAN_SHARE = 0.98
MOST_SAMPLES = 120
HEIGHT_PX = 300
SHOWN = 0.99


@dataclass(slots=True)
class _Dots:
    """Coordinates of one trace while they are gathered; None breaks a line."""

    x: list[float | None] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)

    def add(self, x: float | None, y: float | None) -> None:
        self.x.append(None if x is None else round(x, 3))
        self.y.append(None if y is None else float(f"{y:.5g}"))


def latency_samples(name: str, rows: Sequence[Row], run: int = 0) -> Panel:
    """Plot the raw samples of every process, one plot for each runtime and number of threads.

    The model's marks are those of its run in the plots across runs. More than `MOST_SAMPLES` runs in a lane are
    thinned evenly, and the note says so.
    """
    places: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        if any(_walls(row)):
            places.setdefault((row.format, row.threads), []).append(row)
    if not places:
        return Panel(figures=(), legend=(), note="No raw samples were recorded.")
    drawn = [_figure(f"{name}-{index}", members, run_mark(run)) for index, members in enumerate(places.values())]
    legend = (
        Mark(label="baseline", color=DENSE[0], shape=DENSE[1]),
        Mark(label="model", color=run_mark(run)[0], shape=run_mark(run)[1]),
        Mark(label="preempted, not counted", color="var(--bad)", shape="x"),
        Mark(label="median of the runs that count", color="var(--ink)", shape="line"),
    )
    most = max(len(sample["wall_s"]) for row in rows for sample in _samples(row))
    above = [wall for _, walls in drawn for wall in walls]
    notes = [f"At most {MOST_SAMPLES} runs of each process are drawn, evenly chosen."] if most > MOST_SAMPLES else []
    if above:
        runs = "1 slow run lies" if len(above) == 1 else f"{len(above)} slow runs lie"
        notes.append(f"{runs} above the plots, up to {q.duration(max(above))}.")
    return Panel(figures=tuple(figure for figure, _ in drawn), legend=legend, note=" ".join(notes) or None)


def clean_runs(sample: Json) -> list[bool]:
    """Return for each run of one process whether it counts.

    With one thread a run counts when its CPU time is at least 98 % of its wall time; with several (`switches` is
    recorded) when it was never switched out. Without either nothing can be excluded.
    """
    walls, cpu, switches = sample["wall_s"], sample.get("cpu_s") or [], sample.get("switches") or []
    if len(switches) == len(walls):
        return [count == 0 for count in switches]
    if len(cpu) == len(walls):
        return [busy >= CLEAN_SHARE * wall for wall, busy in zip(walls, cpu, strict=True)]
    return [True] * len(walls)


def _slow(row: Row) -> float:
    """Return the wall time that 99 % of the runs that count do not exceed; of all runs where none counts."""
    pairs = [pair for sample in _samples(row) for pair in zip(sample["wall_s"], clean_runs(sample), strict=True)]
    ordered: list[float] = sorted(wall for wall, counts in pairs if counts) or sorted(wall for wall, _ in pairs)
    return ordered[int(SHOWN * (len(ordered) - 1))]


def _samples(row: Row) -> list[Json]:
    return list((row.measurement or {}).get("samples") or [])


def _walls(row: Row) -> Iterator[float]:
    for sample in _samples(row):
        yield from sample["wall_s"]


def _figure(name: str, rows: Sequence[Row], look: tuple[str, str]) -> tuple[Figure, list[float]]:
    """Return the plot of one runtime, and the wall times that lie above its upper end."""
    unit = q.time_unit(row.latency.get("p50_s") or _median(list(_walls(row))) for row in rows)
    processes = sorted({sample["process"] for row in rows for sample in _samples(row)})
    data: list[Json] = []
    for lane, row in enumerate(rows):
        offset = (lane - (len(rows) - 1) / 2) * 0.84 / len(rows)
        centres = {process: position + 1 + offset for position, process in enumerate(processes)}
        data += _lane(row, centres, 0.34 / len(rows), unit, DENSE if row.role == "baseline" else look)
    runtime = (rows[0].measurement or {}).get("runtime") or {}
    ticks = list(range(1, len(processes) + 1))
    x = axis("process", tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    x |= {"showgrid": False, "range": [0.5, len(processes) + 0.5]}
    walls = sorted(wall for row in rows for wall in _walls(row))
    top = 1.3 * max(_slow(row) for row in rows)
    y = _time_axis(walls[0] / unit.scale, min(top, 1.05 * walls[-1]) / unit.scale, unit)
    title = q.runtime(runtime) or f".{rows[0].format}"
    figure = Figure(name=name, title=title, height_px=HEIGHT_PX, data=data, layout=layout(x, y, HEIGHT_PX))
    return figure, [wall for wall in walls if wall > top]


def _lane(row: Row, centres: dict[int, float], half: float, unit: q.Unit, look: tuple[str, str]) -> Iterator[Json]:
    """Yield the traces of one artifact: runs that count, runs that do not, and the median of each process."""
    clean, lost, medians = _Dots(), _Dots(), _Dots()
    for sample in _samples(row):
        middle = centres[sample["process"]]
        walls, counts = sample["wall_s"], clean_runs(sample)
        for index in range(0, len(walls), max(1, math.ceil(len(walls) / MOST_SAMPLES))):
            x = middle - half + 2 * half * index / max(1, len(walls) - 1)
            (clean if counts[index] else lost).add(x, walls[index] / unit.scale)
        counted = [wall for wall, count in zip(walls, counts, strict=True) if count]
        if counted:
            medians.add(middle - half * 1.1, _median(counted) / unit.scale)
            medians.add(middle + half * 1.1, _median(counted) / unit.scale)
            medians.add(None, None)
    color, shape = look
    yield _cloud(clean, row.name, unit, {"symbol": shape, "size": 4, "color": color, "opacity": 0.5})
    if lost.x:
        cross = {"symbol": "x-thin", "size": 5, "line": {"width": 1, "color": "var(--bad)"}}
        yield _cloud(lost, f"{row.name}, preempted", unit, cross)
    line = {"color": "var(--ink)", "width": 1.6}
    yield {"type": "scatter", "mode": "lines", "x": medians.x, "y": medians.y, "line": line, "hoverinfo": "skip"}


def _cloud(dots: _Dots, text: str, unit: q.Unit, marker: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": dots.x,
        "y": dots.y,
        "marker": marker,
        "name": label(text),
        "hovertemplate": f"%{{fullData.name}}<br>%{{y:.4~g}} {unit.name}<extra></extra>",
    }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _time_axis(low: float, high: float, unit: q.Unit) -> Json:
    """Return a linear axis from zero, or a logarithmic one where zero would press the fastest runs together."""
    title = f"latency, {unit.name}"
    if low <= 0 or high / low <= 10:
        return axis(title, range=[0, high])
    ticks = [step * 10.0**power for power in range(-6, 10) for step in (1, 2, 5)]
    ticks = [tick for tick in ticks if low * 0.8 <= tick <= high * 1.1]
    bounds = [math.log10(low * 0.85), math.log10(high)]
    text = [f"{tick:g}" for tick in ticks]
    return axis(f"{title}, log scale", type="log", range=bounds, tickvals=ticks, ticktext=text)
