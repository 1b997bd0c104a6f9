"""Weights that were trained here: where they are, and networks with them."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

BENCHMARKS = Path(__file__).resolve().parent.parent
FOLDER = BENCHMARKS / "weights"


def data_folder() -> Path:
    """Return the folder of what is not in the repository: data of packages, and weights that may not be passed on."""
    return Path(os.environ.get("BENCHMARK_DATA", BENCHMARKS / ".data"))


def weights_file(name: str, seed: int = 0, folder: Path = FOLDER) -> Path:
    """Return where the weights of a network are that were trained from a seed."""
    return folder / f"{name}{f'_seed{seed}' if seed else ''}.safetensors"


def local_weights_file(name: str, seed: int = 0) -> Path:
    """Return the same for weights that are not in the repository, because of the licence of their data."""
    return weights_file(name, seed, data_folder() / "weights")


def local_network(untrained: nn.Module, name: str, seed: int) -> nn.Module:
    """Return a network with the weights that were trained from a seed and are not in the repository.

    Raises:
        FileNotFoundError: They were not made yet.
    """
    command = f"python benchmarks/train_local.py --network {name}" + (f" --seed {seed}" if seed else "")
    return with_weights(untrained, local_weights_file(name, seed), command)


def with_weights(network: nn.Module, path: Path, made_by: str = "") -> nn.Module:
    """Return a network with the tensors of a file, in place.

    Args:
        made_by: The command that makes the file, for weights that are not in the repository.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}" + (f"; run  {made_by}" if made_by else ""))
    network.load_state_dict(load_file(path))
    return network
