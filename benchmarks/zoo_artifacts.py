"""Every network of tests/zoo, pruned at three ratios, through both exporters: is each step equal to the one before?

    python -m benchmarks.zoo_artifacts                     # all networks, all ratios: about an hour on one core
    python -m benchmarks.zoo_artifacts resnet_basic --ratio 0.5 -o /tmp/rows.jsonl

Writes one JSON line per network, ratio and format to benchmarks/results/zoo_artifacts.jsonl as soon as it is known;
rows that are already there are not made again. `--table` prints the table of a results file as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "zoo_artifacts.jsonl"
RATIOS = (0.25, 0.5, 0.75)
FORMATS = ("onnx", "tflite")
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "litert-torch", "ai-edge-litert")
Row = dict[str, Any]


def rows_of(name: str, ratio: float, formats: list[str], folder: Path) -> Iterator[Row]:
    """Prune one network, export it, and yield a row per format; a failure is a row with its error."""
    import torch

    from edgeprune.compact import analyse, apply
    from edgeprune.config import PruneConfig
    from edgeprune.errors import EdgePruneError
    from edgeprune.export import export
    from edgeprune.graph.cost import count_macs, count_params
    from edgeprune.pruning import make_plan, score
    from tests.zoo import NETWORKS

    torch.set_num_threads(1)
    model, inputs = NETWORKS[name].build().eval(), NETWORKS[name].inputs()
    row: Row = {"network": name, "ratio": ratio, "versions": {name: version(name) for name in PACKAGES}}
    started = time.process_time()
    graph = analyse(model, inputs)
    config = PruneConfig(ratio=ratio)
    plan = make_plan(graph, score(model, graph, "l2", inputs=inputs), config, align=1, model=model, inputs=inputs)
    compacted = apply(model, plan, inputs, graph)
    row |= {
        "groups_free": len(graph.free),
        "groups_pinned": len(graph.groups) - len(graph.free),
        "params": [count_params(model), count_params(compacted.model)],
        "macs": [count_macs(model, inputs), count_macs(compacted.model, inputs)],
        "compact_max_rel": compacted.check.max_rel,
        "prune_cpu_s": round(time.process_time() - started, 3),
    }
    for suffix in formats:
        started = time.perf_counter()
        found = {**row, "format": suffix, "error": None, "max_rel": None, "size_bytes": None}
        try:
            done = export(compacted.model, inputs, str(folder / f"{name}.{suffix}"))
            found["max_rel"] = max(check.max_rel for check in done.checks)
            found["size_bytes"] = done.artifact.size_bytes
        except EdgePruneError as error:
            found["error"] = f"{type(error).__name__}: {error.message}"
        yield {**found, "export_s": round(time.perf_counter() - started, 2)}


def table(path: Path) -> str:
    """Return the results as a Markdown table: one line per network, worst case over ratios."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = [
        "| network | ratios | pruned = masked | onnx = network | tflite = network | parameters left at 0.5 |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        mine = [row for row in rows if row["network"] == name]
        cells = [f"{max(row['compact_max_rel'] for row in mine):.0e}"]
        for suffix in FORMATS:
            errors = [row["error"] for row in mine if row["format"] == suffix and row["error"]]
            worst = [row["max_rel"] for row in mine if row["format"] == suffix and row["max_rel"] is not None]
            cells.append(errors[0][:60] if errors else (f"{max(worst):.0e}" if worst else "not run"))
        half = [row["params"][1] / row["params"][0] for row in mine if row["ratio"] == 0.5]
        left = f"{half[0]:.2f}" if half else ""
        lines.append(f"| {name} | {len({row['ratio'] for row in mine})} | {' | '.join(cells)} | {left} |")
    good = sum(row["error"] is None for row in rows)
    versions = ", ".join(f"{package} {number}" for package, number in rows[-1]["versions"].items())
    return "\n".join([*lines, "", f"{good} of {len(rows)} files verified, with {versions}."])


def main() -> int:
    """Make the missing rows, or print the table. Returns 1 when any row has an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.output))
        return 0
    from tests.zoo import NETWORKS

    path: Path = arguments.output
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(row["network"], row["ratio"], row["format"]) for row in known}
    failed = any(row["error"] for row in known)
    with tempfile.TemporaryDirectory() as folder, path.open("a", encoding="utf-8") as file:
        for name in arguments.networks or list(NETWORKS):
            for ratio in arguments.ratio or RATIOS:
                missing = [f for f in arguments.format or FORMATS if (name, ratio, f) not in done]
                for row in rows_of(name, ratio, missing, Path(folder)) if missing else ():
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    failed |= row["error"] is not None
                    print(f"{name:24} {ratio} {row['format']:7} {row['max_rel']} {row['error'] or ''}", file=sys.stderr)
    print(table(path))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
