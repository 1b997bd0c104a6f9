"""Files in tflite-runtime 2.14, in its own interpreter: what is right there, what is wrong there without an error."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import ConfigError, VerificationError
from edgeprune.export import require
from edgeprune.export.tflite_runtime import verify_in_tflite_runtime
from edgeprune.targets import TFLITE_RUNTIME_PYTHON, tflite_runtime_python
from tests.export_networks import converted, everything
from tests.quantised_files import Kind, quantised_tflite

PYTHON = tflite_runtime_python() or ""
needs_it = pytest.mark.skipif(
    not PYTHON, reason=f"no tflite-runtime: neither .venv-tflite-runtime of make test, nor {TFLITE_RUNTIME_PYTHON}"
)


def samples(count: int = 6) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return [[rng.normal(size=(1, 3, 10, 10)).astype(np.float32), rng.integers(2, 11, (1, 4))] for _ in range(count)]


def quantised(tmp_path: Path, kind: Kind) -> Path:
    return quantised_tflite(converted("everything", ".tflite")[0], tmp_path / f"m.{kind}.tflite", kind, samples())


@needs_it
def test_a_float_file_gives_the_same_in_both_runtimes() -> None:
    checks = verify_in_tflite_runtime(converted("everything", ".tflite")[0], examples=[everything()[1]], python=PYTHON)
    assert all(check.passed for check in checks)
    assert checks[0].name.startswith("everything.tflite in tflite-runtime 2.14.0 against itself in ai-edge-litert")
    assert {check.output for check in checks} == {"zebra", "best", "mask", "far"}
    floats = [check.sqnr_db for check in checks if check.output != "best"]
    assert all(level is not None and level > 100 for level in floats)


@needs_it
@pytest.mark.parametrize("kind", ["int8", "int8-weights"])
def test_static_and_weight_only_files_are_right_in_both(tmp_path: Path, kind: Kind) -> None:
    checks = verify_in_tflite_runtime(quantised(tmp_path, kind), examples=samples(2), python=PYTHON)
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]
    assert all(check.min_sqnr_db is not None for check in checks if check.output == "zebra")


@needs_it
def test_dynamic_int8_is_wrong_there_without_an_error_and_is_caught(tmp_path: Path) -> None:
    """EXPORT.md, trap 7: the file opens, runs and answers, and the answer is noise."""
    source = converted("waves", ".tflite")[0]
    rng = np.random.default_rng(2)
    feeds = [[rng.normal(size=(1, 4, 20)).astype(np.float32)]]
    path = quantised_tflite(source, tmp_path / "m.tflite", "int8-dynamic", feeds)
    found = verify_in_tflite_runtime(path, examples=feeds, python=PYTHON)
    # The second output is that of a convolution which the quantiser leaves in float.
    checks = [check for check in found if check.output == "output_0"]
    assert len(checks) == 4
    levels = [check.sqnr_db for check in checks]
    assert all(level is not None and level < 10 for level in levels), levels
    assert all(np.isfinite(check.max_rel) for check in checks)
    assert not any(check.passed for check in checks)
    with pytest.raises(VerificationError, match=r"m\.tflite in tflite-runtime 2\.14\.0 .* has an SQNR of"):
        require(found)


@needs_it
def test_a_file_that_it_cannot_open_is_an_error_of_verification(tmp_path: Path) -> None:
    path = quantised(tmp_path, "int8-dynamic")  # with a transposed convolution
    with pytest.raises(VerificationError, match=r"fails in tflite-runtime 2\.14\.0: .*cannot be opened"):
        verify_in_tflite_runtime(path, examples=samples(1), python=PYTHON, name="everything")


def test_an_interpreter_without_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no tflite-runtime: its TFLite runtime is ai_edge_litert") as caught:
        verify_in_tflite_runtime(converted("waves", ".tflite")[0], examples=[], python=sys.executable)
    assert caught.value.fix is not None
    assert "tflite-runtime==2.14.0" in caught.value.fix
