"""Fine-tuning as the pipeline asks for it: which data, which step, which teacher, and what the user is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.config import FinetuneConfig
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.networks import evaluate, has_statistics
from edgeprune.values import Json, Notice
from edgeprune.workload import Workload, batches, call

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.pruning import Masks
    from edgeprune.training import FinetuneResult, Progress

Data = Callable[[], Iterable[Any]]
Step = Callable[["nn.Module", Any], "torch.Tensor"]


def training_source(workload: Workload) -> tuple[Data | None, Step | None]:
    """Return the data to train on and the step to train with; each may be None.

    Data without a step means distillation from the dense network on the batches' inputs.
    """
    if workload.train_data is None:
        return (partial(batches, workload, "calibration_data") if workload.calibration_data else None), None
    step = partial(call, workload, "train_step") if workload.train_step is not None else None
    return partial(batches, workload, "train_data"), step


def tuning_notice(workload: Workload, epochs: int) -> Notice | None:
    """Return what a user should know about how the network was trained, where it is not the ordinary way."""
    data, step = training_source(workload)
    if data is None:
        return Notice(
            code="no-data",
            text=f"{workload.source} has no train_data or calibration_data: nothing was fine-tuned or recalibrated",
            fix="add  def calibration_data(): ...  (input batches, no labels needed)",
        )
    if epochs > 0 and step is None:
        return Notice(
            code="distilled",
            text=f"{workload.source} has no train_step: the pruned network was trained to repeat the outputs of the "
            "dense network",
        )
    return None


def recalibrates(workload: Workload, model: nn.Module, count: int) -> bool:
    """Return whether the network has BatchNorm statistics to renew and there is data to do it with."""
    return training_source(workload)[0] is not None and count > 0 and has_statistics(model)


def recalibrated(workload: Workload, model: nn.Module, count: int) -> nn.Module:
    """Return a copy of the network with the BatchNorm statistics of the first batches of its data."""
    from edgeprune.training import recalibrate

    data, _ = training_source(workload)
    return recalibrate(model, itertools.islice(data() if data is not None else (), count))


def tuned(
    workload: Workload,
    model: nn.Module,
    dense: nn.Module,
    config: FinetuneConfig,
    *,
    checkpoint: Path,
    seed: int,
    listen: Listener,
    masks: Masks | None = None,
) -> FinetuneResult:
    """Fine-tune a network, going on from the checkpoint where there is one.

    Args:
        dense: The teacher, where the network is distilled.
        listen: Gets `progress` events of the stage `finetune`.
        masks: Single weights that stay zero.

    Raises:
        TrainingError: The loss or the weights are not finite.
        ModelError: The user's step or metric failed.
    """
    from edgeprune.training import finetune

    data, step = training_source(workload)

    def progress(value: Progress) -> None:
        total = None if value.steps is None else float(value.steps * value.epochs)
        done = float(value.step + (value.epoch - 1) * (value.steps or 0))
        listen(Event(stage="finetune", state="progress", facts=asdict(value), done=done, total=total))

    def metrics(candidate: nn.Module) -> dict[str, float]:
        return evaluate(workload, candidate) or {}

    return finetune(
        model,
        step=step,
        data=data if data is not None else tuple,
        config=config,
        evaluate=metrics if workload.evaluate is not None else None,
        teacher=dense if step is None or config.distill > 0 else None,
        checkpoint=checkpoint,
        on_progress=progress,
        seed=seed,
        masks=masks,
    )


def history_rows(result: FinetuneResult) -> list[Json]:
    """Return the epochs of a training as plain data."""
    return [asdict(epoch) for epoch in result.history]
