"""What the server imports once, so that the processes forked from it need not: the libraries that are installed."""

import gc
from contextlib import suppress

import scipy.optimize  # noqa: F401  edgeprune imports it when it first balances groups

from benchmarks.zoo.torchvision_networks import declare_operators

with suppress(ImportError):
    declare_operators()
    import timm  # noqa: F401  imports torchvision
    import torch_pruning  # noqa: F401

gc.freeze()  # or the first full collection in every process walks through all that was imported here
