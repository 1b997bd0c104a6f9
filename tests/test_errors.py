"""The error tree: exit codes as documented, every error carries message, place and fix."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import errors
from edgeprune.errors import EdgePruneError

EXIT_CODES = {
    "EdgePruneError": 1,
    "ConfigError": 2,
    "ResolveError": 2,
    "MissingDependency": 2,
    "ModelError": 3,
    "TraceError": 3,
    "NothingToPrune": 3,
    "TrainingError": 3,
    "ExportError": 3,
    "StorageError": 3,
    "VerificationError": 4,
    "BudgetMissed": 5,
    "DeviceError": 6,
}
CLASSES = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


def test_every_error_has_the_exit_code_that_is_documented() -> None:
    assert {name: value.exit_code for name, value in CLASSES.items()} == EXIT_CODES
    assert all(issubclass(value, EdgePruneError) for value in CLASSES.values())


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert [name for name in CLASSES if name not in errors.__doc__] == []


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
def test_an_error_carries_message_fix_and_place(name: str) -> None:
    error = CLASSES[name]("no target 'x'", fix="edgeprune targets", where="a.py:3")
    assert str(error) == "no target 'x'"
    assert error.as_dict() == {
        "error": name,
        "message": "no target 'x'",
        "fix": "edgeprune targets",
        "where": "a.py:3",
        "exit_code": EXIT_CODES[name],
    }


def test_the_module_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import edgeprune.errors; print(*(set(sys.modules) - before))"
    root = Path(errors.__file__).parent.parent
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("edgeprune.")}
    assert loaded == {"edgeprune.errors", "edgeprune.version"}
