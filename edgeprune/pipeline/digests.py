"""Digests of what a run depends on: the user's code, a network's tensors, example inputs; and repeatable randomness.

Owns what counts as "the same input". Files are digested by `rundir`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeprune import rundir
from edgeprune.config import PruneConfig
from edgeprune.search.sensitivity import file_of
from edgeprune.workload import Examples, Workload, import_code

if TYPE_CHECKING:
    import torch
    from torch import nn


def code_digest(workload: Workload, model: nn.Module) -> str:
    """Return the sha256 of the user's code: the workload, what it imports from its folders, the network's classes.

    Imports are followed in the source text, so the digest does not depend on what happens to be loaded. Installed
    packages do not count: their versions are in the result's environment.
    """
    path = code_path(workload)
    digest = hashlib.sha256()
    if path is None:
        digest.update(workload.source.encode())
        return digest.hexdigest()
    root = path.parents[0 if workload.source.endswith(".py") else workload.source.partition(":")[0].count(".")]
    files = _reachable(path, root) | _class_files(model)
    names = {_name(file, root): file for file in files}
    for name, file in sorted(names.items()):
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _name(file: Path, root: Path) -> str:
    """Return a name of a file that stays the same when the whole folder moves."""
    return str(file.relative_to(root)) if file.is_relative_to(root) else file.name


def _class_files(model: nn.Module) -> set[Path]:
    files = set()
    for module in model.modules():
        file = _module_file(sys.modules.get(type(module).__module__))
        if file is not None and not _installed(file):
            files.add(file)
    return files


def _reachable(start: Path, root: Path) -> set[Path]:
    """Return a file and the files that it imports, directly or not, from below `root` or from its own folder."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError):
            continue
        for folder, name in _imports(tree, path, root):
            base = folder.joinpath(*name.split("."))
            for candidate in (base.with_suffix(".py"), base / "__init__.py"):
                if candidate.is_file() and (not _installed(candidate) or candidate.parent == start.parent):
                    waiting.append(candidate.resolve())
    return found


def _imports(tree: ast.Module, path: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield folders and dotted names below them that may be the modules which a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, folders = [alias.name for alias in node.names], [root, path.parent]
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            names = [*([node.module] if node.module else []), *(base + alias.name for alias in node.names)]
            names = [name for name in names if not name.endswith("*")]
            folders = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else [root, path.parent]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for folder in folders:
                yield from ((folder, ".".join(parts[:length])) for length in range(1, len(parts) + 1))


def _installed(path: Path) -> bool:
    """Return whether a file is part of an installed package or of this one, whose versions count instead."""
    if path.is_relative_to(Path(__file__).resolve().parent.parent):
        return True
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


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
    """Return the sha256 of a tuple of tensors, and of its further examples."""
    digest = hashlib.sha256()
    for index, tensor in enumerate(inputs):
        _add_tensor(digest, str(index), tensor)
    for number, example in enumerate(inputs.others if isinstance(inputs, Examples) else ()):
        for index, tensor in enumerate(example):
            _add_tensor(digest, f"{number}.{index}", tensor)
    return digest.hexdigest()


def input_digests(
    workload: Workload, model: nn.Module, inputs: tuple[torch.Tensor, ...], config: PruneConfig
) -> dict[str, str]:
    """Return the digests of all that a user's workload brings, by what the journal calls it."""
    return {
        "workload code": code_digest(workload, model),
        "weights": state_digest(model.state_dict()),
        "example inputs": inputs_digest(inputs),
    } | functions_digests(config)


def functions_digests(config: PruneConfig) -> dict[str, str]:
    """Return the sha256 of the code of the user's rules and criterion, where there are any, by name in the journal."""
    criterion = [config.criterion] if ":" in config.criterion else []
    return _digests("rules", config.rules) | _digests("criterion", criterion)


def _digests(what: str, references: Sequence[str]) -> dict[str, str]:
    digest = hashlib.sha256()
    for reference in references:
        file = _module_file(import_code(reference.rpartition(":")[0]))
        digest.update(f"{reference.rpartition(':')[2]}\0".encode() + (file.read_bytes() if file is not None else b""))
    return {what: digest.hexdigest()} if references else {}


def sensitivity_digest(config: PruneConfig) -> dict[str, str]:
    """Return the sha256 of the file of the sensitivity, by what the journal calls it; nothing without one."""
    if config.sensitivity is None:
        return {}
    return {"sensitivity": rundir.file_digest(file_of(config.sensitivity)) or ""}


def absolute_rules(rules: Sequence[str]) -> tuple[str, ...]:
    """Return references of rules that hold from any folder: files by their absolute path."""
    found = []
    for reference in rules:
        home, _, name = reference.rpartition(":")
        found.append(f"{Path(home).resolve()}:{name}" if home.endswith(".py") else reference)
    return tuple(found)


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
