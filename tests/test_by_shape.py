"""Planning by shape: a network of a billion parameters is followed on the meta device, without its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import resource, time
import torch
import torch.nn.functional as F
from torch import nn
from edgeprune import trace

LAYERS, WIDTH, HEADS, SHARED, HIDDEN, WORDS = 24, 2048, 16, 4, 5632, 32000
HEAD = WIDTH // HEADS


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, SHARED * HEAD, bias=False) for _ in range(2))

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, HEADS, HEAD).transpose(1, 2)
        k, v = (part(x).view(batch, length, SHARED, HEAD).transpose(1, 2) for part in (self.k, self.v))
        k, v = (part.repeat_interleave(HEADS // SHARED, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, WIDTH))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.gated = Attention(), Gated()

    def forward(self, x):
        x = x + self.attention(self.first(x))
        return x + self.gated(self.second(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


with torch.device("meta"):
    model = Decoder().eval()
    tokens = torch.zeros(1, 64, dtype=torch.long)
count = sum(p.numel() for p in model.parameters())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
graph = trace(model, (tokens,))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hidden = [group for group in graph.free if group.channels == HIDDEN]
print(count, len(hidden), peak // 1024, (peak - before) // 1024, round(seconds, 2))
"""


def test_a_billion_parameters_are_planned_by_shape_in_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    count, hidden, peak_mb, _, _ = done.stdout.split()
    assert int(count) > 1_000_000_000
    assert int(hidden) == 24  # the gated layers of every block, one group each
    assert int(peak_mb) < 2000  # the weights alone would be 4 GB
