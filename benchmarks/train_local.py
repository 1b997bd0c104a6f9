"""Train the dense networks whose weights stay here, because of the licence of what they are trained on.

    python benchmarks/train_local.py --network movielens_ncf
    python benchmarks/train_local.py --network voices_ds_cnn --seed 1

AdamW with one cycle of the learning rate; the last weights are kept. Without --output they are written to
benchmarks/.data/weights, where the workload looks for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_fashion_mnist import make as train_network

# epochs, highest learning rate, weight decay, and what the licence says
NETWORKS = {
    "movielens_ncf": (8, 3e-3, 1.0, "trained on MovieLens-100K: research only, not to be passed on"),
    "voices_ds_cnn": (6, 5e-3, 0.05, "trained on recordings under CC-BY-SA-3.0 and CC-BY-3.0"),
}


def make(name: str, seed: int, epochs: int | None = None, output: Path | None = None) -> Path:
    """Train a network from a seed and return where its weights are."""
    usual_epochs, peak_lr, weight_decay, licence = NETWORKS[name]
    return train_network(
        name,
        seed,
        epochs=usual_epochs if epochs is None else epochs,
        peak_lr=peak_lr,
        weight_decay=weight_decay,
        made_by="benchmarks/train_local.py",
        half=False,
        licence=licence,
        output=output,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make(arguments.network, arguments.seed, arguments.epochs, arguments.output)


if __name__ == "__main__":
    main()
