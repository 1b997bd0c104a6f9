"""Train the dense networks of workloads/spam_lstm.py and workloads/tweets_transformer.py and write their weights.

    python benchmarks/train_text.py --network tweets_transformer --seed 1

Four epochs of AdamW, less than a CPU minute on one thread. Weights are written in half precision and measured as they
are written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_fashion_mnist import make

NETWORKS = ("spam_lstm", "tweets_transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    make(
        arguments.network,
        arguments.seed,
        epochs=arguments.epochs,
        peak_lr=3e-3,
        weight_decay=1e-2,
        made_by="benchmarks/train_text.py",
        output=arguments.output,
    )


if __name__ == "__main__":
    main()
