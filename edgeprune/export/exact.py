"""The network in float64, and how far rounding to float32 moves its outputs.

Owns the judgement where float32 leaves doubt: a constant image through a normalisation is rounding noise multiplied by
a few hundred, and there two right programs differ. What rounding explains is measured here, not guessed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.export.quality import distance

if TYPE_CHECKING:
    import torch

    from edgeprune.export.capture import FlatNetwork, Subject

_LOG = logging.getLogger(__name__)
# Rounding to nearest changes a float32 by up to 2^-24 of it. A few roundings add up before anything amplifies them.
_NOISE = 2.0**-22
_DRAWS = 3
_MARGIN = 4.0


class ExactNetwork:
    """A network in double precision, made on first use; some networks cannot be, and then nothing is known."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._exact: FlatNetwork | None = None

    def run(self, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[float]] | None:
        """Return the outputs, and for each the relative difference that rounding explains.

        Returns None where the network does not run in double precision.
        """
        import torch

        if self._exact is None:
            self._exact = copy.deepcopy(self._subject.network).double()
        generator = torch.Generator().manual_seed(0)
        try:
            exact = _outputs(self._exact, arrays)
            moved = [self._moved(arrays, generator) for _ in range(_DRAWS)]
        except (RuntimeError, TypeError, ValueError) as error:
            # A forward that names float32 itself does not run in double.
            _LOG.info("the network does not run in float64: %s", error)
            return None
        moved.append(self._subject.run(arrays))
        doubts = [max(distance(a, other[index])[1] for other in moved) for index, a in enumerate(exact)]
        return exact, [_MARGIN * doubt for doubt in doubts]

    def _moved(self, arrays: Sequence[np.ndarray], generator: torch.Generator) -> list[np.ndarray]:
        """Return the outputs with weights and inputs changed as if they had been rounded a few times."""
        import torch

        network = copy.deepcopy(self._exact)
        assert network is not None
        with torch.no_grad():
            for weight in network.parameters():
                if weight.is_floating_point():
                    weight.mul_(
                        1 + _NOISE * (2 * torch.rand(weight.shape, generator=generator, dtype=weight.dtype) - 1)
                    )
        noisy = []
        for array in arrays:
            if np.issubdtype(array.dtype, np.floating):
                noise = 2 * torch.rand(array.shape, generator=generator, dtype=torch.float64).numpy() - 1
                # Relative to the largest value, so that zeros move too.
                array = array.astype(np.float64) + _NOISE * noise * max(float(np.abs(array).max(initial=0.0)), 1e-6)
            noisy.append(array)
        return _outputs(network, noisy)


def _outputs(network: FlatNetwork, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import torch

    from edgeprune.export.capture import run_network, to_array

    tensors = [torch.from_numpy(array) for array in arrays]
    doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    return [to_array(tensor) for tensor in run_network(network, doubles)]
