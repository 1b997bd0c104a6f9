"""What holds for every test.

One thread: sums in another order would make networks differ that are compared bit by bit. And the interpreter with
tflite-runtime that `make test` makes, where there is one.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
_PYTHON = Path(__file__).resolve().parent.parent / ".venv-tflite-runtime" / "bin" / "python"
if _PYTHON.is_file():
    os.environ.setdefault("EDGEPRUNE_TFLITE_RUNTIME_PYTHON", str(_PYTHON))
