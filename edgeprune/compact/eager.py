"""The eager output: the user's own module with the removed positions cut out and its numbers repaired."""

from __future__ import annotations

from torch import nn

from edgeprune.compact.attributes import guessed, repair_norms_, repair_sizes_, repair_torch_
from edgeprune.compact.slice import changed_dims
from edgeprune.compact.verify import Reference, check_training, run_
from edgeprune.errors import EdgePruneError
from edgeprune.values import Check


def repaired(reference: Reference, *, guess_sizes: bool) -> nn.Module | None:
    """Return the user's network with its tensors cut and its attributes repaired, not yet checked.

    Args:
        guess_sizes: Also replace integers in the user's modules that equal a changed size. None when there is none.
    """
    graph, masks = reference.graph, reference.masks
    small = reference.small()
    repair_torch_(small, graph.trail.groups_left(graph.alive(reference.keep)))
    shapes = dict(graph.shapes)
    for names in graph.names.values():
        shapes.update(dict.fromkeys(names, graph.shapes[names[0]]))
    if guess_sizes and not repair_sizes_(small, shapes, changed_dims(graph, masks)):
        return None
    return small


def eager(reference: Reference) -> tuple[nn.Module, Check]:
    """Return the user's own module made smaller, in evaluation mode, and the comparison that it passed.

    Raises:
        ModelError: The smaller network cannot run; `where` is the user's line that expects the old size.
        VerificationError: It runs, but differs from the masked dense network.
    """
    failures: list[EdgePruneError] = []
    for guess in (False, True):
        small = repaired(reference, guess_sizes=guess)
        if small is None:
            continue
        try:
            repair_norms_(small, lambda trial: run_(trial, reference.inputs))
            check = reference.check(small)
            if reference.graph.unused:
                check_training(reference.model, small, reference.inputs)
        except EdgePruneError as error:
            failures.append(error)
        else:
            if guess:
                _undo_needless_guesses_(reference, small)
            return small, check
    raise failures[0]


def _undo_needless_guesses_(reference: Reference, small: nn.Module) -> None:
    """Give attributes their old value back where the network passes with it: they may mean something else."""
    for module, name, old in guessed(reference.model, small):
        new = getattr(module, name)
        setattr(module, name, old)
        try:
            reference.check(small)
        except EdgePruneError:
            setattr(module, name, new)
