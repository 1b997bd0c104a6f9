"""Depth: networks without some of their residual blocks, verified against the dense one with these blocks zeroed.

A removed block leaves a module behind that returns its input, so that the code around it and the names of all other
parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.compact.verify import ROUNDING, check_training, difference, run
from edgeprune.errors import ConfigError, EdgePruneError, VerificationError
from edgeprune.graph.capture import Record, record
from edgeprune.graph.flow import refs
from edgeprune.graph.structure import copy_model, double_copy
from edgeprune.pruning.blocks import PLAIN, Block, Inputs, Passage, find, passages, zeroed_copy
from edgeprune.values import Check
from edgeprune.workload import Examples


class Skip(nn.Module):
    """What is left of a removed block: returns its input in the structure that the block returned.

    Plain values that the block held as attributes are kept, as code around it may read them.

    Args:
        copies: The input is copied, because a later call writes into it or into the result.
    """

    def __init__(self, block: nn.Module, passage: Passage, *, copies: bool) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if not name.startswith("_") and isinstance(value, PLAIN):
                setattr(self, name, value)
        self._passage = passage
        self._copies = copies
        self._origin = type(block).__name__

    def extra_repr(self) -> str:
        return f"removed: {self._origin}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        passage = self._passage
        try:
            leaves = passage.values(args, kwargs)
        except LookupError:
            raise TypeError(f"{self._origin} was removed; call what is left with the same arguments") from None
        if self._copies:
            leaves[passage.position] = leaves[passage.position].clone()
        return passage.spec.unflatten(leaves)


def removable(model: nn.Module, inputs: Inputs) -> tuple[Block, ...]:
    """Return the blocks of a network; those without which its code fails or its result differs are pinned.

    A network of several examples whose data decide on the path has none.

    Raises:
        TraceError: The forward cannot be followed.
    """
    recorded = record(model, inputs, branches=isinstance(inputs, Examples) and bool(inputs.others))
    if recorded.reads:  # one path says too little about what a block does
        return ()
    blocks = find(model, inputs, recorded)
    if not blocks or _failure(model, recorded, blocks, inputs) is None:
        return blocks
    failures = [_failure(model, recorded, [block], inputs) for block in blocks]
    return tuple(
        block if failure is None else replace(block, pinned=failure.message)
        for block, failure in zip(blocks, failures, strict=True)
    )


def _failure(model: nn.Module, recorded: Record, blocks: Sequence[Block], inputs: Inputs) -> EdgePruneError | None:
    try:
        _without(model, recorded, {block.name: block.passage for block in blocks}, inputs)
    except EdgePruneError as error:
        return error
    return None


def remove_blocks(model: nn.Module, names: Iterable[str], inputs: Inputs) -> nn.Module:
    """Return a copy of the network without some of its blocks. The given network is not changed.

    Args:
        names: Paths of modules that become the identity when their parameters are zero.

    Raises:
        ConfigError: There is no such block, or one lies inside another.
        ModelError: The network cannot run without a block; `where` is the user's line that needs it.
        VerificationError: It differs from the dense network with the parameters of the blocks zeroed.
    """
    return without_blocks(model, names, inputs)[0]


def without_blocks(model: nn.Module, names: Iterable[str], inputs: Inputs) -> tuple[nn.Module, Check]:
    """Return what `remove_blocks` does, and the comparison that it passed."""
    names = tuple(names)
    recorded = record(model, inputs)
    found = passages(model, inputs, recorded, names)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            raise unknown_block(name)
        if name not in found:
            raise ConfigError(
                f"the plan removes block '{name}', which does not become the identity when its parameters are zero",
                fix="edgeprune inspect lists the blocks that can be removed",
            )
        if any(name.startswith(f"{other}.") for other in names):
            raise ConfigError(f"the plan removes block '{name}' and one that it lies in", fix=f"leave out '{name}'")
    return _without(model, recorded, found, inputs)


def unknown_block(name: str) -> ConfigError:
    """Return the error for a block that the network does not have."""
    return ConfigError(
        f"the plan removes block '{name}', which does not exist in this network",
        fix="edgeprune inspect lists the blocks",
    )


def _without(
    model: nn.Module, recorded: Record, found: Mapping[str, Passage], inputs: Inputs
) -> tuple[nn.Module, Check]:
    """Replace blocks and compare; where sharing the input's memory gives another result, it is copied."""
    written = _written(recorded, found)
    try:
        small = _replaced(model, found, written)
        return small, _check(model, small, found, inputs)
    except VerificationError:
        if written == set(found):
            raise
    small = _replaced(model, found, set(found))
    return small, _check(model, small, found, inputs)


def _replaced(model: nn.Module, found: Mapping[str, Passage], copied: set[str]) -> nn.Module:
    small = copy_model(model)
    for path, passage in found.items():
        parent, _, name = path.rpartition(".")
        skip = Skip(small.get_submodule(path), passage, copies=path in copied)
        setattr(small.get_submodule(parent), name, skip)
    return small


def _written(recorded: Record, found: Mapping[str, Passage]) -> set[str]:
    """Return the blocks into whose input or result a call outside of the blocks writes once the block has run."""
    spans = [span for span in recorded.spans if span.path in found]
    gone = {index for span in spans for index in range(span.start, span.end)}
    written = set()
    for span in spans:
        args, kwargs = pytree.tree_unflatten(list(span.args), span.args_spec)
        passage = found[span.path]
        same = {passage.source.of(args, kwargs).id, span.result[passage.position].id}
        for number, call in enumerate(recorded.calls):
            schema = call.func._schema
            aliased = [argument for argument in schema.arguments if argument.alias_info is not None]
            touched = {ref.id for argument in aliased for ref in refs([call.args.get(argument.name)])}
            if same.isdisjoint(touched):
                continue
            if number >= span.end and number not in gone and schema.is_mutable:
                written.add(span.path)
                break
            same |= {ref.id for ref in refs([call.result])}  # a view
    return written


def _check(model: nn.Module, small: nn.Module, names: Iterable[str], inputs: Inputs) -> Check:
    """Compare a network with the dense one whose blocks are zeroed; float64 decides where float32 leaves doubt.

    Raises:
        ModelError: It cannot run.
        VerificationError: It differs.
    """
    zeroed, trial = zeroed_copy(model, names).eval(), copy_model(small).eval()
    expected, found = run(zeroed, inputs), run(trial, inputs)
    result = difference(expected, found)
    if result.max_rel > ROUNDING:
        precise = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
        try:
            result = difference(run(double_copy(zeroed), precise), run(double_copy(trial), precise), ROUNDING)
        except (RuntimeError, EdgePruneError):  # a network that fixes float32 is judged in float32
            result = difference(expected, found)
    result = replace(result, name="network without blocks against the dense one with these blocks zeroed")
    if not result.passed:
        raise VerificationError(
            f"without its blocks the network differs from the dense one with these blocks zeroed on {result.output}: "
            f"max relative difference {result.max_rel:.1e}, limit {result.tolerance:.0e}",
            fix="keep the blocks involved (edgeprune inspect lists them), or report the network",
        )
    check_training(model, small, inputs)
    return result
