"""What pruners have in common: what they can do, and what they write down of how far they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import nn

from edgeprune.values import Json

Tensors = dict[str, torch.Tensor]


@dataclass(slots=True, kw_only=True)
class Trail:
    """How large a share of the weights or units was zero after which step, as far as it went."""

    what: Literal["weights", "units"]
    rows: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, share: float) -> None:
        """Note the share after a step."""
        self.rows.append((step, share))

    def tensor(self) -> torch.Tensor:
        """Return the rows as a tensor of shape (rows, 2)."""
        return torch.tensor(self.rows, dtype=torch.float64).reshape(-1, 2)

    def load_(self, rows: torch.Tensor) -> None:
        """Replace the rows by saved ones."""
        self.rows = [(int(step), share) for step, share in rows.tolist()]

    def facts(self) -> Json:
        """Return it as plain data."""
        return {"what": self.what, "trail": [{"step": step, "zeros": share} for step, share in self.rows]}


class Pruner(Protocol):
    """What prunes a network while a loop trains it; `step` comes after every step of the optimiser."""

    trail: Trail

    @property
    def settled(self) -> bool:
        """Whether nothing is pruned any more."""

    def step(self) -> None:
        """Prune what is due, and set to zero what the optimiser has moved."""

    def settle_(self) -> None:
        """Reach the target at once."""

    def state(self) -> Tensors:
        """Return all that is needed to go on, besides the network."""

    def load_state_(self, state: Tensors) -> None:
        """Go on from a saved state."""

    def finish(self) -> nn.Module:
        """Return the result; the network that was trained is let go."""


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
