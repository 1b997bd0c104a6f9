"""Which single weights go: by threshold, by rank within a layer or over all, in patterns and in blocks.

Only weights of linear, convolutional, recurrent and attention layers are considered; biases, normalisation and
embeddings stay as they are. Every choice is deterministic: of equal weights the one with the lower index goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.config import SparsifyConfig
from edgeprune.errors import ConfigError, ModelError, NothingToPrune
from edgeprune.pruning.blocks import matches
from edgeprune.pruning.masks import Masks

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weight of a layer on its way to being pruned.

    `inputs_first` says that dimension 0 of the weight is the input and 1 the output, as in transposed convolutions;
    there the inputs lie in `groups` pieces. `aliases` are all names of the parameter and of the modules that use it.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    inputs_first: bool
    groups: int
    aliases: tuple[str, ...]


def make_masks(model: nn.Module, config: SparsifyConfig) -> Masks:
    """Choose the weights of a network that go.

    Args:
        config: With a method.

    Returns:
        One mask for every layer that was considered. A fraction is met to the nearest whole weight; with `local` scope
        every layer keeps at least one.

    Raises:
        ModelError: A weight is not finite.
        ConfigError: A pattern of `keep` matches no layer.
        NothingToPrune: There is no layer, or the settings prune nothing.
    """
    layers = _considered(layers_of(model), config)
    if config.method is None:
        raise ConfigError("no method was named", fix="sparsify.method = 'lamp' with sparsify.amount = 0.8")
    kept = METHODS[config.method](layers, config)
    masks = Masks(kept={layer.name: mask for layer, mask in zip(layers, kept, strict=True)})
    if masks.zeros == 0 and config.amount != 0:
        settings = {key: value for key, value in config.model_dump().items() if value not in (None, ())}
        asked = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "keep")
        raise NothingToPrune(f"{asked} prunes none of {masks.weights} weights", fix="ask for more to be pruned")
    return masks


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Return the weights that can be pruned, in the order of the network's parameters; a shared one once.

    A weight that also serves an embedding is left alone.
    """
    found: dict[int, tuple[str, nn.Module, str]] = {}
    aliases: dict[int, list[str]] = {}
    embeddings: set[int] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        kind, _ = _kind(module)
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{key}" if path else key
            aliases.setdefault(id(parameter), []).extend([name, path])
            if issubclass(kind, nn.Embedding | nn.EmbeddingBag):
                embeddings.add(id(parameter))
            if issubclass(kind, _LAYERS) and "weight" in key and parameter.dim() >= 2:
                found.setdefault(id(parameter), (name, module, key))
    return tuple(
        Layer(
            name=name,
            weight=module._parameters[key].detach(),  # type: ignore[union-attr]
            bias=module._parameters.get(key.replace("weight", "bias")),
            inputs_first=issubclass(_kind(module)[0], _TRANSPOSED),
            groups=_kind(module)[1],
            aliases=tuple(dict.fromkeys(aliases[key_id])),
        )
        for key_id, (name, module, key) in found.items()
        if key_id not in embeddings
    )


def _kind(module: nn.Module) -> tuple[type[nn.Module], int]:
    """Return the class of a layer and its groups; recorded calls remember those of the user's module."""
    kind, groups = vars(module).get("_recorded_layer", (type(module), vars(module).get("groups", 1)))
    return kind, groups if isinstance(groups, int) else 1


def _considered(layers: Sequence[Layer], config: SparsifyConfig) -> list[Layer]:
    """Return the layers that `config.keep` does not protect, checked."""
    protected: set[str] = set()
    for pattern in config.keep:
        hit = {layer.name for layer in layers if any(matches(pattern, name, "keep") for name in layer.aliases)}
        if not hit:
            names = ", ".join(layer.name for layer in layers[:8])
            raise ConfigError(f"sparsify.keep = '{pattern}' matches no layer", fix=f"layers: {names}, ...")
        protected |= hit
    left = [layer for layer in layers if layer.name not in protected and layer.weight.numel() > 0]
    for layer in left:
        if not torch.isfinite(layer.weight).all():
            raise ModelError(
                f"'{layer.name}' has weights that are not finite, which cannot be ranked", fix="train the network again"
            )
    if not left:
        why = f"sparsify.keep protects all {len(layers)}" if layers else "it has no linear or convolutional layer"
        raise NothingToPrune("the network has no layer whose weights can be pruned", fix=why)
    return left


def _threshold(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    assert config.threshold is not None
    return [_at_least(layer.weight, config.threshold) for layer in layers]


def _relative(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    assert config.rate is not None
    return [_at_least(layer.weight, config.rate * scale(layer)) for layer in layers]


def scale(layer: Layer) -> float:
    """Return the scale of a layer, `sqrt(mean(w^2) + mean(b^2))`; without a bias the second mean is 0."""
    square = float(layer.weight.double().square().mean())
    if layer.bias is not None:
        square += float(layer.bias.detach().double().square().mean())
    return math.sqrt(square)


def _at_least(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which weights stay; the threshold is rounded to their type, so that 0.2 stays at a threshold of 0.2."""
    return weight.abs() >= torch.tensor(threshold, dtype=weight.dtype, device=weight.device)


def _magnitude(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    assert config.amount is not None
    scores = [layer.weight.abs().flatten() for layer in layers]
    kept = _ranked(scores, config.amount, together=config.scope == "global")
    return [mask.view_as(layer.weight) for mask, layer in zip(kept, layers, strict=True)]


def _lamp(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    """Prune globally by LAMP (Lee et al. 2021, arXiv 2010.07611)."""
    assert config.amount is not None
    kept = _ranked([lamp_scores(layer.weight) for layer in layers], config.amount, together=True)
    return [mask.view_as(layer.weight) for mask, layer in zip(kept, layers, strict=True)]


def lamp_scores(weight: torch.Tensor) -> torch.Tensor:
    """Return the flat scores of a weight: its square over the sum of all squares in the layer not smaller than it."""
    squares = weight.flatten().double().square()
    order = torch.argsort(squares, stable=True)
    ascending = squares[order]
    tails = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(tails > 0, ascending / tails, torch.zeros_like(tails))
    return scores


def _erk(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    """Prune every layer by magnitude to its Erdos-Renyi-kernel density (Evci et al. 2020, arXiv 1911.11134)."""
    assert config.amount is not None
    shapes = [tuple(layer.weight.shape) for layer in layers]
    sizes = [layer.weight.numel() for layer in layers]
    budget = sum(sizes) - round(config.amount * sum(sizes))
    ideal = [density * size for density, size in zip(erk_densities(shapes, config.amount), sizes, strict=True)]
    counts = _whole(ideal, sizes, budget)
    return [
        _without_lowest(layer.weight.abs().flatten(), size - count).view_as(layer.weight)
        for layer, size, count in zip(layers, sizes, counts, strict=True)
    ]


def erk_densities(shapes: Sequence[tuple[int, ...]], amount: float) -> list[float]:
    """Return the fraction of weights that each layer keeps: `sum(shape) / prod(shape)` times a common factor.

    Layers for which that exceeds 1 stay dense, and the others make up for it, so that over all layers `1 - amount` is
    kept.
    """
    sizes = [float(torch.Size(shape).numel()) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        left = [index for index in range(len(shapes)) if index not in dense]
        budget = (1 - amount) * sum(sizes) - sum(sizes[index] for index in dense)
        factor = budget / sum(raw[index] * sizes[index] for index in left)
        over = {index for index in left if factor * raw[index] > 1}
        if not over:
            return [1.0 if index in dense else factor * raw[index] for index in range(len(shapes))]
        highest = max(raw[index] for index in over)
        dense |= {index for index in over if raw[index] == highest}
    return [1.0] * len(shapes)


def _whole(ideal: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """Round counts so that their sum is the budget; each layer keeps one weight where the budget has as many."""
    least = 1 if budget >= len(sizes) else 0
    counts = [min(max(int(value), least), size) for value, size in zip(ideal, sizes, strict=True)]
    while (missing := budget - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        able = [n for n, count in enumerate(counts) if (count < sizes[n] if step > 0 else count > least)]
        nearest = max(able, key=lambda n: (step * (ideal[n] - counts[n]), -n))
        counts[nearest] += step
    return counts


def _pattern(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    """Keep N of every M consecutive inputs; inputs that are left over at the end stay."""
    assert config.pattern is not None
    count, size = (int(part) for part in config.pattern.split(":"))
    return [_pattern_mask(layer, count, size) for layer in layers]


def _pattern_mask(layer: Layer, count: int, size: int) -> torch.Tensor:
    axis = 0 if layer.inputs_first else 1
    values = layer.weight.abs().movedim(axis, -1)
    inputs = values.shape[-1]
    piece = max(inputs // layer.groups, 1) if layer.inputs_first else inputs
    if inputs % piece:
        piece = inputs
    values = values.reshape(*values.shape[:-1], inputs // piece, piece)
    whole = piece // size * size
    kept = torch.ones_like(values, dtype=torch.bool)
    groups = values[..., :whole].reshape(*values.shape[:-1], whole // size, size)
    order = torch.argsort(groups, dim=-1, stable=True)
    stays = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, order[..., : size - count], False)
    kept[..., :whole] = stays.reshape(*values.shape[:-1], whole)
    return kept.flatten(-2).movedim(-1, axis).contiguous()


def _blocks(layers: Sequence[Layer], config: SparsifyConfig) -> list[torch.Tensor]:
    """Prune whole blocks by the sum of their magnitudes; what does not fill a block at an edge stays.

    A block lies over outputs and inputs, at one position of a kernel.
    """
    assert config.amount is not None
    assert config.block is not None
    rows, columns = (int(part) for part in config.block.split("x"))
    planes = [_planes(layer.weight.abs().double(), layer) for layer in layers]
    scores = [_tiles(plane, rows, columns).sum(dim=(-3, -1)) for plane in planes]
    chosen = _ranked([score.flatten() for score in scores], config.amount, together=config.scope == "global")
    masks = []
    for layer, plane, score, flat in zip(layers, planes, scores, chosen, strict=True):
        kept = torch.ones_like(plane, dtype=torch.bool)
        tiles = _tiles(kept, rows, columns)
        tiles.copy_(flat.view_as(score)[..., :, None, :, None].expand_as(tiles))
        masks.append(_planes_back(kept, layer).contiguous())
    return masks


def _planes(weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Return a weight as (..., outputs, inputs)."""
    axes = (1, 0) if layer.inputs_first else (0, 1)
    return weight.movedim(axes, (-2, -1)).contiguous()


def _planes_back(plane: torch.Tensor, layer: Layer) -> torch.Tensor:
    axes = (1, 0) if layer.inputs_first else (0, 1)
    return plane.movedim((-2, -1), axes)


def _tiles(plane: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the whole blocks of a plane as a view (..., down, rows, across, columns)."""
    down, across = plane.shape[-2] // rows, plane.shape[-1] // columns
    part = plane[..., : down * rows, : across * columns]
    return part.view(*plane.shape[:-2], down, rows, across, columns)


def _ranked(scores: Sequence[torch.Tensor], amount: float, *, together: bool) -> list[torch.Tensor]:
    """Return which entries of flat scores stay when the lowest ones go.

    Args:
        together: Rank all of them as one, else each for itself.
    """
    if not together:
        return [_without_lowest(score, min(round(amount * len(score)), len(score) - 1)) for score in scores]
    joined = torch.cat([score.cpu() for score in scores])
    kept = _without_lowest(joined, min(round(amount * len(joined)), len(joined) - 1))
    parts = torch.split(kept, [len(score) for score in scores])
    return [part.to(score.device) for part, score in zip(parts, scores, strict=True)]


def _without_lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask without the `count` lowest scores; of equal ones those with the lower index go."""
    kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if count > 0:
        kept[torch.argsort(scores, stable=True)[:count]] = False
    return kept


METHODS: dict[str, Callable[[Sequence[Layer], SparsifyConfig], list[torch.Tensor]]] = {
    "threshold": _threshold,
    "relative": _relative,
    "magnitude": _magnitude,
    "lamp": _lamp,
    "erk": _erk,
    "n:m": _pattern,
    "block": _blocks,
}
