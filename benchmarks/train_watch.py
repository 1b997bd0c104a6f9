"""Train the dense network of workloads/watch.py and write its weights.

    python benchmarks/train_watch.py --seed 1

Sixteen epochs of AdamW, a CPU minute on one thread. Weights are written in half precision and measured as they are
written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_fashion_mnist import WORKLOADS, train_, write

from edgeprune.workload import import_code

PEAK_LR = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    workload = import_code(str(WORKLOADS / "watch.py"))
    torch.manual_seed(arguments.seed)
    model = workload.untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=1e-2)
    train_(model, workload, optimizer, PEAK_LR, arguments.epochs)
    output = arguments.output or workload.weights(arguments.seed)
    write(model, workload, output, "benchmarks/train_watch.py", half=True)


if __name__ == "__main__":
    main()
