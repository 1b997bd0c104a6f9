"""The architecture, checked: imports go down only, light parts stay light, files stay short and free of shortcuts."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgeprune"
AGENT = PACKAGE / "devices" / "agent.py"
SOURCES = sorted(PACKAGE.rglob("*.py"))
WRITTEN = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
WRITTEN += sorted((ROOT / "benchmarks" / "workloads").glob("*.py"))

# From the bottom up. A module imports from its own layer and from those below it.
LAYERS = (
    ("version", "errors", "values"),
    ("config", "targets", "workload", "demo", "preprocessing"),
    ("graph", "rules"),
    ("pruning",),
    ("compact",),
    ("dynamic",),
    ("training",),
    ("reconstruct",),
    ("devices",),
    ("quantise",),
    ("export",),
    ("bench",),
    ("search", "advice"),
    ("report", "bundle"),
    ("rundir",),
    ("pipeline",),
    ("console",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the absolute names that an import statement brings in, `package.module` or `package.name`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        assert node.module is not None
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def own_layer(name: str) -> str:
    return name.split(".")[1]


def called(node: ast.AST) -> str:
    """Return the dotted name of what a call calls, or nothing."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def code_lines(function: ast.FunctionDef) -> int:
    """Return how many lines a function has without its docstring."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    assert function.end_lineno is not None
    return function.end_lineno - first.lineno + 1 + function.body[0].lineno - function.lineno


def test_every_module_has_a_layer() -> None:
    assert {own_layer(module_name(path)) for path in SOURCES} <= set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_imports_go_down_only(path: Path) -> None:
    own = own_layer(module_name(path))
    upward = []
    for node in ast.walk(tree(path)):
        for name in imported(node):
            if name.startswith("edgeprune."):
                other = own_layer(name)
                if LEVEL[own] < LEVEL.get(other, LEVEL[own]):
                    upward.append(f"{path.name}:{node.lineno} imports {name}")  # type: ignore[attr-defined]
    assert upward == []


def test_modules_do_not_import_in_circles() -> None:
    """Inside a layer there is an order too, counting every import that runs when a module is loaded."""
    known = {module_name(path) for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        found = {name for node in tree(path).body for name in imported(node)}
        targets = {name if name in known else name.rpartition(".")[0] for name in found}
        graph[module_name(path)] = targets & known - {module_name(path)}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def loaded_after(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter holds after running code."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("\n\n")[2].split() or done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "onnx", "onnxruntime", "ai_edge_litert", "plotly", "jinja2", "scipy", "accelerate", "jax", "numpy"}


def test_importing_edgeprune_is_light() -> None:
    assert loaded_after("import edgeprune") & HEAVY == set()


def test_help_is_light() -> None:
    code = """
from edgeprune.cli import cli
for arguments in (["--help"], ["compress", "--help"], ["--version"]):
    try:
        cli(arguments)
    except SystemExit as stop:
        assert not stop.code
"""
    assert loaded_after(code) & HEAVY == set()


@pytest.mark.parametrize("package", ["devices", "bench", "report"])
def test_what_runs_beside_a_measurement_never_loads_torch(package: str) -> None:
    found = [path for path in SOURCES if own_layer(module_name(path)) == package]
    loaded = loaded_after("\n".join(f"import {module_name(path)}" for path in found))
    assert f"edgeprune.{package}" in loaded
    assert "torch" not in loaded
    lazily = [
        path.name
        for path in found
        for node in ast.walk(tree(path))
        for name in imported(node)
        if name.split(".")[0] == "torch"
    ]
    assert lazily == []


def test_the_agent_stands_alone() -> None:
    """It is copied to devices: Python 3.9, the standard library, numpy and one runtime."""
    source = AGENT.read_text(encoding="utf-8")
    found = {
        name.split(".")[0] for node in ast.walk(ast.parse(source, feature_version=(3, 9))) for name in imported(node)
    }
    beyond = found - set(sys.stdlib_module_names)
    assert beyond <= {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}
    assert "numpy" in beyond


@pytest.mark.parametrize("path", WRITTEN, ids=names(WRITTEN))
def test_files_and_functions_are_short_and_say_what_they_are(path: Path) -> None:
    module = tree(path)
    lines = path.read_text(encoding="utf-8").count("\n")
    limit = MAX_FUNCTION_LINES if path in SOURCES else MAX_FILE_LINES
    assert lines <= MAX_FILE_LINES, f"{lines} lines"
    long = [node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and code_lines(node) > limit]
    assert long == []
    if module.body:
        assert ast.get_docstring(module), "no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_the_package_takes_no_shortcuts(path: Path) -> None:
    found = []
    for node in ast.walk(tree(path)):
        call = called(node)
        if isinstance(node, ast.Pass):
            found.append((node.lineno, "pass"))
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            found.append((node.lineno, node.id))
        if call in ("eval", "exec", "os.system", "os.popen") or re.match(
            r"(c?pickle|marshal|shelve|dill)\.(load|dump)", call
        ):
            found.append((node.lineno, call))
        if isinstance(node, ast.Call) and any(key.arg == "shell" for key in node.keywords):
            found.append((node.lineno, "shell="))
        if call == "torch.load" and "weights_only" not in ast.unparse(node):
            found.append((node.lineno, "torch.load without weights_only"))
    assert found == []


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"#.*\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in WRITTEN
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_no_module_is_a_grab_bag() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "tools", "shared", "core", "base"}
    assert [path for path in WRITTEN if path.stem in vague or path.parent.name in vague] == []


def test_annotations_are_never_evaluated_at_import() -> None:
    """Every module with functions or classes postpones them, as the agent must for Python 3.9."""
    code = ast.FunctionDef | ast.ClassDef | ast.AnnAssign
    without = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(isinstance(node, code) for node in tree(path).body)
        and "__future__.annotations" not in {name for node in tree(path).body for name in imported(node)}
    ]
    assert without == []
