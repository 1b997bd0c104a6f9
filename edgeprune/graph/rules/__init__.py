"""The rules of operators, by kind. Importing this package registers them all."""

from edgeprune.graph.rules import contract, elementwise, index, norm, recurrent, reduce, spatial, view

__all__ = ["contract", "elementwise", "index", "norm", "recurrent", "reduce", "spatial", "view"]
