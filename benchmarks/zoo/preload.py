"""What the server imports once, so that the processes forked from it need not: the libraries that are installed."""

from contextlib import suppress

from benchmarks.zoo.torchvision_networks import declare_operators

with suppress(ImportError):
    declare_operators()
    import timm  # noqa: F401  imports torchvision
    import torch_pruning  # noqa: F401
