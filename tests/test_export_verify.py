"""Comparing networks and files: what is tried, what fails, what is said."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import ConfigError, ResolveError, VerificationError
from edgeprune.export import export, require, verify_pair
from edgeprune.export import verify as verify_module
from edgeprune.export.capture import prepare
from edgeprune.export.feeds import input_sets
from edgeprune.export.limits import limits_of
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.export.quality import distance
from edgeprune.export.verify import Side, verify_artifact
from edgeprune.values import Check, TensorSpec
from tests.export_networks import converted, everything, linear, waves
from tests.quantised_files import quantised_tflite
from tests.tiny_networks import write_dense_onnx, write_difference_onnx

SPEC = TensorSpec(name="x", shape=(None, 3), dtype="float32")


def changed(model: nn.Module, amount: float = 0.01) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(amount)
    return other


def test_a_free_batch_is_tried_with_one_and_several_samples() -> None:
    checks = converted("everything", ".onnx")[1].checks
    assert [(check.inputs, check.batch_size) for check in checks if check.output == "zebra"] == [
        ("user inputs", 2),
        ("random inputs", 1),
        ("random inputs", 3),
        ("edge values", 1),
        ("user inputs again", 2),
    ]
    assert {check.output for check in checks} == {"zebra", "best", "mask", "far"}
    assert all(check.passed and check.max_rel < 1e-5 for check in checks)
    assert checks[0].name == "everything.onnx against the network"


def test_a_fixed_batch_is_tried_on_several_samples_in_one_runtime() -> None:
    checks = converted("everything", ".tflite")[1].checks
    assert [(check.inputs, check.batch_size) for check in checks if check.output == "best"] == [
        ("user inputs", 1),
        ("random inputs", 1),
        ("random inputs, 3 samples", 1),
        ("edge values", 1),
        ("user inputs again", 1),
    ]
    assert all(check.passed for check in checks)


def test_any_two_of_files_and_networks() -> None:
    model, inputs = everything()
    onnx, tflite = converted("everything", ".onnx")[0], converted("everything", ".tflite")[0]
    assert all(check.passed for check in verify_pair(onnx, str(tflite)))
    assert all(check.passed for check in verify_pair(tflite, model))
    assert all(check.passed for check in verify_pair(model, onnx, inputs=inputs))
    assert all(check.passed for check in verify_pair(model, copy.deepcopy(model), inputs=inputs))


def test_a_changed_weight_is_found_without_inputs() -> None:
    model, _ = everything()
    checks = verify_pair(converted("everything", ".onnx")[0], changed(model, 0.5))
    failed = [check for check in checks if not check.passed]
    assert {check.inputs for check in failed} == {check.inputs for check in checks}
    assert {"zebra", "mask"} <= {check.output for check in failed}
    with pytest.raises(VerificationError, match="differs by"):
        require(checks)


def test_two_networks_need_inputs() -> None:
    with pytest.raises(ConfigError, match="without inputs"):
        verify_pair(nn.ReLU(), nn.ReLU())


def test_sides_that_cannot_be_equal(tmp_path: Path) -> None:
    dense = write_dense_onnx(tmp_path / "dense.onnx", features=3)
    with pytest.raises(VerificationError, match="1 and 2 inputs"):
        verify_pair(dense, write_difference_onnx(tmp_path / "difference.onnx"))
    with pytest.raises(VerificationError, match=r"dense.onnx has 1 outputs, the network has 2"):
        verify_pair(dense, Split())
    with pytest.raises(ResolveError, match="no file"):
        verify_pair(dense, tmp_path / "absent.onnx")


class Split(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_other_shapes_differ(tmp_path: Path) -> None:
    dense = write_dense_onnx(tmp_path / "dense.onnx", features=3)
    checks = verify_pair(dense, nn.Linear(3, 4))
    assert all(check.max_rel == math.inf for check in checks)
    assert Check.from_dict(checks[0].as_dict()) == checks[0]
    assert checks[0].as_dict()["max_rel"] is None


def side(run: Any, batch: int | None = None) -> Side:
    return Side(run_each=lambda feeds: [run(feed) for feed in feeds], outputs=(SPEC,), batch=batch, label="side")


def test_state_between_samples_is_found() -> None:
    memory = [np.zeros((1, 3), np.float32)]

    def stateful(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        memory[0] = memory[0] + arrays[0]
        return [memory[0]]

    x = np.ones((1, 3), np.float32)
    sets = input_sets([SPEC], [[x]], 1, edges=True)
    checks = verify_module.compare(side(lambda a: [a[0]], 1), side(stateful, 1), sets, limits_of("fp32"))
    assert checks[0].passed
    assert not any(check.passed for check in checks[1:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail_on_either_side(bad: float) -> None:
    good, broken = np.ones(3), np.array([1, bad, 1])
    assert distance(good, broken) == (math.inf, math.inf)
    assert distance(broken, broken) == (math.inf, math.inf)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), st.floats(-1, 1, width=32))
def test_distance_is_relative_to_the_largest_value(values: list[float], shift: float) -> None:
    a = np.array(values, np.float32)
    b = a.astype(np.float64) + shift
    absolute, relative = distance(a, b)
    assert absolute == pytest.approx(abs(shift), rel=1e-6, abs=1e-12)
    assert relative == pytest.approx(absolute / max(np.abs(a).max(), 1e-6))
    assert distance(a, a) == (0.0, 0.0)


def test_unsigned_integers_and_booleans_have_a_distance() -> None:
    assert distance(np.array([0], np.uint8), np.array([255], np.uint8))[0] == 255
    assert distance(np.array([True, False]), np.array([True, True])) == (1.0, 1.0)
    assert distance(np.zeros((0, 2)), np.zeros((0, 2))) == (0.0, 0.0)


class Elsewhere:
    """A file's own runtime, but for inputs beyond 3, where it answers with noise and no error."""

    name, package, version = "tflite", "ai_edge_litert", "0"

    def __init__(self, opened: OpenArtifact) -> None:
        self._opened = opened
        self.inputs, self.outputs = opened.infos()

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        found = self._opened.run(arrays)
        return found if arrays[0].max() < 3 else [-value for value in found]


@pytest.mark.parametrize("kind", ["int8-weights", "int8-dynamic"])
def test_kernels_that_are_wrong_without_an_error_are_found_beside_the_users_inputs(tmp_path: Path, kind: Any) -> None:
    """The user's inputs stay below 3; edge values and random inputs reach 4, as one sample of the data does."""
    model, (x,) = waves()
    subject = prepare(model, (x.clamp(-2, 2),), [(torch.full_like(x, 4.0),)])
    feeds = [[x.clamp(-2, 2).numpy()]]
    opened = open_artifact(quantised_tflite(converted("waves", ".tflite")[0], tmp_path / "m.tflite", kind, feeds))
    limits, examples = limits_of(kind), [(x.clamp(-2, 2),)]
    good = verify_artifact(subject, opened, examples=examples, limits=limits, name="m")
    assert all(check.passed for check in good), [check for check in good if not check.passed]
    assert {check.name for check in good} == {"m against the network", "m against reference arithmetic"}
    wrong = opened.in_runtime(Elsewhere(opened), "m")
    checks = verify_artifact(subject, wrong, examples=examples, limits=limits, name="m")
    failed = {check.inputs for check in checks if not check.passed}
    assert failed == {"random inputs", "random inputs, 3 samples", "edge values"}
    with pytest.raises(VerificationError, match=r"against reference arithmetic: .* has an SQNR of"):
        require(checks)


def test_a_quantised_file_is_judged_by_its_own_precision(tmp_path: Path) -> None:
    model, inputs = waves()
    source = converted("waves", ".tflite")[0]
    path = quantised_tflite(source, tmp_path / "m.tflite", "int8-weights", [[inputs[0].numpy()]])
    checks = verify_pair(path, model, inputs=inputs)
    assert [check.inputs for check in checks if check.output == "output_0"] == ["user inputs", "user inputs again"]
    assert all(check.passed and check.min_sqnr_db == 17 for check in checks)
    assert all(check.passed for check in verify_pair(path, source))
    strict = verify_pair(path, model, inputs=inputs, min_sqnr_db=120)
    assert not any(check.passed for check in strict if check.output == "output_0")


def test_inputs_that_the_network_does_not_take_are_no_edges() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x == x.flatten()[0]).all()):
                raise ValueError("a constant image")
            return torch.log(x.abs().sum((1, 2)) - 3)

    x = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    checks = verify_pair(Picky(), Picky(), inputs=(x,))
    assert all(check.passed for check in checks)
    assert len(checks) >= 4


def test_the_worst_failure_is_raised_with_its_place() -> None:
    def check(relative: float) -> Check:
        return Check(
            name="m.onnx against the network",
            inputs="random inputs",
            batch_size=3,
            max_abs=relative,
            max_rel=relative,
            tolerance=1e-4,
            output="logits",
            passed=relative <= 1e-4,
        )

    require([check(1e-5)])
    with pytest.raises(VerificationError, match=r"'logits' differs by 2.0e-03 .* limit 1.0e-04 \(random") as near:
        require([check(1e-5), check(2e-3), check(1e-3)], where="m.onnx.rejected")
    assert near.value.where == "m.onnx.rejected"
    assert "export.tolerance" in str(near.value.fix)
    with pytest.raises(VerificationError) as far:
        require([check(0.5)])
    assert far.value.fix is None


def test_further_inputs_are_checked_too(tmp_path: Path) -> None:
    model, inputs = linear()
    exported = export(model, inputs, tmp_path / "m.onnx", checks_inputs=[(torch.randn(7, 6),), (torch.zeros(2, 6),)])
    assert [check.batch_size for check in exported.checks if check.inputs == "user inputs"] == [1, 7, 2]
