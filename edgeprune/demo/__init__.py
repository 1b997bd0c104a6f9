"""The embedded example: 8x8 digits, a small trained network, and the workload that `init` writes.

Owns the data (`digits.npz`), the weights (`digits.safetensors`) and two workload modules. `workload_template`
is the commented file that users start from; `workload` is the same material as `edgeprune demo` runs it. Both
are imported by name and only when they run, because they import torch.
"""

from __future__ import annotations

from importlib.resources import files

WORKLOAD = "edgeprune.demo.workload"


def template() -> str:
    """Return the text of the workload that `edgeprune init` writes: it runs as it is, from any folder."""
    return files(__name__).joinpath("workload_template.py").read_text(encoding="utf-8")
