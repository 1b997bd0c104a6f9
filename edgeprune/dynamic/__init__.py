"""Pruning during training: schedules, pruners of units and of single weights, and the way in for loops of the user."""

from __future__ import annotations

from edgeprune.dynamic.channels import UnitPruner
from edgeprune.dynamic.recipe import Gradual, Recipe, recipe
from edgeprune.dynamic.records import Pruner
from edgeprune.dynamic.schedule import Schedule
from edgeprune.dynamic.singles import WeightPruner

__all__ = ["Gradual", "Pruner", "Recipe", "Schedule", "UnitPruner", "WeightPruner", "recipe"]
