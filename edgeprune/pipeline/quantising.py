"""What the pipeline gives to quantisation: inputs to calibrate on, its settings, and a listener for its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import QuantiseConfig
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pipeline.events import Event, Listener
from edgeprune.quantise import Quantisation
from edgeprune.values import Precision
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
    if config.calibration is not None:
        return file_batches(Path(config.calibration), model, inputs)
    for function in ("calibration_data", "train_data"):
        if getattr(workload, function) is not None:
            return batches(workload, function)
    return None


def file_batches(path: Path, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Iterable[Any]:
    """Return the batches of a `.npz`, `.npy` or `.safetensors` file of inputs; it is read when they are asked for.

    Raises:
        ResolveError: There is no such file.
    """
    from edgeprune.export.calibration import read_calibration
    from edgeprune.export.capture import input_names

    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="np.savez('calibration.npz', x=x) writes one")
    return read_calibration(path, input_names(model, len(inputs)))


def calibration_digest(config: QuantiseConfig) -> dict[str, str]:
    """Return the sha256 of the file to calibrate on, by what the journal calls it; nothing without one.

    The workload's own data are known by the digest of its code.
    """
    if config.calibration is None:
        return {}
    return {"calibration": rundir.file_digest(Path(config.calibration)) or ""}


def check_calibration(
    workload: Workload, config: QuantiseConfig, model: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> None:
    """Check that there are inputs to calibrate on, by reading the first of them.

    Raises:
        ConfigError: There are none.
        ResolveError: The file cannot be read.
        ModelError: They do not fit the network.
    """
    from edgeprune.export.calibration import Seen, check_seen, samples_of
    from edgeprune.export.capture import prepare

    found = calibration_batches(workload, config, model, inputs)
    if found is None:
        raise ConfigError(
            f"int8 needs true inputs to calibrate on, and {workload.source} has no data",
            where=workload.source,
            fix="--calibration FILE.npz, or add  def calibration_data(): ...",
        )
    seen, subject = Seen(), prepare(model, inputs)
    for _ in samples_of(found, subject, 1, seen):
        return
    check_seen(seen, subject.inputs)


def quantisation(
    config: QuantiseConfig,
    listen: Listener,
    subject: str,
    precision: Precision,
    accept: Callable[[Path], bool] | None = None,
) -> Quantisation:
    """Return the settings of quantisation, with progress told to a listener.

    Args:
        subject: The file that is made.
        precision: Only int8 files have integer inputs and outputs.
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
        io=config.io if precision == "int8" else "float32",
        on_progress=progress,
    )
