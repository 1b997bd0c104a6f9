"""Does fine-tuning in two processes end where fine-tuning in one does? The same batches, on the CPU.

    python -m benchmarks.processes            # 5 seeds, some ten minutes on two cores
    python -m benchmarks.processes --table    # the table of the rows that are there

A trained ResNet-8 is pruned to a quarter of its multiply-accumulates, reconstructed, and trained for one epoch: by one
process, and by two that torchrun starts, on batches of half the size, so that every step sees the same samples. A seed
stands for their order. What differs is that each process normalises its own half of a batch, and the order of sums. The
samples that are scored are held out from training and nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import edgeprune as ep
from edgeprune.training.processes import Processes
from edgeprune.workload import import_code

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "processes.jsonl"
Row = dict[str, Any]
Data = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A workload, what is left of its multiply-accumulates, how long it is trained, and the images of a step."""

    name: str
    source: str
    macs: str
    epochs: int
    batch: int

    def samples(self) -> Data:
        """Return the images and labels to train on."""
        workload = import_code(self.source)
        if self.name == "digits":
            images, labels = workload.split("train")[:]
        else:
            images, labels = workload.training_split()
            images, labels = images[: -workload.HELD_OUT], labels[: -workload.HELD_OUT]
        return images, labels


CASES = {
    "fashion_mnist": Case(
        "fashion_mnist", str(ROOT / "benchmarks" / "workloads" / "fashion_mnist.py"), "0.25x", 1, 128
    ),
    "digits": Case("digits", "edgeprune.demo.workload_template", "0.05x", 10, 32),
}


def train(case: Case, seed: int, processes: int, most: int | None = None) -> Row:
    """Prune, reconstruct and train a network, as one of several processes; every one returns the same row.

    Args:
        most: How many samples are trained on, at most.
    """
    workload = import_code(case.source)
    images, labels = (tensor[:most] for tensor in case.samples())
    dense, inputs = workload.model().eval(), workload.inputs()
    plan = ep.plan(dense, inputs, max_macs=case.macs, align=1)
    small = ep.apply(dense, plan, inputs)
    small = ep.reconstruct(small, dense, plan, inputs, data=[(part,) for part in images[:512].split(64)])
    size, whole = case.batch // processes, len(labels) // case.batch * case.batch

    def batches() -> Iterable[Data]:
        order = torch.randperm(len(labels))[:whole]
        return [(images[some], labels[some]) for some in order.split(size)]

    tuned = ep.finetune(small, step=workload.train_step, data=batches, epochs=case.epochs, seed=seed)
    row = {"network": case.name, "seed": seed, "processes": processes}
    return row | {"before": workload.evaluate(small)["top1"], "top1": workload.evaluate(tuned)["top1"]}


def run(case: Case, seed: int, processes: int, most: int | None = None) -> Row:
    """Train in new processes, started by torchrun where there are several.

    Raises:
        CalledProcessError: One of them failed.
    """
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [*launch, "benchmarks.processes", "--one", case.name, str(seed), str(processes), str(most or 0)]
        subprocess.run(
            [*command, "-o", str(path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=True,
        )
        row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row


def table(rows: list[Row]) -> str:
    """Return the results as Markdown: means over seeds with their deviation, and the difference paired by seed."""
    lines = [
        "| network | seeds | before | one process | two processes | difference |",
        "|---|---|---|---|---|---|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        found = {(row["processes"], row["seed"]): row for row in rows if row["network"] == network}
        seeds = sorted(
            {seed for number, seed in found if number == 1} & {seed for number, seed in found if number == 2}
        )
        one, two = (np.array([found[number, seed]["top1"] for seed in seeds]) for number in (1, 2))
        cells = [network, str(len(seeds)), f"{100 * found[1, seeds[0]]['before']:.2f}"]
        cells += [f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f}" for values in (one, two)]
        lines.append(f"| {' | '.join([*cells, _interval(two - one)])} |")
    note = (
        "Percent of the held-out images that are read right: mean and standard deviation over seeds; the difference, "
        "two processes less one, is paired by seed, with its 95 % interval (t)."
    )
    return "\n".join([*lines, "", note])


def _interval(values: np.ndarray[Any, Any]) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{100 * values.mean():+.2f} ± {100 * half:.2f}"


def _one(name: str, seed: str, processes: str, most: str, output: Path) -> None:
    """Be one of the processes of a row; the first one writes it."""
    torch.set_num_threads(1)
    row = train(CASES[name], int(seed), int(processes), int(most) or None)
    several = Processes()
    assert several.count == int(processes)
    if several.first:
        output.write_text(json.dumps(row), encoding="utf-8")
    if several.count > 1:
        torch.distributed.destroy_process_group()


def main() -> int:
    """Make the missing rows and the table, or print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=CASES, default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=4, metavar=("NETWORK", "SEED", "PROCESSES", "SAMPLES"))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(*arguments.one, arguments.output)
        return 0
    lines = arguments.output.read_text(encoding="utf-8").splitlines() if arguments.output.exists() else []
    rows = [json.loads(line) for line in lines]
    if arguments.table:
        print(table(rows))
        return 0
    known = {(row["network"], row["seed"], row["processes"]) for row in rows}
    with arguments.output.open("a", encoding="utf-8") as file:
        for seed in range(arguments.seeds):
            for processes in (1, 2):
                if (arguments.network, seed, processes) not in known:
                    rows.append(run(CASES[arguments.network], seed, processes))
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
                    print(rows[-1], file=sys.stderr)
    text = f"# One process and two\n\nWritten by `python -m benchmarks.processes`.\n\n{table(rows)}\n"
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
