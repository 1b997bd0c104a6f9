"""Weights that were trained here: where they are, and networks with them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "weights"


def weights_file(name: str, seed: int = 0) -> Path:
    """Return where the weights of a network are that were trained from a seed."""
    return FOLDER / f"{name}{f'_seed{seed}' if seed else ''}.safetensors"


def with_weights(network: nn.Module, path: Path) -> nn.Module:
    """Return a network with the tensors of a file, in place."""
    network.load_state_dict(load_file(path))
    return network
