"""Networks on disk: what `prune` writes, what the other commands open, and `.pt2` programs.

A pruned network is a folder: `network.toml` names the workload, `plan.json` what was removed, a `.safetensors` file
holds the tensors. No pickled code is written, and none is loaded unless the user vouches for the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from edgeprune import rundir
from edgeprune.errors import ResolveError
from edgeprune.pipeline.digests import absolute_rules, code_path, seeded
from edgeprune.values import Json, Notice
from edgeprune.version import VERSION
from edgeprune.workload import Workload, build_model, example_inputs, load_workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.config import RunConfig
    from edgeprune.graph.enter import Entered
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import Masks, PrunePlan

REFERENCE = "network.toml"
WEIGHTS = "weights.safetensors"
PROGRAM = "pruned.pt2"
_WEIGHTS_ONLY = (".safetensors", ".pt", ".pth", ".ptl", ".ts")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A network that a command works on.

    `dense` is the user's whole network and `plan` what was removed from it; both are None for a program without
    its workload, and `plan` is None for the dense network itself. `masks` are those of single pruned weights.
    """

    source: Path
    name: str
    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    workload: Workload
    dense: nn.Module
    plan: PrunePlan | None
    seed: int
    notices: tuple[Notice, ...] = ()
    masks: Masks | None = None
    rules: UserRules | None = None


def save_state(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write named tensors as `.safetensors`, completely or not at all; a shared tensor is written once.

    Raises:
        StorageError: The file cannot be written.
    """
    from safetensors.torch import save

    plain: dict[str, torch.Tensor] = {}
    seen = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or place not in seen:
            plain[name] = tensor.detach().cpu().contiguous().clone()
        seen.add(place)
    rundir.write_atomic(path, save(plain))


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors` file by name.

    Raises:
        ResolveError: The file cannot be read.
    """
    from edgeprune.workload import read_weights

    return read_weights(str(path))


def save_masks(folder: Path, masks: Masks | None, name: str = rundir.MASKS) -> list[str]:
    """Write the masks of a folder's network and return the names; without masks, remove those of an earlier one."""
    if masks is None:
        (folder / name).unlink(missing_ok=True)
        return []
    save_state(folder / name, masks.kept)
    return [name]


def load_masks(folder: Path, weights: str = rundir.FINETUNED) -> Masks | None:
    """Return the masks of a folder's network, None where no single weight was pruned.

    Args:
        weights: The file of its weights; those that fine-tuning has pruned have masks of their own.

    Raises:
        ResolveError: The file cannot be read.
    """
    from edgeprune.pruning import Masks

    own = folder / rundir.FINETUNED_MASKS
    path = own if weights == rundir.FINETUNED and own.is_file() else folder / rundir.MASKS
    return Masks(kept=load_state(path)) if path.is_file() else None


def check_prune_output(folder: Path, source: str) -> None:
    """Check that `prune` may write into a folder: absent, empty, or an earlier result of the same workload.

    Raises:
        ResolveError: It holds something else, or a network that was already fine-tuned.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    fix = "choose another directory with -o"
    if not folder.is_dir():
        raise ResolveError(f"{folder} is a file", fix=fix)
    if not (folder / REFERENCE).is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        raise ResolveError(f"{folder} is not empty and holds no pruned network ({', '.join(names[:3])})", fix=fix)
    reference = _read_reference(folder)
    if reference["workload"] != source:
        raise ResolveError(f"{folder} holds a network of another workload, {reference['workload']}", fix=fix)
    if (folder / rundir.FINETUNED).exists():
        raise ResolveError(f"{folder} holds a network that was fine-tuned already", fix=fix)


def write_network(
    folder: Path, workload: Workload, plan: PrunePlan, model: nn.Module, config: RunConfig, masks: Masks | None
) -> list[str]:
    """Write a pruned network as `plan.json`, `weights.safetensors` and `network.toml`; return the names.

    Args:
        config: `weights`, `trust_pickle` and `seed` tell how the dense network is made again.
        masks: Of the single weights that are zero; written as `masks.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rundir.remove_temporary(folder)
    save_masks(folder, None)  # those of an earlier network
    save_masks(folder, None, rundir.FINETUNED_MASKS)
    plan.save(folder / rundir.PLAN)
    save_state(folder / WEIGHTS, model.state_dict())
    reference: Json = {
        "schema_version": 1,
        "edgeprune": VERSION,
        "workload": workload_reference(workload),
        "plan_digest": plan.digest,
        "seed": config.seed,
        "trust_pickle": config.trust_pickle,
    }
    if config.prune.rules:
        reference["rules"] = list(absolute_rules(config.prune.rules))
    if config.weights is not None:
        reference["weights"] = str(Path(config.weights).resolve())
    rundir.write_atomic(folder / REFERENCE, tomli_w.dumps(reference))
    return [rundir.PLAN, WEIGHTS, REFERENCE, *save_masks(folder, masks)]


def workload_reference(workload: Workload) -> str:
    """Return a name by which the workload is found from any folder: an absolute path, or `module:attribute`."""
    path = code_path(workload)
    return str(path) if workload.source.endswith(".py") and path is not None else workload.source


def open_network(reference: str, *, weights: str | None = None, trust_pickle: bool = False, seed: int = 0) -> Loaded:
    """Return the network of a folder of `prune`, of a run directory, of a workload (dense), or of a `.pt2` program.

    Args:
        weights: Dense weights; only for a workload.

    Raises:
        ResolveError: There is no such thing, or its files do not fit together.
        ModelError: The user's functions failed.
    """
    path = Path(reference)
    if path.suffix == ".pt2":
        if weights is not None:
            raise ResolveError(f"--weights is for a workload; {path} has its own weights", fix="leave out --weights")
        return _open_program(path, trust_pickle, seed)
    if path.suffix in _WEIGHTS_ONLY and path.is_file():
        text, fix = _no_network(path)
        raise ResolveError(text, fix=fix)
    if path.is_dir():
        if weights is not None:
            raise ResolveError(f"--weights is for a workload; {path} has its own weights", fix="leave out --weights")
        if (path / REFERENCE).is_file() or (path / rundir.SETTINGS).is_file():
            return open_pruned(path)
        raise ResolveError(
            f"{path} holds no network (neither {REFERENCE} nor {rundir.SETTINGS})",
            fix=f"edgeprune prune workload.py -o {path}",
        )
    workload = load_workload(reference)
    entered, inputs = _dense(workload, weights, trust_pickle, seed)
    model = entered.model
    return Loaded(
        source=path,
        name=workload.name,
        model=model,
        inputs=inputs,
        workload=workload,
        dense=model,
        plan=None,
        seed=seed,
        notices=entered.notices,
    )


def _open_program(path: Path, trust_pickle: bool, seed: int) -> Loaded:
    from edgeprune.workload import as_inputs

    model, inputs = read_program(path, trust_pickle)
    if not inputs:
        raise ResolveError(f"{path} holds no example inputs", fix="torch.export.export(model, inputs) keeps them")
    as_inputs(inputs, f"{path} was captured with", str(path))
    workload = Workload(name=path.stem, source=str(path), model=lambda: model, inputs=lambda: inputs)
    return Loaded(
        source=path, name=path.stem, model=model, inputs=inputs, workload=workload, dense=model, plan=None, seed=seed
    )


def _no_network(path: Path) -> tuple[str, str]:
    """Return why a file of torch's or safetensors' is no network that can be opened, and what to do."""
    fix = f"edgeprune export workload.py --weights {path}"
    if path.suffix == ".safetensors":
        return f"{path} holds weights, and no network that they belong to", fix
    script = False
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        script = any("/code/" in name for name in archive.namelist())
    if script:
        text = f"{path} is TorchScript, which PyTorch has given up: its graphs cannot be captured"
        return text, "torch.export.save(torch.export.export(model, inputs), 'net.pt2') writes a program"
    return f"{path} is a file of torch.save, and unpickling a network runs code from the file", fix


def open_pruned(folder: Path, *names: str) -> Loaded:
    """Return the pruned network of a folder of `prune` or of a run.

    Args:
        names: Files of weights in order of preference, by default the fine-tuned ones before the pruned ones.

    Raises:
        ResolveError: A file is missing or does not fit the others.
    """
    if (folder / REFERENCE).is_file():
        reference = _read_reference(folder)
        names, fix = names or (rundir.FINETUNED, WEIGHTS), f"edgeprune prune {reference['workload']} -o {folder}"
    else:
        from edgeprune.config import load_config

        config = load_config(folder / rundir.SETTINGS)
        reference = config.model_dump(include={"workload", "weights", "seed", "trust_pickle"})
        reference["rules"] = config.prune.rules
        names, fix = names or (rundir.FINETUNED,), f"edgeprune resume {folder}"
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise ResolveError(f"{folder} has no {names[-1]}", fix=fix)
    return _open(folder, reference, folder / found[0])


def _open(folder: Path, reference: Json, weights: Path) -> Loaded:
    from edgeprune.compact import rebuild
    from edgeprune.graph.rules.custom import load_rules
    from edgeprune.pruning import PrunePlan

    workload = load_workload(reference["workload"])
    plan = PrunePlan.load(folder / rundir.PLAN)
    if reference.get("plan_digest", plan.digest) != plan.digest:
        raise ResolveError(
            f"{folder / rundir.PLAN} was edited after {weights.name} was written",
            fix=f"edgeprune prune {reference['workload']} --plan {folder / rundir.PLAN} -o ANOTHER",
        )
    entered, inputs = _dense(workload, reference.get("weights"), reference["trust_pickle"], reference["seed"])
    dense, rules = entered.model, load_rules(reference["rules"])
    return Loaded(
        source=folder,
        name=workload.name,
        model=rebuild(dense, plan, load_state(weights), inputs, rules),
        inputs=inputs,
        workload=workload,
        dense=dense,
        plan=plan,
        seed=reference["seed"],
        masks=load_masks(folder, weights.name),
        rules=rules,
    )


def _dense(
    workload: Workload, weights: str | None, trust_pickle: bool, seed: int
) -> tuple[Entered, tuple[torch.Tensor, ...]]:
    from edgeprune.graph.enter import enter

    with seeded(seed, "model"):
        model = build_model(workload, weights, trust_pickle)
    with seeded(seed, "inputs"):
        inputs = example_inputs(workload)
    return enter(model, inputs), inputs


def _read_reference(folder: Path) -> Json:
    path = folder / REFERENCE
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResolveError(f"cannot read {path}: {error}") from error
    if value.get("schema_version") != 1 or not isinstance(value.get("workload"), str):
        raise ResolveError(f"{path} is not the reference of a pruned network", fix="make it again: edgeprune prune")
    return {"seed": 0, "trust_pickle": False, "rules": []} | value


def write_program(path: Path, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str | None:
    """Write a network as a `.pt2` program, with a free batch size where that is possible.

    Returns:
        None when it was written, else why the network has no such program.
    """
    import torch

    double = tuple(torch.cat([tensor, tensor]) if tensor.dim() > 0 else tensor for tensor in inputs)
    free = tuple({0: torch.export.Dim.AUTO} if tensor.dim() > 0 else None for tensor in inputs)
    reason = ""
    for arguments, shapes in ((double, free), (tuple(inputs), None)):
        try:
            program = torch.export.export(model.eval(), arguments, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 torch.export raises many kinds; the network itself is already saved
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            _log.info("no .pt2 program: %s", error)
            continue
        content = io.BytesIO()
        torch.export.save(program, content)
        rundir.write_atomic(path, content.getvalue())
        return None
    return reason


def read_program(path: Path, trust_pickle: bool = False) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the network of a `.pt2` program and the example inputs it was made with, those by name at the end.

    Raises:
        ResolveError: The file cannot be read, or loading it would run pickled code and `trust_pickle` is False.
    """
    import torch

    if not path.is_file():
        raise ResolveError(f"no file {path}")
    try:
        if not trust_pickle and _holds_code(path):
            raise ResolveError(
                f"{path} holds pickled objects, and unpickling runs code from the file",
                fix="pass --trust-pickle if you made this file",
            )
        program = torch.export.load(str(path))
    except (zipfile.BadZipFile, ValueError, KeyError, RuntimeError, OSError) as error:
        raise ResolveError(f"{path} is not a .pt2 program: {error}") from error
    from edgeprune.export.capture import ProgramNetwork

    arguments, named = program.example_inputs if program.example_inputs is not None else ((), {})
    return ProgramNetwork(program.module(), len(arguments), tuple(named)), (*arguments, *named.values())


def _holds_code(path: Path) -> bool:
    """Return whether loading a `.pt2` file would unpickle anything besides plain tensors."""
    import pickle

    import torch

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name) if name.endswith((".pt", "_config.json")) else b""
            if name.endswith("_config.json"):
                entries = json.loads(data).get("config", {})
                for entry in entries.values():
                    plain = str(entry.get("path_name")).startswith(("weight_", "tensor_"))
                    if not plain or entry.get("use_pickle"):
                        return True
            elif data:
                try:
                    torch.load(io.BytesIO(data), weights_only=True)
                except (pickle.UnpicklingError, RuntimeError):
                    return True
    return False
