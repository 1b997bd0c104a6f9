"""Reconstruction of whole networks: what can be made up for is, and nothing else changes.

In most networks here the removed channels are copies of kept ones, so that weights exist with which the pruned network
equals the dense one: reconstruction must find them, through every kind of layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import Compacted, analyse
from edgeprune.compact.outputs import Output, compact
from edgeprune.config import PruneConfig
from edgeprune.errors import ModelError
from edgeprune.graph import ChannelGraph
from edgeprune.pruning import make_plan, score
from edgeprune.reconstruct import Reconstructed, Settings, made_up, reconstruct
from edgeprune.reconstruct.network import slices
from tests.residual_networks import batch_norm
from tests.zoo import NETWORKS
from tests.zoo.awkward_blocks import AWKWARD

EXACT = Settings(ridge=1e-10)


def doubled(tensor: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Return a tensor whose second half along a dimension repeats the first."""
    first = tensor.detach().narrow(axis, 0, tensor.shape[axis] // 2)
    return torch.cat([first, first], axis)


def double_(*layers: nn.Module, axis: int = 0) -> None:
    """Let the second half of the channels that layers make repeat the first half."""
    with torch.no_grad():
        for layer in layers:
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if tensor.dim():
                    tensor.copy_(doubled(tensor, axis if name == "weight" else 0))


def first_half(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(range(group.size // 2)) for group in graph.free}


def pruned(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    keep: Callable[[ChannelGraph], Mapping[str, tuple[int, ...]]] = first_half,
    output: Output = "auto",
) -> tuple[Compacted, ChannelGraph, Mapping[str, tuple[int, ...]]]:
    graph = analyse(model, inputs, output)
    chosen = keep(graph)
    return compact(model, graph, {name: tuple(units) for name, units in chosen.items()}, inputs, output), graph, chosen


def reconstructed(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    samples: list[tuple[torch.Tensor, ...]],
    settings: Settings = EXACT,
    output: Output = "auto",
) -> Reconstructed:
    compacted, graph, keep = pruned(model, inputs, output=output)
    before = {name: tensor.clone() for name, tensor in compacted.model.state_dict().items()}
    dense_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = reconstruct(compacted.model, model, graph, keep, samples, settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in compacted.model.state_dict().items())
    assert all(torch.equal(dense_before[name], tensor) for name, tensor in model.state_dict().items())
    return result


def many(count: int, *shape: int, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(*shape, generator=generator),) for _ in range(count)]


class Convolutions(nn.Module):
    """A stem of channels that come twice, one layer of a given kind over them, a head."""

    def __init__(self, layer: nn.Module, dims: int, *, twice: bool = True) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.stem, self.layer = convolution(2, 8, 3, padding=1), layer
        self.head = nn.LazyLinear(3)
        if twice:
            double_(self.stem)

    def forward(self, x):
        x = self.layer(F.relu(self.stem(x)))
        return self.head(x.flatten(2).mean(2))


@pytest.mark.parametrize(
    ("layer", "dims"),
    [
        (nn.Conv1d(8, 6, 3, stride=2), 1),
        (nn.Conv2d(8, 6, 3, padding=1), 2),
        (nn.Conv2d(8, 6, 3, padding=1, bias=False), 2),
        (nn.Conv3d(8, 6, 2), 3),
        (nn.ConvTranspose1d(8, 6, 3, stride=2), 1),
        (nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, bias=False), 2),
        (nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), batch_norm(6)), 2),
    ],
)
def test_channels_that_came_twice_are_made_up_for_in_every_convolution(layer: nn.Module, dims: int) -> None:
    torch.manual_seed(0)
    model = Convolutions(copy.deepcopy(layer), dims)
    inputs = (torch.randn(1, 2, *[7, 6, 5][:dims]),)
    model(*inputs)
    model.eval()

    def keep_stem(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
        return {"stem": (0, 1, 2, 3)}

    compacted, graph, keep = pruned(model, inputs, keep_stem)
    result = reconstruct(compacted.model, model, graph, keep, many(48, *inputs[0].shape), EXACT)
    assert result.improved
    assert result.error_before > 0.05
    assert result.error_after < 1e-4
    assert len(result.layers) >= 1
    x = torch.randn(4, 2, *[7, 6, 5][:dims])
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-3, atol=1e-3)


class Separable(nn.Module):
    """A depthwise convolution over channels that differ, and what mixes them again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 1), batch_norm(12)
        self.depthwise, self.norm2 = nn.Conv2d(12, 12, 3, groups=12, bias=False), batch_norm(12)
        self.point, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu6(self.norm2(self.depthwise(F.relu6(self.norm(self.stem(x))))))
        return self.head(F.relu(self.point(x)).mean((2, 3)))


def test_a_depthwise_convolution_is_solved_channel_by_channel() -> None:
    torch.manual_seed(0)
    model = Separable().eval()
    result = reconstructed(model, (torch.randn(1, 3, 8, 8),), many(64, 1, 3, 8, 8), Settings())
    assert result.improved
    assert result.error_after < 0.7 * result.error_before
    assert {row["weight"] for row in result.layers} >= {"point.weight", "head.weight"}


class Residual(nn.Module):
    """A stream that a block adds to: what the stream has lost, the block's last layer can make up for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.norm1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), batch_norm(16)
        self.down, self.norm2 = nn.Conv2d(16, 8, 3, padding=1, bias=False), batch_norm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        out = self.norm2(self.down(F.relu(self.norm1(self.up(F.relu(x))))))
        x = F.relu(out + x)
        return self.head(x.mean((2, 3)))


def test_a_shortcut_that_lost_something_is_made_up_for() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    compacted, graph, keep = pruned(model, (torch.randn(1, 3, 8, 8),))
    with torch.no_grad():  # the pruned shortcut errs by what the block can give: noise in the weights of the stem
        compacted.model.get_submodule("stem").weight.add_(0.3 * torch.randn(4, 3, 3, 3))
    samples = many(64, 1, 3, 8, 8)
    result = reconstruct(compacted.model, model, graph, keep, samples, Settings())
    (row,) = [row for row in result.layers if row["weight"] == "down.weight"]
    assert row["shortcuts"] == 1
    assert result.improved


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 1, "bidirectional": False, "batch_first": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": False},
        {"num_layers": 1, "bidirectional": True, "batch_first": True, "bias": False},
    ],
)
def test_states_that_came_twice_are_made_up_for_in_recurrent_layers(
    kind: type[nn.RNNBase], options: dict[str, bool]
) -> None:
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Linear(5, 8), kind(8, 8, **options)
            self.head = nn.Linear(8 * self.rnn.num_layers // self.rnn.num_layers * (1 + self.rnn.bidirectional), 3)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[0])

    model = Reader().eval()
    gates = model.rnn.weight_hh_l0.shape[0] // 8
    with torch.no_grad():
        for name, tensor in model.rnn.named_parameters():
            rows = tensor.view(gates, 8, -1)
            rows[:, 4:] = rows[:, :4].clone()
            tensor.copy_(rows.view(tensor.shape) * (3 if "weight" in name else 1))

    def halves(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
        return {group.name: tuple(range(group.size // 2)) for group in graph.free if group.name.startswith("rnn")}

    compacted, graph, keep = pruned(model, (torch.randn(2, 6, 5),), halves)
    result = reconstruct(compacted.model, model, graph, keep, many(48, 2, 6, 5), EXACT)
    assert result.error_before > 0.05
    assert result.error_after < 2e-3
    assert "rnn.weight_ih_l0" in {row["weight"] for row in result.layers}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def test_attention_and_feed_forward_layers_are_solved_with_what_their_stream_lost() -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    result = reconstructed(model, (torch.randn(1, 7, 6),), many(256, 1, 7, 6), Settings())
    assert result.improved
    assert result.error_after < 0.5 * result.error_before
    shortcuts = {row["weight"]: row["shortcuts"] for row in result.layers}
    assert shortcuts["out.weight"] == shortcuts["down.weight"] == 1


@pytest.mark.parametrize("output", ["eager", "graph"])
def test_both_outputs_can_be_reconstructed(output: Output) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    result = reconstructed(model, (torch.randn(1, 3, 8, 8),), many(64, 1, 3, 8, 8), Settings(), output)
    assert result.improved


def test_a_weight_that_is_used_twice_is_left_out_and_named() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))))

    result = reconstructed(Twice().eval(), (torch.randn(1, 4),), many(64, 1, 4), Settings())
    assert [(row["weight"], row["reason"]) for row in result.left_out] == [
        ("shared.weight", "the weight is used more than once")
    ]
    assert "head.weight" in {row["weight"] for row in result.layers}


def test_many_unknowns_are_solved_on_few_rows() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    settings = Settings(max_unknowns=50)
    result = reconstructed(model, (torch.randn(1, 3, 8, 8),), many(32, 1, 3, 8, 8), settings)
    (row,) = [row for row in result.layers if row["weight"] == "down.weight"]
    assert row["unknowns"] == 72
    assert row["rows"] < 100  # not 64 positions of 28 samples
    assert result.improved


def test_memory_bounds_the_number_of_samples() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs = (torch.randn(1, 3, 8, 8),)
    few = reconstructed(model, inputs, many(64, 1, 3, 8, 8), Settings(memory_bytes=200_000))
    assert 1 <= few.samples < 32
    assert reconstructed(model, inputs, many(64, 1, 3, 8, 8), Settings(samples=20)).samples == 20


def test_few_samples_in_a_badly_determined_layer_stay_finite_and_help() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    result = reconstructed(model, (torch.randn(1, 64),), many(24, 1, 64), Settings())
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


def test_weights_that_do_not_get_better_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))  # relu(x) + relu(1 - x), of which relu(x) stays
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
        model[2].weight.fill_(1)
        model[2].bias.fill_(0)
    compacted, graph, keep = pruned(model, (torch.randn(1, 1),), lambda graph: {"0": (0,)})
    held_out = [(torch.full((1, 1), value),) for value in (9.0, 8.0)]  # where the pruned network is right
    result = reconstruct(compacted.model, model, graph, keep, [*held_out, *[(torch.zeros(1, 1),)] * 16])
    assert not result.improved
    assert result.error_before == 0
    assert result.error_after > 0
    state = result.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in compacted.model.state_dict().items())


def test_no_samples_are_an_error_that_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    compacted, graph, keep = pruned(model, (torch.randn(1, 4),))
    with pytest.raises(ModelError, match="no samples") as raised:
        reconstruct(compacted.model, model, graph, keep, [])
    assert "calibration_data" in str(raised.value.fix)


def test_values_that_are_not_finite_are_an_error_that_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    compacted, graph, keep = pruned(model, (torch.randn(1, 4),))
    with pytest.raises(ModelError, match=r"'2\.weight' cannot be reconstructed"):
        reconstruct(compacted.model, model, graph, keep, [(torch.full((1, 4), torch.inf),)] * 20)


def test_a_batch_is_cut_into_samples_of_the_example_shape() -> None:
    batch = (torch.arange(14).view(7, 2), torch.arange(21).view(7, 3))
    found = slices(batch, [(2, 2), (2, 3)])
    assert [tuple(tensor.shape) for tensor in found[0]] == [(2, 2), (2, 3)]
    assert len(found) == 3
    assert torch.equal(found[2][0], batch[0][4:6])
    assert slices(batch, [(2, 4), (2, 3)]) == []
    assert slices(batch[:1], [(2, 2), (2, 3)]) == []


@pytest.mark.parametrize("name", sorted(NETWORKS | AWKWARD))
def test_every_network_of_the_zoo_can_be_reconstructed(name: str) -> None:
    """The solved network is the one that was solved for (checked inside), finite, and never worse than before."""
    entry = (NETWORKS | AWKWARD)[name]
    model, inputs = entry.build(), entry.inputs()
    graph = analyse(model, inputs)
    keep = {group.name: tuple(range(0, group.size, 2)) for group in graph.free if not graph.balances}
    if not keep:
        scores = score(model, graph, "l2", inputs=inputs)
        keep = dict(make_plan(graph, scores, PruneConfig(), align=1, model=model, inputs=inputs).keep)
    small = compact(model, graph, keep, inputs).model
    samples, _ = made_up(nn.Sequential(), inputs, 16 * inputs[0].shape[0])
    result = reconstruct(small, model, graph, keep, samples)
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())
    assert result.layers or result.left_out
    assert result.improved == (result.error_after < result.error_before)


def test_progress_counts_the_calls() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    compacted, graph, keep = pruned(model, (torch.randn(1, 4),))
    seen: list[tuple[int, int]] = []
    reconstruct(compacted.model, model, graph, keep, many(16, 1, 4), progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
