"""Attribute repair: after its tensors shrank, a module's own numbers must say so.

torch's modules are repaired from the shapes of their tensors. The user's modules may hold sizes as plain integers
(`self.channels`); those are guessed from the sizes that changed below them, and verification judges the guess.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from edgeprune.compact.recurrent import GATES, LSTMWithIdleUnit, add_idle_unit_
from edgeprune.graph.groups import Dim
from edgeprune.graph.structure import named_tensors


def repair_torch_(model: nn.Module, groups_left: Mapping[str, int] | None = None) -> None:
    """Set the attributes of torch's own modules from the shapes of their tensors, in place.

    Args:
        groups_left: Groups of grouped convolutions and group norms by the path of the module, which shapes alone do not
            always say.
    """
    known = groups_left or {}
    for path, module in model.named_modules():
        for kind, repair in _REPAIRS:
            if isinstance(module, kind):
                repair(module)
                break
        groups = known.get(path)
        if groups is not None and isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
            module.groups = groups
            module.in_channels = module.weight.shape[1] * groups
        if groups is not None and isinstance(module, nn.GroupNorm) and module.weight is not None:
            module.num_groups = groups


def _conv(module: Any) -> None:
    rows, columns = module.weight.shape[:2]
    if module.transposed:
        blocks = module.in_channels // module.groups
        if module.groups > 1:
            module.groups = rows // blocks if rows % blocks == 0 and blocks == 1 else module.groups
        module.in_channels = rows
        module.out_channels = columns * module.groups
    else:
        was_depthwise = module.groups == module.in_channels and module.groups > 1
        if was_depthwise:
            module.groups = rows // (module.out_channels // module.in_channels)
        module.in_channels = columns * module.groups
        module.out_channels = rows


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _features(module: Any) -> None:
    for name in ("weight", "running_mean"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, torch.Tensor):
            module.num_features = tensor.shape[0]


def _group_norm(module: Any) -> None:
    if module.weight is not None:
        each = module.num_channels // module.num_groups
        if module.num_groups == module.num_channels:
            module.num_groups = module.weight.shape[0]
        elif module.weight.shape[0] % module.num_groups:
            module.num_groups = max(module.weight.shape[0] // each, 1)
        module.num_channels = module.weight.shape[0]


def _layer_norm(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: Any) -> None:
    module.num_parameters = module.weight.shape[0]


def _recurrent(module: Any) -> None:
    if module.proj_size:
        module.proj_size, hidden = module.weight_hr_l0.shape
        if module.proj_size == hidden:
            add_idle_unit_(module)
    module.hidden_size = module.weight_hh_l0.shape[0] // GATES[module.mode] - isinstance(module, LSTMWithIdleUnit)
    module.input_size = module.weight_ih_l0.shape[1]
    module.flatten_parameters()


def _recurrent_cell(module: Any) -> None:
    module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


_REPAIRS: tuple[tuple[Any, Callable[[Any], None]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._NormBase, _features),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
)


# Norms without tensors of their own know their width as a number only; it is read off what they are called with.
_NORMS = (nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def repair_norms_(model: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Set the sizes of norms without tensors from the inputs that they see in one forward, in place.

    Args:
        run: Runs a network on the example inputs; it is given a copy. What it raises is raised.
    """
    modules = list(model.modules())
    chosen = [n for n, m in enumerate(modules) if isinstance(m, _NORMS) and not _own_tensors(m)]
    if not chosen:
        return
    trial = copy.deepcopy(model)
    copies = list(trial.modules())
    for index in chosen:
        copies[index].register_forward_pre_hook(_fit_to_input)
    run(trial)
    for index in chosen:
        for name in ("num_features", "num_groups", "num_channels", "normalized_shape"):
            if hasattr(modules[index], name):
                setattr(modules[index], name, getattr(copies[index], name))


def _fit_to_input(module: Any, args: tuple[Any, ...]) -> None:
    shape = args[0].shape
    if isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = shape[1]
        module.num_channels = shape[1]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(shape[-len(module.normalized_shape) :])
    else:
        module.num_features = shape[0 if len(shape) == module._get_no_batch_dim() else 1]


def _own_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def repair_sizes_(model: nn.Module, before: dict[str, tuple[int, ...]], changed: set[Dim]) -> int:
    """Replace integers of the user's modules that equal a size which changed below them; return how many.

    Args:
        model: The network after its tensors shrank, changed in place.
        before: Shapes of all tensors before, by name.
        changed: The dimensions that shrank.
    """
    after = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    count = 0
    for path, module in model.named_modules():
        if _is_repaired(module) and not _holds_sizes(module):
            continue
        table = _sizes_below(path, before, after, changed)
        for name, value in list(vars(module).items()):
            if name.startswith("_") and not isinstance(module, nn.Unflatten):
                continue
            replaced = _replace(value, table)
            if replaced is not value:
                setattr(module, name, replaced)
                count += 1
    return count


def guessed(model: nn.Module, small: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return the attributes of the small network's user modules that were replaced, with their old values."""
    found = []
    for mine, original in zip(small.modules(), model.modules(), strict=True):
        if type(original).__module__.startswith("torch.nn.modules"):
            continue
        for name, value in vars(original).items():
            if not name.startswith("_") and _whole_numbers(value) != _whole_numbers(vars(mine).get(name)):
                found.append((mine, name, value))
    return found


def _whole_numbers(value: Any) -> list[int]:
    items = value if isinstance(value, tuple | list) else [value]
    return [item for item in items if type(item) is int]


def _is_repaired(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") or isinstance(module, LSTMWithIdleUnit)


def _holds_sizes(module: nn.Module) -> bool:
    return isinstance(module, nn.Unflatten)


def _sizes_below(
    path: str, before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], changed: set[Dim]
) -> dict[int, int]:
    """Return old to new for sizes that changed to one value only below a module; the whole network if none did."""
    found: dict[int, set[int]] = {}
    prefix = f"{path}." if path else ""
    for name, axis in changed:
        if name.startswith(prefix) and name in after:
            found.setdefault(before[name][axis], set()).add(after[name][axis])
    if not found and path:
        return _sizes_below(path.rpartition(".")[0], before, after, changed)
    return {old: new.pop() for old, new in found.items() if len(new) == 1}


def _replace(value: Any, table: dict[int, int]) -> Any:
    """Return the value with sizes replaced; the very same object where nothing changes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return table.get(value, value)
    if isinstance(value, tuple | list) and any(type(item) is int and item in table for item in value):
        return type(value)(table.get(item, item) if type(item) is int else item for item in value)
    return value
