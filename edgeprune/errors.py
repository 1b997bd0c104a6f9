"""The error tree and its exit codes.

    EdgePruneError                       message, fix, where; exit 1
    ├── ConfigError                      a setting or command line is wrong; exit 2
    ├── ResolveError                     a file, workload, weights or target cannot be found or read; exit 2
    ├── MissingDependency                an optional package is not installed; exit 2
    ├── ModelError                       the network cannot be handled; exit 3
    │   ├── TraceError                   its forward cannot be followed
    │   ├── NothingToPrune               every group is pinned
    │   ├── TrainingError                fine-tuning diverged
    │   └── ExportError                  a converter failed
    ├── VerificationError                two networks or files disagree; exit 4
    ├── BudgetMissed                     a budget of the user was not met; exit 5
    ├── DeviceError                      a device is unreachable or failed; exit 6
    └── StorageError                     a file cannot be written, the disk is full; exit 3

This module imports nothing. Every message names the value and the place; `fix` is one command or one edit.
"""

from __future__ import annotations


class EdgePruneError(Exception):
    """Base of every error that edgeprune raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.where = where

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the error as the JSON object that `--json` prints."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "fix": self.fix,
            "where": self.where,
            "exit_code": self.exit_code,
        }


class ConfigError(EdgePruneError):
    """A setting, a flag or a configuration file is wrong."""

    exit_code = 2


class ResolveError(EdgePruneError):
    """Something the user named (workload, weights, target, run) cannot be found or read."""

    exit_code = 2


class MissingDependency(EdgePruneError):
    """A feature needs a package that is not installed; `fix` is the pip line."""

    exit_code = 2


class ModelError(EdgePruneError):
    """The network cannot be traced, pruned, trained or exported."""

    exit_code = 3


class TraceError(ModelError):
    """The forward pass cannot be followed; `where` is the source line."""


class NothingToPrune(ModelError):
    """No group is free, or no single weight would go; the message lists the reasons."""


class TrainingError(ModelError):
    """Fine-tuning produced a loss or weights that are not finite."""


class ExportError(ModelError):
    """A converter failed; the message names the converter and what it could not do."""


class VerificationError(EdgePruneError):
    """Two things that must be equal are not."""

    exit_code = 4


class BudgetMissed(EdgePruneError):
    """The result misses a budget the user set."""

    exit_code = 5


class DeviceError(EdgePruneError):
    """A device could not be reached or failed; the message names the step (connect, push, run, parse)."""

    exit_code = 6


class StorageError(EdgePruneError):
    """A file could not be written completely; what was there before is untouched."""

    exit_code = 3
