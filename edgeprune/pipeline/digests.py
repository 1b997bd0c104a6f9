"""Digests of what a run depends on: the user's code, a network's tensors, example inputs; and repeatable randomness.

Owns what counts as "the same input". Files are digested by `rundir`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeprune.workload import Workload

if TYPE_CHECKING:
    import torch


def code_digest(workload: Workload) -> str:
    """Return the sha256 of the workload's source and of the modules beside it that are loaded.

    A module counts when its file lies in the folder of the workload's file, or below it. Installed packages do not:
    their versions are in the result's environment.
    """
    path = code_path(workload)
    digest = hashlib.sha256()
    if path is None:
        digest.update(workload.source.encode())
        return digest.hexdigest()
    folder = path.parent
    files = {path.name: path}
    for module in list(sys.modules.values()):
        file = _module_file(module)
        if file is not None and file.is_relative_to(folder) and "site-packages" not in file.parts:
            files[str(file.relative_to(folder))] = file
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def code_path(workload: Workload) -> Path | None:
    """Return the file that defines the workload, or None for functions typed into an interpreter."""
    if workload.source.endswith(".py") and Path(workload.source).is_file():
        return Path(workload.source).resolve()
    module = sys.modules.get(workload.source.partition(":")[0])
    named = _module_file(module) if module is not None else None
    if named is not None:
        return named
    try:
        file = inspect.getsourcefile(workload.model)
    except TypeError:
        return None
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        _add_tensor(digest, name, state[name])
    return digest.hexdigest()


def inputs_digest(inputs: tuple[torch.Tensor, ...]) -> str:
    """Return the sha256 of a tuple of tensors."""
    digest = hashlib.sha256()
    for index, tensor in enumerate(inputs):
        _add_tensor(digest, str(index), tensor)
    return digest.hexdigest()


@contextlib.contextmanager
def seeded(seed: int, label: str) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators for a block from a seed and a label; restore them afterwards.

    A stage that starts again after a kill sees the same random numbers as one that was never interrupted.
    """
    import numpy as np
    import torch

    number = int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:4], "big")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _add_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    import torch

    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _module_file(module: ModuleType | None) -> Path | None:
    name = getattr(module, "__file__", None)
    if not isinstance(name, str) or not name.endswith(".py"):
        return None
    path = Path(name).resolve()
    return path if path.is_file() else None
