"""How fast, how big: measuring artifacts on a device, and the verdict on two measurements. Never imports torch."""

from __future__ import annotations

from edgeprune.bench.compare import compare
from edgeprune.bench.measure import BenchProgress, measure
from edgeprune.bench.results import append_results, read_results
from edgeprune.bench.rows import Comparison, Measurement

__all__ = [
    "BenchProgress",
    "Comparison",
    "Measurement",
    "append_results",
    "compare",
    "measure",
    "read_results",
]
