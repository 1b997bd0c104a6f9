"""Fine-tuning: the user's step over the user's data, in one process or several, from any point at which it stopped.

Owns the order of things inside a training: which batch, which random stream, which learning rate, when to validate,
what is best, when to write. Losses come from the user's step and `distill`, files from `checkpoint`. It knows of
pruning that some weights may be held at zero, and that a pruner may have its say after every step.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.config import FinetuneConfig
from edgeprune.dynamic import Pruner, Recipe
from edgeprune.errors import ConfigError, ModelError, TrainingError
from edgeprune.pruning.masks import Masks
from edgeprune.training.batches import inputs_for, share, to_device
from edgeprune.training.checkpoint import (
    Checkpoint,
    Tensors,
    find_checkpoint,
    identify,
    load_network_,
    load_optimizer_,
    network_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from edgeprune.training.distill import answers, distillation_loss, recorded
from edgeprune.training.fake_quantise import FakeQuantised, Ranges
from edgeprune.training.features import Features, feature_loss, feature_weight
from edgeprune.training.interrupts import HeldInterrupt
from edgeprune.training.optimise import learning_rate, make_optimizer, set_learning_rate_
from edgeprune.training.processes import Processes
from edgeprune.training.randomness import EpochData, preserved, seed_stream
from edgeprune.training.records import FinetuneResult, Position, Progress, better
from edgeprune.values import Json, Notice

Step = Callable[[nn.Module, Any], torch.Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, float]]

_END = object()
_NOT_ROUNDED = Notice(
    code="not-rounded",
    text="evaluate() ran a copy of the network, without the rounding of int8: the best epoch is that in float32",
    fix="let evaluate(model) call the model that it gets",
)


def finetune(
    model: nn.Module,
    *,
    step: Step | None,
    data: Callable[[], Iterable[Any]],
    config: FinetuneConfig,
    evaluate: Evaluate | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    recipe: Recipe | None = None,
    features: Features = (),
    ranges: Ranges | None = None,
) -> FinetuneResult:
    """Train a copy of a network and return its best epoch.

    Args:
        step: Returns the loss of a batch, a scalar. It gets the network (wrapped by DistributedDataParallel under
            `torchrun`) in training mode and must call it as `model(...)`. None: pure distillation from `teacher` on
            the inputs of the batches, `model_inputs(batch)`, no labels needed.
        data: Returns the batches of one epoch; called anew for every epoch. Under several processes each takes every
            n-th batch. An iterable that has a length gets the smoother learning-rate schedule in its first epoch.
        evaluate: Returns metrics of a network, which is a copy in evaluation mode on the device of `model`. Called
            after every epoch, by the first process.
        teacher: The dense network. Its share of the loss is `config.distill`, or all of it without `step`.
        checkpoint: File to write to and to go on from. After the last epoch it stays, so the result is not lost.
        on_progress: Called after every step by the first process.
        seed: Decides every random number of the training.
        masks: Single weights that are 0.0 from the beginning and after every step.
        recipe: How the network is pruned meanwhile. Epochs before the target is reached do not count as the best.
        features: Inner tensors to compare with the teacher's, from `features_of`; `config.features` times their loss
            is added.
        ranges: Train with the rounding of an int8 file, with these ranges of the inputs of products. `evaluate` sees
            it, too; the result is the plain network.

    Returns:
        The network of the epoch with the best `config.metric` (default: the first metric that `evaluate` returns;
        without `evaluate`, the training loss), with the modes and on the device of `model`, which is unchanged.

    A training that was interrupted, even by kill -9 in the middle of an epoch, goes on from the checkpoint and ends
    with the same weights, bit by bit, as one that was not, if

    - `data()` gives the same batches when torch's, numpy's and Python's global generators are in the same state (they
      are seeded from the seed and the epoch before the call); a generator of the user's own must be made and seeded
      inside `data()`;
    - `step` keeps nothing between calls outside the network, and draws from the global generators only;
    - machine, thread count and library versions are the same, and the device computes deterministically, as CPUs do.

    Raises:
        ConfigError: There is neither a step nor a teacher, distillation without a teacher, the metric is unknown, or
            the masks are of another network.
        ModelError: There are no batches, nothing to train, or the step's or evaluate's result has the wrong type.
        TrainingError: The loss, the gradients or the weights are not finite; the checkpoint keeps the best epoch.
        StorageError: The checkpoint cannot be written.
        KeyboardInterrupt: Ctrl-C; the checkpoint has been written.
    """
    _check_arguments(step, config, evaluate, teacher, masks, recipe, features)
    if config.epochs == 0:
        result = copy.deepcopy(model)
        if masks is not None:
            masks.apply_(result)
        pruner = recipe.make(result, lambda: 1) if recipe is not None else None
        if pruner is not None:
            pruner.settle_()
        return FinetuneResult(model=result, history=(), best_epoch=0, pruner=pruner)
    job = Job(
        model=model,
        step=step,
        data=data,
        config=config,
        evaluate=evaluate,
        teacher=teacher,
        checkpoint=checkpoint,
        on_progress=on_progress,
        seed=seed,
        masks=masks,
        recipe=recipe,
        features=features if feature_weight(config, labelled=step is not None) > 0 else (),
        ranges=ranges,
    )
    with preserved():
        training = _Training(job, Processes())
        training.run()
    result = copy.deepcopy(model)
    load_network_(result, training.best)
    position = training.position
    return FinetuneResult(
        model=result,
        history=position.history,
        best_epoch=position.best_epoch,
        notices=training.notices,
        pruner=training.pruner,
    )


def _check_arguments(
    step: Step | None,
    config: FinetuneConfig,
    evaluate: Evaluate | None,
    teacher: nn.Module | None,
    masks: Masks | None,
    recipe: Recipe | None,
    features: Features,
) -> None:
    if step is None and teacher is None:
        raise ConfigError("fine-tuning needs a train_step or a teacher", fix="add  def train_step(model, batch): ...")
    if teacher is None and config.distill > 0:
        raise ConfigError(
            f"finetune.distill is {config.distill} and there is no teacher", fix="pass teacher=, or set distill to 0"
        )
    if config.features and (teacher is None or not features):
        missing = "teacher" if teacher is None else "tensor to compare"
        raise ConfigError(
            f"finetune.features is {config.features:g} and there is no {missing}",
            fix="pass the dense network as teacher= and the plan as plan=, or set features to 0",
        )
    if masks is not None and recipe is not None:
        raise ConfigError("weights are held by masks and pruned by a recipe", fix="pass masks= or recipe=")
    if config.metric is not None and evaluate is None:
        raise ConfigError(
            f"finetune.metric is '{config.metric}' and there is no evaluate()",
            fix="add  def evaluate(model): ...  or leave finetune.metric out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The arguments of `finetune`."""

    model: nn.Module
    step: Step | None
    data: Callable[[], Iterable[Any]]
    config: FinetuneConfig
    evaluate: Evaluate | None
    teacher: nn.Module | None
    checkpoint: Path | None
    on_progress: Callable[[Progress], None] | None
    seed: int
    masks: Masks | None
    recipe: Recipe | None
    features: Features
    ranges: Ranges | None


class _Training:
    """A training under way. `position` describes the weights in `network`, except within a step (`torn`)."""

    def __init__(self, job: Job, processes: Processes) -> None:
        self.job = job
        self.processes = processes
        self.identity: Json = identify(
            job.model,
            job.config,
            teacher=job.teacher,
            has_step=job.step is not None,
            has_evaluate=job.evaluate is not None,
            seed=job.seed,
            processes=processes.count,
            masks=job.masks,
            recipe=job.recipe,
            features=job.features,
            ranges=job.ranges,
        )
        found, told = None, None
        if job.checkpoint is not None and processes.first:
            found, told = find_checkpoint(job.checkpoint, self.identity)
        found, told = processes.from_first((found, told))
        self.notices: tuple[Notice, ...] = (Notice(code="checkpoint-not-used", text=told),) if told is not None else ()
        self.position = found.position if found is not None else Position(sums={})
        self.best: Tensors = found.best if found is not None else {}
        self.network = copy.deepcopy(job.model).train()
        if found is not None:
            load_network_(self.network, found.model)
        self.wrapped = processes.prepare(self.network)
        processes.copy_buffers_(self.network)
        self.optimizer = make_optimizer(self.network, job.config)
        if found is not None:
            load_optimizer_(self.optimizer, found.optimizer)
        if job.masks is not None:
            job.masks.hold(self.network, self.optimizer)
        self.pruner: Pruner | None = None
        if job.recipe is not None:
            self.pruner = job.recipe.make(self.network, self._total_steps)
            if found is not None:
                self.pruner.load_state_(found.pruner)
        self.teacher: nn.Module | None = None
        self.distils = job.step is None or job.config.distill > 0
        if job.teacher is not None and (self.distils or job.features):
            self.teacher = copy.deepcopy(job.teacher).eval().requires_grad_(False).to(processes.device)
        self.rounding = _rounding(self.network, job.ranges)
        self.torn = False
        self.written_s = time.monotonic()

    def run(self) -> None:
        """Go from the present position to the end."""
        try:
            while self.position.epoch < self.job.config.epochs:
                with HeldInterrupt() as held:
                    self._train_epoch(held)
                self._finish_epoch()
            if self.pruner is not None and not self.pruner.settled:
                self.pruner.settle_()
                self._keep_best()
        except KeyboardInterrupt:
            if not self.torn:
                self._write()
            raise

    def _total_steps(self) -> int:
        """Return the steps of the training, if all epochs are as long as the first; its data is counted if need be."""
        data = EpochData(self.job.data, self.job.seed, 0)
        batches = data.length if data.length is not None else sum(1 for _ in data)
        return math.ceil(batches / self.processes.count) * self.job.config.epochs

    def _keep_best(self) -> None:
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}

    def _train_epoch(self, held: HeldInterrupt) -> None:
        job, processes = self.job, self.processes
        batches = EpochData(job.data, job.seed, self.position.epoch)
        steps = self.position.steps if batches.length is None else math.ceil(batches.length / processes.count)
        own = itertools.islice(share(batches, processes.rank, processes.count), self.position.step, None)
        self.wrapped.train()
        began_s = time.monotonic()
        while True:
            batch = next(own, _END)
            interrupted, ended = processes.agree(held.pending, batch is _END)
            if interrupted:
                raise KeyboardInterrupt
            if ended:
                break
            values, lr = self._step(batch, steps)
            now_s = time.monotonic()
            self.position = self.position.after_step(values, lr, now_s - began_s)
            self.torn = False
            began_s = now_s
            self._report(steps, values["loss"])
            if now_s - self.written_s >= job.config.checkpoint_every_s:
                self._write()
        if self.position.step == 0:
            raise ModelError(
                f"the training data has no batches in epoch {self.position.epoch + 1}",
                fix="return an iterable that is not used up, such as a list or a new generator, from train_data()",
            )

    def _step(self, batch: Any, steps: int | None) -> tuple[dict[str, float], float]:
        """Take one step; the weights are torn until the position follows."""
        position, config = self.position, self.job.config
        seed_stream("step", self.job.seed, position.epoch, position.step, self.processes.rank)
        lr = learning_rate(config, epoch=position.epoch, step=position.step, steps=steps, done=position.done)
        set_learning_rate_(self.optimizer, lr)
        self.torn = True
        batch = to_device(batch, self.processes.device)
        with self.rounding:
            loss, values = self._loss(batch)
        values = self.processes.mean(values)
        if not math.isfinite(values["loss"]):
            raise self._diverged(f"the loss became {values['loss']}", lr)
        self.optimizer.zero_grad()
        with self.rounding:  # what was checkpointed is computed again
            torch.autograd.backward(loss)
        norm = self.processes.limit_gradients_(self.network, config.max_grad_norm)
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm became {norm}", lr)
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()
        self.processes.average_statistics_(self.network)
        return values, lr

    def _loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss and its parts as numbers."""
        step, config, features = self.job.step, self.job.config, self.job.features
        parts: dict[str, torch.Tensor] = {}
        with recorded(self.network, features) as calls:
            if step is not None:
                parts["step_loss"] = _checked_loss(step(self.wrapped, batch))
            else:
                self.wrapped(*inputs_for(self.network, batch))
        if self.teacher is not None:
            wanted = answers(self.teacher, calls, features)
            if self.distils:
                parts["distill_loss"] = distillation_loss(calls, wanted, batch, config.temperature)
            if features:
                own, dense = ([call.inner for call in made] for made in (calls, wanted))
                parts["feature_loss"] = feature_loss(own, dense, features)
        if len(parts) == 1:
            (loss,) = parts.values()
            return loss, {"loss": loss.item()}
        share = config.distill if step is not None else 1.0
        weights = {
            "step_loss": 1.0 - share,
            "distill_loss": share,
            "feature_loss": feature_weight(config, labelled=step is not None),
        }
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return loss, {"loss": loss.item()} | {name: part.item() for name, part in parts.items()}

    def _finish_epoch(self) -> None:
        """Validate, keep the best, write."""
        began_s = time.monotonic()
        self.processes.copy_buffers_(self.network)
        validation = self._validate()
        with HeldInterrupt():
            self._require_finite_weights()
            record = self.position.record(validation, time.monotonic() - began_s)
            value = better(record, self.job.config.metric, self.position.best_value)
            if value is not None:
                self._keep_best()
            if self.pruner is not None and not self.pruner.settled:
                value = math.nan  # whatever comes next is better: this network is not pruned as far as it was asked for
            self.position = self.position.after_epoch(record, value)
            self._write()

    def _validate(self) -> dict[str, float]:
        """Return what the user's evaluate() says about a copy of the network, the same in every process."""
        if self.job.evaluate is None:
            return {}
        self._write()  # an evaluation that fails or is killed costs nothing
        metrics: dict[str, float] = {}
        if self.processes.first:
            candidate = copy.deepcopy(self.job.model).eval()
            load_network_(candidate, self._tensors())
            seed_stream("evaluate", self.job.seed)
            with _rounding(candidate, self.job.ranges) as rounding:
                metrics = _checked_metrics(self.job.evaluate(candidate))
            if rounding is not None and not rounding.rounded and _NOT_ROUNDED not in self.notices:
                self.notices += (_NOT_ROUNDED,)
        return self.processes.from_first(metrics)

    def _report(self, steps: int | None, loss: float) -> None:
        if self.job.on_progress is None or not self.processes.first:
            return
        self.job.on_progress(
            Progress(
                epoch=self.position.epoch + 1,
                epochs=self.job.config.epochs,
                step=self.position.step,
                steps=steps,
                loss=loss,
            )
        )

    def _write(self) -> None:
        """Write the checkpoint, where one was asked for and by the first process."""
        if self.job.checkpoint is None or not self.processes.first:
            return
        self._require_finite_weights()
        save_checkpoint(
            self.job.checkpoint,
            Checkpoint(
                identity=self.identity,
                position=self.position,
                model=self._tensors(),
                best=self.best,
                optimizer=optimizer_tensors(self.optimizer),
                pruner=self.pruner.state() if self.pruner is not None else {},
            ),
        )
        self.written_s = time.monotonic()

    def _tensors(self) -> Tensors:
        return network_tensors(self.network)

    def _require_finite_weights(self) -> None:
        for name, tensor in self._tensors().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise self._diverged(f"'{name}' is not finite", self.position.lr)

    def _diverged(self, what: str, lr: float) -> TrainingError:
        position, config = self.position, self.job.config
        place = f"epoch {position.epoch + 1} of {config.epochs}, step {position.step + 1}, learning rate {lr:.3g}"
        kept = ""
        if position.best_epoch and self.job.checkpoint is not None:
            kept = f"; the best epoch so far, {position.best_epoch}, is kept in {self.job.checkpoint}"
        if position.done == 0:
            return TrainingError(
                f"{what} before the first update ({place})",
                fix="check that the weights and the data are finite, and that train_step gives a finite loss on them",
            )
        fix = f"lower the learning rate: -s finetune.lr={config.lr / 10:.3g} (it is {config.lr:.3g})"
        if config.max_grad_norm is None:
            fix += ", or limit the gradients: -s finetune.max_grad_norm=1"
        return TrainingError(f"{what} at {place}{kept}", fix=fix)


def _rounding(network: nn.Module, ranges: Ranges | None) -> AbstractContextManager[FakeQuantised | None]:
    return FakeQuantised(network, ranges) if ranges is not None else nullcontext()


def _checked_loss(loss: Any) -> torch.Tensor:
    fix = "return the loss of the batch from train_step, a scalar tensor with gradients"
    if not isinstance(loss, torch.Tensor):
        raise ModelError(f"train_step returned {type(loss).__name__}, not a tensor", fix=fix)
    if loss.numel() != 1:
        raise ModelError(f"train_step returned a tensor of shape {tuple(loss.shape)}, not a scalar", fix=fix)
    if not loss.requires_grad:
        raise ModelError("the loss of train_step does not depend on any parameter that is trained", fix=fix)
    return loss.reshape(())


def _checked_metrics(metrics: Any) -> dict[str, float]:
    fix = 'return numbers by name from evaluate(), such as {"top1": 0.91}'
    if not isinstance(metrics, Mapping):
        raise ModelError(f"evaluate() returned {type(metrics).__name__}, not a dict", fix=fix)
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            checked[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"evaluate() returned {type(value).__name__} for '{name}', not a number", fix=fix
            ) from error
    return checked
