"""The step that packs files for a device: a run's or single ones, with samples, script, snippets and checksums.

A bundle is tried before it gets its name: it is unpacked, and its script has to find every output as expected.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import load_config
from edgeprune.errors import ConfigError, ResolveError, StorageError, VerificationError
from edgeprune.pipeline.events import Event, Listener
from edgeprune.pipeline.measuring import ARTIFACT_SUFFIXES
from edgeprune.pipeline.networks import stated_labels, stated_preprocessing
from edgeprune.preprocessing import Preprocessing, read_labels, read_preprocessing
from edgeprune.values import Json, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from edgeprune.bundle import BundleFile
    from edgeprune.pipeline.folders import Loaded

    Arrays = list[np.ndarray[Any, Any]]

SAMPLES = 4
INPUT, LABELS = "input.json", "labels.txt"
# The largest difference from the network, over the largest output, that a file may have; integers may be far off.
_LIMITS = {"fp32": 1e-3, "fp16": 2e-2}
_QUANTISED_LIMIT = 0.5
# Devices round differently: an output may differ twice as far as here, and at least so far.
_ROOM, _LEAST = 2.0, {"fp32": 1e-3, "fp16": 1e-2}
_QUANTISED_LEAST = 5e-2
_TRIAL_LIMIT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asks of a bundle beside its files."""

    output: Path
    baseline: bool = False
    labels: str | None = None
    preprocessing: str | None = None
    workload: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """What the samples come from: the user's network and the inputs, or nothing but the files."""

    loaded: Loaded | None
    name: str
    report: Path | None = None


def package(sources: Sequence[str], wishes: Wishes, *, listen: Listener) -> Json:
    """Pack a finished run, or `.onnx` and `.tflite` files of one network, as a zip that runs on a device.

    Raises:
        ResolveError: The run is not finished, or a file is missing or was changed since.
        ConfigError: There is nothing to pack, or labels or preprocessing do not fit.
        VerificationError: A file, or the unpacked bundle, does not give the network's outputs.
        StorageError: The zip cannot be written; nothing is left behind.
    """
    from edgeprune.bundle import read_file

    if wishes.output.suffix != ".zip":
        raise ConfigError(f"'{wishes.output}' does not end in .zip", fix="-o model.zip")
    paths, network = _chosen(sources, wishes)
    listen(Event(stage="package", state="begin", subject=str(wishes.output)))
    files = sorted((read_file(path) for path in paths), key=lambda file: (file.role == "baseline", file.name))
    _check_alike(files)
    labels, preprocessing = _stated(network, files[0].network_inputs, wishes)
    samples, expected, source = _samples(network, files)
    contents: dict[str, bytes | Path] = {file.name: file.path for file in files}
    contents |= _sample_files(samples, expected)
    if network.report is not None:
        contents[rundir.REPORT] = network.report
    if labels:
        contents[LABELS] = "".join(f"{label}\n" for label in labels).encode()
    bundle = _described(network.name, files, preprocessing, labels, samples, expected, source)
    contents |= _texts(bundle)
    _write(wishes.output, contents)
    done = {
        "bundle": str(wishes.output),
        "sha256": rundir.file_digest(wishes.output),
        "size_bytes": wishes.output.stat().st_size,
        "contents": sorted(contents),
        "labels": len(labels),
        "samples": len(samples),
        "expected": source,
        "files": [_row(file, bundle["files"][file.name]) for file in files],
    }
    listen(Event(stage="package", state="done", subject=str(wishes.output), facts=done))
    return done


def _chosen(sources: Sequence[str], wishes: Wishes) -> tuple[list[Path], _Network]:
    """Return the files to pack and the network they come from."""
    from edgeprune.pipeline.folders import open_network, open_pruned

    paths = [Path(source) for source in sources]
    if len(paths) == 1 and paths[0].is_dir():
        if wishes.workload is not None:
            raise ConfigError("a run names its workload itself", fix="leave out --workload")
        files, result = _run_files(paths[0], wishes.baseline)
        report = paths[0] / rundir.REPORT
        return files, _Network(
            loaded=open_pruned(paths[0]), name=result["workload"]["name"], report=report if report.is_file() else None
        )
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder among several sources", fix="name one run, or files")
        if path.suffix not in ARTIFACT_SUFFIXES:
            raise ConfigError(f"{path} is neither a run nor .onnx or .tflite", fix="edgeprune package runs/NAME")
        if not path.is_file():
            raise ResolveError(f"no file {path}", fix="edgeprune export writes one")
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two files are called {twice}, and a bundle holds one", fix="rename one of them")
    loaded = open_network(wishes.workload, trust_pickle=wishes.trust_pickle) if wishes.workload is not None else None
    return paths, _Network(loaded=loaded, name=paths[0].stem)


def _run_files(folder: Path, baseline: bool) -> tuple[list[Path], Json]:
    """Return the files of a finished run, as it wrote them, and its result."""
    rundir.require_run(folder)
    again = f"edgeprune resume {folder}"
    load_config(folder / rundir.SETTINGS)
    try:
        result: Json = json.loads((folder / rundir.RESULT).read_text(encoding="utf-8"))
        entries = [entry["artifact"] for entry in result["artifacts"]]
    except FileNotFoundError:
        raise ResolveError(f"{folder} is not finished", fix=again) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResolveError(f"cannot read {folder / rundir.RESULT}: {error}", fix=again) from error
    chosen = [entry for entry in entries if baseline or not entry["path"].startswith("baseline.")]
    if not chosen:
        raise ConfigError(f"{folder} holds no pruned file to pack", fix="--baseline packs the dense one")
    for entry in chosen:
        digest = rundir.file_digest(folder / entry["path"])
        if digest != entry["sha256"]:
            what = "is missing" if digest is None else "was changed after the run"
            raise ResolveError(f"{folder / entry['path']} {what}", where=str(folder / rundir.RESULT), fix=again)
    return [folder / entry["path"] for entry in chosen], result


def _check_alike(files: Sequence[BundleFile]) -> None:
    """Check that all files take and give the same, so that one specification holds for them."""
    first = files[0]
    for file in files[1:]:
        for side in ("network_inputs", "network_outputs"):
            shapes = [[(spec.name, spec.shape) for spec in getattr(one, side)] for one in (first, file)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"{first.name} and {file.name} have different {side.removeprefix('network_')}",
                    fix="pack them one by one, each into a bundle of its own",
                )
    fixed = sorted({file.batch for file in files if file.batch is not None})
    if len(fixed) > 1:
        raise ConfigError(f"the files have batches of {' and '.join(map(str, fixed))}", fix="pack them one by one")


def _stated(
    network: _Network, inputs: Sequence[TensorSpec], wishes: Wishes
) -> tuple[tuple[str, ...], dict[str, Preprocessing]]:
    """Return labels and preprocessing: of the files that were named, else of the workload."""
    names = [spec.name for spec in inputs]
    workload = network.loaded.workload if network.loaded is not None else None
    labels: tuple[str, ...] = ()
    found: dict[str, Preprocessing] = {}
    if wishes.labels is not None:
        labels = read_labels(Path(wishes.labels))
    elif workload is not None:
        labels = stated_labels(workload)
    if wishes.preprocessing is not None:
        found = read_preprocessing(Path(wishes.preprocessing), names)
    elif workload is not None:
        found = stated_preprocessing(workload, names)
    return labels, found


def _samples(network: _Network, files: Sequence[BundleFile]) -> tuple[list[Arrays], dict[str, list[Arrays]], str]:
    """Return inputs of the files' batch, the expected outputs of every role for each, and whose outputs they are."""
    from edgeprune.bundle import predict
    from edgeprune.export.feeds import draw

    batch = next((file.batch for file in files if file.batch is not None), 1)
    if network.loaded is None:
        samples = [draw(files[0].network_inputs, batch, seed) for seed in range(SAMPLES)]
        exact = min(files, key=lambda file: file.precision != "fp32")
        run, spec = predict.open_model(exact.path, exact.as_dict()), exact.as_dict()
        expected = {role: [predict.predict(run, spec, sample) for sample in samples] for role in _roles(files)}
        return samples, expected, f"those of {exact.name} where it was packed, on made-up inputs."
    samples, source = _true(network.loaded, files[0].network_inputs, batch)
    models = {"model": network.loaded.model, "baseline": network.loaded.dense}
    expected = {role: [_outputs(models[role], sample) for sample in samples] for role in _roles(files)}
    return samples, expected, f"those of the network in PyTorch, on {source}."


def _roles(files: Sequence[BundleFile]) -> list[str]:
    return sorted({file.role for file in files})


def _true(loaded: Loaded, specs: Sequence[TensorSpec], batch: int) -> tuple[list[Arrays], str]:
    """Return samples of the user's data, else of the example inputs, each of a whole batch."""
    import numpy as np

    from edgeprune.pipeline.networks import true_samples

    found = true_samples(loaded.workload, loaded.inputs)
    tensors = [tensor.numpy() for tensor in (found[0] if found else loaded.inputs)]
    source = "the first samples of the workload's data" if found else "the workload's example inputs"
    split = [spec.shape[:1] == (None,) for spec in specs]
    if len(tensors) != len(specs):
        raise ConfigError(f"the workload has {len(tensors)} inputs, the files have {len(specs)}")
    rows = next((len(array) for array, own in zip(tensors, split, strict=True) if own), batch)
    count = min(SAMPLES, max(rows // batch, 1))
    samples = []
    for start in range(0, count * batch, batch):
        chosen = np.minimum(np.arange(start, start + batch), rows - 1)
        samples.append([array[chosen] if own else array for array, own in zip(tensors, split, strict=True)])
    return samples, source


def _outputs(model: Any, sample: Arrays) -> Arrays:
    import torch

    from edgeprune.export.structure import flatten

    with torch.no_grad():
        leaves, _ = flatten(model.eval()(*(torch.from_numpy(array) for array in sample)))
    return [tensor.detach().numpy() for _, tensor in leaves]


def _sample_files(samples: Sequence[Arrays], expected: dict[str, list[Arrays]]) -> dict[str, bytes]:
    import numpy as np

    found = {}
    for number, sample in enumerate(samples):
        for role, arrays in {"input": sample, **{role: outputs[number] for role, outputs in expected.items()}}.items():
            for index, array in enumerate(arrays):
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                found[f"sample/{number}/{role}.{index}.npy"] = content.getvalue()
    return found


def _described(
    name: str,
    files: Sequence[BundleFile],
    preprocessing: dict[str, Preprocessing],
    labels: Sequence[str],
    samples: Sequence[Arrays],
    expected: dict[str, list[Arrays]],
    source: str,
) -> Json:
    """Return the content of `input.json`, with how far each output of each file may be from the expectation."""
    from edgeprune.bundle import specification

    folders = [f"sample/{number}" for number in range(len(samples))]
    bundle = specification(name, files, preprocessing=preprocessing, labels=labels, samples=folders, expected=source)
    for file in files:
        spec = bundle["files"][file.name]
        found = _differences(file, spec, samples, expected[file.role])
        for tensor, difference in zip(spec["outputs"], found, strict=True):
            tensor["tolerance"] = max(_ROOM * difference, _LEAST.get(file.precision, _QUANTISED_LEAST))
            floats = "float" in tensor["dtype"] or tensor["quantization"]
            if difference > _LIMITS.get(file.precision, _QUANTISED_LIMIT) and (floats or file.precision in _LIMITS):
                raise VerificationError(
                    f"{file.name} differs from the network on '{tensor['name']}': {difference:.1e} of the largest",
                    where=str(file.path),
                    fix="the workload is not the one that the file was made from; export the file again",
                )
    return bundle


def _differences(file: BundleFile, spec: Json, samples: Sequence[Arrays], expected: Sequence[Arrays]) -> list[float]:
    """Return the largest difference of every output, as the bundle's script computes it."""
    from edgeprune.bundle import predict

    run = predict.open_model(file.path, spec)
    worst = [0.0] * len(spec["outputs"])
    for sample, wanted in zip(samples, expected, strict=True):
        found = predict.predict(run, spec, sample)
        worst = [
            max(old, predict.difference(*pair))
            for old, pair in zip(worst, zip(found, wanted, strict=True), strict=True)
        ]
    return worst


def _texts(bundle: Json) -> dict[str, bytes | Path]:
    from edgeprune.bundle import texts

    found = {INPUT: json.dumps(bundle, indent=1, allow_nan=False) + "\n", **texts(bundle)}
    return {name: text.encode() for name, text in found.items()}


def _write(output: Path, contents: dict[str, bytes | Path]) -> None:
    """Write the zip under a temporary name, try it, and rename it."""
    from edgeprune.bundle import write_archive

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with rundir.replacing(output) as temporary:
            write_archive(temporary, contents)
            _try_out(temporary, output)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}", fix="choose another place with -o") from error


def _try_out(archive: Path, name: Path) -> None:
    """Unpack a bundle into an empty folder and run its script as a user would."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-bundle-") as folder:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        words = [sys.executable, "-I", "predict.py"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=_TRIAL_LIMIT_S, check=False)
    if done.returncode != 0:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise VerificationError(f"the unpacked {name} does not give the expected outputs: {last[:500]}")


def _row(file: BundleFile, spec: Json) -> Json:
    return {
        "name": file.name,
        "format": spec["format"],
        "precision": file.precision,
        "role": file.role,
        "size_bytes": file.path.stat().st_size,
        "tolerance": {tensor["name"]: tensor["tolerance"] for tensor in spec["outputs"]},
    }
