"""Trials: what networks that some plan leaves are worth, each measured once and remembered in a file.

Owns the yardstick (the user's metric, or the error of the outputs where there is none) and the file of trials. Which
plans are tried, and what follows from it, is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.errors import ConfigError, ModelError, VerificationError
from edgeprune.pipeline.digests import seeded
from edgeprune.pipeline.events import Listener, ignore
from edgeprune.pipeline.layerwise import Layerwise
from edgeprune.pipeline.networks import evaluate
from edgeprune.pipeline.planning import given
from edgeprune.pipeline.tuning import reconstructed_on, reconstruction_source
from edgeprune.search.sensitivity import Source
from edgeprune.values import Json, leading_metric, worsening
from edgeprune.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.config import ReconstructConfig, RunConfig
    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan

FILE = "trials.jsonl"
OUTPUT_ERROR = "output_error"
DENSE = "dense"
Evaluate = Callable[["nn.Module"], dict[str, float]]
Data = Callable[[], Iterable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """How a network is measured: the `metric` of the user's `evaluate`, or the relative error of its `outputs`."""

    metric: str | None
    source: Source
    measure: Callable[[nn.Module], dict[str, float]]

    def value(self, found: dict[str, float]) -> tuple[str, float]:
        """Return the leading metric and its value: the one that was asked for, else the first.

        Raises:
            ConfigError: The metric that was asked for is not among them.
        """
        name = leading_metric(found, self.metric)
        if name not in found:
            raise ConfigError(
                f"finetune.metric = '{name}', and evaluate() returns {', '.join(found)}",
                fix=f"-s finetune.metric={next(iter(found))}",
            )
        return name, found[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A dense network with everything that is needed to try plans on it."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    yardstick: Yardstick
    data: Data | None
    rules: UserRules | None
    seed: int
    reconstruct: ReconstructConfig | None = None

    def network(self, plan: PrunePlan, graph: ChannelGraph) -> nn.Module:
        """Return the verified network that a plan leaves, reconstructed where that is asked for.

        Args:
            graph: The channel groups that the plan speaks of.
        """
        from edgeprune.compact import apply as compact

        small = compact(self.model, plan, self.inputs, graph, self.rules).model
        if self.reconstruct is None or self.data is None or self.reconstruct.samples == 0:
            return small
        return reconstructed_on(
            self.data(), small, self.model, plan, self.inputs, self.reconstruct, self.rules, ignore, graph
        ).model


@dataclass(slots=True, kw_only=True)
class Trials:
    """The values of networks by plan. A file remembers them under a key, so that none is measured twice."""

    subject: Subject
    path: Path | None = None
    key: str = ""
    reused: int = 0
    made: int = 0
    _known: dict[str, Json] = field(default_factory=dict)
    _graphs: dict[tuple[str, ...], ChannelGraph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            rows = [row for row in rundir.read_lines(self.path) if row.get("key") == self.key and "plan" in row]
            self._known = {row["plan"]: row for row in rows}

    def dense(self) -> tuple[str, float]:
        """Return the leading metric of the dense network.

        Raises:
            ModelError: It is not finite, or the user's function failed.
        """
        row = self._of(DENSE, lambda: self.subject.model)
        if row["failed"] is not None:
            raise ModelError(f"the dense network cannot be measured: {row['failed']}")
        return row["metric"], row["value"]

    def of(self, plan: PrunePlan) -> Json:
        """Return a row with `value` and `loss` of the network that a plan leaves, or why it `failed`."""
        metric, dense = self.dense()
        row = self._of(plan.digest, lambda: self.subject.network(plan, self._graph(plan)))
        lost = None if row["value"] is None else worsening(metric, dense, row["value"])
        return {"value": row["value"], "loss": lost, "failed": row["failed"]}

    def _graph(self, plan: PrunePlan) -> ChannelGraph:
        """Return the channel groups of the network without a plan's blocks, found once."""
        if plan.blocks not in self._graphs:
            subject = self.subject
            self._graphs[plan.blocks] = given(subject.model, subject.inputs, plan, subject.rules).graph
        return self._graphs[plan.blocks]

    def _of(self, name: str, network: Callable[[], nn.Module]) -> Json:
        if name in self._known:
            self.reused += name != DENSE
            return self._known[name]
        row = {"key": self.key, "plan": name, **self._measured(network)}
        if self.path is not None:
            rundir.append_line(self.path, row)
        self._known[name] = row
        self.made += name != DENSE
        return row

    def _measured(self, network: Callable[[], nn.Module]) -> Json:
        yardstick = self.subject.yardstick
        try:
            model = network()
        except (ModelError, VerificationError) as error:
            return {"metric": None, "value": None, "failed": error.message}
        with seeded(self.subject.seed, "trial"):
            metric, value = yardstick.value(yardstick.measure(model))
        if not math.isfinite(value):
            return {"metric": metric, "value": None, "failed": f"{metric} is {value}"}
        return {"metric": metric, "value": value, "failed": None}


def trial_key(config: RunConfig, subject: Subject, digests: dict[str, str]) -> str:
    """Return what the value of a plan depends on beside the plan itself."""
    settings: Json = {
        "seed": config.seed,
        "source": subject.yardstick.source,
        "metric": subject.yardstick.metric,
        "samples": config.reconstruct.samples,
        "output": config.prune.output,
        "split_recurrent": config.prune.split_recurrent,
        "reconstruct": subject.reconstruct.model_dump(mode="json") if subject.reconstruct is not None else None,
    }
    return rundir.StageKey(stage="trial", settings=settings, inputs=digests).digest()


def layerwise_of(
    config: RunConfig,
    workload: Workload,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    digests: dict[str, str],
    path: Path | None,
    listen: Listener,
) -> Layerwise | None:
    """Return how a workload's groups are tried one after the other; None where all are pruned at once.

    Args:
        path: Remembers what was measured.

    Raises:
        ConfigError: There is neither a metric nor data.
    """
    if config.prune.strategy != "layerwise":
        return None
    from edgeprune.graph.rules.custom import load_rules

    subject = subject_of(
        model,
        inputs,
        config,
        evaluate=metrics_of(workload),
        data=reconstruction_source(workload)[0],
        rules=load_rules(config.prune.rules),
        reconstruct=config.layerwise.reconstruct,
        source=workload.source,
    )
    trials = Trials(subject=subject, path=path, key=trial_key(config, subject, digests))
    return Layerwise(config=config.layerwise, metric=trials.dense()[0], measure=trials.of, listen=listen)


def metrics_of(workload: Workload) -> Evaluate | None:
    """Return the user's metrics of a network as a function, None where the workload has none."""
    return (lambda model: evaluate(workload, model) or {}) if workload.evaluate is not None else None


def subject_of(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    config: RunConfig,
    *,
    evaluate: Evaluate | None,
    data: Data | None,
    rules: UserRules | None,
    reconstruct: bool,
    source: str,
) -> Subject:
    """Return a dense network with how it is measured, from the settings of a run.

    Args:
        evaluate: The user's metrics of a network; without it the error of the outputs on data counts.
        reconstruct: Solve for the weights that are left before each measurement.
        source: Where functions are missing, for messages.

    Raises:
        ConfigError: There is neither a metric nor data.
    """
    return Subject(
        model=model,
        inputs=inputs,
        yardstick=yardstick(
            evaluate, data, model, metric=config.finetune.metric, samples=config.reconstruct.samples, source=source
        ),
        data=data,
        rules=rules,
        seed=config.seed,
        reconstruct=config.reconstruct if reconstruct else None,
    )


def yardstick(
    own: Evaluate | None,
    data: Data | None,
    dense: nn.Module,
    *,
    metric: str | None,
    samples: int,
    source: str = "the workload",
) -> Yardstick:
    """Return how networks are measured: by the user's metric, else by the error of their outputs on data.

    Args:
        own: The user's metrics of a network.
        metric: The metric that decides, by default the first one.
        samples: On how many samples outputs are compared.
        source: Where functions are missing, for messages.

    Raises:
        ConfigError: There is neither a metric nor data.
    """
    if own is not None:
        return Yardstick(metric=metric, source="evaluate", measure=own)
    if data is None:
        raise ConfigError(
            f"{source} has neither evaluate nor data, so nothing tells what pruning costs",
            where=source,
            fix="add  def evaluate(model): ...  or  def calibration_data(): ...",
        )
    references = list(_references(dense, data, max(samples, 1)))
    if not references:
        raise ModelError(f"the data of {source} is empty", fix="let calibration_data() give at least one batch")
    return Yardstick(metric=None, source="outputs", measure=lambda model: {OUTPUT_ERROR: _error(model, references)})


def _references(
    dense: nn.Module, data: Data, samples: int
) -> Iterable[tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]]:
    """Yield inputs of the data and what the dense network gives for them."""
    from edgeprune.training.batches import model_inputs, to_device

    device = next(dense.parameters()).device
    left = samples
    for batch in data():
        inputs = to_device(model_inputs(batch), device)
        yield inputs, _outputs(dense, inputs)
        left -= inputs[0].shape[0] if inputs[0].dim() else 1
        if left <= 0:
            return


def _outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    import torch

    from edgeprune.graph.structure import output_tensors

    with torch.no_grad():
        try:
            return [tensor.double() for tensor in output_tensors(model.eval()(*inputs)) if not tensor.is_complex()]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"the network cannot be run on a batch of the data: {str(error).partition(chr(10))[0]}",
                fix="let the data give what the network is called on, labels behind it",
            ) from error


def _error(model: nn.Module, references: list[tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]]) -> float:
    """Return the root mean square of the differences, relative to how much the dense outputs vary over samples."""
    wrong = spread = 0.0
    for position in range(len(references[0][1])):
        wanted = [outputs[position] for _, outputs in references]
        mean = sum(float(output.sum()) for output in wanted) / max(sum(output.numel() for output in wanted), 1)
        spread += sum(float(((output - mean) ** 2).sum()) for output in wanted)
    for inputs, outputs in references:
        found = _outputs(model, inputs)
        wrong += sum(float(((a - b) ** 2).sum()) for a, b in zip(found, outputs, strict=True))
    return math.sqrt(wrong / spread) if spread > 0 else math.sqrt(wrong)
