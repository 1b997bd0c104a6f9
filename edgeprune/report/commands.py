"""What each command prints at the end, as text: the result, then the next command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.report import quantities as q
from edgeprune.report.stages import metrics_text, output_lines, zeros_text
from edgeprune.report.text import bench_table, blocks_table, checks_table, compress_table, inspect_table, table, wrapped
from edgeprune.values import Json

if TYPE_CHECKING:
    from edgeprune.targets import Target

_WEIGHTS = 12  # rows of a table of weights


def run_text(result: Json, folder: str, width: int) -> str:
    """Return what `compress` ends with: the table, the verdict, the report and the next command."""
    source = result["workload"]["source"]
    other = 0.75 if result["settings"]["prune"]["ratio"] < 0.6 else 0.25
    precisions = ",".join((result["settings"].get("export") or {}).get("precisions") or ("fp32",))
    lower = f" --precision {precisions}" if precisions != "fp32" else ""
    return "\n".join(
        [
            compress_table(result, width),
            f" verdict: {result['verdict']['text']}",
            f" report: {Path(folder) / 'report.html'}",
            f" next: edgeprune compress {source} --ratio {other}{lower}   then  edgeprune report runs/* -o report.html",
        ]
    )


def inspect_text(found: Json, width: int) -> str:
    """Return what `inspect` shows of a network."""
    if found["advice"] is None:
        following = f"next: edgeprune export {found['workload']} -o {Path(found['workload']) / 'model.onnx'}"
    else:
        following = f"next: {found['advice']['command']}\n(edgeprune advise {found['workload']}  says why)"
    lines = [inspect_table(found["network"], found["groups"], width)]
    if found.get("blocks"):
        lines.append(blocks_table(found["blocks"], found["network"]["params"], width))
    return "\n".join([*lines, following])


def advice_text(found: Json, width: int) -> str:
    """Return what `advise` shows: one paragraph for each recommendation, and the command that follows from all."""
    facts = found["facts"]
    network = f"a network of {q.count(facts['params'])} parameters, most of its work {facts['family']}"
    samples = f", {facts['samples']:,} training samples" if facts["samples"] is not None else ""
    lines = [f"{network}{samples}"]
    for one in found["advice"]:
        words = f"{' '.join(one['words'])}  " if one["words"] else ""
        lines += wrapped(f"{words}{one['text']}", width, "    ", first="  ")
        lines += wrapped(f"{one['figures']} [{one['source']}]", width, "    ", first="    ")
    return "\n".join([*lines, f"next: {found['command']}"])


def artifact_text(found: Json, width: int) -> str:
    """Return what `inspect` shows of an `.onnx` or `.tflite` file."""
    artifact = found["artifact"]
    lines = [f"{artifact['path']}  {artifact['format']} {artifact['precision']}  {q.size(artifact['size_bytes'])}"]
    for side in ("inputs", "outputs"):
        lines += [f" {side[:-1]:<8}{spec['name']}  {q.shape(spec['shape'])} {spec['dtype']}" for spec in artifact[side]]
    lines += [f" {key}: {value}" for key, value in sorted(artifact["metadata"].items())]
    lines += [f" sha256: {artifact['sha256']}", *sizes_lines(found["sizes"], width)]
    return "\n".join([*lines, f"next: edgeprune bench {artifact['path']}"])


def sizes_lines(sizes: Json, width: int) -> list[str]:
    """Return the sizes of a file: compressed, and its largest weights."""
    weights, rest = sizes["weights"][:_WEIGHTS], sizes["weights"][_WEIGHTS:]
    rows = [
        [
            row["name"],
            row["operator"],
            row["dtype"],
            q.shape(row["shape"]),
            q.size(row["size_bytes"]),
            _share(row),
        ]
        for row in weights
    ]
    small = f", {q.size(sizes['lzma_bytes'])} with LZMA" if sizes["lzma_bytes"] is not None else ""
    lines = [
        f" compressed: {q.size(sizes['deflate_bytes'])} with deflate (a zip, an app package){small}",
        f" weights: {q.size(sizes['weights_bytes'])} of {q.size(sizes['size_bytes'])}",
    ]
    if rows:
        lines.append(table(["weight", "used by", "dtype", "shape", "size", "share"], rows, "llllrr", width))
    if rest:
        lines.append(f" and {len(rest)} smaller ones, {q.size(sum(row['size_bytes'] for row in rest))}")
    return lines


def _share(row: Json) -> str:
    return f"{row['share']:.1%}"


def prune_text(done: Json) -> str:
    """Return what `prune` ends with."""
    folder, network = done["folder"], done["network"]
    before, after = network["params"]["dense"], network["params"]["pruned"]
    macs = f"{q.macs(network['macs']['dense'])} -> {q.macs(network['macs']['pruned'])}"
    limit = f"{done['check']['tolerance']:.0e}"
    lines = [
        f" {network['name']}  {q.count(before)} -> {q.count(after)} params, {macs}",
        f" equals the masked dense network: max |diff| {q.difference(done['check']['max_abs'])}, limit {limit}",
        *(f" {line}" for line in output_lines(done["output"], network["name"])),
        f" wrote {folder}: {', '.join(done['files'])}",
    ]
    gone = [row["name"] for row in done.get("blocks") or () if row["removed"]]
    if gone:
        lines.insert(1, f" removed whole: {', '.join(gone)}")
    if done.get("sparsity"):
        lines.insert(-1, f" {zeros_text(done['sparsity'])}: a smaller compressed file, no faster dense runtime")
    if done["no_program"] is not None:
        lines.append(f" no pruned.pt2 ({done['no_program']}); plan.json and weights.safetensors rebuild the network")
    lines.append(f" next: edgeprune finetune {folder}   or  edgeprune export {folder} -o {Path(folder) / 'model.onnx'}")
    return "\n".join(lines)


def finetune_text(done: Json) -> str:
    """Return what `finetune` ends with."""
    lines = [f" {name:<12} {metrics_text(values)}" for name, values in done["metrics"].items() if values]
    if done.get("sparsity"):
        lines.append(f" {zeros_text(done['sparsity'])}: a smaller compressed file, no faster dense runtime")
    epochs = len(done["history"])
    lines.append(f" wrote {Path(done['folder']) / 'finetuned.safetensors'} after {epochs} epoch{'s' * (epochs != 1)}")
    lines.append(f" next: edgeprune export {done['folder']} -o {Path(done['folder']) / 'model.onnx'}")
    return "\n".join(lines)


def export_text(done: Json, width: int) -> str:
    """Return what `export` ends with."""
    artifact = done["artifact"]
    return "\n".join(
        [
            checks_table(done["checks"], width),
            *_quantisation(done.get("quantisation")),
            f" wrote {artifact['path']} {q.size(artifact['size_bytes'])}",
            f" next: edgeprune bench {artifact['path']}",
        ]
    )


def _quantisation(found: Json | None) -> list[str]:
    """Return how the ranges of an int8 file were chosen, and what in it stays in float32, the dearest first."""
    if found is None:
        return []
    chosen = f"{found['method']}, equalised" if found["equalised"] else found["method"]
    levels = ", ".join(f"{method} {q.decibels(level)}" for method, level in found["methods"].items())
    lines = [f" ranges by {chosen}; outputs with each method: {levels}"]
    if found["kept"]:
        parts = [part["name"] for part in found["ranking"][: found["kept"]]]
        more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
        lines.append(
            f" in float32, the dearest first: {', '.join(parts[:6])}{more}: {q.decibels(found['sqnr_db'])} now"
        )
    return lines


def verification_text(found: Json, width: int) -> str:
    """Return what `verify` shows: every check, and whether all passed."""
    verdict = "near each other" if any(q.verdict(check) == "near" for check in found["checks"]) else "equal"
    verdict = verdict if found["passed"] else "NOT equal"
    return f"{checks_table(found['checks'], width)}\n {found['first']} and {found['second']} are {verdict}"


def measurements_text(found: Json, width: int) -> str:
    """Return what `bench` and `compare` show: the table, and where nothing was compared, how to."""
    lines = [bench_table(found["measurements"], found["comparisons"], width)]
    if not found["comparisons"]:
        lines.append(" next: name a second file of the same format to compare it with")
    return "\n".join(lines)


def package_text(done: Json) -> str:
    """Return what `package` ends with: the files, what the bundle holds, and how to use it."""
    cells = [[row["name"], row["precision"], q.size(row["size_bytes"])] for row in done["files"]]
    folder = Path(done["bundle"]).stem
    run = f"unzip {Path(done['bundle']).name} -d {folder}  and  python3 {folder}/predict.py"
    more = [f"{done['samples']} samples", *([f"{done['labels']} labels"] if done["labels"] else [])]
    return "\n".join(
        [
            table(["file", "precision", "size"], cells, "llr", 100),
            f" wrote {done['bundle']} {q.size(done['size_bytes'])}: {len(done['contents'])} files, {', '.join(more)}",
            " it was unpacked and run: every output is as expected",
            f" next: copy it to the device, then  {run}",
        ]
    )


def targets_text(targets: Sequence[Target], width: int) -> str:
    """Return the list of device profiles."""
    cells = [
        [target.name, target.transport, target.arch, ", ".join(target.runtimes), str(target.align), target.description]
        for target in targets
    ]
    header = ["target", "reach", "arch", "runtimes", "align", "description"]
    return f"{table(header, cells, 'llllrl', width)}\nnext: edgeprune targets NAME"


def target_text(target: Target) -> str:
    """Return one device profile, a line for each of its values."""
    values = target.model_dump(mode="json", exclude_none=True)
    size = max(map(len, values))
    return "\n".join(f" {key:<{size}}  {_plain(value)}" for key, value in values.items())


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
