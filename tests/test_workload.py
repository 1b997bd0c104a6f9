"""The user's module: found, checked and called; every mistake is named with its place and a fix."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune.errors import ConfigError, EdgePruneError, ModelError, ResolveError
from edgeprune.workload import Workload, build_model, call, example_inputs, load_workload, read_weights

MINIMAL = """
import torch
from torch import nn

def model(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
def inputs(): return (torch.randn(2, 4),)
"""


@pytest.fixture(autouse=True)
def _modules_and_paths_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("edgeprune_workload_") or name in ("beside", "mynets"):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "workload.py") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_a_file_with_the_two_required_functions_is_a_workload(tmp_path: Path) -> None:
    workload = load_workload(write(tmp_path, MINIMAL))
    assert workload.name == "workload"
    assert workload.train_step is None
    assert isinstance(build_model(workload), nn.Sequential)
    assert example_inputs(workload)[0].shape == (2, 4)


def test_the_network_comes_in_evaluation_mode(tmp_path: Path) -> None:
    assert not build_model(load_workload(write(tmp_path, MINIMAL))).training


def test_a_single_tensor_or_a_list_is_taken_as_inputs(tmp_path: Path) -> None:
    for value, count in (("torch.ones(1, 3)", 1), ("[torch.ones(1, 3), torch.ones(1, 2)]", 2)):
        text = MINIMAL.replace("(torch.randn(2, 4),)", value)
        inputs = example_inputs(load_workload(write(tmp_path, text)))
        assert isinstance(inputs, tuple)
        assert len(inputs) == count


def test_modules_beside_the_workload_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path, "from torch import nn\ndef make(): return nn.Linear(4, 2)\n", "beside.py")
    text = "import beside, torch\ndef model(): return beside.make()\ndef inputs(): return (torch.ones(1, 4),)\n"
    assert isinstance(build_model(load_workload(write(tmp_path, text))), nn.Linear)


def test_a_module_is_found_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "import edgeprune.workload as w\nsmall = w.Workload(name='s', source='x', model=model, inputs=inputs)\n"
    write(tmp_path, MINIMAL + more, "mynets.py")
    monkeypatch.chdir(tmp_path)
    assert load_workload("mynets").name == "mynets"
    assert load_workload("mynets:small").name == "s"
    with pytest.raises(ResolveError, match="did you mean 'small'"):
        load_workload("mynets:smal")
    with pytest.raises(ResolveError, match="is function, not a workload module"):
        load_workload("mynets:model")


def test_constants_classes_and_private_functions_are_left_alone(tmp_path: Path) -> None:
    more = "from math import *\nclass Net(nn.Module): ...\ndef _evalute(m): ...\ndef load(): ...\nevaluat = 3\n"
    assert load_workload(write(tmp_path, MINIMAL + more)).evaluate is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("evalute", "evaluate"),
        ("train_steps", "train_step"),
        ("trainstep", "train_step"),
        ("test_dat", "test_data"),
        ("calibration_date", "calibration_data"),
    ],
)
def test_a_misspelt_function_is_an_error(tmp_path: Path, wrong: str, right: str) -> None:
    path = write(tmp_path, MINIMAL + f"def {wrong}(*args): return {{}}\n")
    with pytest.raises(ConfigError, match=f"'{wrong}'; did you mean '{right}'") as caught:
        load_workload(path)
    assert caught.value.where == path
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("missing", ["model", "inputs"])
def test_a_missing_function_is_named_with_a_template(tmp_path: Path, missing: str) -> None:
    text = MINIMAL.replace(f"def {missing}()", f"def _{missing}()")
    with pytest.raises(ResolveError, match=f"has no function '{missing}'") as caught:
        load_workload(write(tmp_path, text))
    assert caught.value.fix is not None
    assert f"def {missing}()" in caught.value.fix


def test_a_training_step_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="train_step but no train_data"):
        load_workload(write(tmp_path, MINIMAL + "def train_step(model, batch): return 0\n"))


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("import torch\n\n1 / 0\n", "ZeroDivisionError", 3),
        ("def model(:\n", "SyntaxError", 1),
        ("import no_such_package_here\n", "ModuleNotFoundError", 1),
        ("import sys\nsys.exit(3)\n", "SystemExit", 2),
    ],
)
def test_a_module_that_cannot_be_imported_is_reported_with_its_line(
    tmp_path: Path, text: str, words: str, line: int
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ResolveError, match=words) as caught:
        load_workload(path)
    assert caught.value.where == f"{path}:{line}"


def test_a_missing_package_is_named_in_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ResolveError) as caught:
        load_workload(write(tmp_path, "import no_such_package_here\n"))
    assert caught.value.fix is not None
    assert "no_such_package_here" in caught.value.fix


def test_a_workload_that_is_not_there_is_named() -> None:
    for reference in ("no/such/file.py", "no_such_module_here", "no_such_module_here:attribute", ""):
        with pytest.raises(EdgePruneError) as caught:
            load_workload(reference)
        assert caught.value.exit_code == 2


def test_a_failure_in_the_users_code_is_reported_with_the_users_line(tmp_path: Path) -> None:
    text = "import torch\ndef model():\n    return torch.nn.Linear(2, 2)(torch.ones(3))\ndef inputs(): return ()\n"
    path = write(tmp_path, text)
    with pytest.raises(ModelError, match="model\\(\\) of the workload failed: RuntimeError") as caught:
        build_model(load_workload(path))
    assert caught.value.where == f"{path}:3"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("value", ["3", "None", "(1, 2)", "()", "{'x': torch.ones(1)}"])
def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path, value: str) -> None:
    text = MINIMAL.replace("(torch.randn(2, 4),)", value)
    with pytest.raises(ModelError, match="not a tuple of tensors"):
        example_inputs(load_workload(write(tmp_path, text)))


def test_a_model_that_is_no_module_is_refused(tmp_path: Path) -> None:
    text = MINIMAL.replace("return nn.Sequential", "return list or nn.Sequential")
    with pytest.raises(ModelError, match=r"model\(\) returned type, not an nn\.Module"):
        build_model(load_workload(write(tmp_path, text)))


def tiny() -> Workload:
    def make() -> nn.Module:
        return nn.Linear(3, 2)

    return Workload(name="tiny", source="tiny.py", model=make, inputs=lambda: (torch.ones(1, 3),))


def test_call_passes_arguments_and_results() -> None:
    assert isinstance(call(tiny(), "model"), nn.Linear)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "nested.pt"])
def test_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    state = {"weight": torch.full((2, 3), 0.5), "bias": torch.tensor([1.0, 2.0])}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == "nested.pt" else state, path)
    model = build_model(tiny(), str(path))
    assert torch.equal(model(torch.ones(1, 3)), torch.tensor([[2.5, 3.5]]))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": torch.ones(2, 3)}, r"1 missing \(bias\)"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)}, r"1 unknown \(x\)"),
        ({"module.weight": torch.ones(2, 3), "bias": torch.ones(2)}, r"1 missing \(weight\), 1 unknown \(module"),
        ({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, r"bias is \(1,\), the model has \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, state: dict[str, torch.Tensor], words: str) -> None:
    path = str(tmp_path / "weights.safetensors")
    save_file(state, path)
    with pytest.raises(ResolveError, match=words) as caught:
        build_model(tiny(), path)
    assert caught.value.where == path


def test_misshapen_weights_lead_to_the_plan(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    save_file({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, path)
    with pytest.raises(ResolveError) as caught:
        build_model(tiny(), path)
    assert caught.value.fix is not None
    assert "--plan" in caught.value.fix


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt")
    torch.save(nn.Linear(3, 2), path)
    with pytest.raises(ResolveError, match="is a pickled module") as caught:
        read_weights(path)
    assert caught.value.fix is not None
    assert "--trust-pickle" in caught.value.fix
    assert set(read_weights(path, trust_pickle=True)) == {"weight", "bias"}


def test_code_in_a_pickle_does_not_run_without_trust(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "touched"), "w"))  # type: ignore[return-value]

    torch.save({"weight": Touch()}, tmp_path / "evil.pt")
    with pytest.raises(ResolveError):
        read_weights(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "touched").exists()


def test_a_pickled_class_that_is_gone_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("mynets")
    module.Net = type("Net", (nn.Linear,), {"__module__": "mynets"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mynets", module)
    torch.save(module.Net(3, 2), tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "mynets")
    with pytest.raises(ResolveError, match="class cannot be imported") as caught:
        read_weights(str(tmp_path / "model.pt"), trust_pickle=True)
    assert caught.value.fix is not None
    assert "state_dict" in caught.value.fix


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 cut off", b"{}"])
@pytest.mark.parametrize("trust", [False, True])
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, content: bytes, trust: bool) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ResolveError, match=name):
        read_weights(str(path), trust)


@pytest.mark.parametrize("value", [[1, 2], {"weight": "text"}, 3])
def test_a_file_of_other_values_is_no_state_dict(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ResolveError, match="does not hold a state dict"):
        read_weights(str(tmp_path / "weights.pt"))


def test_a_weights_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="no weights file"):
        read_weights(str(tmp_path / "none.pt"))
