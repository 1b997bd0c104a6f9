"""Train the dense networks of workloads/spam_lstm.py and workloads/tweets_transformer.py and write their weights.

    python benchmarks/train_text.py --network tweets_transformer --seed 1

Four epochs of AdamW, less than a CPU minute on one thread. Weights are written in half precision and measured as they
are written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_fashion_mnist import WORKLOADS, train_, write

from edgeprune.workload import import_code

NETWORKS = ("spam_lstm", "tweets_transformer")
PEAK_LR = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    workload = import_code(str(WORKLOADS / f"{arguments.network}.py"))
    torch.manual_seed(arguments.seed)
    model = workload.untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=1e-2)
    train_(model, workload, optimizer, PEAK_LR, arguments.epochs)
    output = arguments.output or workload.weights(arguments.seed)
    write(model, workload, output, "benchmarks/train_text.py", half=True)


if __name__ == "__main__":
    main()
