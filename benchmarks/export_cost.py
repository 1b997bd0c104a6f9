"""What an export costs: seconds and peak memory of every step, for a network of 25 million parameters.

    python -m benchmarks.export_cost                # ResNet-50, .onnx and .tflite
    python -m benchmarks.export_cost --smoke        # a small network, for a test

Memory is resident set size, sampled every 10 ms, of this process and of the converter's process apart. Each format is
exported in a fresh process, whose imports count. The result goes to benchmarks/results/export_cost.json.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn

RESULT = Path(__file__).parent / "results" / "export_cost.json"
EVERY_S = 0.01
# Where each step is, by the module that calls it.
STEPS = {
    "prepare": ("edgeprune.export.capture", "prepare"),
    "capture": ("edgeprune.export.capture", "capture"),
    "convert to ONNX": ("edgeprune.export.onnx", "convert_to_onnx"),
    "save the program": ("edgeprune.export.tflite", "save_program"),
    "converter process": ("edgeprune.export.tflite", "_run_child"),
    "finish the TFLite file": ("edgeprune.export.tflite", "finish"),
    "describe": ("edgeprune.export.artifact", "_describe_"),
    "verify": ("edgeprune.export.artifact", "_verified"),
}


class Bottleneck(nn.Module):
    """Narrow, filter and widen beside a shortcut."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.narrow, self.norm1 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.filter, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.widen, self.norm3 = nn.Conv2d(width, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.narrow(x)))
        y = F.relu(self.norm2(self.filter(y)))
        return F.relu(self.norm3(self.widen(y)) + self.shortcut(x))


def residual(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """Return a residual network of bottlenecks; by default that of 50 layers and 25.6 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inner = width
    for stage, count in enumerate(blocks):
        for index in range(count):
            layers.append(Bottleneck(inner, width << stage, 2 if stage and not index else 1))
            inner = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes)).eval()


class Memory:
    """Samples of the memory of this process and of its children, with their times."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._end.wait(EVERY_S):
            children = 0
            for child in own.children(recursive=True):
                try:
                    children += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.samples.append((time.perf_counter(), own.memory_info().rss, children))

    def stop(self) -> None:
        """End the sampling."""
        self._end.set()
        self._thread.join()

    def peaks(self, start: float, end: float) -> dict[str, float]:
        """Return the peak bytes between two times."""
        found = [sample for sample in self.samples if start - EVERY_S <= sample[0] <= end + EVERY_S]
        own = max((sample[1] for sample in found), default=0)
        child = max((sample[2] for sample in found), default=0)
        return {"peak_rss_bytes": own, "converter_peak_rss_bytes": child}


def timed(spans: list[tuple[str, float, float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, noting when it began and ended."""

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spans.append((name, start, time.perf_counter()))

    return measured


def measure(suffix: str, smoke: bool) -> dict[str, Any]:
    """Export once and return the figures."""
    from edgeprune.export import export

    model = residual((1, 1), 8, 10) if smoke else residual()
    size = 32 if smoke else 224
    inputs = (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)),)
    spans: list[tuple[str, float, float]] = []
    for name, (module, attribute) in STEPS.items():
        place = importlib.import_module(module)
        setattr(place, attribute, timed(spans, name, getattr(place, attribute)))
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        exported = export(model, inputs, Path(folder) / f"network{suffix}")
        end = time.perf_counter()
    memory.stop()
    return {
        "format": suffix[1:],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size_bytes": exported.artifact.size_bytes,
        "seconds": round(end - start, 2),
        **memory.peaks(start, end),
        "together_peak_rss_bytes": max(own + child for _, own, child in memory.samples),
        "before_rss_bytes": memory.samples[0][1],
        "steps": [
            {"step": name, "seconds": round(last - first, 2), **memory.peaks(first, last)}
            for name, first, last in sorted(spans, key=lambda span: span[1])
        ],
    }


def main() -> None:
    """Measure both formats, each in a fresh process, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a small network; the result is printed, not kept")
    parser.add_argument("--one", choices=(".onnx", ".tflite"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(options.one, options.smoke)))
        return
    rows = []
    for suffix in (".onnx", ".tflite"):
        argv = [
            sys.executable,
            "-m",
            "benchmarks.export_cost",
            "--one",
            suffix,
            *(["--smoke"] if options.smoke else []),
        ]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps({**machine, "torch": torch.__version__, "exports": rows}, indent=2) + "\n"
    if not options.smoke:
        RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
