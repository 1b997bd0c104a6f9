"""Two processes under torchrun on the CPU train one network; and what a single process makes of the same calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgeprune.errors import ConfigError
from edgeprune.training.processes import Processes
from tests.training_case import in_two_processes, small_net, train_joined

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    in_two_processes(["tests.training_case", "together", str(folder)], ROOT)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_both_processes_end_with_the_same_network_and_metrics(ranks: list[dict[str, Any]]) -> None:
    for training in ("plain", "resumed", "uneven", "joined", "sparse", "featured"):
        _assert_same(ranks[0][training], ranks[1][training])
    assert ranks[0]["top1"] == ranks[1]["top1"]
    assert ranks[0]["loss"] == ranks[1]["loss"]


def test_batchnorm_statistics_come_from_the_data_of_both(ranks: list[dict[str, Any]]) -> None:
    initial = small_net().state_dict()
    for rank in ranks:
        assert not torch.equal(rank["plain"]["norm.running_mean"], initial["norm.running_mean"])
        assert rank["plain"]["norm.num_batches_tracked"] in (3, 6, 9)  # 3 steps an epoch, the best one is kept


def test_two_processes_train_like_one_on_batches_of_twice_the_size(ranks: list[dict[str, Any]]) -> None:
    alone = train_joined(2)
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(ranks[0]["joined"][name], tensor, atol=1e-4, rtol=1e-3)
    top1 = alone.history[-1].validation["top1"]
    assert top1 > 0.7
    assert ranks[0]["joined top1"] == pytest.approx(top1, abs=0.02)


def test_ctrl_c_in_one_process_stops_both_and_they_go_on(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [True, True]
    _assert_same(ranks[0]["resumed"], ranks[0]["plain"])


def test_pruned_weights_stay_zero_in_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["zeros kept"] for rank in ranks] == [True, True]


def test_weights_that_move_move_alike_in_both(ranks: list[dict[str, Any]]) -> None:
    _assert_same(ranks[0]["moved"], ranks[1]["moved"])
    assert ranks[0]["moved zeros"] >= 0.6 * (8 * 9 + 72 * 4) - 1


def test_features_are_compared_in_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["feature loss"] == ranks[1]["feature loss"]
    assert ranks[0]["feature loss"][-1] < ranks[0]["feature loss"][0]


def test_an_unused_layer_is_left_alone(ranks: list[dict[str, Any]]) -> None:
    assert torch.equal(ranks[0]["spare"], ranks[1]["spare"])


def test_a_single_process_agrees_with_itself() -> None:
    processes = Processes()
    assert (processes.count, processes.rank, processes.first) == (1, 0, True)
    assert processes.agree(True, False) == (True, False)
    assert processes.mean({"loss": 0.1}) == {"loss": 0.1}
    box = object()
    assert processes.from_first(box) is box


@pytest.mark.parametrize(("kind", "precision"), [("NO", "fp16"), ("DEEPSPEED", "no"), ("FSDP", "bf16")])
def test_ways_of_training_that_are_not_covered_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    chosen = SimpleNamespace(mixed_precision=precision, distributed_type=SimpleNamespace(value=kind))
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: chosen)
    with pytest.raises(ConfigError, match=f"set to {kind}, mixed precision {precision}"):
        Processes()


def test_gradients_are_measured_and_limited() -> None:
    processes = Processes()
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert processes.limit_gradients_(model, None) == pytest.approx(5.0)
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    assert processes.limit_gradients_(model, 1.0) == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
