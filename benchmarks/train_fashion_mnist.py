"""Train the dense networks of workloads/fashion_mnist*.py and write their weights.

    python benchmarks/train_fashion_mnist.py
    python benchmarks/train_fashion_mnist.py --network mobile --seed 1

Five epochs of SGD, about five CPU minutes on one thread. The script prints the accuracy on the held-out images
after each epoch and on the test images once, at the end. Other weights than the first ResNet-8's are written in half
precision and measured as they are written.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune.training.batches import model_inputs
from edgeprune.workload import import_code

WORKLOADS = Path(__file__).resolve().parent / "workloads"
NETWORKS = {"resnet8": "fashion_mnist.py", "mobile": "fashion_mnist_mobile.py"}
PEAK_LR = 0.1


def train_(
    model: nn.Module, workload: ModuleType, optimizer: torch.optim.Optimizer, peak_lr: float, epochs: int
) -> None:
    """Train a network in place, one cycle of the learning rate, and print what each epoch gave."""
    loader = workload.train_data()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=epochs * len(loader), pct_start=0.2)
    for epoch in range(1, epochs + 1):
        started, total = time.process_time(), 0.0
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = workload.train_step(model, batch)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        metrics = ", ".join(f"held-out {name} {value:.4f}" for name, value in workload.evaluate(model).items())
        seconds = time.process_time() - started
        print(f"epoch {epoch}: loss {total / len(loader):.4f}, {metrics}, {seconds:.0f} CPU-s", flush=True)


def make(
    name: str,
    seed: int,
    *,
    epochs: int,
    peak_lr: float,
    weight_decay: float,
    made_by: str,
    half: bool = True,
    licence: str = "Apache-2.0",
    output: Path | None = None,
) -> Path:
    """Train the network of a workload from a seed, with AdamW, and return where its weights are.

    Args:
        name: The workload's file without its suffix.
        made_by: The script, written into the file; so is the licence.
        half: Weights are written in half precision.
        output: Where to write, by default where the workload looks.
    """
    workload = import_code(str(WORKLOADS / f"{name}.py"))
    torch.manual_seed(seed)
    model = workload.untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=weight_decay)
    train_(model, workload, optimizer, peak_lr, epochs)
    output = output or workload.weights(seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    write(model, workload, output, made_by, half=half, licence=licence)
    return output


def write(
    model: nn.Module, workload: ModuleType, output: Path, made_by: str, *, half: bool, licence: str = "Apache-2.0"
) -> None:
    """Write the weights and print the test metrics of what was written."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model.load_state_dict(state)
    with torch.no_grad():
        pairs = [([model(*model_inputs(batch)).numpy()], batch) for batch in workload.test_data()]
    print("test " + ", ".join(f"{name} {value:.4f}" for name, value in workload.evaluate_outputs(pairs).items()))
    save_file(state, output, {"made_by": made_by, "licence": licence})
    print(f"wrote {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    workload = import_code(str(WORKLOADS / NETWORKS[arguments.network]))
    torch.manual_seed(arguments.seed)
    model = workload.untrained().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    train_(model, workload, optimizer, PEAK_LR, arguments.epochs)
    output = arguments.output or workload.weights(arguments.seed)
    half = arguments.network != "resnet8" or arguments.seed > 0
    write(model, workload, output, "benchmarks/train_fashion_mnist.py", half=half)


if __name__ == "__main__":
    main()
