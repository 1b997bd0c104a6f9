"""Networks made ready for converters: untouched originals, names, ranges, batches."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import ExportError, ModelError
from edgeprune.export.capture import capture, prepare
from edgeprune.export.feeds import draw
from edgeprune.values import TensorSpec
from tests.export_networks import Centred, OneBatch, everything, linear


def test_names_shapes_and_ranges() -> None:
    model, inputs = everything()
    subject = prepare(model, inputs)
    assert [(spec.name, spec.shape, spec.dtype) for spec in subject.inputs] == [
        ("image", (None, 3, 10, 10), "float32"),
        ("tokens", (None, 4), "int64"),
    ]
    assert (subject.inputs[1].low, subject.inputs[1].high) == (inputs[1].min().item(), inputs[1].max().item())
    assert [spec.name for spec in subject.outputs] == ["zebra", "best", "mask", "far"]
    assert subject.batch is None
    assert [len(tensor) for tensor in subject.examples] == [1, 1]


def test_further_inputs_widen_the_range() -> None:
    model, inputs = linear()
    subject = prepare(model, inputs, [(torch.full((2, 6), 50.0),)])
    assert subject.inputs[0].high == 50.0


def test_the_network_is_not_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    capture(prepare(model, (torch.randn(3, 4),)), dynamic=True)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [(OneBatch(), 1, "another batch size"), (Centred(), 1, "influence each other"), (Centred(), 4, "influence")],
)
def test_a_batch_that_is_not_free_is_found(model: nn.Module, size: int, reason: str) -> None:
    subject = prepare(model, (torch.randn(size, 3, 2, 2),))
    assert subject.batch == size
    assert reason in str(subject.reason)
    assert len(subject.examples[0]) == size


def test_an_output_without_batch_fixes_it() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    subject = prepare(Mean(), (torch.randn(1, 3),))
    assert subject.batch == 1
    assert subject.outputs[0].shape == ()


def test_names_of_unnamed_and_clashing_tensors() -> None:
    class Star(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"input_0": tensors[0] + 1, "input_1": tensors[1]}

    subject = prepare(Star(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert [spec.name for spec in subject.inputs] == ["input_0", "input_1"]
    assert [spec.name for spec in subject.outputs] == ["input_0_1", "input_1_1"]


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("the head is missing")


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("model", "inputs", "error", "text"),
    [
        (Failing(), (torch.ones(1, 3),), ModelError, "the head is missing"),
        (Noisy(), (torch.ones(4, 300),), ModelError, "differs between two runs"),
        (Broken(), (torch.ones(1, 3),), ExportError, "'output' is not finite"),
        (Locked(), (torch.ones(1, 3),), ExportError, "cannot be copied"),
        (nn.ReLU(), (torch.ones(0, 3),), ModelError, "hold no samples"),
        (nn.ReLU(), (), ModelError, "no inputs"),
        (nn.Identity(), (torch.ones(1, 3, dtype=torch.bfloat16),), ExportError, "bfloat16"),
    ],
)
def test_bad_networks(model: nn.Module, inputs: tuple[torch.Tensor, ...], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        prepare(model, inputs)


def test_a_failing_forward_names_the_users_line() -> None:
    with pytest.raises(ModelError) as caught:
        prepare(Failing(), (torch.ones(1, 3),))
    assert caught.value.where is not None
    assert "test_export_capture.py:" in caught.value.where


def test_control_flow_on_data_cannot_be_captured() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ExportError, match="cannot capture") as caught:
        capture(prepare(Branch(), (torch.ones(1, 3),)), dynamic=False)
    assert "test_export_capture.py:" in str(caught.value.where)


@given(
    st.sampled_from(["int32", "int64", "uint8"]),
    st.tuples(st.integers(0, 200), st.integers(0, 50)),
    st.integers(1, 4),
)
def test_random_integers_stay_in_range(dtype: str, bounds: tuple[int, int], count: int) -> None:
    low, high = bounds[0], bounds[0] + bounds[1]
    spec = TensorSpec(name="tokens", shape=(None, 5), dtype=dtype, low=low, high=high)
    (array,) = draw([spec], count, seed=0)
    assert array.shape == (count, 5)
    assert array.dtype == dtype
    assert low <= array.min() <= array.max() <= high


def test_random_floats_fill_the_range_and_a_constant_is_widened() -> None:
    wide = TensorSpec(name="x", shape=(None, 1000), dtype="float32", low=2.0, high=4.0)
    constant = TensorSpec(name="y", shape=(7,), dtype="float32", low=0.0, high=0.0)
    flag = TensorSpec(name="z", shape=(None, 50), dtype="bool", low=0.0, high=1.0)
    x, y, z = draw([wide, constant, flag], 1, seed=0)
    assert 2.0 <= x.min() < 2.1
    assert 3.9 < x.max() <= 4.0
    assert y.shape == (7,)
    assert np.ptp(y) > 0
    assert set(np.unique(z)) == {False, True}
