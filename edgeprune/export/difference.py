"""Where a rejected file first goes wrong: the tensor, the operator, and the user's line.

Owns finding it, and the verdict that is left beside a rejected file. File and network share no names, so a tensor of
the file is compared with every value of the network that has as many numbers, and the best counts. A tensor without a
counterpart, inside of what a converter split up or fused, is as good as the best of what is computed from it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import EdgePruneError
from edgeprune.export.feeds import Arrays, input_sets
from edgeprune.export.limits import Limits
from edgeprune.export.quality import MOST_DB, sqnr_db
from edgeprune.export.trace import Step, file_steps, network_steps
from edgeprune.values import Check, Json, finite

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.export.capture import Subject
    from edgeprune.export.opened import OpenArtifact

_LOG = logging.getLogger(__name__)
# Float32 rounding leaves 100 dB and more; a difference of 1e-4 of the largest value is about 80.
_EQUAL_DB = 80.0
# What 8 bits leave at best: a fall from above is the ordinary price of the first quantised operator.
_EIGHT_BITS_DB = 45.0
# A fall that is smaller than this is no place where something goes wrong, it is noise that adds up.
_LEAST_FALL_DB = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where a file leaves its network.

    `before_db` is the agreement of what the operator takes, `sqnr_db` that of what it gives. `node` is the network's
    operator there, and `where` the line that called it; None where they are not known. `kernels` says that the file is
    right step by step, so that the runtime's optimised kernels are wrong, not the file.
    """

    tensor: str
    operator: str
    before_db: float
    sqnr_db: float
    node: str | None = None
    where: str | None = None
    kernels: bool = False

    def as_dict(self) -> Json:
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    def told(self) -> str:
        """Return it as one sentence."""
        if self.kernels:
            return (
                f"Run step by step without optimisations the file is right up to '{self.tensor}' "
                f"({self.sqnr_db:.0f} dB): the runtime's optimised kernels are wrong"
            )
        place = f", {self.node}" if self.node else ""
        place += f" at {self.where}" if self.where else ""
        return (
            f"It goes wrong in {self.operator}, tensor '{self.tensor}': SQNR falls from {self.before_db:.0f} "
            f"to {self.sqnr_db:.0f} dB{place}"
        )


def first_difference(
    subject: Subject,
    opened: OpenArtifact,
    *,
    examples: Sequence[Sequence[Tensor]],
    limits: Limits,
    checks: Sequence[Check],
) -> Difference | None:
    """Return where a file that failed checks goes wrong; None where looking inside does not tell.

    Raises:
        ExportError: The network cannot be captured.
    """
    arrays = _failing_inputs(subject, opened, examples, checks)
    if arrays is None:
        return None
    inside, outside = file_steps(opened, arrays), network_steps(subject, arrays)
    agreement = _agreement(inside, outside)
    steps = [step for step in inside if any(name in agreement for name in step.outputs)]
    if not steps:
        return None
    reached = _reached(inside, agreement)
    found = _fall(inside, reached, limits)
    if found is None:
        last = next(name for name in reversed([*reached]) if name in agreement)
        enough = limits.min_sqnr_db if limits.min_sqnr_db is not None else _EQUAL_DB
        if reached[last] < enough:
            return None
        return Difference(
            tensor=last, operator=steps[-1].operator, before_db=reached[last], sqnr_db=reached[last], kernels=True
        )
    step, before, after = found
    node = _fall(outside, _reached(outside, _agreement(outside, inside)), limits)
    return Difference(
        tensor=step.outputs[0],
        operator=step.operator,
        before_db=before,
        sqnr_db=after,
        node=node[0].outputs[0] if node is not None else None,
        where=node[0].where if node is not None else None,
    )


def _failing_inputs(
    subject: Subject, opened: OpenArtifact, examples: Sequence[Sequence[Tensor]], checks: Sequence[Check]
) -> Arrays | None:
    """Return the inputs, of one run, on which the outputs are worst among the first set that failed."""
    from edgeprune.export.capture import to_array

    failed = {check.inputs.removesuffix(" again") for check in checks if not check.passed}
    arrays = [[to_array(tensor) for tensor in tensors] for tensors in examples]
    step = opened.batch if opened.batch is not None else 1
    sets = input_sets(subject.inputs, arrays, step, edges=True)
    # With a batch of its own the random set has another name than with a free one.
    feeds = [
        feed for tried in sets if tried.name.split(",")[0] in {n.split(",")[0] for n in failed} for feed in tried.feeds
    ]
    worst: tuple[float, Arrays] | None = None
    for feed in feeds[:16]:
        pairs = zip(subject.run(feed), opened.run_all(feed), strict=True)
        level = min((sqnr_db(a, b) for a, b in pairs if np.issubdtype(a.dtype, np.floating)), default=MOST_DB)
        if worst is None or level < worst[0]:
            worst = (level, feed)
    return worst[1] if worst is not None else None


def _agreement(steps: Sequence[Step], others: Sequence[Step]) -> dict[str, float]:
    """Return for every value of `steps` the decibels to the most similar value of the other side."""
    by_size: dict[int, list[np.ndarray]] = {}
    for step in others:
        for array in step.values.values():
            by_size.setdefault(array.size, []).append(array)
    sorted_ones: dict[int, np.ndarray] = {}
    found: dict[str, float] = {}
    for step in steps:
        for name, array in step.values.items():
            if array.size < 2 or array.min() == array.max():
                continue  # zeros agree with any zeros
            levels = [_level(other, array, sorted_ones) for other in by_size.get(array.size, ())]
            found[name] = max(levels, default=-MOST_DB)
    return found


def _level(reference: np.ndarray, found: np.ndarray, sorted_ones: dict[int, np.ndarray]) -> float:
    """Return the decibels between two values, in the layout where they agree best.

    Sorted values are compared where no layout is known, so there a permutation is not seen.
    """
    levels = []
    if reference.shape == found.shape:
        levels.append(sqnr_db(reference, found))
    if reference.ndim == found.ndim == 4:
        for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
            turned = np.transpose(reference, order)
            if turned.shape == found.shape:
                levels.append(sqnr_db(turned, found))
    if levels:
        return max(levels)
    for array in (reference, found):
        if id(array) not in sorted_ones:
            sorted_ones[id(array)] = np.sort(array, axis=None)
    return sqnr_db(sorted_ones[id(reference)], sorted_ones[id(found)])


def _reached(steps: Sequence[Step], agreement: Mapping[str, float]) -> dict[str, float]:
    """Return for every value the best agreement of itself and of all that is computed from it."""
    reached = {name: agreement.get(name, -MOST_DB) for step in steps for name in step.outputs}
    for step in reversed(steps):
        best = max((reached[name] for name in step.outputs), default=-MOST_DB)
        for name in (*step.outputs, *step.inputs):
            if name in reached:
                reached[name] = max(reached[name], best)
    return reached


def _fall(steps: Sequence[Step], reached: Mapping[str, float], limits: Limits) -> tuple[Step, float, float] | None:
    """Return the step where agreement is lost, with the agreement before and after.

    For float32 the first that takes equal values and gives different ones, else the one where it falls most.
    """
    worst: tuple[Step, float, float] | None = None
    most = _EQUAL_DB if limits.precision in ("fp32", "fp16") else _EIGHT_BITS_DB
    for step in steps:
        before = min((reached[name] for name in step.inputs if name in reached), default=MOST_DB)
        after = max((reached[name] for name in step.outputs if name in reached), default=before)
        if limits.min_sqnr_db is None and before >= _EQUAL_DB > after:
            return step, before, after
        fall = min(before, most) - min(after, most)
        if fall >= _LEAST_FALL_DB and (worst is None or fall > min(worst[1], most) - min(worst[2], most)):
            worst = (step, before, after)
    return worst


def leave_verdict(
    target: Path,
    subject: Subject,
    opened: OpenArtifact | None,
    *,
    examples: Sequence[Sequence[Tensor]],
    limits: Limits,
    checks: Sequence[Check],
) -> str:
    """Look inside of a rejected file, write `TARGET.verify.json`, and return where it goes wrong as a sentence.

    Args:
        opened: The file, None where it could not even be opened.

    Returns:
        The sentence with a blank before it; nothing where looking inside did not tell.
    """
    found = None
    if opened is not None and checks:
        try:
            found = first_difference(subject, opened, examples=examples, limits=limits, checks=checks)
        except (EdgePruneError, RuntimeError, ValueError) as error:
            # The file is rejected either way; this only would have said more.
            _LOG.warning("cannot look inside of %s: %s", target.name, error)
    write_verdict(target, checks, found)
    return f". {found.told()}" if found is not None else ""


def write_verdict(path: Path, checks: Sequence[Check], difference: Difference | None) -> None:
    """Write `PATH.verify.json`: every check, and where the file goes wrong.

    Raises:
        OSError: It cannot be written; nothing is left of it then.
    """
    verdict = {
        "passed": bool(checks) and all(check.passed for check in checks),
        "checks": [check.as_dict() for check in checks],
        "where": difference.as_dict() if difference is not None else None,
    }
    final = path.with_name(f"{path.name}.verify.json")
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(finite(verdict), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
