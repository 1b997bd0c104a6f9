"""The steps as Python functions, for networks and data that live in the user's own program.

Every function checks its result or raises; the network that is passed in is never changed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.config import BenchConfig, FinetuneConfig, RunConfig, SparsifyConfig
from edgeprune.errors import ConfigError
from edgeprune.pipeline.compress import RunResult
from edgeprune.pipeline.compress import compress as run_compress
from edgeprune.pipeline.distributed import is_follower
from edgeprune.pipeline.events import Listener, ignore
from edgeprune.targets import Target, find_target
from edgeprune.values import Artifact, Check, Json, Layout, Precision
from edgeprune.workload import Workload, as_inputs, load_workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.bench import Comparison, Measurement
    from edgeprune.graph.flow import UserRules
    from edgeprune.graph.rules.custom import Entry
    from edgeprune.pipeline.layerwise import Layerwise
    from edgeprune.pruning import Masks, PrunePlan
    from edgeprune.search import Sensitivity

    Batches = Iterable[Any] | Callable[[], Iterable[Any]]
    Inputs = tuple[torch.Tensor, ...] | list[tuple[torch.Tensor, ...]]


def plan(
    model: nn.Module,
    inputs: Inputs,
    *,
    ratio: float = 0.5,
    criterion: str = "l2",
    scope: Literal["global", "local"] = "local",
    attention: Literal["width", "heads"] = "width",
    streams: Literal["auto", "whole", "free"] = "auto",
    align: int = 8,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    max_macs: str | None = None,
    max_params: str | None = None,
    depth: float = 0.0,
    blocks: Sequence[str] = (),
    step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    data: Batches | None = None,
    batches: int = 8,
    seed: int = 0,
    rules: Sequence[Entry] = (),
    sensitivity: Sensitivity | str | Path | None = None,
    layerwise: Mapping[str, Any] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> PrunePlan:
    """Choose which residual blocks to remove, and which channels of every group to keep.

    Args:
        inputs: Example tensors, batch first. A network whose path depends on its data needs a list of such tuples that
            take every path.
        ratio: Fraction of units removed, in [0, 1). `max_macs` or `max_params`, such as `0.5x`, replaces it.
        attention: Whether attention loses width of all heads or whole heads.
        streams: Whether what several layers write and normalisations count is left `whole` if there is anything else,
            or `auto`: and if a budget can be met without it.
        align: Kept units are a multiple of it.
        keep: Names or patterns of groups and blocks that are never pruned.
        ratios: Ratios of single groups by name, which win over all others.
        depth: Fraction of the removable blocks that go whole, in [0, 1): those that change least what flows through.
        blocks: Names or patterns of blocks that go in any case.
        step: Returns the loss of a batch; the criterion `taylor` needs it and `data`.
        batches: How many batches of `data` the criterion and the choice of blocks see.
        rules: Rules for operators that edgeprune does not know, as in `edgeprune.rules`; `apply` needs the same.
        sensitivity: From `sensitivity()`, or its file: every group gets its own ratio, so that they cost the least.
        layerwise: Prune one group after the other, with these settings of the section `layerwise`, such as
            `{"allowance": 0.005}`.
        evaluate: Returns named metrics, for `layerwise`; without it the error of the outputs on `data` counts.

    Raises:
        ConfigError: An argument is out of range, a rule cannot be found, or the criterion needs what was not given.
        TraceError: The forward cannot be followed.
        NothingToPrune: Every group is pinned, or no block can go; the message lists the reasons.
    """
    from edgeprune.config import validate
    from edgeprune.graph.rules.custom import load_rules, reference
    from edgeprune.pipeline.planning import make
    from edgeprune.pipeline.prepare import check_strategy

    section: dict[str, Any] = {
        "ratio": ratio,
        "max_macs": max_macs,
        "max_params": max_params,
        "depth": depth,
        "criterion": criterion,
    }
    section |= {"scope": scope, "attention": attention, "streams": streams, "align": align, "batches": batches}
    section |= {"keep": tuple(keep), "blocks": tuple(blocks), "ratios": dict(ratios or {})}
    section |= {"rules": tuple(map(reference, rules)), "strategy": "layerwise" if layerwise is not None else "at_once"}
    whole = validate({"prune": section, "seed": seed, "layerwise": dict(layerwise or {})}, "plan()")
    source = None if data is None else (lambda: iterate(data))
    trying = None
    if layerwise is not None:
        check_strategy(whole, measured=sensitivity is not None)
        trying = _layerwise(model, as_inputs(inputs), whole, evaluate, source, load_rules(rules))
    made = make(
        model,
        as_inputs(inputs),
        whole.prune,
        align=align,
        step=step,
        data=source,
        seed=seed,
        rules=load_rules(rules),
        sensitivity=_sensitivity(sensitivity),
        layerwise=trying,
    )
    return made.plan


def _layerwise(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    config: RunConfig,
    evaluate: Callable[[nn.Module], dict[str, float]] | None,
    source: Callable[[], Iterable[Any]] | None,
    rules: UserRules,
) -> Layerwise:
    from edgeprune.pipeline.layerwise import Layerwise
    from edgeprune.pipeline.trials import Trials, subject_of

    subject = subject_of(
        model,
        inputs,
        config,
        evaluate=evaluate,
        data=source,
        rules=rules,
        reconstruct=config.layerwise.reconstruct,
        source="plan()",
    )
    trials = Trials(subject=subject)
    return Layerwise(config=config.layerwise, metric=trials.dense()[0], measure=trials.of)


def sensitivity(
    model: nn.Module,
    inputs: Inputs,
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    metric: str | None = None,
    data: Batches | None = None,
    reconstruct: bool = False,
    checkpoint: str | Path | None = None,
    listen: Listener = ignore,
    **settings: Any,
) -> Sensitivity:
    """Measure what every group of a network costs alone, at a few ratios; `plan` chooses ratios by it.

    Args:
        inputs: As for `plan`.
        evaluate: Returns named metrics. Without it the error of the outputs on `data` is measured.
        metric: The metric that counts, by default the first one.
        reconstruct: Solve for the weights that are left, on `data`, before each measurement.
        checkpoint: A file that remembers what was measured, so that an interrupted measurement goes on.
        listen: Called with every event.
        settings: As for `plan`: `criterion`, `align`, `keep`, `step`, `batches`, `seed` and `rules`.

    Raises:
        ConfigError: An argument is out of range, or there is neither `evaluate` nor `data`.
        NothingToPrune: Every group is pinned.
    """
    from edgeprune.config import validate
    from edgeprune.graph.rules.custom import load_rules, reference
    from edgeprune.pipeline.digests import inputs_digest, state_digest
    from edgeprune.pipeline.sensitivity import study
    from edgeprune.pipeline.trials import Trials, subject_of, trial_key

    rules, seed = settings.pop("rules", ()), settings.pop("seed", 0)
    step = settings.pop("step", None)
    section = {"align": 8, **settings, "rules": tuple(map(reference, rules))}
    config = validate(
        {"prune": section, "seed": seed, "sensitivity": {"ratios": tuple(ratios)}, "finetune": {"metric": metric}},
        "sensitivity()",
    )
    source = None if data is None else (lambda: iterate(data))
    examples = as_inputs(inputs)
    subject = subject_of(
        model,
        examples,
        config,
        evaluate=evaluate,
        data=source,
        rules=load_rules(rules),
        reconstruct=reconstruct,
        source="sensitivity()",
    )
    digests = {"weights": state_digest(model.state_dict()), "example inputs": inputs_digest(examples)}
    place = Path(checkpoint) if checkpoint is not None else None
    trials = Trials(subject=subject, path=place, key=trial_key(config, subject, digests))
    align = config.prune.align if isinstance(config.prune.align, int) else 8
    return study(trials, config, align=align, step=step, source=source, digests=digests, listen=listen)


def _sensitivity(found: Sensitivity | str | Path | None) -> Sensitivity | None:
    from edgeprune.search import Sensitivity

    return found if found is None or isinstance(found, Sensitivity) else Sensitivity.load(found)


def apply(model: nn.Module, plan: PrunePlan, inputs: Inputs, *, rules: Sequence[Entry] = ()) -> nn.Module:
    """Return the network without the blocks and units that the plan removes, verified on the example inputs.

    Args:
        inputs: As for `plan`.
        rules: The rules that the plan was made with.

    Raises:
        VerificationError: The smaller network differs from the dense one with the removed blocks and units zeroed.
        ModelError: The network cannot be compacted.
    """
    from edgeprune.compact import apply as compact
    from edgeprune.graph.rules.custom import load_rules

    return compact(model, plan, as_inputs(inputs), rules=load_rules(rules)).model


def sparsify(
    model: nn.Module,
    *,
    method: str = "magnitude",
    amount: float | None = None,
    threshold: float | None = None,
    rate: float | None = None,
    scope: Literal["global", "local"] | None = None,
    pattern: str | None = None,
    block: str | None = None,
    keep: Sequence[str] = (),
) -> tuple[nn.Module, Masks]:
    """Return a copy of the network with single weights set to zero, and the masks that say which.

    The file becomes smaller once it is compressed; a dense runtime is not faster. Training moves the zeros unless it is
    told: `finetune(sparse, masks=masks, ...)`, or `masks.hold(sparse, optimizer)` in a loop of your own.

    Args:
        method: `threshold`, `relative`, `magnitude`, `lamp`, `erk`, `n:m` or `block`.
        amount: Fraction of the weights that go, in [0, 1); of the blocks for `block`.
        threshold: Weights whose magnitude is below go.
        rate: As `threshold`, in units of the layer's `sqrt(mean(w^2) + mean(b^2))`.
        scope: Whether `magnitude` and `block` rank within each layer (the default, `local`) or over all.
        pattern: `2:4` keeps two of every four consecutive inputs.
        block: `4x1` is four outputs by one input.
        keep: Names or patterns of layers that stay dense.

    Raises:
        ConfigError: A setting is missing, out of range or means nothing to the method.
        ModelError: A weight is not finite.
        NothingToPrune: No layer can be pruned, or the settings prune nothing.
    """
    from edgeprune.config import validate
    from edgeprune.graph.enter import enter
    from edgeprune.pruning import make_masks

    section: Json = {"method": method, "amount": amount, "threshold": threshold, "rate": rate, "scope": scope}
    section |= {"pattern": pattern, "block": block, "keep": tuple(keep)}
    config: SparsifyConfig = validate({"sparsify": section}, "sparsify()").sparsify
    sparse = copy.deepcopy(enter(model).model)
    masks = make_masks(sparse, config)
    masks.apply_(sparse)
    return sparse, masks


def finetune(
    model: nn.Module,
    *,
    data: Batches,
    step: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    epochs: int = 3,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    plan: PrunePlan | None = None,
    inputs: Inputs | None = None,
    rules: Sequence[Entry] = (),
    **settings: Any,
) -> nn.Module:
    """Return a trained copy of the network, the best epoch by `evaluate` where that is given.

    Args:
        data: Batches, iterated once per epoch; a function that returns them works too.
        step: Returns the loss of a batch. Without it the network learns the outputs of `teacher`.
        teacher: The dense network, for distillation; beside `step` it makes up `distill=0.5` of the loss.
        checkpoint: A file from which an interrupted training goes on.
        masks: From `sparsify`: these weights stay exactly 0.0.
        plan: For `features`, what was removed from the teacher; `inputs` and `rules` are those of `apply`.
        settings: Other settings of the section `finetune`, such as `lr` or `optimizer`.

    Raises:
        ConfigError: A setting is unknown or out of range, or there is neither `step` nor `teacher`.
        TrainingError: The loss or the weights are not finite.
    """
    from edgeprune.config import validate
    from edgeprune.graph.enter import enter
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pipeline.tuning import compared_features
    from edgeprune.training import finetune as train

    if step is None and teacher is None:
        raise ConfigError("finetune() got neither a step nor a teacher", fix="pass step=, teacher=, or both")
    if teacher is not None and step is not None:
        settings = {"distill": 0.5} | settings
    config: FinetuneConfig = validate({"finetune": {"epochs": epochs} | settings}, "finetune()").finetune
    examples = as_inputs(inputs) if inputs is not None else None
    teacher = enter(teacher, examples).model if teacher is not None and plan is not None else teacher
    given = (model, teacher, plan, examples, load_rules(rules))
    features = compared_features(config, *given, labelled=step is not None)
    result = train(
        model,
        step=step,
        data=lambda: iterate(data),
        config=config,
        evaluate=evaluate,
        teacher=teacher,
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        seed=seed,
        masks=masks,
        features=features,
    )
    return result.model


def reconstruct(
    small: nn.Module,
    model: nn.Module,
    plan: PrunePlan,
    inputs: Inputs,
    *,
    data: Batches,
    rules: Sequence[Entry] = (),
    **settings: Any,
) -> nn.Module:
    """Return the pruned network with weights solved so that every layer comes closest to the dense network's.

    No training: least squares on unlabelled inputs, layer by layer. The weights are the old ones where the outputs of
    samples that were not used did not get closer.

    Args:
        small: What `apply` returned, or the same after training.
        model: The dense network that the plan was made for.
        inputs: As for `plan`; the samples of the data must have their shape.
        data: Batches, labels allowed.
        settings: Settings of the section `reconstruct`, such as `samples=256`.

    Raises:
        ConfigError: A setting is unknown or out of range, or the plan does not fit.
        ModelError: There is no sample of the right shape, or a layer's inputs are not finite.
    """
    from edgeprune.config import validate
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.reconstruct import reconstruct_plan, settings_of

    config = validate({"reconstruct": settings}, "reconstruct()").reconstruct
    found, source = settings_of(config), iterate(data)
    return reconstruct_plan(small, model, plan, as_inputs(inputs), source, found, load_rules(rules)).model


def recalibrate(model: nn.Module, data: Batches, *, batches: int = 32) -> nn.Module:
    """Return a copy of the network whose BatchNorm statistics are those of the first batches of the data."""
    from edgeprune.training import recalibrate as exact_statistics

    return exact_statistics(model, itertools.islice(iterate(data), batches))


def export(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: str | Path,
    *,
    precision: Precision = "fp32",
    calibration: Batches | str | Path | None = None,
    min_sqnr_db: float | None = None,
    layout: Layout = "nchw",
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
    metadata: dict[str, str] | None = None,
    **settings: Any,
) -> Artifact:
    """Write the network as `.onnx` or `.tflite`, verified against it before the file gets its name.

    Args:
        path: Its suffix decides the format.
        precision: `int8` needs `calibration`; `int8-dynamic`, `int8-weights` and `fp16` need nothing.
        calibration: Batches of true inputs, labels allowed, or a `.npz`, `.npy` or `.safetensors` file of them.
        min_sqnr_db: Least signal-to-quantisation-noise ratio of a file that is not float32.
        tolerance: Largest accepted difference of a float32 file, relative to the largest output value.
        layout: `nhwc` puts the channels of 4-D inputs and outputs last.
        settings: Other settings of the section `quantise`, such as `samples=64`, `wanted_db=30` or `io="int8"`.

    Raises:
        ConfigError: The precision is unknown, a setting is out of range, or `int8` has no calibration data.
        ModelError: The calibration data do not fit the network.
        ExportError: The converter cannot express the network.
        VerificationError: The file differs from the network; it is left with the suffix `.rejected`.
        MissingDependency: The format's converter is not installed.
    """
    from edgeprune.config import validate
    from edgeprune.export import export as write
    from edgeprune.pipeline.prepare import check_format_packages
    from edgeprune.pipeline.quantising import file_batches, quantisation

    config = validate({"quantise": settings, "export": {"precisions": [precision]}}, "export()").quantise
    check_format_packages([Path(path).suffix[1:]], [precision])
    if isinstance(calibration, str | Path):
        calibration = file_batches(Path(calibration), model, inputs)
    exported = write(
        model,
        inputs,
        Path(path),
        precision=precision,
        dynamic_batch=dynamic_batch,
        metadata=metadata,
        tolerance=tolerance,
        calibration=calibration() if callable(calibration) else calibration,
        quantisation=quantisation(config, ignore, str(path), precision),
        min_sqnr_db=min_sqnr_db,
        layout=layout,
    )
    return exported.artifact


def verify(
    first: nn.Module | str | Path,
    second: nn.Module | str | Path,
    *,
    inputs: tuple[torch.Tensor, ...] | None = None,
    tolerance: float = 1e-4,
) -> tuple[Check, ...]:
    """Compare two networks or files on the same inputs; every check says whether it passed.

    Args:
        first: A network, or the path of an `.onnx` or `.tflite` file. So is `second`.
        inputs: Example tensors; random ones in the range that a file records are used as well.
    """
    from edgeprune.export import verify_pair

    sides = [Path(side) if isinstance(side, str) else side for side in (first, second)]
    return verify_pair(sides[0], sides[1], inputs=inputs, tolerance=tolerance)


def bench(
    artifacts: Sequence[Artifact],
    target: str | Target = "host",
    *,
    baseline: Artifact | None = None,
    **settings: Any,
) -> list[Measurement]:
    """Measure files on a target, interleaved and in fresh processes.

    Args:
        target: A profile, its name or a TOML file.
        baseline: The file that the others are compared with; the first one of each format otherwise.
        settings: Settings of the section `bench`, such as `threads=(1, 2)`.

    Raises:
        DeviceError: The target cannot be reached or failed.
    """
    from edgeprune.bench import measure
    from edgeprune.config import validate
    from edgeprune.pipeline.measuring import roles_of

    config: BenchConfig = validate({"bench": settings}, "bench()").bench
    chosen = list(artifacts) if baseline is None or baseline in artifacts else [baseline, *artifacts]
    place = find_target(target) if isinstance(target, str) else target
    roles = roles_of(chosen, baseline.path if baseline is not None else None)
    return measure(chosen, place, config, roles=roles)


def compare(baseline: Measurement, other: Measurement, *, allow: Sequence[str] = ()) -> Comparison:
    """Return how much faster or slower a measurement is than a baseline, with its interval.

    Args:
        allow: Differences to accept: `threads`, `runtime`, `device`; other precisions are compared unasked.

    Raises:
        ConfigError: They were measured in different ways.
    """
    from edgeprune.bench import compare as compare_measurements

    return compare_measurements(baseline, other, allow=tuple(allow))


def advise(workload: str, config: RunConfig | None = None) -> Json:
    """Return what `edgeprune advise` says of a workload: `facts`, `advice` with its figures, and the `command`.

    Args:
        workload: A `workload.py` or a `module:attribute`.
        config: Weights, and the ratio or the budgets to meet.

    Raises:
        TraceError: The forward cannot be followed.
    """
    from edgeprune.pipeline.advising import advice

    settings = config if config is not None else RunConfig()
    return advice(settings.model_copy(update={"workload": workload}))


def compress(workload: str | Workload, config: RunConfig | None = None) -> RunResult:
    """Run everything: prune, fine-tune, export, verify, measure, report.

    Args:
        workload: A `workload.py`, a `module:attribute`, or a loaded workload.
        config: The settings; `config.output` is the run directory.

    Raises:
        EdgePruneError: One of its kinds. A missed budget is no error: `RunResult.passed` says it.
    """
    if is_follower():
        raise ConfigError(
            "under torchrun, compress() works as a command only", fix="torchrun ... -m edgeprune compress workload.py"
        )
    loaded = load_workload(workload) if isinstance(workload, str) else workload
    settings = config if config is not None else RunConfig()
    return run_compress(settings.model_copy(update={"workload": loaded.source}), loaded)


def iterate(data: Batches | None) -> Iterable[Any]:
    """Return the batches of one epoch.

    Raises:
        ConfigError: The data is an iterator, which ends after one pass.
    """
    if data is None:
        return ()
    found = data() if callable(data) else data
    if found is data and iter(found) is found:
        raise ConfigError(
            "the data is an iterator, which ends after one pass", fix="pass a list, a DataLoader or a function"
        )
    return found
