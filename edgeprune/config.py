"""The settings of a run: frozen sections, read from TOML and from `-s section.key=value`, written back as TOML.

Owns names, types, ranges and defaults. Does not know what the settings do.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.values import Countable, Json, Layout, Precision

Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen section; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_COMBINATION = "setting_combination"


def _refuse(text: str, fix: str) -> NoReturn:
    """Refuse settings that are right one by one and wrong together."""
    raise PydanticCustomError(_COMBINATION, "{text}", {"text": text, "fix": fix})


class PruneConfig(Section):
    """What to remove. `ratio` is the fraction of units removed; `max_macs` or `max_params` (`0.5x`) replaces it.

    In attention, `attention` removes the same share of every head's width, or whole `heads`. What many layers write
    and normalisations count, such as the residual stream of a Transformer, goes last: `streams` `auto` leaves it alone
    unless nothing else is free or a budget cannot be met without it, `whole` unless nothing else is free.
    `depth` is the fraction of the removable residual blocks that go whole; `blocks` names some that go in any case.
    `rules` name the user's rules for operators, as `package.module:function` or `rules.py:function`.
    `output` says what may come out: `eager` the user's own module only, `graph` recorded calls, `auto` the first of
    them that is right. `split_recurrent` gives every layer and direction of an LSTM, GRU or RNN a width of its own.
    `sensitivity` is a file of `edgeprune sensitivity`: every group gets its own ratio, so that they cost the least.
    `strategy` is `layerwise` where groups are pruned one after the other, as the section `layerwise` says.
    """

    ratio: Ratio = 0.5
    max_macs: str | None = None
    max_params: str | None = None
    depth: Ratio = 0.0
    blocks: tuple[str, ...] = ()
    criterion: str = "l2"
    scope: Literal["global", "local"] = "local"
    attention: Literal["width", "heads"] = "width"
    streams: Literal["auto", "whole", "free"] = "auto"
    output: Literal["auto", "eager", "graph"] = "auto"
    split_recurrent: bool = False
    align: Count | Literal["target"] = "target"
    min_channels: int = Field(1, ge=1)
    keep: tuple[str, ...] = ()
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    batches: int = Field(8, ge=1, description="batches of train_data for data-driven criteria")
    rules: tuple[str, ...] = ()
    sensitivity: str | None = None
    strategy: Literal["at_once", "layerwise"] = "at_once"

    @property
    def budget(self) -> tuple[Countable, str] | None:
        """What may be left, and how much of it, if that was asked for instead of a ratio."""
        if self.max_params is not None:
            return "params", self.max_params
        return ("macs", self.max_macs) if self.max_macs is not None else None

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.max_macs is not None and self.max_params is not None:
            text = f"prune.max_macs = '{self.max_macs}' and prune.max_params = '{self.max_params}' exclude each other"
            _refuse(text, "keep the one that matters more, run, and tighten it if the other is not met")
        return self


class LayerwiseConfig(Section):
    """How groups are pruned one after the other with `prune.strategy = "layerwise"`, each by `prune.ratio`.

    `order` says which comes first: what costs least alone (`sensitivity`), what is largest (`size` in parameters, or
    `macs`), or what comes first or last in the network. A group that worsens the metric by more than `allowance` is
    rolled back, and half of its ratio tried, `halvings` times. `reconstruct` solves for the weights that are left
    before each look, where there are inputs.
    """

    order: Literal["sensitivity", "size", "macs", "forward", "backward"] = "macs"
    allowance: float = Field(0.01, ge=0)
    halvings: int = Field(1, ge=0)
    reconstruct: bool = True


class SensitivityConfig(Section):
    """What `edgeprune sensitivity` measures: every group alone at each of `ratios`.

    `reconstruct` solves for the weights that are left before each measurement; without it the raw sensitivity shows.
    """

    ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.25, 0.5, 0.75), min_length=1)
    reconstruct: bool = False


class ReconstructConfig(Section):
    """How the weights that are left are solved for before any training: on how many unlabelled samples, 0 for none.

    `memory_mb` bounds what the samples take while both networks run; fewer are used where they would take more.
    `ridge` replaces the choice by the number of rows per unknown. A layer with more than `max_unknowns` inputs to every
    output is solved on fewer rows, because of its memory.
    """

    samples: int = Field(512, ge=0)
    memory_mb: int = Field(2048, ge=1)
    ridge: float | None = Field(None, gt=0)
    max_unknowns: int = Field(4096, ge=1)


# What each method of weight pruning needs, and what it may be given besides; `keep` goes with all of them.
_METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "threshold": (("threshold",), ()),
    "relative": (("rate",), ()),
    "magnitude": (("amount",), ("scope",)),
    "lamp": (("amount",), ()),
    "erk": (("amount",), ()),
    "n:m": (("pattern",), ()),
    "block": (("amount", "block"), ("scope",)),
}
_EXAMPLES = {"threshold": 0.01, "rate": 0.5, "amount": 0.8, "pattern": "2:4", "block": "4x1"}


def _pair(text: str, separator: str, name: str, example: str) -> tuple[int, int]:
    found = re.fullmatch(rf"([0-9]+){separator}([0-9]+)", text)
    if found is None:
        _refuse(f"sparsify.{name} = '{text}' is not two whole numbers", f"such as {example}")
    return int(found[1]), int(found[2])


class SparsifyConfig(Section):
    """Which single weights become zero after channels were removed: a smaller compressed file, no faster dense runtime.

    `method`: `threshold` (weights below `threshold` go), `relative` (below `rate` times the scale of their layer),
    `magnitude`, `lamp`, `erk` (the fraction `amount` of all weights), `n:m` (`pattern` `2:4` keeps two of every four
    inputs), `block` (the fraction `amount` of all blocks; `4x1` is four outputs by one input). Unset, no weight goes.
    `scope` ranks within each layer (`local`, the default) or over all. `keep` protects layers by name.
    """

    method: Literal["threshold", "relative", "magnitude", "lamp", "erk", "n:m", "block"] | None = None
    amount: Ratio | None = None
    threshold: float | None = Field(None, gt=0, allow_inf_nan=False)
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    scope: Literal["global", "local"] | None = None
    pattern: str | None = None
    block: str | None = None
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needed, allowed = _METHODS[self.method] if self.method is not None else ((), ())
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name == "method" or value in (None, ()) or name in (*needed, *allowed):
                continue
            users = [method for method, names in _METHODS.items() if name in (*names[0], *names[1], "keep")]
            if self.method is None:
                _refuse(f"sparsify.{name} = {value!r} and no sparsify.method", f"-s sparsify.method={users[0]}")
            elif name != "keep":
                text = f"sparsify.{name} = {value!r} means nothing to sparsify.method = '{self.method}'"
                instead = " and ".join(f"sparsify.{other}" for other in needed)
                _refuse(text, f"{self.method} takes {instead}; sparsify.{name} goes with {', '.join(users)}")
        for name in needed:
            if getattr(self, name) is None:
                fix = f"-s sparsify.{name}={_EXAMPLES[name]}"
                _refuse(f"sparsify.method = '{self.method}' needs sparsify.{name}", fix)
        if self.pattern is not None:
            kept, size = _pair(self.pattern, ":", "pattern", "2:4, two of every four inputs stay")
            if not 1 <= kept < size:
                fix = "N:M keeps N of every M, such as 2:4"
                _refuse(f"sparsify.pattern = '{self.pattern}' removes nothing: N must be from 1 to M - 1", fix)
        if self.block is not None:
            sides = _pair(self.block, "x", "block", "4x1, four outputs by one input")
            if min(sides) < 1:
                _refuse(f"sparsify.block = '{self.block}' is an empty block", "such as 4x1")
        return self


OF_WEIGHTS = ("weights", "rigl")
_BY_AND_BY = ("magnitude", "lamp", "erk", "n:m")
_WITH_LOSS = ("taylor", "hessian")


class GradualConfig(Section):
    """Pruning during training, in place of pruning at once. What is gone in the end, `prune` or `sparsify` say.

    `method`: `channels` (the units with the lowest scores go by and by), `soft` (their filters are zeroed again and
    again and may come back), `regularise` (they shrink until nothing is left), `slim` (scales of normalisations are
    made sparse, and decide); `weights` (single weights go by and by), `rigl` (weights change places, as many stay).
    Units go in a training of `epochs` before the cut, weights in fine-tuning. Pruning begins after `begin` steps and
    ends after `end` (unset, three quarters of the training), `every` so many steps (unset, a fortieth of the way).
    `fraction` of a layer's weights change places at first (`rigl`, unset 0.3); `strength` is what a scale without
    gradient would lose, in means of its layer (`slim`, unset 0.5).
    """

    method: Literal["channels", "soft", "regularise", "slim", "weights", "rigl"] | None = None
    epochs: Count | None = None
    begin: int = Field(0, ge=0)
    end: Count | None = None
    every: Count | None = None
    fraction: float | None = Field(None, gt=0, le=1)
    strength: float | None = Field(None, gt=0, allow_inf_nan=False)

    @property
    def of_weights(self) -> bool:
        """Whether single weights go."""
        return self.method in OF_WEIGHTS

    @property
    def of_units(self) -> bool:
        """Whether units go, in a training before the cut."""
        return self.method is not None and not self.of_weights

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method is None and self != type(self).model_construct():
            name = next(name for name in type(self).model_fields if getattr(self, name) not in (None, 0))
            _refuse(f"gradual.{name} = {getattr(self, name)!r} and no gradual.method", "-s gradual.method=channels")
        if self.end is not None and self.begin >= self.end:
            _refuse(f"gradual.begin = {self.begin} is not before gradual.end = {self.end}", "begin earlier")
        for name, method in (("fraction", "rigl"), ("strength", "slim")):
            if getattr(self, name) is not None and self.method != method:
                text = f"gradual.{name} means nothing to gradual.method = '{self.method}'"
                _refuse(text, f"it goes with gradual.method = '{method}'")
        if self.epochs is not None and self.of_weights:
            text = f"gradual.epochs means nothing to gradual.method = '{self.method}'"
            _refuse(text, "single weights go in fine-tuning: -s finetune.epochs")
        return self


class FinetuneConfig(Section):
    """How accuracy is won back. `distill` 0 trains on the user's loss alone, 1 on the dense network alone.

    `features` times how far the inner tensors are from those of the dense network, at the kept channels, is added;
    unset, it is 1 where there is no loss of the user's and the layers can be compared, else 0.
    """

    epochs: int = Field(3, ge=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    distill: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)
    features: float | None = Field(None, ge=0, allow_inf_nan=False)
    metric: str | None = None
    checkpoint_every_s: float = Field(30.0, ge=0)
    recalibrate_batches: int = Field(32, ge=0)


class LoopConfig(Section):
    """Prune in `steps` of equal size, each followed by reconstruction and `epochs` of fine-tuning.

    `floor` is the worst value of the metric that a step may end with. A step below it is rolled back and the size of
    the steps halved, up to `tries` times. One step without a floor is the ordinary run.
    """

    steps: Count = 1
    epochs: int = Field(1, ge=0)
    floor: float | None = None
    tries: int = Field(3, ge=0)

    @property
    def active(self) -> bool:
        """Whether there is anything to repeat or to roll back."""
        return self.steps > 1 or self.floor is not None


class ExportConfig(Section):
    """Which files to make: every format, the pruned network in every precision and the dense one in float32.

    `int8` computes on integers, calibrated on true inputs; `int8-dynamic` quantises what products read as it comes;
    `int8-weights` and `fp16` store weights in a quarter and a half, and compute in float32.
    `layout` `nhwc` puts the channels of 4-D inputs and outputs last.
    `min_sqnr_db` is the least signal-to-quantisation-noise ratio of files that are not float32; unset, it is 40 for
    fp16 and 17 for the others, a cosine of 0.99. `timeout_s` and `memory_limit`, such as "4GB", are those of the TFLite
    converter's process.
    """

    formats: tuple[Literal["onnx", "tflite"], ...] = Field(("onnx", "tflite"), min_length=1)
    precisions: tuple[Precision, ...] = Field(("fp32",), min_length=1)
    min_sqnr_db: float | None = Field(None, ge=0, allow_inf_nan=False)
    layout: Layout = "nchw"
    dynamic_batch: bool = True
    tolerance: float = Field(1e-4, gt=0)
    timeout_s: float = Field(900.0, gt=0)
    memory_limit: str | None = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for key, names in (("formats", self.formats), ("precisions", self.precisions)):
            twice = next((name for name in names if list(names).count(name) > 1), None)
            if twice is not None:
                once = ", ".join(f'"{name}"' for name in dict.fromkeys(names))
                _refuse(f"export.{key} has '{twice}' twice", f"-s export.{key}='[{once}]'")
        return self


class QuantiseConfig(Section):
    """How int8 files are made. `calibration` is a `.npz`, `.npy` or `.safetensors` file of inputs.

    Unset, the workload's `calibration_data` is read, or else `train_data`, at most `samples` of them. `methods` are the
    ways to choose the range of a tensor that are tried: the one with the best output is taken. `percentile` is the
    share of values that the method of this name covers. Where the output has less than `equalise_db` of
    signal-to-quantisation-noise ratio, equalised channels and corrected biases are tried too. Operators stay in
    float32 until the output reaches `wanted_db`. `io` is the type of the file's inputs and outputs.
    """

    calibration: str | None = None
    io: Literal["float32", "int8", "uint8"] = "float32"
    samples: Count = 128
    methods: tuple[Literal["minmax", "percentile", "entropy", "mse"], ...] = Field(
        ("minmax", "percentile", "entropy", "mse"), min_length=1
    )
    percentile: float = Field(99.99, gt=50, le=100)
    equalise_db: float = Field(30.0, ge=0, allow_inf_nan=False)
    wanted_db: float = Field(20.0, ge=0, allow_inf_nan=False)


class QatConfig(Section):
    """Quantisation-aware fine-tuning of `epochs` epochs behind the ordinary one, for the int8 files alone.

    `lr` unset, it is a tenth of `finetune.lr`; all other settings are those of `finetune`, without `features`.
    """

    epochs: int = Field(0, ge=0)
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)


class BenchConfig(Section):
    """How artifacts are timed. `practical` is the smallest relative difference that is called one."""

    threads: tuple[Count, ...] = Field((1,), min_length=1)
    processes: int = Field(5, ge=1)
    min_runs: int = Field(50, ge=1)
    min_seconds: float = Field(1.0, ge=0)
    max_seconds: float = Field(20.0, gt=0)
    warmup_runs: int = Field(10, ge=0)
    warmup_seconds: float = Field(0.5, ge=0)
    practical: float = Field(0.03, ge=0)


class RunConfig(Section):
    """Everything a run needs besides the workload's code. Written to `run.toml` before work begins."""

    workload: str = ""
    weights: str | None = None
    trust_pickle: bool = False
    output: str | None = None
    target: str = "host"
    seed: int = 0
    max_latency: str | None = None
    max_size: str | None = None
    max_drop: float | None = Field(None, ge=0)
    prune: PruneConfig = PruneConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    loop: LoopConfig = LoopConfig()
    sparsify: SparsifyConfig = SparsifyConfig()
    gradual: GradualConfig = GradualConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    export: ExportConfig = ExportConfig()
    qat: QatConfig = QatConfig()
    quantise: QuantiseConfig = QuantiseConfig()
    bench: BenchConfig = BenchConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    layerwise: LayerwiseConfig = LayerwiseConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        method, prune, sparsify = self.gradual.method, self.prune, self.sparsify
        if self.quantise.io != "float32" and "int8" not in self.export.precisions:
            text = f"quantise.io = '{self.quantise.io}' is for int8 files, and export.precisions has no int8"
            _refuse(text, "--precision int8, or --io float32")
        if self.gradual.of_weights and sparsify.method not in _BY_AND_BY:
            text = f"gradual.method = '{method}' needs sparsify.method, one of {', '.join(_BY_AND_BY)}"
            _refuse(text, "-s sparsify.method=magnitude -s sparsify.amount=0.8")
        if self.finetune.features and prune.output == "graph":
            text = f"finetune.features = {self.finetune.features:g} does not go with prune.output = 'graph'"
            _refuse(text, "recorded calls have no layers to compare: -s finetune.features=0, or another output")
        if self.gradual.of_units:
            removes = prune.ratio > 0 or prune.budget is not None or any(prune.ratios.values())
            for wrong, what, fix in (
                (not removes, "prune.ratio = 0, which removes nothing", "-s prune.ratio=0.5"),
                (prune.depth > 0 or bool(prune.blocks), "prune.depth or prune.blocks", "remove blocks in a run before"),
                (prune.split_recurrent, "prune.split_recurrent", "-s prune.split_recurrent=false"),
                (prune.criterion in _WITH_LOSS, f"prune.criterion = '{prune.criterion}'", "-s prune.criterion=l2"),
            ):
                if wrong:
                    _refuse(f"gradual.method = '{method}' does not go with {what}", fix)
        return self

    def to_toml(self) -> str:
        """Return the settings as TOML; unset values are left out, as TOML has no null."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_config(path: Path | None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the settings of a TOML file, changed by `section.key=value` overrides and then by flag values.

    Args:
        path: The file, or None for defaults. `values` maps dotted keys to already typed values.

    Raises:
        ResolveError: The file does not exist or cannot be read.
        ConfigError: TOML syntax, an unknown key (the nearest known one is named), a wrong type or range.
    """
    data: Json = {}
    source = "the command line"
    if path is not None:
        source = str(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResolveError(f"cannot read {path}: {error.strerror}", fix="edgeprune init writes one") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}", where=source) from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"'-s {override}' has no '='", fix="write  -s section.key=value")
        _put(data, key.strip(), _parse_value(text.strip()), f"-s {override}")
    for key, value in (values or {}).items():
        _put(data, key, value, key)
    return validate(data, source)


_CHOICES = ("constrained-", "literal[")  # what pydantic adds to a place to say which alternative of a type it means


def validate(data: Json, source: str = "settings") -> RunConfig:
    """Return the settings that a nested dict means.

    Raises:
        ConfigError: An unknown key, a wrong type or a value outside its range.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"] if not str(part).startswith(_CHOICES)]
        key = ".".join(parts)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], _known_keys(parts[:-1]), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"unknown key '{key}'{hint}", where=source, fix=_list_keys(parts[:-1])) from None
        if first["type"] == _COMBINATION:
            raise ConfigError(first["msg"], where=source, fix=first["ctx"]["fix"]) from None
        hint = _nearest(first) if first["type"] == "literal_error" else ""
        raise ConfigError(f"{key} = {first.get('input')!r}: {first['msg']}{hint}", where=source) from None


def _nearest(error: Any) -> str:
    """Return the choice that a value outside of a few choices may have meant, as the end of a message."""
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    near = difflib.get_close_matches(str(error["input"]), choices, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _known_keys(parents: Sequence[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for name in parents:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def _list_keys(parents: Sequence[str]) -> str:
    place = f"[{'.'.join(parents)}]" if parents else "the top level"
    return f"keys of {place}: {', '.join(_known_keys(parents))}"


def _put(data: Json, key: str, value: object, source: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"'{name}' in '{key}' is not a section", where=source)
    data[last] = value


def _parse_value(text: str) -> object:
    """Read a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
