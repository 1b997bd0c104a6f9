"""The benchmark of what exporting costs, on a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_every_step_of_an_export_is_measured() -> None:
    argv = [sys.executable, "-m", "benchmarks.export_cost", "--smoke", "--one", ".onnx"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=300, cwd=root)
    found = json.loads(done.stdout.splitlines()[-1])
    steps = {step["step"]: step for step in found["steps"]}
    assert list(steps) == ["prepare", "capture", "convert to ONNX", "describe", "verify"]
    assert sum(step["seconds"] for step in steps.values()) <= found["seconds"] + 0.1
    assert found["cpu_seconds"] > 0
    assert found["peak_rss_bytes"] >= max(step["peak_rss_bytes"] for step in steps.values()) > 10**8
