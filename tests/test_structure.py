"""Copies of networks: what `deepcopy` would make, with the weights in one memory where that is wanted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from edgeprune.graph.structure import copy_model, double_copy, named_tensors, shared_copy


class Odd(nn.Module):
    """Buffers that share memory, tensors beside them, a part that knows the whole, numbers and containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.same = self.norm
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4))
        self.register_buffer("row", self.table[1])
        self.register_buffer("turned", self.table.t())
        self.column = self.table[:, 2]
        self.sizes = [3, 4]
        self.twice = {"sizes": self.sizes, 5: (1, [2])}
        self.nothing: list[int] = []
        self.also_nothing = self.nothing
        object.__setattr__(self.norm, "whole", self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.table.sum() + self.row.sum()


class Own(nn.Module):
    """A module that copies itself in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = Own()
        memo[id(self)] = made
        made.linear = copy.deepcopy(self.linear, memo)
        made.copies = self.copies + 1
        return made


def test_a_copy_has_the_structure_that_deepcopy_makes() -> None:
    network = Odd()
    for copied in (copy_model(network), shared_copy(network)):
        assert copied is not network
        assert copied.norm is copied.same
        assert copied.norm.whole is copied
        assert copied.sizes == [3, 4]
        assert copied.sizes is not network.sizes
        assert copied.twice == {"sizes": [3, 4], 5: (1, [2])}
        assert copied.twice["sizes"] is copied.sizes
        assert copied.nothing is copied.also_nothing
        assert copied.nothing is not network.nothing
        assert {id(m) for m in copied.modules()}.isdisjoint({id(m) for m in network.modules()})


def test_buffers_that_share_memory_share_that_of_the_copy() -> None:
    network = Odd()
    copied = copy_model(network)
    copied.table.add_(100)
    assert float(network.table[1, 2]) == 6
    assert torch.equal(copied.row, copied.table[1])
    assert torch.equal(copied.turned, copied.table.t())
    assert torch.equal(copied.column, copied.table[:, 2])


def test_hooks_and_new_parts_of_a_copy_are_its_own() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    copied = copy_model(network)
    calls: list[int] = []
    for module in copied.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
        module.register_buffer("more", torch.zeros(1))
    network(torch.zeros(1, 2))
    assert calls == []
    assert len(list(network.buffers())) == 0
    copied(torch.zeros(1, 2))
    assert len(calls) == 3


def test_hooks_of_the_network_are_copied() -> None:
    network = nn.Linear(2, 2)
    network.register_forward_hook(lambda module, args, result: result + 1)
    assert torch.equal(copy_model(network)(torch.ones(1, 2)), network(torch.ones(1, 2)))


def test_what_a_module_leaves_out_of_its_state_is_not_copied() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network[0].compile(backend="eager")
    assert copy_model(network)[0]._compiled_call_impl is None
    assert network[0]._compiled_call_impl is not None


def test_modules_that_copy_themselves_do() -> None:
    assert copy_model(nn.Sequential(Own()))[0].copies == 1
    assert copy_model(Own()).copies == 1


@pytest.mark.parametrize(
    "network",
    [
        nn.LSTM(3, 4, 2),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 8),
        parametrizations.weight_norm(nn.Linear(3, 3)),
        parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)),
        nn.Sequential(nn.Conv1d(2, 2, 3, padding="same", padding_mode="circular"), nn.LazyLinear(3)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_modules_of_torch_are_copied_whole(network: nn.Module) -> None:
    mine, theirs = shared_copy(network), copy.deepcopy(network)
    assert type(mine) is type(theirs)
    for (path, module), (other_path, other) in zip(mine.named_modules(), theirs.named_modules(), strict=True):
        assert path == other_path
        assert vars(module).keys() == vars(other).keys()
        assert repr(module) == repr(other)
    assert named_tensors(mine).keys() == named_tensors(theirs).keys()


def test_a_shared_copy_has_the_weights_and_not_the_buffers_of_the_network() -> None:
    network = Odd()
    copied = shared_copy(network)
    assert copied.conv.weight.data_ptr() == network.conv.weight.data_ptr()
    assert copied.norm.running_mean.data_ptr() != network.norm.running_mean.data_ptr()


def test_a_copy_in_float64_keeps_what_is_shared_and_what_is_no_float() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Embedding(4, 3))
    network[2].weight = network[0].weight
    network[3].weight.requires_grad_(False)
    exact = double_copy(network)
    assert exact[2].weight is exact[0].weight
    for name, tensor in named_tensors(exact).items():
        mine = named_tensors(network)[name]
        assert tensor.dtype == (torch.float64 if mine.is_floating_point() else mine.dtype)
        assert tensor.requires_grad == mine.requires_grad
        assert torch.equal(tensor, mine.to(tensor.dtype))
    assert network[0].weight.dtype == torch.float32
