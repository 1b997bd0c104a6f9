"""Train the dense network of workloads/watch.py and write its weights.

    python benchmarks/train_watch.py --seed 1

Sixteen epochs of AdamW, a CPU minute on one thread. Weights are written in half precision and measured as they are
written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_fashion_mnist import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    make(
        "watch",
        arguments.seed,
        epochs=arguments.epochs,
        peak_lr=3e-3,
        weight_decay=1e-2,
        made_by="benchmarks/train_watch.py",
        output=arguments.output,
    )


if __name__ == "__main__":
    main()
