"""edgeprune: prune a trained PyTorch network, prove every exported file equal to it, and measure it on the device.

    import edgeprune as ep

    plan = ep.plan(model, inputs, ratio=0.5)
    small = ep.apply(model, plan, inputs)
    small = ep.reconstruct(small, model, plan, inputs, data=loader)
    small = ep.finetune(small, step=train_step, data=loader, epochs=3, teacher=model)
    artifact = ep.export(small, inputs, "small.tflite")
    rows = ep.bench([artifact], target="host")
    run = ep.compress("workload.py", ep.RunConfig())

Names are resolved on first use: importing this package imports neither torch nor a runtime. `ep.export`,
`ep.reconstruct` and `ep.bench` are packages that can be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeprune.errors import (
    BudgetMissed,
    ConfigError,
    DeviceError,
    EdgePruneError,
    ExportError,
    MissingDependency,
    ModelError,
    NothingToPrune,
    ResolveError,
    StorageError,
    TraceError,
    TrainingError,
    VerificationError,
)
from edgeprune.version import VERSION as __version__

if TYPE_CHECKING:
    from edgeprune.bench import Comparison, Measurement
    from edgeprune.config import (
        BenchConfig,
        ExportConfig,
        FinetuneConfig,
        GradualConfig,
        PruneConfig,
        QatConfig,
        QuantiseConfig,
        RunConfig,
        SparsifyConfig,
    )
    from edgeprune.dynamic import Gradual
    from edgeprune.graph import ChannelGraph, trace
    from edgeprune.pipeline.api import (
        advise,
        apply,
        compare,
        compress,
        finetune,
        plan,
        recalibrate,
        sensitivity,
        sparsify,
        verify,
    )
    from edgeprune.pipeline.aware import quantise_aware
    from edgeprune.pipeline.compress import RunResult, resume
    from edgeprune.pruning import Masks, PrunePlan
    from edgeprune.targets import Target, find_target, list_targets
    from edgeprune.values import Artifact, Check
    from edgeprune.workload import Workload, load_workload

_HOMES = {
    "Artifact": "edgeprune.values",
    "BenchConfig": "edgeprune.config",
    "ChannelGraph": "edgeprune.graph",
    "Check": "edgeprune.values",
    "Comparison": "edgeprune.bench",
    "ExportConfig": "edgeprune.config",
    "FinetuneConfig": "edgeprune.config",
    "Gradual": "edgeprune.dynamic",
    "GradualConfig": "edgeprune.config",
    "Masks": "edgeprune.pruning",
    "Measurement": "edgeprune.bench",
    "PruneConfig": "edgeprune.config",
    "PrunePlan": "edgeprune.pruning",
    "QatConfig": "edgeprune.config",
    "QuantiseConfig": "edgeprune.config",
    "RunConfig": "edgeprune.config",
    "RunResult": "edgeprune.pipeline.compress",
    "SparsifyConfig": "edgeprune.config",
    "Target": "edgeprune.targets",
    "Workload": "edgeprune.workload",
    "advise": "edgeprune.pipeline.api",
    "apply": "edgeprune.pipeline.api",
    "compare": "edgeprune.pipeline.api",
    "compress": "edgeprune.pipeline.api",
    "find_target": "edgeprune.targets",
    "finetune": "edgeprune.pipeline.api",
    "list_targets": "edgeprune.targets",
    "load_workload": "edgeprune.workload",
    "plan": "edgeprune.pipeline.api",
    "quantise_aware": "edgeprune.pipeline.aware",
    "recalibrate": "edgeprune.pipeline.api",
    "resume": "edgeprune.pipeline.compress",
    "sensitivity": "edgeprune.pipeline.api",
    "sparsify": "edgeprune.pipeline.api",
    "trace": "edgeprune.graph",
    "verify": "edgeprune.pipeline.api",
}
_CALLABLE_PACKAGES = ("bench", "export", "reconstruct")

__all__ = [
    "Artifact",
    "BenchConfig",
    "BudgetMissed",
    "ChannelGraph",
    "Check",
    "Comparison",
    "ConfigError",
    "DeviceError",
    "EdgePruneError",
    "ExportConfig",
    "ExportError",
    "FinetuneConfig",
    "Gradual",
    "GradualConfig",
    "Masks",
    "Measurement",
    "MissingDependency",
    "ModelError",
    "NothingToPrune",
    "PruneConfig",
    "PrunePlan",
    "QatConfig",
    "QuantiseConfig",
    "ResolveError",
    "RunConfig",
    "RunResult",
    "SparsifyConfig",
    "StorageError",
    "Target",
    "TraceError",
    "TrainingError",
    "VerificationError",
    "Workload",
    "__version__",
    "advise",
    "apply",
    "bench",
    "compare",
    "compress",
    "export",
    "find_target",
    "finetune",
    "list_targets",
    "load_workload",
    "plan",
    "quantise_aware",
    "recalibrate",
    "reconstruct",
    "resume",
    "sensitivity",
    "sparsify",
    "trace",
    "verify",
]


class _CallablePackage(ModuleType):
    """A subpackage that is also the function of the public API with its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self.__name__.rpartition(".")[2]
        return getattr(import_module("edgeprune.pipeline.api"), function)(*args, **kwargs)


class _Package(ModuleType):
    """This package: it makes the subpackages that are also functions callable when they are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CALLABLE_PACKAGES and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"edgeprune.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeprune' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
