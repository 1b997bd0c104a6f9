"""What quantisation asks of a float32 file, whatever its format; and what it found out about the file.

A format is one module with a function that opens a file as a `FloatFile`. Calibration, choice and mixed precision know
only this seam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeprune.errors import ModelError
from edgeprune.quantise.ranges import Interval

Feeds = Mapping[str, np.ndarray]
Take = Callable[[str, np.ndarray], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a file that a precision can be chosen for.

    `name` is unique in the file, `kind` is the format's own word for it, such as `Conv` or `FULLY_CONNECTED`.
    """

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Without:
    """A `FloatFile` some of whose operators stay in float32 whatever happens."""

    file: FloatFile
    never: frozenset[str]

    def operators(self) -> tuple[Operator, ...]:
        """Return the operators that may run on integers."""
        return tuple(operator for operator in self.file.operators() if operator.name not in self.never)

    def watch(self, samples: Iterable[Feeds], take: Take) -> None:
        """Run samples and hand over all float tensors between operators."""
        self.file.watch(samples, take)

    def quantise(self, ranges: Mapping[str, Interval], floats: frozenset[str]) -> bytes:
        """Return the file with integers in all operators but those named and those that never have them."""
        return self.file.quantise(ranges, floats | self.never)


class FloatFile(Protocol):
    """A float32 file that can be watched while it runs, and written with integers."""

    def operators(self) -> tuple[Operator, ...]:
        """Return the operators that can run on integers, in the order of the file."""
        ...

    def watch(self, samples: Iterable[Feeds], take: Take) -> None:
        """Run samples, inputs by name in the file's batch, and hand over all float tensors between operators."""
        ...

    def quantise(self, ranges: Mapping[str, Interval], floats: frozenset[str]) -> bytes:
        """Return the file with all operators on integers, but those named; the weights of these are still integers."""
        ...


def calibration_error(error: Exception) -> ModelError:
    """Return the error for a runtime that cannot run the float32 file on a calibration sample."""
    return ModelError(
        f"the float32 file cannot run on a calibration sample: {' '.join(str(error).split())[:300]}",
        fix="look for values in calibration_data() that the network does not take, such as numbers beyond a table",
    )
