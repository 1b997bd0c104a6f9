"""One second of speech, and which of five recordings it is from: a DS-CNN trained by benchmarks/train_local.py.

The speech are the prompts of a telephone exchange, in five packages of Debian, 8 kHz. Each package is one language in
one voice (those of two have the same name), so what is told apart is voice and language together. All windows of a
file are in the same part: a tenth of the files is held out and a fifth is for tests. The recordings are under
CC-BY-SA-3.0 and CC-BY-3.0; neither they nor the weights are in the repository.

The network is that of Zhang et al. (2017) for keywords, here on log-mel energies: depthwise-separable convolutions.
"""

from __future__ import annotations

import functools
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import (
    Batch,
    Labelled,
    accuracy,
    calibration,
    evaluate_outputs,
    in_batches,
    shuffled,
    train_step,
)
from stored import data_folder, local_network, local_weights_file
from torch import nn

__all__ = ["calibration_data", "evaluate", "evaluate_outputs", "inputs", "model", "test_data", "train_data"]
__all__ += ["train_step", "trained", "untrained", "weights"]

NAME = "voices_ds_cnn"
SOUNDS = Path("voices", "usr", "share", "asterisk", "sounds")
VOICES = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
RATE_HZ, SHORTEST, QUIET = 8000, 2000, 0.003
FRAME, HOP, SPECTRUM, MELS, FRAMES = 320, 160, 512, 40, 49
FLOOR, MEAN, DEVIATION = 1e-2, -2.7, 2.3
STEM = 48
# width and stride of every block
BLOCKS = ((64, 2), (96, 1), (128, 2), (128, 1))


def scaled(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution, its BatchNorm and a ReLU."""
    convolution = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class VoicesDSCNN(nn.Module):
    """Input (N, 1, 49, 40) log-mel energies, frames by bands; output (N, 5) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = scaled(1, STEM, 5, 2)
        blocks, width = [], STEM
        for width_out, stride in BLOCKS:
            blocks.append(nn.Sequential(scaled(width, width, 3, stride, width), scaled(width, width_out, 1)))
            width = width_out
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(width, len(VOICES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))


def weights(seed: int = 0) -> Path:
    """Return where the weights are that were trained from a seed."""
    return local_weights_file(NAME, seed)


def untrained() -> nn.Module:
    return VoicesDSCNN()


def trained(seed: int = 0) -> nn.Module:
    return local_network(untrained(), NAME, seed)


def model() -> nn.Module:
    return trained()


def inputs() -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 1, FRAMES, MELS, generator=torch.Generator().manual_seed(0)),)


def train_data() -> Iterable[Batch]:
    return shuffled(windows().training, 64)


def calibration_data() -> Iterable[tuple[Any, ...]]:
    return calibration(windows().training, 64)


def evaluate(model: nn.Module) -> dict[str, float]:
    """Score the held-out windows."""
    return accuracy(model, windows().validation)


def test_data() -> Iterable[Batch]:
    return in_batches(windows().testing, 250)


def windows() -> Labelled:
    """Return all windows of all files, the files in a fixed random order."""
    return _read(data_folder() / SOUNDS)


@functools.cache
def _read(folder: Path) -> Labelled:
    """Return the windows of the files in a folder.

    Raises:
        FileNotFoundError: The recordings of a voice are not where they are looked for.
    """
    for voice in VOICES:
        if not (folder / voice).is_dir():
            language, root = voice[:2], folder.parents[3]
            raise FileNotFoundError(
                f"no {folder / voice}; run  apt-get download asterisk-core-sounds-{language}-wav  and "
                f"dpkg -x asterisk-core-sounds-{language}-wav_*.deb {root},  or set BENCHMARK_DATA to the folder "
                "that holds voices/"
            )
    files = [(path, label) for label, voice in enumerate(VOICES) for path in sorted((folder / voice).rglob("*.wav"))]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    tests, training = len(files) - len(files) // 5, len(files) - len(files) // 5 - len(files) // 10
    found, labels, counts = [], [], []
    for place, index in enumerate(order):
        path, label = files[index]
        sound = seconds(path, RATE_HZ // 2 if place < training else RATE_HZ)
        counts.append(len(sound))
        if len(sound):
            found.append(log_mel(sound))
            labels += [label] * len(sound)
    return Labelled(
        inputs=(torch.cat(found),),
        labels=torch.tensor(labels),
        held_out=sum(counts[training:tests]),
        test=sum(counts[tests:]),
    )


def seconds(path: Path, hop: int) -> torch.Tensor:
    """Return the sound of a file in windows of a second (N, 8000), one every `hop`, each with root mean square 1.

    What goes beyond the end is filled up with zeros. A window with little sound or quiet sound is left out.
    """
    with wave.open(str(path), "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE_HZ, 1, 2):
            raise ValueError(f"{path} is not mono with 16 bits and 8 kHz")
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    parts = [sound[start : start + RATE_HZ] for start in range(0, len(sound), hop)]
    loud = [part for part in parts if len(part) >= SHORTEST and np.sqrt(np.mean(part**2)) > QUIET]
    rows = np.zeros((len(loud), RATE_HZ), np.float32)
    for row, part in zip(rows, loud, strict=True):
        row[: len(part)] = part / np.sqrt(np.mean(part**2))
    return torch.from_numpy(rows)


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """Return normalised log-mel energies (N, 1, 49, 40) of windows (N, 8000): frames of 40 ms every 20 ms."""
    frames = sound.unfold(1, FRAME, HOP) * torch.hann_window(FRAME)
    power = torch.fft.rfft(frames, SPECTRUM).abs().square() / FRAME
    energies = torch.log(power @ mel_bands() + FLOOR)
    return ((energies - MEAN) / DEVIATION).unsqueeze(1)


@functools.cache
def mel_bands() -> torch.Tensor:
    """Return the weights of the frequencies in the bands (257, 40): triangles, evenly spaced on the mel scale."""
    top = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    hertz = np.arange(SPECTRUM // 2 + 1)[:, None] * RATE_HZ / SPECTRUM
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))
