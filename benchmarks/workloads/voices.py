"""Human voices without labels: the prompts of Asterisk in five languages, packages of Debian (CC-BY-SA 3.0).

They are 8 kHz recordings of sentences, words and digits. Files are split once and for all by a checksum of their names:
eight tenths for calibration, one for validation, one for tests. Without the packages there are no voices, and a message
says so.
"""

from __future__ import annotations

import functools
import os
import sys
import wave
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("VOICES", Path(__file__).resolve().parent.parent / ".data" / "voices"))
SAMPLES, HOP = 1024, 160
LOUD = 0.3
NO_VOICES = ("beep", "silence", "tt-monkeys")
FRAMES_PER_FILE = 4


@functools.cache
def files() -> dict[str, tuple[Path, ...]]:
    """Return the recordings of every split; nothing where the packages are not installed."""
    found: dict[str, list[Path]] = {"calibration": [], "validation": [], "test": []}
    for path in sorted(FOLDER.glob("**/*.wav")):
        if path.stem.startswith(NO_VOICES) or path.parent.name in NO_VOICES:
            continue
        tenth = zlib.crc32(path.relative_to(FOLDER).as_posix().encode()) % 10
        found["test" if tenth == 0 else "validation" if tenth == 1 else "calibration"].append(path)
    if not found["calibration"]:
        print(f"no voices in {FOLDER.name}: made-up tones only (benchmarks/README.md says how)", file=sys.stderr)
    return {split: tuple(paths) for split, paths in found.items()}


def installed() -> bool:
    """Return whether there are voices."""
    return all(files().values())


def frames(split: str, generator: np.random.Generator, count: int) -> np.ndarray:
    """Return loud frames of randomly chosen recordings, (count, 1024) at 16 kHz."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        path = files()[split][int(generator.integers(len(files()[split])))]
        found.append(_loud(resampled(path), generator))
    return np.concatenate(found)[:count]


def _loud(signal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a few frames of a recording, none of them much quieter than its loudest."""
    if len(signal) < SAMPLES:
        return np.zeros((0, SAMPLES))
    every = np.lib.stride_tricks.sliding_window_view(signal, SAMPLES)[::HOP]
    loudness = every.std(1)
    chosen = np.flatnonzero(loudness > max(LOUD * loudness.max(), 1e-3))
    return every[generator.permutation(chosen)[:FRAMES_PER_FILE]]


def resampled(path: Path) -> np.ndarray:
    """Return a recording at 16 kHz, float64 in [-1, 1]: interpolated without anything above the old 4 kHz."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000), path.name
        signal = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    padding = 256  # the ends of a recording do not run into each other
    spectrum = np.fft.rfft(np.pad(signal, padding))
    length = 2 * (len(signal) + 2 * padding)
    wider = np.zeros(length // 2 + 1, dtype=complex)
    wider[: len(spectrum)] = spectrum
    return 2 * np.fft.irfft(wider, length)[2 * padding : length - 2 * padding]
