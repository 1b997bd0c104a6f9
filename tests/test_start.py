"""What a new user starts from: a settings file that holds the defaults, and a workload that runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgeprune.config import RunConfig, validate
from edgeprune.errors import ConfigError, StorageError
from edgeprune.pipeline import start


def test_the_settings_file_holds_every_setting_at_its_default() -> None:
    text = start.settings_template()
    assert validate(tomllib.loads(text)) == RunConfig(workload="workload.py")
    settings = RunConfig()
    for name in type(settings).model_fields:
        assert name in text
    for section in ("prune", "finetune", "export", "bench"):
        for key in type(getattr(settings, section)).model_fields:
            assert f"\n{key} = " in text or f"\n# {key} =" in text


def test_nothing_is_written_where_one_file_exists(tmp_path: Path) -> None:
    (tmp_path / "edgeprune.toml").write_text("mine")
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        start.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["edgeprune.toml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create"):
        start.init(tmp_path / "file" / "below")


def test_settings_come_from_the_working_directory_and_then_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start.read_settings((), {}) == RunConfig()
    Path("edgeprune.toml").write_text("seed = 3\n[prune]\nratio = 0.25\nmax_macs = '0.5x'\n")
    config = start.read_settings(("prune.ratio=0.3",), {"prune.ratio": 0.75, "prune.max_macs": None})
    assert (config.seed, config.prune.ratio, config.prune.max_macs) == (3, 0.75, None)


def test_the_demonstration_runs_the_embedded_workload_shortly() -> None:
    config = start.demo_config(None)
    assert config.workload == "edgeprune.demo.workload"
    assert config.bench.processes * config.bench.min_seconds < 2
