"""A training on disk: one safetensors file from which it goes on as if it had not stopped.

Owns the file's layout, the atomic write, and the question whether a file belongs to a training. Holds tensors and
JSON only, so reading one runs no code. Random generators are not stored: `randomness` derives them from the seed and
the position.

Tensors: `model.NAME`, `best.NAME` (parameters and all buffers), `optimizer.INDEX.KEY`, `pruner.NAME`. The
metadata key `training` is a JSON object with `identity` (what the training is, by name) and `position` (how far it is).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from edgeprune.config import FinetuneConfig
from edgeprune.dynamic import Recipe
from edgeprune.errors import ResolveError, StorageError
from edgeprune.pruning.masks import Masks
from edgeprune.training.fake_quantise import Ranges
from edgeprune.training.features import Features, digest_features
from edgeprune.training.records import Position
from edgeprune.values import Json

Tensors = dict[str, torch.Tensor]

_logger = logging.getLogger(__name__)
_IRRELEVANT = {"checkpoint_every_s", "recalibrate_batches"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a training needs to go on. `optimizer` maps a parameter's index to its state by name.

    `pruner` is the state of what prunes meanwhile, empty where nothing does.
    """

    identity: Json
    position: Position
    model: Tensors
    best: Tensors
    optimizer: dict[int, Tensors]
    pruner: Tensors = field(default_factory=dict)


def network_tensors(model: nn.Module) -> Tensors:
    """Return every parameter and buffer by name, each once; unlike a state dict, also buffers that are not saved."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def load_network_(model: nn.Module, tensors: Tensors) -> None:
    """Copy tensors into the parameters and buffers of a network, in place."""
    with torch.no_grad():
        for name, tensor in network_tensors(model).items():
            tensor.copy_(tensors[name])


def digest_network(model: nn.Module) -> str:
    """Return the sha256 of the names, dtypes, shapes and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identify(
    model: nn.Module,
    config: FinetuneConfig,
    *,
    teacher: nn.Module | None,
    has_step: bool,
    has_evaluate: bool,
    seed: int,
    processes: int,
    masks: Masks | None,
    recipe: Recipe | None = None,
    features: Features = (),
    ranges: Ranges | None = None,
) -> Json:
    """Return what a training is; a checkpoint whose identity differs in anything belongs to another one."""
    settings = config.model_dump(mode="json", exclude=_IRRELEVANT)
    return {f"finetune.{name}": value for name, value in settings.items()} | {
        "seed": seed,
        "processes": processes,
        "train_step": has_step,
        "evaluate": has_evaluate,
        "the initial weights": digest_network(model),
        "the teacher": digest_network(teacher) if teacher is not None else None,
        "the masks": masks.digest if masks is not None else None,
        "the pruning": recipe.settings() if recipe is not None else None,
        "the features": digest_features(features) if features else None,
        "the ranges": {name: list(pair) for name, pair in ranges.items()} if ranges is not None else None,
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file so that a crash at any moment leaves the old one or the new one, whole.

    Raises:
        StorageError: The file cannot be written; the one before it is untouched.
    """
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in checkpoint.best.items()}
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    tensors |= {f"pruner.{name}": tensor for name, tensor in checkpoint.pruner.items()}
    text = json.dumps({"identity": checkpoint.identity, "position": checkpoint.position.as_dict()})
    # a clone each: safetensors refuses tensors that share memory, and views of larger ones
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    data = save(plain, {"training": text})
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the checkpoint {path} ({len(data)} bytes): {error.strerror}",
            fix="free disk space or check the folder's permissions, then run the same command again",
            where=str(path),
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what a checkpoint file holds.

    Raises:
        ValueError: The file is damaged or no checkpoint; the message says what is wrong.
        OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # clones: the tensors of an open file are views of it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 no mapping
    except SafetensorError as error:
        raise ValueError(f"it is damaged ({error})") from error
    if "training" not in metadata:
        raise ValueError("it is no checkpoint of a training")
    facts = json.loads(metadata["training"])
    optimizer: dict[int, Tensors] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        optimizer.setdefault(int(index), {})[key] = tensor
    return Checkpoint(
        identity=facts["identity"],
        position=Position.from_dict(facts["position"]),
        model=_part(tensors, "model."),
        best=_part(tensors, "best."),
        optimizer=optimizer,
        pruner=_part(tensors, "pruner."),
    )


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def find_checkpoint(path: Path, identity: Json) -> tuple[Checkpoint | None, str | None]:
    """Return the checkpoint of this training, or None and the reason why the file at `path` is of no use.

    A file that is damaged or belongs to another training is renamed to `NAME.stale`, so it is not overwritten.

    Raises:
        ResolveError: The file exists and cannot be read.
    """
    if not path.exists():
        return None, None
    try:
        checkpoint = read_checkpoint(path)
    except OSError as error:
        raise ResolveError(f"cannot read the checkpoint {path}: {error.strerror or error}", where=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"its metadata lack or have {error}"
    else:
        differences = _differences(checkpoint.identity, identity)
        if not differences:
            return checkpoint, None
        reason = f"it belongs to another training ({'; '.join(differences)})"
    stale = path.with_name(path.name + ".stale")
    os.replace(path, stale)
    told = f"training starts anew: the checkpoint {path} is not used, {reason}; it is kept as {stale.name}"
    _logger.warning("%s", told)
    return None, told


def _differences(saved: Json, present: Json) -> list[str]:
    found = []
    for name in dict.fromkeys([*saved, *present]):
        if saved.get(name) == present.get(name):
            continue
        if name.startswith("the "):
            found.append(f"{name} differ" if name.endswith("s") else f"{name} differs")
        else:
            found.append(f"{name} was {saved.get(name)!r} and is {present.get(name)!r}")
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[int, Tensors]:
    """Return the state of an optimiser by parameter index; entries without a tensor (no momentum yet) are left out."""
    states = optimizer.state_dict()["state"]
    return {
        index: {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        for index, state in states.items()
    }


def load_optimizer_(optimizer: torch.optim.Optimizer, state: dict[int, Tensors]) -> None:
    """Put a saved state into a fresh optimiser over the same parameters, in place."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
