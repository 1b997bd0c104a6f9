"""A file as a network: a module whose forward runs an artifact in its runtime.

Owns the way from tensors to a runtime and back, so that the user's own `evaluate(model)` scores the file that is
deployed. Holds no weights; the placeholder parameter is there for code that asks `next(model.parameters()).device`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.export.capture import to_array
from edgeprune.export.opened import open_artifact
from edgeprune.export.structure import unflatten


class ArtifactModule(nn.Module):
    """A `.onnx` or `.tflite` file that is called like the network it came from.

    Batches of any size work: a file of fixed batch is run as often as needed. Outputs have the structure, dtypes and
    device that the network's had; a file without a record gives a tensor, or a tuple of them.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        """Open the file.

        Args:
            threads: Threads of one inference.

        Raises:
            ResolveError: The file is missing, or its runtime cannot read it.
            MissingDependency: The runtime is not installed.
        """
        super().__init__()
        self._path = Path(path)
        self._threads = threads
        self._opened = open_artifact(self._path, threads)
        self.placeholder = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Return the file's outputs.

        Raises:
            ModelError: The number or the names of the inputs do not fit the file.
            VerificationError: The runtime refuses the inputs or fails.
        """
        names = [spec.name for spec in self._opened.inputs]
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or set(given) != set(names):
            raise ModelError(f"{self._path} takes the inputs {', '.join(names)}; got {len(args)} and {sorted(kwargs)}")
        results = self._opened.run_all([to_array(given[name]) for name in names])
        device = given[names[0]].device
        tensors = [
            torch.from_numpy(array).to(device=device, dtype=getattr(torch, spec.dtype))
            for array, spec in zip(results, self._opened.outputs, strict=True)
        ]
        if self._opened.record is not None:
            return unflatten(self._opened.record.structure, tensors)
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> ArtifactModule:
        return ArtifactModule(self._path, self._threads)
