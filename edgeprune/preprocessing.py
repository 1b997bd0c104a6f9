"""What a program has to do to its raw data before the network takes it, as the user states it.

Owns the keys of `preprocessing()` in a workload and of a `--preprocessing` file, and their checks. Does not process any
data: the description goes into files and bundles, where other programs read it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.values import Json

Kind = Literal["features", "image", "audio", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How one input is made: `(raw * scale - mean) / std`, each one number or one for every channel; empty means none.

    `sample_rate` is in Hz. `vocabulary` is the number of tokens. `description` is a sentence for people.
    """

    kind: Kind = "features"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    sample_rate: float | None = None
    vocabulary: int | None = None
    description: str = ""

    def as_dict(self) -> Json:
        """Return the fields that say something."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value not in ((), None, "") and (name, value) != ("kind", "features")
        }


KEYS = tuple(field.name for field in dataclasses.fields(Preprocessing))


def parse_preprocessing(value: Any, inputs: Sequence[str], where: str) -> dict[str, Preprocessing]:
    """Return the preprocessing of every input that the user speaks of, by the input's name.

    Args:
        value: A dict of `KEYS` for the first input, or a dict of such dicts by the names of inputs.
        inputs: Names of the network's inputs, in order.
        where: What a message names as the place.

    Raises:
        ConfigError: A key is unknown, or a value is of another type or not finite.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"preprocessing is {type(value).__name__}, not a dict", where=where, fix='return {"mean": [0.5], ...}'
        )
    if value and all(isinstance(item, Mapping) for item in value.values()):
        for name in value:
            if name not in inputs:
                raise ConfigError(
                    f"preprocessing names the input '{name}'{_near(name, inputs)}",
                    where=where,
                    fix=f"the inputs are {', '.join(inputs)}",
                )
        return {name: _parsed(item, f"{name}.", where) for name, item in value.items()}
    return {inputs[0]: _parsed(value, "", where)} if value else {}


def read_preprocessing(path: Path, inputs: Sequence[str]) -> dict[str, Preprocessing]:
    """Return what a TOML file says, with the same keys; a table of its own for every input where there are several.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: A key is unknown, or a value is of another type.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResolveError(f"{path} is not TOML: {error}", fix="write lines such as  mean = [0.5]") from error
    return parse_preprocessing(value, inputs, str(path))


def parse_labels(value: Any, where: str) -> tuple[str, ...]:
    """Return the labels of a network's classes in order.

    Raises:
        ConfigError: They are not strings of one line each, or there are none.
    """
    labels = tuple(value) if isinstance(value, list | tuple) else ()
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ConfigError("labels are not a list of strings", where=where, fix='return ["cat", "dog"]')
    for number, label in enumerate(labels):
        if len(label.splitlines()) != 1 or not label.strip():
            raise ConfigError(f"label {number} is {label!r}, not one line of text", where=where, fix="rename the label")
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the lines of a file of labels, one a line.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: A line is empty, or there is none.
    """
    try:
        return parse_labels(path.read_text(encoding="utf-8").splitlines(), str(path))
    except OSError as error:
        raise ResolveError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ResolveError(f"{path} is not UTF-8 text: {error}", fix="save it as UTF-8, one label a line") from error


def _parsed(value: Mapping[Any, Any], prefix: str, where: str) -> Preprocessing:
    for key in value:
        if key not in KEYS:
            raise ConfigError(
                f"unknown key '{prefix}{key}' in preprocessing{_near(str(key), KEYS)}",
                where=where,
                fix=f"the keys are {', '.join(KEYS)}",
            )
    found = Preprocessing(**{key: _value(key, item, prefix + key, where) for key, item in value.items()})
    if any(number == 0 for number in (*found.std, *found.scale)):
        raise ConfigError(f"{prefix}std and scale cannot be 0", where=where, fix="leave the key out for none")
    several = {len(numbers) for numbers in (found.mean, found.std, found.scale) if len(numbers) > 1}
    if len(several) > 1:
        raise ConfigError(
            f"{prefix}mean, std and scale have different lengths: {', '.join(map(str, sorted(several)))}",
            where=where,
            fix="give one number, or one for every channel",
        )
    return found


def _value(key: str, value: Any, name: str, where: str) -> Any:
    if key in ("mean", "std", "scale"):
        numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
        if numbers and all(_finite(number) for number in numbers):
            return tuple(float(number) for number in numbers)
        wanted = "a finite number or a list of such"
    elif key == "sample_rate":
        if _finite(value) and value > 0:
            return float(value)
        wanted = "a positive number of Hz"
    elif key == "vocabulary":
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        wanted = "the number of tokens"
    elif key == "kind":
        if value in get_args(Kind):
            return value
        wanted = f"one of {', '.join(get_args(Kind))}"
    else:
        if isinstance(value, str):
            return value
        wanted = "a text"
    raise ConfigError(f"preprocessing: {name} = {value!r} is not {wanted}", where=where, fix=f"give {wanted}")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
