"""A run on disk: reuse by key and digest, the lock, damaged journals, complete writes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune import rundir
from edgeprune.errors import ConfigError, ResolveError, StorageError
from edgeprune.rundir import RunDirectory, StageKey


def _key(**settings: object) -> StageKey:
    return StageKey(stage="plan", settings=settings, inputs={"weights": "abc"})


def _finished(folder: Path, key: StageKey, text: str = "data") -> None:
    with RunDirectory(folder, "w.py", "digest") as run:
        rundir.write_atomic(folder / "plan.json", text)
        run.finish(key, ("plan.json",), {"channels": (1, 2)}, 0.5)


def test_a_finished_stage_is_reused_with_its_facts(tmp_path: Path) -> None:
    _finished(tmp_path / "run", _key(ratio=0.5))
    with RunDirectory(tmp_path / "run", "w.py", "digest") as run:
        record = run.reusable(_key(ratio=0.5))
        assert record is not None
        assert record.facts == {"channels": [1, 2]}
        assert record.outputs == {"plan.json": rundir.file_digest(tmp_path / "run" / "plan.json")}
        assert run.changes(_key(ratio=0.5)) == []


def test_a_changed_setting_is_named(tmp_path: Path) -> None:
    _finished(tmp_path / "run", _key(ratio=0.5, seed=0))
    with RunDirectory(tmp_path / "run", "w.py", "digest") as run:
        assert run.reusable(_key(ratio=0.25, seed=0)) is None
        assert run.changes(_key(ratio=0.25, seed=0)) == ["ratio 0.5 -> 0.25"]
        other = StageKey(stage="plan", settings={"ratio": 0.5, "seed": 0}, inputs={"weights": "xyz"})
        assert run.changes(other) == ["weights changed"]


def test_a_changed_output_is_not_reused_and_is_named(tmp_path: Path) -> None:
    _finished(tmp_path / "run", _key())
    (tmp_path / "run" / "plan.json").write_text("other")
    with RunDirectory(tmp_path / "run", "w.py", "digest") as run:
        assert run.reusable(_key()) is None
        assert run.changes(_key()) == ["plan.json is missing or was changed"]


def test_a_stage_with_failures_runs_again(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", "w.py", "digest") as run:
        run.finish(_key(), (), {"failed": ["device lost"]}, 0.1)
        assert run.reusable(_key()) is None
        run.finish(_key(), (), {"failed": []}, 0.1)
        assert run.reusable(_key()) is not None


def test_the_version_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _finished(tmp_path / "run", _key())
    monkeypatch.setattr(rundir, "VERSION", "99.0")
    with RunDirectory(tmp_path / "run", "w.py", "digest") as run:
        assert run.reusable(_key()) is None
        assert "-> 99.0" in run.changes(_key())[0]


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(min_value=2, max_value=400))
def test_a_journal_cut_anywhere_is_read_and_goes_on(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        _finished(folder, _key(ratio=0.5))
        journal = folder / rundir.JOURNAL
        whole = journal.read_bytes()
        journal.write_bytes(whole[: max(0, len(whole) - cut)])
        if not rundir.read_journal(folder):
            with pytest.raises(ResolveError, match="is not a run"):
                RunDirectory(folder, "w.py", "digest").__enter__()
            return
        with RunDirectory(folder, "w.py", "digest") as run:
            assert run.reusable(_key(ratio=0.5)) is None
            run.finish(_key(ratio=0.5), ("plan.json",), {}, 0.1)
        with RunDirectory(folder, "w.py", "digest") as run:
            assert run.reusable(_key(ratio=0.5)) is not None


def test_another_workload_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    _finished(tmp_path / "run", _key())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ResolveError, match="run of another workload") as caught:
        RunDirectory(tmp_path / "run", "other.py", "else").__enter__()
    assert caught.value.fix is not None
    assert "-o" in caught.value.fix
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(("source", "digest"), [("w.py", "edited"), ("moved.py", "digest")])
def test_an_edited_or_moved_workload_is_the_same_run(tmp_path: Path, source: str, digest: str) -> None:
    _finished(tmp_path / "run", _key())
    with RunDirectory(tmp_path / "run", source, digest) as run:
        assert run.reusable(_key()) is not None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ResolveError, match=r"not empty and is not a run \(thesis.tex\)"):
        rundir.check_output(tmp_path, "w.py", "digest")
    with pytest.raises(ResolveError, match="is a file"):
        rundir.check_output(tmp_path / "thesis.tex", "w.py", "digest")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_run_is_open_once_in_a_process(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "w.py", "digest"), pytest.raises(ConfigError, match="already open"):
        RunDirectory(tmp_path, "w.py", "digest").__enter__()
    with RunDirectory(tmp_path, "w.py", "digest") as run:
        assert run.last("plan") is None


_HOLDER = """
import sys, time
from pathlib import Path
from edgeprune.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1]), "w.py", "digest"):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_live_process_keeps_the_run_and_a_killed_one_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
            RunDirectory(tmp_path, "w.py", "digest").__enter__()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with RunDirectory(tmp_path, "w.py", "digest") as run:
        assert json.loads((tmp_path / rundir.LOCK).read_text()) == os.getpid()
        assert run.path == tmp_path


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    rundir.write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        rundir.write_atomic(path, "new")
    assert caught.value.fix is not None
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    _finished(tmp_path, _key())
    for name in (".plan.json.abcd1234", ".plan.json.x_y2z3w4.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".keep").write_text("mine")
    with RunDirectory(tmp_path, "w.py", "digest"):
        assert sorted(path.name for path in tmp_path.glob(".*")) == [".keep"]


def test_a_run_that_does_not_exist_names_those_that_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "net-r50").mkdir(parents=True)
    (tmp_path / "runs" / "net-r50" / rundir.SETTINGS).write_text("")
    with pytest.raises(ResolveError, match="does not exist") as caught:
        rundir.require_run(Path("runs/net-r25"))
    assert caught.value.fix == "runs here: runs/net-r50"
    rundir.require_run(Path("runs/net-r50"))
