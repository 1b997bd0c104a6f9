"""The steps that measure and show: bench, compare, report. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import rundir
from edgeprune.config import RunConfig
from edgeprune.errors import ConfigError, ResolveError
from edgeprune.pipeline.events import Event, Listener
from edgeprune.targets import find_target
from edgeprune.values import Artifact, Json

if TYPE_CHECKING:
    from edgeprune.bench import BenchProgress, Comparison, Measurement

ARTIFACT_SUFFIXES = (".onnx", ".tflite")


def bench(files: Sequence[str], config: RunConfig, *, baseline: str | None, listen: Listener) -> Json:
    """Measure files against each other on a target; `config.output` is a `.jsonl` file to append to.

    Args:
        baseline: The file that the others are compared with; see `roles_of`.

    Raises:
        ResolveError: A file or the target does not exist.
        DeviceError: The target cannot be reached or failed.
    """
    from edgeprune.bench import append_results, measure
    from edgeprune.devices import connect

    target = find_target(config.target)
    connect(target)
    chosen = list(files) if baseline is None or baseline in files else [baseline, *files]
    artifacts = [open_artifact(Path(name)) for name in chosen]
    listen(Event(stage="bench", state="begin", facts={"text": target.name}))
    rows = measure(
        artifacts,
        target,
        config.bench,
        roles=roles_of(artifacts, baseline),
        on_progress=bench_progress(listen),
        seed=config.seed,
    )
    if config.output is not None:
        append_results(Path(config.output), rows)
    failed = [row.error for row in rows if row.error]
    listen(Event(stage="bench", state="done", facts={"rows": len(rows), "failed": failed}))
    return {
        "target": target.name,
        "measurements": [row.as_dict() for row in rows],
        "comparisons": [value.as_dict() for value in compare_rows(rows, config.bench.practical)],
    }


def bench_progress(listen: Listener) -> Callable[[BenchProgress], None]:
    """Return a progress function for `measure` that tells the listener."""

    def report(value: BenchProgress) -> None:
        listen(Event(stage="bench", state="progress", facts={"text": value.text}, done=value.fraction, total=1.0))

    return report


def roles_of(artifacts: Sequence[Artifact], baseline: str | None = None) -> list[str]:
    """Return which file of each format is the baseline.

    That is the named one, else one called `baseline.*`, else the first in float32, else the first.
    """
    chosen: dict[str, int] = {}
    for form in {artifact.format for artifact in artifacts}:
        indices = [index for index, artifact in enumerate(artifacts) if artifact.format == form]
        named = [index for index in indices if artifacts[index].path == baseline]
        called = [index for index in indices if Path(artifacts[index].path).stem == "baseline"]
        exact = [index for index in indices if artifacts[index].precision == "fp32"]
        chosen[form] = (named or called or exact or indices)[0]
    return ["baseline" if chosen[item.format] == index else "model" for index, item in enumerate(artifacts)]


def open_artifact(path: Path) -> Artifact:
    """Return what an `.onnx` or `.tflite` file is: digest, size, inputs and outputs.

    Raises:
        ResolveError: There is no such file, or it cannot be read.
    """
    if path.suffix not in (*ARTIFACT_SUFFIXES, ".ort"):
        raise ResolveError(f"{path} is none of .onnx, .ort and .tflite")
    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="edgeprune export writes one")
    from edgeprune.export import read_artifact

    return read_artifact(path)


def inspect_artifact(path: Path) -> Json:
    """Return what an `.onnx` or `.tflite` file says of itself, and its sizes: compressed, and by weight.

    Raises:
        ResolveError: The file cannot be read.
    """
    artifact = open_artifact(path)
    from edgeprune.export.sizes import sizes_of

    return {"artifact": artifact.as_dict(), "sizes": sizes_of(path).as_dict()}


def compare_rows(rows: Sequence[Measurement], practical: float) -> list[Comparison]:
    """Compare every measured row with the baseline of its format and threads; failed rows are left out."""
    from edgeprune.bench import compare as compare_measurements

    usable = [row for row in rows if row.quality != "failed"]
    found = []
    for baseline in usable:
        if baseline.role == "baseline":
            place = (baseline.artifact["format"], baseline.threads)
            others = [row for row in usable if (row.artifact["format"], row.threads) == place]
            found += [
                compare_measurements(baseline, row, practical=practical) for row in others if row.role != "baseline"
            ]
    return found


def compare(files: Sequence[str], *, allow: Sequence[str], practical: float) -> Json:
    """Compare measurements: within one file with its baseline, else each later file with the first.

    Args:
        files: `.jsonl` files of `bench`, or run directories.
        allow: Differences to accept, of `threads`, `runtime`, `device`, `batch`, `precision`.

    Raises:
        ResolveError: A file cannot be read or holds no measurement.
        ConfigError: The measurements were made in different ways.
    """
    from edgeprune.bench import compare as compare_measurements

    sets = [_latest(_results_file(name)) for name in files]
    if len(sets) == 1:
        rows = list(sets[0].values())
        comparisons = compare_rows(rows, practical)
        if not comparisons:
            raise ConfigError(
                f"{files[0]} holds nothing to compare with a baseline of the same format and threads",
                fix="measure two files at once: edgeprune bench model.onnx baseline.onnx -o results.jsonl",
            )
    else:
        rows = [row for found in sets for row in found.values()]
        comparisons = [
            compare_measurements(before, after, practical=practical, allow=tuple(allow))
            for later in sets[1:]
            for before, after in _matched(sets[0], later, allow)
        ]
        if not comparisons:
            raise ConfigError(
                f"{files[0]} and {', '.join(files[1:])} have no row of the same role, format, precision and threads",
                fix="--allow threads,precision compares different numbers of threads, and precisions",
            )
    used = {row_id for value in comparisons for row_id in (value.baseline_row, value.row)}
    return {
        "measurements": [row.as_dict() for row in rows if row.row_id in used],
        "comparisons": [value.as_dict() for value in comparisons],
    }


def report(runs: Sequence[str], output: Path) -> Json:
    """Write one report over several runs.

    Raises:
        ResolveError: One of them is no finished run.
    """
    from edgeprune.report import render

    results = []
    for name in runs:
        folder = Path(name)
        rundir.require_run(folder)
        path = folder / rundir.RESULT
        try:
            results.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ResolveError(f"{folder} is not finished", fix=f"edgeprune resume {folder}") from None
        except (OSError, ValueError) as error:
            raise ResolveError(f"cannot read {path}: {error}", fix=f"edgeprune resume {folder}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_atomic(output, render(results))
    return {"report": str(output), "runs": list(runs)}


def _results_file(name: str) -> Path:
    path = Path(name) / rundir.ROWS if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="edgeprune bench ... -o results.jsonl writes one")
    return path


# Role, format, precision and number of threads: what two rows have in common that are worth comparing.
Place = tuple[str, str, str, int]


def _latest(path: Path) -> dict[Place, Measurement]:
    """Return the newest row of every place of a file."""
    from edgeprune.bench import read_results

    rows: dict[Place, Measurement] = {}
    for row in read_results(path):
        rows[row.role, row.artifact["format"], row.artifact.get("precision", "fp32"), row.threads] = row
    if not rows:
        raise ResolveError(f"{path} holds no measurement", fix="edgeprune bench ... -o results.jsonl writes one")
    return rows


def _matched(
    first: dict[Place, Measurement], second: dict[Place, Measurement], allow: Sequence[str]
) -> list[tuple[Measurement, Measurement]]:
    return [
        (before, after)
        for (role, form, precision, threads), before in first.items()
        for other, after in second.items()
        if (role, form) == other[:2]
        and (precision == other[2] or "precision" in allow)
        and (threads == other[3] or "threads" in allow)
    ]
