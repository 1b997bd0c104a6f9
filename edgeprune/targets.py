"""Device profiles: one TOML file per device class, as data.

Finds the profiles that ship with the package (wheel, editable install and bare checkout) and the user's own.
Says which files a target's runtimes get wrong or cannot open. Knows nothing about how a device is reached.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.values import Format, Precision

TFLITE_RUNTIME_PYTHON = "EDGEPRUNE_TFLITE_RUNTIME_PYTHON"


class Target(BaseModel):
    """A class of devices. Every figure has a source; addresses live in the environment, never in a profile.

    `tflite_package` is what opens a .tflite file there. Where that is tflite-runtime, which cannot live beside numpy 2,
    `tflite_python` is an interpreter on this machine that has it, so that files are verified in it before they leave.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    name: str
    description: str
    transport: Literal["local", "ssh", "adb"]
    arch: str
    cores: int | None = Field(None, ge=1)
    memory_bytes: int | None = Field(None, ge=1)
    runtimes: tuple[Literal["onnxruntime", "tflite"], ...] = Field(min_length=1)
    align: int = Field(ge=1)
    threads: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    cooldown_s: float = Field(0.0, ge=0)
    address_env: str | None = None
    source: str
    tflite_package: Literal["ai-edge-litert", "tflite-runtime"] = "ai-edge-litert"
    tflite_python: str | None = None


def profiles_folder() -> Path:
    """Return the folder that holds the shipped profiles."""
    packaged = Path(str(files("edgeprune") / "_targets"))
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "targets"


def list_targets() -> list[Target]:
    """Return the shipped profiles in order of name."""
    return [read_target(path) for path in sorted(profiles_folder().glob("*.toml"))]


def find_target(name: str) -> Target:
    """Return the profile of a shipped name or of a `.toml` file.

    Raises:
        ResolveError: No such target; the message lists those that exist.
        ConfigError: The file is not a valid profile.
    """
    if name.endswith(".toml"):
        return read_target(Path(name))
    path = profiles_folder() / f"{name}.toml"
    known = sorted(p.stem for p in profiles_folder().glob("*.toml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ResolveError(f"no target '{name}'{hint}", fix=f"targets: {', '.join(known)}, or a FILE.toml of yours")
    return read_target(path)


def read_target(path: Path) -> Target:
    """Return the profile in a file.

    Raises:
        ResolveError: The file cannot be read.
        ConfigError: It is not TOML, or a key is unknown, missing or out of range.
    """
    try:
        return Target.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ResolveError(
            f"cannot read target {path}: {error.strerror}", fix="edgeprune targets lists them"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"target {path.name}: {key}: {first['msg']}", where=str(path)) from None


def refused(precision: Precision, format: Format, target: Target) -> str | None:
    """Return why a target cannot have a file of a precision and format; None where it can."""
    if format == "onnx" and "onnxruntime" not in target.runtimes:
        return f"{target.name} has no ONNX Runtime"
    if format == "tflite" and "tflite" not in target.runtimes:
        return f"{target.name} has no TFLite runtime"
    if format == "tflite" and precision == "int8-dynamic" and target.tflite_package == "tflite-runtime":
        return (
            "tflite-runtime 2.14 runs dynamic int8 files of today's quantiser with wrong results and no error "
            "(measured on 13 networks: 12 at 2 dB or less, one does not open); use int8-weights or int8"
        )
    return None


def tflite_runtime_python(target: Target | None = None) -> str | None:
    """Return the interpreter on this machine that has tflite-runtime: the environment's, else the target's, else none.

    Raises:
        ConfigError: The one that is named is no executable file.
    """
    from_environment = os.environ.get(TFLITE_RUNTIME_PYTHON)
    python = from_environment or (target.tflite_python if target is not None else None)
    if python and not (os.path.isfile(python) and os.access(python, os.X_OK)):
        place = TFLITE_RUNTIME_PYTHON if from_environment else f"target {target.name if target else ''}: tflite_python"
        raise ConfigError(
            f"{place}: '{python}' is not an interpreter",
            fix="python3.11 -m venv FOLDER; FOLDER/bin/pip install tflite-runtime==2.14.0 'numpy<2'",
        )
    return python or None
