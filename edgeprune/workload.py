"""The user's side: the functions of a workload module, found, checked and called.

A workload is a plain Python file, a module by its dotted name, or `package.module:attribute` naming a `Workload` or
another module. This module loads it, names what is missing or misspelt, and gives every other module one frozen
object. It does not know what the functions are used for.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ConfigError, EdgePruneError, ModelError, ResolveError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Model = nn.Module
    Tensors = tuple[torch.Tensor, ...]


class Examples(tuple["torch.Tensor", ...]):
    """The main example of a network's inputs, with further ones that take other paths through it.

    As a tuple it is the main example alone. `others` are tied to it: what one of them needs is not removed.
    """

    others: tuple[Tensors, ...] = ()

    def __new__(cls, main: Tensors, others: Iterable[Tensors] = ()) -> Examples:
        made = super().__new__(cls, main)
        made.others = tuple(others)
        return made


REQUIRED = ("model", "inputs")
OPTIONAL = (
    "train_step",
    "train_data",
    "evaluate",
    "test_data",
    "evaluate_outputs",
    "calibration_data",
    "labels",
    "preprocessing",
)
TEMPLATES = {
    "model": "def model(): return MyNetwork()",
    "inputs": "def inputs(): return (torch.randn(1, 3, 224, 224),)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The user's functions. Only `model` and `inputs` are always there.

    `inputs` returns a tuple of example tensors, batch first, or a list of such tuples.
    `train_step(model, batch)` returns the loss. `evaluate(model)` returns named metrics; higher is better unless the
    name ends in `_loss` or `_error`. `labels` returns the names of the classes, and `preprocessing` how raw data become
    inputs (see `edgeprune.preprocessing`): both describe the files, and neither changes the network.
    """

    name: str
    source: str
    model: Callable[[], Model]
    inputs: Callable[[], Tensors]
    train_step: Callable[[Model, Any], torch.Tensor] | None = None
    train_data: Callable[[], Iterable[Any]] | None = None
    evaluate: Callable[[Model], dict[str, float]] | None = None
    test_data: Callable[[], Iterable[Any]] | None = None
    evaluate_outputs: Callable[[Iterable[Any]], dict[str, float]] | None = None
    calibration_data: Callable[[], Iterable[Any]] | None = None
    labels: Callable[[], Iterable[str]] | None = None
    preprocessing: Callable[[], dict[str, Any]] | None = None


def load_workload(reference: str) -> Workload:
    """Return the workload that a path or a `package.module:attribute` names.

    Raises:
        ResolveError: The file or attribute does not exist, cannot be imported, or a required function is missing.
        ConfigError: A function's name is close to a known one but not equal to it.
    """
    if reference.endswith(".py"):
        module = _import_file(Path(reference))
        return _from_module(module, Path(reference).stem, reference)
    if "/" in reference or Path(reference).is_file():
        what = "is not a workload" if Path(reference).exists() else "does not exist"
        raise ResolveError(
            f"{reference} {what}", fix="a workload is a .py file or package.module:attribute; edgeprune init writes one"
        )
    module_name, _, attribute = reference.partition(":")
    module = _import_name(module_name)
    if not attribute:
        return _from_module(module, module_name.rpartition(".")[2], reference)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ResolveError(f"{module_name} has no attribute '{attribute}'{hint}", where=module.__file__)
    value = getattr(module, attribute)
    return value if isinstance(value, Workload) else _from_module(value, attribute, reference)


def build_model(workload: Workload, weights: str | None = None, trust_pickle: bool = False) -> Model:
    """Return the user's network in evaluation mode, with a weights file loaded where one is named.

    Raises:
        ModelError: `model()` failed or returned something else than an `nn.Module`.
        ResolveError: The weights cannot be read, are pickled code, or do not fit.
    """
    from torch import nn

    model = call(workload, "model")
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model() returned {type(model).__name__}, not an nn.Module", where=workload.source, fix=TEMPLATES["model"]
        )
    if weights is not None:
        load_weights_(model, weights, trust_pickle)
    return model.eval()


def example_inputs(workload: Workload) -> Tensors:
    """Return the example tensors of the workload as a tuple; `Examples` where `inputs()` returns a list of tuples.

    Raises:
        ModelError: `inputs()` failed or returned something else than tensors.
    """
    return as_inputs(call(workload, "inputs"), "inputs() returned", workload.source)


def as_inputs(value: Any, source: str = "the inputs are", where: str | None = None) -> Tensors:
    """Return example inputs as a tuple of tensors; a list of tuples becomes `Examples`, the first the main one.

    Args:
        source: How a message about the value begins.

    Raises:
        ModelError: There is something else than tensors in it, or a tensor without values.
    """
    import torch

    if isinstance(value, list) and value and all(isinstance(example, tuple) for example in value):
        first, *others = (as_inputs(example, source, where) for example in value)
        return Examples(first, others) if others else first
    tensors = (value,) if isinstance(value, torch.Tensor) else value
    if not isinstance(tensors, tuple | list) or not tensors:
        raise ModelError(
            f"{source} {type(value).__name__}, not a tuple of tensors", where=where, fix=TEMPLATES["inputs"]
        )
    for number, tensor in enumerate(tensors):
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"{source} a {type(tensor).__name__} as input {number}, not a tuple of tensors",
                where=where,
                fix="wrap the network in a module whose forward takes tensors only and puts the rest in itself",
            )
        if tensor.numel() == 0:
            raise ModelError(
                f"input {number} has the shape {tuple(tensor.shape)} and no values, so nothing can be compared",
                where=where,
                fix="give inputs with values",
            )
    return tensors if isinstance(tensors, Examples) else tuple(tensors)


def call(workload: Workload, function: str, *args: Any) -> Any:
    """Call one of the user's functions; a failure inside it is reported with the user's own line.

    Raises:
        ModelError: The function raised; `where` is the last line of it outside of installed packages.
    """
    try:
        return getattr(workload, function)(*args)
    except EdgePruneError:
        raise
    except Exception as error:  # the user's code may raise anything; it is reported, never hidden
        raise ModelError(
            f"{function}() of the workload failed: {type(error).__name__}: {error}",
            where=user_line(error, workload.source),
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The batches that one of the user's functions gives; a failure among them is reported like one inside it."""

    workload: Workload
    function: str
    source: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.source
        except (EdgePruneError, GeneratorExit):
            raise
        except Exception as error:  # the user's code may raise anything; it is reported, never hidden
            raise ModelError(
                f"{self.function}() of the workload failed: {type(error).__name__}: {error}",
                where=user_line(error, self.workload.source),
            ) from error

    def __len__(self) -> int:
        if not isinstance(self.source, Sized):
            raise TypeError(f"the length of {self.function}() is unknown")
        return len(self.source)


def batches(workload: Workload, function: str) -> Batches:
    """Call `train_data`, `test_data` or `calibration_data` of a workload.

    Raises:
        ModelError: The function failed, or what it returned cannot be iterated.
    """
    source = call(workload, function)
    if not isinstance(source, Iterable):
        raise ModelError(
            f"{function}() returned {type(source).__name__}, not batches",
            where=workload.source,
            fix="return a list or a DataLoader, or yield batches",
        )
    return Batches(workload=workload, function=function, source=source)


def user_line(error: BaseException, default: str) -> str:
    """Return `file:line` of the innermost frame outside site-packages and this package."""
    own = str(Path(__file__).resolve().parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = str(Path(frame.filename).resolve()) if not frame.filename.startswith("<") else frame.filename
        if "site-packages" not in path and not path.startswith((own, "<frozen")):
            return f"{frame.filename}:{frame.lineno}"
    return default


def load_weights_(model: Model, path: str, trust_pickle: bool = False) -> None:
    """Load a `.safetensors` or a weights-only `.pt` file into the network, in place.

    Raises:
        ResolveError: The file cannot be read, holds pickled code, or a tensor is missing, unknown or misshapen.
    """
    state = read_weights(path, trust_pickle)
    expected = model.state_dict()
    for name, tensor in state.items():
        if name in expected and expected[name].shape != tensor.shape:
            raise ResolveError(
                f"weights do not fit the model: {name} is {tuple(tensor.shape)}, "
                f"the model has {tuple(expected[name].shape)}",
                where=path,
                fix="this looks like a pruned checkpoint; give its plan too: --plan PATH/plan.json",
            )
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        found = ((missing, "missing"), (unknown, "unknown"))
        what = [f"{len(names)} {word} ({', '.join(names[:3])})" for names, word in found if names]
        raise ResolveError(f"weights do not fit the model: {', '.join(what)}", where=path)
    model.load_state_dict(state)


def read_weights(path: str, trust_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors` or `.pt` file by name.

    Raises:
        ResolveError: The file cannot be read, or it is a pickled module and `trust_pickle` is False.
    """
    import torch
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ResolveError(f"no weights file {path}")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # a damaged file can fail in any way, and trusted pickle runs any code
        raise _weights_error(path, error, trust_pickle) from error
    if isinstance(state, torch.nn.Module):
        return dict(state.state_dict())
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ResolveError(f"{path} does not hold a state dict of tensors", fix="save model.state_dict()")
    return state


def _weights_error(path: str, error: Exception, trust_pickle: bool) -> ResolveError:
    """Say why weights cannot be read: pickled code, a class that is gone, or a damaged file."""
    import pickle

    if isinstance(error, pickle.UnpicklingError) and not trust_pickle:
        return ResolveError(
            f"{path} is a pickled module, and unpickling runs code from the file",
            fix="save model.state_dict() instead, or pass --trust-pickle if you made this file",
        )
    if isinstance(error, AttributeError | ImportError):
        return ResolveError(
            f"{path} holds a pickled module whose class cannot be imported here: {error}",
            fix="save model.state_dict() where the class is defined; model() of the workload builds the network",
        )
    reason = str(error).partition("\n")[0]
    return ResolveError(
        f"cannot read weights {path}: {type(error).__name__}: {reason}", fix="save model.state_dict() with torch.save"
    )


def import_code(reference: str) -> ModuleType:
    """Return the module that a dotted name or the path of a `.py` file names; one that is loaded is not run again.

    Raises:
        ResolveError: There is none, or it cannot be imported.
    """
    if not reference.endswith(".py"):
        return sys.modules[reference] if reference in sys.modules else _import_name(reference)
    path = Path(reference)
    if not path.is_file():
        raise ResolveError(f"no file {path}", fix="name an existing .py file, from the folder you are in")
    for module in list(sys.modules.values()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(file, str) and Path(file).name == path.name and Path(file).resolve() == path.resolve():
            return module
    return _import_file(path, "rules")


def _import_file(path: Path, kind: str = "workload") -> ModuleType:
    if not path.is_file():
        raise ResolveError(f"no workload {path}", fix="edgeprune init writes one")
    name = f"edgeprune_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResolveError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's module may do anything at import
        raise _import_error(str(path), error) from error
    return module


def _import_name(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's module may do anything at import
        raise _import_error(name, error) from error


def _import_error(reference: str, error: Exception | SystemExit) -> ResolveError:
    fix = None
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        fix = f"install what provides '{error.name}', or check the spelling of the import"
    line = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else user_line(error, reference)
    return ResolveError(f"cannot import {reference}: {type(error).__name__}: {error}", where=line, fix=fix)


def _from_module(module: Any, name: str, source: str) -> Workload:
    """Check the names of a module's functions and gather them."""
    if not isinstance(module, ModuleType):
        raise ResolveError(f"{source} is {type(module).__name__}, not a workload module", where=source)
    known = REQUIRED + OPTIONAL
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    present = {key for key in known if callable(getattr(module, key, None))}
    for key in own:
        near = difflib.get_close_matches(key, [k for k in known if k not in present], n=1, cutoff=0.85)
        if key not in known and near:
            raise ConfigError(
                f"{source} has a function '{key}'; did you mean '{near[0]}'?",
                where=source,
                fix=f"rename it to {near[0]}, or start its name with an underscore",
            )
    for key in REQUIRED:
        if key not in present:
            raise ResolveError(
                f"{source} has no function '{key}'",
                where=source,
                fix=f"add  {TEMPLATES[key]}   (edgeprune init writes a template)",
            )
    if "train_step" in present and "train_data" not in present:
        raise ResolveError(f"{source} has train_step but no train_data", where=source, fix="add  def train_data(): ...")
    return Workload(name=name, source=source, **{key: getattr(module, key) for key in present})
