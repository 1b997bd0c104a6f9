"""Bundles: unpacked into an empty folder and run by an interpreter that sees nothing of edgeprune."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprune.bundle import predict as script
from edgeprune.bundle import read_file, specification, texts
from edgeprune.bundle.archive import write_archive
from edgeprune.config import validate
from edgeprune.errors import ConfigError, EdgePruneError, ResolveError, StorageError, VerificationError
from edgeprune.pipeline.compress import compress
from edgeprune.pipeline.events import ignore
from edgeprune.pipeline.packaging import Wishes, package
from edgeprune.preprocessing import Preprocessing
from edgeprune.values import Json
from tests.export_networks import converted

TINY = Path(__file__).parent / "workloads" / "tiny.py"
STUBS = Path(__file__).parent / "cpp_stubs"
BENCH = {"processes": 2, "min_runs": 5, "min_seconds": 0.02, "max_seconds": 1.0, "warmup_seconds": 0.0}
ADDED = """

def labels() -> list[str]:
    return ["north", "east", "south", "west"]


def preprocessing() -> dict[str, Any]:
    return {"kind": "image", "mean": 0.5, "std": 0.25, "scale": 1 / 255, "description": "Grey pictures"}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with both formats; tests that change it copy its folder."""
    folder = tmp_path_factory.mktemp("packaged")
    (folder / "tiny.py").write_text(TINY.read_text() + ADDED)
    config: Json = {"workload": str(folder / "tiny.py"), "output": str(folder / "run"), "bench": BENCH}
    return compress(validate(config | {"finetune": {"epochs": 1}})).folder


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """The bundle of that run, and what the step returned."""
    path = tmp_path_factory.mktemp("bundle") / "model.zip"
    return path, package([str(run)], Wishes(output=path), listen=ignore)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def pack(sources: list[Path], output: Path, **wishes: Any) -> Json:
    return package([str(source) for source in sources], Wishes(output=output, **wishes), listen=ignore)


def unpack(bundle: Path, folder: Path) -> Path:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    return folder


def predict(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the script isolated: no environment, no folder of its own on the path."""
    command = [sys.executable, "-I", "predict.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_the_script_of_an_unpacked_bundle_predicts_what_the_network_does(
    packed: tuple[Path, Json], tmp_path: Path, name: str
) -> None:
    done = predict(unpack(packed[0], tmp_path), name)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        match = re.fullmatch(r"model\.\w+ sample/\d: output = (\w+), expected (\w+) \(agrees: .*\)", line)
        assert match, line
        assert match.group(1) == match.group(2)
        assert match.group(1) in ("north", "east", "south", "west")


def test_a_bundle_holds_all_and_its_checksums_are_right(packed: tuple[Path, Json], tmp_path: Path) -> None:
    folder = unpack(packed[0], tmp_path)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "model.onnx",
        "model.tflite",
        "labels.txt",
        "input.json",
        "predict.py",
        "report.html",
        "README.txt",
    }
    assert names >= {"Predict.kt", "predict.cpp", "sample/0/input.0.npy", "sample/3/model.0.npy", "SHA256SUMS"}
    assert not any(name.startswith("baseline") for name in names)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == len(names) - 1
    bundle = json.loads((folder / "input.json").read_text())
    (entry,) = bundle["inputs"]
    assert (entry["name"], entry["shape"], entry["layout"]) == ("x", [None, 1, 8, 8], "nchw")
    assert entry["preprocessing"]["mean"] == [0.5]
    assert bundle["outputs"][0]["labels"] == "labels.txt"
    assert packed[1]["contents"] == sorted(names - {"SHA256SUMS"})
    assert "first samples of the workload's data" in (folder / "README.txt").read_text()


def test_your_own_input_and_raw_input(packed: tuple[Path, Json], tmp_path: Path) -> None:
    folder = unpack(packed[0], tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8)).astype(np.float32)
    np.save(folder / "raw.npy", picture)
    np.save(folder / "made.npy", (picture / 255 - np.float32(0.5)) / np.float32(0.25))
    words = [predict(folder, *w).stdout for w in (("model.onnx", "made.npy"), ("--raw", "model.tflite", "raw.npy"))]
    assert words[0].startswith("output = ")
    assert words[0] == words[1]
    assert predict(folder, "model.onnx", "raw.npy", "made.npy").returncode == 2
    assert predict(folder, "other.onnx").returncode == 2
    np.save(folder / "wide.npy", np.zeros((1, 1, 8, 9), np.float32))
    done = predict(folder, "model.onnx", "wide.npy")
    assert done.returncode == 1
    assert done.stderr == "x has the shape [1, 1, 8, 9], the file takes [None, 1, 8, 8] (null: any size)\n"


def test_the_script_notices_a_wrong_file(packed: tuple[Path, Json], tmp_path: Path) -> None:
    folder = unpack(packed[0], tmp_path)
    model = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "classify.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, folder / "model.onnx")
    done = predict(folder)
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    assert predict(folder, "model.tflite").returncode == 0


def test_the_script_needs_numpy_and_one_runtime_and_python_3_9() -> None:
    source = Path(script.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names)
    assert others == {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}


def test_a_bundle_without_its_runtime_says_so(packed: tuple[Path, Json], tmp_path: Path) -> None:
    folder = unpack(packed[0], tmp_path)
    code = "import sys; sys.modules['onnxruntime'] = None; sys.argv = ['predict.py']; import runpy; "
    code += "runpy.run_path('predict.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.onnx was not run: " in done.stdout
    assert done.stdout.count("agrees") == 4


def test_the_same_files_give_the_same_bytes(packed: tuple[Path, Json], run: Path, tmp_path: Path) -> None:
    again = pack([run], tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed[0].read_bytes()
    assert again["sha256"] == packed[1]["sha256"]
    with zipfile.ZipFile(packed[0]) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}


def test_the_baseline_comes_along_on_request(run: Path, tmp_path: Path) -> None:
    done = pack([run], tmp_path / "both.zip", baseline=True)
    assert [row["name"] for row in done["files"]] == [
        "model.onnx",
        "model.tflite",
        "baseline.onnx",
        "baseline.tflite",
    ]
    assert predict(unpack(tmp_path / "both.zip", tmp_path / "u"), "baseline.tflite").returncode == 0


def test_an_unfinished_run_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "result.json").unlink()
    with pytest.raises(ResolveError, match="is not finished") as caught:
        pack([copied], tmp_path / "m.zip")
    assert caught.value.fix == f"edgeprune resume {copied}"
    (copied / "result.json").write_text("{}")
    with pytest.raises(ResolveError, match="cannot read"):
        pack([copied], tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize(("gone", "what"), [(True, "is missing"), (False, "was changed after the run")])
def test_files_that_are_not_the_run_s_are_refused(copied: Path, tmp_path: Path, gone: bool, what: str) -> None:
    path = copied / "model.tflite"
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ResolveError, match=f"model.tflite {what}"):
        pack([copied], tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_a_run_without_pruned_files_has_nothing_to_pack(copied: Path, tmp_path: Path) -> None:
    result = json.loads((copied / "result.json").read_text())
    result["artifacts"] = [entry for entry in result["artifacts"] if entry["role"] == "baseline"]
    (copied / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="holds no pruned file") as caught:
        pack([copied], tmp_path / "m.zip")
    assert "--baseline" in str(caught.value.fix)


def test_a_workload_that_is_another_one_now_is_noticed(copied: Path, tmp_path: Path) -> None:
    settings = (copied / "run.toml").read_text()
    (tmp_path / "tiny.py").write_text((TINY.read_text() + ADDED).replace("F.relu(self.norm2", "-F.relu(self.norm2"))
    source = re.search(r'workload = "([^"]*)"', settings)
    assert source
    (copied / "run.toml").write_text(settings.replace(source.group(1), str(tmp_path / "tiny.py")))
    with pytest.raises(VerificationError, match=r"model\.onnx differs from the network on 'output'"):
        pack([copied], tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_single_files_with_their_workload(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run names its workload itself"):
        pack([run], tmp_path / "m.zip", workload="tiny.py")
    done = pack([run / "baseline.onnx"], tmp_path / "m.zip", workload=str(run.parent / "tiny.py"))
    assert done["labels"] == 4
    assert "in PyTorch" in done["expected"]
    with pytest.raises(VerificationError, match="differs from the network"):
        pack([run / "model.onnx"], tmp_path / "m.zip", workload=str(run.parent / "tiny.py"))


def test_files_alone_have_made_up_samples(tmp_path: Path) -> None:
    paths = [converted("everything", suffix)[0] for suffix in (".onnx", ".tflite")]
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "p.toml").write_text("[image]\nmean = [0.1, 0.2, 0.3]\n[tokens]\nvocabulary = 11\n")
    wishes = {"labels": str(tmp_path / "labels.txt"), "preprocessing": str(tmp_path / "p.toml")}
    done = pack(paths, tmp_path / "everything.zip", **wishes)
    assert "made-up inputs" in done["expected"]
    folder = unpack(tmp_path / "everything.zip", tmp_path / "u")
    assert not (folder / "report.html").exists()
    result = predict(folder)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("agrees") == 2 * 4 * 4
    assert np.load(folder / "sample/0/input.1.npy").max() <= 10
    assert "tokens from 0 to 10" in (folder / "README.txt").read_text()


def test_files_of_different_networks_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different inputs"):
        pack([converted("everything", ".onnx")[0], converted("waves", ".onnx")[0]], tmp_path / "m.zip")
    shutil.copy(converted("waves", ".onnx")[0], tmp_path / "waves.onnx")
    with pytest.raises(ConfigError, match="two files are called waves"):
        pack([converted("waves", ".onnx")[0], tmp_path / "waves.onnx"], tmp_path / "m.zip")


@pytest.mark.parametrize(
    ("sources", "output", "error"),
    [
        (["absent.onnx"], "m.zip", ResolveError),
        (["absent"], "m.zip", ConfigError),
        (["."], "m.zip", ResolveError),
        ([".", "a.onnx"], "m.zip", ConfigError),
        (["a.onnx"], "m.tar", ConfigError),
    ],
)
def test_bad_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], output: str, error: type[EdgePruneError]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        pack([Path(source) for source in sources], Path(output))
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, contents: object) -> None:
        write_archive(path, {"half": b"x"})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeprune.bundle.write_archive", full)
    (tmp_path / "m.zip").write_bytes(b"yesterday's")
    with pytest.raises(StorageError, match=r"cannot write .*m\.zip: No space left"):
        pack([converted("waves", ".onnx")[0]], tmp_path / "m.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]
    assert (tmp_path / "m.zip").read_bytes() == b"yesterday's"


def test_a_bundle_that_does_not_run_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"predict.py": "raise SystemExit('broken')", "Predict.kt": "", "predict.cpp": "", "README.txt": ""}
    monkeypatch.setattr("edgeprune.bundle.texts", lambda bundle: broken)
    with pytest.raises(VerificationError, match="does not give the expected outputs: broken"):
        pack([converted("waves", ".onnx")[0]], tmp_path / "m.zip")
    assert list(tmp_path.iterdir()) == []


def int8_onnx(path: Path) -> Path:
    """Write a network whose input and output are integers: x of int8, y of uint8."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    values = {"xs": np.float32(0.05), "xz": np.int8(-3), "w": weight, "ys": np.float32(0.1), "yz": np.uint8(128)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("MatMul", ["xf", "w"], ["yf"]),
        helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def int8_tflite(path: Path) -> Path:
    """Write a network whose input and output are int8, by the quantiser that TFLite files go through."""
    from ai_edge_quantizer import quantizer, recipe

    source = converted("linear", ".tflite")[0]
    made = quantizer.Quantizer(str(source))
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    random = np.random.default_rng(2)
    name = next(iter(made_up_names(source)))
    data = [{name: random.uniform(-2, 2, (1, 6)).astype(np.float32)} for _ in range(8)]
    made.quantize(made.calibrate({"serving_default": data})).export_model(str(path), overwrite=True)
    return path


def made_up_names(path: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(model_path=str(path)).get_signature_runner("serving_default").get_input_details())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("write", "name"), [(int8_onnx, "m.onnx"), (int8_tflite, "m.int8.tflite")])
def test_integers_are_made_by_the_parameters_in_the_specification(tmp_path: Path, write: Any, name: str) -> None:
    path = write(tmp_path / name)
    pack([path], tmp_path / "m.zip")
    folder = unpack(tmp_path / "m.zip", tmp_path / "u")
    bundle = json.loads((folder / "input.json").read_text())
    (tensor,) = bundle["files"][name]["inputs"]
    assert tensor["dtype"] == "int8"
    found = tensor["quantization"]
    assert np.load(folder / "sample/0/input.0.npy").dtype == np.float32
    assert np.load(folder / "sample/0/model.0.npy").dtype == np.float32
    assert predict(folder).returncode == 0
    x = np.array([[0.1, -0.2, 0.3, 0.5, 1e9, -1e9]], np.float32)
    steps = script.to_file(x, tensor)
    assert steps.dtype == np.int8
    assert steps[0, :4].tolist() == [round(v / found["scale"]) + found["zero_point"] for v in x[0, :4].tolist()]
    assert steps[0, 4:].tolist() == [127, -128]
    if name == "m.onnx":
        assert found == {"scale": pytest.approx(0.05), "zero_point": -3}
        (output,) = bundle["files"][name]["outputs"]
        assert script.from_file(np.array([[128, 130]], np.uint8), output).tolist() == [[0, pytest.approx(0.2)]]
    code = (folder / "Predict.kt").read_text()
    assert f"{found['scale']}f, {found['zero_point']}, -128, 127" in code
    compiles(folder / "predict.cpp")


def test_channels_last_is_written_and_undone() -> None:
    tensor = {"name": "x", "axes": [0, 2, 3, 1], "shape": [1, 4, 5, 3], "dtype": "float32", "quantization": None}
    array = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    fed = script.to_file(array, tensor)
    assert fed.shape == (1, 4, 5, 3)
    assert np.array_equal(script.from_file(fed, tensor), array)


def compiles(source: Path) -> None:
    """Check with the compiler that a snippet is C++ and calls what the runtimes declare."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{STUBS}"]
    words = [compiler, *flags, "-DUSE_TFLITE", "-DUSE_ONNXRUNTIME", str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def described(known: dict[str, Preprocessing]) -> Json:
    files = [read_file(converted("everything", suffix)[0]) for suffix in (".onnx", ".tflite")]
    labels = ["a", "b", "c", "d", "e"]
    return specification("net", files, preprocessing=known, labels=labels, samples=[], expected="nobody's")


def test_snippets_have_names_shapes_types_and_normalisation(tmp_path: Path) -> None:
    bundle = described({"image": Preprocessing(mean=(0.5, 0.25, 0.125), std=(2.0,), scale=(1 / 255,))})
    found = texts(bundle)
    (tmp_path / "predict.cpp").write_text(found["predict.cpp"])
    compiles(tmp_path / "predict.cpp")
    kotlin = found["Predict.kt"]
    for text in (kotlin, found["predict.cpp"]):
        assert re.search(r"class EverythingOnnx\b", text)
        assert re.search(r"class EverythingTflite\b", text)
        assert "float32 (1, 3, 10, 10) NCHW" in text
        assert '"tokens"' in text
        assert "(raw * 0.00392157 - (0.5, 0.25, 0.125)) / 2" in text
        assert re.search(r"0\.5f?, 0\.25f?, 0\.125f", text)
        assert re.search(r"/ 100 % 3", text)
    assert "longArrayOf(1, 3, 10, 10)" in kotlin
    assert "fun run(in_image: FloatArray, in_tokens: LongArray)" in kotlin  # the ONNX file
    assert "fun run(in_image: FloatArray, in_tokens: IntArray)" in kotlin  # TFLite files take 32 bits
    assert kotlin.count("{") == kotlin.count("}")
    assert kotlin.count("(") == kotlin.count(")")
    assert "{{" not in kotlin + found["predict.cpp"] + found["README.txt"]


def test_means_for_channels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 numbers for input 'image', whose shape is \[None, 3, 10, 10\]"):
        described({"image": Preprocessing(mean=(0.5, 0.25))})


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "edgeprune", "package", str(run), "-o", "m.zip"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*words, "--json"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)["files"]] == ["model.onnx", "model.tflite"]
    words[-1] = "m.tar"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "fix: -o model.zip" in done.stderr
