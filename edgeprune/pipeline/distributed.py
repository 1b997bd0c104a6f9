"""Several processes on one command, as `torchrun -m edgeprune compress` starts them.

The first process does everything; the others only take part in training. They are told what to train once
the first one has written it to the run directory, which all of them must see, and they end when training ends, so
that they do not disturb the measurements. A process that fails takes the others down: that is torchrun's part.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune import rundir
from edgeprune.config import FinetuneConfig, RunConfig, load_config
from edgeprune.pipeline.digests import seeded
from edgeprune.pipeline.events import ignore
from edgeprune.targets import find_target
from edgeprune.values import Json


def is_follower() -> bool:
    """Return whether this is one of several processes and not the first."""
    return process_count() > 1 and int(os.environ.get("RANK", "0")) > 0


def announce(
    folder: Path,
    start: str | None,
    config: FinetuneConfig,
    checkpoint: Path,
    whole: RunConfig | None = None,
    *,
    more: bool = False,
) -> None:
    """Tell the other processes to train the network of a folder.

    Args:
        start: The file of weights to start from; None for the dense network of a run.
        whole: All settings, where the network is pruned meanwhile.
        more: Another training follows, or `dismiss`.
    """
    _share(
        {
            "folder": str(folder.resolve()),
            "start": start,
            "config": config.model_dump(mode="json"),
            "checkpoint": checkpoint.name,
            "whole": whole.model_dump(mode="json") if whole is not None else None,
            "more": more,
        }
    )


def dismiss() -> None:
    """Tell the other processes that there is nothing to train."""
    _share(None)


def follow() -> None:
    """Wait for the first process and train with it, as often as it does."""
    while True:
        task = _share(None)
        if task is None:
            return
        _train(task)
        if not task["more"]:
            return


def _train(task: Json) -> None:
    from edgeprune.pipeline.folders import open_network, open_pruned
    from edgeprune.pipeline.gradual import recipe_of
    from edgeprune.pipeline.tuning import folder_features, tuned

    folder = Path(task["folder"])
    whole = RunConfig.model_validate(task["whole"]) if task["whole"] is not None else None
    if task["start"] is None:
        run = load_config(folder / rundir.SETTINGS)
        loaded = open_network(run.workload, weights=run.weights, trust_pickle=run.trust_pickle, seed=run.seed)
    else:
        loaded = open_pruned(folder, task["start"])
    recipe = None
    if whole is not None:
        align = find_target(whole.target).align if whole.prune.align == "target" else whole.prune.align
        recipe = recipe_of(whole, loaded.model, loaded.inputs, align)
    config = FinetuneConfig.model_validate(task["config"])
    features = folder_features(loaded, config)
    with seeded(loaded.seed, "finetune"):
        tuned(
            loaded.workload,
            loaded.model,
            loaded.dense,
            config,
            checkpoint=folder / task["checkpoint"],
            seed=loaded.seed,
            listen=ignore,
            masks=loaded.masks if recipe is None else None,
            recipe=recipe,
            features=features,
        )


def _share(task: Json | None) -> Json | None:
    """Return in every process what the first one passed."""
    if process_count() == 1:
        return task
    from edgeprune.training.processes import Processes

    return Processes().from_first(task)


def process_count() -> int:
    """Return how many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
