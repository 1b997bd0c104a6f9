"""The judgement of a run: one sentence that claims no more than was measured, and the user's budgets.

Works on the dict form of results. A speed is always a measured ratio with its interval.
"""

from __future__ import annotations

from edgeprune.config import RunConfig
from edgeprune.errors import (
    BudgetMissed,
    ConfigError,
    DeviceError,
    EdgePruneError,
    ExportError,
    ModelError,
    VerificationError,
)
from edgeprune.report import quantities as q
from edgeprune.report.rows import Row, metric_names, rows_of
from edgeprune.values import Json, parse_bytes, parse_seconds, worsening

_REFUSALS: tuple[type[EdgePruneError], ...] = (VerificationError, ConfigError, ExportError)


def judge(result: Json, config: RunConfig) -> Json:
    """Return the verdict of a result: its text, whether every budget was met, and the budgets one by one."""
    rows = rows_of(result)
    budgets = _latency(rows, config) + _size(rows, config) + _drop(rows, config)
    parts = [*_speed(rows), *_sizes(rows), *_compressed(result), *_metrics(rows, config)]
    missed = [budget["name"] for budget in budgets if not budget["passed"]]
    if missed:
        parts.append(f"missed: {', '.join(missed)}")
    elif budgets:
        parts.append("within budget")
    return {"text": ", ".join(parts), "passed": not missed, "budgets": budgets}


def failure(result: Json) -> EdgePruneError | None:
    """Return the error that a finished run ends with: a precision or a measurement that failed, or a missed budget."""
    for item in result.get("refused") or ():
        kind = next((kind for kind in _REFUSALS if kind.__name__ == item["error"]), ModelError)
        return kind(f"there is no {item['path']}: {item['message']}", fix=item["fix"], where=item["where"])
    for row in rows_of(result):
        if row.quality == "failed":
            return DeviceError(
                f"{row.name} could not be measured on {result['target']['name']}: {row.problem}",
                fix="run the same command again; everything else is kept",
            )
    for budget in result["verdict"]["budgets"]:
        if not budget["passed"]:
            measured = "not measured" if budget["measured"] is None else _amount(budget, budget["measured"])
            return BudgetMissed(
                f"{budget['name']} is {measured}, the limit is {_amount(budget, budget['limit'])}",
                fix="prune more (--ratio), or relax the limit"
                if budget["kind"] != "drop"
                else "prune less (--ratio), or fine-tune longer (-s finetune.epochs=10)",
            )
    return None


def leading_metric(rows: tuple[Row, ...], config: RunConfig) -> str | None:
    """Return the metric that decides: the one in the settings, else the first that the artifacts have."""
    return chosen_metric(metric_names(rows), config)


def chosen_metric(names: tuple[str, ...], config: RunConfig) -> str | None:
    """Return which of some metrics decides: the one in the settings, else the first."""
    if config.finetune.metric in names:
        return config.finetune.metric
    return names[0] if names else None


def _speed(rows: tuple[Row, ...]) -> list[str]:
    compared = [row for row in rows if row.comparison is not None and row.role != "baseline"]
    threads = len({row.threads for row in compared}) > 1
    parts = []
    for row in compared:
        comparison = row.comparison or {}
        where = row.label + (f" on {row.threads} threads" if threads and row.threads != 1 else "")
        noisy = " (noisy)" if row.quality == "noisy" else ""
        ratio, (low, high) = comparison["ratio"], comparison["ci95"]
        if comparison["verdict"] == "no difference shown":
            parts.append(f"{where} no difference shown ({ratio:.2f}x, {low:.2f} to {high:.2f}){noisy}")
        else:
            parts.append(f"{where} {ratio:.2f}x {comparison['verdict']} ({low:.2f} to {high:.2f}){noisy}")
    failed = [row.name for row in rows if row.quality == "failed"]
    parts += [f"{name} could not be measured" for name in failed]
    return parts + [f"there is no {row.name}" for row in rows if row.refused is not None]


def _pairs(rows: tuple[Row, ...]) -> list[tuple[Row, Row]]:
    """Return the dense and the pruned row of every format, for each precision of the pruned one."""
    dense = {row.format: row for row in rows if row.role == "baseline"}
    pruned = {(row.format, row.precision): row for row in rows if row.role == "model"}
    return [(dense[form], row) for (form, _), row in pruned.items() if form in dense]


Kind = tuple[str, str]  # format and precision


def _sizes(rows: tuple[Row, ...]) -> list[str]:
    found: dict[Kind, str] = {}
    for dense, pruned in _pairs(rows):
        if dense.size_bytes and pruned.size_bytes:
            found[pruned.format, pruned.precision] = f"{dense.size_bytes / pruned.size_bytes:.2f}x smaller"
    return _same(found)


def _compressed(result: Json) -> list[str]:
    """Say how much smaller the compressed files are, where single weights were pruned; speed is not theirs to claim."""
    sparsity = result.get("sparsity")
    if not sparsity:
        return []
    bytes_of = {row["name"]: row["compressed_bytes"] for row in sparsity["files"]}
    found: dict[Kind, str] = {}
    for name, size in bytes_of.items():
        role, *precision, form = name.split(".")
        dense = bytes_of.get(f"baseline.{form}")
        if role == "model" and dense and size:
            found[form, precision[0] if precision else "fp32"] = f"{dense / size:.2f}x smaller compressed"
    return _same(found)


def _metrics(rows: tuple[Row, ...], config: RunConfig) -> list[str]:
    name = leading_metric(rows, config)
    found: dict[Kind, str] = {}
    for dense, pruned in _pairs(rows):
        before, after = dense.metrics.get(name or ""), pruned.metrics.get(name or "")
        if name is not None and before is not None and after is not None:
            text = f"{name} {q.metric(before)} -> {q.metric(after)} ({after - before:+.3f})"
            found[pruned.format, pruned.precision] = text
    return _same(found)


def _same(found: dict[Kind, str]) -> list[str]:
    """Say once what all files share, and what all formats of a precision do, else say it for each."""
    if len(set(found.values())) == 1:
        return [next(iter(found.values()))]
    parts = []
    for precision in dict.fromkeys(precision for _, precision in found):
        texts = {form: text for (form, own), text in found.items() if own == precision}
        word = "" if precision == "fp32" else f"{precision} "
        if len(texts) > 1 and len(set(texts.values())) == 1:
            parts.append(f"{word}{next(iter(texts.values()))}")
        else:
            parts += [f"{form} {word}{text}" for form, text in texts.items()]
    return parts


def _latency(rows: tuple[Row, ...], config: RunConfig) -> list[Json]:
    if config.max_latency is None:
        return []
    limit = parse_seconds(config.max_latency)
    budgets = []
    for row in rows:
        if row.role == "model":
            threads = f" on {row.threads} threads" if row.threads not in (None, 1) else ""
            name = f"latency p50 of {row.name}{threads}"
            budgets.append(_budget("latency", name, limit, row.latency.get("p50_s")))
    return budgets


def _size(rows: tuple[Row, ...], config: RunConfig) -> list[Json]:
    if config.max_size is None:
        return []
    limit = parse_bytes(config.max_size)
    sizes = {row.name: row.size_bytes for row in rows if row.role == "model"}
    return [_budget("size", f"size of {name}", limit, value) for name, value in sizes.items()]


def _drop(rows: tuple[Row, ...], config: RunConfig) -> list[Json]:
    if config.max_drop is None:
        return []
    metric = leading_metric(rows, config)
    budgets = []
    for dense, pruned in _pairs(rows):
        before, after = dense.metrics.get(metric or ""), pruned.metrics.get(metric or "")
        known = metric is not None and before is not None and after is not None
        value = worsening(metric or "", before or 0.0, after or 0.0) if known else None
        budgets.append(_budget("drop", f"drop of {metric or 'the metric'} in {pruned.name}", config.max_drop, value))
    return budgets


def _budget(kind: str, name: str, limit: float, measured: float | None) -> Json:
    passed = measured is not None and measured <= limit + 1e-12
    return {"kind": kind, "name": name, "limit": limit, "measured": measured, "passed": passed}


def _amount(budget: Json, value: float) -> str:
    if budget["kind"] == "latency":
        return q.duration(value)
    return q.size(value) if budget["kind"] == "size" else f"{value:.4g}"
