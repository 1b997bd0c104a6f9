"""The rules of operators, by kind. Importing this package registers them all."""

from edgeprune.graph.rules import (
    attention,
    contract,
    einsum,
    elementwise,
    fold,
    gather,
    index,
    norm,
    recurrent,
    reduce,
    spatial,
    view,
)

__all__ = [
    "attention", "contract", "einsum", "elementwise", "fold", "gather", "index", "norm", "recurrent", "reduce",
    "spatial", "view",
]  # fmt: skip
