"""Names of tensors in TFLite files: the user's modules, one name each, and what was fused passed over."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgeprune.export import export
from edgeprune.quantise import TfliteFloat
from edgeprune.quantise.flatbuffer import unpacked
from edgeprune.quantise.tensor_names import name_tensors_, named
from tests.export_networks import converted


class Nested(nn.Module):
    """A convolution with BatchNorm inside a block, a shortcut, and one module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x + self.block(x)))))
        return self.head(x.mean((2, 3)))


def tensors(content: bytes) -> list[str]:
    (graph,) = unpacked(content).subgraphs
    return [tensor.name.decode() for tensor in graph.tensors]


def test_tensors_are_called_after_the_modules_of_the_user_and_lower_precisions_keep_that(tmp_path: Path) -> None:
    target = tmp_path / "m.tflite"
    export(Nested(), (torch.randn(1, 3, 8, 8),), target)
    names = tensors(target.read_bytes())
    assert len(set(names)) == len(names)
    assert {"stem/CONV_2D", "twice/CONV_2D", "twice/CONV_2D_2", "stem.weight", "block.0.weight", "head.bias"} <= set(
        names
    )
    assert "serving_default_x" in names
    assert not any(";" in name or "Named" in name or "edgeprune_" in name for name in names)
    assert {"stem/CONV_2D", "block.0.weight"} <= set(tensors(TfliteFloat(target.read_bytes()).half()))


def test_a_file_without_marks_gets_the_names_of_its_operators() -> None:
    model = unpacked(converted("waves", ".tflite")[0].read_bytes())
    assert named(model)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"__main__.Other;" if not tensor.name.startswith(b"serving") else tensor.name
    assert not named(model)
    name_tensors_(model)
    assert named(model)
    assert b"CONV_2D" in {tensor.name for tensor in model.subgraphs[0].tensors}
