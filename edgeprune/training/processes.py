"""One training in one or several processes: agreement, averages and equal buffers, by accelerate.

Under `torchrun` every process holds the whole network, wrapped by DistributedDataParallel, which averages gradients.
This module does what that leaves open: BatchNorm statistics are averaged after every step, so all processes hold the
same network at every step boundary and a checkpoint of the first process is the checkpoint of all.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.errors import ConfigError

T = TypeVar("T")

_UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")
# how long the others wait for the first process while it evaluates
_PATIENCE = timedelta(hours=24)


class Processes:
    """The processes of a training as one of them sees it. With a single process every method returns at once."""

    def __init__(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        # several forward passes before one backward pass fail where buffers are broadcast in between
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
        group = InitProcessGroupKwargs(timeout=_PATIENCE)
        accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[parallel, group])
        kind = str(accelerator.distributed_type.value)
        if accelerator.mixed_precision == "fp16" or kind in _UNSUPPORTED:
            raise ConfigError(
                f"accelerate is set to {kind}, mixed precision {accelerator.mixed_precision}: fine-tuning does "
                "data-parallel training without loss scaling only",
                fix="start with torchrun, and unset ACCELERATE_* in the environment",
            )
        self._accelerator: Any = accelerator
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.device: torch.device = accelerator.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that evaluates, reports and writes."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, in place, and return what to call: wrapped where there are several processes.

        Backward passes and optimisers work on it as on any network; gradients come out averaged.
        """
        with warnings.catch_warnings():
            # torch 2.13 renames the argument broadcast_buffers; the old name is the one that 2.8 knows
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def limit_gradients_(self, model: nn.Module, max_norm: float | None) -> float:
        """Return the norm of all gradients, and scale them down in place where it exceeds `max_norm`."""
        if max_norm is not None:
            return float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag: true where it is true in at least one process."""
        if self.count == 1:
            return flags
        counts = self._accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device), "sum")
        return tuple(count > 0 for count in counts.tolist())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of every value over the processes."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        return dict(zip(values, self._accelerator.reduce(total, "mean").tolist(), strict=True))

    def from_first(self, value: T) -> T:
        """Return the value that the first process passed; others pass anything."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]

    def average_statistics_(self, model: nn.Module) -> None:
        """Replace every BatchNorm's running statistics by their mean over the processes, in place."""
        if self.count == 1:
            return
        statistics = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        if not statistics:
            return
        flat = self._accelerator.reduce(torch.cat([buffer.float() for buffer in statistics]), "mean")
        for buffer, value in zip(statistics, flat.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(value)

    def copy_buffers_(self, model: nn.Module) -> None:
        """Replace every buffer by that of the first process, in place."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
