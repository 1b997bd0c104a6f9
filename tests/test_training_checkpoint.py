"""Checkpoints: a training that was stopped anywhere ends like one that was not, and files stay whole."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from edgeprune.errors import ResolveError, StorageError
from edgeprune.training import FinetuneResult, Progress, finetune
from edgeprune.training.checkpoint import (
    Checkpoint,
    digest_network,
    find_checkpoint,
    load_network_,
    network_tensors,
    read_checkpoint,
    save_checkpoint,
)
from edgeprune.training.records import EpochRecord, Position
from tests.training_case import (
    assert_same_training,
    evaluate,
    kill_at,
    killed,
    samples,
    settings,
    small_net,
    train,
    train_data,
    train_step,
)

ROOT = Path(__file__).resolve().parents[1]


def test_a_training_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed("killed", checkpoint)
    position = read_checkpoint(checkpoint).position
    assert (position.epoch, position.step) == (1, 2)  # the kill came before the third step was written
    seen: list[Progress] = []
    resumed = train(checkpoint, seen.append)
    assert (seen[0].epoch, seen[0].step) == (2, 3)
    assert_same_training(resumed, train())


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 6), (3, 6)])
def test_ctrl_c_leaves_a_checkpoint_and_the_training_goes_on(tmp_path: Path, epoch: int, step: int) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, kill_at(epoch, step, signal.SIGINT), checkpoint_every_s=3600)
    position = read_checkpoint(checkpoint).position
    assert (position.epoch, position.step) == (epoch - 1, step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_training(train(checkpoint), train())


def test_ctrl_c_within_a_step_waits_for_its_end(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    calls = iter(range(100))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, step=step, checkpoint_every_s=3600)
    position = read_checkpoint(checkpoint).position
    assert (position.epoch, position.step) == (1, 3)
    assert_same_training(train(checkpoint), train())


def test_a_second_ctrl_c_within_a_step_stops_at_once_and_writes_nothing_torn(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    calls = iter(range(100))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == 8:
            model(batch[0])  # moves the BatchNorm statistics: from here on the network is torn
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, step=step, checkpoint_every_s=3600)
    position = read_checkpoint(checkpoint).position
    assert (position.epoch, position.step) == (1, 0)
    assert_same_training(train(checkpoint), train())


def test_an_interrupted_evaluation_does_not_cost_the_epoch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"

    def interrupted(_: nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    def run(metric: Any) -> FinetuneResult:
        config = settings(checkpoint_every_s=3600)
        return finetune(
            small_net(), step=train_step, data=train_data, config=config, evaluate=metric, checkpoint=checkpoint, seed=7
        )

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    assert read_checkpoint(checkpoint).position.step == 6
    assert_same_training(run(evaluate), train())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_optimiser_goes_on_where_it_was(tmp_path: Path, optimizer: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "checkpoint", kill_at(2, 2, signal.SIGINT), optimizer=optimizer)
    assert_same_training(train(tmp_path / "checkpoint", optimizer=optimizer), train(optimizer=optimizer))


def test_a_data_loader_that_shuffles_repeats_its_order(tmp_path: Path) -> None:
    dataset = torch.utils.data.TensorDataset(*samples(64, seed=3))

    def run(checkpoint: Path | None = None, on_progress: Any = None) -> FinetuneResult:
        return finetune(
            small_net(),
            step=train_step,
            data=lambda: torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True),
            config=settings(),
            checkpoint=checkpoint,
            on_progress=on_progress,
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "checkpoint", kill_at(2, 2, signal.SIGINT))
    assert_same_training(run(tmp_path / "checkpoint"), run())


def test_distillation_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(checkpoint: Path | None = None, on_progress: Any = None) -> FinetuneResult:
        return finetune(
            small_net(),
            step=train_step,
            data=train_data,
            config=settings(distill=0.5),
            teacher=small_net(5),
            checkpoint=checkpoint,
            on_progress=on_progress,
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "checkpoint", kill_at(2, 4, signal.SIGINT))
    resumed = run(tmp_path / "checkpoint")
    assert_same_training(resumed, run())
    assert set(resumed.history[0].train) == {"loss", "step_loss", "distill_loss"}


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    finished = train(tmp_path / "checkpoint")
    steps: list[Progress] = []
    again = train(tmp_path / "checkpoint", steps.append)
    assert steps == []
    assert_same_training(again, finished)
    assert again.history == finished.history


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"lr": 0.02}, "finetune.lr was 0.01 and is 0.02"), ({"epochs": 2}, "finetune.epochs was 3 and is 2")],
)
def test_a_checkpoint_of_other_settings_is_set_aside_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    train(checkpoint)
    before = checkpoint.read_bytes()
    result = train(checkpoint, **changes)
    (notice,) = result.notices
    assert reason in notice.text
    assert (tmp_path / "checkpoint.stale").read_bytes() == before
    assert_same_training(result, train(**changes))


def test_a_checkpoint_of_other_weights_is_set_aside(tmp_path: Path) -> None:
    train(tmp_path / "checkpoint", epochs=1)
    other = finetune(
        small_net(3),
        step=train_step,
        data=train_data,
        config=settings(epochs=1),
        evaluate=evaluate,
        checkpoint=tmp_path / "checkpoint",
        seed=7,
    )
    assert "the initial weights differ" in other.notices[0].text


def test_how_often_to_write_does_not_make_another_training(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "checkpoint", kill_at(2, 2, signal.SIGINT), checkpoint_every_s=5)
    result = train(tmp_path / "checkpoint", checkpoint_every_s=1, recalibrate_batches=3)
    assert result.notices == ()


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, damage: str) -> None:
    checkpoint = tmp_path / "checkpoint"
    train(checkpoint, epochs=1)
    if damage == "cut":
        os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    elif damage == "empty":
        checkpoint.write_bytes(b"")
    elif damage == "other":
        _write_header(checkpoint, {"training": json.dumps({"identity": {}})})
    else:
        _write_header(checkpoint, {"note": "weights of something else"})
    found, reason = find_checkpoint(checkpoint, {})
    assert found is None
    assert reason is not None
    assert {"other": "lack", "text": "no checkpoint"}.get(damage, "damaged") in reason
    assert not checkpoint.exists()
    assert (tmp_path / "checkpoint.stale").exists()


def _write_header(path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path, metadata)


def _checkpoint(model: nn.Module) -> Checkpoint:
    record = EpochRecord(epoch=1, train={"loss": 0.1}, validation={"top1": float("nan")}, lr=1e-3, seconds=0.1)
    return Checkpoint(
        identity={"seed": 1},
        position=Position(epoch=1, sums={"loss": 0.1 + 0.2}, history=(record,), best_epoch=1, best_value=1 / 3),
        model=network_tensors(model),
        best={},
        optimizer={0: {"step": torch.tensor(3.0)}, 2: {"exp_avg": torch.ones(2, 2)}},
    )


def test_what_is_written_is_read_back_and_holds_tensors_only(tmp_path: Path) -> None:
    model = small_net()
    model.conv.to(memory_format=torch.channels_last)
    model.tied = model.head  # a second name of the same parameter
    model.register_buffer("scratch", torch.arange(6.0)[::2], persistent=False)
    written = _checkpoint(model)
    save_checkpoint(tmp_path / "checkpoint", written)
    read = read_checkpoint(tmp_path / "checkpoint")
    assert read.identity == written.identity
    assert repr(read.position) == repr(written.position)
    assert read.optimizer[2]["exp_avg"].tolist() == [[1, 1], [1, 1]]
    assert "scratch" in read.model
    other = small_net(4)
    other.tied = other.head
    other.register_buffer("scratch", torch.zeros(3), persistent=False)
    load_network_(other, read.model)
    assert digest_network(other) == digest_network(model)
    with safe_open(tmp_path / "checkpoint", framework="pt") as file:
        assert list(file.metadata()) == ["training"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_that_is_full_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, _checkpoint(small_net()))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save_checkpoint(path, _checkpoint(small_net(1)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ResolveError, match="cannot read the checkpoint"):
        find_checkpoint(tmp_path / "checkpoint", {})


def test_the_folder_of_a_checkpoint_is_made(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "checkpoint", _checkpoint(small_net()))
    assert read_checkpoint(tmp_path / "new" / "checkpoint").identity == {"seed": 1}


def test_a_digest_tells_networks_apart() -> None:
    half = small_net().to(torch.bfloat16)
    renamed = nn.Sequential(small_net())
    digests = {digest_network(model) for model in (small_net(), small_net(1), half, renamed, nn.BatchNorm1d(2))}
    assert len(digests) == 5
    assert digest_network(small_net()) == digest_network(small_net().train())
