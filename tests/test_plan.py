"""The plan as a file: what is written is read, what is edited is applied, what is broken is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.errors import ConfigError, ResolveError, StorageError
from edgeprune.pruning import GroupPlan, PrunePlan
from edgeprune.values import TensorSpec

SPEC = TensorSpec(name="input", shape=(None, 3, 8, 8), dtype="float32")


def plan_of(groups: dict[str, GroupPlan], **changes: Any) -> PrunePlan:
    values: dict[str, Any] = {"network": "Net", "inputs": (SPEC,), "settings": {"ratio": 0.5}, **changes}
    return PrunePlan(groups=groups, **values)


BLOCKS = ("layer1.1", "layer2.1")
SMALL = plan_of({"conv1": GroupPlan(units=4, keep=(0, 2)), "fc": GroupPlan(units=3, keep=(0, 1, 2))})


@st.composite
def plans(draw: Any) -> PrunePlan:
    groups = {}
    for name in draw(st.lists(st.text(min_size=1), unique=True, max_size=5)):
        units = draw(st.integers(1, 20))
        keep = draw(st.sets(st.integers(0, units - 1), min_size=1))
        groups[name] = GroupPlan(units=units, keep=tuple(sorted(keep)))
    blocks = tuple(draw(st.lists(st.text(min_size=1), unique=True, max_size=3)))
    return plan_of(groups, network=draw(st.text()), blocks=blocks)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_a_saved_plan_is_loaded_as_it_was(plan: PrunePlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    loaded = PrunePlan.load(path)
    assert loaded == plan
    assert loaded.digest == plan.digest
    assert PrunePlan.from_dict(plan.as_dict()) == plan


def test_keep_lists_only_groups_that_lose_units() -> None:
    assert SMALL.keep == {"conv1": (0, 2)}


def test_the_file_has_one_line_per_group(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text(encoding="utf-8").splitlines()
    assert '  "conv1": {"units": 4, "keep": [0, 2]},' in lines
    assert '  "fc": {"units": 3, "keep": [0, 1, 2]}' in lines


def test_an_edited_plan_is_read_in_any_order_and_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    SMALL.save(path)
    path.write_text(path.read_text(encoding="utf-8").replace("[0, 2]", "[3, 1, 0]"), encoding="utf-8")
    edited = PrunePlan.load(path)
    assert edited.keep == {"conv1": (0, 1, 3)}
    assert edited.digest != SMALL.digest


def test_the_digest_names_what_happens_to_the_network_and_nothing_else() -> None:
    groups = dict(reversed(SMALL.groups.items()))
    assert plan_of(groups, network="Other", settings={}, inputs=()).digest == SMALL.digest
    renamed = {"conv2": SMALL.groups["conv1"], "fc": SMALL.groups["fc"]}
    assert plan_of(renamed).digest != SMALL.digest


def test_removed_blocks_are_in_the_file_and_in_the_digest_where_there_are_some(tmp_path: Path) -> None:
    assert "blocks" not in SMALL.as_dict()
    deep = plan_of(SMALL.groups, blocks=BLOCKS)
    deep.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["blocks"] == list(BLOCKS)
    assert PrunePlan.load(tmp_path / "plan.json") == deep
    assert deep.digest != SMALL.digest
    assert plan_of(SMALL.groups, blocks=BLOCKS[::-1]).digest == deep.digest
    assert (
        SMALL.digest == "2e71576b1b94ff08feacf7bea54cabe9b913788142913770b25a8623f390730e"
    )  # plans of earlier versions keep theirs


def broken(**changes: Any) -> dict[str, Any]:
    return {**SMALL.as_dict(), **changes}


def group(**changes: Any) -> dict[str, Any]:
    return broken(groups={"conv1": {"units": 4, "keep": [0, 2], **changes}})


BROKEN: dict[str, Any] = {
    "list": [1, 2],
    "number": 3,
    "null": None,
    "text": "plan",
    "empty": {},
    "other_version": broken(schema_version=99),
    "no_version": {key: value for key, value in SMALL.as_dict().items() if key != "schema_version"},
    "no_groups": {key: value for key, value in SMALL.as_dict().items() if key != "groups"},
    "no_inputs": {key: value for key, value in SMALL.as_dict().items() if key != "inputs"},
    "no_settings": {key: value for key, value in SMALL.as_dict().items() if key != "settings"},
    "unknown_key": broken(ratio=0.5),
    "blocks_as_text": broken(blocks="layer1.1"),
    "blocks_as_object": broken(blocks={"layer1.1": 1}),
    "block_without_name": broken(blocks=[""]),
    "block_as_number": broken(blocks=[1]),
    "block_twice": broken(blocks=["layer1.1", "layer1.1"]),
    "groups_as_list": broken(groups=[["conv1", 4]]),
    "settings_as_text": broken(settings="ratio"),
    "inputs_as_number": broken(inputs=3),
    "input_without_dtype": broken(inputs=[{"name": "x", "shape": [1], "low": 0, "high": 1}]),
    "group_as_list": broken(groups={"conv1": [0, 2]}),
    "group_without_units": broken(groups={"conv1": {"keep": [0]}}),
    "group_without_keep": broken(groups={"conv1": {"units": 4}}),
    "group_with_unknown_key": group(drop=[1]),
    "units_as_text": group(units="4"),
    "units_as_float": group(units=4.0),
    "units_as_bool": group(units=True, keep=[0]),
    "no_units": group(units=0, keep=[0]),
    "keep_nothing": group(keep=[]),
    "keep_as_number": group(keep=2),
    "keep_as_text": group(keep="02"),
    "keep_floats": group(keep=[0.0, 2.0]),
    "keep_bools": group(keep=[True, False]),
    "keep_null": group(keep=[None]),
    "keep_twice": group(keep=[0, 0]),
    "keep_negative": group(keep=[-1, 0]),
    "keep_too_high": group(keep=[0, 4]),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_plan_is_a_config_error_with_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(BROKEN[name]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        PrunePlan.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"groups": }', b"\xff\xfe\x00", b'{"a": 1}}', b'{"schema_version": 1, "schema_version": 1}'],
)
def test_what_is_not_json_is_a_config_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.json is not JSON"):
        PrunePlan.load(path)


def test_a_group_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    SMALL.save(path)
    text = path.read_text(encoding="utf-8").replace('"fc"', '"conv1"')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="'conv1' stands there twice"):
        PrunePlan.load(path)


def test_a_missing_file_is_a_resolve_error(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="No such file"):
        PrunePlan.load(tmp_path / "none.json")


def test_a_failing_write_leaves_the_old_plan_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    SMALL.save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        plan_of({}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        SMALL.save(tmp_path / "none" / "plan.json")
