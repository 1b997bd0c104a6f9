"""One network through one tool: the row, and how far it is known after every stage."""

from __future__ import annotations

import copy
import os
import resource
import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entry import Network
from benchmarks.zoo.judge import judge, largest_difference
from benchmarks.zoo.reach import reached, share_inside
from benchmarks.zoo.trained import trained_difference
from edgeprune.graph.enter import enter
from edgeprune.graph.structure import output_tensors

TOOLS = ("edgeprune", "torch-pruning")
LIBRARIES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "pytorchcv": "pytorchcv",
    "transformers": "transformers",
    "own": "torch",
}
INSTALL = "pip install --no-deps -r benchmarks/zoo/requirements.txt"
UNSEEN = 1e-7
Row = dict[str, Any]


def tool_module(tool: str) -> ModuleType:
    """Return the module that runs a tool."""
    from benchmarks.zoo import edgeprune_tool, torch_pruning_tool

    return {"edgeprune": edgeprune_tool, "torch-pruning": torch_pruning_tool}[tool]


def missing(network_library: str, tools: list[str]) -> str | None:
    """Return one line about a package that is not installed, with the command that installs it, or None."""
    packages = [LIBRARIES[network_library], *(["torch-pruning"] if "torch-pruning" in tools else [])]
    for package in packages:
        try:
            installed(package)
        except PackageNotFoundError:
            return f"{package} is not installed: {INSTALL}"
    return None


def empty_row(network: Network, tool: str) -> Row:
    """Return the row of a network and a tool of which nothing is known yet."""
    return {
        "network": network.name,
        "library": network.library,
        "tool": tool,
        "version": tool_module(tool).version(),
        "versions": {"torch": installed("torch"), LIBRARIES[network.library]: installed(LIBRARIES[network.library])},
        **dict.fromkeys(
            ("captured", "pruned", "runs", "exact", "silent_wrong", "scale_only", "trains", "timeout"), False
        ),
        **dict.fromkeys(("independent", "hooked", "max_rel", "effect", "signal", "mode", "macs", "cpu_s", "error")),
        **dict.fromkeys(("trained_rel", "reach_params", "reach_inside", "peak_mb", "params")),
        "pinned": [],
    }


def make_row(network: Network, tool: str, show: Any, limit_s: int | None = None, seed: int = 0) -> Row:
    """Prune one network with one tool and judge the result.

    Args:
        show: Called with the row after every stage, so that a time-out leaves what was known.
        limit_s: CPU seconds for the tool, and again for everything after it; the process is killed beyond.
        seed: 0 removes half of every group by magnitude. Any other number draws groups, ratios and units at random,
            which only edgeprune is asked for.
    """
    row = empty_row(network, tool)
    torch.manual_seed(0)
    try:
        model, inputs = network.build()
    except Exception as error:  # noqa: BLE001  a library that changed must not end the suite
        return {**row, "error": f"the network cannot be built: {_line(error)}"}
    row["params"] = [_count(model), None]
    row["macs"] = [_macs(model, inputs), None]
    row["signal"] = _signal(model, network, inputs)
    show(row)
    before_mb = _reset_peak()
    _limit(limit_s)
    model = enter(
        model, inputs
    ).model  # computed weights are written down for both tools: there is one network to judge by
    row["params"][0] = _count(model)
    work = copy.deepcopy(model)
    try:
        small, kept, made = tool_module(tool).prune(work, inputs, lambda **fields: row.update(fields), seed)
    except Exception as error:  # noqa: BLE001  whatever a tool raises is its result
        return _failed(row, error, before_mb)
    _limit(limit_s)
    row["peak_mb"] = [before_mb, _status_mb("VmHWM")]
    row["params"][1] = _count(small)
    row["pruned"] = row["params"][1] < row["params"][0]
    row["error"] = None if row["pruned"] else "nothing was removed"
    show(row)
    _judge(row, model, small, kept, inputs)
    show(row)
    if row["runs"]:
        row["macs"][1] = _macs(small, inputs)
        row["trains"] = _trains(small, model, inputs)
        row["trained_rel"] = trained_difference(model, small, kept, inputs) if row["exact"] else None
        names = reached(made[0]) if made else {name for name, _ in kept}
        row["reach_inside"] = share_inside(model, inputs, names)
        if tool == "edgeprune":
            row["hooked"] = tool_module(tool).hooked(model, small, inputs, made)
    return row


def _judge(row: Row, model: nn.Module, small: nn.Module, kept: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """Fill in whether the pruned network runs and whether it is right."""
    try:
        with torch.no_grad():
            copy.deepcopy(small).eval()(*(tensor.clone() for tensor in inputs))
    except Exception as error:  # noqa: BLE001  the pruned network may fail in any way
        row["error"] = f"the pruned network cannot run: {_line(error)}"
        return
    row["runs"] = True
    try:
        verdict = judge(model, small, kept, inputs)
    except Exception as error:  # noqa: BLE001  a judgement that fails is no verdict
        row["judge"] = _line(error)
        row["exact"] = row["pruned"] and row["tool"] == "edgeprune"  # edgeprune compared it with its own reference
        row["max_rel"] = row.get("own_max_rel")
        if not row["exact"]:
            row["error"] = row["error"] or f"not judged: {row['judge']}"
        return
    row["independent"] = verdict.exact
    seen = verdict.effect > UNSEEN
    row["exact"] = row["pruned"] and verdict.exact and seen
    if row["pruned"] and not seen:
        row["error"] = "not judged: what was removed changes no output"
    row["max_rel"], row["effect"] = min(verdict.max_rel, 1e9), verdict.effect
    row["silent_wrong"], row["scale_only"] = not verdict.exact, verdict.scale_only
    row["judge"] = verdict.reason or None


def _failed(row: Row, error: Exception, before_mb: float) -> Row:
    row["peak_mb"] = [before_mb, _status_mb("VmHWM")]
    row["error"] = _line(error)
    row["error_where"] = (getattr(error, "where", None) or _where(error)).split("site-packages/")[-1]
    return row


def _where(error: Exception) -> str:
    """Return file and line of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{trace.tb_frame.f_code.co_filename.split('site-packages/')[-1]}:{trace.tb_lineno}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int | None:
    from edgeprune.graph.cost import count_macs

    try:
        return count_macs(model, inputs)
    except Exception:  # noqa: BLE001  a count that fails is no count
        return None


def _signal(model: nn.Module, network: Network, inputs: tuple[torch.Tensor, ...]) -> float:
    """Return how much the outputs change with other inputs: near 0, no comparison of outputs means anything."""
    with torch.no_grad():
        first = output_tensors(copy.deepcopy(model)(*inputs))
        second = output_tensors(copy.deepcopy(model)(*network.example(seed=2)))
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return 1.0
    return round(largest_difference(first, second), 6)


def _trains(small: nn.Module, dense: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bool | None:
    """Say whether a step of training runs; None where the dense network cannot take one either."""
    for training in (True, False):
        if _step(copy.deepcopy(small), inputs, training):
            return True
        if _step(copy.deepcopy(dense), inputs, training):
            return False
    return None


def _step(model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool) -> bool:
    model.train(training)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6)
    try:
        with torch.enable_grad():
            outputs = output_tensors(model(*(tensor.clone() for tensor in inputs)))
            losses = [tensor.square().sum() for tensor in outputs if tensor.requires_grad]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    except Exception:  # noqa: BLE001  the network may fail in any way
        return False
    return any(parameter.grad is not None for parameter in model.parameters())


def _limit(seconds: int | None) -> None:
    """Let the process use so many CPU seconds more."""
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _reset_peak() -> float:
    """Start the measurement of peak memory anew where the kernel allows it; return what is in use now, in MB."""
    path = Path("/proc/self/clear_refs")
    if os.access(path, os.W_OK):
        path.write_text("5", encoding="ascii")
    return _status_mb("VmHWM")


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) / 1000, 1)
    return 0.0


def work(name: str, tool: str, limit_s: int, seed: int, sender: Connection) -> None:
    """Make a row in this process and send it after every stage, as far as it is known."""
    from benchmarks.zoo.networks import find

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # networks and tools print
        os.dup2(sink, descriptor)
    sender.send(make_row(find(name), tool, sender.send, limit_s, seed))
