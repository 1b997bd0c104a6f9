"""Several processes on one command, as `torchrun -m edgeprune compress` starts them.

The first process does everything; the others only take part in the fine-tuning. They are told what to train once
the first one has written it to the run directory, which all of them must see, and they end when training ends, so
that they do not disturb the measurements. A process that fails takes the others down: that is torchrun's part.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.config import FinetuneConfig
from edgeprune.pipeline.digests import seeded
from edgeprune.pipeline.events import ignore
from edgeprune.values import Json


def is_follower() -> bool:
    """Return whether this is one of several processes and not the first."""
    return process_count() > 1 and int(os.environ.get("RANK", "0")) > 0


def announce(folder: Path, start: str, config: FinetuneConfig, checkpoint: Path) -> None:
    """Tell the other processes to train the network of a folder from one of its weight files."""
    settings = config.model_dump(mode="json")
    _share({"folder": str(folder.resolve()), "start": start, "config": settings, "checkpoint": checkpoint.name})


def dismiss() -> None:
    """Tell the other processes that there is nothing to train."""
    _share(None)


def follow() -> None:
    """Wait for the first process and train with it, if it does."""
    from edgeprune.pipeline.folders import open_pruned
    from edgeprune.pipeline.tuning import tuned

    task = _share(None)
    if task is None:
        return
    folder = Path(task["folder"])
    loaded = open_pruned(folder, task["start"])
    with seeded(loaded.seed, "finetune"):
        tuned(
            loaded.workload,
            loaded.model,
            loaded.dense,
            FinetuneConfig.model_validate(task["config"]),
            checkpoint=folder / task["checkpoint"],
            seed=loaded.seed,
            listen=ignore,
            masks=loaded.masks,
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
