"""The program that runs litert-torch: captured program in, TFLite file out.

It is started as a script in a process of its own, so that the converter's memory, its imports (jax) and its crashes
stay there. It imports nothing of edgeprune. It ends by itself when its parent is gone.

    python -P litert_child.py JOB.json

The job names `program` (of torch.export.save), `inputs` and `outputs` (names in order) and `output` (the file).
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STORAGE_EXIT = 74
REFUSED_EXIT = 65
# The attribute under which capture's wrapper holds the user's network.
WRAPPER = "network"
MARK = "edgeprune"


def main() -> int:
    """Convert one program. Returns 65 when the converter refuses it, 74 when the file cannot be written."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        content = convert(job)
    except Exception as error:  # noqa: BLE001 whatever went wrong, its last line says so
        traceback.print_exc()
        sys.stderr.write(f"{_reason(error)}\n")
        return REFUSED_EXIT
    try:
        with open(job["output"], "wb") as file:
            file.write(content)
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return STORAGE_EXIT
    return 0


def convert(job: dict[str, object]) -> bytes:
    """Return the TFLite file of a saved program."""
    import litert_torch
    import torch
    from torch.fx import traceback as kept

    program = torch.export.load(str(job["program"]))
    network = program.module(check_guards=False)
    _mark_modules_(network.graph)
    in_names, out_names = list(job["inputs"]), list(job["outputs"])  # type: ignore[call-overload]

    class Named(torch.nn.Module):
        """The program with named inputs and outputs: the converter takes a signature's names from there."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.training = False  # a captured program is past its mode; eval() on it is an error

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            # Node by node, so that what a node came from is kept on its way through the converter.
            with kept.preserve_node_meta():
                outputs = torch.fx.Interpreter(self.network).run(*(inputs[name] for name in in_names))
            return dict(zip(out_names, outputs, strict=True))

    examples, _ = program.example_inputs
    model = litert_torch.convert(Named(), sample_kwargs=dict(zip(in_names, examples, strict=True)))
    return bytes(model.model_content())


def _mark_modules_(graph: torch.fx.Graph) -> None:
    """Leave of every node's modules only the path of the innermost, where the converter takes a tensor's name from.

    It writes the last part of a path behind the class; so the path becomes one part, and the class a mark.
    """
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack:
            path = stack[-1][0].removeprefix(WRAPPER).removeprefix(".").replace(".", "/")
            node.meta["nn_module_stack"] = {MARK: (path, MARK)}


def _reason(error: Exception) -> str:
    """Return the error's first line, and the operator that torch names further down."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    operator = re.search(r"While executing .*?target=([\w.]+)", str(error))
    return f"{text} ({operator.group(1)})" if operator and operator.group(1) not in text else text


def _end_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds open as long as it lives."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
