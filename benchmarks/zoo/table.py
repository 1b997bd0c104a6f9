"""The Markdown table of the engine zoo's rows: sums by library, the cost where both tools are right, every network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

Row = dict[str, Any]
TOOLS = ("edgeprune", "torch-pruning")
SAME = 1e-4


def latest(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return the last row of every network and tool."""
    return {(row["network"], row["tool"]): row for row in rows}


def outcome(row: Row) -> str:
    """Return exact, wrong, time-out or failed."""
    if row["exact"]:
        return "exact"
    if row["silent_wrong"]:
        return "wrong"
    return "time-out" if row["timeout"] else "failed"


def table(rows: Iterable[Row]) -> str:
    """Return the results as Markdown."""
    known = latest(rows)
    if not known:
        return "There are no rows yet."
    parts = [_sums(known), _costs(known), _networks(known), _environment(known)]
    return "\n\n".join(part for part in parts if part)


def _sums(known: dict[tuple[str, str], Row]) -> str:
    names = ["library", "tool", "networks", "exact", "silently wrong", "failed", "time-out", "trains"]
    names += ["same after a step", "reach, median", ">= 0.9", "inside, median", ">= 0.9"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    libraries = list(dict.fromkeys(row["library"] for row in known.values()))
    for library in [*libraries, "all"]:
        for tool in TOOLS:
            mine = [r for r in known.values() if r["tool"] == tool and library in (r["library"], "all")]
            if not mine:
                continue
            counts = [sum(outcome(row) == kind for row in mine) for kind in ("exact", "wrong", "failed", "time-out")]
            trains = sum(bool(row["trains"]) and row["exact"] for row in mine)
            cells = [
                library,
                tool,
                len(mine),
                *counts,
                trains,
                _trained(mine),
                *_reach(mine, "reach_params"),
                *_reach(mine, "reach_inside"),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _reach(rows: list[Row], field: str) -> tuple[str, str]:
    """Return the median of a share over the rows that are exact and have it, and how many have at least 0.9."""
    found = [row[field] for row in rows if row.get(field) is not None and row["exact"]]
    return (f"{median(found):.2f}", str(sum(share >= 0.9 for share in found))) if found else ("", "")


def _trained(rows: list[Row]) -> str:
    """Return how many networks still equal the masked one after a step of training, of those where that can be told."""
    found = [row["trained_rel"] for row in rows if row.get("trained_rel") is not None]
    return f"{sum(gap <= SAME for gap in found)} of {len(found)}" if found else ""


def _costs(known: dict[tuple[str, str], Row]) -> str:
    names = list(dict.fromkeys(name for name, _ in known))
    both = [name for name in names if all((name, tool) in known and known[(name, tool)]["exact"] for tool in TOOLS)]
    if not both:
        return ""
    lines = [
        f"Where both tools are right ({len(both)} networks):",
        "",
        "| tool | CPU s, unverified, median | faster on | CPU s, median | CPU s, worst | left, median | MB, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool in TOOLS:
        mine = [known[(name, tool)] for name in both]
        seconds = [row["cpu_s"]["total"] for row in mine]
        left = median(row["params"][1] / row["params"][0] for row in mine)
        memory = median(row["peak_mb"][1] - row["peak_mb"][0] for row in mine)
        worst = max(mine, key=lambda row: row["cpu_s"]["total"])
        faster = sum(all(_unverified(known[(n, tool)]) <= _unverified(known[(n, t)]) for t in TOOLS) for n in both)
        lines.append(
            f"| {tool} | {median(map(_unverified, mine)):.2f} | {faster} | {median(seconds):.2f} "
            f"| {max(seconds):.1f} ({worst['network']}) | {left:.2f} | {memory:.0f} |"
        )
    return "\n".join(lines)


def _unverified(row: Row) -> float:
    """Return the CPU seconds of recording, analysing, planning and cutting."""
    seconds: float = row["cpu_s"]["total"] - row["cpu_s"].get("verify", 0.0)
    return seconds


def _networks(known: dict[tuple[str, str], Row]) -> str:
    lines = [
        "| network | parameters | "
        + " | ".join(f"{tool} | reach | inside | left | CPU s | MB" for tool in TOOLS)
        + " |",
        "|---|---|" + "---|" * (6 * len(TOOLS)),
    ]
    for name in dict.fromkeys(name for name, _ in known):
        mine = [known.get((name, tool)) for tool in TOOLS]
        dense = (
            next(row["params"][0] for row in mine if row is not None and row["params"])
            if any(row is not None and row["params"] for row in mine)
            else None
        )
        size = f"{dense / 1e6:.2f} M" if dense else ""
        lines.append(f"| {name} | {size} | {' | '.join(_cells(row) for row in mine)} |")
    return "\n".join(lines)


def _cells(row: Row | None) -> str:
    if row is None:
        return "not run | | | | |"
    mode = f" ({row['mode']})" if row["exact"] and row.get("mode") not in (None, "eager") else ""
    return " | ".join(
        [
            outcome(row) + mode,
            _number(row, "reach_params", lambda value: f"{value:.2f}"),
            _number(row, "reach_inside", lambda value: f"{value:.2f}"),
            _number(row, "params", lambda value: f"{value[1] / value[0]:.2f}" if value[1] and value[0] else ""),
            _number(row, "cpu_s", lambda value: f"{value['total']:.2f}"),
            _number(row, "peak_mb", lambda value: f"{value[1] - value[0]:.0f}"),
        ]
    )


def _number(row: Row, key: str, shown: Callable[[Any], str]) -> str:
    return "" if row.get(key) is None else shown(row[key])


def _environment(known: dict[tuple[str, str], Row]) -> str:
    versions: dict[str, str] = {}
    for row in known.values():
        versions |= {row["tool"]: row["version"], **row["versions"]}
    return "With " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
