"""What to remove: importance of units and blocks, the plan that keeps the best, and masks of single weights."""

from edgeprune.pruning.criteria import Scores, score
from edgeprune.pruning.masks import Hold, Masks
from edgeprune.pruning.plan import GroupPlan, PrunePlan
from edgeprune.pruning.select import make_plan
from edgeprune.pruning.weights import make_masks

__all__ = ["GroupPlan", "Hold", "Masks", "PrunePlan", "Scores", "make_masks", "make_plan", "score"]
