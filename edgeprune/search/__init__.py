"""Meet a budget: how sensitive every group is, where to remove what, and when to stop.

Owns decisions only, as functions over plain values and callables: what a network is worth is measured by the caller.
"""

from edgeprune.search.allocate import allocator
from edgeprune.search.curves import Curve
from edgeprune.search.loop import Outcome, walk
from edgeprune.search.sensitivity import Sensitivity

__all__ = ["Curve", "Outcome", "Sensitivity", "allocator", "walk"]
