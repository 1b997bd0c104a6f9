"""The report's plots as plain plotly figures: what is drawn, with which shape, on which scale.

Owns the choice of marks, axes and thinning. Colours are names of CSS variables (`var(--dense)`), resolved
in the browser, so that one figure serves light, dark and print. Every colour comes with a shape of its own.
Builds dicts only: plotly itself is never imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.report import quantities as q
from edgeprune.report.rows import Row, front
from edgeprune.values import Json, lower_is_better

RUN_SHAPES = ("diamond", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down", "pentagon")
DENSE = ("var(--dense)", "circle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One entry of a legend: a shape, filled or open, or a line."""

    label: str
    color: str
    shape: str
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot: its title, shown above it, and the plotly figure."""

    name: str
    title: str
    height_px: int
    data: list[Json]
    layout: Json

    def as_dict(self) -> Json:
        return {"data": self.data, "layout": self.layout}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Plots that share a legend. `note` says what is left out, or why there is nothing to draw."""

    figures: tuple[Figure, ...]
    legend: tuple[Mark, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One artifact in a trade-off plot. `run` numbers the runs of a report from zero."""

    run: int
    run_name: str
    row: Row
    latency_s: float


def run_mark(run: int) -> tuple[str, str]:
    """Return colour and shape of the pruned artifacts of a run; both repeat after eight runs."""
    index = run % len(RUN_SHAPES)
    return f"var(--run{index})", RUN_SHAPES[index]


def label(text: object, longest: int = 60) -> str:
    """Return a user's text as plotly shows it: markup disarmed, cut to a length, on one line."""
    line = " ".join(str(text).split())
    short = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def axis(title: str, **more: object) -> Json:
    """Return a plain axis: light grid, no box, ticks in the muted colour."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12, "color": "var(--muted)"}},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "tickcolor": "var(--line)",
        "tickfont": {"size": 11, "color": "var(--muted)"},
        "zeroline": False,
        "automargin": True,
        **more,
    }


def layout(x: Json, y: Json, height_px: int) -> Json:
    """Return a layout without title or legend: those are HTML beside the plot."""
    return {
        "xaxis": x,
        "yaxis": y,
        "height": height_px,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "color": "var(--ink)"},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)", "size": 12},
            "align": "left",
        },
    }


def trade_off(name: str, points: Sequence[Point], metrics: Sequence[str]) -> Panel:
    """Plot latency against each metric and against size, with the points that none other beats joined.

    Args:
        name: Prefix of the figures' names.
        points: Artifacts whose latencies are comparable: one device, one number of threads.
        metrics: Metric names, in order; at most three are drawn.
    """
    unit = q.time_unit(point.latency_s for point in points)
    figures: list[Figure] = []
    for metric in metrics[:3]:
        known = [(point, point.row.metrics.get(metric)) for point in points]
        pairs = [(point, value) for point, value in known if value is not None and math.isfinite(value)]
        better = "lower" if lower_is_better(metric) else "higher"
        if pairs:
            title = f"{metric} against latency"
            room = _room([value for _, value in pairs])
            scale = axis(f"{label(metric, 24)}, {better} is better", tickformat="~g", **room)
            figures.append(_scatter(f"{name}-{len(figures)}", title, pairs, unit, scale, better == "lower"))
    sized = [(point, float(point.row.size_bytes)) for point in points if point.row.size_bytes is not None]
    if sized:
        size_unit = q.size_unit(value for _, value in sized)
        scaled = [(point, value / size_unit.scale) for point, value in sized]
        scale = axis(f"size, {size_unit.name}", rangemode="tozero")
        figures.append(_scatter(f"{name}-size", "Size against latency", scaled, unit, scale, True))
    return Panel(figures=tuple(figures), legend=_trade_off_legend(points))


def _room(values: Sequence[float | None]) -> Json:
    """Return a range around values that are all equal; plotly would show whole units around them."""
    known = {value for value in values if value is not None and math.isfinite(value)}
    if len(known) != 1:
        return {}
    value = known.pop()
    half = 0.01 * abs(value) or 0.01
    return {"range": [value - half, value + half]}


def _look(point: Point) -> tuple[str, str, bool]:
    color, shape = DENSE if point.row.role == "baseline" else run_mark(point.run)
    return color, shape, point.row.format != "onnx"


def _trade_off_legend(points: Sequence[Point]) -> tuple[Mark, ...]:
    several = len({point.run for point in points}) > 1
    marks: dict[tuple[object, ...], Mark] = {}
    for point in sorted(points, key=lambda item: (item.row.role != "baseline", item.run)):
        color, shape, hollow = _look(point)
        if not several:
            known = marks.get((color, hollow))
            names = dict.fromkeys([*(known.label.split(", ") if known else ()), point.row.name])
            marks[color, hollow] = Mark(label=", ".join(names), color=color, shape=shape, open=hollow)
        elif point.row.role == "baseline":
            marks.setdefault(("dense",), Mark(label="dense baseline", color=color, shape=shape))
        else:
            marks.setdefault(("run", point.run), Mark(label=point.run_name, color=color, shape=shape))
    formats = sorted({point.row.format for point in points})
    if several and formats == ["onnx", "tflite"]:
        marks["filled",] = Mark(label="filled: onnx", color="var(--muted)", shape="circle")
        marks["open",] = Mark(label="open: tflite", color="var(--muted)", shape="circle", open=True)
    marks["front",] = Mark(label="Pareto front (larger marks)", color="var(--muted)", shape="line-dot")
    return tuple(marks.values())


def _scatter(
    name: str, title: str, pairs: Sequence[tuple[Point, float]], unit: q.Unit, y: Json, smaller: bool
) -> Figure:
    xs = [point.latency_s / unit.scale for point, _ in pairs]
    ys = [value for _, value in pairs]
    order = front(list(zip(xs, ys, strict=True)), smaller)
    dots = [_dot(point, xs[index], y, unit, index in order) for index, (point, y) in enumerate(pairs)]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [xs[index] for index in order],
        "y": [ys[index] for index in order],
        "line": {"color": "var(--muted)", "width": 1.2, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }
    return Figure(
        name=name,
        title=title,
        height_px=270,
        data=[line, *dots],
        layout=layout(axis(f"latency p50, {unit.name}", rangemode="tozero"), y, 270),
    )


def _dot(point: Point, x: float, y: float, unit: q.Unit, on_front: bool) -> Json:
    color, shape, hollow = _look(point)
    half = q.half_width(point.row.latency.get("ci95_s"))
    # The shape says which run and the filling which format; what is not float32 says so beside its mark.
    named = point.row.precision != "fp32"
    return {
        "type": "scatter",
        "mode": "markers+text" if named else "markers",
        "x": [x],
        "y": [y],
        "error_x": {
            "type": "data",
            "array": [None if half is None else half / unit.scale],
            "color": color,
            "thickness": 1.2,
            "width": 3,
        },
        "marker": {
            "symbol": shape,
            "size": 12 if on_front else 8,
            "color": "var(--surface)" if hollow else color,
            "line": {"width": 1.8, "color": color},
            "opacity": 1,
        },
        "text": [point.row.precision if named else ""],
        "textposition": "top center",
        "textfont": {"size": 10, "color": "var(--muted)"},
        "hovertext": [f"{label(point.run_name)}<br>{label(point.row.name)}"],
        "hovertemplate": f"%{{hovertext}}<br>%{{x:.4~g}} {unit.name}, %{{y:.4~g}}"
        f"{'<br>on the Pareto front' if on_front else ''}<extra></extra>",
        "cliponaxis": False,
    }


def training(name: str, history: Sequence[Json], metrics: Json, best_epoch: int | None, run: int = 0) -> Panel:
    """Plot every training and validation value over the epochs.

    Losses of both sides share one plot. Epoch 0 is the pruned network before fine-tuning; the dotted line
    is the dense network.
    """
    if not history:
        return Panel(figures=(), legend=(), note="There was no fine-tuning in this run.")
    trained = list(dict.fromkeys(key for record in history for key in record.get("train") or {}))
    validated = list(dict.fromkeys(key for record in history for key in record.get("validation") or {}))
    losses = [key for key in validated if key == "loss" or key.endswith("_loss")]
    plots: list[tuple[str, list[str], list[str]]] = []
    if "loss" in trained:
        plots.append(("Loss", ["loss"], losses[:1]))
    seen = {key for _, _, keys in plots for key in keys}
    for key in dict.fromkeys([*validated, *(key for key in trained if key != "loss")]):
        if key not in seen:
            plots.append((key, [key] if key in trained and key != "loss" else [], [key] if key in validated else []))
    order = ("sparse", "looped", "recalibrated", "reconstructed", "pruned")
    before = metrics.get(next((key for key in order if metrics.get(key)), "pruned")) or {}
    figures = tuple(
        _curves(f"{name}-{index}", plot, history, (before, metrics.get("dense") or {}), best_epoch, run_mark(run))
        for index, plot in enumerate(plots[:4])
    )
    legend = [
        Mark(label="training", color="var(--dense)", shape="circle"),
        Mark(label="validation", color=run_mark(run)[0], shape=run_mark(run)[1]),
        Mark(label="dense network, validation", color="var(--muted)", shape="line-dot"),
    ]
    if best_epoch:
        legend.append(Mark(label=f"epoch {best_epoch}, kept", color="var(--ink)", shape="circle", open=True))
    left_out = [title for title, _, _ in plots[4:]]
    note = f"Not drawn: {', '.join(left_out)}; the raw data have them." if left_out else None
    return Panel(figures=figures, legend=tuple(legend), note=note)


def pruning(name: str, gradual: Json | None, run: int = 0) -> Panel:
    """Plot the share of units or weights that is zero over the steps of a training; nothing where all went at once."""
    rows = (gradual or {}).get("trail") or []
    if not rows:
        return Panel(figures=(), legend=())
    what = str((gradual or {})["what"])
    color, shape = run_mark(run)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [row["step"] for row in rows],
        "y": [row["zeros"] for row in rows],
        "line": {"color": color, "width": 1.6, "shape": "hv"},
        "marker": {"symbol": shape, "size": 7, "color": color, "maxdisplayed": 16},
        "hovertemplate": "after step %{x}: %{y:.1%} zero<extra></extra>",
        "cliponaxis": False,
    }
    y = axis("", tickformat=".0%", range=[0, 1.05 * max(row["zeros"] for row in rows) or 1])
    figure = Figure(
        name=f"{name}-steps",
        title=f"share of {what} that is zero",
        height_px=230,
        data=[trace],
        layout=layout(axis("step", rangemode="tozero"), y, 230),
    )
    return Panel(figures=(figure,), legend=())


def _curves(
    name: str,
    plot: tuple[str, list[str], list[str]],
    history: Sequence[Json],
    references: tuple[Json, Json],
    best_epoch: int | None,
    look: tuple[str, str],
) -> Figure:
    (_, trained, validated), (before, dense) = plot, references
    epochs = list(range(1, len(history) + 1))
    best = next((i + 1 for i, record in enumerate(history) if record["epoch"] == best_epoch), None)
    data: list[Json] = []
    for key in validated:
        if dense.get(key) is not None:
            data.append(reference(0, epochs[-1], dense[key]))
    for key in trained:
        values = [(record.get("train") or {}).get(key) for record in history]
        data.append(_curve(epochs, values, "training " + key, DENSE))
    for key in validated:
        values = [before.get(key), *((record.get("validation") or {}).get(key) for record in history)]
        data.append(_curve([0, *epochs], values, "validation " + key, look))
        if best is not None and values[best] is not None:
            data.append(_ring(best, values[best]))
    between = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, len(epochs)) if len(epochs) / step <= 10)
    x = axis("epoch", dtick=between, tick0=0, range=[-0.03 * epochs[-1] - 0.1, 1.03 * epochs[-1] + 0.1])
    y = axis("", tickformat="~g", **_room([value for trace in data for value in trace["y"]]))
    names = [*(f"training {key}" for key in trained), *(f"validation {key}" for key in validated)]
    return Figure(
        name=name,
        title=", ".join(names),
        height_px=230,
        data=data,
        layout=layout(x, y, 230),
    )


def _curve(x: list[int], y: list[float | None], text: str, look: tuple[str, str]) -> Json:
    color, shape = look
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"color": color, "width": 1.6},
        "marker": {"symbol": shape, "size": 7, "color": color, "maxdisplayed": 16},
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4~g}<extra></extra>",
        "text": [label(text)] * len(x),
        "cliponaxis": False,
    }


def reference(
    low: int, high: int, value: float | None, text: str = "dense network: %{y:.4~g}", color: str = "var(--muted)"
) -> Json:
    """Return a dotted line at a value, by default that of the dense network."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [low, high],
        "y": [value, value],
        "line": {"color": color, "width": 1.2, "dash": "dot"},
        "hovertemplate": f"{text}<extra></extra>",
    }


def _ring(x: int, y: float | None) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [y],
        "marker": {"symbol": "circle-open", "size": 15, "color": "var(--ink)", "line": {"width": 1.4}},
        "hoverinfo": "skip",
        "cliponaxis": False,
    }
