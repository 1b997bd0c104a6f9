"""Hard cases written here: code as users write it that tools which prune find awkward."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.zoo.entry import Input, Tokens

WORDS = 64


class LstmClassifier(nn.Module):
    """An embedding, one LSTM read at its last step, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 24)
        self.rnn = nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        steps, _ = self.rnn(self.embed(words))
        return self.head(steps[:, -1])


class TwoWayLstm(nn.Module):
    """Two bidirectional LSTM layers; the mean over time is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 20, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.rnn(x)
        return self.head(steps.mean(dim=1))


class ConvGru(nn.Module):
    """A convolution over sound features in front of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.rnn = nn.GRU(24, 28, batch_first=True)
        self.head = nn.Linear(28, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))).transpose(1, 2)
        _, last = self.rnn(x)
        return self.head(last[-1])


class SelfAttention(nn.Module):
    """torch's MultiheadAttention between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.hidden = nn.Linear(32, 48)
        self.head = nn.Linear(48, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(F.gelu(self.hidden(x)).mean(dim=1))


class Encoder(nn.Module):
    """torch's TransformerEncoder with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], dim=1)
        return self.head(self.encoder(x)[:, 0])


class Translator(nn.Module):
    """torch's whole Transformer: encoder, decoder and cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.body = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)
        self.head = nn.Linear(32, WORDS)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(source), self.embed(target)))


class EinsumAttention(nn.Module):
    """Attention in einsum notation, heads in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 3 * 4 * 8)
        self.out = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).unbind(2)
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8)).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        return self.head(x + self.out(mixed))


class Unfolded(nn.Module):
    """A convolution written as unfold and a linear layer, behind an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.patches = nn.Linear(12 * 9, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.unfold(F.relu(self.conv(x)), 3, padding=1).transpose(1, 2)
        return self.head(F.relu(self.patches(x)).mean(dim=1))


class ChannelsLast(nn.Module):
    """Channels at the end: linear layers and norms on (N, H, W, C), flattened in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 40)
        self.down = nn.Linear(40, 16)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.flatten(1))


class WeightNorm(nn.Module):
    """Dilated convolutions over time under weight normalisation, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first = norm(nn.Conv1d(4, 16, 3, padding=1))
        self.gate = norm(nn.Conv1d(16, 32, 3, padding=2, dilation=2))
        self.last = norm(nn.Conv1d(16, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        value, gate = self.gate(x).chunk(2, dim=1)
        return self.last(x + torch.tanh(value) * torch.sigmoid(gate))


class TiedEmbedding(nn.Module):
    """A language model whose embedding is also its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.up = nn.Linear(32, 72)
        self.down = nn.Linear(72, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        return self.head(self.norm(x + self.down(F.silu(self.up(x)))))


class RotaryGroups(nn.Module):
    """Grouped-query attention with rotary positions, hand-written RMS norm and a gated MLP."""

    frequency: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.scale = nn.Parameter(torch.ones(32))
        self.q, self.kv = nn.Linear(32, 4 * 8, bias=False), nn.Linear(32, 2 * 2 * 8, bias=False)
        self.out = nn.Linear(32, 32, bias=False)
        self.gate, self.up, self.down = nn.Linear(32, 56), nn.Linear(32, 56), nn.Linear(56, 32)
        self.head = nn.Linear(32, WORDS)
        self.register_buffer("frequency", 100 ** (-torch.arange(4) / 4))

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.outer(torch.arange(x.shape[2]).to(x.dtype), self.frequency.to(x.dtype)).repeat(1, 2)
        first, second = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        y = self.norm(x)
        q = self.turn(self.q(y).unflatten(-1, (4, 8)).transpose(1, 2))
        k, v = self.kv(y).unflatten(-1, (2, 2, 8)).unbind(2)
        k, v = (part.transpose(1, 2).repeat_interleave(2, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, self.turn(k), v, is_causal=True, scale=8**-0.5)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class LinearAttention(nn.Module):
    """Attention without softmax: elu plus one on queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1
        weights = q @ (k.transpose(1, 2) @ self.v(x))
        return self.head(weights / (q @ k.sum(dim=1, keepdim=True).transpose(1, 2)))


class SmallUnet(nn.Module):
    """A small U-Net whose skip connection is cut to size, then concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.norm = nn.GroupNorm(4, 24)
        self.last = nn.Conv2d(24, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.first(x))
        up = self.up(F.relu(self.down(first)))
        up = up[..., : first.shape[-2], : first.shape[-1]]
        return self.last(F.relu(self.norm(torch.cat([first, up], dim=1))))


class Hardcoded(nn.Module):
    """Sizes written as numbers where the tensor could be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.other = nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.hidden = nn.Linear(20 * 4 * 4, 30)
        self.head = nn.Linear(30, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.other(F.relu(self.conv(x))))
        return self.head(F.relu(self.hidden(x.view(-1, 320))))


class Mixture(nn.Module):
    """Two experts weighed by a soft gate, stacked and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 24)
        self.gate = nn.Linear(24, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24)) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        stacked = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head((stacked * self.gate(x).softmax(dim=-1).unsqueeze(-1)).sum(dim=1))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between, and the input concatenated at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.first = nn.Conv2d(24, 24, 1, groups=3)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.second = nn.Conv2d(24, 24, 1, groups=3)
        self.head = nn.Linear(27, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x))
        n, c, h, w = y.shape
        y = F.relu(self.first(y)).view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.second(self.deep(y))
        return self.head(torch.cat([x, F.relu(y)], dim=1).mean(dim=(2, 3)))


_TEXT: tuple[Input, ...] = (Tokens(shape=(2, 12), below=WORDS),)
_STEPS: tuple[Input, ...] = ((2, 10, 16),)
_IMAGE: tuple[Input, ...] = ((2, 3, 16, 16),)

TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]] = {
    "lstm_classifier": (LstmClassifier, _TEXT),
    "two_way_lstm": (TwoWayLstm, ((2, 10, 12),)),
    "conv_gru": (ConvGru, ((2, 8, 20),)),
    "self_attention": (SelfAttention, _STEPS),
    "encoder": (Encoder, _STEPS),
    "translator": (Translator, (*_TEXT, Tokens(shape=(2, 9), below=WORDS))),
    "einsum_attention": (EinsumAttention, ((2, 10, 24),)),
    "unfolded": (Unfolded, _IMAGE),
    "channels_last": (ChannelsLast, _IMAGE),
    "weight_norm": (WeightNorm, ((2, 4, 30),)),
    "tied_embedding": (TiedEmbedding, _TEXT),
    "rotary_groups": (RotaryGroups, _TEXT),
    "linear_attention": (LinearAttention, ((2, 10, 24),)),
    "unet": (SmallUnet, ((2, 3, 15, 15),)),
    "hardcoded": (Hardcoded, _IMAGE),
    "mixture": (Mixture, ((3, 16),)),
    "shuffle": (Shuffle, _IMAGE),
}
