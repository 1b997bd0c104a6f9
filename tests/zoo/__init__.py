"""Small networks with random weights, one per pattern and architecture, written in the style of users.

`NETWORKS` can all be traced and pruned. `UNTRACEABLE` must raise `TraceError`, `UNPRUNABLE` must raise
`NothingToPrune`. Nothing here knows about edgeprune.
"""

from __future__ import annotations

from tests.zoo import (
    attention,
    classics,
    dense_outputs,
    interfaces,
    layers,
    mobile,
    modern,
    recurrent,
    refusals,
    wiring,
)
from tests.zoo.entry import NETWORKS, UNPRUNABLE, UNTRACEABLE, Entry

__all__ = [
    "NETWORKS", "UNPRUNABLE", "UNTRACEABLE", "Entry",
    "attention", "classics", "dense_outputs", "interfaces", "layers", "mobile", "modern", "recurrent", "refusals",
    "wiring",
]  # fmt: skip
