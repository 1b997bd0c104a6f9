"""Device profiles: those that ship are whole and honest, wrong ones are named by key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.targets import (
    TFLITE_RUNTIME_PYTHON,
    find_target,
    list_targets,
    profiles_folder,
    read_target,
    refused,
    tflite_runtime_python,
)
from edgeprune.values import PRECISIONS

PROFILE = """\
schema_version = 1
name = "mine"
description = "a board"
transport = "ssh"
arch = "aarch64"
runtimes = ["tflite"]
align = 8
source = "measured"
"""


def test_shipped_profiles_are_named_like_their_files() -> None:
    files = sorted(path.stem for path in profiles_folder().glob("*.toml"))
    assert [target.name for target in list_targets()] == files
    assert {"host", "raspberry-pi-4", "raspberry-pi-5", "android-arm64"} <= set(files)


def test_shipped_profiles_say_where_their_figures_come_from() -> None:
    for target in list_targets():
        assert len(target.source) > 10, target.name
        assert target.align > 1, f"{target.name}: unrounded widths are slower"


def test_shipped_profiles_hold_no_address() -> None:
    for target in list_targets():
        assert (target.transport == "local") == (target.address_env is None), target.name
        if target.address_env:
            assert target.address_env == "EDGEPRUNE_" + target.name.upper().replace("-", "_")


def test_a_profile_of_the_user_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    assert find_target(str(path)) == read_target(path)
    assert find_target(str(path)).threads == (1,)


def test_an_unknown_target_lists_those_that_exist() -> None:
    with pytest.raises(ResolveError) as caught:
        find_target("rasberry-pi-4")
    assert "did you mean 'raspberry-pi-4'?" in caught.value.message
    assert caught.value.fix is not None
    assert all(target.name in caught.value.fix for target in list_targets())
    assert caught.value.exit_code == 2


def test_a_target_far_from_every_name_gets_no_guess() -> None:
    with pytest.raises(ResolveError) as caught:
        find_target("zzz")
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize("name", ["", ".", "../targets/host", "host/", "/etc/passwd"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ResolveError, match="no target"):
        find_target(name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("align = 8", "align = 0"), "align"),
        (("align = 8\n", ""), "align"),
        (("align = 8", "align = 8\nalgin = 8"), "algin"),
        (('"ssh"', '"telnet"'), "transport"),
        (('["tflite"]', "[]"), "runtimes"),
        (('["tflite"]', '["tensorrt"]'), "runtimes"),
        (("schema_version = 1", "schema_version = 2"), "schema_version"),
        (('name = "mine"', "name ="), "is not TOML"),
        (('source = "measured"', 'source = "measured"\nthreads = [0]'), "threads"),
    ],
)
def test_a_wrong_profile_is_named_by_its_key(tmp_path: Path, change: tuple[str, str], word: str) -> None:
    path = tmp_path / "mine.toml"
    assert change[0] in PROFILE
    path.write_text(PROFILE.replace(*change))
    with pytest.raises(ConfigError, match=word) as caught:
        find_target(str(path))
    assert caught.value.where == str(path)


def test_a_profile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name in ("none.toml", "folder.toml"):
        with pytest.raises(ResolveError, match="cannot read target"):
            find_target(str(tmp_path / name))


def test_what_a_target_cannot_have_is_refused_with_the_reason() -> None:
    host, board, phone = (find_target(name) for name in ("host", "linux-armv7l", "android-arm64"))
    assert board.tflite_package == "tflite-runtime"
    for precision in PRECISIONS:
        assert refused(precision, "onnx", host) is None
        assert refused(precision, "tflite", host) is None
        assert refused(precision, "onnx", phone) == "android-arm64 has no ONNX Runtime"
        reason = refused(precision, "tflite", board)
        assert (reason is not None) == (precision == "int8-dynamic")
    assert "wrong results and no error" in str(refused("int8-dynamic", "tflite", board))
    only_onnx = host.model_copy(update={"runtimes": ("onnxruntime",)})
    assert refused("fp32", "tflite", only_onnx) == "host has no TFLite runtime"


def test_the_interpreter_of_tflite_runtime_comes_from_the_environment_or_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE + f'tflite_package = "tflite-runtime"\ntflite_python = "{sys.executable}"\n')
    monkeypatch.delenv(TFLITE_RUNTIME_PYTHON, raising=False)
    assert tflite_runtime_python() is None
    assert tflite_runtime_python(find_target("linux-armv7l")) is None
    assert tflite_runtime_python(find_target(str(path))) == sys.executable
    monkeypatch.setenv(TFLITE_RUNTIME_PYTHON, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=TFLITE_RUNTIME_PYTHON) as caught:
        tflite_runtime_python(find_target(str(path)))
    assert "venv" in str(caught.value.fix)
