"""Everything that is checked before work begins, gathered into one frozen object.

A wrong setting, a target that cannot be reached, a missing package, weights that do not fit or an occupied output
directory is told here, in seconds, and not after an hour of training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.config import RunConfig, SparsifyConfig
from edgeprune.errors import ConfigError, MissingDependency
from edgeprune.pipeline.digests import absolute_rules, code_path, input_digests, seeded
from edgeprune.pipeline.distributed import process_count
from edgeprune.pipeline.planning import read_sensitivity
from edgeprune.pipeline.quantising import check_calibration
from edgeprune.pipeline.tuning import training_source
from edgeprune.targets import Target, find_target, refused
from edgeprune.values import PRECISIONS, Format, Notice, Precision, parse_bytes, parse_count, parse_seconds
from edgeprune.workload import Workload, build_model, example_inputs, load_workload

if TYPE_CHECKING:
    import torch
    from torch import nn

RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked run: the user's network and inputs, the settings, the target, and digests of the inputs.

    `digests` has `code` (the workload's source), `dense` (the network's tensors) and `inputs`. `notices` say what had
    to be done to the network before it could be analysed.
    """

    workload: Workload
    config: RunConfig
    target: Target
    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    name: str
    align: int
    digests: dict[str, str]
    notices: tuple[Notice, ...] = ()


def prepare(config: RunConfig, workload: Workload | None = None) -> Prepared:
    """Check the settings, load the workload, build its network and call its `inputs`.

    Args:
        config: `config.workload` names the workload unless one is given.
        workload: An already loaded workload.

    Raises:
        ConfigError: A setting is wrong, or asks for a function that the workload does not have.
        ResolveError: The workload, the weights or the target cannot be found or read, or do not fit.
        MissingDependency: A format needs a package that is not installed.
        ModelError: One of the user's functions failed.
        DeviceError: The target cannot be reached from here.
    """
    from edgeprune.devices import connect
    from edgeprune.graph.enter import enter
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning.criteria import check_name

    check_settings(config)
    check_name(config.prune.criterion)
    target = find_target(config.target)
    check_formats(config, target)
    connect(target)
    if workload is None:
        if not config.workload:
            raise ConfigError("no workload", fix="name one: edgeprune compress workload.py")
        workload = load_workload(config.workload)
    check_functions(config, workload)
    check_loop(config, process_count(), workload.evaluate is not None, workload.source)
    check_gradual(config, workload)
    check_aware(config, process_count(), workload)
    with seeded(config.seed, "model"):
        model = build_model(workload, config.weights, config.trust_pickle)
    with seeded(config.seed, "inputs"):
        inputs = example_inputs(workload)
    entered = enter(model, inputs)
    model = entered.model
    load_rules(config.prune.rules)
    if "int8" in config.export.precisions:
        with seeded(config.seed, "calibration"):
            check_calibration(workload, config.quantise, model, inputs)
    digests = input_digests(workload, model, inputs, config.prune)
    notices = (*entered.notices, *_other_weights(config, digests))
    align = align_of(config, target)
    name = workload.name if workload.name != "workload" else type(model).__name__.lower()
    _log.info("workload %s, network %s, target %s, align %s", workload.source, name, target.name, align)
    return Prepared(
        workload=workload,
        config=config,
        target=target,
        model=model,
        inputs=inputs,
        name=name,
        align=align,
        digests=digests,
        notices=notices,
    )


def align_of(config: RunConfig, target: Target) -> int:
    """Return of what number kept units are a multiple: that of the settings, or the target's."""
    return target.align if config.prune.align == "target" else config.prune.align


def _other_weights(config: RunConfig, digests: dict[str, str]) -> tuple[Notice, ...]:
    """Return a notice where the sensitivity was measured with other weights."""
    found = read_sensitivity(config.prune)
    if found is None or found.digests.get("weights") == digests["weights"]:
        return ()
    text = f"{config.prune.sensitivity} was measured on other weights of {found.network}"
    fix = "edgeprune sensitivity WORKLOAD measures these"
    return (Notice(code="other-weights", text=text, fix=fix),)


def check_settings(config: RunConfig) -> None:
    """Check the quantities that are texts in the settings.

    Raises:
        ConfigError: One cannot be read.
    """
    readers: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("prune.max_macs", config.prune.max_macs, partial(parse_count, kind="macs")),
        ("prune.max_params", config.prune.max_params, partial(parse_count, kind="params")),
        ("max_latency", config.max_latency, parse_seconds),
        ("max_size", config.max_size, parse_bytes),
        ("export.memory_limit", config.export.memory_limit, parse_bytes),
    )
    for key, text, read in readers:
        if text is not None:
            try:
                read(text)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error.message}", fix=error.fix) from None


def check_formats(config: RunConfig, target: Target) -> None:
    """Check that every format can be made here and run on the target, in every precision.

    Raises:
        MissingDependency: `.tflite` is asked for and the converter is not installed.
        ConfigError: The target has no runtime for a format, or its runtime gets a precision wrong.
    """
    for name in config.export.formats:
        if RUNTIMES[name] not in target.runtimes:
            usable = [key for key, runtime in RUNTIMES.items() if runtime in target.runtimes]
            raise ConfigError(
                f"target {target.name} has no runtime for .{name} files (it has {', '.join(target.runtimes)})",
                fix=f"-s export.formats='{usable}'".replace('"', "'"),
            )
        check_target(config.export.precisions, name, target)
    check_format_packages(config.export.formats, config.export.precisions)


def check_target(precisions: Sequence[Precision], form: Format, target: Target) -> None:
    """Check that a target can have a file of a format in every one of some precisions.

    Raises:
        ConfigError: Its runtimes cannot open one, or get it wrong.
    """
    able = [precision for precision in PRECISIONS if refused(precision, form, target) is None]
    left = [precision for precision in precisions if precision in able] or able[-1:]
    for precision in precisions:
        reason = refused(precision, form, target)
        if reason is not None:
            text = f"target {target.name} cannot have .{form} files in {precision}: {reason}"
            raise ConfigError(text, fix=f"--precision {','.join(left)}" if left else "export the other format")


def check_format_packages(formats: Sequence[str], precisions: Sequence[str] = ()) -> None:
    """Check that the converters of formats, and what other precisions than float32 need, are installed.

    Raises:
        MissingDependency: A converter is not installed.
    """
    from importlib.util import find_spec

    from edgeprune.export import onnx, tflite

    checks = {"onnx": onnx.check_packages, "tflite": tflite.check_packages}
    for name in formats:
        checks[name]()
    lower = [precision for precision in precisions if precision != "fp32"]
    if lower and "tflite" in formats and find_spec("ai_edge_quantizer") is None:
        raise MissingDependency(
            f"{lower[0]} TFLite files need ai-edge-quantizer, which is not installed",
            fix="pip install 'edgeprune[tflite]'",
        )


def check_functions(config: RunConfig, workload: Workload) -> None:
    """Check that the workload has the functions that the settings need.

    Raises:
        ConfigError: A function is missing.
    """
    from edgeprune.pruning.criteria import OF_LOSS

    if config.prune.criterion in OF_LOSS and training_source(workload)[1] is None:
        raise ConfigError(
            f"prune.criterion = '{config.prune.criterion}' needs gradients, and {workload.source} has no train_step",
            where=workload.source,
            fix="add train_step and train_data, or  -s prune.criterion=l2",
        )
    check_strategy(config, measured=config.prune.sensitivity is not None)
    scored = workload.evaluate or (workload.test_data and workload.evaluate_outputs)
    if config.max_drop is not None and not scored:
        raise ConfigError(
            f"max_drop = {config.max_drop} needs a metric, and {workload.source} has none",
            where=workload.source,
            fix="add  def evaluate(model): ...",
        )


def check_strategy(config: RunConfig, *, measured: bool) -> None:
    """Check that the settings of layer-wise pruning fit the others.

    Args:
        measured: There is a sensitivity.

    Raises:
        ConfigError: They do not.
    """
    if config.prune.strategy != "layerwise":
        return
    prune = config.prune
    _check_clashes(
        "prune.strategy = 'layerwise'",
        {
            "prune.max_macs": prune.max_macs is not None,
            "prune.max_params": prune.max_params is not None,
            "loop.steps": config.loop.active,
        },
        "-s prune.strategy=at_once, or leave the other out",
    )
    if config.layerwise.order == "sensitivity" and not measured:
        raise ConfigError(
            "layerwise.order = 'sensitivity' needs a sensitivity",
            fix="edgeprune sensitivity WORKLOAD, then --sensitivity sensitivity",
        )


def _check_clashes(setting: str, others: Mapping[str, bool], fix: str) -> None:
    for key, clashes in others.items():
        if clashes:
            raise ConfigError(f"{setting} and {key} exclude each other", fix=fix)


def check_loop(config: RunConfig, processes: int, has_metric: bool, source: str) -> None:
    """Check what the loop needs, before anything is done.

    Raises:
        ConfigError: A floor without a metric, or several processes.
    """
    if not config.loop.active:
        return
    if config.loop.floor is not None and not has_metric:
        raise ConfigError(
            f"loop.floor = {config.loop.floor:g} needs a metric, and {source} has no evaluate",
            where=source,
            fix="add  def evaluate(model): ...",
        )
    if processes > 1:
        raise ConfigError("the loop runs in one process", fix="leave torchrun out, or -s loop.steps=1")


def check_gradual(config: RunConfig, workload: Workload) -> None:
    """Check that there is a training, if pruning is to happen in one.

    Raises:
        ConfigError: There is no data, or no epoch.
    """
    method = config.gradual.method
    if method is None:
        return
    _check_clashes(
        f"gradual.method = '{method}'",
        {"loop.steps": config.loop.active, "prune.strategy": config.prune.strategy != "at_once"},
        "leave one of the two out",
    )
    if training_source(workload)[0] is None:
        raise ConfigError(
            f"gradual.method = '{method}' prunes during training, and {workload.source} has no data",
            where=workload.source,
            fix="add  def train_data(): ...  and  def train_step(model, batch): ...",
        )
    if (config.gradual.epochs or config.finetune.epochs) == 0:
        raise ConfigError(
            f"gradual.method = '{method}' prunes during training, and there is no epoch", fix="-s finetune.epochs=3"
        )


def check_aware(config: RunConfig, processes: int, workload: Workload) -> None:
    """Check what quantisation-aware training needs, before anything is done.

    Raises:
        ConfigError: There is no int8 file to train for, no data, or there are several processes.
    """
    epochs = config.qat.epochs
    if epochs == 0:
        return
    if "int8" not in config.export.precisions:
        asked = ",".join(config.export.precisions)
        text = f"qat.epochs = {epochs} trains for int8 files, and the precisions are {asked}"
        raise ConfigError(text, fix=f"--precision {asked},int8")
    if training_source(workload)[0] is None:
        raise ConfigError(
            f"qat.epochs = {epochs} needs data to train on, and {workload.source} has none",
            where=workload.source,
            fix="add  def train_data(): ...  and  def train_step(model, batch): ...",
        )
    if processes > 1:
        text = "quantisation-aware training runs in one process"
        raise ConfigError(text, fix="leave torchrun out, or -s qat.epochs=0")


def default_output(prepared: Prepared) -> Path:
    """Return `runs/NAME-r50` for ratio 0.5, `runs/NAME-macs0.5x` or `runs/NAME-params0.5x` for a budget.

    Depth 0.25 adds `-d25`, a loop of four steps `-loop4`, weight pruning its method with what it was given, such as
    `-lamp80` or `-2of4`, and pruning during training its method.
    """
    prune = prepared.config.prune
    what = "".join(prune.budget) if prune.budget is not None else f"r{round(prune.ratio * 100)}"
    deep = f"-d{round(prune.depth * 100)}" if prune.depth > 0 else ""
    loop = f"-loop{prepared.config.loop.steps}" if prepared.config.loop.active else ""
    method = prepared.config.gradual.method
    gradual = f"-{method}" if method is not None else ""
    return Path("runs") / f"{prepared.name}-{what}{deep}{loop}{_sparse_name(prepared.config.sparsify)}{gradual}"


def _sparse_name(config: SparsifyConfig) -> str:
    if config.method is None:
        return ""
    if config.pattern is not None:
        return f"-{config.pattern.replace(':', 'of')}"
    if config.amount is not None:
        return f"-{config.block or config.method}{'-' * (config.block is not None)}{config.amount * 100:g}"
    return f"-{config.method}{config.threshold or config.rate:g}"


def absolute_settings(config: RunConfig, workload: Workload) -> RunConfig:
    """Return the settings with absolute paths, so that a run can be resumed from any folder."""
    changes: dict[str, Any] = {"workload": workload.source, "output": None}
    path = code_path(workload)
    if workload.source.endswith(".py") and path is not None:
        changes["workload"] = str(path)
    if config.weights is not None:
        changes["weights"] = str(Path(config.weights).resolve())
    if config.target.endswith(".toml"):
        changes["target"] = str(Path(config.target).resolve())
    (criterion,) = absolute_rules([config.prune.criterion])
    prune: dict[str, Any] = {"rules": absolute_rules(config.prune.rules), "criterion": criterion}
    if config.prune.sensitivity is not None:
        prune["sensitivity"] = str(Path(config.prune.sensitivity).resolve())
    changes["prune"] = config.prune.model_copy(update=prune)
    if config.quantise.calibration is not None:
        found = {"calibration": str(Path(config.quantise.calibration).resolve())}
        changes["quantise"] = config.quantise.model_copy(update=found)
    return config.model_copy(update=changes)
