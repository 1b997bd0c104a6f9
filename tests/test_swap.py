"""Which output comes out: the user's module where it can, with captured parts where it must, as a whole at the end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import Compacted, analyse
from edgeprune.compact.outputs import compact
from edgeprune.compact.program import Captured
from edgeprune.errors import ModelError, VerificationError
from edgeprune.graph import trace
from tests.legal import halves

INPUTS = (torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),)


class Flat(nn.Module):
    """Holds the size of its input as a number that nothing can repair."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.fc = nn.Linear(size, out)
        self.reshape: Callable[[torch.Tensor], torch.Tensor] = lambda x: x.view(-1, size)

    def forward(self, x):
        return self.fc(self.reshape(x))


class Scaled(nn.Module):
    """Runs at any width, but its result depends on it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(size, size)

    def forward(self, x, *, power: float = 1.0):
        return self.fc(x) * x.shape[1] ** -power


class Net(nn.Module):
    def __init__(self, *middle: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.middle = nn.ModuleList(middle)
        self.head = head or nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for module in self.middle:
            x = F.relu(module(x))
        return self.head(x)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def halved(model: nn.Module, inputs: tuple[torch.Tensor, ...] = INPUTS, output: Any = "auto") -> Compacted:
    graph = analyse(model, inputs)
    assert graph.free
    return compact(model, graph, halves(graph), inputs, output)


def test_a_network_that_can_stay_itself_does() -> None:
    found = halved(Net(nn.Linear(8, 8)).eval())
    assert (found.mode, found.captured, found.reason, found.where) == ("eager", (), None, None)
    assert type(found.model) is Net


def test_only_the_module_that_fails_is_captured() -> None:
    model = Net(nn.Linear(8, 8), Flat(8, 8), nn.Linear(8, 8)).eval()
    found = halved(model)
    assert (found.mode, found.captured) == ("swapped", ("middle.1",))
    assert type(found.model) is Net
    assert isinstance(found.model.middle[1], Captured)
    assert isinstance(found.model.middle[0], nn.Linear)
    assert found.reason is not None
    assert "cannot run" in found.reason
    assert set(found.model.state_dict()) == set(model.state_dict())
    assert found.model(torch.randn(7, 6)).shape == (7, 3)


def test_a_module_that_is_silently_wrong_is_found_and_its_like_captured_with_it() -> None:
    found = halved(Net(Scaled(8), nn.Linear(8, 8), Scaled(8)).eval())
    assert (found.mode, found.captured) == ("swapped", ("middle.0", "middle.2"))
    assert found.reason is not None
    assert "differs" in found.reason


def test_different_failures_are_captured_one_after_the_other() -> None:
    assert halved(Net(Scaled(8), Flat(8, 8)).eval()).captured == ("middle.0", "middle.1")


def test_numbers_around_the_modules_capture_the_network() -> None:
    class Outside(Net):
        def forward(self, x):
            return super().forward(x.view(-1, 6)) if x.dim() > 2 else self.head(F.relu(self.stem(x)).view(-1, 8))

    found = halved(Outside().eval())
    assert (found.mode, found.captured) == ("graph", ("",))


def test_a_module_that_ran_twice_is_captured_with_what_is_around_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = Flat(8, 8)

        def forward(self, x):
            return self.flat(F.relu(self.flat(x)))

    assert halved(Net(Twice()).eval()).captured == ("middle.0",)


def test_torch_modules_that_check_their_sizes_are_captured() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 16)
            self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.head((x + self.attend(x, x, x, need_weights=False)[0]).mean(1))

    model = Attention().eval()
    inputs = (torch.randn(2, 5, 6),)
    found = halved(model, inputs)
    assert (found.mode, found.captured) == ("swapped", ("attend",))
    assert found.model(torch.randn(4, 5, 6)).shape == (4, 3)
    loss = found.model.train()(torch.randn(4, 5, 6)).square().mean()
    loss.backward()
    assert found.model.attend.in_proj_weight.grad is not None


def test_keyword_arguments_reach_a_captured_module_and_other_ones_are_refused() -> None:
    class Named(Net):
        def __init__(self, power: float) -> None:
            super().__init__(Scaled(8))
            self.power = power

        def forward(self, x):
            return self.head(self.middle[0](F.relu(self.stem(x)), power=self.power))

    found = halved(Named(0.5).eval())
    assert found.captured == ("middle.0",)
    found.model.power = 2.0
    with pytest.raises(ValueError, match=r"captured with 0\.5"):
        found.model(*INPUTS)


def test_training_modes_and_the_original_stay() -> None:
    model = Net(Flat(8, 8), nn.Dropout(0.5)).train()
    model.middle[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = halved(model).model
    assert small.middle[0].training
    assert not small.middle[1].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert isinstance(model.middle[0], Flat)
    assert copy.deepcopy(small)(*INPUTS).shape == (2, 3)


def test_the_user_can_insist_on_either_output() -> None:
    model = Net(Flat(8, 8)).eval()
    assert halved(model, output="graph").mode == "graph"
    with pytest.raises(ModelError, match="cannot run"):
        halved(model, output="eager")


def test_what_no_output_gets_right_is_refused() -> None:
    """Its result depends on how often it ran, which a recording cannot know."""

    class Counting(Net):
        runs = 0

        def forward(self, x):
            Counting.runs += 1
            return super().forward(x) + (Counting.runs > 5) * Counting.runs

    model = Counting().eval()
    graph = trace(model, INPUTS)
    Counting.runs = 9
    with pytest.raises(VerificationError, match="differs from the masked dense one"):
        compact(model, graph, {"stem": (0, 1)}, INPUTS)
