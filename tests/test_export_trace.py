"""Looking inside: every value of a network and of its files, in order, with the user's lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.errors import VerificationError
from edgeprune.export.capture import prepare
from edgeprune.export.opened import open_artifact
from edgeprune.export.trace import file_steps, network_steps
from tests.export_networks import converted, waves
from tests.tiny_networks import write_lookup_onnx


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_the_steps_of_a_file_end_in_its_outputs(suffix: str) -> None:
    opened = open_artifact(converted("waves", suffix)[0])
    x = torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(0)).numpy()
    steps, known = file_steps(opened, [x]), set[str]()
    for step in steps:
        assert step.inputs, f"{step.operator} takes nothing that depends on the inputs"
        known.update(step.outputs)
    values = [array for step in steps for array in step.values.values()]
    for expected in opened.run([x]):
        assert any(value.shape == expected.shape and np.allclose(value, expected, atol=1e-5) for value in values)


def test_the_steps_of_a_network_carry_the_users_lines() -> None:
    model, inputs = waves()
    steps = network_steps(prepare(model, inputs), [inputs[0].numpy()])
    first = next(step for step in steps if "conv1d" in step.operator)
    assert first.values[first.outputs[0]].shape == (1, 8, 20)
    source = Path(__file__).with_name("export_networks.py")
    number = 1 + next(
        i for i, line in enumerate(source.read_text().splitlines()) if "self.activation(self.conv" in line
    )
    assert first.where == f"{source}:{number}"
    head = model(*inputs)[0].detach().numpy()
    assert any(np.array_equal(value, head) for step in steps for value in step.values.values())


def test_a_file_that_fails_inside_is_an_error_of_verification(tmp_path: Path) -> None:
    opened = open_artifact(write_lookup_onnx(tmp_path / "m.onnx", rows=3))
    with pytest.raises(VerificationError, match="does not run step by step"):
        file_steps(opened, [np.full((1, 4), 99)])
