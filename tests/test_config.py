"""Settings: TOML in and out, overrides, and every mistake named with its key and the nearest right one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.config import BenchConfig, FinetuneConfig, PruneConfig, RunConfig, load_config, validate
from edgeprune.errors import ConfigError, ResolveError

configs = st.builds(
    RunConfig,
    workload=st.text(max_size=20),
    weights=st.none() | st.text(max_size=20),
    seed=st.integers(0, 2**31),
    max_drop=st.none() | st.floats(0, 1),
    prune=st.builds(
        PruneConfig,
        ratio=st.floats(0, 1, exclude_max=True),
        scope=st.sampled_from(["global", "local"]),
        align=st.just("target") | st.integers(1, 64),
        keep=st.lists(st.text(max_size=10), max_size=3).map(tuple),
        ratios=st.dictionaries(st.text(max_size=10), st.floats(0, 0.99), max_size=3),
    ),
    finetune=st.builds(FinetuneConfig, epochs=st.integers(0, 9), lr=st.floats(1e-9, 10)),
    bench=st.builds(BenchConfig, threads=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple)),
)


@given(configs)
def test_settings_survive_toml(config: RunConfig) -> None:
    assert validate(tomllib.loads(config.to_toml())) == config


def test_defaults_need_no_file() -> None:
    assert load_config(None) == RunConfig()
    assert load_config(None).prune.ratio == 0.5


def test_the_file_comes_first_then_overrides_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "edgeprune.toml"
    path.write_text("seed = 1\n[prune]\nratio = 0.1\nkeep = ['stem']\n[finetune]\nepochs = 9\n")
    config = load_config(path, ["prune.ratio=0.2", "finetune.optimizer=sgd"], {"prune.ratio": 0.3})
    assert (config.seed, config.prune.ratio, config.prune.keep) == (1, 0.3, ("stem",))
    assert (config.finetune.epochs, config.finetune.optimizer) == (9, "sgd")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("prune.criterion=taylor", lambda c: c.prune.criterion == "taylor"),
        ('prune.criterion="taylor"', lambda c: c.prune.criterion == "taylor"),
        ("prune.keep=['a', 'b']", lambda c: c.prune.keep == ("a", "b")),
        ("prune.align = 8", lambda c: c.prune.align == 8),
        ("prune.align=target", lambda c: c.prune.align == "target"),
        ("export.formats=['onnx']", lambda c: c.export.formats == ("onnx",)),
        ("trust_pickle=true", lambda c: c.trust_pickle),
        ("prune.ratios.conv1=0.25", lambda c: c.prune.ratios == {"conv1": 0.25}),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(override: str, read: Any) -> None:
    assert read(load_config(None, [override]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prune.ratoi=0.5", ["unknown key 'prune.ratoi'", "did you mean 'ratio'"]),
        ("prun.ratio=0.5", ["unknown key 'prun'", "did you mean 'prune'"]),
        ("prune.ratio=1", ["prune.ratio = 1", "less than 1"]),
        ("prune.ratio=-0.1", ["prune.ratio = -0.1", "greater than or equal to 0"]),
        ("prune.ratio=nan", ["prune.ratio = nan"]),
        ("prune.ratio=half", ["prune.ratio = 'half'", "valid number"]),
        ("prune.ratios.conv1=1.5", ["prune.ratios.conv1 = 1.5", "less than 1"]),
        ("prune.align=0", ["prune.align = 0"]),
        ("prune.scope=everywhere", ["prune.scope = 'everywhere'", "'global' or 'local'"]),
        ("prune.keep=stem", ["prune.keep = 'stem'", "tuple"]),
        ("finetune.epochs=-1", ["finetune.epochs = -1"]),
        ("finetune.lr=0", ["finetune.lr = 0"]),
        ("export.formats=[]", ["export.formats = []"]),
        ("export.formats=['onxx']", ["export.formats.0 = 'onxx'", "'onnx' or 'tflite'"]),
        ("bench.threads=[]", ["bench.threads = []"]),
        ("bench.threads=[0]", ["bench.threads.0 = 0"]),
        ("prune=3", ["prune = 3"]),
        ("seed.x=1", ["seed"]),
        ("prune.ratio", ["has no '='"]),
    ],
)
def test_a_wrong_override_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in caught.value.message
    assert caught.value.exit_code == 2


def test_an_unknown_key_lists_the_known_ones_of_its_section() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["finetune.rate=1"])
    assert caught.value.fix is not None
    assert set(FinetuneConfig.model_fields) <= set(caught.value.fix.replace(",", " ").split())


def test_an_override_into_a_value_of_the_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "edgeprune.toml"
    path.write_text("seed = 3\n")
    with pytest.raises(ConfigError, match=r"'seed' in 'seed\.x' is not a section"):
        load_config(path, ["seed.x=1"])


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"ratio =\n", ConfigError), (b"\xff\xfe", ConfigError), (b"[prune]\nratoi = 1\n", ConfigError)],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        load_config(path)
    assert str(path) in f"{caught.value} {getattr(caught.value, 'where', '')}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ResolveError, match="cannot read"):
            load_config(path)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError):
        RunConfig().seed = 4  # type: ignore[misc]
