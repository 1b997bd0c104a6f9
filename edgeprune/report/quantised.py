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
_EQUALISED = ", equalised"
_LEAST_DB, _MOST_DB = -200.0, 200.0


def quantised_sections(name: str, result: Json) -> Iterator[Section]:
    """Yield how the ranges of int8 files were chosen and, where operators stay in float32, what each would cost."""
    entries = [entry for entry in result.get("artifacts") or [] if entry.get("quantisation")]
    found = [(_file(entry), entry["quantisation"]) for entry in entries]
    if not found:
        return
    yield Section(
        title="Quantisation",
        caption="All ranges were chosen in each of these ways, on true inputs, and the best output decided. "
        "SQNR is the energy of the output over that of its error: 20 dB are an error of a tenth.",
        panel=Panel(figures=(), legend=()),
        table=_methods(found),
    )
    gains = (result.get("quantise_aware") or {}).get("files") or []
    if gains:
        yield Section(
            title="Quantisation-aware training",
            caption="Each int8 file made twice: from the weights of fine-tuning, and from weights that were trained "
            "further with the rounding of int8: part of a gain can be that of longer training. The better one on "
            f"validation data is kept.{_decided(gains)}",
            panel=Panel(figures=(), legend=()),
            table=_gains(gains),
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


def _decided(gains: Sequence[Json]) -> str:
    """Say where what decided was not validation data."""
    sources = {side["source"] for gain in gains for side in (gain["post"], gain["aware"]) if side is not None}
    if "test_data" in sources:
        return " Here it is the better one on the test data, as evaluate() cannot score files: its figure flatters."
    return " Here no metric can score files: the SQNR decided." if sources == {None} else ""


def _gains(gains: Sequence[Json]) -> Table:
    """Return a block for each file, with a line for each way of making it; the one that was kept is marked."""
    known = [side for gain in gains for side in (gain["post"], gain["aware"]) if side is not None]
    validation = tuple(dict.fromkeys(name for side in known for name in side["validation"] or ()))
    tested = tuple(dict.fromkeys(name for side in known for name in side["metrics"] or ()))
    titles = ("Weights", *(f"{name}, decides" for name in validation), *(f"{name}, test" for name in tested), "SQNR")
    blocks = []
    for gain in gains:
        words = (("post", "Quantised after training"), ("aware", "Quantisation-aware training"))
        lines = [_side(title, gain[side], validation, tested, gain["kept"] == side) for side, title in words]
        blocks.append(Block(lines=tuple(lines), title=str(gain["path"])))
    return Table(titles=titles, blocks=tuple(blocks))


def _side(title: str, side: Json | None, validation: Sequence[str], tested: Sequence[str], kept: bool) -> Line:
    head = Cell(text=title, minor="kept" if kept else "", tone="good" if kept else "plain")
    if side is None:
        return Line(head=head, cells=tuple(Cell(text="refused") for _ in range(len(validation) + len(tested) + 1)))
    columns = [(side["validation"] or {}, name) for name in validation]
    columns += [(side["metrics"] or {}, name) for name in tested]
    cells = [Cell(text=q.metric(values[name]) if values.get(name) is not None else "-") for values, name in columns]
    return Line(head=head, cells=(*cells, Cell(text=q.decibels(side["sqnr_db"]))))


def _file(entry: Json) -> str:
    return str(entry["artifact"]["path"]).replace("\\", "/").rpartition("/")[2]


def _methods(found: Sequence[tuple[str, Json]]) -> Table:
    """Return the SQNR of every way to choose ranges, a block for each file; the way that was taken is marked."""
    tried = any(f"{method}{_EQUALISED}" in facts["methods"] for _, facts in found for method in facts["methods"])
    blocks = []
    for file, facts in found:
        plain = [method for method in facts["methods"] if not method.endswith(_EQUALISED)]
        lines = [Line(head=Cell(text=_word(method)), cells=_ways(facts, method, tried)) for method in plain]
        floats = len(facts["floats"])
        kept = f", {floats} operator{'s stay' if floats > 1 else ' stays'} in float32" if floats else ""
        blocks.append(Block(lines=tuple(lines), title=f"{file}: {q.decibels(facts['sqnr_db'])}{kept}"))
    titles = ("Ranges by", "SQNR", *(("Equalised channels",) if tried else ()))
    return Table(titles=titles, blocks=tuple(blocks))


def _ways(facts: Json, method: str, both: bool) -> tuple[Cell, ...]:
    cells = []
    for equalised in (False, True) if both else (False,):
        value = facts["methods"].get(f"{method}{_EQUALISED}" if equalised else method)
        taken = method == facts["method"] and equalised == bool(facts.get("equalised"))
        text = q.decibels(value)
        cells.append(Cell(text=text, minor="taken" if taken else "", tone="good" if taken else "plain"))
    return tuple(cells)


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
