"""What a network of the zoo is, and the decorator that enters it.

Networks are written the way users write them; everything random about them comes from one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One network: `build` makes it in evaluation mode, `inputs` makes its example inputs, batch first."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    note: str


NETWORKS: dict[str, Entry] = {}
UNTRACEABLE: dict[str, Entry] = {}
UNPRUNABLE: dict[str, Entry] = {}


def network(
    name: str,
    *shapes: Shape,
    note: str,
    tokens: int | None = None,
    into: dict[str, Entry] = NETWORKS,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter the decorated class, built without arguments, under a name.

    Args:
        shapes: One per input, batch first.
        tokens: Inputs are integers below this number instead of normal floats.
        into: The table that takes the entry.
    """

    def enter(cls: type[nn.Module]) -> type[nn.Module]:
        assert name not in NETWORKS | UNTRACEABLE | UNPRUNABLE, f"two networks are called {name}"

        def build() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return randomise(cls()).eval()

        def inputs() -> tuple[torch.Tensor, ...]:
            generator = torch.Generator().manual_seed(1)
            if tokens is not None:
                return tuple(torch.randint(0, tokens, shape, generator=generator) for shape in shapes)
            return tuple(torch.randn(shape, generator=generator) for shape in shapes)

        into[name] = Entry(build=build, inputs=inputs, note=note)
        return cls

    return enter


def randomise(model: nn.Module) -> nn.Module:
    """Give a fresh network what a trained one has, in place: signals that survive depth, own statistics.

    PyTorch's default weights shrink a signal at every layer; the gain keeps outputs that depend on the input.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                module.weight.mul_(2)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm) and isinstance(
                module.weight, torch.Tensor
            ):
                module.weight.uniform_(0.5, 1.5)
                if isinstance(module.bias, torch.Tensor):
                    module.bias.normal_(0, 0.2)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(0.05, 0.5)
    return model
