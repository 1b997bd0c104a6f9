"""Which single weights go: the worked example, every method against its definition, and what cannot be pruned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeprune as ep
from edgeprune.config import SparsifyConfig, validate
from edgeprune.errors import ConfigError, ModelError, NothingToPrune
from edgeprune.pruning import Masks, make_masks
from edgeprune.pruning.weights import erk_densities, lamp_scores, layers_of

EXAMPLE = [[0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3]]


class Mixed(nn.Module):
    """One layer of every kind whose weights are considered, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(3, 12, 3)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(12, 6, 2, groups=2)
        self.lstm = nn.LSTM(8, 5, num_layers=2)
        self.cell = nn.GRUCell(5, 4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.layer = nn.Linear(8, 7)
        self.head = nn.Linear(7, 3, bias=False)


CONSIDERED = [
    "conv.weight",
    "depthwise.weight",
    "up.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.weight_ih_l1",
    "lstm.weight_hh_l1",
    "cell.weight_ih",
    "cell.weight_hh",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "layer.weight",
    "head.weight",
]


def mixed(seed: int = 0, ties: bool = False) -> Mixed:
    """Return the network with random weights; with `ties` they take few values, 0 among them."""
    torch.manual_seed(seed)
    net = Mixed()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
            if ties:
                parameter.copy_((parameter * 2).round() / 4)
    return net


def masks_of(net: nn.Module, **chosen: Any) -> Masks:
    return make_masks(net, SparsifyConfig(**chosen))


def magnitudes(net: nn.Module, masks: Masks) -> list[torch.Tensor]:
    parameters = dict(net.named_parameters())
    return [parameters[name].detach().abs() for name in masks.kept]


networks = st.builds(mixed, st.integers(0, 1000), st.booleans())
amounts = st.floats(0.001, 0.999)


def test_the_worked_example() -> None:
    net = nn.Linear(4, 3)
    net.weight.data = torch.tensor(EXAMPLE)
    sparse, masks = ep.sparsify(net, method="threshold", threshold=0.2)
    assert isinstance(sparse, nn.Linear)
    kept = [[True, True, True, True], [False, True, True, True], [False, False, True, True]]
    assert masks.kept["weight"].tolist() == kept
    assert torch.equal(sparse.weight, torch.tensor(EXAMPLE) * torch.tensor(kept))
    assert (masks.zeros, masks.weights, masks.sparsity) == (3, 12, 0.25)
    assert torch.equal(net.weight, torch.tensor(EXAMPLE))
    assert torch.equal(sparse.bias, net.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_weight_equal_to_the_threshold_stays_in_every_type(dtype: torch.dtype) -> None:
    net = nn.Linear(2, 1).to(dtype)
    net.weight.data = torch.tensor([[-0.2, 0.199]], dtype=dtype)
    assert masks_of(net, method="threshold", threshold=0.2).kept["weight"].tolist() == [[True, False]]


def test_every_kind_of_layer_is_considered_and_nothing_else() -> None:
    assert [layer.name for layer in layers_of(mixed())] == CONSIDERED


@given(networks, st.floats(0.25, 2.0))
@settings(max_examples=20, deadline=None)
def test_a_relative_threshold_is_in_units_of_the_layers_scale(net: Mixed, rate: float) -> None:
    masks = masks_of(net, method="relative", rate=rate, keep=["lstm", "cell", "attention*", "up", "conv", "depthwise"])
    for name, bias in (("layer.weight", net.layer.bias.detach().double()), ("head.weight", torch.zeros(1).double())):
        weight = dict(net.named_parameters())[name].detach()
        limit = rate * math.sqrt(float(weight.double().square().mean() + bias.square().mean()))
        assert torch.equal(masks.kept[name], weight.abs() >= torch.tensor(limit, dtype=torch.float32))


def test_a_relative_threshold_takes_the_bias_of_recurrent_and_attention_weights() -> None:
    net = mixed()
    biases = {layer.name: layer.bias for layer in layers_of(net)}
    assert biases["lstm.weight_hh_l1"] is net.lstm.bias_hh_l1
    assert biases["attention.in_proj_weight"] is net.attention.in_proj_bias
    assert biases["head.weight"] is None


@given(networks, amounts)
@settings(max_examples=30, deadline=None)
def test_a_local_fraction_is_met_in_every_layer_by_its_smallest_weights(net: Mixed, amount: float) -> None:
    try:
        masks = masks_of(net, method="magnitude", amount=amount)
    except NothingToPrune:
        assert all(round(amount * layer.weight.numel()) == 0 for layer in layers_of(net))
        return
    for size, mask in zip(magnitudes(net, masks), masks.kept.values(), strict=True):
        assert int((~mask).sum()) == min(round(amount * mask.numel()), mask.numel() - 1)
        if not mask.all():
            assert size[~mask].max() <= size[mask].min()


@given(networks, amounts)
@settings(max_examples=30, deadline=None)
def test_a_global_fraction_is_that_of_all_sorted_magnitudes(net: Mixed, amount: float) -> None:
    sizes = torch.cat([layer.weight.abs().flatten() for layer in layers_of(net)])
    count = round(amount * len(sizes))
    if count == 0:
        return
    masks = masks_of(net, method="magnitude", amount=amount, scope="global")
    kept = torch.cat([mask.flatten() for mask in masks.kept.values()])
    expected = sorted(range(len(sizes)), key=lambda index: (float(sizes[index]), index))[: min(count, len(sizes) - 1)]
    assert torch.nonzero(~kept).flatten().tolist() == sorted(expected)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30))
@settings(deadline=None)
def test_lamp_scores_are_those_of_the_definition(values: list[float]) -> None:
    weight = torch.tensor(values)
    order = sorted(range(len(values)), key=lambda index: (values[index] ** 2, index))
    for rank, index in enumerate(order):
        tail = math.fsum(values[other] ** 2 for other in order[rank:])
        expected = values[index] ** 2 / tail if tail > 0 else 0.0
        assert float(lamp_scores(weight)[index]) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(networks, amounts)
@settings(max_examples=20, deadline=None)
def test_lamp_prunes_the_lowest_scores_of_all_layers(net: Mixed, amount: float) -> None:
    total = sum(layer.weight.numel() for layer in layers_of(net))
    masks = masks_of(net, method="lamp", amount=amount)
    assert masks.zeros == min(round(amount * total), total - 1)
    scores = torch.cat([lamp_scores(layer.weight) for layer in layers_of(net)])
    kept = torch.cat([mask.flatten() for mask in masks.kept.values()])
    assert scores[~kept].max() <= scores[kept].min()
    if amount < 0.9:
        assert all(mask.any() for mask in masks.kept.values())


shapes = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8)


@given(shapes, st.floats(0, 0.999))
def test_erk_densities_are_proportional_capped_and_meet_the_budget(dims: list[Any], amount: float) -> None:
    densities = erk_densities(dims, amount)
    sizes = [math.prod(shape) for shape in dims]
    kept = math.fsum(density * size for density, size in zip(densities, sizes, strict=True))
    assert kept == pytest.approx((1 - amount) * sum(sizes), rel=1e-9)
    assert all(0 < density <= 1 + 1e-12 for density in densities)
    raw = [sum(shape) / size for shape, size in zip(dims, sizes, strict=True)]
    free = [density / share for density, share in zip(densities, raw, strict=True) if density < 1]
    assert all(factor == pytest.approx(free[0]) for factor in free)
    for density, share in zip(densities, raw, strict=True):
        if density == 1 and free:
            assert free[0] * share >= 1 - 1e-9


def test_erk_on_three_layers_by_hand() -> None:
    shapes = [(10, 10), (20, 10), (4, 2)]  # raw densities 0.2, 0.15 and 0.75 on 100, 200 and 8 weights
    assert erk_densities(shapes, 0.5)[2] == 1.0
    factor = (154 - 8) / (0.2 * 100 + 0.15 * 200)
    assert erk_densities(shapes, 0.5)[:2] == pytest.approx([0.2 * factor, 0.15 * factor])


@given(networks, amounts)
@settings(max_examples=20, deadline=None)
def test_erk_meets_the_budget_to_the_weight_and_goes_by_magnitude(net: Mixed, amount: float) -> None:
    layers = layers_of(net)
    total = sum(layer.weight.numel() for layer in layers)
    masks = masks_of(net, method="erk", amount=amount)
    assert masks.zeros == round(amount * total)
    densities = erk_densities([tuple(layer.weight.shape) for layer in layers], amount)
    for size, mask, density in zip(magnitudes(net, masks), masks.kept.values(), densities, strict=True):
        if amount < 0.9:
            assert abs(int(mask.sum()) - density * mask.numel()) < 2
        if mask.any() and not mask.all():
            assert size[~mask].max() <= size[mask].min()


@given(networks, st.integers(2, 8).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))))
@settings(max_examples=30, deadline=None)
def test_a_pattern_keeps_n_of_every_m_inputs(net: Mixed, pattern: tuple[int, int]) -> None:
    count, size = pattern
    masks = masks_of(net, method="n:m", pattern=f"{count}:{size}")
    for layer in layers_of(net):
        mask, values = masks.kept[layer.name], layer.weight.abs()
        if layer.name == "up.weight":  # inputs first, in two groups of six
            pieces = [(mask[i : i + 6].movedim(0, -1), values[i : i + 6].movedim(0, -1)) for i in (0, 6)]
        else:
            pieces = [(mask.movedim(1, -1), values.movedim(1, -1))]
        for kept, sizes in pieces:
            whole = kept.shape[-1] // size * size
            assert kept[..., whole:].all()
            for start in range(0, whole, size):
                group, inside = kept[..., start : start + size], sizes[..., start : start + size]
                assert (group.sum(-1) == count).all()
                lost = inside.masked_fill(group, -1).amax(-1)
                stays = inside.masked_fill(~group, math.inf).amin(-1)
                assert (lost <= stays).all()


def test_of_equal_inputs_the_first_ones_go() -> None:
    net = nn.Linear(6, 1)
    nn.init.ones_(net.weight)
    assert masks_of(net, method="n:m", pattern="2:4").kept["weight"].tolist() == [
        [False, False, True, True, True, True]
    ]


@given(networks, amounts, st.integers(1, 4), st.integers(1, 4), st.sampled_from(["local", "global"]))
@settings(max_examples=30, deadline=None)
def test_whole_blocks_go_by_their_sum(net: Mixed, amount: float, rows: int, columns: int, scope: str) -> None:
    try:
        masks = masks_of(net, method="block", amount=amount, block=f"{rows}x{columns}", scope=scope)
    except NothingToPrune:
        return
    gone, stay, edges = [], [], 0
    for layer in layers_of(net):
        axes = (1, 0) if layer.inputs_first else (0, 1)
        kept, sizes = (
            tensor.movedim(axes, (-2, -1)).reshape(-1, *(tensor.shape[axis] for axis in axes))
            for tensor in (masks.kept[layer.name], layer.weight.abs().double())
        )
        for plane, size in zip(kept, sizes, strict=True):
            for row in range(0, plane.shape[0], rows):
                for column in range(0, plane.shape[1], columns):
                    tile = plane[row : row + rows, column : column + columns]
                    if tile.shape != (rows, columns):
                        edges += 1
                        assert tile.all()
                        continue
                    assert tile.all() or not tile.any()
                    into = stay if tile.all() else gone
                    into.append(float(size[row : row + rows, column : column + columns].sum()))
    if scope == "global":
        assert len(gone) == min(round(amount * (len(gone) + len(stay))), len(gone) + len(stay) - 1)
        assert max(gone) <= min(stay) + 1e-12
    assert len(gone) * rows * columns == masks.zeros


def test_a_shared_weight_is_pruned_once_and_that_of_an_embedding_is_left_alone() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "e": nn.Embedding(4, 4), "out": nn.Linear(4, 4)})
    net["b"].weight = net["a"].weight  # type: ignore[assignment]
    net["out"].weight = net["e"].weight  # type: ignore[assignment]
    sparse, masks = ep.sparsify(net, amount=0.5)
    assert list(masks.kept) == ["a.weight"]
    assert sparse.get_submodule("b").weight is sparse.get_submodule("a").weight
    with pytest.raises(NothingToPrune):
        ep.sparsify(net, amount=0.5, keep=["b"])  # the other name of the only weight


def test_keep_protects_layers_by_name_pattern_and_module() -> None:
    net = mixed()
    kept = masks_of(net, method="magnitude", amount=0.5, keep=["lstm", "cell.weight_?h", "conv|up", "head.weight"]).kept
    assert not {"head.weight", "conv.weight", "up.weight", "lstm.weight_ih_l0", "cell.weight_hh"} & set(kept)
    assert "layer.weight" in kept
    with pytest.raises(ConfigError, match=r"sparsify\.keep = 'hed' matches no layer"):
        masks_of(net, method="magnitude", amount=0.5, keep=["hed"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    net = mixed()
    net.head.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=r"'head\.weight' has weights that are not finite"):
        masks_of(net, method="lamp", amount=0.5)
    assert masks_of(net, method="lamp", amount=0.5, keep=["head"]).zeros > 0


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(NothingToPrune, match="no layer whose weights can be pruned"):
        ep.sparsify(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), amount=0.5)
    with pytest.raises(NothingToPrune, match=r"threshold 1e-09 prunes none of 12 weights"):
        ep.sparsify(nn.Linear(4, 3), method="threshold", threshold=1e-9)
    with pytest.raises(NothingToPrune, match=r"amount 0\.01 prunes none of 12 weights"):
        ep.sparsify(nn.Linear(4, 3), amount=0.01)
    with pytest.raises(NothingToPrune, match="pattern 2:4 prunes none"):
        ep.sparsify(nn.Conv2d(3, 8, 3), method="n:m", pattern="2:4")
    assert ep.sparsify(nn.Linear(4, 3), amount=0.0)[1].zeros == 0


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"amount": 1.0}, "sparsify.amount = 1.0: Input should be less than 1"),
        ({"amount": -0.1}, "sparsify.amount = -0.1"),
        ({"amount": math.nan}, "sparsify.amount = nan"),
        ({}, "sparsify.method = 'magnitude' needs sparsify.amount"),
        ({"method": "lam", "amount": 0.5}, "did you mean 'lamp'"),
        ({"method": "lamp", "amount": 0.5, "threshold": 0.1}, "sparsify.threshold = 0.1 means nothing to"),
        ({"method": "lamp", "amount": 0.5, "scope": "local"}, "sparsify.scope = 'local' means nothing to"),
        ({"method": "n:m", "pattern": "4:2"}, "sparsify.pattern = '4:2' removes nothing"),
        ({"method": "n:m", "pattern": "4:4"}, "sparsify.pattern = '4:4' removes nothing"),
        ({"method": "n:m", "pattern": "0:4"}, "sparsify.pattern = '0:4' removes nothing"),
        ({"method": "n:m", "pattern": "two"}, "sparsify.pattern = 'two' is not two whole numbers"),
        ({"method": "n:m", "pattern": "2:4", "amount": 0.5}, "sparsify.amount = 0.5 means nothing to"),
        ({"method": "block", "amount": 0.5}, "sparsify.method = 'block' needs sparsify.block"),
        ({"method": "block", "amount": 0.5, "block": "0x4"}, "is an empty block"),
        ({"method": "threshold", "threshold": -1.0}, "sparsify.threshold = -1.0"),
        ({"method": "relative", "rate": 0.0}, "sparsify.rate = 0.0"),
    ],
)
def test_wrong_settings_are_named(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ep.sparsify(nn.Linear(4, 3), **chosen)
    assert words in caught.value.message


def test_a_setting_of_another_method_names_the_right_one() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"sparsify": {"method": "erk", "amount": 0.5, "rate": 0.1}})
    assert caught.value.fix == "erk takes sparsify.amount; sparsify.rate goes with relative"
    with pytest.raises(ConfigError, match=r"sparsify\.amount = 0\.5 and no sparsify\.method"):
        validate({"sparsify": {"amount": 0.5}})


@given(networks)
@settings(max_examples=5, deadline=None)
def test_the_choice_is_the_same_every_time(net: Mixed) -> None:
    for chosen in (
        {"method": "lamp", "amount": 0.7},
        {"method": "erk", "amount": 0.7},
        {"method": "n:m", "pattern": "1:3"},
        {"method": "block", "block": "2x1", "amount": 0.5},
    ):
        assert masks_of(net, **chosen).digest == masks_of(net, **chosen).digest


def test_computed_weights_are_written_down_first_and_the_network_stays_as_it_was() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    sparse, masks = ep.sparsify(net, amount=0.5)
    assert list(masks.kept) == ["0.weight"]
    masks.check(sparse)
    assert torch.equal((sparse.get_parameter("0.weight") != 0), masks.kept["0.weight"])
    assert hasattr(net[0], "parametrizations")
