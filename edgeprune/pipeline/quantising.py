"""What the pipeline gives to quantisation: inputs to calibrate on, its settings, and a listener for its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.config import QuantiseConfig
from edgeprune.pipeline.events import Event, Listener
from edgeprune.quantise import Quantisation
from edgeprune.workload import Workload, batches

if TYPE_CHECKING:
    import torch
    from torch import nn


def calibration_batches(
    workload: Workload, config: QuantiseConfig, model: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> Iterable[Any] | None:
    """Return batches of true inputs: of the file in the settings, else of the workload's data; None without any.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: It does not hold the network's inputs.
    """
    from edgeprune.export.calibration import read_calibration
    from edgeprune.export.capture import input_names

    if config.calibration is not None:
        return read_calibration(Path(config.calibration), input_names(model, len(inputs)))
    for function in ("calibration_data", "train_data"):
        if getattr(workload, function) is not None:
            return batches(workload, function)
    return None


def quantisation(
    config: QuantiseConfig, listen: Listener, subject: str, accept: Callable[[Path], bool] | None = None
) -> Quantisation:
    """Return the settings of quantisation, with progress told to a listener.

    Args:
        subject: The file that is made.
        accept: Whether a candidate file is good enough, besides its SQNR.
    """

    def progress(step: str, done: int, total: int) -> None:
        listen(Event(stage="export", state="progress", subject=subject, facts={"text": step}, done=done, total=total))

    return Quantisation(
        methods=config.methods,
        percentile=config.percentile,
        samples=config.samples,
        equalise_db=config.equalise_db,
        wanted_db=config.wanted_db,
        accept=accept,
        on_progress=progress,
    )
