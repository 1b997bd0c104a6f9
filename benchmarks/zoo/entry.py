"""What a network of the engine zoo is, and how it gets its weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import nn

from benchmarks.zoo.randomise import randomise_

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """An input of integers in [0, below), where others are normal floats."""

    shape: Shape
    below: int


Input = Shape | Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network: `make` returns it with its library's fresh weights, `inputs` describes its inputs, batch first."""

    name: str
    library: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]

    def build(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """Return the network in evaluation mode with lively weights, and example inputs; both from its own seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(crc32(self.name.encode()))
            model = self.make().eval()
            inputs = self.example()
            randomise_(model, inputs)
            return model.eval(), inputs

    def example(self, seed: int = 1) -> tuple[torch.Tensor, ...]:
        """Return example inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_tensor(spec, generator) for spec in self.inputs)


def _tensor(spec: Input, generator: torch.Generator) -> torch.Tensor:
    if isinstance(spec, Tokens):
        return torch.randint(0, spec.below, spec.shape, generator=generator)
    return torch.randn(spec, generator=generator)
