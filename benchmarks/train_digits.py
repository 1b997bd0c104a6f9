"""Make the data and the weights of the demo: edgeprune/demo/digits.npz and digits.safetensors.

    python benchmarks/train_digits.py            # train on the data in the package, write digits.safetensors
    python benchmarks/train_digits.py --data     # first write digits.npz again; needs scikit-learn

Deterministic on one machine: one thread, fixed seeds, a fixed split. Another CPU or another torch may round
differently and end at other weights of the same accuracy. It installs and downloads nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from edgeprune.demo import workload_template as example

FOLDER = Path(example.__file__).resolve().parent
SIZES = {"train": 1197, "validation": 240, "test": 360}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="write digits.npz from scikit-learn's copy first")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "digits.safetensors")
    options = parser.parse_args()
    if options.data:
        from sklearn.datasets import load_digits

        digits = load_digits()
        write(FOLDER / "digits.npz", pack(digits.images, digits.target))
    started = time.process_time()
    network = train(options.epochs)
    write(options.output, save(network.state_dict(), metadata={"trained_by": "benchmarks/train_digits.py"}))
    scores = "  ".join(f"{name} {accuracy(network, name):.4f}" for name in SIZES)
    print(f"{options.output}  {scores}  {time.process_time() - started:.0f} CPU s")


def pack(images: np.ndarray, digits: np.ndarray) -> bytes:
    """Return the bytes of digits.npz: images (1797, 8, 8) uint8 in 0..16, digits and split (1797,) uint8."""
    split = np.repeat(np.arange(len(SIZES), dtype=np.uint8), list(SIZES.values()))
    np.random.default_rng(0).shuffle(split)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.astype(np.uint8), digits=digits.astype(np.uint8), split=split)
    return buffer.getvalue()


def train(epochs: int) -> nn.Module:
    """Return the network after `epochs` passes; the last weights are kept, so no split chooses them."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    network = example.DigitsNet()
    images, digits = example.split("train")[:]
    batches = -(-len(images) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs=epochs, steps_per_epoch=batches)
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for chosen in torch.randperm(len(images)).split(32):
            loss = F.cross_entropy(network(shift(images[chosen])), digits[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        validation = accuracy(network, "validation")
        print(f"epoch {epoch + 1:2d}  loss {total / batches:.4f}  validation {validation:.4f}")
    return network.eval()


def shift(images: torch.Tensor) -> torch.Tensor:
    """Return the images (N, 1, 8, 8) moved together by at most one pixel in each direction."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def accuracy(network: nn.Module, split: str) -> float:
    """Return the share of digits read correctly in one split."""
    images, digits = example.split(split)[:]
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == digits).float().mean().item()


def write(path: Path, content: bytes) -> None:
    """Replace the file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    main()
