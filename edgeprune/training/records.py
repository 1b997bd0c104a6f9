"""What a training reports and remembers: progress, epochs, the result, and the place it has reached."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Self

from edgeprune.errors import ConfigError
from edgeprune.values import Json, Notice, lower_is_better

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.dynamic import Pruner


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step is done. `epoch` and `step` count from 1; `steps` per epoch is None while unknown."""

    epoch: int
    epochs: int
    step: int
    steps: int | None
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One finished epoch, counted from 1.

    `train` has the mean `loss` over the epoch's batches, and its parts `step_loss`, `distill_loss` and `feature_loss`
    where several are in use. `validation` is what the user's evaluate() returned. `lr` is the learning rate of the last
    step, `seconds` the time spent on the epoch, without the time between an interruption and its continuation.
    """

    epoch: int
    train: dict[str, float]
    validation: dict[str, float]
    lr: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """The best network of a training, its epochs, and which of them was best (0: there was no epoch).

    `pruner` is what pruned it meanwhile; it has reached its target.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best_epoch: int
    notices: tuple[Notice, ...] = ()
    pruner: Pruner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The place that a training has reached; with the tensors of a checkpoint it is all that is needed to go on.

    Attributes:
        epoch: The epoch under way, from 0; equal to the number of epochs when all are done.
        step: Steps of it that are done.
        done: Steps since the training began.
        steps: Steps per epoch, None while unknown.
        sums: Sum of every training value over the steps of this epoch.
        lr: Learning rate of the last step.
        seconds: Time spent on this epoch so far.
        best_epoch: The best epoch so far, from 1; 0 when there is none.
        best_value: Its metric, or its training loss.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    steps: int | None = None
    sums: dict[str, float]
    lr: float = 0.0
    seconds: float = 0.0
    history: tuple[EpochRecord, ...] = ()
    best_epoch: int = 0
    best_value: float | None = None

    def as_dict(self) -> Json:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Json) -> Self:
        return cls(**(data | {"history": tuple(EpochRecord(**record) for record in data["history"])}))

    def after_step(self, values: dict[str, float], lr: float, seconds: float) -> Position:
        """Return the place one step later."""
        sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        return replace(self, step=self.step + 1, done=self.done + 1, sums=sums, lr=lr, seconds=self.seconds + seconds)

    def record(self, validation: dict[str, float], seconds: float) -> EpochRecord:
        """Return the record of the epoch under way, all of whose steps are done."""
        return EpochRecord(
            epoch=self.epoch + 1,
            train={name: total / self.step for name, total in self.sums.items()},
            validation=validation,
            lr=self.lr,
            seconds=self.seconds + seconds,
        )

    def after_epoch(self, record: EpochRecord, best_value: float | None) -> Position:
        """Return the place at the beginning of the next epoch; `best_value` where this epoch is the best so far."""
        following = replace(self, epoch=self.epoch + 1, step=0, steps=self.step, sums={}, seconds=0.0)
        following = replace(following, history=(*self.history, record))
        if best_value is None:
            return following
        return replace(following, best_epoch=record.epoch, best_value=best_value)


def better(record: EpochRecord, metric: str | None, best: float | None) -> float | None:
    """Return the value by which an epoch is the best so far, or None where an earlier one is better.

    Of equals the later epoch is the best: it has trained longer.

    Args:
        metric: The validation metric that decides; None takes the first one, or the training loss if there is none.
        best: The value of the best epoch so far, None where there is none.

    Raises:
        ConfigError: `metric` is not among those that evaluate() returned.
    """
    if metric is not None and metric not in record.validation:
        raise ConfigError(
            f"finetune.metric is '{metric}', and evaluate() returned {', '.join(record.validation) or 'nothing'}",
            fix="name one that it returns, or leave finetune.metric out to use the first one",
        )
    name = metric if metric is not None else next(iter(record.validation), "loss")
    value = record.validation[name] if record.validation else record.train["loss"]
    if best is None or math.isnan(best):
        return value
    improves = value <= best if lower_is_better(name) else value >= best
    return value if improves else None
