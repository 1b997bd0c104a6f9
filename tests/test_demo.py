"""The embedded example: its data, its weights, and the template that runs from any folder."""

from __future__ import annotations

import ast
import importlib.util
import io
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import edgeprune.demo
from edgeprune.demo import workload_template as example
from edgeprune.workload import OPTIONAL, REQUIRED, build_model, call, example_inputs, load_workload

ROOT = Path(__file__).resolve().parent.parent
FOLDER = files("edgeprune.demo")
HAS_SKLEARN = importlib.util.find_spec("sklearn") is not None


@pytest.fixture
def trainer() -> ModuleType:
    path = ROOT / "benchmarks" / "train_digits.py"
    if not path.is_file():
        pytest.skip("benchmarks/ is not beside tests/: this is not a checkout")
    spec = importlib.util.spec_from_file_location("train_digits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


def test_the_demo_is_a_complete_workload() -> None:
    workload = load_workload(edgeprune.demo.WORKLOAD)
    assert all(callable(getattr(workload, name)) for name in REQUIRED + OPTIONAL)
    inputs = example_inputs(workload)
    assert inputs[0].shape == (1, 1, 8, 8)
    assert build_model(workload)(*inputs).shape == (1, 10)


def test_splits_are_fixed_and_disjoint_and_hold_every_digit() -> None:
    sizes = {name: len(example.split(name)) for name in ("train", "validation", "test")}
    assert sizes == {"train": 1197, "validation": 240, "test": 360}
    for name in sizes:
        images, digits = example.split(name)[:]
        assert images.dtype == torch.float32
        assert 0.0 <= images.min() < images.max() <= 1.0
        assert set(digits.tolist()) == set(range(10))


def test_the_weights_reach_the_accuracy_that_is_claimed() -> None:
    workload = load_workload(edgeprune.demo.WORKLOAD)
    model = build_model(workload)
    with torch.no_grad():
        pairs = [([model(batch[0]).numpy()], batch) for batch in call(workload, "test_data")]
    assert call(workload, "evaluate_outputs", pairs)["top1"] >= 0.975
    validation = call(workload, "evaluate", model)
    assert validation["top1"] >= 0.975
    assert 0 < validation["cross_entropy_loss"] < 0.3


def test_a_train_step_gives_gradients_to_every_parameter() -> None:
    workload = load_workload(edgeprune.demo.WORKLOAD)
    model = build_model(workload).train()
    batch = next(iter(call(workload, "train_data")))
    loss = call(workload, "train_step", model, batch)
    loss.backward()
    assert loss.ndim == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_calibration_data_are_inputs_only_and_the_same_every_time() -> None:
    workload = load_workload(edgeprune.demo.WORKLOAD)
    first, second = list(call(workload, "calibration_data")), list(call(workload, "calibration_data"))
    assert [tuple(part.shape for part in batch) for batch in first] == [((32, 1, 8, 8),)] * 8
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_the_template_defines_seven_functions_each_explained() -> None:
    tree = ast.parse(edgeprune.demo.template())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    public = [name for name in functions if name in REQUIRED + OPTIONAL]
    assert len(public) == 7
    assert set(REQUIRED) <= set(public)
    assert all(ast.get_docstring(functions[name]) for name in public)


def test_the_template_runs_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "workload.py").write_text(edgeprune.demo.template(), encoding="utf-8")
    code = (
        "from edgeprune.workload import *; w = load_workload('workload.py'); m = build_model(w);"
        "print(w.name, tuple(m(*example_inputs(w)).shape), call(w, 'evaluate', m)['top1'] > 0.9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["workload", "(1,", "10)", "True"], done.stderr


def test_data_and_weights_hold_no_pickle_and_stay_small() -> None:
    with np.load(str(FOLDER / "digits.npz"), allow_pickle=False) as data:
        assert {name: data[name].shape for name in data} == {
            "images": (1797, 8, 8),
            "digits": (1797,),
            "split": (1797,),
        }
        assert all(data[name].dtype == np.uint8 for name in data)
    assert len((FOLDER / "digits.npz").read_bytes()) < 60_000
    assert len((FOLDER / "digits.safetensors").read_bytes()) < 500_000


def test_the_data_name_their_authors_and_licence() -> None:
    text = (FOLDER / "digits.LICENSE.txt").read_text(encoding="utf-8")
    assert all(word in text for word in ("Alpaydin", "Kaynak", "UCI", "BSD 3-Clause", "scikit-learn"))


@pytest.mark.skipif(not HAS_SKLEARN, reason="scikit-learn is not installed")
def test_the_data_are_those_of_scikit_learn(trainer: ModuleType) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    with np.load(str(FOLDER / "digits.npz"), allow_pickle=False) as shipped:
        assert np.array_equal(shipped["images"], digits.images)
        assert np.array_equal(shipped["digits"], digits.target)
        split = shipped["split"]
    packed = trainer.pack(digits.images, digits.target)
    assert packed == trainer.pack(digits.images, digits.target)
    with np.load(io.BytesIO(packed), allow_pickle=False) as again:
        assert np.array_equal(again["split"], split)


@pytest.mark.usefixtures("one_thread")
def test_training_is_deterministic(trainer: ModuleType) -> None:
    first, second = trainer.train(1).state_dict(), trainer.train(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_training_reaches_the_accuracy_that_is_claimed(trainer: ModuleType) -> None:
    assert trainer.accuracy(trainer.train(40), "test") >= 0.975
