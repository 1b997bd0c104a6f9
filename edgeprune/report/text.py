"""Plain text tables for the console: pure functions from dicts to text, aligned and aware of the width.

Owns the layout of text. Prints nothing, colours nothing. A table that is wider than the terminal is written
as one block of `name value` lines for each row, so that nothing is cut off or left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from edgeprune.report import quantities as q
from edgeprune.report.rows import Row, join, metric_names, rows_of
from edgeprune.values import Json

GAP = "  "
LEAST_TEXT = 28


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int = 100) -> str:
    """Return an aligned table, each line starting with one space.

    Args:
        header: Column titles; the first one may be empty.
        rows: Cells, as many in each row as there are titles.
        align: One letter for each column, `l` or `r`.
        width: Columns of the terminal. A last column of text is wrapped where it does not fit; where the others do not
            fit either, each row becomes a block of lines.
    """
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    before = 1 + sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    if before + widths[-1] > width:
        if align[-1] != "l" or width - before < LEAST_TEXT:
            return "\n".join(_block(header, row, width) for row in rows)
        widths[-1] = width - before
    lines = []
    for line in (header, *rows):
        cells = [
            text.rjust(size) if side == "r" else text.ljust(size)
            for text, size, side in zip(line[:-1], widths, align, strict=False)
        ]
        first, *rest = wrapped(line[-1], widths[-1], "     ") or [""]
        first = first.rjust(widths[-1]) if align[-1] == "r" else first
        lines.append((" " + GAP.join([*cells, first])).rstrip())
        lines += [" " * before + text for text in rest]
    return "\n".join(lines)


def _block(header: Sequence[str], row: Sequence[str], width: int) -> str:
    """Write one row as its first cell and an indented line for each other cell that is not empty."""
    label = max(len(title) for title in header[1:]) if len(header) > 1 else 0
    lines = wrapped(f" {row[0]}", width, "   ")
    for title, cell in zip(header[1:], row[1:], strict=True):
        if cell:
            lines += wrapped(f"   {title.ljust(label)}{GAP}{cell}", width, "     ")
    return "\n".join(lines)


def wrapped(text: str, width: int, indent: str, first: str = "") -> list[str]:
    """Break a line at blanks, never inside a word such as a path or a name."""
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=indent,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    ) or [text]


def compress_table(result: Json, width: int = 100) -> str:
    """Return the final table of `compress`: size, metrics and latency of every artifact."""
    return _artifacts(rows_of(result), width)


def bench_table(measurements: Sequence[Json], comparisons: Sequence[Json], width: int = 100) -> str:
    """Return the table of `bench` and `compare`: as `compress_table`, without metrics."""
    return _artifacts(join((), measurements, comparisons), width)


def _artifacts(rows: Sequence[Row], width: int) -> str:
    names = metric_names(rows)
    extra = _differing(rows)
    times = q.time_unit(row.latency.get("p50_s") for row in rows)
    sizes = q.size_unit(row.size_bytes for row in rows)
    header = ["", "size", *names, *extra, "latency p50", "p90", "vs baseline"]
    align = "lr" + "r" * (len(names) + len(extra)) + "lrl"
    cells = []
    for index, row in enumerate(rows):
        line = [row.name, q.size(row.size_bytes, sizes), *(q.metric(row.metrics.get(name)) for name in names)]
        line = line if row.refused is None else [row.name, *("-" for _ in line[1:])]
        line += [values[index] for values in extra.values()]
        cells.append([*line, _p50(row, times), _p90(row, times), against_baseline(row)])
    _align_spread(cells, len(header) - 3)
    parts = [table(header, cells, align, width)]
    for row in rows:
        if row.problem:
            state = "refused" if row.refused is not None else row.quality
            parts += wrapped(f" {row.name} {state}: {row.problem}", width, "   ")
    return "\n".join(parts)


def _differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the columns that are only worth showing when the rows differ in them."""
    told = all(row.precision == "fp32" or f".{row.precision}." in row.name for row in rows)
    columns: dict[str, list[int | str | None]] = {
        "precision": [] if told else [row.precision for row in rows],
        "threads": [row.threads for row in rows],
        "target": [row.target for row in rows],
    }
    found = {
        title: [str(value or "-") for value in values]
        for title, values in columns.items()
        if len({value for value in values if value is not None}) > 1
    }
    if any(row.sqnr_db is not None for row in rows):
        found["SQNR"] = [q.decibels(row.sqnr_db) for row in rows]
    return found


def _p50(row: Row, unit: q.Unit) -> str:
    if row.refused is not None or row.quality == "failed":
        return "refused" if row.refused is not None else "failed"
    p50, interval = row.latency.get("p50_s"), row.latency.get("ci95_s")
    text = f"{q.duration(p50, unit)} {q.plus_minus(p50, interval, unit)}".rstrip()
    if row.latency.get("clock") == "cpu":
        text += " (CPU time)"
    return f"{text} noisy" if row.quality == "noisy" else text


def _p90(row: Row, unit: q.Unit) -> str:
    return "" if row.refused is not None or row.quality == "failed" else q.duration(row.latency.get("p90_s"), unit)


def _align_spread(cells: list[list[str]], column: int) -> None:
    """Pad the leading numbers of a column, so that units and intervals stand below each other."""
    heads = [len(line[column].partition(" ")[0]) for line in cells if line[column][:1].isdigit()]
    for line in cells:
        if line[column][:1].isdigit():
            head, _, tail = line[column].partition(" ")
            line[column] = f"{head.rjust(max(heads))} {tail}".rstrip()


def against_baseline(row: Row) -> str:
    """Return what the comparison of a row says: `3.19x ± 0.05 faster`, `1.00x` for the baseline itself."""
    if row.role == "baseline" and row.comparison is None:
        return "1.00x" if row.latency.get("p50_s") is not None else ""
    if row.comparison is None:
        return "" if row.measurement is None or row.quality == "failed" else "not compared"
    return f"{q.ratio(row.comparison['ratio'], row.comparison.get('ci95'))} {row.comparison['verdict']}"


def inspect_table(network: Json, groups: Sequence[Json], width: int = 100) -> str:
    """Return what `inspect` shows: the network, its channel groups and which of them can be pruned.

    Args:
        network: `name`, `params`, `macs`, `size_bytes` (float32 parameters), `inputs` (TensorSpec dicts) and,
            where known, `prunable_share`: the fraction of MACs in which some prunable group takes part.
        groups: `name`, `units_before`, `channels`, `tensors` (names or their number), `params` in these, `pinned`
            (reason or None), `where`, `fix`, `rests` (why it is left whole although it could go) and
            `macs_share` (fraction or None) of every channel group.
        width: Columns of the terminal.
    """
    lines = wrapped(network_line(network), width, "  ")
    cells = []
    for group in groups:
        tensors = group.get("tensors")
        tied = "-" if tensors is None else str(tensors if isinstance(tensors, int) else len(tensors))
        place = f" at {q.place(group['where'])}" if group.get("where") else ""
        instead = f"  rests: {group['rests']}" if group.get("rests") else ""
        prunable = f"yes{instead}" if group["pinned"] is None else f"no   {group['pinned']}{place}"
        params = None if group.get("params") is None else group["params"] / max(network["params"], 1)
        sizes = [str(group.get("units_before", "-")), str(group["channels"]), tied]
        cells.append([group["name"], *sizes, _share(params), _share(group.get("macs_share")), prunable])
    if cells:
        header = ["group", "units", "channels", "tensors", "of params", "of MACs", "prunable"]
        lines.append(table(header, cells, "lrrrrrl", width))
    free = [group for group in groups if group["pinned"] is None]
    summary = f"{len(groups)} group{'' if len(groups) == 1 else 's'}, {len(free)} prunable"
    if network.get("prunable_share") is not None:
        summary += f", covering {q.share(network['prunable_share'])} of MACs"
    lines.append(summary)
    for group in groups:
        if group["pinned"] is not None and group.get("fix"):
            lines += wrapped(f"to prune {group['name']} too: {group['fix']}", width, "  ")
    return "\n".join(lines)


def blocks_table(blocks: Sequence[Json], params: int, width: int = 100) -> str:
    """Return what `inspect` shows of the residual blocks that can be removed whole.

    Args:
        blocks: `name`, `params`, `macs_share`, `influence` and `pinned` (reason or None) of every block.
        params: Parameters of the network.
    """
    cells = [
        [
            block["name"],
            q.share(block["params"] / max(params, 1)),
            _share(block.get("macs_share")),
            f"{block['influence']:.4f}",
            "yes" if block["pinned"] is None else f"no   {block['pinned']}",
        ]
        for block in blocks
    ]
    free = sum(block["pinned"] is None for block in blocks)
    header = ["block", "share of params", "share of MACs", "influence", "removable"]
    summary = f"{len(blocks)} block{'' if len(blocks) == 1 else 's'}, {free} removable (prune.depth)"
    return f"{table(header, cells, 'lrrrl', width)}\n{summary}"


def _share(value: float | None) -> str:
    return "-" if value is None else q.share(value)


def network_line(network: Json) -> str:
    """Return a network in one line: name, parameters, MACs, size and inputs."""
    inputs = ", ".join(f"{q.shape(spec['shape'])} {spec['dtype']}" for spec in network.get("inputs") or ())
    parts = [str(network["name"]), f"{q.count(network.get('params'))} params", q.macs(network.get("macs"))]
    parts += [f"{q.size(network.get('size_bytes'))} float32", f"inputs {inputs}" if inputs else ""]
    return GAP.join(part for part in parts if part)


def checks_table(checks: Sequence[Json], width: int = 100) -> str:
    """Return the table of `verify`: what was compared with what, and a line for each comparison, failed ones marked."""
    parts = []
    for name in dict.fromkeys(check["name"] for check in checks):
        parts += [
            *wrapped(name, width, "   ", " "),
            _checks([check for check in checks if check["name"] == name], width),
        ]
    return "\n".join(parts)


def _checks(checks: Sequence[Json], width: int) -> str:
    several = len({check["output"] for check in checks}) > 1
    cells = [
        [
            check["inputs"],
            *([check["output"]] if several else []),
            str(check["batch_size"]),
            q.difference(check["max_abs"]),
            q.difference(check["max_rel"]),
            q.decibels(check.get("sqnr_db")),
            "-" if check.get("cosine") is None else f"{check['cosine']:.4f}",
            q.check_limit(check),
            q.verdict(check) if check["passed"] else f"DIFFERS on {check['output']}",
        ]
        for check in checks
    ]
    output = ["output"] if several else []
    header = ["inputs", *output, "batch", "max |diff|", "relative", "SQNR", "cosine", "limit", "result"]
    return table(header, cells, "l" + "l" * several + "rrrrrrl", width)
