"""One thread for every test: sums in another order would make networks differ that are compared bit by bit."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
