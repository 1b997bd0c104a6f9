"""Pruning during training as the pipeline asks for it: recipes from settings, and what a run keeps of it.

Single weights go in fine-tuning. Units go in a training of the dense network before the plan: what comes out is that
network with whole units at zero, and the plan of exactly those, so that the cut takes nothing away.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import FinetuneConfig, RunConfig
from edgeprune.pipeline.folders import load_state, save_masks
from edgeprune.pipeline.sparsity import sparsity_facts
from edgeprune.values import Json, Notice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.dynamic import Recipe
    from edgeprune.training import FinetuneResult

IRRELEVANT = ("checkpoint_every_s", "recalibrate_batches")


def recipe_of(config: RunConfig, model: nn.Module, inputs: tuple[torch.Tensor, ...], align: int) -> Recipe:
    """Return how copies of a network are pruned while they are trained.

    Raises:
        TraceError: The forward cannot be followed.
    """
    from edgeprune.dynamic import recipe
    from edgeprune.graph.rules.custom import load_rules

    return recipe(
        model,
        inputs,
        config.gradual,
        prune=config.prune,
        sparsify=config.sparsify,
        align=align,
        rules=load_rules(config.prune.rules),
    )


def gradual_settings(config: RunConfig) -> Json:
    """Return the dotted settings of pruning during training, with those of what is gone in the end."""
    target = "sparsify" if config.gradual.of_weights else "prune"
    sections = {"gradual": config.gradual, target: getattr(config, target)}
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        for name, value in values.model_dump(mode="json").items()
    }


def training_config(config: RunConfig) -> FinetuneConfig:
    """Return the settings of the training before the cut: those of fine-tuning, with epochs of its own.

    Which channels stay is open until its end, so none are compared with the teacher's.
    """
    epochs = config.gradual.epochs or config.finetune.epochs
    return config.finetune.model_copy(update={"epochs": epochs, "features": 0.0})


def with_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return a copy of a network with the tensors of a file."""
    from edgeprune.compact.plans import load_pruned_

    made = copy.deepcopy(model)
    load_pruned_(made, load_state(path))
    return made


def trail_facts(result: FinetuneResult, config: RunConfig) -> Json:
    """Return how far pruning was after which step of a training."""
    assert result.pruner is not None
    return {"method": config.gradual.method, **result.pruner.trail.facts()}


def pruned_weights(folder: Path, result: FinetuneResult, config: RunConfig) -> tuple[list[str], Json]:
    """Write the masks of weights that went in fine-tuning; return the names of files, and what a run keeps of it."""
    if result.pruner is None:
        return save_masks(folder, None, rundir.FINETUNED_MASKS), {}
    pruner: Any = result.pruner
    pruner.masks.check(result.model)
    zeros = sparsity_facts(result.model, pruner.masks, f"{config.gradual.method}, {config.sparsify.method}")
    facts = {"sparsity": zeros, "gradual": trail_facts(result, config), "notices": zeros["notices"]}
    return save_masks(folder, pruner.masks, rundir.FINETUNED_MASKS), facts


def cost_of_cut(dense: nn.Module, small: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Json:
    """Compare the network whose units are zero with the one that was cut; a notice says it where they differ."""
    from edgeprune.compact.verify import compared

    check = compared(dense, small, inputs)
    notices = []
    if not check.passed:
        text = (
            f"the cut changes the outputs by {check.max_rel:.1e}: zeroed channels counted in what is computed over "
            "channels, as in a LayerNorm"
        )
        notices.append(Notice(code="cut-costs", text=text, fix="fine-tuning after the cut makes up for it").as_dict())
    return {"cut": check.as_dict(), "notices": notices}
