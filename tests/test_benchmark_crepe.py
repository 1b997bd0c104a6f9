"""The pitch workload: voices are resampled and split, made-up audio goes on without them, errors are told by kind."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgeprune.workload import import_code

WORKLOADS = Path(__file__).resolve().parents[1] / "benchmarks" / "workloads"


@pytest.fixture
def pitch() -> ModuleType:
    return import_code(str(WORKLOADS / "crepe_pitch.py"))


@pytest.fixture
def voices(pitch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of voices, with 40 recordings of hums between 100 and 300 Hz in a folder of its own."""
    module: ModuleType = pitch.voices
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    for number in range(40):
        write(tmp_path / f"word{number}.wav", 100 + 5 * number)
    write(tmp_path / "beep.wav", 700)
    module.files.cache_clear()
    yield module
    module.files.cache_clear()


def write(path: Path, hertz: float, seconds: float = 0.5) -> None:
    signal = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(8000 * seconds)) / 8000)
    signal[: len(signal) // 4] *= 0.01  # silence before the word
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, len(signal), "NONE", ""))
        file.writeframes((signal * 2**15).astype("<i2").tobytes())


def test_recordings_are_split_by_file(voices: ModuleType) -> None:
    found = voices.files()
    names = [path.name for paths in found.values() for path in paths]
    assert sorted(names) == sorted(f"word{number}.wav" for number in range(40))
    assert all(found.values())
    assert len(found["calibration"]) > len(found["validation"]) + len(found["test"])


def test_resampling_keeps_the_tone_and_adds_nothing_above(voices: ModuleType) -> None:
    signal = voices.resampled(voices.FOLDER / "word8.wav")
    assert len(signal) == 8000
    wanted = 0.3 * np.sin(2 * np.pi * 140 * np.arange(8000) / 16000)
    assert np.abs(signal - wanted)[3000:7000].max() < 2e-3
    spectrum = np.abs(np.fft.rfft(signal[3000:7000] * np.hanning(4000)))
    assert spectrum[1100:].max() < 1e-3 * spectrum.max()


def test_loud_frames_of_one_split_are_drawn(voices: ModuleType) -> None:
    frames = voices.frames("test", np.random.default_rng(0), 10)
    assert frames.shape == (10, 1024)
    assert frames.std(1).min() > 0.05
    again = voices.frames("test", np.random.default_rng(0), 10)
    assert np.array_equal(frames, again)


def test_half_of_the_calibration_frames_are_voices_and_epochs_differ(pitch: ModuleType, voices: ModuleType) -> None:
    np.random.seed(1)
    first, second = pitch.calibration(3, 8), pitch.calibration(3, 8)
    assert [tuple(batch[0].shape) for batch in first] == [(8, 1024)] * 3
    assert not torch.equal(first[0][0], second[0][0])
    np.random.seed(1)
    assert torch.equal(pitch.calibration(3, 8)[2][0], first[2][0])
    power = np.abs(np.fft.rfft(first[0][0].numpy())) ** 2
    voiced = power[:, 5:21].sum(1) / power.sum(1)  # the hums lie between 100 and 300 Hz
    assert voiced[4:].min() > 0.9


def test_without_voices_it_goes_on_and_says_so(
    pitch: ModuleType, voices: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(voices, "FOLDER", tmp_path / "nothing")
    voices.files.cache_clear()
    batches = pitch.calibration(2, 8)
    assert [tuple(batch[0].shape) for batch in batches] == [(8, 1024)] * 2
    assert "made-up tones only" in capsys.readouterr().err


def test_errors_are_told_by_kind(pitch: ModuleType) -> None:
    right = np.array([100.0, 200.0, 300.0, 400.0])
    read = right * 2 ** (np.array([1.0, 3.0, 7.0, 5.0]) / 1200)
    found = pitch.score(read, right, np.array([0, 0, 1, 2]))
    assert found == pytest.approx(
        {
            "largest_cents_error": 7.0,
            "sines_cents_error": 2.0,
            "sweeps_cents_error": 7.0,
            "vowels_cents_error": 5.0,
            "sines_within_1_percent": 1.0,
        }
    )
    assert next(iter(found)) == "largest_cents_error"
    without = pitch.score(read[:3], right[:3], np.array([0, 0, 1]))
    assert "vowels_cents_error" not in without


def test_a_file_that_answers_with_the_right_bins_is_scored(pitch: ModuleType) -> None:
    hertz = 10 * 2 ** ((pitch.FIRST_BIN_CENTS + 20.0 * np.array([100, 150])) / 1200)
    probabilities = np.zeros((2, 360), dtype=np.float32)
    probabilities[[0, 1], [100, 150]] = 1.0
    batch = (torch.zeros(2, 1024), torch.from_numpy(hertz), torch.zeros(2, dtype=torch.int64))
    found = pitch.evaluate_outputs([([probabilities], batch)])
    assert found["sines_cents_error"] < 1e-6
    assert found["sines_within_1_percent"] == 1.0
