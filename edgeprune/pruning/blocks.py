"""Residual blocks: modules that can go as a whole, and how much each of them changes what flows through it.

A block is a module that becomes the identity when all its parameters are zero: x + f(x) where f ends in nothing but the
block's own layers, or relu(x + f(x)) behind a relu. Code is not read for this: the block is run. Owns candidates,
influence and choice; removal is in `compact.depth`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.config import PruneConfig
from edgeprune.errors import ConfigError, NothingToPrune
from edgeprune.graph.capture import Record, Ref, Span, attention_in_parts
from edgeprune.graph.results import take_apart
from edgeprune.graph.structure import copy_model, double_copy, shared_copy

_log = logging.getLogger(__name__)
Inputs = tuple[torch.Tensor, ...]
Keys = tuple[Any, ...]

# What a forward may raise on inputs that it was not made for; such inputs say nothing about its blocks.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
PLAIN = (bool, int, float, str, type(None))
# Relative differences: above the first it is no identity, below the second it is one; between them float64 decides.
_DIFFERENT, _EQUAL = 1e-3, 1e-10


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a module, by the keys that lead to it from `(args, kwargs)`."""

    keys: Keys

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        value: Any = (args, kwargs)
        for key in self.keys:
            value = key.get(value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What a block returns when it is the identity: for each leaf an argument, or a constant.

    `position` is the leaf that holds the tensor that flows through; `spec` puts the leaves together.
    """

    leaves: tuple[Any, ...]
    position: int
    spec: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Passage:
        return self

    @property
    def source(self) -> Argument:
        """The argument that flows through."""
        source: Argument = self.leaves[self.position]
        return source

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of the result for the arguments of a call."""
        return [leaf.of(args, kwargs) if isinstance(leaf, Argument) else leaf for leaf in self.leaves]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A module that can be removed.

    `run` numbers the runs of consecutive blocks with equal shape; `anchored` tells that a module of the same class,
    which changes the shape and therefore stays, leads into the run. `params` counts values, `tensors` names them.
    `pinned` is the reason why the block stays after all.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    tensors: tuple[str, ...]
    run: int
    anchored: bool
    passage: Passage
    pinned: str | None = None


def find(model: nn.Module, inputs: Inputs, recorded: Record) -> tuple[Block, ...]:
    """Return the blocks of a network in the order in which they run; none lies inside another.

    A module that consists of nothing but several blocks is not one: its blocks are.

    Args:
        recorded: One forward of the network on the inputs.
    """
    found = passages(model, inputs, recorded)
    chosen = _outermost(model, found)
    spans = sorted((span for span in recorded.spans if span.path in chosen), key=lambda span: (span.start, -span.end))
    blocks: list[Block] = []
    before: Span | None = None
    for span in spans:
        module = model.get_submodule(span.path)
        shape = _shape(span, found[span.path])
        follows = before is not None and blocks[-1].shape == shape and _consecutive(model, before, span, found)
        run = blocks[-1].run + (not follows) if blocks else 0
        blocks.append(
            Block(
                name=span.path,
                shape=shape,
                params=sum(parameter.numel() for parameter in module.parameters()),
                tensors=tuple(f"{span.path}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)),
                run=run,
                anchored=blocks[-1].anchored if follows else _anchored(model, span, found[span.path], recorded),
                passage=found[span.path],
            )
        )
        before = span
    return tuple(blocks)


def passages(
    model: nn.Module, inputs: Inputs, recorded: Record, names: Iterable[str] | None = None
) -> dict[str, Passage]:
    """Return how the input passes through every module that is the identity when its parameters are zero.

    Tried on the network's activations for the example inputs, for inputs beside them and for two batches in one, and on
    tensors without the zeros that happen to be in these activations.

    Args:
        names: The paths of the modules to try, by default all but the network itself.
    """
    runs: dict[str, list[Span]] = {}
    for span in recorded.spans:
        runs.setdefault(span.path, []).append(span)
    wanted = set(runs) - {""} if names is None else set(names) - {""}
    once = {path: found[0] for path, found in runs.items() if len(found) == 1 and path in wanted}
    owners = _owners(model)
    possible = {
        path: passing
        for path, span in once.items()
        if (passing := _possible(span)) and _owns_its_parameters(model, path, owners)
    }
    generator = torch.Generator().manual_seed(0)
    for number, variant in enumerate(_variants(inputs, generator)):
        if not possible:
            break
        try:
            remaining = _tried(model, variant, possible, generator)
        except FAILURES as error:
            if number == 0:  # trying a module twice leaves something behind: none is promised
                _log.info("no block is tried: %s", error)
                return {}
            continue
        possible = remaining
    return {path: passing[0] for path, passing in possible.items()}


def _possible(span: Span) -> list[Passage]:
    """Return the ways in which an argument may pass through a module, from the shapes alone."""
    tensors = [index for index, leaf in enumerate(span.result) if isinstance(leaf, Ref)]
    given = {leaf.id for leaf in span.args if isinstance(leaf, Ref)}
    made = [index for index in tensors if span.result[index].id not in given]
    if not made and len(tensors) == 1:  # changed in place
        made = tensors
    if len(made) != 1:
        return []
    try:
        skeleton = pytree.tree_unflatten(list(range(len(span.args))), span.args_spec)
        arguments = [Argument(tuple(keys)) for keys, _ in pytree.tree_flatten_with_path(skeleton)[0]]
    except ValueError:  # a container that does not say how its parts are reached
        return []
    leaves: list[Any] = []
    for index, leaf in enumerate(span.result):
        if index == made[0]:
            leaves.append(None)
        elif isinstance(leaf, Ref) or (type(leaf) in (int, float) and _position(leaf, span.args) is not None):
            leaves.append(arguments[_position(leaf, span.args) or 0])
        elif type(leaf) in PLAIN:
            leaves.append(leaf)
        else:
            return []
    shape = span.result[made[0]].shape
    sources = [
        arguments[index] for index, leaf in enumerate(span.args) if isinstance(leaf, Ref) and leaf.shape == shape
    ]
    before, after = leaves[: made[0]], leaves[made[0] + 1 :]
    return [Passage(leaves=(*before, source, *after), position=made[0], spec=span.result_spec) for source in sources]


def _position(leaf: Any, args: Sequence[Any]) -> int | None:
    return next((n for n, given in enumerate(args) if type(given) is type(leaf) and given == leaf), None)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of every parameter by identity."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _owns_its_parameters(model: nn.Module, path: str, owners: Mapping[int, Sequence[str]]) -> bool:
    """Tell whether a module has parameters and shares none with modules outside of it."""
    own = list(model.get_submodule(path).parameters())
    return bool(own) and all(name.startswith(f"{path}.") for parameter in own for name in owners[id(parameter)])


def _variants(inputs: Inputs, generator: torch.Generator) -> Iterable[Inputs]:
    """Yield the inputs, inputs near to them, others far from them and on the other side of zero, and two batches."""
    yield inputs
    yield tuple(_shifted(tensor, 1.0, 0.1, generator) for tensor in inputs)
    yield tuple(_shifted(tensor, -1.5, 2.0, generator) for tensor in inputs)
    yield tuple(torch.cat([tensor, tensor]) if tensor.dim() else tensor for tensor in inputs)


def _shifted(tensor: torch.Tensor, factor: float, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor times a factor plus noise; whole numbers in another order, as their range must stay."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor.flip(-1) if factor < 0 and tensor.dim() else tensor
    random = torch.randn(tensor.shape, generator=generator).to(tensor)
    return tensor * factor + random * noise * max(float(tensor.abs().mean()), 1e-3)


def _tried(
    model: nn.Module, inputs: Inputs, possible: Mapping[str, list[Passage]], generator: torch.Generator
) -> dict[str, list[Passage]]:
    """Return the passages that hold for every module's arguments in one forward of the network."""
    held: dict[str, list[Passage]] = {}

    def enter(path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        zeroed = zeroed_copy(model.get_submodule(path)).eval()
        passing = _held(zeroed, possible[path], args, kwargs)
        held[path] = _held(zeroed, passing, *_without_zeros(passing, args, kwargs, generator))

    watch(model, inputs, dict.fromkeys(possible, enter))
    return {path: passing for path, passing in held.items() if passing}


def watch(
    model: nn.Module,
    inputs: Inputs,
    enter: Mapping[str, Callable[[str, tuple[Any, ...], Mapping[str, Any]], None]],
    leave: Callable[[str, Any], None] | None = None,
) -> None:
    """Run the network on a copy and call functions before and after its modules.

    Args:
        enter: By the path of a module, called with the path and copies of the arguments.
        leave: Called with the path and what the module returned.
    """
    trial = shared_copy(model).eval()

    def before(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copied = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        enter[path](path, *copied)

    for path in enter:
        module = trial.get_submodule(path)
        module.register_forward_pre_hook(lambda _m, a, k, path=path: before(path, a, k), with_kwargs=True)
        if leave is not None:
            module.register_forward_hook(lambda _m, _a, result, path=path: leave(path, result))
    with torch.inference_mode(), attention_in_parts():
        trial(*(tensor.clone() for tensor in inputs))


def zeroed_copy(model: nn.Module, paths: Iterable[str] = ("",)) -> nn.Module:
    """Return a copy of a network in which all parameters of some modules are zero."""
    zeros = {
        f"{path}.{name}" if path else name: nn.Parameter(torch.zeros_like(parameter), requires_grad=False)
        for path in paths
        for name, parameter in model.get_submodule(path).named_parameters()
    }
    return copy_model(model, zeros)


def _held(
    zeroed: nn.Module, passing: Sequence[Passage], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Passage]:
    """Return the passages that say what a module with zeros returns; float64 decides where float32 leaves doubt."""
    if not passing:
        return []
    try:
        gaps = _gaps(zeroed, passing, args, kwargs)
        if any(_EQUAL < gap < _DIFFERENT for gap in gaps):
            args, kwargs = pytree.tree_map_only(torch.Tensor, _precise, (args, kwargs))
            gaps = _gaps(double_copy(zeroed), passing, args, kwargs)
    except FAILURES:
        return []
    return [passage for passage, gap in zip(passing, gaps, strict=True) if gap <= _EQUAL]


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _gaps(
    zeroed: nn.Module, passing: Sequence[Passage], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[float]:
    """Return how far each passage is from what a module returns, relative to the largest value; inf where it is not."""
    given = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    leaves, spec = take_apart(zeroed(*given[0], **given[1]))
    return [_gap(passage, leaves, passage.values(args, kwargs), spec) for passage in passing]


def _gap(passage: Passage, leaves: Sequence[Any], expected: Sequence[Any], spec: Any) -> float:
    if spec != passage.spec:
        return float("inf")
    worst = 0.0
    for leaf, wanted in zip(leaves, expected, strict=True):
        if not isinstance(wanted, torch.Tensor):
            worst = max(worst, 0.0 if type(leaf) is type(wanted) and leaf == wanted else float("inf"))
        elif not isinstance(leaf, torch.Tensor) or leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            return float("inf")
        elif not torch.equal(leaf, wanted):
            if not leaf.is_floating_point():
                return float("inf")
            gap = (leaf.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-12)
            worst = max(worst, float(gap.nan_to_num(nan=float("inf"))))
    return worst


def _without_zeros(
    passing: Sequence[Passage], args: tuple[Any, ...], kwargs: Mapping[str, Any], generator: torch.Generator
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments with other values of the same signs, and positive ones where there were zeros.

    Zeros may be there by chance, and hide that a module drops what it is given; a relu before the block makes its input
    positive, so signs stay.
    """
    sources = {id(passage.source.of(args, kwargs)) for passage in passing}

    def other(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in sources or not tensor.is_floating_point() or not tensor.numel():
            return tensor
        random = torch.rand(tensor.shape, generator=generator).to(tensor)
        largest = float(tensor.abs().nan_to_num(posinf=0.0).max())
        return torch.where(tensor == 0, (0.1 + 0.9 * random) * (largest or 1.0), tensor * (0.5 + random / 2))

    changed: tuple[tuple[Any, ...], Mapping[str, Any]] = pytree.tree_map_only(torch.Tensor, other, (args, kwargs))
    return changed


def _outermost(model: nn.Module, found: Iterable[str]) -> set[str]:
    """Return the paths that lie in no other; a module made of several blocks, or a chain of one, gives way to them."""
    chosen: set[str] = set()
    for path in sorted(found, key=lambda path: -path.count(".")):  # from the inside
        inner = {other for other in chosen if other.startswith(f"{path}.")}
        own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
        covered = {id(parameter) for other in inner for parameter in model.get_submodule(other).parameters()}
        chain = len(inner) > 1 or isinstance(model.get_submodule(path), nn.Sequential)
        if own != covered or not chain:
            chosen = (chosen - inner) | {path}
    return chosen


def _shape(span: Span, passage: Passage) -> tuple[int, ...]:
    shape: tuple[int, ...] = span.result[passage.position].shape
    return shape


def _given(span: Span, passage: Passage) -> int:
    """Return the identity of the tensor that flows into a block."""
    args, kwargs = pytree.tree_unflatten(list(span.args), span.args_spec)
    identity: int = passage.source.of(args, kwargs).id
    return identity


def _consecutive(model: nn.Module, first: Span, second: Span, found: Mapping[str, Passage]) -> bool:
    """Tell whether a block takes what the one before returned, or is of its kind and stands beside it."""
    if first.result[found[first.path].position].id == _given(second, found[second.path]):
        return True
    alike = type(model.get_submodule(first.path)) is type(model.get_submodule(second.path))
    return alike and first.path.rpartition(".")[0] == second.path.rpartition(".")[0]


def _anchored(model: nn.Module, span: Span, passage: Passage, recorded: Record) -> bool:
    """Tell whether a module of a block's class makes the tensor that flows into the block."""
    given, kind = _given(span, passage), type(model.get_submodule(span.path))
    return any(
        isinstance(leaf, Ref) and leaf.id == given
        for other in recorded.spans
        if other.path and other.end <= span.start and type(model.get_submodule(other.path)) is kind
        for leaf in other.result
    )


def influence(model: nn.Module, blocks: Sequence[Block], samples: Iterable[Inputs]) -> dict[str, float]:
    """Return how much each block changes the direction of what flows through it, by name.

    1 - cos(input, output) over the channels, averaged over samples and positions (block influence, Men et al. 2024).

    Args:
        samples: Inputs of the network.
    """
    sums = dict.fromkeys((block.name for block in blocks), 0.0)
    counts = dict.fromkeys(sums, 0)
    by_name = {block.name: block for block in blocks}
    entered: dict[str, torch.Tensor] = {}

    def enter(path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        entered[path] = by_name[path].passage.source.of(args, kwargs)

    def leave(path: str, result: Any) -> None:
        before, after = entered.pop(path).double(), take_apart(result)[0][by_name[path].passage.position].double()
        turned = 1 - _cosine(before, after, _channel_axis(model.get_submodule(path), before))
        sums[path] += float(turned.sum())
        counts[path] += turned.numel()

    for sample in samples:
        watch(model, sample, dict.fromkeys(by_name, enter), leave)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _channel_axis(module: nn.Module, tensor: torch.Tensor) -> int:
    """Return where a block's tensors have their channels: second for convolutions of their dimension, else last."""
    convolutions = (m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd))
    return 1 if any(len(m.kernel_size) + 2 == tensor.dim() for m in convolutions) else -1


def _cosine(first: torch.Tensor, second: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the cosine along an axis; two zero vectors point the same way."""
    if not first.dim():
        first, second = first.reshape(1), second.reshape(1)
    lengths = first.norm(dim=axis) * second.norm(dim=axis)
    both = (first == 0).all(dim=axis) & (second == 0).all(dim=axis)
    cosine = (first * second).sum(dim=axis) / lengths.clamp(min=1e-30)
    return torch.where(both, torch.ones_like(cosine), cosine.clamp(-1, 1))


def protect(blocks: Sequence[Block], patterns: Iterable[str]) -> tuple[Block, ...]:
    """Return the blocks with those pinned whose name, or one of whose parameters, matches a pattern."""
    found = list(blocks)
    for pattern in patterns:
        for index, block in enumerate(found):
            if block.pinned is None and any(matches(pattern, name, "keep") for name in (block.name, *block.tensors)):
                found[index] = replace(block, pinned=f"kept by '{pattern}'")
    return tuple(found)


def matches(pattern: str, name: str, setting: str) -> bool:
    """Tell whether a name matches a shell pattern or a whole regular expression.

    Raises:
        ConfigError: The pattern is neither.
    """
    if fnmatch(name, pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        text = f"{setting} = '{pattern}' is neither a shell pattern nor a regular expression: {error}"
        raise ConfigError(text) from None


def choose(blocks: Sequence[Block], change: Mapping[str, float], config: PruneConfig) -> tuple[str, ...]:
    """Return the names of the blocks to remove, in the order in which they run.

    Those that `config.blocks` names go in any case. Then those with the least influence, until the fraction
    `config.depth` of all free blocks is reached; of blocks in a row with equal shape one stays.

    Args:
        change: Influence by name.

    Raises:
        ConfigError: A pattern of `config.blocks` matches no block, or one that is pinned.
        NothingToPrune: A depth was asked for, and no block can go.
    """
    chosen = _named(blocks, config.blocks)
    free = [block for block in blocks if block.pinned is None]
    count = round(config.depth * len(free))
    left: dict[int, int] = {}
    for block in blocks:
        left[block.run] = left.get(block.run, int(block.anchored)) + (block.name not in chosen)
    for block in sorted(free, key=lambda block: change[block.name]):
        if len(chosen) >= count:
            break
        if block.name not in chosen and left[block.run] > 1:
            chosen.add(block.name)
            left[block.run] -= 1
    if config.depth > 0 and not chosen:
        raise NothingToPrune(f"a depth of {config.depth} removes none of {len(free)} blocks", fix=_why_not(blocks))
    return tuple(block.name for block in blocks if block.name in chosen)


def _named(blocks: Sequence[Block], patterns: Iterable[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        found = [block for block in blocks if matches(pattern, block.name, "prune.blocks")]
        if not found:
            names = ", ".join(block.name for block in blocks[:8]) or "none"
            raise ConfigError(f"prune.blocks = '{pattern}' matches no removable block", fix=f"blocks: {names}")
        for block in found:
            if block.pinned is not None:
                raise ConfigError(f"prune.blocks = '{pattern}' matches {block.name}, which stays: {block.pinned}")
        chosen |= {block.name for block in found}
    return chosen


def _why_not(blocks: Sequence[Block]) -> str:
    if not blocks:
        return "the network has no module that becomes the identity when its parameters are zero:  -s prune.depth=0"
    pinned = [f"{block.name}: {block.pinned}" for block in blocks if block.pinned is not None]
    return "; ".join([*pinned[:8], "one block of every row with equal shape stays", "name others in prune.blocks"])
