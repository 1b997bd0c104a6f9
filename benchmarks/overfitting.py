"""Does pruning narrow the gap between training and test? Multilayer perceptrons on little of Fashion-MNIST.

    python -m benchmarks.overfitting            # 10 seeds, some twenty minutes on one core
    python -m benchmarks.overfitting --table    # the table of the rows that are there

Two networks, 784-64-10 and 784-512-512-10, both trained with L2 on 2,000 images until they know most of them by heart.
Each is pruned in several ways, trained ten epochs more, and compared with the dense network trained the same ten epochs
more: the same seed, the same images, the same optimiser. Test is all 10,000 test images; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import edgeprune as ep
from edgeprune.workload import import_code

FASHION_MNIST = Path(__file__).resolve().parent / "workloads" / "fashion_mnist.py"
RESULTS = Path(__file__).resolve().parent / "results" / "overfitting.jsonl"
IMAGES, EPOCHS, EPOCHS_AFTER, BATCH, LR, L2 = 2000, 60, 10, 50, 1e-3, 1e-3
NETWORKS = {"784-64-10": (64,), "784-512-512-10": (512, 512)}
Row = dict[str, Any]
Data = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of pruning: channels by `ratio`, or single weights by `amount`; neither is the control."""

    ratio: float = 0.0
    amount: float = 0.0

    @property
    def name(self) -> str:
        if self.ratio:
            return f"{self.ratio:.0%} of the units"
        return f"{self.amount:.0%} of the weights" if self.amount else "dense"


ARMS = (Arm(), *(Arm(ratio=ratio) for ratio in (0.5, 0.75, 0.9)), *(Arm(amount=share) for share in (0.5, 0.8, 0.95)))


def mlp(hidden: Iterable[int]) -> nn.Sequential:
    """Return a perceptron from 28 x 28 pixels to ten logits."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = 784
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 10))


def run_seed(network: str, seed: int, train: Data, test: Data) -> list[Row]:
    """Train one network, prune it in all ways, train on, and score everything."""
    torch.manual_seed(seed)
    chosen = torch.randperm(len(train[1]))[:IMAGES]
    few = train[0][chosen], train[1][chosen]
    dense = mlp(NETWORKS[network])
    dense = _train(dense, few, EPOCHS, seed)
    rows = [_row(network, seed, "before", dense, few, test)]
    for arm in ARMS:
        pruned, masks = _pruned(dense, arm)
        after = _train(pruned, few, EPOCHS_AFTER, seed + 1000, masks)
        rows.append(_row(network, seed, arm.name, after, few, test))
    return rows


def _pruned(dense: nn.Module, arm: Arm) -> tuple[nn.Module, Any]:
    inputs = (torch.zeros(1, 1, 28, 28).normal_(generator=torch.Generator().manual_seed(0)),)
    if arm.ratio:
        return ep.apply(dense, ep.plan(dense, inputs, ratio=arm.ratio, align=1), inputs), None
    return ep.sparsify(dense, method="magnitude", amount=arm.amount) if arm.amount else (dense, None)


def _train(model: nn.Module, data: Data, epochs: int, seed: int, masks: Any = None) -> nn.Module:
    """Return the network after the last epoch of Adam with L2 as part of the loss."""

    def batches() -> Iterable[Data]:
        order = torch.randperm(len(data[1]))
        return [(data[0][some], data[1][some]) for some in order.split(BATCH)]

    def step(network: nn.Module, batch: Data) -> torch.Tensor:
        squares = torch.stack([p.square().sum() for p in network.parameters() if p.dim() > 1]).sum()
        return F.cross_entropy(network(batch[0]), batch[1]) + L2 / 2 * squares

    model = model.train()
    return ep.finetune(
        model,
        step=step,
        data=batches,
        epochs=epochs,
        evaluate=None,
        masks=masks,
        seed=seed,
        lr=LR,
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
    ).eval()


def _row(network: str, seed: int, arm: str, model: nn.Module, train: Data, test: Data) -> Row:
    scores = {}
    for name, (images, labels) in (("train", train), ("test", test)):
        with torch.no_grad():
            logits = model(images)
        scores[name] = float((logits.argmax(1) == labels).float().mean())
        scores[f"{name}_loss"] = float(F.cross_entropy(logits, labels))
    params = sum(int((p != 0).sum()) for p in model.parameters())
    return {"network": network, "seed": seed, "arm": arm, "params": params, **scores}


def table(rows: list[Row]) -> str:
    """Return the results as Markdown: means over seeds, and the paired difference to the dense network trained on."""
    found = {(row["network"], row["arm"], row["seed"]): row for row in rows}
    lines = [
        "| network | pruned | non-zero parameters | training | test | gap | change of the gap | change of test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        seeds = sorted({row["seed"] for row in rows if row["network"] == network})
        for arm in dict.fromkeys(row["arm"] for row in rows):
            mine = [found[network, arm, seed] for seed in seeds if (network, arm, seed) in found]
            control = [found[network, "dense", row["seed"]] for row in mine]
            gaps = np.array([row["train"] - row["test"] for row in mine])
            narrower = gaps - np.array([row["train"] - row["test"] for row in control])
            better = np.array([row["test"] for row in mine]) - np.array([row["test"] for row in control])
            changes = ["", ""] if arm in ("before", "dense") else [_interval(narrower), _interval(better)]
            means = [f"{100 * np.mean([row[key] for row in mine]):.1f}" for key in ("train", "test")]
            size = f"{np.mean([row['params'] for row in mine]):,.0f}"
            cells = [network, arm, size, *means, f"{100 * gaps.mean():.1f}", *changes]
            lines.append(f"| {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in rows})
    note = (
        f"Percent of images that are read right; {seeds} seeds. `before` is the dense network as it was trained, all "
        f"others got {EPOCHS_AFTER} epochs more. Changes are against `dense`, paired by seed, with 95 % intervals (t)."
    )
    return "\n".join([*lines, "", note])


def _interval(values: np.ndarray[Any, Any]) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{100 * values.mean():+.1f} ± {100 * half:.1f}"


def main() -> int:
    """Make the missing rows, or print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overfitting", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = arguments.output.read_text(encoding="utf-8").splitlines() if arguments.output.exists() else []
    rows = [json.loads(line) for line in lines]
    if arguments.table:
        print(table(rows))
        return 0
    torch.set_num_threads(1)
    fashion_mnist = import_code(str(FASHION_MNIST))
    train, test = fashion_mnist.training_split(), fashion_mnist.read_split("t10k")
    known = {(row["network"], row["seed"]) for row in rows}
    with arguments.output.open("a", encoding="utf-8") as file:
        for seed in range(arguments.seeds):
            for network in NETWORKS:
                if (network, seed) not in known:
                    for row in run_seed(network, seed, train, test):
                        file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(network, seed, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
