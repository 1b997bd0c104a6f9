"""Remove it: a smaller ordinary module, verified against the dense one with the removed channels and blocks zeroed."""

from edgeprune.compact.depth import remove_blocks
from edgeprune.compact.outputs import Compacted
from edgeprune.compact.plans import apply, rebuild
from edgeprune.compact.recurrent import split_recurrent
from edgeprune.compact.rehearse import analyse
from edgeprune.compact.slice import grown

__all__ = ["Compacted", "analyse", "apply", "grown", "rebuild", "remove_blocks", "split_recurrent"]
