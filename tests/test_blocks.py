"""Which modules are residual blocks, how much each matters, and which are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeprune.compact.depth import removable
from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph.capture import record
from edgeprune.pruning.blocks import Block, choose, find, influence, protect
from tests.residual_networks import (
    Attention,
    Inverted,
    Offset,
    Residual,
    ResidualLinear,
    Tuples,
    residual_mlp,
    resnet,
)

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(2))


def blocks_of(model: nn.Module, *inputs: torch.Tensor) -> tuple[Block, ...]:
    return find(model.eval(), inputs, record(model.eval(), inputs))


def names_of(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    return [block.name for block in blocks_of(model, *inputs)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_stack_of_blocks_is_its_blocks_and_not_one_block() -> None:
    found = blocks_of(residual_mlp(3), ROWS)
    assert [block.name for block in found] == ["1.0", "1.1", "1.2"]
    assert [block.run for block in found] == [0, 0, 0]
    assert found[0].params == sum(parameter.numel() for parameter in ResidualLinear(8, 12).parameters())


def test_blocks_behind_a_relu_are_found_and_one_with_a_stride_is_not() -> None:
    found = blocks_of(resnet(), IMAGES)
    assert [block.name for block in found] == ["2.0", "2.1", "3.1"]
    assert [(block.run, block.anchored) for block in found] == [(0, False), (0, False), (1, True)]


def test_the_same_block_is_none_where_its_input_may_be_negative() -> None:
    model = resnet()
    model[1] = nn.Identity()
    assert names_of(model, IMAGES) == ["2.1", "3.1"]
    assert names_of(model, IMAGES.abs()) == ["2.1", "3.1"]


def test_inverted_residuals_are_found_and_those_that_change_the_width_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Inverted(4, 4), Inverted(4, 6, 2), Inverted(6, 6), Inverted(6, 6))
    found = blocks_of(model, IMAGES)
    assert [(block.name, block.run, block.anchored) for block in found] == [
        ("1", 0, False),
        ("3", 1, True),
        ("4", 1, True),
    ]


def test_pre_norm_transformer_layers_are_blocks_and_post_norm_layers_are_not() -> None:
    def stack(*, first: bool) -> nn.Module:
        return nn.Sequential(*(Attention(8, first=first) for _ in range(2)), nn.LayerNorm(8))

    assert names_of(stack(first=True), TOKENS) == ["0", "1"]
    assert names_of(stack(first=False), TOKENS) == []


def test_a_block_of_two_blocks_is_both() -> None:
    layer = nn.Sequential(Residual(nn.Linear(8, 8)), Residual(nn.Linear(8, 8)))
    assert names_of(nn.Sequential(layer, nn.Linear(8, 2)), TOKENS) == ["0.0", "0.1"]


def test_a_chain_of_one_block_is_that_block() -> None:
    model = nn.Sequential(nn.Sequential(Residual(nn.Linear(8, 8))), nn.Linear(8, 2))
    assert names_of(model, TOKENS) == ["0.0"]


def test_a_block_inside_the_branch_of_another_is_not_listed() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), Residual(nn.Linear(8, 8)), nn.Linear(8, 8, bias=False))
    assert names_of(nn.Sequential(Residual(inner), nn.Linear(8, 2)), TOKENS) == ["0"]


def test_results_with_other_leaves_and_keyword_arguments_are_understood() -> None:
    assert names_of(Tuples(), torch.randn(3, 4)) == ["blocks.0", "blocks.1", "blocks.2"]


class Masked(nn.Module):
    """Returns its input times a mask, which happens to lose nothing where the input is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("mask", torch.tensor([1.0] * 4 + [0.0] * 4))

    def forward(self, x):
        return x * self.mask + self.layer(x)


class Dead(nn.Module):
    """Its block gets zeros in the second half of its channels, whatever the inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 8), Masked(), nn.Linear(8, 2)
        nn.init.zeros_(self.stem.weight[4:])
        nn.init.zeros_(self.stem.bias[4:])

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = ResidualLinear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.block(self.block(x)))


class Shared(nn.Module):
    """One of its blocks has a parameter that the head uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Residual(nn.Linear(8, 8)), Residual(nn.Linear(8, 8)), nn.Linear(8, 8)
        self.head.weight = self.a.body.weight

    def forward(self, x):
        return self.head(self.b(self.a(x)))


class Sized(nn.Module):
    """Returns the batch size as a number that is no argument."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = self.Inner(), nn.Linear(8, 2)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.layer(x), len(x)

    def forward(self, x):
        x, size = self.block(x)
        return self.head(x) / size


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(Offset(8), nn.Linear(8, 2)), []),
        (nn.Sequential(Residual(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 2)), []),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), []),
        (Residual(nn.Linear(8, 8)), []),
        (Dead(), []),
        (Twice(), []),
        (Shared(), ["b"]),
        (Sized(), []),
    ],
    ids=["offset", "constant branch", "no sum", "the network itself", "zeros by chance", "twice", "shared", "size"],
)
def test_what_only_looks_like_a_block_is_none(model: nn.Module, expected: list[str]) -> None:
    assert names_of(model, TOKENS) == expected


class Cached(nn.Module):
    """Its block appends to a list that the caller passes in, and the caller needs one entry."""

    class Inner(Residual):
        def forward(self, x, cache):
            cache.append(x)
            return super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = self.Inner(nn.Linear(8, 8)), nn.Linear(8, 2)

    def forward(self, x):
        cache = Cache()
        x = self.block(x, cache)
        (first,) = cache.items
        return self.head(x + first)


class Cache:
    def __init__(self) -> None:
        self.items: list[torch.Tensor] = []

    def append(self, item: torch.Tensor) -> None:
        self.items.append(item)


def test_a_block_that_writes_into_an_object_of_its_caller_is_none() -> None:
    assert names_of(Cached(), TOKENS) == []


def test_blocks_without_which_the_code_fails_are_pinned_with_the_reason() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    found = {block.name: block.pinned for block in removable(model, (TOKENS,))}
    assert found["layers.0"] is not None
    assert "self_attn" in found["layers.0"]
    assert (found["layers.1"], found["layers.2"]) == (None, None)


def test_influence_is_one_minus_the_cosine_over_channels() -> None:
    model = residual_mlp(3).eval()
    with torch.no_grad():
        for parameter in model[1][1].down.parameters():
            parameter.zero_()
    found = influence(model, blocks_of(model, ROWS), [(ROWS,), (2 * ROWS,)])
    with torch.no_grad():
        before = model[0](torch.cat([ROWS, 2 * ROWS]))
        expected = 1 - torch.cosine_similarity(before.double(), model[1][0](before).double(), dim=-1).mean()
    assert found["1.0"] == pytest.approx(float(expected), rel=1e-6)
    assert found["1.1"] == pytest.approx(0, abs=1e-12)


def test_influence_takes_the_channels_of_images_and_zeros_as_unchanged() -> None:
    class Flip(nn.Module):
        """Turns channels (1, 0) into (0, 1) at every position but the first, which is zero and stays so."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 1, bias=False)
            self.layer.weight.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[:, :, None, None]

        def forward(self, x):
            return x + self.layer(x)

    image = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2)
    image[..., 0, 0] = 0
    model = nn.Sequential(Flip(), nn.Conv2d(2, 1, 1))
    assert influence(model, blocks_of(model, image), [(image,)]) == {"0": pytest.approx(0.75)}


def weighed(*changes: float) -> tuple[tuple[Block, ...], dict[str, float]]:
    found = blocks_of(residual_mlp(len(changes)), ROWS)
    return found, {block.name: change for block, change in zip(found, changes, strict=True)}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(0.5, ("1.1", "1.3")), (0.25, ("1.1",)), (0.99, ("1.1", "1.2", "1.3")), (0.4, ("1.1", "1.3"))],
)
def test_the_blocks_that_change_least_go_and_one_of_a_row_stays(depth: float, expected: tuple[str, ...]) -> None:
    blocks, change = weighed(0.4, 0.1, 0.3, 0.2)
    assert choose(blocks, change, PruneConfig(depth=depth)) == expected


def test_ties_keep_their_order_and_named_blocks_count() -> None:
    blocks, change = weighed(0.1, 0.1, 0.1, 0.1)
    assert choose(blocks, change, PruneConfig(depth=0.5)) == ("1.0", "1.1")
    assert choose(blocks, change, PruneConfig(depth=0.5, blocks=("1.3",))) == ("1.0", "1.3")
    assert choose(blocks, change, PruneConfig(blocks=("1.*",))) == ("1.0", "1.1", "1.2", "1.3")


def test_a_block_behind_one_of_its_kind_may_go_alone() -> None:
    found = blocks_of(resnet(), IMAGES)
    change = {"2.0": 0.3, "2.1": 0.2, "3.1": 0.1}
    assert choose(found, change, PruneConfig(depth=0.9)) == ("2.1", "3.1")


def test_kept_blocks_stay_by_their_name_or_the_name_of_a_parameter() -> None:
    blocks, change = weighed(0.1, 0.2, 0.3, 0.4)
    protected = protect(blocks, ("1.0", r"1\.1\.up\..*"))
    assert [block.pinned is None for block in protected] == [False, False, True, True]
    assert choose(protected, change, PruneConfig(depth=0.5)) == ("1.2",)
    with pytest.raises(ConfigError, match=r"matches 1\.0, which stays: kept by '1\.0'"):
        choose(protected, change, PruneConfig(blocks=("1.0",)))


def test_names_and_depths_that_remove_nothing_are_refused() -> None:
    blocks, change = weighed(0.1, 0.2)
    with pytest.raises(ConfigError, match="'stem' matches no removable block") as caught:
        choose(blocks, change, PruneConfig(blocks=("stem",)))
    assert caught.value.fix == "blocks: 1.0, 1.1"
    with pytest.raises(ConfigError, match="neither a shell pattern nor a regular expression"):
        choose(blocks, change, PruneConfig(blocks=("(",)))
    with pytest.raises(NothingToPrune, match=r"a depth of 0\.1 removes none of 2 blocks"):
        choose(blocks, change, PruneConfig(depth=0.1))
    with pytest.raises(NothingToPrune) as nothing:
        choose((), {}, PruneConfig(depth=0.5))
    assert nothing.value.fix is not None
    assert "becomes the identity" in nothing.value.fix
