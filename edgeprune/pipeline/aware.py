"""Quantisation-aware fine-tuning: the stage behind the ordinary one, for the int8 files alone, and the same in Python.

Owns which settings it has and what ranges it rounds to. The ranges are those of the network
that it starts from and do not move: its learning rate is low, the files' own ranges are measured anew on what comes
out, and a training without further state goes on from its checkpoint bit by bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import FinetuneConfig, RunConfig
from edgeprune.errors import ConfigError, ModelError
from edgeprune.pipeline.folders import load_masks, save_state
from edgeprune.pipeline.gradual import IRRELEVANT
from edgeprune.pipeline.networks import evaluate
from edgeprune.pipeline.quantising import calibration_batches, calibration_digest
from edgeprune.pipeline.stages import Session, network, run_stage
from edgeprune.pipeline.tuning import history_rows, tuned
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.values import Json, finite

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from edgeprune.pruning import Masks
    from edgeprune.training.fake_quantise import Ranges

    Batches = Iterable[Any] | Callable[[], Iterable[Any]]

_SHARE = 0.1  # of the learning rate of fine-tuning
_FEWEST_SAMPLES = 128


def aware_config(config: RunConfig) -> FinetuneConfig:
    """Return the settings of the training: those of fine-tuning, with epochs and a learning rate of its own.

    It starts from a trained network, so inner tensors are no longer compared with the teacher's.
    """
    lr = config.qat.lr if config.qat.lr is not None else config.finetune.lr * _SHARE
    return config.finetune.model_copy(update={"epochs": config.qat.epochs, "lr": lr, "features": 0.0})


def train(session: Session, final: StageRecord) -> StageRecord | None:
    """Train the fine-tuned network with the rounding of int8 files; writes `qat.safetensors`, plain weights.

    Args:
        final: The stage that wrote the weights of all other files.
    """
    prepared = session.prepared
    whole, config = prepared.config, aware_config(prepared.config)
    if whole.qat.epochs == 0:
        return None
    settings: Json = {f"finetune.{k}": v for k, v in config.model_dump(mode="json").items() if k not in IRRELEVANT}
    settings |= {f"qat.{name}": value for name, value in whole.qat.model_dump(mode="json").items()}
    settings |= {"quantise.samples": whole.quantise.samples, "seed": whole.seed}
    masks = {name: value for name, value in final.inputs.items() if name == rundir.MASKS}
    inputs = prepared.digests | masks | final.outputs | calibration_digest(whole.quantise)
    key = StageKey(stage="qat", settings=settings, inputs=inputs)
    checkpoint = session.path(f"{rundir.QAT_CHECKPOINT}{key.digest()[:12]}")

    def work() -> tuple[tuple[str, ...], Json]:
        model = network(session, rundir.FINETUNED)
        batches = calibration_batches(prepared.workload, whole.quantise, model, prepared.inputs)
        ranges = measured_ranges(model, batches or (), whole.quantise.samples)
        result = tuned(
            prepared.workload,
            model,
            prepared.model,
            config,
            checkpoint=checkpoint,
            seed=whole.seed,
            listen=session.listen,
            masks=load_masks(session.run.path),
            ranges=ranges,
            stage="qat",
        )
        save_state(session.path(rundir.QAT), result.model.state_dict())
        rows = finite(history_rows(result))
        facts = {
            "metrics": evaluate(prepared.workload, result.model),
            "rounded": rows[result.best_epoch - 1]["validation"] or None,
            "best_epoch": result.best_epoch,
            "history": json.loads(json.dumps(rows)),
            "lr": config.lr,
            "products": len(ranges),
            "notices": [notice.as_dict() for notice in result.notices],
        }
        return (rundir.QAT,), facts

    rundir.remove_checkpoints(session.run.path, checkpoint, rundir.QAT_CHECKPOINT)
    record = run_stage(session, key, work, subject=rundir.QAT)
    rundir.remove_checkpoints(session.run.path, prefix=rundir.QAT_CHECKPOINT)
    session.notices_of("qat", record)
    return record


def measured_ranges(model: nn.Module, batches: Iterable[Any], samples: int) -> Ranges:
    """Return the range of the inputs of every product on some data, with the least squared error of rounding.

    Args:
        samples: So many are enough; batches are not cut.

    Raises:
        ModelError: There is no data, or the network has no product whose weight is a parameter.
    """
    import torch

    from edgeprune.quantise.ranges import Histogram, interval
    from edgeprune.training import FakeQuantised
    from edgeprune.training.batches import inputs_for, to_device

    counts: dict[str, Histogram] = {}

    def take(name: str, values: torch.Tensor) -> None:
        array: np.ndarray = values.float().cpu().numpy()
        counts.setdefault(name, Histogram()).add(array)

    seen, watched = 0, copy.deepcopy(model).eval()
    device = next((parameter.device for parameter in watched.parameters()), torch.device("cpu"))
    with torch.no_grad(), FakeQuantised(watched, {}, take) as rounding:
        for batch in batches:
            tensors = inputs_for(watched, to_device(batch, device))
            watched(*tensors)
            seen += len(tensors[0]) if tensors[0].dim() else 1
            if seen >= samples:
                break
    if seen == 0:
        raise ModelError("there is no data to measure ranges on", fix="give a list of batches, or a function")
    if not rounding.rounded:
        text = "the network has no convolution, linear or recurrent layer that int8 could round"
        raise ModelError(text, fix="-s qat.epochs=0")
    chosen = {name: interval(histogram, "mse") for name, histogram in counts.items()}
    return {name: (found.low, found.high) for name, found in chosen.items()}


def quantise_aware(
    model: nn.Module,
    *,
    data: Batches,
    step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    epochs: int = 1,
    lr: float = 1e-4,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    samples: int = _FEWEST_SAMPLES,
    **settings: Any,
) -> nn.Module:
    """Return a copy of a trained network, trained further with the rounding that an int8 file will do.

    What comes back is an ordinary network with ordinary weights: `export(..., precision="int8")` makes the file.

    Args:
        data: Batches, iterated once per epoch; a function that returns them works too.
        step: Returns the loss of a batch. Without it the network learns the outputs of `teacher`.
        evaluate: Returns named metrics; it gets the network with the rounding, and the best epoch is returned.
        teacher: A network to distil from; beside `step` it makes up `distill=0.5` of the loss.
        checkpoint: A file from which an interrupted training goes on.
        masks: From `sparsify`: these weights stay exactly 0.0.
        samples: How many samples of the data the ranges of activations are measured on.
        settings: Other settings of the section `finetune`, such as `optimizer`.

    Raises:
        ConfigError: A setting is unknown or out of range, or there is neither `step` nor `teacher`.
        ModelError: There is no data, or nothing that int8 could round.
        TrainingError: The loss or the weights are not finite.
    """
    from edgeprune.config import validate
    from edgeprune.pipeline.api import iterate
    from edgeprune.training import finetune

    if step is None and teacher is None:
        raise ConfigError("quantise_aware() got neither a step nor a teacher", fix="pass step=, teacher=, or both")
    if teacher is not None and step is not None:
        settings = {"distill": 0.5} | settings
    section = {"epochs": epochs, "lr": lr, "features": 0.0} | settings
    config: FinetuneConfig = validate({"finetune": section}, "quantise_aware()").finetune
    result = finetune(
        model,
        step=step,
        data=lambda: iterate(data),
        config=config,
        evaluate=evaluate,
        teacher=teacher,
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        seed=seed,
        masks=masks,
        ranges=measured_ranges(model, iterate(data), samples),
    )
    return result.model
