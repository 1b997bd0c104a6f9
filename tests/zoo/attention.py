"""Attention as users write it: fused and separate projections, torch's own modules, windows, grouped and shared heads.

Many of these hold `head_dim ** -0.5` or a number of heads as plain numbers, so that their own code expects old sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


class Tokens(nn.Module):
    """A network over a sequence: an embedding, `mix`, a feed-forward part with a residual, a head."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, self.width)
        self.norm = nn.LayerNorm(self.width)
        self.up = nn.Linear(self.width, 48)
        self.down = nn.Linear(48, self.width)
        self.head = nn.Linear(self.width, 5)

    def mix(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.embed(x)
        x = x + self.mix(self.norm(x))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


@network("attention_fused_qkv", (2, 9, 12), note="ViT: one qkv layer, reshape, permute, unbind")
class FusedQkv(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.scale = 8**-0.5

    def mix(self, x):
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, 4, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@network("attention_separate", (2, 9, 12), note="separate q, k, v, heads first, fused kernel with a given scale")
class Separate(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 32)
        self.k = nn.Linear(32, 32, bias=False)
        self.v = nn.Linear(32, 32)
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=8**-0.5)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@network("attention_masked", (2, 9, 12), note="a causal mask made by tril, added to the scores")
class Masked(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 24) for _ in range(3))
        self.proj = nn.Linear(24, 32)

    def mix(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = torch.baddbmm(torch.zeros_like(seen, dtype=x.dtype), q, k.transpose(1, 2), alpha=0.2)
        return self.proj(scores.masked_fill(~seen, -1e9).softmax(-1) @ v)


@network("attention_default_scale", (2, 9, 12), note="the fused kernel with the scale of its own")
class DefaultScale(Separate):
    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@network("attention_torch", (2, 9, 12), note="nn.MultiheadAttention, batch first, weights returned")
class TorchAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def mix(self, x):
        mixed, weights = self.attention(x, x, x)
        return mixed * (1 + weights.amax(2, keepdim=True))


@network(
    "attention_torch_kernel",
    (2, 9, 12),
    note="nn.MultiheadAttention, sequence first, no weights, extra keys",
)
class TorchAttentionKernel(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, add_bias_kv=True, add_zero_attn=True)

    def mix(self, x):
        x = x.transpose(0, 1)
        padded = torch.zeros(x.shape[1], x.shape[0], dtype=torch.bool)
        return self.attention(x, x, x, key_padding_mask=padded, need_weights=False)[0].transpose(0, 1)


@network(
    "attention_torch_cross",
    (2, 9, 12),
    (2, 5, 12),
    note="nn.MultiheadAttention with other widths of key and value",
)
class TorchCross(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(12, 20)
        self.attention = nn.MultiheadAttention(32, 4, kdim=20, vdim=20, batch_first=True)

    def forward(self, x, context):
        context = F.relu(self.context(context))
        x = self.embed(x)
        x = x + self.attention(self.norm(x), context, context, need_weights=False)[0]
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@network("transformer_encoder_post", (2, 9, 16), note="nn.TransformerEncoder, norm after")
class EncoderPost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


@network("transformer_encoder_pre", (2, 9, 16), note="nn.TransformerEncoderLayer, norm before, GELU")
class EncoderPre(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


@network(
    "transformer_decoder",
    (2, 9, 16),
    (2, 5, 16),
    note="nn.TransformerDecoderLayer: self and cross attention",
)
class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x, memory):
        return self.head(self.layer(x, memory).mean(1))


@network("attention_cross", (2, 9, 12), (2, 6, 12), note="queries from one sequence, keys and values from another")
class Cross(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 24)
        self.kv = nn.Linear(12, 48)
        self.proj = nn.Linear(24, 32)

    def forward(self, x, context):
        x = self.embed(x)
        q = self.q(self.norm(x))
        k, v = self.kv(context).chunk(2, -1)
        x = x + self.proj((q @ k.mT * 24**-0.5).softmax(-1) @ v)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@network("attention_grouped_repeat", (2, 9, 12), note="grouped queries: keys and values repeated by repeat_interleave")
class GroupedRepeat(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 32)
        self.k = nn.Linear(32, 16)
        self.v = nn.Linear(32, 16)
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q = self.q(x).unflatten(2, (4, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2).repeat_interleave(2, 1) for layer in (self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.35).transpose(1, 2).flatten(2))


@network("attention_grouped", (2, 9, 12), note="grouped queries inside the fused kernel")
class Grouped(GroupedRepeat):
    def mix(self, x):
        q = self.q(x).unflatten(2, (4, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.35, is_causal=True, enable_gqa=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@network("attention_one_key", (2, 9, 12), note="multi-query: one key and value for all heads")
class MultiQuery(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 32)
        self.kv = nn.Linear(32, 16)
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q = self.q(x).unflatten(2, (4, -1)).transpose(1, 2)
        k, v = self.kv(x)[:, None].chunk(2, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.35).transpose(1, 2).flatten(2))


def angles(tokens: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = torch.arange(tokens)[:, None] * torch.logspace(0, -1, pairs)
    return steps.cos(), steps.sin()


@network("attention_rotary_halves", (2, 9, 12), note="rotary embedding by halves")
class RotaryHalves(Separate):
    def turn(self, x):
        a, b = x.chunk(2, -1)
        cos, sin = angles(x.shape[2], x.shape[3] // 2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, scale=8**-0.5)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@network("attention_rotary_pairs", (2, 9, 12), note="rotary embedding of interleaved pairs, as complex numbers")
class RotaryPairs(RotaryHalves):
    def turn(self, x):
        numbers = torch.view_as_complex(x.unflatten(3, (-1, 2)))
        turned = numbers * torch.complex(*angles(x.shape[2], numbers.shape[3]))
        return torch.view_as_real(turned).flatten(3).to(x.dtype)


@network("attention_windows", (2, 8, 8, 12), note="Swin: windows by view and permute, a bias table picked by an index")
class Windows(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.table = nn.Parameter(torch.randn(49, 4))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]) + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, x):
        x = self.embed(x)
        n, height, width, channels = x.shape
        windows = x.view(n, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        mixed = self.mix(self.norm(windows)).view(n, height // 4, width // 4, 4, 4, -1)
        x = x + mixed.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, -1)
        x = x.roll((-2, -2), (1, 2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean((1, 2)))

    def mix(self, x):
        qkv = self.qkv(x).reshape(x.shape[0], 16, 3, 4, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        weights = (q * 0.35 @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape[0], 16, -1))


@network("attention_pooling", (2, 9, 12), note="a learned query reads the sequence")
class Pooling(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, 24))
        self.k = nn.Linear(32, 24)
        self.v = nn.Linear(32, 24)
        self.proj = nn.Linear(24, 32)

    def forward(self, x):
        x = self.norm(self.embed(x))
        query = self.query.expand(len(x), -1, -1)
        x = self.proj(F.scaled_dot_product_attention(query, self.k(x), self.v(x), scale=0.2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@network("attention_linear", (2, 9, 12), note="linear attention: elu + 1, sums over the tokens first")
class LinearAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        normal = 1 / (q @ k.sum(2)[..., None] + 1e-6)
        return self.proj((q @ (k.transpose(-2, -1) @ v) * normal).transpose(1, 2).flatten(2))


@network("attention_einsum", (2, 9, 12), note="heads by einsum on a bare weight of three dimensions")
class EinsumAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(32, 4, 8) * 0.3) for _ in range(3))
        self.out = nn.Parameter(torch.randn(4, 8, 32) * 0.3)

    def mix(self, x):
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, weight) for weight in (self.q, self.k, self.v))
        weights = torch.einsum("bhid, bhjd -> bhij", q, k).mul(0.35).softmax(-1)
        return torch.einsum("bhij,bhjd,hdc->bic", weights, v, self.out)


@network("attention_talking_heads", (2, 9, 12), note="heads mixed by layers before and after the softmax")
class TalkingHeads(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = self.before((q @ k.mT * 0.35).permute(0, 2, 3, 1)).softmax(2)
        weights = self.after(scores).permute(0, 3, 1, 2)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@network("attention_of_channels", (2, 9, 12), note="XCiT: channels attend to channels, norms over the tokens")
class OverChannels(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.proj((weights.softmax(-1) @ v).flatten(1, 2).transpose(1, 2))


@network("attention_normalised", (2, 9, 12), note="queries and keys normalised in every head by RMS norm")
class Normalised(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(8), nn.RMSNorm(8)
        self.proj = nn.Linear(32, 32)

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v, scale=0.35)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@network(
    "excite_by_one_dimension",
    (2, 3, 12, 12),
    note="ECA and CBAM: a convolution over channels, gates from mean and maximum",
)
class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3)
        self.gate = nn.Conv1d(1, 1, 3, padding=1)
        self.body = nn.Conv2d(24, 32, 3)
        self.squeeze = nn.Conv2d(32, 8, 1)
        self.excite = nn.Conv2d(8, 32, 1)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x * self.gate(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        x = F.relu(self.body(x))
        best = x.amax((2, 3), keepdim=True)
        x = x * (self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))) + best).sigmoid()
        x = x * self.spatial(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid()
        return self.head(x.mean((2, 3)))
