"""All networks of the engine zoo, by name."""

from __future__ import annotations

from benchmarks.zoo import (
    own_networks,
    pytorchcv_networks,
    timm_networks,
    torchvision_networks,
    transformers_networks,
)
from benchmarks.zoo.entry import Network

_TABLES = {
    "torchvision": torchvision_networks.TABLE,
    "timm": timm_networks.TABLE,
    "pytorchcv": pytorchcv_networks.TABLE,
    "transformers": transformers_networks.TABLE,
    "own": own_networks.TABLE,
}


def all_networks() -> list[Network]:
    """Return every network, library by library. Names are `library/name`; nothing is imported or built here."""
    return [
        Network(name=f"{library}/{name}", library=library, make=make, inputs=inputs)
        for library, table in _TABLES.items()
        for name, (make, inputs) in table.items()
    ]


def find(name: str) -> Network:
    """Return a network by its full name, or by the part after the library where only one has it.

    Raises:
        KeyError: There is none, or there are several.
    """
    found = [network for network in all_networks() if name in (network.name, network.name.partition("/")[2])]
    if len(found) != 1:
        raise KeyError(f"{len(found)} networks are called {name}")
    return found[0]
