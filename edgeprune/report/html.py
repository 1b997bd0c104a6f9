"""The HTML report: one self-contained file that needs no network.

Owns the file itself: the template, the embedded plotly.js, the embedded raw results, escaping and atomic writing. What
the sections say is decided in `sections.py`, what the plots show in `plots.py`.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeprune.errors import ConfigError, StorageError
from edgeprune.report import sections
from edgeprune.report.page import Page
from edgeprune.report.search import sensitivity_page
from edgeprune.values import Json

SCHEMA_VERSION = 1
EMBEDDED_BYTES = 600_000


def render(results: Json | Sequence[Json]) -> str:
    """Return the report of one run, or of several with a table and a Pareto front across them.

    Args:
        results: The dict of one `result.json`, or several of them.

    Raises:
        ConfigError: There is no result, or one was written with another schema version.
    """
    runs = [results] if isinstance(results, dict) else list(results)
    _check(runs)
    embedded, step = embed(runs)
    return _rendered(sections.page(runs), embedded, step)


def render_sensitivity(found: Json) -> str:
    """Return the page of one sensitivity, the dict of its `sensitivity.json`."""
    return _rendered(sensitivity_page(found), [_finite(found)], 1)


def _rendered(page: Page, embedded: list[Json], step: int) -> str:
    figures = {figure.name: figure.as_dict() for figure in page.figures}
    text: str = _template().render(
        page=page, figures=_finite(figures), results=embedded, thinned=step, plotly=_script(_plotly())
    )
    return text.encode("utf-8", errors="replace").decode("utf-8")


def write_report(results: Json | Sequence[Json], path: str | Path) -> Path:
    """Write the report in one step: the file is complete or, after an error, what it was before.

    Raises:
        ConfigError: There is no result, or one was written with another schema version.
        StorageError: The file cannot be written.
    """
    target = Path(path)
    text = render(results)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {target}: {error.strerror}", fix="name a folder that exists and has space:  -o PATH"
        ) from error
    return target


def _check(runs: Sequence[Json]) -> None:
    if not runs:
        raise ConfigError("there is no result to report", fix="name run directories that hold a result.json")
    for run in runs:
        if run.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"result '{run.get('name')}' has schema version {run.get('schema_version')}, "
                f"this edgeprune reads {SCHEMA_VERSION}",
                fix="write the report with the edgeprune that made the run, or run it again",
            )


def embed(runs: Sequence[Json], limit_bytes: int = EMBEDDED_BYTES) -> tuple[list[Json], int]:
    """Return copies of the results that fit into the page, and the step by which samples were thinned.

    Only raw samples are ever thinned, evenly, and each thinned measurement says so in `samples_kept_every`. Values
    that are not finite become null, because JSON has no other word for them.
    """
    whole = [_finite(run) for run in runs]
    step = max(1, math.ceil(_length(list(_samples(whole))) / limit_bytes))
    if step == 1:
        return whole, 1
    thinned = copy.deepcopy(whole)
    for measurement in _measurements(thinned):
        measurement["samples_kept_every"] = step
        for sample in measurement.get("samples") or []:
            for key in ("wall_s", "cpu_s"):
                sample[key] = (sample.get(key) or [])[::step]
    return thinned, step


def _measurements(runs: Sequence[Json]) -> Iterator[Json]:
    for run in runs:
        yield from run.get("measurements") or []


def _samples(runs: Sequence[Json]) -> Iterator[Json]:
    for measurement in _measurements(runs):
        yield from measurement.get("samples") or []


def _length(value: object) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _finite(value: Any) -> Any:
    """Copy plain data, with None in place of numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _template() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("edgeprune.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("template.html")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _script(text: str) -> Any:
    """Return JavaScript as it may stand inside a script element: nothing in it can end the element early."""
    from markupsafe import Markup

    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
