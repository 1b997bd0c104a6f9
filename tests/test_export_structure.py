"""Outputs of any structure: flat, named, and back."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import ExportError
from edgeprune.export.structure import Fields, flatten, unflatten, unique_names

Pair = namedtuple("Pair", "left right")


@dataclass
class Result:
    logits: torch.Tensor
    loss: Any


LEAVES = st.builds(torch.tensor, st.floats(-1, 1))
STRUCTURES = st.recursive(
    LEAVES | st.none() | st.integers(0, 9) | st.just("text"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@given(STRUCTURES, LEAVES)
def test_any_structure_comes_back_through_json(value: Any, leaf: torch.Tensor) -> None:
    whole = (value, leaf)
    leaves, structure = flatten(whole)
    back = unflatten(json.loads(json.dumps(structure)), [tensor for _, tensor in leaves])
    assert same(whole, back)
    names = [name for name, _ in leaves]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_names_are_plain_letters_and_digits() -> None:
    assert [name for name, _ in flatten({"¹": torch.zeros(1), "größe": torch.zeros(1)})[0]] == ["_", "gr__e"]


def test_names_follow_the_structure() -> None:
    one = torch.zeros(1)
    value = {"zebra": one, "a b": [one, (one, None)], 3: one}
    assert [name for name, _ in flatten(value)[0]] == ["zebra", "a_b_0", "a_b_1_0", "output_3"]
    assert flatten(one)[0][0][0] == "output"
    assert [name for name, _ in flatten((one, one))[0]] == ["output_0", "output_1"]


def test_named_tuples_dataclasses_and_mappings_keep_their_fields() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    leaves, structure = flatten([Pair(one, two), Result(one, None), OrderedDict(b=one, a=two)])
    assert [name for name, _ in leaves] == [f"output_{n}" for n in ("0_left", "0_right", "1_logits", "2_b", "2_a")]
    pair, result, mapping = unflatten(structure, [tensor for _, tensor in leaves])
    assert pair.right is two
    assert result.logits is one
    assert result.loss is None
    assert list(mapping) == ["b", "a"]


def test_fields_have_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="absent"):
        _ = Fields(a=1).absent


def test_names_avoid_the_taken_ones() -> None:
    assert unique_names(["x", "x", "", "1"], taken=["x", "output"]) == ["x_1", "x_2", "output_1", "output_1_1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "without a tensor"),
        ((torch.zeros(1), object()), r"object at output\[1\]"),
        ({(1, 2): torch.zeros(1)}, r"the key \(1, 2\)"),
    ],
)
def test_what_is_no_tensor_is_named(value: Any, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        flatten(value)
