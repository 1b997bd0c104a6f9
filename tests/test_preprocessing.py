"""What users say about preprocessing and labels, and what they get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.preprocessing import (
    Preprocessing,
    parse_labels,
    parse_preprocessing,
    read_labels,
    read_preprocessing,
)

NAMES = ("image", "tokens")


def test_plain_keys_are_of_the_first_input() -> None:
    found = parse_preprocessing({"mean": 0.5, "std": [0.25], "kind": "image"}, NAMES, "w.py")
    assert found == {"image": Preprocessing(kind="image", mean=(0.5,), std=(0.25,))}
    assert found["image"].as_dict() == {"kind": "image", "mean": [0.5], "std": [0.25]}


def test_every_input_may_have_its_own() -> None:
    found = parse_preprocessing({"tokens": {"vocabulary": 99}, "image": {"scale": 1 / 255}}, NAMES, "w.py")
    assert found["tokens"].vocabulary == 99
    assert found["image"].scale == (1 / 255,)
    assert parse_preprocessing({}, NAMES, "w.py") == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"maen": 1}, "unknown key 'maen' in preprocessing; did you mean 'mean'?"),
        ({"imagee": {"mean": 1}}, "names the input 'imagee'; did you mean 'image'?"),
        ({"tokens": {"vocab": 1}}, r"unknown key 'tokens\.vocab'"),
        ([1], "is list, not a dict"),
        ({"mean": "0.5"}, "mean = '0.5' is not a finite number"),
        ({"mean": []}, "mean"),
        ({"std": [1, float("nan")]}, "std"),
        ({"std": 0}, "cannot be 0"),
        ({"mean": [1, 2], "std": [1, 2, 3]}, "different lengths: 2, 3"),
        ({"sample_rate": -1}, "a positive number of Hz"),
        ({"vocabulary": True}, "the number of tokens"),
        ({"kind": "picture"}, "one of features, image, audio, text"),
        ({"description": 3}, "a text"),
    ],
)
def test_mistakes_are_told_with_the_place(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_preprocessing(value, NAMES, "w.py")
    assert caught.value.where == "w.py"
    assert caught.value.fix


def test_files(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[image]\nmean = [0.5, 0.5]\n[tokens]\nvocabulary = 7\n")
    assert read_preprocessing(tmp_path / "p.toml", NAMES)["tokens"].vocabulary == 7
    (tmp_path / "bad.toml").write_text("mean: 1")
    with pytest.raises(ResolveError, match="is not TOML"):
        read_preprocessing(tmp_path / "bad.toml", NAMES)
    with pytest.raises(ResolveError, match="cannot read"):
        read_preprocessing(tmp_path / "absent.toml", NAMES)
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("cat", "dog")
    (tmp_path / "latin.txt").write_bytes("Käse\n".encode("latin-1"))
    with pytest.raises(ResolveError, match="not UTF-8"):
        read_labels(tmp_path / "latin.txt")
    with pytest.raises(ResolveError, match="cannot read"):
        read_labels(tmp_path / "absent.txt")


@pytest.mark.parametrize("value", [[], "cat", ["cat", 1], None])
def test_labels_are_a_list_of_texts(value: Any) -> None:
    with pytest.raises(ConfigError, match="not a list of strings"):
        parse_labels(value, "w.py")


@pytest.mark.parametrize("label", ["", " ", "two\nlines"])
def test_a_label_is_one_line(label: str) -> None:
    with pytest.raises(ConfigError, match="label 1"):
        parse_labels(["cat", label], "w.py")
