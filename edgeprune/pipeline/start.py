"""The first steps of a new user: a workload and a settings file to edit, and the settings of the demonstration."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from edgeprune import rundir
from edgeprune.config import BenchConfig, ExportConfig, RunConfig, Section, load_config
from edgeprune.demo import WORKLOAD, template
from edgeprune.errors import ConfigError, StorageError
from edgeprune.values import Json

SETTINGS_FILE = "edgeprune.toml"
WORKLOAD_FILE = "workload.py"


def init(folder: Path) -> Json:
    """Write `workload.py` and `edgeprune.toml` into a folder; nothing is overwritten.

    Raises:
        ConfigError: One of them exists.
        StorageError: They cannot be written.
    """
    for name in (WORKLOAD_FILE, SETTINGS_FILE):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} exists, and nothing is overwritten", fix="edgeprune init ANOTHER_FOLDER"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {folder}: {error.strerror}") from error
    rundir.write_atomic(folder / WORKLOAD_FILE, template())
    rundir.write_atomic(folder / SETTINGS_FILE, settings_template())
    return {"folder": str(folder), "files": [str(folder / WORKLOAD_FILE), str(folder / SETTINGS_FILE)]}


def settings_template() -> str:
    """Return a settings file with every setting at its default; what is unset by default is a comment."""
    lines = [
        "# Settings of edgeprune, read by every command that runs in this folder.",
        "# The command line comes first:  -s section.key=value",
        "",
    ]
    sections = []
    defaults = RunConfig(workload=WORKLOAD_FILE)
    for name in type(defaults).model_fields:
        value = getattr(defaults, name)
        if isinstance(value, Section):
            sections += ["", f"# {_first_paragraph(value)}", f"[{name}]"]
            sections += [_setting(key, getattr(value, key)) for key in type(value).model_fields]
        else:
            lines.append(_setting(name, value))
    return "\n".join([*lines, *sections]) + "\n"


def demo_config(output: str | None) -> RunConfig:
    """Return the settings of `edgeprune demo`: the embedded workload, also in int8, with a short benchmark."""
    bench = BenchConfig(processes=3, min_seconds=0.2, max_seconds=2.0, warmup_seconds=0.1)
    return RunConfig(workload=WORKLOAD, output=output, export=ExportConfig(precisions=("fp32", "int8")), bench=bench)


def read_settings(overrides: tuple[str, ...], values: Json) -> RunConfig:
    """Return the settings of `edgeprune.toml` in the working directory, changed by the command line.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range.
    """
    path = Path(SETTINGS_FILE)
    return load_config(path if path.is_file() else None, overrides, values)


def _setting(key: str, value: object) -> str:
    if value is None:
        return f"# {key} ="
    if value == {}:
        return f"# {key} = {{}}"
    return f"{key} = {json.dumps(value)}"


def _first_paragraph(section: Section) -> str:
    return " ".join((inspect.getdoc(type(section)) or "").partition("\n\n")[0].split())
