"""Calibration data as samples: cut, checked, kept, judged on, and read from files that may be anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from edgeprune.errors import ConfigError, ModelError, ResolveError
from edgeprune.export.calibration import Seen, check_seen, judged_on, kept_samples, read_calibration, samples_of
from edgeprune.export.capture import prepare
from edgeprune.values import TensorSpec
from tests.export_networks import Centred, linear


def test_batches_are_cut_into_samples_and_no_more_are_read_than_needed() -> None:
    subject, seen, read = prepare(*linear()), Seen(), []

    def batches():  # type: ignore[no-untyped-def]
        for place in range(9):
            read.append(place)
            yield torch.full((4, 6), float(place)), "label"

    found = list(samples_of(batches(), subject, 10, seen))
    assert [sample[0].shape for sample in found] == [(1, 6)] * 10
    assert (seen.samples, read) == (10, [0, 1, 2])
    assert seen.changed == [True]


def test_a_fixed_batch_takes_whole_batches_alone_and_says_when_none_is_large_enough() -> None:
    subject, seen = prepare(Centred(), (torch.randn(4, 3, 2, 2),)), Seen()
    assert subject.batch == 4
    found = list(samples_of([torch.randn(9, 3, 2, 2)], subject, 99, seen))
    assert [sample[0].shape for sample in found] == [(4, 3, 2, 2)] * 2
    few = Seen()
    assert list(samples_of([torch.randn(3, 3, 2, 2)] * 5, subject, 99, few)) == []
    with pytest.raises(ConfigError, match="at most 3"):
        check_seen(few, subject.inputs)


def test_inputs_that_never_change_are_refused_unless_they_are_whole_numbers() -> None:
    floats, whole = (
        TensorSpec(name="x", shape=(None, 2), dtype="float32"),
        TensorSpec(name="n", shape=(None, 2), dtype="int64"),
    )
    seen = Seen(samples=3, first=[np.ones(2, np.float32), np.ones(2, np.int64)], changed=[False, False])
    with pytest.raises(ConfigError, match="'x' is 1 everywhere"):
        check_seen(seen, [floats, whole])
    seen.changed[0] = True
    check_seen(seen, [floats, whole])


def test_samples_are_kept_until_they_are_too_many() -> None:
    kept: list[list[np.ndarray]] = []
    source = [[np.zeros(10, np.float32)] for _ in range(5)]
    assert len(list(kept_samples(iter(source), 100, kept))) == 5
    assert len(kept) == 2
    kept = []
    list(kept_samples(iter(source), 1, kept))
    assert len(kept) == 1


def test_examples_in_range_are_judged_together_with_the_samples() -> None:
    spec = TensorSpec(name="x", shape=(None, 2), dtype="float32")
    samples = [(np.array([[-1.0, 1.0]], np.float32),), (np.array([[0.5, 0.0]], np.float32),)]
    parts, notices = judged_on(samples, (torch.tensor([[0.9, -1.1]]),), [(torch.tensor([[9.0, 0.0]]),)], [spec])
    assert [len(part[0]) for part in parts] == [3]
    assert [notice.code for notice in notices] == ["calibration-range"]
    assert "'x' reaches from 0 to 9" in notices[0].text


def _npz(path: Path) -> Path:
    np.savez(path, a=np.arange(80, dtype=np.float32).reshape(40, 2), b=np.arange(40))
    return path


def test_files_give_batches_in_the_order_of_the_networks_inputs(tmp_path: Path) -> None:
    batches = list(read_calibration(_npz(tmp_path / "c.npz"), ["b", "a"]))
    assert [[tensor.shape for tensor in batch[0]] for batch in batches] == [
        [torch.Size([32]), torch.Size([32, 2])],
        [torch.Size([8]), torch.Size([8, 2])],
    ]
    save_file({"a": np.ones((3, 2), np.float32), "b": np.ones(3)}, tmp_path / "c.safetensors")
    assert len(list(read_calibration(tmp_path / "c.safetensors", ["a", "b"]))) == 1
    np.save(tmp_path / "c.npy", np.ones((3, 2), np.float32))
    (((tensor,),),) = read_calibration(tmp_path / "c.npy", ["anything"])
    assert tensor.shape == (3, 2)


def _written(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (_written(lambda path: np.save(path, np.array([{}], object)), "c.npy"), ResolveError, "pickle"),
        (_written(lambda path: np.savez(path, a=np.array([{}], object)), "c.npz"), ResolveError, "pickle"),
        (_written(lambda path: path.write_bytes(b""), "c.npy"), ResolveError, "cannot read"),
        (_written(lambda path: path.write_bytes(b""), "c.npz"), ResolveError, "cannot read"),
        (_written(lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "c.npz"), ResolveError, "cannot read"),
        (_written(lambda path: path.write_bytes(b"not one"), "c.safetensors"), ResolveError, "cannot read"),
        (_written(lambda path: path.write_bytes(b""), "c.safetensors"), ResolveError, "cannot read"),
        (_written(lambda path: path.mkdir(), "c.npz"), ResolveError, "cannot read"),
        (_written(lambda path: path.write_text("1,2"), "c.csv"), ConfigError, "neither"),
        (
            _written(lambda path: np.savez(path, wrong=np.ones((2, 2)), b=np.ones(2)), "c.npz"),
            ConfigError,
            "no array 'a'",
        ),
        (_written(lambda path: np.save(path, np.ones((2, 2))), "c.npy"), ConfigError, "no array 'a'"),
        (_written(lambda path: np.savez(path, a=np.ones((2, 2)), b=np.ones(3)), "c.npz"), ConfigError, r"\[2, 3\]"),
        (_written(lambda path: np.savez(path, a=np.float32(1), b=np.ones(3)), "c.npz"), ConfigError, "'a'.*one value"),
        (_written(lambda path: np.savez(path, a=np.array(["x"]), b=np.ones(1)), "c.npz"), ConfigError, "'a'.*type"),
        (_written(lambda path: np.savez(path, a=np.ones(1, complex), b=np.ones(1)), "c.npz"), ConfigError, "'a'.*type"),
    ],
)
def test_files_that_are_no_calibration_data_are_told(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        list(read_calibration(make(tmp_path), ["a", "b"]))


def test_archives_and_arrays_under_each_others_name_are_told(tmp_path: Path) -> None:
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, np.ones((2, 2)))
    with (tmp_path / "c.npy").open("wb") as file:
        np.savez(file, a=np.ones((2, 2)))
    for name in ("c.npz", "c.npy"):
        with pytest.raises(ResolveError, match="cannot read"):
            list(read_calibration(tmp_path / name, ["a"]))


def test_several_outputs_change_nothing_about_samples() -> None:
    subject, seen = prepare(nn.Linear(3, 2), (torch.randn(1, 3),)), Seen()
    with pytest.raises(ModelError, match="batch 1"):
        list(samples_of([torch.randn(2, 3), torch.randn(2, 4)], subject, 9, seen))
    assert seen.samples == 2
