"""Train the dense ResNet-8 of workloads/fashion_mnist.py and write its weights.

    python benchmarks/train_fashion_mnist.py

Five epochs of SGD, about five CPU minutes on one thread. The script prints the accuracy on the held-out images
after each epoch and on the test images once, at the end.
"""

from __future__ import annotations

import argparse
import time

import torch
from safetensors.torch import save_file
from workloads import fashion_mnist as workload

PEAK_LR = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", default=str(workload.WEIGHTS))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = workload.ResNet8().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    loader = workload.train_data()
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=arguments.epochs * len(loader), pct_start=0.2
    )
    for epoch in range(1, arguments.epochs + 1):
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
        top1 = workload.evaluate(model)["top1"]
        seconds = time.process_time() - started
        print(
            f"epoch {epoch}: loss {total / len(loader):.4f}, held-out top1 {top1:.4f}, {seconds:.0f} CPU-s",
            flush=True,
        )
    with torch.no_grad():
        pairs = [([model(images).numpy()], (images, labels)) for images, labels in workload.test_data()]
    print(f"test top1 {workload.evaluate_outputs(pairs)['top1']:.4f}")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, arguments.output, {"made_by": "benchmarks/train_fashion_mnist.py", "licence": "Apache-2.0"})
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
