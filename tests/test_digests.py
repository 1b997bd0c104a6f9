"""What counts as the same input: the user's code and tensors, independent of what happens to be loaded."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.pipeline.digests import code_digest, inputs_digest, seeded, state_digest
from edgeprune.workload import Workload, load_workload

MAIN = """
import torch
from parts import body
import parts.head as head

def model():
    import late
    return torch.nn.Sequential(body.make(), head.make(), late.make())

def inputs():
    return (torch.zeros(1, 2),)
"""
PART = "from torch import nn\n\ndef make():\n    return nn.Linear(2, 2)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workload that imports a package, a submodule, and a module inside a function."""
    (tmp_path / "parts").mkdir()
    files = {"main.py": MAIN, "parts/__init__.py": "", "late.py": PART, "unused.py": PART}
    files |= {"parts/body.py": "from . import shared\n" + PART, "parts/head.py": PART, "parts/shared.py": "SIZE = 2\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("parts", "late", "unused")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _digest(project: Path) -> str:
    return code_digest(load_workload(str(project / "main.py")), nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["main.py", "parts/body.py", "parts/head.py", "parts/shared.py", "late.py"])
def test_every_file_that_the_workload_reaches_counts(project: Path, name: str) -> None:
    before = _digest(project)
    (project / name).write_text((project / name).read_text() + "# edited\n")
    assert _digest(project) != before


def test_what_it_does_not_reach_and_where_it_lies_do_not_count(project: Path) -> None:
    before = _digest(project)
    (project / "unused.py").write_text("EDITED = True\n")
    importlib.import_module("unused")
    assert _digest(project) == before
    moved = project / "moved"
    moved.mkdir()
    for name in ("main.py", "late.py", "parts"):
        (project / name).rename(moved / name)
    assert _digest(moved) == before


def test_the_file_of_the_networks_class_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = load_workload(str(project / "main.py"))
    (project / "mine.py").write_text("from torch import nn\n\nclass Mine(nn.Linear):\n    SCALE = 1\n")
    mine = importlib.import_module("mine").Mine(1, 1)
    before = code_digest(workload, mine)
    assert before != code_digest(workload, nn.Linear(1, 1))
    (project / "mine.py").write_text("from torch import nn\n\nclass Mine(nn.Linear):\n    SCALE = 2\n")
    assert code_digest(workload, mine) != before
    monkeypatch.delitem(sys.modules, "mine")


def test_a_workload_without_a_file_has_a_digest() -> None:
    namespace: dict[str, object] = {}
    exec("def model(): return None\ndef inputs(): return ()", namespace)
    workload = Workload(name="typed", source="<typed>", model=namespace["model"], inputs=namespace["inputs"])  # type: ignore[arg-type]
    assert len(code_digest(workload, nn.Linear(1, 1))) == 64


def test_tensors_differ_by_name_shape_dtype_and_value() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).double()}]
    others += [{"a": torch.ones(2, 3)}, {"a": torch.zeros(2, 3), "b": torch.zeros(0)}]
    digests = {state_digest(state) for state in [base, *others]}
    assert len(digests) == 6
    assert state_digest({"a": torch.zeros(3, 2).t()}) == state_digest(base)
    assert state_digest({"a": torch.zeros((), dtype=torch.bfloat16)}) != state_digest({"a": torch.zeros(())})
    assert inputs_digest((torch.zeros(1),)) != inputs_digest((torch.zeros(1), torch.zeros(1)))


def test_a_seeded_block_repeats_itself_and_leaves_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def inside(seed: int, label: str) -> tuple[float, float, float]:
        with seeded(seed, label):
            return draw()

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert inside(0, "plan") == inside(0, "plan")
    assert inside(0, "plan") != inside(0, "bench")
    assert inside(0, "plan") != inside(1, "plan")
    assert torch.equal(torch.random.get_rng_state(), before)
