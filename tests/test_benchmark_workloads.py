"""The workloads whose data may not be passed on: made-up files of the same formats, trained on, pruned and exported."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import edgeprune as ep
from edgeprune.config import validate
from edgeprune.workload import import_code

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("movielens_ncf", "voices_ds_cnn")
FILES = 6
BENCH = {"processes": 1, "min_runs": 5, "min_seconds": 0.02, "max_seconds": 0.5, "warmup_seconds": 0.0}


def _workload(name: str) -> ModuleType:
    return import_code(str(BENCHMARKS / "workloads" / f"{name}.py"))


def _train(name: str, seed: int, output: Path | None = None) -> Path:
    return import_code(str(BENCHMARKS / "train_local.py")).make(name, seed, epochs=1, output=output)


def _write_ratings(path: Path, count: int) -> None:
    """Write a table of ratings: films with even numbers are liked more often."""
    generator = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user, film in zip(generator.integers(1, 944, count), generator.integers(1, 41, count), strict=True):
        stars = generator.integers(3, 6) if film % 2 == 0 else generator.integers(1, 5)
        lines.append(f"{user}\t{film}\t{stars}\t881250949")
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_sound(path: Path, sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((sound * 2**15).astype("<i2").tobytes())


def _write_voices(folder: Path, voices: tuple[str, ...], files: int) -> None:
    """Write two seconds a file, a tone for every voice in noise, and a silent file each."""
    generator = np.random.default_rng(0)
    for number, voice in enumerate(voices):
        for file in range(files):
            tone = 0.2 * np.sin(2 * np.pi * 300 * (number + 1) * np.arange(16000) / 8000)
            where = folder / voice / ("digits" if file % 2 else "") / f"{file}.wav"
            _write_sound(where, tone + 0.02 * generator.standard_normal(16000))
        _write_sound(folder / voice / "silence" / "1.wav", np.zeros(8000))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both data sets and the weights of seed 0, where the workloads look."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCHMARK_DATA", str(folder))
        _write_ratings(folder / _workload("movielens_ncf").TABLE, 800)
        voices = _workload("voices_ds_cnn")
        _write_voices(folder / voices.SOUNDS, voices.VOICES, FILES)
        for name in NAMES:
            assert _train(name, 0) == folder / "weights" / f"{name}.safetensors"
        yield folder


@pytest.mark.parametrize("name", NAMES)
def test_training_is_repeatable_and_the_seed_counts(data: Path, name: str, tmp_path: Path) -> None:
    made = load_file(data / "weights" / f"{name}.safetensors")
    again = load_file(_train(name, 0, tmp_path / "again.safetensors"))
    other = load_file(_train(name, 1, tmp_path / "other.safetensors"))
    assert sorted(made) == sorted(_workload(name).untrained().state_dict())
    assert all(torch.equal(tensor, again[key]) for key, tensor in made.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in made.items())
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert file.metadata()["licence"].startswith("trained on")


def test_the_recommender_goes_through_the_whole_job(data: Path, tmp_path: Path) -> None:
    settings = {
        "workload": str(BENCHMARKS / "workloads" / "movielens_ncf.py"),
        "output": str(tmp_path / "run"),
        "reconstruct": {"samples": 16},
        "finetune": {"epochs": 1},
        "export": {"formats": ["onnx"]},
        "bench": BENCH,
    }
    ep.compress(settings["workload"], validate(settings))
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    params = result["network"]["params"]
    assert params["pruned"] < 0.5 * params["dense"]
    widths = {group["name"]: group["channels_after"] for group in result["groups"]}
    assert widths == {"user_factors": 32, "user": 32, "film": 32, "fc1": 32, "fc2": 16, "out": 2}
    assert set(result["metrics"]["reconstructed"]) == {"top1", "auc"}
    for artifact in result["artifacts"]:
        assert artifact["metrics_source"] == "test_data"
        assert all(check["passed"] for check in artifact["checks"])


def test_the_ds_cnn_shrinks_and_is_exported(data: Path, tmp_path: Path) -> None:
    workload = _workload("voices_ds_cnn")
    model, inputs = workload.model().eval(), workload.inputs()
    plan = ep.plan(model, inputs, ratio=0.5)
    small = ep.apply(model, plan, inputs)
    assert [small.blocks[n][1][0].out_channels for n in range(4)] == [32, 48, 64, 64]
    small = ep.reconstruct(small, model, plan, inputs, data=workload.calibration_data, samples=16)
    artifact = ep.export(small, inputs, tmp_path / "small.onnx")
    assert Path(artifact.path).stat().st_size < 0.5 * 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    session = onnxruntime.InferenceSession(artifact.path)
    name = session.get_inputs()[0].name
    pairs = [(session.run(None, {name: batch[0].numpy()}), batch) for batch in workload.test_data()]
    assert sum(len(labels) for _, (_, labels) in pairs) == workload.windows().test > 0
    assert workload.evaluate_outputs(pairs) == workload.accuracy(small, workload.windows().testing)


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_and_missing_data_say_how_to_get_them(
    data: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHMARK_DATA", str(tmp_path))
    workload = _workload(name)
    with pytest.raises(FileNotFoundError, match=rf"train_local\.py --network {name}$"):
        workload.model()
    with pytest.raises(FileNotFoundError, match=r"--seed 2$"):
        workload.trained(2)
    with pytest.raises(FileNotFoundError, match=r"recbole|asterisk-core-sounds-en-wav") as raised:
        workload.train_data()
    assert f" {tmp_path}" in str(raised.value)


def test_ratings_are_split_without_a_rest_and_scored_by_the_area_under_the_curve(data: Path) -> None:
    workload = _workload("movielens_ncf")
    ratings = workload.ratings()
    parts = [ratings.training, ratings.validation, ratings.testing]
    assert [len(part[-1]) for part in parts] == [640, 80, 80]
    assert torch.equal(torch.cat([part[0] for part in parts]), ratings.inputs[0])
    table = (data / workload.TABLE).read_text(encoding="utf-8").splitlines()[1:]
    wanted = sorted((int(u) - 1, int(f) - 1, int(s) >= 4) for u, f, s, _ in (line.split("\t") for line in table))
    assert (
        sorted(zip(*(rows.tolist() for rows in ratings.inputs), ratings.labels.bool().tolist(), strict=True)) == wanted
    )
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8, -0.3]), torch.tensor([0, 0, 1, 1, 1])
    logits = torch.stack([torch.zeros(5), scores], 1)
    pairs = [([logits[part].numpy()], (None, labels[part])) for part in (slice(0, 2), slice(2, 5))]
    # of six pairs of a liked and a disliked film 3 are right, one is a tie
    assert workload.evaluate_outputs(pairs) == pytest.approx({"top1": 0.4, "auc": 3.5 / 6})


def test_windows_of_a_file_stay_in_one_part(data: Path) -> None:
    workload = _workload("voices_ds_cnn")
    windows = workload.windows()
    files = 5 * (FILES + 1)  # the silent ones give no window
    assert windows.test <= 2 * (files // 5)
    assert windows.test % 2 == windows.held_out % 2 == 0  # two windows of a second in each file
    assert len(windows.training[1]) % 4 == 0  # one every half second; that which starts last is half a second long
    assert len(windows.labels.unique()) == 5
    assert windows.inputs[0].shape[1:] == (1, 49, 40)
    assert torch.isfinite(windows.inputs[0]).all()


def test_log_mel_energies_find_a_tone_and_not_its_loudness(tmp_path: Path) -> None:
    workload = _workload("voices_ds_cnn")
    tone = np.sin(2 * np.pi * 1000 * np.arange(12000) / 8000)
    bands = workload.mel_bands()
    assert bands.shape == (257, 40)
    assert (bands.sum(1)[3:-3] > 0).all()
    energies = []
    for loudness in (0.5, 0.05):
        _write_sound(tmp_path / "tone.wav", loudness * tone)
        sound = workload.seconds(tmp_path / "tone.wav", 8000)
        assert sound.shape == (2, 8000)
        assert sound[1, 4000:].abs().max() == 0
        energies.append(workload.log_mel(sound)[0, 0].mean(0))
    assert energies[0].argmax() == bands[64].argmax()  # 1,000 Hz
    assert torch.allclose(energies[0], energies[1], atol=0.02)
    _write_sound(tmp_path / "short.wav", 0.5 * tone[:1500])
    assert len(workload.seconds(tmp_path / "short.wav", 8000)) == 0
