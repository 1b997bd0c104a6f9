"""What the report says of int8 files: how their ranges were chosen, and which operators cost most.

Owns the two sections. Works on the `quantisation` facts of artifacts; measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgeprune.report import quantities as q
from edgeprune.report.page import Block, Cell, Line, Section, Table
from edgeprune.report.plots import Figure, Mark, Panel, axis, label, layout, run_mark
from edgeprune.values import Json

MOST_BARS = 16
MOST_LINES = 48
_WORDS = {"minmax": "Min/max", "percentile": "Percentile", "entropy": "Entropy", "mse": "Squared error"}
_LEAST_DB, _MOST_DB = -200.0, 200.0


def quantised_sections(name: str, result: Json) -> Iterator[Section]:
    """Yield how the ranges of int8 files were chosen and, where operators stay in float32, what each would cost."""
    entries = [entry for entry in result.get("artifacts") or [] if entry.get("quantisation")]
    found = [(_file(entry), entry["quantisation"]) for entry in entries]
    if not found:
        return
    yield Section(
        title="Quantisation",
        caption="The ranges of all tensors were chosen in each of these ways, on true inputs; the way with the best output "
        "was taken. SQNR is the energy of the output over that of its error: 20 dB are an error of a tenth.",
        panel=Panel(figures=(), legend=()),
        table=_methods(found),
    )
    ranked = [(file, facts) for file, facts in found if facts["ranking"]]
    if ranked:
        yield Section(
            title="What integers cost",
            caption="Error of the output, as a share of its energy, with this operator alone on integers. The dearest "
            "stay in float32 until what was asked for is reached.",
            panel=_panel(name, ranked),
            table=_ranking(ranked),
        )


def _file(entry: Json) -> str:
    return str(entry["artifact"]["path"]).replace("\\", "/").rpartition("/")[2]


def _methods(found: Sequence[tuple[str, Json]]) -> Table:
    methods = list(dict.fromkeys(method for _, facts in found for method in facts["methods"]))
    lines = []
    for file, facts in found:
        own = facts["methods"]
        cells = [
            Cell(text=q.decibels(own.get(method)), tone="good" if method == facts["method"] else "plain")
            for method in methods
        ]
        floats = len(facts["floats"])
        cells += [Cell(text=q.decibels(facts["sqnr_db"])), Cell(text=str(floats) if floats else "none")]
        lines.append(Line(head=Cell(text=file, minor=f"by {_word(facts['method']).lower()}"), cells=tuple(cells)))
    titles = ("File", *(_word(method) for method in methods), "SQNR of the file", "Operators in float32")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),))


def _word(method: str) -> str:
    return _WORDS.get(method, method)


def _panel(name: str, found: Sequence[tuple[str, Json]]) -> Panel:
    figures = tuple(_bars(f"{name}-{index}", file, facts) for index, (file, facts) in enumerate(found))
    legend = (
        Mark(label="stays in float32", color=run_mark(1)[0], shape="square", open=True),
        Mark(label="on integers", color=run_mark(0)[0], shape="square"),
    )
    most = max(len(facts["ranking"]) for _, facts in found)
    note = f"The dearest {MOST_BARS} of each file are drawn." if most > MOST_BARS else None
    return Panel(figures=figures, legend=legend, note=note)


def _bars(name: str, file: str, facts: Json) -> Figure:
    """Return bars of the dearest parts, outlined where they stay in float32 and solid where they do not."""
    parts = facts["ranking"][:MOST_BARS]
    places = list(range(len(parts)))
    kept = [place < facts["kept"] for place in places]
    integers, floats = run_mark(0)[0], run_mark(1)[0]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [part["noise"] for part in parts],
        "y": places,
        "marker": {
            "color": ["var(--surface)" if stays else integers for stays in kept],
            "line": {"width": 1.6, "color": [floats if stays else integers for stays in kept]},
        },
        "hovertext": [
            f"{label(part['name'])}<br>{'float32' if stays else 'int8'}, alone {q.decibels(_alone_db(part))}"
            for part, stays in zip(parts, kept, strict=True)
        ],
        "hovertemplate": "%{hovertext}<br>%{x:.3~%} of the energy<extra></extra>",
    }
    y = axis("", tickvals=places, ticktext=[label(part["name"], 30) for part in parts], autorange="reversed")
    height = 60 + 22 * len(parts)
    x = axis("error, share of the output's energy", tickformat="~%", rangemode="tozero", nticks=5)
    return Figure(
        name=name, title=file, height_px=height, data=[trace], layout=layout(x, y | {"showgrid": False}, height)
    )


def _ranking(found: Sequence[tuple[str, Json]]) -> Table:
    blocks = []
    for file, facts in found:
        parts = facts["ranking"]
        lines = [_part(part, place < facts["kept"]) for place, part in enumerate(parts[:MOST_LINES])]
        left = f", the dearest {MOST_LINES} of {len(parts)}" if len(parts) > MOST_LINES else ""
        blocks.append(Block(lines=tuple(lines), title=f"{file}{left}"))
    titles = ("Operators", "Kind", "Number", "SQNR alone", "Precision")
    return Table(titles=titles, blocks=tuple(blocks), words=(0, 1, 4))


def _part(part: Json, stays: bool) -> Line:
    cells = (
        Cell(text=str(part["kind"])),
        Cell(text=str(part["operators"])),
        Cell(text=q.decibels(_alone_db(part))),
        Cell(text="float32" if stays else "int8", tone="warn" if stays else "plain"),
    )
    return Line(head=Cell(text=str(part["name"])), cells=cells)


def _alone_db(part: Json) -> float:
    """Return the output's SQNR with only these operators on integers, from their share of the energy."""
    noise = float(part["noise"])
    return min(max(-10.0 * math.log10(noise), _LEAST_DB), _MOST_DB) if noise > 0 else _MOST_DB
