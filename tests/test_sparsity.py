"""Weight pruning through the pipeline: runs and folders, what they keep on disk, and what they say."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune import rundir
from edgeprune.cli import main
from edgeprune.config import RunConfig
from edgeprune.errors import ConfigError, NothingToPrune, VerificationError
from edgeprune.export import zeros_in
from edgeprune.export.sizes import compressed_bytes
from edgeprune.pipeline import exporting, stages
from edgeprune.pipeline.compress import RunResult, compress, resume
from edgeprune.pipeline.folders import load_masks, load_state, open_pruned
from edgeprune.pipeline.prepare import default_output, prepare
from edgeprune.pipeline.sparsity import lost_zeros
from edgeprune.pruning import Masks
from edgeprune.values import Json
from tests.test_pipeline import TINY, _config, _states
from tests.workloads import tiny

LAMP = {"sparsify__method": "lamp", "sparsify__amount": 0.7}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with weight pruning alone, in both formats; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("sparse")
    shutil.copy(TINY, folder / "tiny.py")
    return compress(_config(folder, prune__ratio=0.0, export__formats=["onnx", "tflite"], **LAMP))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(TINY, tmp_path / "tiny.py")
    return tmp_path


@pytest.fixture
def copied(finished: RunResult, folder: Path) -> Path:
    shutil.copytree(finished.folder, folder / "run")
    return folder


def _sparse(folder: Path, **changes: object) -> RunConfig:
    chosen: dict[str, object] = {"prune__ratio": 0.0, **LAMP}
    return _config(folder, **(chosen | changes))


def _zeros_hold(run: Path) -> Masks:
    masks, state = load_masks(run), load_state(run / rundir.FINETUNED)
    assert masks is not None
    for name, mask in masks.kept.items():
        assert (state[name][~mask] == 0).all()
        assert (state[name][mask] != 0).any()
    return masks


def test_a_run_without_structured_pruning_keeps_its_zeros_to_the_files(finished: RunResult) -> None:
    masks = _zeros_hold(finished.folder)
    data = finished.data
    assert data["network"]["params"]["pruned"] == data["network"]["params"]["dense"]
    assert masks.zeros == round(0.7 * masks.weights) == data["sparsity"]["zeros"]
    assert {row["name"] for row in data["sparsity"]["layers"]} == {"conv1.weight", "conv2.weight", "classify.weight"}
    for name in ("model.onnx", "model.tflite"):
        assert zeros_in(finished.folder / name) >= masks.zeros
        assert zeros_in(finished.folder / name.replace("model", "baseline")) < masks.zeros / 4
    assert data["notices"] == []
    assert data["metrics"]["finetuned"]["top1"] > data["metrics"]["dense"]["top1"]


def test_a_run_says_what_the_zeros_bring(finished: RunResult) -> None:
    files = {row["name"]: row for row in finished.data["sparsity"]["files"]}
    assert set(files) == {f"{role}.{form}" for role in ("baseline", "model") for form in ("onnx", "tflite")}
    for name, row in files.items():
        content = (finished.folder / name).read_bytes()
        assert row == {"name": name, "size_bytes": len(content), "compressed_bytes": len(zlib.compress(content))}
    for form in ("onnx", "tflite"):
        dense, sparse = files[f"baseline.{form}"], files[f"model.{form}"]
        assert sparse["size_bytes"] == pytest.approx(dense["size_bytes"], rel=0.05)
        assert sparse["compressed_bytes"] < 0.6 * dense["compressed_bytes"]
    assert "x smaller compressed" in finished.data["verdict"]["text"]
    page = (finished.folder / "report.html").read_text()
    assert "A dense runtime multiplies by them all the same and is not faster." in page
    assert "70.0% of 9.63 k weights in 3 layers are zero (lamp)" in page
    assert "After weight pruning" in page


def test_the_same_command_again_reuses_every_stage(copied: Path) -> None:
    again = compress(_sparse(copied, export__formats=["onnx", "tflite"]))
    assert set(_states(again).values()) == {"reused"}
    assert "sparsify" in _states(again)
    assert again.data["sparsity"]["zeros"] > 0


def test_another_amount_reruns_from_the_stage_and_no_method_leaves_nothing_behind(copied: Path) -> None:
    more = compress(_sparse(copied, sparsify__amount=0.8))
    assert {name for name, state in _states(more).items() if state == "reused"} == {
        "plan",
        "baseline",
        "apply",
        "recalibrate",
        "export baseline.onnx",
        "accuracy baseline.onnx",
    }
    assert _zeros_hold(copied / "run").sparsity == pytest.approx(0.8, abs=1e-4)
    off = compress(_config(copied, prune__ratio=0.0))
    assert "sparsify" not in _states(off)
    assert off.data["sparsity"] is None
    assert load_masks(copied / "run") is None
    assert zeros_in(copied / "run" / "model.onnx") < 100
    assert "Single weights" not in (copied / "run" / "report.html").read_text()


def test_damaged_masks_are_made_again(copied: Path) -> None:
    before = load_masks(copied / "run")
    (copied / "run" / rundir.MASKS).unlink()
    again = compress(_sparse(copied))  # the bench is of two files now, all else is as it was
    assert {name for name, state in _states(again).items() if state == "done"} == {"sparsify", "bench"}
    after = load_masks(copied / "run")
    assert before is not None
    assert after is not None
    assert before.digest == after.digest


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_run_that_is_killed_while_training_ends_with_the_same_bits(folder: Path, ratio: float) -> None:
    whole = compress(_sparse(folder, prune__ratio=ratio, output=str(folder / "whole"), finetune__epochs=3))
    program = f"""
import os, signal
from pathlib import Path
from edgeprune.pipeline.compress import compress
from tests.test_sparsity import _sparse
def listen(event):
    if event.stage == "finetune" and event.state == "progress" and event.facts["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
compress(_sparse(Path({str(folder)!r}), prune__ratio={ratio}, finetune__epochs=3), listen=listen)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((folder / "run").glob("checkpoint*"))
    resumed = resume(folder / "run")
    assert _states(resumed)["sparsify"] == "reused"
    for name in (rundir.FINETUNED, rundir.MASKS):
        assert rundir.file_digest(folder / "run" / name) == rundir.file_digest(folder / "whole" / name)
    masks = _zeros_hold(folder / "run")
    if ratio:  # after structured pruning the masks are those of the smaller network
        assert masks.kept["conv2.weight"].shape == (16, 16, 3, 3)
        assert whole.data["network"]["params"]["pruned"] < whole.data["network"]["params"]["dense"]


def test_a_network_that_cannot_be_pruned_by_channels_still_loses_weights(folder: Path) -> None:
    config = _sparse(folder, prune__keep=["*"])
    assert compress(config).data["sparsity"]["zeros"] > 0
    with pytest.raises(NothingToPrune):
        compress(_sparse(folder, prune__keep=["*"], prune__ratio=0.5, output=str(folder / "other")))


def test_an_export_whose_zeros_were_lost_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "run" / "model.onnx").unlink()
    original = exporting.network

    def trained(session: stages.Session, weights: str) -> nn.Module:
        model = original(session, weights)
        model.get_parameter("conv2.weight").data += 0.01
        return model

    monkeypatch.setattr(exporting, "network", trained)
    with pytest.raises(VerificationError, match=r"pruned weights of 'conv2\.weight' are not zero"):
        compress(_sparse(copied))
    assert not (copied / "run" / "model.onnx").exists()


def test_zeros_that_a_file_does_not_hold_are_told(finished: RunResult) -> None:
    masks = load_masks(finished.folder)
    assert lost_zeros(finished.folder / "model.onnx", masks) == ()
    (notice,) = lost_zeros(finished.folder / "baseline.onnx", masks)
    assert notice.code == "zeros-lost"
    assert lost_zeros(finished.folder / "baseline.onnx", None) == ()
    with pytest.raises(ConfigError, match="is neither"):
        zeros_in(finished.folder / "result.json")


def test_zeros_are_counted_in_every_floating_constant_of_a_file(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(torch.tensor([[0.0, 1.0], [0.0, -0.0]]).numpy(), "weight")
    sizes = numpy_helper.from_array(torch.zeros(5, dtype=torch.int64).numpy(), "sizes")
    tensor = numpy_helper.from_array(torch.tensor([0.0, 2.0]).numpy(), "constant")
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor),
        helper.make_node("Constant", [], ["b"], value_float=0.0),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weight, sizes])
    onnx.save(helper.make_model(graph), tmp_path / "file.onnx")
    assert zeros_in(tmp_path / "file.onnx") == 4


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"method": "lamp", "amount": 0.8}, "tiny-r0-lamp80"),
        ({"method": "n:m", "pattern": "2:4"}, "tiny-r0-2of4"),
        ({"method": "block", "amount": 0.5, "block": "4x1"}, "tiny-r0-4x1-50"),
        ({"method": "relative", "rate": 0.25}, "tiny-r0-relative0.25"),
        ({"method": "threshold", "threshold": 0.01}, "tiny-r0-threshold0.01"),
        ({}, "tiny-r0"),
    ],
)
def test_the_folder_of_a_run_names_the_method(folder: Path, section: Json, name: str) -> None:
    config = RunConfig(workload=str(folder / "tiny.py"), prune={"ratio": 0.0}, sparsify=section)  # type: ignore[arg-type]
    assert default_output(prepare(config)) == Path("runs") / name


def _cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main([*words, "--json", "-q"])
    return code, json.loads(capsys.readouterr().out)


def test_prune_finetune_and_export_as_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned, tuned = folder / "pruned", folder / "tuned"
    settings = ("-s", "sparsify.method=erk", "-s", "sparsify.amount=0.5")
    code, done = _cli(capsys, "prune", str(folder / "tiny.py"), "--ratio", "0.5", "-o", str(pruned), *settings)
    assert code == 0
    assert rundir.MASKS in done["files"]
    assert done["sparsity"]["zeros"] == round(0.5 * done["sparsity"]["weights"])
    code, _ = _cli(capsys, "finetune", str(pruned), "--epochs", "2", "-o", str(tuned))
    assert code == 0
    masks = _zeros_hold(tuned)
    loaded = open_pruned(tuned)
    assert loaded.masks is not None
    loaded.masks.check(loaded.model)
    code, done = _cli(capsys, "export", str(tuned), "-o", str(folder / "model.onnx"))
    assert code == 0
    assert done["artifact"]["metadata"]["sparsity"] == "0.5000"
    assert zeros_in(folder / "model.onnx") >= masks.zeros
    assert main(["prune", str(folder / "tiny.py"), "--ratio", "0.5", "-o", str(pruned)]) == 0
    assert load_masks(pruned) is None  # the network without pruned weights does not get those of the old one
    assert "are zero" not in capsys.readouterr().out
    assert main(["prune", str(folder / "tiny.py"), "-o", str(pruned), *settings]) == 0
    assert "are zero: a smaller compressed file, no faster dense runtime" in capsys.readouterr().out


def test_wrong_settings_end_a_command_with_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = _cli(
        capsys, "prune", str(folder / "tiny.py"), "-s", "sparsify.method=lamb", "-s", "sparsify.amount=0.5"
    )
    assert code == 2
    assert "did you mean 'lamp'" in found["message"]
    code, found = _cli(capsys, "prune", str(folder / "tiny.py"), "-s", "sparsify.amount=0.5")
    assert (code, found["fix"]) == (2, "-s sparsify.method=magnitude")


def test_recorded_calls_keep_the_layers_of_the_users_network() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 8)
            self.up = nn.ConvTranspose1d(8, 16, 2, groups=2)
            self.head = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.up(x))
            return self.head(hidden.view(-1, 16, 6).mean(2))

    torch.manual_seed(0)
    net, inputs = Wide().eval(), (torch.randn(2, 8, 5),)
    small = ep.apply(net, ep.plan(net, inputs, ratio=0.5, align=1), inputs)
    assert type(small).__name__ == "Captured"
    sparse, masks = ep.sparsify(small, amount=0.5)
    assert list(masks.kept) == ["up.weight", "head.weight"]
    assert type(sparse) is type(small)
    assert torch.isfinite(sparse(*inputs)).all()


def test_in_a_loop_of_ones_own() -> None:
    sparse, masks = ep.sparsify(tiny.model(), method="n:m", pattern="2:4")
    optimizer = torch.optim.AdamW(sparse.parameters(), lr=0.01)
    masks.hold(sparse, optimizer)
    for batch in tiny.train_data():
        optimizer.zero_grad()
        tiny.train_step(sparse, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    masks.check(sparse)
    assert masks.kept["conv2.weight"].sum() == masks.kept["conv2.weight"].numel() / 2


def test_compressed_bytes_are_those_of_deflate(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0" * 3_000_000 + bytes(range(256)) * 100)
    assert compressed_bytes(path) == len(zlib.compress(path.read_bytes()))
