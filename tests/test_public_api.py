"""The names that `import edgeprune` offers, how lightly, and the ten lines of the README in one test each."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgeprune as ep
from tests.workloads import tiny

NAMES = [
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


def test_the_public_names_are_these() -> None:
    assert ep.__all__ == NAMES
    assert set(NAMES) <= set(dir(ep))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves(name: str) -> None:
    value = getattr(ep, name)
    assert value is not None
    if name in ("bench", "export"):
        assert value is importlib.import_module(f"edgeprune.{name}")
    if name != "__version__":
        assert callable(value)
        assert value.__doc__


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgeprune' has no attribute 'compres'"):
        ep.compres  # noqa: B018  the access is the test


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = """
import sys
import edgeprune
edgeprune.ConfigError, edgeprune.__version__, dir(edgeprune)
heavy = {"torch", "numpy", "pydantic", "onnx", "onnxruntime", "ai_edge_litert", "rich"} & set(sys.modules)
assert not heavy, heavy
edgeprune.RunConfig
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["import edgeprune.export", "from edgeprune.bench import measure", "pass"])
def test_export_and_bench_can_be_called_however_they_were_imported(first: str) -> None:
    program = f"""
import edgeprune as ep
{first}
for function in (ep.export, ep.bench, ep.reconstruct):
    try:
        function()
    except TypeError as error:
        assert "missing" in str(error), error
assert ep.export.ArtifactModule.__name__ == "ArtifactModule"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_steps_in_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = tiny.model().eval(), tiny.inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = ep.plan(model, inputs, ratio=0.5, criterion="taylor", step=tiny.train_step, data=tiny.train_data, align=8)
    small = ep.apply(model, plan, inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    solved = ep.reconstruct(small, model, plan, inputs, data=tiny.train_data, samples=64)
    (pictures, _), *_ = tiny.train_data()
    with torch.no_grad():
        errors = [(network(pictures) - model(pictures)).square().mean() for network in (solved, small)]
    assert errors[0] < errors[1]
    small = ep.recalibrate(small, tiny.train_data())
    tuned = ep.finetune(small, step=tiny.train_step, data=tiny.train_data, epochs=2, teacher=model)
    assert tiny.evaluate(tuned)["top1"] > tiny.evaluate(small)["top1"]
    artifact = ep.export(tuned, inputs, tmp_path / "small.onnx")
    baseline = ep.export(model, inputs, tmp_path / "baseline.onnx")
    assert artifact.size_bytes < baseline.size_bytes
    assert all(check.passed for check in ep.verify(tmp_path / "small.onnx", tuned, inputs=inputs))
    assert not all(check.passed for check in ep.verify(str(tmp_path / "small.onnx"), str(tmp_path / "baseline.onnx")))
    rows = ep.bench([artifact], baseline=baseline, processes=2, min_runs=5, min_seconds=0.02, warmup_seconds=0.0)
    assert {row.role for row in rows} == {"baseline", "model"}
    by_role = {row.role: row for row in rows}
    comparison = ep.compare(by_role["baseline"], by_role["model"])
    assert np.isfinite(comparison.ratio)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_arguments_are_checked_like_settings() -> None:
    with pytest.raises(ep.ConfigError, match=r"prune\.ratio = 1\.5"):
        ep.plan(tiny.model(), tiny.inputs(), ratio=1.5)
    with pytest.raises(ep.ConfigError, match="neither a step nor a teacher"):
        ep.finetune(tiny.model(), data=tiny.train_data)
    with pytest.raises(ep.ConfigError, match="an iterator, which ends after one pass"):
        ep.finetune(tiny.model(), data=iter(tiny.train_data()), step=tiny.train_step)
    with pytest.raises(ep.ConfigError, match=r"unknown key 'finetune\.learning_rate'"):
        ep.finetune(tiny.model(), data=tiny.train_data, step=tiny.train_step, learning_rate=1.0)


def test_export_in_another_precision(tmp_path: Path) -> None:
    model, inputs = tiny.model().eval(), tiny.inputs()
    exact = ep.export(model, inputs, tmp_path / "small.onnx")
    small = ep.export(model, inputs, tmp_path / "small.int8.onnx", precision="int8", calibration=tiny.train_data())
    assert (small.precision, small.size_bytes < exact.size_bytes) == ("int8", True)
    same = ep.export(model, inputs, tmp_path / "again.onnx", precision="int8", calibration=tiny.train_data())
    assert same.size_bytes == small.size_bytes
    pictures = torch.cat([batch[0] for batch in tiny.train_data()])
    np.save(tmp_path / "true.npy", pictures.numpy())
    (tmp_path / "settings").mkdir()
    for place, data in enumerate(
        (str(tmp_path / "true.npy"), tmp_path / "true.npy", tiny.train_data, iter([pictures]))
    ):
        path = tmp_path / "settings" / f"{place}.onnx"
        artifact = ep.export(model, inputs, path, precision="int8", calibration=data, methods=("minmax",), samples=32)
        assert artifact.precision == "int8"
    weights = ep.export(model, inputs, tmp_path / "weights.onnx", precision="int8-weights", min_sqnr_db=20.0)
    assert weights.precision == "int8-weights"
    with pytest.raises(ep.VerificationError, match="limit 150 dB"):
        ep.export(model, inputs, tmp_path / "strict.onnx", precision="int8-weights", min_sqnr_db=150.0)
    assert (tmp_path / "strict.onnx.rejected").is_file()


def test_what_int8_lacks_is_told(tmp_path: Path) -> None:
    model, inputs, path = tiny.model(), tiny.inputs(), tmp_path / "small.onnx"
    with pytest.raises(ep.ConfigError, match="int8 needs calibration data"):
        ep.export(model, inputs, path, precision="int8")
    with pytest.raises(ep.ResolveError, match="no file"):
        ep.export(model, inputs, path, precision="int8", calibration=tmp_path / "none.npz")
    with pytest.raises(ep.ConfigError, match=r"unknown key 'quantise\.sample'; did you mean 'samples'"):
        ep.export(model, inputs, path, precision="int8", calibration=tiny.train_data(), sample=3)
    with pytest.raises(ep.ModelError, match="shape"):
        ep.export(model, inputs, path, precision="int8", calibration=[torch.zeros(2, 3, 8, 8)])
    assert not path.exists()
