"""The tables of the HTML report: artifacts, runs side by side, cold start, metrics by stage, checks, budgets.

Owns which columns there are and how a row reads. Returns the values of `page.py`, no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.report import plots
from edgeprune.report import quantities as q
from edgeprune.report.page import Block, Cell, Line, Table, Tone, measured
from edgeprune.report.rows import Row, metric_names, rows_of
from edgeprune.values import COUNTED, Json

PLACES = 4
TONES: dict[str, Tone] = {"faster": "good", "slower": "bad"}


def place_name(row: Row) -> str:
    """Return the runtime and threads of a row, or its format where nothing was measured."""
    return q.runtime((row.measurement or {}).get("runtime") or {}) or f".{row.format}"


def artifacts(rows: Sequence[Row], run: int = 0) -> Table:
    """Return the files of a run with size, metrics and latency, one block for each runtime and threads."""
    names = metric_names(rows)
    times = q.time_unit(row.latency.get("p50_s") for row in rows)
    sizes = q.size_unit(row.size_bytes for row in rows)
    lower = any(row.precision != "fp32" for row in rows)
    blocks: dict[str, list[Line]] = {}
    for row in rows:
        color, shape = plots.DENSE if row.role == "baseline" else plots.run_mark(run)
        line = Line(
            head=Cell(text=row.name),
            cells=(*(_precision_cells(row) if lower else ()), *_artifact_cells(row, names, times, sizes)),
            remark=_remark(row),
            mark=plots.Mark(label=row.role, color=color, shape=shape, open=row.format != "onnx"),
        )
        blocks.setdefault(_block_of(row, rows), []).append(line)
    more = ("Precision", "SQNR") if lower else ()
    titles = ("File", *more, "Size", *names, "Latency p50", "p90", "Against baseline", "Verdict")
    return Table(titles=titles, blocks=_blocks(blocks), words=(0, *((1,) if lower else ()), len(titles) - 1))


def _block_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the heading of a row's block; a file that does not exist stands where those of its format do."""
    alike = [other for other in rows if other.format == row.format and other.measurement is not None]
    return place_name(alike[0] if row.refused is not None and alike else row)


def _precision_cells(row: Row) -> tuple[Cell, Cell]:
    tone: Tone = "muted" if row.sqnr_db is None else "plain"
    return Cell(text=row.precision), Cell(text=q.decibels(row.sqnr_db), tone=tone)


def overview(results: Sequence[Json]) -> Table:
    """Return the pruned files of several runs, one block for each runtime, threads and target."""
    every = [(index, result, row) for index, result in enumerate(results) for row in rows_of(result)]
    models = [item for item in every if item[2].role != "baseline"]
    names = metric_names(row for _, _, row in models)
    times = q.time_unit(row.latency.get("p50_s") for _, _, row in models)
    sizes = q.size_unit(row.size_bytes for _, _, row in models)
    blocks: dict[str, list[Line]] = {}
    for index, result, row in models:
        color, shape = plots.run_mark(index)
        params = measured(q.count((result["network"].get("params") or {}).get("pruned")))
        line = Line(
            head=Cell(text=str(result["name"]), minor=_settings_in_short(result, row)),
            cells=(params, *_artifact_cells(row, names, times, sizes)),
            remark=_remark(row),
            mark=plots.Mark(label=str(result["name"]), color=color, shape=shape, open=row.format != "onnx"),
        )
        target = (result.get("target") or {}).get("name") or "?"
        blocks.setdefault(f"{place_name(row)}, on {target}", []).append(line)
    titles = ("Run", "Params", "Size", *names, "Latency p50", "p90", "Against its baseline", "Verdict")
    return Table(titles=titles, blocks=_blocks(blocks), words=(0, len(titles) - 1))


def _blocks(blocks: dict[str, list[Line]]) -> tuple[Block, ...]:
    return tuple(Block(title=title, lines=tuple(lines)) for title, lines in blocks.items())


def _settings_in_short(result: Json, row: Row) -> str:
    prune = (result.get("settings") or {}).get("prune") or {}
    limits = [f"{word} {prune[f'max_{kind}']}" for kind, word in COUNTED.items() if prune.get(f"max_{kind}")]
    budget = limits[0] if limits else f"ratio {prune.get('ratio', '?')}"
    sparsify = (result.get("settings") or {}).get("sparsify") or {}
    zeros = f", {sparsify['method']}" if sparsify.get("method") else ""
    lower = f", {row.precision}" if row.precision != "fp32" else ""
    return f"{budget}, {prune.get('criterion', '?')}{zeros}{lower}"


def _remark(row: Row) -> str | None:
    return f"{'refused' if row.refused is not None else row.quality}: {row.problem}" if row.problem else None


def _artifact_cells(row: Row, names: Sequence[str], times: q.Unit, sizes: q.Unit) -> tuple[Cell, ...]:
    """Return size, metrics, p50, p90, ratio and verdict."""
    nothing = Cell(text="–", tone="muted")
    if row.refused is not None:
        return nothing, *(nothing for _ in names), _p50(row, times), nothing, nothing, Cell(text="")
    p90 = nothing if row.quality == "failed" else measured(_time(row, "p90_s", times))
    return (
        measured(q.size(row.size_bytes, sizes)),
        *(measured(q.metric(row.metrics.get(name), PLACES)) for name in names),
        _p50(row, times),
        p90,
        *_against(row),
    )


def _time(row: Row, key: str, unit: q.Unit) -> str:
    return q.duration(row.latency.get(key), unit)


def _p50(row: Row, unit: q.Unit) -> Cell:
    if row.refused is not None or row.quality == "failed":
        return Cell(text="refused" if row.refused is not None else "failed", tone="bad")
    p50 = row.latency.get("p50_s")
    minor = [q.plus_minus(p50, row.latency.get("ci95_s"), unit)]
    minor += ["CPU time"] if row.latency.get("clock") == "cpu" else []
    minor += ["noisy"] if row.quality == "noisy" else []
    tone: Tone = "muted" if p50 is None else "warn" if row.quality == "noisy" else "plain"
    return Cell(text=q.duration(p50, unit), minor=" ".join(filter(None, minor)), tone=tone)


def _against(row: Row) -> tuple[Cell, Cell]:
    """Return the ratio with its interval, and the verdict in words."""
    if row.comparison is None:
        known = row.role == "baseline" and row.latency.get("p50_s") is not None
        text = "1.00x" if known else "–"
        return Cell(text=text, tone="muted"), Cell(text="baseline" if known else "", tone="muted")
    verdict = str(row.comparison["verdict"])
    tone = TONES.get(verdict, "plain")
    half = q.ratio(row.comparison["ratio"], row.comparison.get("ci95")).partition(" ")[2]
    words = verdict if row.comparison.get("paired", True) else f"{verdict}, not timed in turn"
    return (
        Cell(text=q.ratio(row.comparison["ratio"]), minor=half, tone=tone),
        Cell(text=words, tone=tone),
    )


def stages(metrics: Json) -> Table:
    """Return the metrics of the PyTorch network after each stage; stages that did not run are left out."""
    steps = {
        "dense": "Dense network",
        "zeroed": "Dense network, trained while channels went",
        "pruned": "After pruning",
        "reconstructed": "After reconstruction",
        "recalibrated": "After BatchNorm recalibration",
        "looped": "After the loop",
        "sparse": "After weight pruning",
        "finetuned": "After fine-tuning",
        "quantise_aware": "After quantisation-aware training, in float32",
    }
    known = {title: metrics[key] for key, title in steps.items() if metrics.get(key) is not None}
    names = tuple(dict.fromkeys(name for values in known.values() for name in values))
    lines = [
        Line(head=Cell(text=title), cells=tuple(measured(q.metric(values.get(name), PLACES)) for name in names))
        for title, values in known.items()
    ]
    return Table(titles=("PyTorch network", *names), blocks=(Block(lines=tuple(lines)),))


def sparse_layers(sparsity: Json) -> Table:
    """Return one line for each layer whose weights were considered: how many it has and how many are zero."""
    lines = [
        Line(
            head=Cell(text=str(layer["name"])),
            cells=(
                Cell(text=q.shape(layer["shape"])),
                Cell(text=q.count(layer["weights"])),
                Cell(text=q.count(layer["zeros"])),
                Cell(text=q.share(layer["zeros"] / max(layer["weights"], 1))),
            ),
        )
        for layer in sparsity["layers"]
    ]
    return Table(titles=("Layer", "Shape", "Weights", "Zero", "Sparsity"), blocks=(Block(lines=tuple(lines)),))


def sparse_files(sparsity: Json) -> Table:
    """Return the files of a run as they are and compressed."""
    files = sparsity["files"]
    unit = q.size_unit(row[key] for row in files for key in ("size_bytes", "compressed_bytes"))
    lines = [
        Line(
            head=Cell(text=str(row["name"])),
            cells=(
                Cell(text=q.size(row["size_bytes"], unit)),
                Cell(text=q.size(row["compressed_bytes"], unit)),
                Cell(text=f"{row['size_bytes'] / max(row['compressed_bytes'], 1):.2f}x"),
            ),
        )
        for row in files
    ]
    return Table(titles=("File", "Size", "Compressed", "Ratio"), blocks=(Block(lines=tuple(lines)),))


def splits(found: Json | None) -> Table:
    """Return every metric on training, validation and test data, and the gap, of the dense and the final network."""
    titles = {"dense": "Dense network", "final": "Final network"}
    metrics = dict.fromkeys(name for row in (found or {}).values() for name in row["train"])
    blocks = []
    for metric in metrics:
        lines = []
        for key, title in titles.items():
            row = (found or {})[key]
            cells = [
                measured(q.metric((row[split] or {}).get(metric), PLACES))
                for split in ("train", "validation", "test", "gap")
            ]
            lines.append(Line(head=Cell(text=title), cells=tuple(cells)))
        blocks.append(Block(lines=tuple(lines), title=metric if len(metrics) > 1 else None))
    first = next(iter(metrics), "metric") if len(metrics) == 1 else "Network"
    return Table(titles=(first, "Training", "Validation", "Test", "Gap to training"), blocks=tuple(blocks))


def cold(rows: Sequence[Row]) -> Table:
    """Return how the timing went and what starting costs: runs, clean share, noise floor, load, memory."""
    lines = []
    for row in rows:
        item = row.measurement
        if item is None or row.quality == "failed":
            continue
        start, memory, aa = item.get("cold") or {}, item.get("memory") or {}, item.get("aa") or {}
        before, peak = memory.get("rss_before_bytes"), memory.get("peak_rss_bytes")
        runs = row.latency.get("n")
        cells = (
            measured(q.NOT_MEASURED if runs is None else f"{runs:,}".replace(",", " ")),
            measured(q.share(row.latency.get("clean_share"))),
            measured(q.ratio(aa.get("ratio"), aa.get("ci95"), places=3)),
            measured(q.duration(start.get("load_s"))),
            measured(q.duration(start.get("first_s"))),
            measured(q.size(None if before is None or peak is None else peak - before)),
        )
        threads = f"{row.threads} threads" if row.threads not in (None, 1) else ""
        lines.append(Line(head=Cell(text=row.name, minor=threads), cells=cells))
    titles = ("File", "Runs", "Clean", "A/A control", "Load", "First inference", "Added memory")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),))


def checked(result: Json) -> list[tuple[str, str, list[Json]]]:
    """Return what was verified: a name, what it was compared with, and the checks."""
    found = []
    compaction = (result.get("compaction") or {}).get("check")
    if compaction:
        found.append(("pruned network", "dense network, masked", [compaction]))
    for entry in result.get("artifacts") or []:
        name = str(entry["artifact"]["path"]).replace("\\", "/").rpartition("/")[2]
        against = "dense network" if entry["role"] == "baseline" else "pruned network"
        found.append((name, against, list(entry.get("checks") or [])))
    return found


def checks(result: Json) -> Table:
    """Return one line for everything that was verified: the number of checks and the largest difference."""
    lines = []
    for name, against, found in checked(result):
        differing = [check for check in found if not check["passed"]]
        worst = max(found, key=q.excess, default=None)
        outputs = ", ".join(dict.fromkeys(f"'{check['output']}'" for check in differing))
        verdict = Cell(text="no check", tone="warn")
        if found:
            near = any(q.verdict(check) == "near" for check in found)
            verdict = _verdict("differs" if differing else "near" if near else "equal")
        lines.append(
            Line(
                head=Cell(text=name),
                cells=(
                    Cell(text=against),
                    Cell(text=f"{len(found) - len(differing)} of {len(found)}"),
                    measured(q.agreement(worst) if worst else q.difference(None)),
                    measured(q.check_limit(worst) if worst else q.difference(None)),
                    verdict,
                ),
                remark=f"differs on output {outputs}" if differing else None,
            )
        )
    titles = ("Verified", "Against", "Checks passed", "Largest difference", "Limit", "Result")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),), words=(0, 1, 5))


def _verdict(text: str) -> Cell:
    return Cell(text=text, tone="bad" if text == "differs" else "good")


def all_checks(result: Json) -> Table:
    """Return every single check."""
    blocks = [
        Block(title=name, lines=tuple(_check(check) for check in found)) for name, _, found in checked(result) if found
    ]
    titles = ("Check", "Inputs", "Output", "Batch", "Absolute", "Relative", "SQNR", "Cosine", "Limit", "Result")
    return Table(titles=titles, blocks=tuple(blocks), words=(0, 1, 2, 9))


def _check(check: Json) -> Line:
    return Line(
        head=Cell(text=str(check["name"])),
        cells=(
            Cell(text=str(check["inputs"])),
            Cell(text=str(check["output"])),
            Cell(text=str(check["batch_size"])),
            Cell(text=q.difference(check["max_abs"])),
            Cell(text=q.difference(check["max_rel"])),
            Cell(text=q.decibels(check.get("sqnr_db"))),
            Cell(text="-" if check.get("cosine") is None else f"{check['cosine']:.4f}"),
            Cell(text=q.check_limit(check)),
            _verdict(q.verdict(check)),
        ),
    )


def budgets(found: Sequence[Json]) -> Table:
    """Return the user's budgets with what was measured."""
    lines = [
        Line(
            head=Cell(text=str(budget["name"])),
            cells=(
                measured(_amount(budget, budget.get("limit"))),
                measured(_amount(budget, budget.get("measured"))),
                Cell(text="met", tone="good") if budget.get("passed") else Cell(text="missed", tone="bad"),
            ),
        )
        for budget in found
    ]
    titles = ("Budget", "Limit", "Measured", "Result")
    return Table(titles=titles, blocks=(Block(lines=tuple(lines)),), words=(0, 3))


def _amount(budget: Json, value: float | None) -> str:
    """Write a budget's value in the unit of its kind; the first word of the name stands in for a missing kind."""
    kind = str(budget.get("kind") or budget["name"]).replace("max_", "")
    if kind.startswith("latency"):
        return q.duration(value)
    if kind.startswith("size"):
        return q.size(value)
    return q.metric(value, PLACES)
