"""What the report says of a search: how sensitive every group is, and which steps were tried, kept or rolled back.

Owns the sections and the page of a sensitivity. Works on dicts; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.report import quantities as q
from edgeprune.report.page import Block, Cell, Line, Page, Section, Table, Tone
from edgeprune.report.plots import Figure, Mark, Panel, axis, label, layout, reference, run_mark
from edgeprune.report.text import table as text_table
from edgeprune.values import Json, lower_is_better

MOST_FIGURES = 24


def sensitivity_page(found: Json) -> Page:
    """Return the page of a sensitivity alone."""
    source = "evaluate()" if found["source"] == "evaluate" else "the outputs, against the dense network"
    return Page(
        title=f"Sensitivity of {found['network']}",
        facts=(f"{found['metric']} from {source}", f"{len(found['groups'])} groups"),
        runs=(),
        overview=None,
        fronts=(),
        sections=(sensitivity_section("sensitivity", found),),
    )


def sensitivity_section(name: str, found: Json) -> Section:
    """Return one small plot for every group, those that lose most first, and a table of all."""
    rows = sorted(found["groups"], key=_most, reverse=True)
    drawn = [row for row in rows if any(point["value"] is not None for point in row["points"])]
    values = [point["value"] for row in drawn for point in row["points"] if point["value"] is not None]
    values.append(found["dense"])
    room = 0.05 * (max(values) - min(values)) or 0.01
    scale = [min(values) - room, max(values) + room]
    figures = tuple(
        _curve(f"{name}-{index}", row, found, scale, run_mark(0)) for index, row in enumerate(drawn[:MOST_FIGURES])
    )
    note = None
    if len(drawn) > MOST_FIGURES:
        note = f"The {MOST_FIGURES} groups that lose most are drawn; the table has all {len(rows)}."
    better = "lower" if lower_is_better(found["metric"]) else "higher"
    how = "after reconstruction" if found["reconstructed"] else "without reconstruction or training"
    return Section(
        title="Sensitivity",
        caption=f"{found['metric']} ({better} is better) when one group alone loses a share of its units, {how}. "
        "The dotted line is the dense network. All plots have the same scale.",
        panel=Panel(figures=figures, legend=(), note=note),
        table=_sensitivity_table(rows, found["dense"]),
    )


def _most(row: Json) -> float:
    return max((point["loss"] for point in row["points"] if point["loss"] is not None), default=float("-inf"))


def _curve(name: str, row: Json, found: Json, scale: list[float], look: tuple[str, str]) -> Figure:
    points = [point for point in row["points"] if point["value"] is not None]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [0.0, *(point["removed"] for point in points)],
        "y": [found["dense"], *(point["value"] for point in points)],
        "line": {"color": look[0], "width": 1.6},
        "marker": {"symbol": look[1], "size": 7, "color": look[0]},
        "text": [label(", ".join(row["names"]))] * (len(points) + 1),
        "hovertemplate": f"%{{text}}<br>%{{x:.0%}} removed: {label(found['metric'], 24)} %{{y:.4~g}}<extra></extra>",
        "cliponaxis": False,
    }
    x = axis("units removed", range=[-0.03, 1.0], tickformat=".0%", dtick=0.25)
    y = axis("", tickformat="~g", range=scale)
    title = ", ".join(row["names"])
    return Figure(
        name=name,
        title=title if len(title) <= 60 else f"{title[:59]}…",
        height_px=170,
        data=[reference(0, 1, found["dense"]), line],
        layout=layout(x, y, 170),
    )


def _sensitivity_table(rows: Sequence[Json], dense: float) -> Table:
    lines = []
    for row in rows:
        cells = [Cell(text=f"{point['removed']:.0%}", minor=_value(point)) for point in row["points"]]
        lines.append(
            Line(
                head=Cell(text=", ".join(row["names"])),
                cells=(
                    Cell(text=str(row["units"])),
                    Cell(text=q.share(row["macs_share"])),
                    Cell(text="; ".join(f"{cell.text}: {cell.minor}" for cell in cells) or "nothing measured"),
                ),
                remark=row["note"],
            )
        )
    titles = ("Group", "Units", "Share of MACs", f"Removed: value (dense {q.metric(dense)})")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),), words=(0, 3))


def _value(point: Json) -> str:
    return q.metric(point["value"]) if point["value"] is not None else f"failed, {point['failed']}"


STATES: dict[str, tuple[str, str]] = {"kept": run_mark(0), "rolled back": ("var(--bad)", "x")}


def loop_section(name: str, found: Json) -> Section:
    """Return the steps of a loop: the metric against what was removed, and a table of all that was tried."""
    metric, steps = found["metric"], found["steps"]
    figures = []
    if metric is not None:
        drawn = [step for step in steps if (step["metrics"] or {}).get(metric) is not None]
        start = [(0.0, (found["dense"] or {}).get(metric))]
        kept = start + [(step["level"], step["metrics"][metric]) for step in drawn if step["state"] == "kept"]
        missed = [(step["level"], step["metrics"][metric]) for step in drawn if step["state"] == "rolled back"]
        data = [reference(0, 1, start[0][1]), _steps(kept, "kept", "lines+markers"), _steps(missed, "rolled back")]
        if found["floor"] is not None:
            data.insert(0, reference(0, 1, found["floor"], f"floor: {found['floor']:g}", "var(--bad)"))
        x = axis(f"{found['unit']} removed", range=[-0.03, max(found["goal"], 0.1) * 1.05], tickformat=".0%")
        y = axis(label(metric, 24), tickformat="~g")
        title = f"{metric} after each step"
        figures.append(Figure(name=f"{name}-0", title=title, height_px=260, data=data, layout=layout(x, y, 260)))
    legend = [Mark(label=state, color=look[0], shape=look[1]) for state, look in STATES.items()]
    legend.append(Mark(label="dense network", color="var(--muted)", shape="line-dot"))
    if found["floor"] is not None:
        legend.append(Mark(label=f"floor, {found['floor']:g}", color="var(--bad)", shape="line-dot"))
    ends = {
        "goal": "The goal was reached.",
        "floor": "It ended at the floor: a smaller step fell below it, too.",
        "met": "It ended where the parameters were small enough.",
    }
    return Section(
        title="The loop",
        caption=f"Each step prunes the last good network, rebuilds and trains it; what falls below the floor is rolled "
        f"back, and the steps become half as large. {ends[found['end']]}",
        panel=Panel(figures=tuple(figures), legend=tuple(legend)),
        table=_steps_table(steps, found["unit"]),
    )


def layerwise_section(name: str, found: Json) -> Section:
    """Return what pruning group after group came to: the metric after each trial, and a table of the trials."""
    metric, trials = found["metric"], found["trials"]
    lines = []
    for trial in trials:
        tone: Tone = {"kept": "good", "rolled back": "bad"}.get(trial["state"], "muted")  # type: ignore[assignment]
        value = trial["failed"] or ("–" if trial["value"] is None else q.metric(trial["value"], 4))
        cost = "–" if trial["cost"] is None else f"{trial['cost']:+.4g}"
        cells = (Cell(text=q.share(trial["ratio"])), Cell(text=value), Cell(text=cost))
        state = Cell(text=trial["state"], tone=tone)
        lines.append(Line(head=Cell(text=", ".join(trial["names"])), cells=(*cells, state)))
    numbered = [(float(number), trial) for number, trial in enumerate(trials, 1) if trial["value"] is not None]
    data = [
        _steps([(number, trial["value"]) for number, trial in numbered if trial["state"] == state], state, mode)
        | {"hovertemplate": "trial %{x:.0f}: %{y:.4~g}, %{text}<extra></extra>"}
        for state, mode in (("kept", "lines+markers"), ("rolled back", "markers"))
    ]
    x = axis("trial", dtick=max(len(trials) // 10, 1), tick0=0)
    y = axis(label(metric, 24), tickformat="~g")
    figure = Figure(
        name=f"{name}-0", title=f"{metric} after each trial", height_px=230, data=data, layout=layout(x, y, 230)
    )
    how = "after reconstruction" if found["reconstruct"] else "without reconstruction or training"
    return Section(
        title="Layer by layer",
        caption=f"Groups are pruned one after the other, by {found['order']}; {metric} is taken {how}. What costs more "
        f"than {found['allowance']:g} is rolled back, and half of it tried.",
        panel=Panel(
            figures=(figure,) if numbered else (),
            legend=tuple(Mark(label=state, color=look[0], shape=look[1]) for state, look in STATES.items()),
        ),
        table=Table(
            titles=("Group", "Ratio", metric, "Cost", "Outcome"), blocks=(Block(lines=tuple(lines)),), words=(0, 4)
        ),
    )


def _steps(points: Sequence[tuple[float, float | None]], state: str, mode: str = "markers") -> Json:
    color, shape = STATES[state]
    return {
        "type": "scatter",
        "mode": mode,
        "x": [level for level, _ in points],
        "y": [value for _, value in points],
        "line": {"color": color, "width": 1.6},
        "marker": {"symbol": shape, "size": 8, "color": color},
        "text": [state] * len(points),
        "hovertemplate": "%{x:.1%} removed: %{y:.4~g}, %{text}<extra></extra>",
        "cliponaxis": False,
    }


def _steps_table(steps: Sequence[Json], unit: str) -> Table:
    names = tuple(dict.fromkeys(name for step in steps for name in step["metrics"] or {}))
    lines = []
    for step in steps:
        tone: Tone = "good" if step["state"] == "kept" else "bad" if step["state"] == "rolled back" else "muted"
        counts = (q.count(step["params"]), q.macs(step["macs"])) if step.get("params") is not None else ("–", "–")
        values = [(step["metrics"] or {}).get(name) for name in names]
        lines.append(
            Line(
                head=Cell(text=str(step["number"])),
                cells=(
                    Cell(text=q.share(step["level"])),
                    *(Cell(text=text) for text in counts),
                    *(Cell(text="–" if value is None else q.metric(value, 4)) for value in values),
                    Cell(text=step["state"], tone=tone),
                ),
            )
        )
    titles = ("Step", f"{unit[0].upper()}{unit[1:]} removed", "Params", "MACs", *names, "Outcome")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),), words=(0, len(titles) - 1))


def sensitivity_text(found: Json, width: int) -> str:
    """Return what `sensitivity` shows: one line for every group, those that lose most last."""
    rows = sorted(found["groups"], key=_most)
    cells = [
        [
            ", ".join(row["names"]),
            str(row["units"]),
            q.share(row["macs_share"]),
            "; ".join(f"{point['removed']:.0%}: {_value(point)}" for point in row["points"]) or str(row["note"]),
        ]
        for row in rows
    ]
    what = "evaluate()" if found["source"] == "evaluate" else "the outputs on data, as there is no evaluate()"
    head = f"{found['network']}  {found['metric']} of {what}, dense {q.metric(found['dense'])}"
    following = f"edgeprune compress {found['workload']} --sensitivity {found['folder']} --ratio 0.5"
    return "\n".join(
        [
            head,
            text_table(["group", "units", "of MACs", "removed alone"], cells, "lrrl", width),
            f" wrote {found['folder']}: sensitivity.json, sensitivity.html",
            f" next: {following}",
        ]
    )
