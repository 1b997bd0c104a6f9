"""Atoms and labels: merges, joins, products and pins hold what they promise, whatever they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.graph.labels import MAX_FACTORS, MAX_LAYERS, Atoms, Ids, Label, Pin

FAST = settings(max_examples=120, deadline=None, derandomize=True)
PIN = Pin(reason="test")
Draw = Callable[[st.SearchStrategy[Any]], Any]


def sets(atoms: Atoms, label: Label, size: int) -> list[frozenset[int]]:
    """Return what every position is removed with."""
    found = atoms.resolve(label)
    if found is None:
        return [frozenset()] * size
    return [frozenset(found[:, position].tolist()) - {0} for position in range(size)]


def is_fixed(atoms: Atoms, atom: int) -> bool:
    return atoms.resolve(np.array([[atom]])) is None


def draw_label(draw: Draw, atoms: Atoms, size: int) -> Label:
    """Return a label with one to three layers in which atoms repeat and positions may be fixed."""
    if draw(st.integers(0, 9)) == 0:
        return None
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        pattern = draw(st.lists(st.integers(0, size), min_size=size, max_size=size))
        fresh = np.concatenate([[0], atoms.fresh(size)[0]])
        rows.append(fresh[pattern])
    return np.stack(rows)


@FAST
@given(
    st.integers(2, 30), st.lists(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=8), max_size=6)
)
def test_union_find_agrees_with_a_naive_one(count: int, rounds: list[list[tuple[int, int]]]) -> None:
    atoms = Atoms()
    ids = atoms.fresh(count)[0]
    classes = [{number} for number in range(count)]
    for merges in rounds:
        pairs = [(a % count, b % count) for a, b in merges]
        for a, b in pairs:
            merged = classes[a] | classes[b]
            for number in merged:
                classes[number] = merged
        if pairs:
            left, right = np.array(pairs, dtype=np.int64).T
            atoms.union(ids[left], ids[right])
        roots = atoms.find(ids)
        for number in range(count):
            assert {other for other in range(count) if roots[other] == roots[number]} == classes[number]


def test_a_merge_with_a_pinned_atom_pins_and_keeps_the_first_reason() -> None:
    atoms = Atoms()
    a, b, c = (atoms.fresh(1) for _ in range(3))
    atoms.pin(c, Pin(reason="first"))
    atoms.union(a, b)
    assert atoms.resolve(a) is not None
    atoms.union(b, c)
    assert atoms.resolve(a) is None
    explained = atoms.explain(a)
    assert explained is not None
    assert explained[1].reason == "first"


def test_atoms_survive_the_growth_of_their_arrays() -> None:
    atoms = Atoms()
    first = atoms.fresh(10)
    atoms.union(first[:, :5], first[:, 5:])
    atoms.pin(first[:, :1], PIN)
    atoms.fresh(5000)
    assert sets(atoms, first, 10)[0] == sets(atoms, first, 10)[5] == frozenset()
    assert sets(atoms, first, 10)[1] == sets(atoms, first, 10)[6] != frozenset()
    assert atoms.count == 5011


@FAST
@given(st.data())
def test_joined_labels_stay_equal_whatever_is_joined_or_pinned_later(data: st.DataObject) -> None:
    atoms = Atoms()
    size = data.draw(st.sampled_from([2, 3, 4, 6, 8, 12]))
    pool = [draw_label(data.draw, atoms, size) for _ in range(data.draw(st.integers(2, 5)))]
    joined: list[tuple[int, int]] = []
    pinned: set[int] = set()
    for _ in range(data.draw(st.integers(1, 6))):
        a, b = data.draw(st.sampled_from(range(len(pool)))), data.draw(st.sampled_from(range(len(pool))))
        fixed_before = [
            {position for position in range(size) if not sets(atoms, pool[index], size)[position]} for index in (a, b)
        ]
        atoms.join(pool[a], pool[b], PIN)
        joined.append((a, b))
        for index in (a, b):
            now = sets(atoms, pool[index], size)
            assert all(not now[position] for position in fixed_before[0] | fixed_before[1])
        label = pool[data.draw(st.sampled_from(range(len(pool))))]
        if label is not None and data.draw(st.booleans()):
            chosen = label[:1, :1]
            atoms.pin(chosen, PIN)
            pinned.update(chosen.reshape(-1).tolist())
        for left, right in joined:
            assert sets(atoms, pool[left], size) == sets(atoms, pool[right], size)
        assert all(is_fixed(atoms, atom) for atom in pinned)


def test_one_layer_against_one_layer_merges_position_by_position() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(4), atoms.fresh(4)
    atoms.join(a, b, PIN)
    found = sets(atoms, a, 4)
    assert found == sets(atoms, b, 4)
    assert len(set(found)) == 4


def test_a_label_joined_with_a_fixed_dimension_is_pinned_with_the_reason() -> None:
    atoms = Atoms()
    a = atoms.fresh(3)
    atoms.join(a, None, Pin(reason="tied", where="net.py:3"))
    assert atoms.resolve(a) is None
    explained = atoms.explain(a)
    assert explained is not None
    assert explained[1] == Pin(reason="tied", where="net.py:3")


def test_a_pin_spreads_with_its_own_reason() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3)
    atoms.pin(a, Pin(reason="the cause"))
    atoms.join(b, a, Pin(reason="the messenger"))
    explained = atoms.explain(b)
    assert explained is not None
    assert explained[1].reason == "the cause"


def test_only_what_one_side_lacks_is_pinned() -> None:
    """cat([x, -x]) through a convolution with two groups: the group may not go, the channels may."""
    atoms = Atoms()
    channels, groups = atoms.fresh(4), atoms.fresh(2)
    twice = np.tile(channels, (1, 2))
    layered = np.stack([np.repeat(groups[0], 4), np.tile(atoms.fresh(4)[0], 2)])
    atoms.join(twice, layered, PIN)
    assert atoms.resolve(groups) is None
    assert len(set(sets(atoms, twice, 8))) == 4
    assert sets(atoms, twice, 8) == sets(atoms, layered, 8)


@FAST
@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3), st.data())
def test_splitting_and_flattening_gives_the_same_positions_back(factors: list[int], data: st.DataObject) -> None:
    atoms = Atoms()
    size = int(np.prod(factors))
    label = draw_label(data.draw, atoms, size)
    parts = atoms.split(label, factors, PIN)
    assert len(parts) == len(factors)
    again = atoms.flatten(parts, factors)
    assert sets(atoms, again, size) == sets(atoms, label, size)


def test_a_view_as_groups_refines_channels_into_products() -> None:
    atoms = Atoms()
    groups, each = 3, 4
    label = atoms.fresh(groups * each)
    outer, inner = atoms.split(label, (groups, each), PIN)
    found, of_group, of_place = sets(atoms, label, 12), sets(atoms, outer, groups), sets(atoms, inner, each)
    assert len(set(of_group)) == groups
    assert len(set(of_place)) == each
    for position, atoms_here in enumerate(found):
        assert atoms_here == of_group[position // each] | of_place[position % each]


def test_a_channel_shuffle_moves_positions_and_nothing_else() -> None:
    atoms = Atoms()
    groups, each = 2, 5
    label = atoms.fresh(groups * each)
    outer, inner = atoms.split(label, (groups, each), PIN)
    shuffled = atoms.flatten([inner, outer], [each, groups])
    before, after = sets(atoms, label, 10), sets(atoms, shuffled, 10)
    assert after == [before[(position % groups) * each + position // groups] for position in range(10)]
    assert all(before)


def test_pinning_a_factor_or_a_product_fixes_the_other_through_it() -> None:
    atoms = Atoms()
    label = atoms.fresh(6)
    outer, inner = atoms.split(label, (2, 3), PIN)
    assert inner is not None
    atoms.pin(inner, PIN)
    found = sets(atoms, label, 6)
    assert found == [sets(atoms, outer, 2)[position // 3] for position in range(6)]
    atoms.pin(label[:, :1], PIN)  # the product pins all its factors
    assert sets(atoms, outer, 2)[0] == frozenset()
    assert sets(atoms, outer, 2)[1] != frozenset()
    assert sets(atoms, label, 6)[:3] == [frozenset()] * 3


@pytest.mark.parametrize(("factors", "free"), [(MAX_FACTORS, True), (MAX_FACTORS + 1, False)])
def test_an_atom_in_too_many_products_is_pinned(factors: int, free: bool) -> None:
    atoms = Atoms()
    label: Ids = atoms.fresh(2**factors)
    atoms.split(label, (2,) * factors, PIN)
    assert (atoms.resolve(label) is not None) == free


def regular_label(draw: Draw, atoms: Atoms, size: int) -> Ids:
    """Return a label of two to four layers that divide the dimension in regular ways, as views and tilings do."""
    rows = []
    for _ in range(draw(st.integers(2, 4))):
        count = draw(st.sampled_from([k for k in range(2, size + 1) if size % k == 0]))
        each = draw(st.sampled_from([k for k in range(1, size // count + 1) if size // count % k == 0]))
        rows.append(np.resize(np.repeat(atoms.fresh(count)[0], each), size))
    return np.stack(rows)


@settings(FAST, max_examples=250)
@given(st.data())
def test_joins_of_regular_labels_agree_and_stay_small(data: st.DataObject) -> None:
    atoms = Atoms()
    size = data.draw(st.sampled_from([16, 24, 36, 48]))
    a, b = regular_label(data.draw, atoms, size), regular_label(data.draw, atoms, size)
    atoms.join(a, b, PIN)
    assert sets(atoms, a, size) == sets(atoms, b, size)
    for label in (a, b):
        resolved = atoms.resolve(label)
        assert resolved is None or len(resolved) <= MAX_LAYERS


@FAST
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_concatenation_keeps_every_part_in_its_place(sizes: list[int], data: st.DataObject) -> None:
    atoms = Atoms()
    parts = [draw_label(data.draw, atoms, size) for size in sizes]
    whole = sets(atoms, atoms.concatenate(parts, sizes), sum(sizes))
    expected = [position for part, size in zip(parts, sizes, strict=True) for position in sets(atoms, part, size)]
    assert whole == expected


def test_resolving_drops_atoms_that_a_position_holds_twice() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(3)[0], atoms.fresh(3)[0]
    label = np.stack([a, b])
    atoms.union(a, b)
    resolved = atoms.resolve(label)
    assert resolved is not None
    assert resolved.shape == (1, 3)
