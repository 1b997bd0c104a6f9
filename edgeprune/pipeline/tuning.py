"""Fine-tuning as the pipeline asks for it: which data, which step, which teacher, and what the user is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.config import FinetuneConfig, ReconstructConfig
from edgeprune.errors import ConfigError, EdgePruneError, ModelError, VerificationError
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.networks import evaluate, has_statistics
from edgeprune.values import Json, Notice
from edgeprune.workload import Workload, batches, call

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.dynamic import Recipe
    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pipeline.folders import Loaded
    from edgeprune.pruning import Masks, PrunePlan
    from edgeprune.reconstruct import Reconstructed
    from edgeprune.training import FinetuneResult, Progress
    from edgeprune.training.fake_quantise import Ranges
    from edgeprune.training.features import Features

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


def reconstruction_source(workload: Workload) -> tuple[Data | None, str]:
    """Return the batches whose inputs layers are solved on, for calibration or else for training, and their name."""
    name = "calibration_data" if workload.calibration_data is not None else "train_data"
    return (partial(batches, workload, name) if getattr(workload, name) is not None else None), name


def _made_up_notice(workload: Workload, source: str) -> Notice:
    measured = "" if workload.evaluate is not None else "; the accuracy was not measured"
    return Notice(
        code="made-up-data",
        text=f"{workload.source} has no data: layers were solved on {source}{measured}",
        fix="add  def calibration_data(): ...  (input batches, no labels needed; a few hundred samples do)",
    )


def reconstructed(
    workload: Workload,
    small: nn.Module,
    dense: nn.Module,
    plan: PrunePlan,
    inputs: tuple[torch.Tensor, ...],
    config: ReconstructConfig,
    *,
    rules: UserRules | None,
    listen: Listener,
) -> tuple[nn.Module, Json]:
    """Return the pruned network with solved weights, and what is kept of it; the old weights where that fails.

    Args:
        listen: Gets `progress` events of the stage `reconstruct`.
    """
    from edgeprune.reconstruct import made_up

    notices = []
    try:
        data, source = reconstruction_source(workload)
        if data is None:
            samples, shaped = made_up(dense, inputs, config.samples, progress=_told(listen))
            source = "inputs made up from BatchNorm statistics" if shaped else "noise"
            notices.append(_made_up_notice(workload, source))
            batches_found: Iterable[Any] = [(sample,) for sample in samples]
        else:
            batches_found = data()
        result = reconstructed_on(batches_found, small, dense, plan, inputs, config, rules, listen)
    except (ModelError, VerificationError) as error:  # the pruned weights are good, too: the run goes on with them
        place = f" at {error.where}" if error.where else ""
        notice = Notice(
            code="not-reconstructed", text=f"nothing was reconstructed: {error.message}{place}", fix=error.fix
        )
        return small, {"improved": False, "layers": [], "left_out": [], "notices": [notice.as_dict()]}
    if not result.improved:
        text = (
            f"reconstruction was undone: the error of the outputs went from {result.error_before:.3g} "
            f"to {result.error_after:.3g} on samples that it had not seen"
        )
        notices.append(Notice(code="not-reconstructed", text=text, fix="give more or other calibration data"))
    return result.model, result.facts() | {"source": source, "notices": [notice.as_dict() for notice in notices]}


def reconstructed_on(
    found: Iterable[Any],
    small: nn.Module,
    dense: nn.Module,
    plan: PrunePlan,
    inputs: tuple[torch.Tensor, ...],
    config: ReconstructConfig,
    rules: UserRules | None,
    listen: Listener,
    graph: ChannelGraph | None = None,
) -> Reconstructed:
    """Return what solving on some batches gives, with the settings of a run.

    Args:
        graph: The channel groups of the network without the plan's blocks, where they are already known.

    Raises:
        ModelError: The batches do not fit, or a layer's inputs are not finite.
        VerificationError: The network with the new weights does not give what was solved for.
    """
    from edgeprune.reconstruct import reconstruct_plan, settings_of

    return reconstruct_plan(small, dense, plan, inputs, found, settings_of(config), rules, _told(listen), graph)


def _told(listen: Listener) -> Callable[[int, int], None]:
    """Return a progress function for the solving of layers and what comes before it, that tells the listener."""

    def progress(done: int, total: int) -> None:
        listen(Event(stage="reconstruct", state="progress", done=float(done), total=float(total)))

    return progress


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
    recipe: Recipe | None = None,
    features: Features = (),
    ranges: Ranges | None = None,
    stage: str = "finetune",
) -> FinetuneResult:
    """Train a network, going on from the checkpoint where there is one.

    Args:
        dense: The teacher, where the network is distilled.
        listen: Gets `progress` events of the stage.
        masks: Single weights that stay zero.
        recipe: How the network is pruned meanwhile.
        features: Inner tensors to compare with the dense network's, from `compared_features`.
        ranges: Inputs of products, where training is that for an int8 file.

    Raises:
        TrainingError: The loss or the weights are not finite.
        ModelError: The user's step or metric failed.
    """
    from edgeprune.training import finetune

    data, step = training_source(workload)

    def progress(value: Progress) -> None:
        total = None if value.steps is None else float(value.steps * value.epochs)
        done = float(value.step + (value.epoch - 1) * (value.steps or 0))
        listen(Event(stage=stage, state="progress", facts=asdict(value), done=done, total=total))

    def metrics(candidate: nn.Module) -> dict[str, float]:
        return evaluate(workload, candidate) or {}

    return finetune(
        model,
        step=step,
        data=data if data is not None else tuple,
        config=config,
        evaluate=metrics if workload.evaluate is not None else None,
        teacher=dense if step is None or config.distill > 0 or config.features else None,
        checkpoint=checkpoint,
        on_progress=progress,
        seed=seed,
        masks=masks,
        recipe=recipe,
        features=features,
        ranges=ranges,
    )


def compared_features(
    config: FinetuneConfig,
    model: nn.Module,
    dense: nn.Module | None,
    plan: PrunePlan | None,
    inputs: tuple[torch.Tensor, ...] | None,
    rules: UserRules | None,
    *,
    labelled: bool,
) -> Features:
    """Return the inner tensors that training compares with the dense network's; none where the settings say so.

    Args:
        labelled: There is a loss of the user's.

    Raises:
        ConfigError: The settings ask for it, and something that it takes is missing, or there are no such tensors.
    """
    from edgeprune.training import feature_weight, features_of

    if feature_weight(config, labelled=labelled) == 0:
        return ()
    try:
        if dense is None or plan is None or inputs is None:
            given = {"the dense network, teacher=": dense, "plan=": plan, "inputs=": inputs}
            missing = [name for name, value in given.items() if value is None]
            raise ConfigError(
                f"finetune.features is {config.features}, which also needs {' and '.join(missing)}",
                fix="pass what apply() got, or set finetune.features=0",
            )
        return features_of(model, dense, plan, inputs, rules)
    except EdgePruneError:
        if config.features is not None:
            raise
        return ()  # nobody asked


def workload_features(
    workload: Workload,
    config: FinetuneConfig,
    model: nn.Module,
    dense: nn.Module,
    plan: PrunePlan | None,
    inputs: tuple[torch.Tensor, ...],
    rules: UserRules | None,
) -> Features:
    """Return what `compared_features` does, with the workload's loss or without one.

    Raises:
        ConfigError: The settings ask for features, and there are none.
    """
    labelled = training_source(workload)[1] is not None
    return compared_features(config, model, dense, plan, inputs, rules, labelled=labelled)


def folder_features(loaded: Loaded, config: FinetuneConfig) -> Features:
    """Return what `compared_features` does for a pruned network that was opened from its folder.

    Raises:
        ConfigError: The settings ask for features, and there are none.
    """
    given = (loaded.model, loaded.dense, loaded.plan, loaded.inputs, loaded.rules)
    return workload_features(loaded.workload, config, *given)


def history_rows(result: FinetuneResult) -> list[Json]:
    """Return the epochs of a training as plain data."""
    return [asdict(epoch) for epoch in result.history]
