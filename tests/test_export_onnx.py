"""ONNX files: names, batch, cleanliness, and what cannot be converted."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgeprune.errors import ExportError, MissingDependency
from edgeprune.export import export
from edgeprune.export import onnx as onnx_format
from tests.export_networks import converted, linear


def test_names_and_batch_are_those_of_the_user() -> None:
    model = onnx.load(converted("everything", ".onnx")[0])
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert list(shapes) == ["image", "tokens", "zebra", "best", "mask", "far"]
    assert shapes["tokens"] == ["batch", 4]
    assert shapes["mask"] == ["batch", 6, 20, 20]
    names = {weight.name for weight in model.graph.initializer}
    assert {"stem.weight", "table.weight"} <= names


def test_a_file_tells_nothing_about_the_machine_it_was_made_on() -> None:
    content = converted("everything", ".onnx")[0].read_bytes()
    for word in (b"site-packages", b"stack_trace", b".py", str(Path(__file__).parent).encode()):
        assert word not in content


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    model, inputs = linear()
    first, second = (export(model, inputs, tmp_path / name).artifact for name in ("a.onnx", "b.onnx"))
    assert first.sha256 == second.sha256


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Decomposition(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match="svd") as caught:
        export(Decomposition(), (torch.randn(1, 3, 3),), tmp_path / "m.onnx")
    assert caught.value.where == str(tmp_path / "m.onnx.log")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx.log"]


def test_weights_beyond_the_format_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "WEIGHTS_LIMIT_BYTES", 100)
    model, inputs = linear()
    with pytest.raises(ExportError, match="ends at 2 GB"):
        export(model, inputs, tmp_path / "m.onnx")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, inputs = linear()
    with pytest.raises(MissingDependency, match="onnx") as caught:
        export(model, inputs, tmp_path / "m.onnx")
    assert caught.value.fix == "pip install onnx"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_do_not_arrange_their_weights_in_every_inference(
    tmp_path: Path, kind: type[nn.RNNBase]
) -> None:
    """Gates are in another order in ONNX; without folding, every direction has 8 cuts and 2 joins of weights."""
    exported = export(kind(8, 300, batch_first=True, bidirectional=True), (torch.randn(1, 5, 8),), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    readers = {node.op_type for node in model.graph.node if weights & set(node.input)}
    assert readers == {kind.__name__}
    assert exported.artifact.size_bytes < 1.02 * sum(
        tensor.numel() * 4 for tensor in kind(8, 300, bidirectional=True).parameters()
    )
