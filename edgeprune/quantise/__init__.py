"""Files with fewer bits: float16 and int8 forms of the float32 files that `export` verified.

    counts = histograms(file, samples, on_progress, total)      # what every tensor's values were
    whole = with_best_ranges(file, counts, measure, ...)        # all operators on integers
    int8 = mixed(file, whole, measure, accept, on_progress)     # what costs most stays in float32

Names are resolved on first use, so importing this package imports no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.quantise.onnx import OnnxFloat
    from edgeprune.quantise.options import Quantisation
    from edgeprune.quantise.search import Int8, histograms, mixed, with_best_ranges
    from edgeprune.quantise.tflite import TfliteFloat

_HOMES = {
    "Int8": "search",
    "OnnxFloat": "onnx",
    "Quantisation": "options",
    "TfliteFloat": "tflite",
    "histograms": "search",
    "mixed": "search",
    "with_best_ranges": "search",
}

__all__ = ["Int8", "OnnxFloat", "Quantisation", "TfliteFloat", "histograms", "mixed", "with_best_ranges"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
