"""Networks with random weights through edgeprune's engine and through Torch-Pruning: who is right, and how fast.

    python -m benchmarks.zoo                                  # every network, both tools: two hours on one core
    python -m benchmarks.zoo --tool edgeprune --library timm -o /tmp/rows.jsonl
    python -m benchmarks.zoo --seeds 2                        # edgeprune with random groups, ratios and units
    python -m benchmarks.zoo --table                          # the table of the rows that are there

Each network and tool gets a process of its own. Rows are appended as soon as they are known and not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.zoo.networks import all_networks
from benchmarks.zoo.table import latest, table
from benchmarks.zoo.worker import LIBRARIES, TOOLS, empty_row, missing, tool_module, work

RESULTS = Path(__file__).resolve().parent.parent / "results" / "zoo_engine.jsonl"
RANDOM = RESULTS.with_name("zoo_engine_random.jsonl")
LIMIT_S = 120
PRELOADED = ("edgeprune.compact", "edgeprune.pruning", "benchmarks.zoo.worker", "benchmarks.zoo.preload")
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a results file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def run_worker(name: str, tool: str, limit_s: int, empty: Row, seed: int = 0) -> Row:
    """Make one row in a process of its own; one that dies leaves the row as far as it got.

    The process is forked from a server that has imported torch, edgeprune and the libraries, and done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, tool, limit_s, seed, sender))
    process.start()
    sender.close()
    row, ended = dict(empty), time.monotonic() + 60 + 8 * limit_s  # processes beside it may take the processor
    try:
        while receiver.poll(max(ended - time.monotonic(), 0)):
            row = receiver.recv()
    except EOFError:
        process.join()
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode != 0:
        row["timeout"] = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row["error"] = f"no answer within {limit_s} CPU seconds" if row["timeout"] else f"died: {process.exitcode}"
    return row


def say(row: Row) -> str:
    """Return one line about a row."""
    spent = (row.get("cpu_s") or {}).get("total")
    verdict = "exact" if row["exact"] else "SILENTLY WRONG" if row["silent_wrong"] else "failed"
    parts = [f"{row['network']:45} {row['tool']:14} {verdict:15} {spent if spent is not None else '':>8}"]
    parts += [f"reach {row['reach_params']}"] if row["reach_params"] is not None else []
    return " ".join([*parts, row["error"] or ""]).rstrip()


def main() -> int:
    """Make the missing rows, or print the table. Returns 2 when a package is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="library/name, or a part of it")
    parser.add_argument("--tool", choices=TOOLS, action="append")
    parser.add_argument("--library", choices=list(LIBRARIES), action="append")
    parser.add_argument("--limit", type=int, default=LIMIT_S, metavar="SECONDS", help="CPU seconds for each tool")
    parser.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="edgeprune at random: groups, ratios and units of N seeds"
    )
    parser.add_argument("--keep-old", action="store_true", help="keep edgeprune's rows made with another source")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there and stop")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1) if arguments.seeds else (0,)
    arguments.output = arguments.output or (RANDOM if arguments.seeds else RESULTS)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if arguments.table:
        print(table(read_rows(arguments.output)))
        return 0
    networks = [n for n in all_networks() if not arguments.library or n.library in arguments.library]
    if arguments.networks:
        exact = [n for n in networks if n.name in arguments.networks]
        parts = [part for part in arguments.networks if all(part != n.name for n in exact)]
        networks = [n for n in networks if n in exact or any(part in n.name for part in parts)]
    if arguments.list:
        print("\n".join(network.name for network in networks))
        return 0
    tools = ["edgeprune"] if arguments.seeds else arguments.tool or list(TOOLS)
    lines = dict.fromkeys(missing(library, tools) for library in dict.fromkeys(n.library for n in networks))
    for line in filter(None, lines):
        print(line, file=sys.stderr)
        return 2
    known = latest(read_rows(arguments.output))
    versions = {tool: tool_module(tool).version() for tool in tools}
    with arguments.output.open("a", encoding="utf-8") as file:
        for network, tool, seed in itertools.product(networks, tools, seeds):
            shown = f"{network.name}#{seed}" if seed else network.name
            old = known.get((shown, tool))
            kept = arguments.keep_old and tool == "edgeprune"
            if old is not None and (kept or old["version"] == versions[tool]):
                continue
            row = run_worker(network.name, tool, arguments.limit, empty_row(network, tool), seed)
            row["network"] = shown
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(say(row), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
