"""Weight pruning as the pipeline asks for it: the network with its zeros, what a run says of them, and their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.config import SparsifyConfig
from edgeprune.values import Json, Notice

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.pruning import Masks


def sparsified(model: nn.Module, config: SparsifyConfig) -> tuple[Masks, Json]:
    """Set the weights of a network to zero that the settings choose, in place.

    Returns:
        The masks, and what a run records of them.

    Raises:
        NothingToPrune: No layer can be pruned, or the settings prune nothing.
        ModelError: A weight is not finite.
        ConfigError: A pattern of `keep` matches no layer.
    """
    from edgeprune.pruning import make_masks

    masks = make_masks(model, config)
    masks.apply_(model)
    return masks, sparsity_facts(model, masks, str(config.method))


def sparsity_facts(model: nn.Module, masks: Masks, method: str) -> Json:
    """Return what a run records of the zeros of a network."""
    rows = masks.rows()
    facts: Json = {
        "method": method,
        "layers": rows,
        "weights": masks.weights,
        "zeros": masks.zeros,
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }
    empty = [row["name"] for row in rows if row["zeros"] == row["weights"]]
    notices = []
    if empty:
        text = f"all weights of {', '.join(empty[:3])}{', ...' * (len(empty) > 3)} are zero: nothing passes there"
        fix = "-s sparsify.method=lamp leaves every layer some, or name the layer in sparsify.keep"
        notices.append(Notice(code="empty-layer", text=text, fix=fix).as_dict())
    return facts | {"notices": notices}


def lost_zeros(path: Path, masks: Masks | None) -> tuple[Notice, ...]:
    """Return a warning where a file holds fewer zeros than the weights that were pruned, as a converter may cause."""
    from edgeprune.export import zeros_in

    if masks is None or (found := zeros_in(path)) >= masks.zeros:
        return ()
    text = f"{path.name} holds {found} zeros of the {masks.zeros} pruned weights: the converter computed new constants"
    return (Notice(code="zeros-lost", text=text),)


def file_rows(paths: Iterable[Path]) -> list[Json]:
    """Return the bytes of files as they are and deflated, as in a zip archive or an app package."""
    from edgeprune.export.sizes import compressed_bytes

    return [
        {"name": path.name, "size_bytes": path.stat().st_size, "compressed_bytes": compressed_bytes(path)}
        for path in paths
    ]
