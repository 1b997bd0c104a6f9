"""What to remove: importance of units and of blocks, and the plan that keeps the best of them."""

from edgeprune.pruning.criteria import Scores, score
from edgeprune.pruning.plan import GroupPlan, PrunePlan
from edgeprune.pruning.select import make_plan

__all__ = ["GroupPlan", "PrunePlan", "Scores", "make_plan", "score"]
