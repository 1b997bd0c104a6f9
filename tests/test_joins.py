"""The memory of joins: with it, without it, whatever meets what, the same atoms come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.graph import ChannelGraph, joins, trace
from edgeprune.graph.joins import Structures
from edgeprune.graph.labels import Atoms, Ids, Label, Pin
from tests.random_networks import random_network
from tests.test_labels import draw_label, sets

FAST = settings(max_examples=120, deadline=None, derandomize=True)
PIN = Pin(reason="test")


def layered(atoms: Atoms, groups: int, each: int) -> Ids:
    return np.stack([np.repeat(atoms.fresh(groups)[0], each), np.tile(atoms.fresh(each)[0], groups)])


def crossed(atoms: Atoms, groups: int, each: int) -> Ids:
    """Return a label of two layers, as in which a shuffle leaves those of `layered`."""
    return np.stack([np.tile(atoms.fresh(groups)[0], each), np.repeat(atoms.fresh(each)[0], groups)])


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the patterns whose structure was worked out."""
    found: list[tuple[int, ...]] = []
    original = joins.structure

    def counted(a: Ids, b: Ids) -> joins.Structure:
        found.append(a.shape)
        return original(a, b)

    monkeypatch.setattr(joins, "structure", counted)
    return found


@FAST
@given(st.data())
def test_joins_with_and_without_a_memory_give_the_same_atoms(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([2, 4, 6, 12]))
    several = [Atoms(), Atoms(memory=0), Atoms(memory=1)]
    rounds = data.draw(st.integers(1, 3))
    pools: list[list[Label]] = []
    plain = Atoms()
    pool = [draw_label(data.draw, plain, size) for _ in range(3)]
    for atoms in several:
        atoms.fresh(plain.count - 1)
        pools.append(list(pool))
    for _ in range(rounds):  # the same labels with new atoms, as in the next block of a network
        pairs = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(2)]
        for atoms, labels in zip(several, pools, strict=True):
            for a, b in pairs:
                atoms.join(labels[a], labels[b], PIN)
        expected = [several[0].resolve(label) for label in pools[0]]
        for atoms, labels in zip(several[1:], pools[1:], strict=True):
            assert atoms.count == several[0].count
            for label, wanted in zip(labels, expected, strict=True):
                found = atoms.resolve(label)
                assert (found is None) == (wanted is None)
                assert found is None or wanted is None or np.array_equal(found, wanted)
        for atoms, labels in zip(several, pools, strict=True):
            start = atoms.count
            top = max((int(label.max()) for label in labels if label is not None), default=0)
            atoms.fresh(top)
            labels[:] = [None if x is None else np.where(x > 0, x + start - 1, 0) for x in labels]


def test_the_second_equal_block_is_looked_up(worked_out: list[tuple[int, ...]]) -> None:
    atoms = Atoms()
    found = []
    for _ in range(3):
        a, b = layered(atoms, 3, 4), crossed(atoms, 3, 4)
        atoms.join(a, b, PIN)
        found.append((sets(atoms, a, 12), sets(atoms, b, 12)))
    assert len(worked_out) == 1
    for first, second in found:
        assert first == second
    sizes = [[len(position) for position in first] for first, _ in found]
    assert sizes[0] == sizes[1] == sizes[2]


def test_the_memory_is_bounded_and_forgets_what_was_not_used_longest(worked_out: list[tuple[int, ...]]) -> None:
    known = Structures(memory=2)
    atoms = Atoms()
    cases = {groups: (layered(atoms, groups, 2), crossed(atoms, groups, 2)) for groups in (2, 3, 4)}
    for groups in (2, 3, 2, 4, 2):
        known.of(*cases[groups])
    assert len(worked_out) == 3
    known.of(*cases[3])
    assert len(worked_out) == 4


def test_a_position_of_nothing_is_no_atom(worked_out: list[tuple[int, ...]]) -> None:
    """Equal but for a fixed position, two patterns are two."""
    known = Structures()
    atoms = Atoms()
    a, b = layered(atoms, 2, 2), crossed(atoms, 2, 2)
    known.of(a, b)
    known.of(np.where(np.arange(4) == 0, 0, a), np.where(np.arange(4) == 0, 0, b))
    assert len(worked_out) == 2


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_new_atoms_follow_a_label_without_further_ones(layers: int) -> None:
    atoms = Atoms()
    label = np.stack([atoms.fresh(12)[0, np.arange(12) // (row + 1)] for row in range(layers)])
    own, count = atoms.fresh(12), atoms.count
    before = sets(atoms, label, 12)
    atoms.join(label, own, PIN)
    assert atoms.count == count
    assert sets(atoms, label, 12) == sets(atoms, own, 12) == before


def test_an_atom_in_several_layers_is_kept_when_new_atoms_follow() -> None:
    """Position 0 goes with atom x, so does position 1, each with another atom beside it."""
    atoms = Atoms()
    x, y, z = (int(atoms.fresh(1)[0, 0]) for _ in range(3))
    label = np.array([[x, y], [z, x]])
    own = atoms.fresh(2)
    atoms.join(own, label, PIN)
    assert sets(atoms, own, 2) == [{x, z}, {x, y}]


def _plainly(graph: ChannelGraph) -> list[object]:
    return [
        [(g.name, g.size, g.units.tolist(), g.tensors, g.overlaps, g.pinned, g.where) for g in graph.groups],
        {dim: units.tolist() for dim, units in graph.dims.items()},
        graph.links,
        [(item.weight, [side.tolist() for side in item.sides]) for item in graph.contractions],
    ]


@pytest.mark.parametrize("seed", range(0, 120, 3))
def test_networks_have_the_same_graph_with_and_without_a_memory(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = random_network(seed), (torch.randn(2, 3, 4, 4).double(),)
    with_memory = _plainly(trace(network, inputs))
    original = Structures.of
    monkeypatch.setattr(Structures, "of", lambda self, a, b: original(Structures(memory=0), a, b))
    assert _plainly(trace(network, inputs)) == with_memory
