"""What the HTML report says of a run and of several: headings, key figures, channels, environment, settings.

Owns wording and choice. Tables come from `tables.py`, plots from `plots.py` and `lanes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeprune.report import plots, tables
from edgeprune.report import quantities as q
from edgeprune.report.lanes import latency_samples
from edgeprune.report.page import Bar, Gradual, KeyFigure, Page, Run, Section, Sparsity
from edgeprune.report.quantised import quantised_sections
from edgeprune.report.rows import Place, Row, metric_names, place_of, rows_of
from edgeprune.report.search import layerwise_section, loop_section, sensitivity_section
from edgeprune.report.stages import output_lines, trail_text, zeros_text
from edgeprune.values import Json, lower_is_better

NOT_RECORDED = "not recorded"


def page(results: Sequence[Json]) -> Page:
    """Return the page of one or several results."""
    several = len(results) > 1
    runs = tuple(_run(index, result, several) for index, result in enumerate(results))
    if not several:
        return Page(title=runs[0].name, facts=runs[0].facts, runs=runs, overview=None, fronts=())
    networks = dict.fromkeys(str(result["network"]["name"]) for result in results)
    versions = dict.fromkeys(str(result["edgeprune"]) for result in results)
    return Page(
        title=f"{len(runs)} runs",
        facts=(", ".join(networks), f"edgeprune {', '.join(versions)}"),
        runs=runs,
        overview=tables.overview(results),
        fronts=tuple(_fronts(results)),
    )


def _run(index: int, result: Json, several: bool) -> Run:
    rows, name = rows_of(result), f"run{index}"
    verdict, metrics = result.get("verdict") or {}, result.get("metrics") or {}
    groups, machine = result.get("groups") or [], result.get("environment") or {}
    number = sum(len(found) for _, _, found in tables.checked(result))
    return Run(
        anchor=name,
        name=str(result["name"]),
        facts=_facts(result),
        verdict=str(verdict.get("text") or "No verdict was recorded."),
        passed=verdict.get("passed") is not False,
        budgets=tables.budgets(verdict.get("budgets") or []),
        notices=tuple((str(item["text"]), item.get("fix")) for item in result.get("notices") or []),
        figures=tuple(_key_figures(result, rows)),
        artifacts=tables.artifacts(rows, index),
        artifacts_note=_artifacts_note(result),
        trade_off=None if several else _trade_off(name, result, rows),
        bars=_bars(groups),
        bars_note=_bars_note(groups) + _blocks_note(result.get("blocks") or []) + _output_note(result),
        sparsity=_sparsity(result),
        gradual=_gradual(f"{name}-gradual", result, index),
        stages=tables.stages(metrics),
        splits=tables.splits(result.get("generalisation")),
        training=plots.training(
            f"{name}-training", result.get("history") or [], metrics, result.get("best_epoch"), index
        ),
        samples=latency_samples(f"{name}-samples", rows, index),
        cold=tables.cold(rows),
        checks=tables.checks(result),
        checks_note=f"All {number} checks",
        all_checks=tables.all_checks(result),
        environment=tuple(_environment(result, rows)),
        packages=tuple(sorted((str(key), str(value)) for key, value in (machine.get("packages") or {}).items())),
        settings=tuple(_flat(result.get("settings") or {})),
        reproduce=tuple(str(command) for command in result.get("reproduce") or []),
        sections=tuple(_searched(name, result)),
    )


def _searched(name: str, result: Json) -> Iterator[Section]:
    """Yield what led to the plan, where more than a criterion did, and to the integers of int8 files."""
    if result.get("sensitivity"):
        yield sensitivity_section(f"{name}-sensitivity", result["sensitivity"])
    if result.get("layerwise"):
        yield layerwise_section(f"{name}-layerwise", result["layerwise"])
    if result.get("loop"):
        yield loop_section(f"{name}-loop", result["loop"])
    yield from quantised_sections(f"{name}-quantised", result)


def _facts(result: Json) -> tuple[str, ...]:
    created = str(result.get("created") or "").replace("T", " ")[:16]
    target = (result.get("target") or {}).get("name")
    return (
        str(result["network"]["name"]),
        f"measured on {target}" if target else f"target {NOT_RECORDED}",
        f"{created} UTC" if created else f"date {NOT_RECORDED}",
        f"edgeprune {result.get('edgeprune')}",
    )


def _key_figures(result: Json, rows: Sequence[Row]) -> Iterator[KeyFigure]:
    """Yield the speed in each runtime, then what the network lost: parameters, MACs, the leading metric."""
    compared = [row for row in rows if row.comparison is not None and row.role != "baseline"]
    threads = {row.threads for row in compared}
    for row in compared[:8]:
        comparison = row.comparison or {}
        runtime = q.RUNTIMES.get(((row.measurement or {}).get("runtime") or {}).get("name", ""), row.format)
        runtime += f" {row.precision}" if row.precision != "fp32" else ""
        where = f", {row.threads} threads" if len(threads) > 1 and row.threads != 1 else ""
        verdict = str(comparison["verdict"])
        low, high = comparison.get("ci95") or (None, None)
        known = low is not None and high is not None
        yield KeyFigure(
            label=f"{runtime}{where}",
            value=q.ratio(comparison["ratio"]),
            detail=f"{verdict}, 95 % interval {low:.2f} to {high:.2f}" if known else verdict,
            tone=tables.TONES.get(verdict, "muted"),
        )
    for key, title, show in (("params", "Parameters", q.count), ("macs", "MACs", q.macs)):
        values = result["network"].get(key) or {}
        pruned = show(values.get("pruned")).replace("MACs", "").strip()
        yield KeyFigure(label=title, value=pruned, detail=f"{show(values.get('dense'))} before")
    for metric in metric_names(rows)[:1]:
        before, after = (_worst(rows, role, metric) for role in ("baseline", "model"))
        detail = f"{q.metric(before, tables.PLACES)} before"
        yield KeyFigure(label=metric, value=q.metric(after, tables.PLACES), detail=detail)


def _worst(rows: Sequence[Row], role: str, metric: str) -> float | None:
    values = [row.metrics.get(metric) for row in rows if row.role == role]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known) if lower_is_better(metric) else min(known)


def _artifacts_note(result: Json) -> str:
    sources = {entry.get("metrics_source") for entry in result.get("artifacts") or [] if entry.get("metrics")}
    text = "Latency is the median of the runs that count, ± half of its 95 % interval; p90 is of all runs."
    if sources == {"test_data"}:
        text += " Metrics are those of the files, run in their runtimes on test_data()."
    elif sources == {"evaluate"}:
        text += " Metrics are those of the files, run in their runtimes by evaluate()."
    return text


def _points(run: int, result: Json, rows: Sequence[Row]) -> list[plots.Point]:
    return [
        plots.Point(run=run, run_name=str(result["name"]), row=row, latency_s=row.latency["p50_s"])
        for row in rows
        if row.latency.get("p50_s") is not None and row.quality != "failed"
    ]


def _trade_off(name: str, result: Json, rows: Sequence[Row]) -> plots.Panel:
    points = _points(0, result, rows)
    fewest = min((point.row.threads or 0 for point in points), default=0)
    chosen = [point for point in points if (point.row.threads or 0) == fewest]
    if not chosen:
        return plots.Panel(figures=(), legend=(), note="No latency was measured, so there is nothing to plot.")
    return plots.trade_off(f"{name}-tradeoff", chosen, metric_names(rows))


def _fronts(results: Sequence[Json]) -> Iterator[tuple[str, plots.Panel]]:
    """Yield one common trade-off plot for each place whose latencies are comparable."""
    places: dict[Place, list[plots.Point]] = {}
    metrics: dict[str, None] = {}
    for index, result in enumerate(results):
        rows = rows_of(result)
        metrics |= dict.fromkeys(metric_names(rows))
        for point in _points(index, result, rows):
            places.setdefault(place_of(point.row.measurement or {}), []).append(point)
    for number, (place, points) in enumerate(places.items()):
        parts = [place.target, f"{place.threads or '?'} thread{'' if place.threads == 1 else 's'}"]
        parts += [f"batch {place.batch_size}"] if place.batch_size not in (None, 1) else []
        parts += ["CPU time"] if place.clock == "cpu" else []
        device = f" ({place.device})" if place.device else ""
        panel = plots.trade_off(f"front{number}", points, tuple(metrics))
        yield parts[0] + device + "".join(f", {part}" for part in parts[1:]), panel


def _bars(groups: Sequence[Json]) -> tuple[Bar, ...]:
    widest = max((group["channels_before"] for group in groups), default=1) or 1
    return tuple(
        Bar(
            name=str(group["name"]),
            before=group["channels_before"],
            after=group["channels_after"],
            before_percent=round(100 * group["channels_before"] / widest, 2),
            after_percent=round(100 * group["channels_after"] / widest, 2),
            share="–" if group.get("macs_share") is None else q.share(group["macs_share"]),
            note=_why(group),
            pinned=group.get("pinned") is not None,
        )
        for group in groups
    )


def _why(group: Json) -> str:
    if group.get("pinned") is not None:
        place = f" at {q.place(group['where'])}" if group.get("where") else ""
        return f"{group['pinned']}{place}"
    if group["units_before"] != group["channels_before"]:
        return f"{group['units_before']} to {group['units_after']} units"
    return ""


def _bars_note(groups: Sequence[Json]) -> str:
    free = [group for group in groups if group.get("pinned") is None]
    before, after = (sum(group[f"channels_{when}"] for group in free) for when in ("before", "after"))
    text = f"{before - after} of {before} prunable channels were removed, in {len(free)} of {len(groups)} groups."
    text += " Solid is what is left, outlined what was removed"
    return text + (", hatched what cannot be pruned, with the reason." if len(free) < len(groups) else ".")


def _blocks_note(blocks: Sequence[Json]) -> str:
    gone = [str(row["name"]) for row in blocks if row["removed"]]
    if not gone:
        return ""
    return f" Before that, {len(gone)} of {len(blocks)} residual blocks were removed whole: {', '.join(gone)}."


def _sparsity(result: Json) -> Sparsity | None:
    found = result.get("sparsity")
    if not found:
        return None
    everything = q.share(found["zeros"] / max(found["params"], 1))
    text = (
        f"{zeros_text(found)} ({found['method']}), {everything} of all parameters. The zeros are stored like any other "
        "number: the files keep their size, and shrink where they are compressed, as in a download or an app package "
        "(deflate here). A dense runtime multiplies by them all the same and is not faster."
    )
    return Sparsity(note=text, files=tables.sparse_files(found), layers=tables.sparse_layers(found))


_METHODS = {
    "channels": "the channels with the lowest scores went by and by, and were held at zero",
    "soft": "the filters with the lowest scores were zeroed again and again and could come back, until the last time",
    "regularise": "the channels with the lowest scores shrank step by step until they were zero",
    "slim": "the scales of normalisations were made sparse, and decided at the end",
    "weights": "the smallest weights went by and by, and were held at zero",
    "rigl": "weights were dropped where they were smallest and grew where the gradient was largest",
}


def _gradual(name: str, result: Json, index: int) -> Gradual | None:
    found = result.get("gradual")
    if not found:
        return None
    note = f"{_METHODS[found['method']]}: {trail_text(found)}."
    training = None
    if found["what"] == "units":
        dense = (result.get("metrics") or {}).get("dense") or {}
        training = plots.training(name, found["history"], {"pruned": dense}, found["best_epoch"], index)
        worst = found["cut"]["max_rel"]
        note += f" The cut changed the outputs of the trained network by {worst:.0e}, relative to the largest."
    steps = plots.pruning(name, found, index)
    return Gradual(note=f"{note[0].upper()}{note[1:]}", steps=steps, training=training)


def _output_note(result: Json) -> str:
    output = (result.get("compaction") or {}).get("output")
    if output is None:
        return ""
    first, *because = output_lines(output, str((result.get("network") or {}).get("name", "network")))
    return f" {first[0].upper()}{first[1:]}{''.join(f', {line.strip()}' for line in because)}."


def _environment(result: Json, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    machine, target = result.get("environment") or {}, result.get("target") or {}
    yield "Processor", f"{machine.get('cpu') or NOT_RECORDED}, {machine.get('cores') or '?'} cores"
    yield "System", str(machine.get("platform") or NOT_RECORDED)
    yield "Python", str(machine.get("python") or NOT_RECORDED)
    yield "Target", f"{target.get('name') or NOT_RECORDED}: {target.get('description') or ''}".rstrip(": ")
    timed = [row for row in rows if row.measurement is not None]
    yield "Runtimes", "; ".join(dict.fromkeys(tables.place_name(row) for row in timed)) or q.NOT_MEASURED
    devices = [row.measurement.get("device") for row in timed if row.measurement is not None]
    for device in [device for device in devices if device][:1]:
        names = [device.get(key) for key in ("board", "cpu", "os", "kernel")]
        yield "Device timed", ", ".join(str(name) for name in names if name) or NOT_RECORDED
    for row in timed:
        env = (row.measurement or {}).get("env") or {}
        if env.get("before"):
            yield "Before timing", _state(env["before"])
            yield "After timing", _state(env.get("after") or {})
            break
    stages = [f"{stage['name']} {q.elapsed(stage.get('seconds'))}" for stage in result.get("stages") or []]
    yield "Time spent", ", ".join(stages) or NOT_RECORDED


def _state(state: Json) -> str:
    """Write a machine's state as it was read; what could not be read is named as such."""
    frequencies = [value / 1e9 for value in state.get("frequency_hz") or [] if value is not None]
    temperatures = [value for value in state.get("temperature_c") or [] if value is not None]
    load = state.get("loadavg") or []
    parts = {
        "governor": state.get("governor"),
        "frequency": f"{min(frequencies):.2f} to {max(frequencies):.2f} GHz" if frequencies else None,
        "temperature": f"{max(temperatures):.0f} °C" if temperatures else None,
        "throttling": state.get("throttled"),
        "load average": " ".join(f"{value:.2f}" for value in load) or None,
    }
    missing = [name for name, value in parts.items() if value is None]
    known = [f"{name} {value}" for name, value in parts.items() if value is not None]
    return "; ".join(filter(None, [", ".join(known), f"{', '.join(missing)} {q.NOT_MEASURED}" if missing else ""]))


def _flat(settings: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value) or "none"
        else:
            yield f"{prefix}{key}", "not set" if value in (None, "", {}) else str(value)
