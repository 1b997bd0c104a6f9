"""Equal pieces: what code cuts by share stays equal, and what cannot be kept equal is pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import analyse, apply
from edgeprune.compact.outputs import compact
from edgeprune.config import PruneConfig
from edgeprune.graph import ChannelGraph, trace
from edgeprune.graph.constraints import _merge, balance, link, piece_signature, pin_lonely, thin_out
from edgeprune.graph.flow import Pieces
from edgeprune.graph.labels import Atoms, Pin
from edgeprune.pruning import make_plan, score


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def check(model: nn.Module) -> ChannelGraph:
    """Trace a network on vectors of 12, prune it at uneven ratios, and return its graph."""
    torch.manual_seed(0)
    inputs = (torch.randn(2, 12),)
    graph = analyse(model.eval(), inputs)
    for ratio in (0.3, 0.6):
        scores = score(model, graph, "random", inputs=inputs)
        plan = make_plan(graph, scores, PruneConfig(ratio=ratio), align=1, model=model, inputs=inputs)
        assert apply(model, plan, inputs, graph).check.passed
    return graph


def free(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.free}


def test_halves_of_one_layer_are_two_linked_groups() -> None:
    model = Net(
        lambda m, x: sum(head(F.relu(part)) for head, part in zip((m.b, m.c), m.a(x).chunk(2, 1), strict=True)),
        a=nn.Linear(12, 16),
        b=nn.Linear(8, 3),
        c=nn.Linear(8, 3),
    )
    graph = check(model)
    assert free(graph) == {"a": 8, "a#2": 8}
    assert graph.links == (("a", "a#2"),)


def test_halves_that_are_multiplied_are_one_group() -> None:
    model = Net(
        lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, 1))),
        a=nn.Linear(12, 16),
        b=nn.Linear(8, 3),
    )
    graph = check(model)
    assert free(graph) == {"a": 8}
    assert graph.links == ()


def test_two_cuts_of_a_chain_of_links_are_one_link() -> None:
    def forward(m, x):
        a, b = torch.cat([m.a(x), m.b(x)], 1).chunk(2, 1)
        c, d = torch.cat([m.b(x), m.c(x)], 1).chunk(2, 1)
        return m.h1(F.relu(a)) + m.h2(F.relu(b)) + m.h3(F.relu(c)) + m.h4(F.relu(d))

    layers = {name: nn.Linear(12, 8) for name in "abc"}
    heads = {f"h{number}": nn.Linear(8, 3) for number in range(1, 5)}
    graph = check(Net(forward, **layers, **heads))
    assert graph.links == (("a", "b", "c"),)


def test_pieces_of_unequal_groups_are_not_linked() -> None:
    """One half is a group of its own, the other is tied to half as many units: code that cuts by share gets numbers."""

    def forward(m, x):
        first, second = m.a(x).chunk(2, 1)
        return m.c(first) + m.d(m.b(x).repeat_interleave(2, 1) + second)

    model = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(12, 2), c=nn.Linear(4, 3), d=nn.Linear(4, 3))
    graph = trace(model, (torch.randn(2, 12),))
    assert free(graph) == {"a": 4, "a#2": 2}
    assert graph.links == ()
    small = compact(model.eval(), graph, {"a": (0,), "a#2": (1,)}, (torch.randn(2, 12),))
    assert small.mode == "graph"
    assert (small.model.c.weight.shape, small.model.d.weight.shape) == ((3, 1), (3, 2))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.split([5, 11], 1),
        lambda x: (x[:, :5], x[:, 5:]),
        lambda x: x.tensor_split((5,), 1),
    ],
)
def test_cuts_at_odd_places_make_a_group_of_every_piece(cut: Callable[[torch.Tensor], Any]) -> None:
    def forward(m, x):
        first, second = cut(F.relu(m.a(x)))
        return m.b(first) + m.c(second)

    graph = trace(Net(forward, a=nn.Linear(12, 16), b=nn.Linear(5, 3), c=nn.Linear(11, 3)), (torch.randn(2, 12),))
    assert free(graph) == {"a": 5, "a#2": 11}
    assert graph.links == ()


@pytest.mark.parametrize("parts", [2, 4])
def test_equal_cuts_by_shape_stay_equal(parts: int) -> None:
    def forward(m, x):
        x = F.relu(m.a(x))
        size = x.shape[1] // parts
        return sum(m.heads[k](x[:, k * size : (k + 1) * size]) for k in range(parts))

    heads = nn.ModuleList([nn.Linear(16 // parts, 3) for _ in range(parts)])
    graph = check(Net(forward, a=nn.Linear(12, 16), heads=heads))
    assert free(graph) == dict.fromkeys(["a", *(f"a#{k}" for k in range(2, parts + 1))], 16 // parts)
    assert len(graph.links) == 1


def test_a_cut_without_removable_positions_links_nothing() -> None:
    atoms = Atoms()
    label = atoms.fresh(4)
    atoms.pin(label, Pin(reason="test"))
    cut = Pieces(label=label, sizes=(2, 2), equal=True)
    assert link(atoms, [cut], np.full(atoms.count, -1), []) == []


def test_links_that_share_a_group_are_united() -> None:
    assert _merge([(0, 1), (2, 3), (1, 2), (5, 6), (4,)]) == [(0, 1, 2, 3), (5, 6)]


def cut_of(label: Any, pieces: int = 2) -> Pieces:
    ids = np.array(label, dtype=np.int64)
    return Pieces(label=ids, sizes=(ids.shape[1] // pieces,) * pieces, equal=True)


@pytest.mark.parametrize(
    ("label", "groups", "sizes", "expected"),
    [
        ([[1, 2, 3, 4]], {1: 0, 2: 0, 3: 1, 4: 1}, [2, 2], [(0, 1)]),
        ([[1, 2, 1, 2]], {1: 0, 2: 0}, [2], []),  # the same group in both halves stays equal by itself
        ([[1, 1, 2, 2]], {1: 0, 2: 1}, [1, 1], [(0, 1)]),
        ([[1, 2, 3, 4]], {1: 0, 2: 0, 3: 0, 4: 0}, [4], None),  # cut apart
        ([[1, 2, 1, 1]], {1: 0, 2: 1}, [1, 1], None),  # not the same in both halves
        ([[1, 1, 1, 2]], {1: 0, 2: 1}, [1, 1], None),
        ([[1, 2, 3, 3]], {1: 0, 2: 0, 3: 1}, [2, 1], None),  # two units against one
        ([[1, 1, 2, 0]], {1: 0, 2: 0}, [2], None),
        ([[1, 2, 0, 0]], {1: 0, 2: 0}, [2], None),  # nothing on the other side
        ([[1, 1, 1, 2, 2, 3]], {1: 0, 2: 1, 3: 2}, [1, 1, 1], None),  # other multiplicities
        ([[1, 2, 3, 4]], {1: 0, 2: 0, 3: 1}, [2, 1], None),  # a unit that belongs to no group
    ],
)
def test_pieces_are_paired_or_left_alone(label, groups, sizes, expected) -> None:
    atoms = Atoms()
    atoms.fresh(6)
    group_of = np.full(atoms.count, -1)
    for atom, group in groups.items():
        group_of[atom] = group
    assert link(atoms, [cut_of(label)], group_of, sizes) == (expected or [])


def balanced(label: Any, pieces: int = 2) -> Pieces:
    ids = np.array(label, dtype=np.int64)
    return Pieces(
        label=ids, sizes=(ids.shape[1] // pieces,) * pieces, equal=False, balanced="the rows", where="net.py:1"
    )


def atoms_and_groups(groups: dict[int, int]) -> tuple[Atoms, Any]:
    atoms = Atoms()
    atoms.fresh(12)
    group_of = np.full(atoms.count, -1)
    for atom, group in groups.items():
        group_of[atom] = group
    return atoms, group_of


def test_a_balance_counts_positions_per_unit_and_what_stays() -> None:
    atoms, group_of = atoms_and_groups({1: 0, 2: 0, 3: 1, 4: 2, 5: 2})
    cut = balanced([[1, 1, 2, 2, 3, 0, 3, 4, 5, 0, 0, 0]])
    assert balance(atoms, [cut, cut], group_of, [2, 1, 2]) == [("the rows", [{0: 2, 1: 1}, {1: 1, 2: 1}], [1, 3])]
    assert link(atoms, [cut], group_of, [2, 1, 2]) == []


def test_blocks_that_hold_the_same_are_equal_by_themselves() -> None:
    atoms, group_of = atoms_and_groups({1: 0, 2: 0})
    assert balance(atoms, [balanced([[1, 2, 2, 1]])], group_of, [2]) == []
    assert balance(atoms, [cut_of([[1, 2, 3, 4]])], group_of, [2]) == []  # not a balanced cut


def test_units_in_other_pieces_are_told_apart_by_all_their_positions() -> None:
    """One position each in the first and third piece, or two in the second: sums over evenly spaced numbers agree."""
    atoms, _ = atoms_and_groups({})
    signature = piece_signature(atoms, [balanced([[1, 3, 2, 2, 1, 4]], 3)], atoms.count)
    assert len(set(signature[[1, 2, 3, 4]].tolist())) == 4


def test_positions_with_several_atoms_are_thinned_out() -> None:
    """Whole blocks, which could never go, make way for places; of two others the coarser one does."""
    atoms, _ = atoms_and_groups({})
    blocks = balanced([[1, 1, 1, 1, 2, 2, 2, 2], [3, 4, 5, 6, 3, 4, 5, 6]])
    thin_out(atoms, [blocks])
    assert np.array_equal(atoms.resolve(blocks.label), [[3, 4, 5, 6, 3, 4, 5, 6]])
    crossing = balanced([[7, 7, 7, 8, 8, 8], [9, 10, 9, 10, 9, 10]])
    thin_out(atoms, [crossing, cut_of([[11, 11], [12, 12]])])
    left = atoms.resolve(crossing.label)
    assert left is not None
    assert len(left) == 1
    found = atoms.explain(np.array([1]))
    assert found is not None
    assert found[1] == Pin(reason="the rows are cut into equal blocks", where="net.py:1")
    assert np.array_equal(atoms.resolve(np.array([[11], [12]])), [[11], [12]])  # other cuts may be crowded


def test_units_without_their_like_in_balanced_blocks_are_pinned() -> None:
    atoms, group_of = atoms_and_groups({1: 0, 2: 0, 3: 1, 4: 2})
    cuts = [balanced([[1, 2, 3, 0]]), cut_of([[4, 0]])]
    assert pin_lonely(atoms, cuts, group_of, [2, 1, 1])
    assert np.array_equal(atoms.resolve(np.array([[1, 2, 3, 4]])), [[1, 2, 0, 4]])
    assert not pin_lonely(atoms, cuts, group_of, [2, 1, 1])
