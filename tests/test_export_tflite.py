"""TFLite files, and a converter that refuses, crashes, hangs or finds the disk full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeprune.errors import ExportError, MissingDependency, StorageError
from edgeprune.export import export, litert_child
from edgeprune.export import tflite as tflite_format
from tests.export_networks import converted, linear


def test_names_dtypes_and_batch() -> None:
    _, exported = converted("everything", ".tflite")
    artifact = exported.artifact
    assert [(spec.name, spec.shape, spec.dtype) for spec in artifact.inputs] == [
        ("image", (1, 3, 10, 10), "float32"),
        ("tokens", (1, 4), "int32"),
    ]
    assert [(spec.name, spec.dtype) for spec in artifact.outputs] == [
        ("zebra", "float32"),
        ("best", "int32"),
        ("mask", "float32"),
        ("far", "float32"),
    ]
    assert artifact.metadata["batch"] == "1"
    assert exported.notices == ()


def test_a_file_tells_nothing_about_the_machine_it_was_made_on() -> None:
    content = converted("everything", ".tflite")[0].read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def with_child(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    child = folder / "child.py"
    child.write_text(f"import json, os, signal, sys, time\njob = json.load(open(sys.argv[1]))\n{code}\n")
    monkeypatch.setattr(tflite_format, "_CHILD", child)


def failed(folder: Path, error: type[Exception], text: str, timeout_s: float = 60) -> pytest.ExceptionInfo[Exception]:
    target = folder / "files" / "m.tflite"
    model, inputs = linear()
    with pytest.raises(error, match=text) as caught:
        export(model, inputs, target, timeout_s=timeout_s)
    assert not target.exists()
    assert not list(target.parent.glob(".*"))
    return caught


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print('lowering', file=sys.stderr); os.abort()", "ended by SIGABRT: lowering"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL; the memory may be used up: it said nothing"),
        ("raise ValueError('no such operator')", "exit code 1: .*ValueError: no such operator"),
        ("print('RuntimeError: aten.odd', file=sys.stderr); sys.exit(65)", "cannot convert .*: RuntimeError: aten.odd"),
    ],
)
def test_a_crash_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    with_child(monkeypatch, tmp_path, code)
    caught = failed(tmp_path, ExportError, text)
    assert isinstance(caught.value, ExportError)
    log = tmp_path / "files" / "m.tflite.log"
    assert caught.value.where == str(log)
    assert "ExportError" in log.read_text()


def test_a_hanging_converter_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_child(monkeypatch, tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    failed(tmp_path, ExportError, "took longer than 3 s", timeout_s=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_converter_that_takes_too_much_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); x = b'1' * 300_000_000; time.sleep(600)"
    with_child(monkeypatch, tmp_path, code)
    model, inputs = linear()
    with pytest.raises(ExportError, match=r"took 0\.\d+ GB of memory, and may have 0\.2 GB") as caught:
        export(model, inputs, tmp_path / "m.tflite", memory_limit_bytes=200_000_000)
    assert "export.memory_limit" in (caught.value.fix or "")
    assert not (tmp_path / "m.tflite").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_memory_below_the_limit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_child(monkeypatch, tmp_path, "time.sleep(0.3); raise ValueError('came to its end')")
    model, inputs = linear()
    with pytest.raises(ExportError, match="came to its end"):
        export(model, inputs, tmp_path / "m.tflite", memory_limit_bytes=2_000_000_000)


def test_a_disk_that_is_full_for_the_real_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter may write 4 kB, and its file is larger: the write fails as it does on a full disk."""
    program = tmp_path / "program.pt2"
    model, inputs = linear(2000)
    torch.export.save(torch.export.export(model, inputs), str(program))
    job = {"program": str(program), "output": str(tmp_path / "m.tflite"), "inputs": ["x"], "outputs": ["y"]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    argv = [sys.executable, "-c", code, litert_child.__file__, str(tmp_path / "job.json")]
    closed_at_the_end, held = os.pipe()
    try:
        done = subprocess.run(
            argv, stdin=closed_at_the_end, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    finally:
        os.close(closed_at_the_end)
        os.close(held)
    assert done.returncode == litert_child.STORAGE_EXIT, done.stderr[-500:]
    assert "File too large" in done.stderr.splitlines()[-1]


def test_a_full_disk_in_the_converter_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_child(monkeypatch, tmp_path, "print('No space left on device', file=sys.stderr); sys.exit(74)")
    failed(tmp_path, StorageError, "No space left on device")
    assert not list((tmp_path / "files").iterdir())


def test_the_child_reports_a_file_that_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.json"
    job.write_text(f'{{"output": "{tmp_path / "absent" / "m.tflite"}"}}')
    monkeypatch.setattr(sys, "argv", ["litert_child.py", str(job)])
    monkeypatch.setattr(litert_child, "convert", lambda job: b"content")
    monkeypatch.setattr(litert_child, "_end_with_parent", lambda: None)
    assert litert_child.main() == litert_child.STORAGE_EXIT
    assert capsys.readouterr().err == "No such file or directory\n"


def test_the_child_names_the_operator_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(job: object) -> bytes:
        raise IndexError("list index\n\nWhile executing %conv : call_function[target=torch.ops.aten.odd.default](x)")

    (tmp_path / "job.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["litert_child.py", str(tmp_path / "job.json")])
    monkeypatch.setattr(litert_child, "convert", convert)
    monkeypatch.setattr(litert_child, "_end_with_parent", lambda: None)
    assert litert_child.main() == litert_child.REFUSED_EXIT
    assert capsys.readouterr().err.splitlines()[-1] == "IndexError: list index (torch.ops.aten.odd.default)"


def test_the_child_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    code = "from edgeprune.export import litert_child as c; import time, threading\n"
    code += "threading.Thread(target=c._end_with_parent, daemon=True).start()\nprint('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.stdin.close()
    assert child.wait(60) == 1
    child.stdout.close()


def test_without_the_converter_the_pip_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, inputs = linear()
    with pytest.raises(MissingDependency, match="litert-torch") as caught:
        export(model, inputs, tmp_path / "m.tflite")
    assert caught.value.fix == "pip install 'edgeprune[tflite]'"
