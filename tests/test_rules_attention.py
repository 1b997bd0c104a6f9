"""Attention kept whole and torch's own attention modules: right on the kept channels and heads alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact.outputs import compact
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.graph import trace
from edgeprune.graph.capture import record
from edgeprune.graph.cost import count_macs
from edgeprune.graph.flow import RULES
from edgeprune.graph.structure import output_tensors
from edgeprune.pruning.budget import remaining_macs
from tests.test_rules import FAST


@pytest.fixture(autouse=True)
def modules_take_their_ordinary_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Attention(nn.Module):
    """Query, key and value as bare weights turned into activations, a mask per head, a weight that reads the result."""

    def __init__(self, heads: int, shared: int, tokens: int, keys: int, masked: bool, **options: Any) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.randn(2, heads, tokens, 6))
        self.k = nn.Parameter(torch.randn(2, shared, keys, 6))
        self.v = nn.Parameter(torch.randn(2, shared, keys, 5))
        self.mask = nn.Parameter(torch.randn(heads, tokens, keys)) if masked else None
        self.out = nn.Parameter(torch.randn(heads, 5, 3))
        self.options = options

    def forward(self, x):
        q, k, v = (torch.sigmoid(weight * x) + 0.2 for weight in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.options)
        return torch.einsum("bhnd,hdc->bnc", mixed, self.out)


@st.composite
def attentions(draw: Any) -> tuple[Attention, bool]:
    shared = draw(st.integers(1, 3))
    grouped = draw(st.booleans())
    heads = shared * draw(st.integers(1, 3)) if grouped else draw(st.sampled_from([shared, max(shared, 1)]))
    tokens, keys = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    causal = draw(st.booleans())
    masked = not causal and draw(st.booleans())
    options: dict[str, Any] = {"is_causal": causal, "scale": draw(st.sampled_from([None, 0.3]))}
    if grouped:
        options["enable_gqa"] = True
    torch.manual_seed(draw(st.integers(0, 99)))
    return Attention(heads, shared, tokens, keys, masked, **options).double().eval(), grouped


def by_hand(model: Attention, keep: dict[tuple[str, int], Any], x: torch.Tensor) -> torch.Tensor:
    """Compute attention from its definition on the kept positions, with the scale of the dense network."""
    kept = dict(model.named_parameters())
    for (name, axis), mask in keep.items():
        kept[name] = kept[name].index_select(axis, torch.from_numpy(mask).nonzero()[:, 0])
    q, k, v = (torch.sigmoid(kept[name] * x) + 0.2 for name in "qkv")
    times = max(q.shape[1] // k.shape[1], 1)
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scale = model.options["scale"] or 6**-0.5
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
    if model.mask is not None:
        scores = scores + kept["mask"]
    if model.options["is_causal"]:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd,hdc->bnc", weights, v, kept["out"])


def test_attention_is_that_of_the_kept_positions() -> None:
    free: set[str] = set()

    @FAST
    @given(attentions())
    def check(drawn: Any) -> None:
        model, _ = drawn
        x = torch.tensor([0.7], dtype=torch.float64)
        graph = trace(model, (x,))
        shapes = {dim for group in graph.free for dim in graph.dims if dim[0] in group.tensors}
        assert {("q", 3), ("k", 3), ("v", 3), ("out", 1)} <= shapes
        assert not {("k", 2), ("v", 2), ("mask", 2)} & set(graph.dims)
        for group in graph.free:
            free.update(f"{name}.{axis}" for name, axis in graph.dims if name in group.tensors)
            keep = {group.name: tuple(range(0, group.size, 2))}
            masks = graph.masks(keep)
            if any(not mask.any() for mask in masks.values()):
                continue
            (found,) = reference_outputs(masked_copy(model, masks), graph, keep, (x,))
            with torch.no_grad():
                torch.testing.assert_close(found, by_hand(model, masks, x), rtol=1e-10, atol=1e-10)

    check()
    assert {"q.1", "k.1", "out.0", "mask.0", "q.3", "k.3", "v.3"} <= free


def test_query_heads_go_with_the_key_head_that_they_share() -> None:
    model = Attention(6, 2, 3, 3, False, is_causal=False, scale=None, enable_gqa=True)
    graph = trace(model, (torch.ones(1),))
    heads = next(
        group for group in graph.free if group.producer == ("out", 0) or ("q" in group.tensors and group.size == 2)
    )
    masks = graph.masks({heads.name: (1,)})
    assert masks[("q", 1)].tolist() == [False] * 3 + [True] * 3
    assert masks[("k", 1)].tolist() == masks[("v", 1)].tolist() == [False, True]
    assert masks[("out", 0)].tolist() == [False] * 3 + [True] * 3


def test_one_key_for_all_heads_leaves_every_head_free() -> None:
    model = Attention(6, 1, 3, 3, False, is_causal=False, scale=None, enable_gqa=True)
    graph = trace(model, (torch.ones(1),))
    assert any(group.size == 6 and ("q", 1) in graph.dims for group in graph.free)


def test_the_products_of_attention_are_counted() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            q, k, v = (part(x).unflatten(2, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))

    model, inputs = Small().double().eval(), (torch.randn(2, 5, 6, dtype=torch.float64),)
    graph = trace(model, inputs)
    dense = count_macs(model, inputs)
    assert sum(item.macs for item in graph.contractions) == dense
    channels = [group.name for group in graph.free if group.size == 4]  # the number of heads is written in the code
    assert len(channels) == 2
    for name in channels:
        small = compact(model, graph, {name: (0, 2, 3)}, inputs).model
        left = remaining_macs(graph, {name: (0, 2, 3)}, dense)
        assert count_macs(small, inputs) / dense == pytest.approx(left)


MODULES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "batch_first": (nn.MultiheadAttention(8, 2, batch_first=True), {}),
    "sequence_first": (nn.MultiheadAttention(8, 2), {"need_weights": False}),
    "no_bias": (nn.MultiheadAttention(8, 2, bias=False), {"average_attn_weights": False}),
    "extra_keys": (nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True), {}),
    "padded": (nn.MultiheadAttention(8, 2), {"key_padding_mask": torch.zeros(2, 4, dtype=torch.bool)}),
    "masked": (nn.MultiheadAttention(8, 2), {"attn_mask": torch.zeros(4, 4)}),
    "masked_per_head": (nn.MultiheadAttention(8, 2), {"attn_mask": torch.zeros(4, 4, 4), "need_weights": False}),
    "causal": (nn.MultiheadAttention(8, 2), {"attn_mask": torch.zeros(4, 4), "is_causal": True, "need_weights": False}),
    "other_widths": (nn.MultiheadAttention(8, 2, kdim=8, vdim=8), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_call_of_torch_attention_has_a_rule(name: str) -> None:
    module, options = MODULES[name]
    options = {key: value.double() if key == "attn_mask" else value for key, value in options.items()}

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.sigmoid(self.first(x))
            return self.last(torch.relu(self.attention(x, x, x, **options)[0]))

    model = Reads().double().eval()
    calls = record(model, (inputs(),)).calls
    assert all(call.name in RULES or call.pointwise for call in calls)
    graph = trace(model, (inputs(),))
    assert {"first", "attention.out_proj"} & {group.name for group in graph.free}
    assert not any("not understood" in str(group.pinned) for group in graph.groups)
    dense = output_tensors(model(inputs()))
    for group in graph.free:
        keep = dict.fromkeys(next((row for row in graph.links if group.name in row), (group.name,)), (0, 1))
        keep = {name: units for name, units in keep.items() if group.size > 2}
        (found,) = reference_outputs(masked_copy(model, graph.masks(keep)), graph, keep, (inputs(),))
        assert found.isfinite().all()
        assert torch.allclose(found, dense[0], rtol=1e-9) == (not keep)


def inputs() -> torch.Tensor:
    return torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_torch_attention_is_that_of_the_kept_channels() -> None:
    """The module computed by hand on what is left of its tensors; its own code could not run at another width."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    nn.init.normal_(attention.in_proj_bias)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention, self.last = nn.Linear(6, 8), attention, nn.Linear(8, 3)

        def forward(self, x):
            x = torch.sigmoid(self.first(x))
            return self.last(self.attention(x, x, x, need_weights=False)[0])

    model, x = Reads().double().eval(), inputs()
    graph = trace(model, (x,))
    inside = [group for group in graph.free if "attention.in_proj_bias" in group.tensors]
    assert sorted(group.size for group in inside) == [2, 4]
    assert len(graph.free) >= 3
    for group in graph.free:
        keep = {group.name: (0,) if group.size == 2 else (0, 2, 3)}
        masks = graph.masks(keep)
        state = {name: value.detach() for name, value in model.named_parameters()}
        for (name, axis), mask in masks.items():
            state[name] = state[name].index_select(axis, torch.from_numpy(mask).nonzero()[:, 0])
        h = torch.sigmoid(F.linear(x, state["first.weight"], state["first.bias"]))
        qkv = F.linear(h, state["attention.in_proj_weight"], state["attention.in_proj_bias"])
        heads = 1 if group.size == 2 else 2
        q, k, v = (part.unflatten(2, (heads, -1)) for part in qkv.chunk(3, -1))
        weights = (torch.einsum("nbhd,mbhd->bhnm", q, k) / 2).softmax(-1)
        mixed = torch.einsum("bhnm,mbhd->nbhd", weights, v).flatten(2)
        mixed = F.linear(mixed, state["attention.out_proj.weight"], state["attention.out_proj.bias"])
        (found,) = reference_outputs(masked_copy(model, masks), graph, keep, (x,))
        torch.testing.assert_close(found, F.linear(mixed, state["last.weight"], state["last.bias"]))
