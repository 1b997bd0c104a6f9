"""Networks as ONNX and TFLite files, proved equal to the network before they get their names.

    exported = export(model, inputs, "model.tflite")     # convert, verify, rename
    checks = verify_pair("model.onnx", model)             # any two of files and networks
    module = ArtifactModule("model.tflite")               # a file that is called like a network

Names are resolved on first use, so importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.export.artifact import Exported, export
    from edgeprune.export.module import ArtifactModule
    from edgeprune.export.opened import read_artifact
    from edgeprune.export.record import Record, read_record
    from edgeprune.export.verify import require, verify_artifact, verify_pair
    from edgeprune.export.zeros import zeros_in

_HOMES = {
    "ArtifactModule": "module",
    "Exported": "artifact",
    "Record": "record",
    "export": "artifact",
    "read_artifact": "opened",
    "read_record": "record",
    "require": "verify",
    "verify_artifact": "verify",
    "verify_pair": "verify",
    "zeros_in": "zeros",
}

__all__ = [
    "ArtifactModule",
    "Exported",
    "Record",
    "export",
    "read_artifact",
    "read_record",
    "require",
    "verify_artifact",
    "verify_pair",
    "zeros_in",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
