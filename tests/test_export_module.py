"""Files that are called like the networks they came from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.export import ArtifactModule
from tests.export_networks import converted, everything, waves
from tests.tiny_networks import write_dense_onnx


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_structure_dtypes_and_values_are_the_networks(suffix: str) -> None:
    model, inputs = everything()
    module = ArtifactModule(converted("everything", suffix)[0])
    with torch.no_grad():
        wanted, found = model(*inputs), module(inputs[0], tokens=inputs[1])
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_nested_outputs_come_back() -> None:
    model, inputs = waves()
    logits, (pooled, nothing) = ArtifactModule(converted("waves", ".tflite")[0])(*inputs)
    wanted = model(*inputs)
    torch.testing.assert_close(logits, wanted[0], atol=1e-5, rtol=1e-5)
    assert pooled.shape == wanted[1][0].shape
    assert nothing is None


def test_a_users_evaluate_runs_on_it() -> None:
    model, _ = everything()
    module = ArtifactModule(converted("everything", ".tflite")[0])

    def evaluate(network: nn.Module) -> float:
        network.eval()
        device = next(network.parameters()).device
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            image = torch.randn(7, 3, 10, 10, generator=generator).to(device)
            tokens = torch.randint(2, 11, (7, 4), generator=generator).to(device)
            return network(image, tokens)["zebra"].mean().item()

    assert evaluate(module) == pytest.approx(evaluate(model), abs=1e-5)


def test_a_file_without_a_record_gives_its_tensor(tmp_path: Path) -> None:
    module = ArtifactModule(write_dense_onnx(tmp_path / "m.onnx", features=4))
    assert module(torch.ones(3, 4)).shape == (3, 4)


def test_a_copy_runs_too(tmp_path: Path) -> None:
    module = ArtifactModule(write_dense_onnx(tmp_path / "m.onnx", features=4))
    x = torch.randn(2, 4)
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    module = ArtifactModule(converted("everything", ".onnx")[0])
    for args, kwargs in (((torch.ones(1),), {}), ((torch.ones(1),) * 3, {}), ((), {"picture": torch.ones(1)})):
        with pytest.raises(ModelError, match="takes the inputs image, tokens"):
            module(*args, **kwargs)
