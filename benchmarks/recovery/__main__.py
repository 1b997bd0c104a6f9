"""Accuracy after pruning, edgeprune beside Torch-Pruning, with and without training.

    python -m benchmarks.recovery                                    # every network, both tools
    python -m benchmarks.recovery --network spam_lstm -o rows.jsonl
    python -m benchmarks.recovery --table                            # the table of the rows that are there

Rows are appended as soon as they are known and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.recovery.cases import CASES, Case
from benchmarks.recovery.cells import TREATMENTS, Cell, dense_row, key_of
from benchmarks.recovery.table import table

RESULTS = Path(__file__).resolve().parent.parent / "results" / "recovery.jsonl"
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a results file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def make(case: Case, seeds: list[int], shares: list[float], wanted: list[tuple[str, str]], output: Path) -> None:
    """Make the rows of a network that a results file lacks and append each as soon as it is known.

    Args:
        wanted: Tools and treatments.
    """
    known = {key_of(row): row for row in read_rows(output)}
    with output.open("a", encoding="utf-8") as file:

        def keep(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(say(row), file=sys.stderr)

        for seed in seeds:
            if (case.name, seed, 1.0, "dense", "dense") not in known:
                keep(dense_row(case, seed))
            for share in shares:
                if all((case.name, seed, share, *pair) in known for pair in wanted):
                    continue
                for row in Cell(case, seed, share).rows(wanted, known):
                    keep(row)


def say(row: Row) -> str:
    """Return one line about a row."""
    chosen = f"{row.get('criterion', '')} {row.get('scope', '')}".strip()
    start = f"{row['network']:20} seed {row['seed']} {row['share']:4}x {row['tool']:14} {row['treatment']:18}"
    if "failed" in row:
        return f"{start} failed: {row['failed'][:100]}"
    return f"{start} {row['test']:6.2f} {chosen:16} {row.get('cpu_s', '')}".rstrip()


def main() -> int:
    """Make the missing rows, or print the table. Returns 2 when a package or the data are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=list(CASES), action="append")
    parser.add_argument(
        "--seed", type=int, action="append", help="of calibration data, training order and chance; 0, 1, 2"
    )
    parser.add_argument("--share", type=float, action="append", help="of the dense MACs, by default 0.5 and about 0.25")
    parser.add_argument("--tool", choices=list(TREATMENTS), action="append")
    parser.add_argument("--treatment", choices=list(dict.fromkeys(sum(TREATMENTS.values(), ()))), action="append")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there and stop")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_rows(arguments.output)))
        return 0
    tools = tuple(arguments.tool or TREATMENTS)
    if "torch-pruning" in tools and find_spec("torch_pruning") is None:
        install = "pip install --no-deps torch-pruning==1.6.1, or --tool edgeprune"
        print(f"torch-pruning is not installed: {install}", file=sys.stderr)
        return 2
    wanted = [(tool, name) for tool in tools for name in TREATMENTS[tool] if name in (arguments.treatment or [name])]
    torch.set_num_threads(1)
    for name in arguments.network or CASES:
        try:
            case = CASES[name]()
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 2
        make(case, arguments.seed or [0, 1, 2], arguments.share or list(case.shares), wanted, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
