"""The Markdown tables of the recovery rows: means with 95 % intervals over seeds, and whether the goals hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

Row = dict[str, Any]
COLUMNS = (
    ("torch-pruning", "plain", "TP"),
    ("torch-pruning", "recalibrated", "TP + BN"),
    ("edgeprune", "plain", "ep"),
    ("edgeprune", "recalibrated", "ep + BN"),
    ("edgeprune", "reconstructed_256", "ep reconstruct, 256"),
    ("edgeprune", "reconstructed", "ep reconstruct, 512"),
    ("torch-pruning", "finetuned", "TP, 1 epoch"),
    ("edgeprune", "finetuned", "ep, 1 epoch"),
)
# Goals: shares of the points that Torch-Pruning loses, and points lost at most.
OF_RECALIBRATED, OF_PLAIN = 0.25, 0.10
MOST_POINTS, MOST_POINTS_BELOW = 2.5, 6.0
WORSE_AFTER_EPOCH = 0.3
_ROUNDING = 1e-9
ACCURACY = (
    "Test accuracy in percent, mean over seeds ± half of its 95 % interval. TP is Torch-Pruning, ep edgeprune, BN "
    "recalibrated BatchNorm. Seeds decide the calibration samples, the batches of gradients and the order of training; "
    "where the dense column does not vary, the trained weights are one set."
)
GOALS = (
    "Goals. The points that the reconstructed network loses, as a share of what Torch-Pruning with recalibrated "
    f"BatchNorm loses (at most {100 * OF_RECALIBRATED:g} %) and of what it loses alone (at most {100 * OF_PLAIN:g} %), "
    f"and in all (at most {MOST_POINTS:g} at half of the MACs, {MOST_POINTS_BELOW:g} below); after one epoch "
    f"edgeprune's accuracy minus Torch-Pruning's (at least -{WORSE_AFTER_EPOCH})."
)


class Group:
    """The rows of one network at one share, by tool and treatment."""

    def __init__(self, network: str, share: float, rows: Sequence[Row]) -> None:
        self.network, self.share = network, share
        self.rows = [row for row in rows if row["network"] == network and row["share"] in (share, 1.0)]

    def values(self, tool: str, treatment: str, field: str = "test") -> list[float]:
        """Return a field of every seed."""
        mine = [row for row in self.rows if (row["tool"], row["treatment"]) == (tool, treatment)]
        return [row[field] for row in sorted(mine, key=lambda row: int(row["seed"]))]

    def lost(self, tool: str, treatment: str) -> float | None:
        """Return how many points the mean of a column is below that of the dense networks of the same seeds."""
        mine = {row["seed"]: row["test"] for row in self.rows if (row["tool"], row["treatment"]) == (tool, treatment)}
        dense = {row["seed"]: row["test"] for row in self.rows if row["tool"] == "dense"}
        return fmean(dense[seed] - value for seed, value in mine.items()) if mine else None


def table(rows: Iterable[Row]) -> str:
    """Return the results as Markdown."""
    latest = list({(r["network"], r["seed"], r["share"], r["tool"], r["treatment"]): r for r in rows}.values())
    done = [row for row in latest if "failed" not in row]
    pairs = dict.fromkeys((row["network"], row["share"]) for row in done if row["tool"] != "dense")
    groups = [Group(network, share, done) for network, share in pairs]
    if not groups:
        return "There are no rows yet."
    parts = [_accuracy(groups), _goals(groups), _cost(groups), _choices(groups), _failures(latest)]
    return "\n\n".join([*filter(None, parts), _environment(latest)])


def spread(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean (Student), None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def _mean(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ""
    half = spread(values)
    return f"{fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _accuracy(groups: Sequence[Group]) -> str:
    lines = [
        ACCURACY,
        "",
        _line(["network", "MACs", "seeds", "dense", *(title for *_, title in COLUMNS)]),
        "|" + "---|" * (4 + len(COLUMNS)),
    ]
    for group in groups:
        dense = group.values("dense", "dense")
        cells = [_mean(group.values(tool, treatment)) for tool, treatment, _ in COLUMNS]
        lines.append(_line([group.network, f"{group.share}x", _seeds(group), _mean(dense), *cells]))
    return "\n".join(lines)


def _seeds(group: Group) -> str:
    """Return how many seeds the columns have: `3`, or `3, trained 1` where fewer were trained."""
    some = len(group.values("edgeprune", "reconstructed"))
    trained = len(group.values("edgeprune", "finetuned"))
    return str(some) if trained in (0, some) else f"{some}, trained {trained}"


def goals(group: Group) -> dict[str, tuple[str, bool] | None]:
    """Return for every goal what was measured and whether it holds; None where rows are missing."""
    lost = group.lost("edgeprune", "reconstructed")
    recalibrated, plain = (group.lost("torch-pruning", name) for name in ("recalibrated", "plain"))
    trained, theirs = group.lost("edgeprune", "finetuned"), group.lost("torch-pruning", "finetuned")
    found: dict[str, tuple[str, bool] | None] = dict.fromkeys(("recalibrated", "plain", "points", "epoch"))
    for name, other, most in (("recalibrated", recalibrated, OF_RECALIBRATED), ("plain", plain, OF_PLAIN)):
        if lost is not None and other is not None:
            share = f"{100 * lost / other:.0f} %" if other > 0 else f"{lost:+.2f} of {other:+.2f}"
            found[name] = (share, lost <= most * max(other, 0) + _ROUNDING)
    if lost is not None:
        most = MOST_POINTS if group.share >= 0.5 else MOST_POINTS_BELOW
        found["points"] = (f"{lost:.2f}", lost <= most + _ROUNDING)
    if trained is not None and theirs is not None:
        found["epoch"] = (f"{theirs - trained:+.2f}", theirs - trained >= -WORSE_AFTER_EPOCH - _ROUNDING)
    return found


def _goals(groups: Sequence[Group]) -> str:
    lines = [
        GOALS,
        "",
        _line(["network", "MACs", "of TP + BN", "of TP", "points lost", "after an epoch"]),
        "|" + "---|" * 6,
    ]
    differences = []
    for group in groups:
        found = goals(group)
        cells = ["" if item is None else f"{item[0]}: {'yes' if item[1] else '**no**'}" for item in found.values()]
        lines.append(_line([group.network, f"{group.share}x", *cells]))
        pair = [group.lost(tool, "finetuned") for tool in ("torch-pruning", "edgeprune")]
        if pair[0] is not None and pair[1] is not None:
            differences.append(pair[0] - pair[1])
    if differences:
        better = "better" if fmean(differences) > 0 else "**not better**"
        lines += ["", f"After one epoch edgeprune is {fmean(differences):+.2f} points on average: {better}."]
    return "\n".join(lines)


def _cost(groups: Sequence[Group]) -> str:
    columns = (
        ("torch-pruning", "plain", "prune_cpu_s", "TP prunes"),
        ("edgeprune", "plain", "prune_cpu_s", "ep prunes and verifies"),
        ("torch-pruning", "recalibrated", "cpu_s", "recalibrate"),
        ("edgeprune", "reconstructed_256", "cpu_s", "reconstruct, 256"),
        ("edgeprune", "reconstructed", "cpu_s", "reconstruct, 512"),
        ("torch-pruning", "finetuned", "cpu_s", "TP, 1 epoch"),
        ("edgeprune", "finetuned", "cpu_s", "ep, 1 epoch"),
    )
    lines = [
        "CPU seconds on one thread, mean over seeds, and the MACs that were reached as a share of the dense ones.",
        "",
        _line(["network", "MACs", *(title for *_, title in columns), "TP's MACs", "ep's MACs"]),
        "|" + "---|" * (4 + len(columns)),
    ]
    for group in groups:
        seconds = [group.values(tool, treatment, field) for tool, treatment, field, _ in columns]
        dense = group.values("dense", "dense", "macs")
        reached = [
            [macs / dense[0] for macs in group.values(tool, treatment, "macs")]
            for tool, treatment in (("torch-pruning", "recalibrated"), ("edgeprune", "reconstructed"))
        ]
        cells = [f"{fmean(values):.2f}" if values else "" for values in seconds]
        cells += [f"{fmean(values):.3f}" if values else "" for values in reached]
        lines.append(_line([group.network, f"{group.share}x", *cells]))
    return "\n".join(lines)


def _choices(groups: Sequence[Group]) -> str:
    columns = [column for column in COLUMNS if column[1] in ("plain", "recalibrated", "reconstructed")]
    lines = [
        "Criterion and scope with the best validation accuracy, and the learning rate.",
        "",
        _line(["network", "MACs", *(title for *_, title in columns), "TP, 1 epoch", "ep, 1 epoch"]),
        "|" + "---|" * (4 + len(columns)),
    ]
    for group in groups:
        cells = []
        for tool, treatment, _ in columns:
            both = zip(*(group.values(tool, treatment, name) for name in ("criterion", "scope")), strict=True)
            cells.append("; ".join(dict.fromkeys(f"{criterion} {scope}" for criterion, scope in both)))
        for tool in ("torch-pruning", "edgeprune"):
            cells.append("; ".join(dict.fromkeys(f"{lr:g}" for lr in group.values(tool, "finetuned", "lr"))))
        lines.append(_line([group.network, f"{group.share}x", *cells]))
    return "\n".join(lines)


def _failures(rows: Sequence[Row]) -> str:
    found: dict[str, str] = {}
    for row in rows:
        if "failed" in row and row["treatment"] != "finetuned":
            found.setdefault(f"{row['tool']} on {row['network']} at {row['share']}x", row["failed"])
    return "\n".join(f"No result: {what}: {why[:200]}" for what, why in found.items())


def _environment(rows: Sequence[Row]) -> str:
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row["version"]
    return "With " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
