"""Compare networks and files on the same inputs.

Owns what is compared with what. Which inputs are tried is in `feeds.py`, how a difference is measured in `quality.py`,
what is enough in `limits.py`. Writes and renames nothing. A float32 file has to equal the network on user, random and
edge inputs. A file of another precision has to be near the network on the user's inputs; elsewhere it may saturate, so
there its runtime's default kernels have to agree with reference arithmetic, which finds what is wrong without an error.
Every file is opened once for all its inputs, so one that keeps state between samples is found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import ConfigError, ModelError, ResolveError, VerificationError
from edgeprune.export.exact import ExactNetwork
from edgeprune.export.feeds import Arrays, InputSet, draw, input_sets
from edgeprune.export.limits import TOLERANCE, Limits, judged, limits_of, reference_limits
from edgeprune.export.opened import OpenArtifact, open_artifact
from edgeprune.export.quality import Tally
from edgeprune.export.quality import sqnr_db as sqnr_db
from edgeprune.values import PRECISIONS, Check, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.export.capture import Subject

_LOG = logging.getLogger(__name__)
# Reference kernels may be a hundred times slower than the usual ones, so big networks are tried on fewer inputs.
_REFERENCE_S = 20.0
# Rounding explains at most this many tolerances on inputs as they occur; on edge values whatever is measured.
_MOST_DOUBT, _MOST_EDGE_DOUBT = 100.0, 1e9
# Inputs on which float32 rounding explains a thousandth of the output say nothing about kernels of 8 bits.
_STEADY = 1e-3
# How much farther from the network than reference arithmetic a file may be, and where being near says nothing.
_NEAR_DB, _LEAST_NEAR_DB = 3.0, 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of two things that are compared. `batch` is the only batch that it takes, None for any."""

    run_each: Callable[[Sequence[Arrays]], list[Arrays]]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    label: str


def verify_artifact(
    subject: Subject,
    opened: OpenArtifact,
    *,
    examples: Sequence[Sequence[Tensor]],
    limits: Limits,
    name: str,
) -> tuple[Check, ...]:
    """Compare a file with the network that it was made from.

    Args:
        examples: The user's inputs, batch first; the first of them are tried again at the end.
        limits: What is enough, from `limits_of`.
        name: What the file is called in the checks.
    """
    network, file = network_side(subject), file_side(opened, name)
    arrays = [_arrays(tensors) for tensors in examples]
    sets = input_sets(subject.inputs, arrays, _step(network, file), edges=True)
    sets = [_defined(network, tried) if tried.kind == "edge" else tried for tried in sets]
    if limits.min_sqnr_db is None:
        return compare(network, file, sets, limits, ExactNetwork(subject))
    near = ("user", "random") if limits.precision in ("fp32", "fp16") else ("user",)
    checks = compare(network, file, [tried for tried in sets if tried.kind in near], limits)
    rest = [tried for tried in sets if tried.kind != "user"]
    kernels = verify_kernels(opened, rest, limits, name, network)
    if not all(check.passed for check in kernels):
        exact = ExactNetwork(subject)
        rest = [_steady(exact, tried) if tried.kind == "edge" else tried for tried in rest]
        kernels = verify_kernels(opened, rest, limits, name, network)
    return (*checks, *kernels)


def verify_kernels(
    opened: OpenArtifact, sets: Sequence[InputSet], limits: Limits, name: str, network: Side | None = None
) -> tuple[Check, ...]:
    """Compare a file in its runtime's default kernels with the same file in reference arithmetic.

    Big networks are tried on as many of the inputs as reference kernels manage in about 20 seconds, at least one.
    Where rounding alone moves the output as far as quantisation does, two right kernels differ by as much; so what
    differs too far is also compared with `network`, and passes where it is as near to it as reference arithmetic.
    """
    if limits.min_reference_db is None:
        return ()
    try:
        slow = open_artifact(opened.path, name=name, reference=True)
    except ResolveError as error:
        _LOG.warning("%s has no form in reference arithmetic: %s", name, error.message)
        return ()
    started = time.perf_counter()
    found: list[Check] = []
    reference = file_side(slow, "reference arithmetic")
    for tried in sets:
        feeds: list[Arrays] = []
        wanted: list[Arrays] = []
        for feed in tried.feeds:
            if (found or feeds) and time.perf_counter() - started > _REFERENCE_S:
                break
            feeds.append(feed)
            wanted.extend(slow.run_each([feed]))
        if feeds:
            known = replace(reference, run_each=lambda _, kept=wanted: kept)  # type: ignore[misc]
            part = replace(tried, feeds=tuple(feeds))
            judge = reference_limits(limits, edges=tried.kind == "edge")
            made = compare(known, file_side(opened, name), [part], judge)
            if network is not None and not all(check.passed for check in made):
                made = _as_near(made, network.run_each(feeds), wanted, opened.run_each(feeds))
            found += made
    return tuple(found)


def _as_near(
    made: tuple[Check, ...], exact: list[Arrays], reference: list[Arrays], found: list[Arrays]
) -> tuple[Check, ...]:
    """Return the checks of one set of inputs, failed ones passed where the file is as near to the network."""
    again = []
    for index, check in enumerate(made):
        tallies = Tally(), Tally()
        for expected, wanted, given in zip(exact, reference, found, strict=True):
            tallies[0].add(expected[index], wanted[index])
            tallies[1].add(expected[index], given[index])
        slow, fast = (tally.quality() for tally in tallies)
        near = fast.finite and not fast.whole and fast.sqnr_db >= max(slow.sqnr_db - _NEAR_DB, _LEAST_NEAR_DB)
        again.append(check if check.passed or not near else replace(check, passed=True, min_sqnr_db=check.sqnr_db))
    return tuple(again)


def verify_pair(
    a: nn.Module | str | Path,
    b: nn.Module | str | Path,
    *,
    inputs: Sequence[Tensor] | None = None,
    tolerance: float = TOLERANCE,
    min_sqnr_db: float | None = None,
) -> tuple[Check, ...]:
    """Compare any two of networks and `.onnx` or `.tflite` files; `a` is the reference.

    Random inputs in the range of the examples, or of a file's record, are tried besides `inputs`; edge values where one
    side is a network, which says how much rounding explains there. Where a file's record states another precision than
    float32, or `min_sqnr_db` is given, decibels on `inputs` decide, or on the random ones where there are no others.
    Checks that failed are returned like the others; `require` turns them into an error.

    Args:
        inputs: Example tensors, batch first; needed when neither side is a file.
        tolerance: Largest relative difference of float32.
        min_sqnr_db: Decibels that decide, instead of those of the precision.

    Raises:
        ConfigError: Two networks and no inputs.
        ResolveError: A file is missing or cannot be read.
        VerificationError: The sides do not have the same inputs and outputs, or a runtime fails.
    """
    opened = [open_artifact(Path(side)) if isinstance(side, str | Path) else None for side in (a, b)]
    files = [file for file in opened if file is not None]
    if inputs is None and not files:
        raise ConfigError("two networks cannot be compared without inputs", fix="give example inputs")
    # A file with a record knows the range of its inputs, so it is asked first.
    files.sort(key=lambda file: file.record is None)
    specs = files[0].inputs if files else ()
    sides, subjects = [], []
    for value, file in zip((a, b), opened, strict=True):
        if file is not None:
            sides.append(file_side(file, file.path.name))
            continue
        subject = _subject(value, inputs, files[0] if files else None)
        specs = subject.inputs if inputs is not None else specs
        subjects.append(subject)
        sides.append(network_side(subject))
    counts = [len(file.inputs) for file in files] + ([len(inputs)] if inputs is not None else [])
    if len(set(counts)) > 1:
        raise VerificationError(f"the sides have {' and '.join(map(str, counts))} inputs, so they cannot be equal")
    precision = max((file.precision for file in files), key=PRECISIONS.index, default=PRECISIONS[0])
    limits = limits_of(precision, tolerance, min_sqnr_db)
    exact = ExactNetwork(subjects[0]) if subjects and limits.min_sqnr_db is None else None
    examples = [_arrays(inputs)] if inputs is not None else []
    sets = input_sets(specs, examples, _step(*sides), edges=exact is not None)
    if exact is not None:
        network = network_side(subjects[0])
        sets = [_defined(network, tried) if tried.kind == "edge" else tried for tried in sets]
    elif inputs is not None and precision not in ("fp32", "fp16"):
        sets = [tried for tried in sets if tried.kind == "user"]
    return compare(sides[0], sides[1], sets, limits, exact)


def require(checks: Sequence[Check], where: str | None = None) -> None:
    """Raise the worst failed check as an error; nothing happens when all passed.

    Raises:
        VerificationError: At least one check failed.
    """
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    by_sqnr = [check for check in failed if check.min_sqnr_db is not None and check.sqnr_db is not None]
    worst = min(by_sqnr, key=lambda check: check.sqnr_db or 0.0) if by_sqnr else max(failed, key=lambda c: c.max_rel)
    near = worst.max_rel < 100 * worst.tolerance and worst.min_sqnr_db is None
    raise VerificationError(
        f"{worst.name}: '{worst.output}' {told(worst)} ({worst.inputs}, batch {worst.batch_size})",
        where=where,
        fix="if rounding explains this difference, raise export.tolerance" if near else None,
    )


def told(check: Check) -> str:
    """Return in words how far a check's output is off, with the limit that it was judged by."""
    if not np.isfinite(check.max_rel):
        return "has another shape or values that are not finite"
    if check.min_sqnr_db is not None and check.sqnr_db is not None:
        return f"has an SQNR of {check.sqnr_db:.1f} dB, limit {check.min_sqnr_db:g} dB"
    return f"differs by {check.max_rel:.1e} of its largest value, limit {check.tolerance:.1e}"


def network_side(subject: Subject) -> Side:
    """Return a network as a side of a comparison."""

    def run_each(feeds: Sequence[Arrays]) -> list[Arrays]:
        return [subject.run(arrays) for arrays in feeds]

    return Side(run_each=run_each, outputs=subject.outputs, batch=subject.batch, label="the network")


def file_side(opened: OpenArtifact, label: str) -> Side:
    """Return an open file as a side of a comparison."""

    def run_each(feeds: Sequence[Arrays]) -> list[Arrays]:
        return [opened.run_all(arrays) for arrays in feeds]

    return Side(run_each=run_each, outputs=opened.outputs, batch=opened.batch, label=label)


def _subject(model: nn.Module | str | Path, inputs: Sequence[Tensor] | None, file: OpenArtifact | None) -> Subject:
    import torch

    from edgeprune.export.capture import prepare

    assert isinstance(model, torch.nn.Module)
    if inputs is None:
        assert file is not None
        inputs = [torch.from_numpy(array) for array in draw(file.inputs, file.batch or 1, seed=0)]
    return prepare(model, inputs)


def _arrays(tensors: Sequence[Tensor]) -> Arrays:
    from edgeprune.export.capture import to_array

    return [to_array(tensor) for tensor in tensors]


def _step(*sides: Side) -> int | None:
    return max((side.batch for side in sides if side.batch is not None), default=None)


def _defined(network: Side, tried: InputSet) -> InputSet:
    """Return a set without the inputs that the network itself does not take, or answers with NaN or infinity."""
    kept = []
    for feed in tried.feeds:
        try:
            found = network.run_each([feed])[0]
        except (RuntimeError, ValueError, IndexError, AssertionError, VerificationError) as error:
            _LOG.info("the network does not take %s: %s", tried.name, error)
            continue
        if all(np.isfinite(array.astype(np.float64)).all() for array in found):
            kept.append(feed)
    return replace(tried, feeds=tuple(kept))


def _steady(exact: ExactNetwork, tried: InputSet) -> InputSet:
    """Return a set without the inputs on which rounding alone moves the network's outputs visibly."""
    kept = []
    for feed in tried.feeds:
        run = exact.run(feed)
        if run is None or max(run[1]) <= _STEADY:
            kept.append(feed)
    return replace(tried, feeds=tuple(kept))


def compare(
    reference: Side, other: Side, sets: Sequence[InputSet], limits: Limits, exact: ExactNetwork | None = None
) -> tuple[Check, ...]:
    """Return one check for every set of inputs and output.

    Args:
        exact: Asked where float32 leaves doubt, before something is called different.

    Raises:
        VerificationError: The sides have another number of outputs, or a runtime fails.
    """
    if len(reference.outputs) != len(other.outputs):
        raise VerificationError(
            f"{reference.label} has {len(reference.outputs)} outputs, {other.label} has {len(other.outputs)}"
        )
    checks: list[Check] = []
    for tried in sets:
        if tried.feeds:
            wanted, found = reference.run_each(tried.feeds), other.run_each(tried.feeds)
            made = _checks(wanted, found, reference, other, tried, limits)
            failed = [check for check in made if not check.passed]
            if exact is not None and any(
                tried.kind == "edge" or check.max_rel <= check.tolerance * _MOST_DOUBT for check in failed
            ):
                made = _reconsidered(made, wanted, found, tried, exact)
            if not all(check.passed for check in made):
                exact = None  # different is different: no second thoughts about the other inputs
            checks += made
    return tuple(checks)


def _checks(
    wanted: list[Arrays], found: list[Arrays], reference: Side, other: Side, tried: InputSet, limits: Limits
) -> list[Check]:
    tallies = [Tally() for _ in reference.outputs]
    for expected, given in zip(wanted, found, strict=True):
        for tally, a, b in zip(tallies, expected, given, strict=True):
            tally.add(a, b)
    return [
        judged(
            tally.quality(),
            name=f"{other.label} against {reference.label}",
            inputs=tried.name,
            batch_size=tried.batch_size,
            output=spec.name,
            tolerance=limits.tolerance,
            min_sqnr_db=limits.min_sqnr_db,
        )
        for tally, spec in zip(tallies, reference.outputs, strict=True)
    ]


def _reconsidered(
    made: list[Check], wanted: list[Arrays], found: list[Arrays], tried: InputSet, exact: ExactNetwork
) -> list[Check]:
    """Return the checks, failed ones judged by the network in float64 and by what rounding explains there."""
    runs = [exact.run(feed) for feed in tried.feeds]
    again = []
    for index, check in enumerate(made):
        if check.passed or not np.isfinite(check.max_rel) or any(run is None for run in runs):
            again.append(check)
            continue
        tally, doubt = Tally(), 0.0
        for run, expected, given in zip(runs, wanted, found, strict=True):
            assert run is not None
            for side in (expected, given):
                tally.add(run[0][index], side[index])
            doubt = max(doubt, run[1][index])
        most = _MOST_EDGE_DOUBT if tried.kind == "edge" else check.tolerance * _MOST_DOUBT
        explained = judged(
            tally.quality(),
            name=f"{check.name} in float64",
            inputs=check.inputs,
            batch_size=check.batch_size,
            output=check.output,
            tolerance=max(check.tolerance, min(doubt, most)),
            min_sqnr_db=None,
        )
        again.append(explained if explained.passed else check)
    return again


def checked_inputs(inputs: Sequence[Tensor], more: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """Return all the user's inputs after comparing their number and shapes without the batch.

    Raises:
        ModelError: Further inputs do not look like the first ones.
    """
    for index, others in enumerate(more):
        shapes = [tuple(tensor.shape[1:]) for tensor in others]
        wanted = [tuple(tensor.shape[1:]) for tensor in inputs]
        if shapes != wanted:
            raise ModelError(f"checks_inputs[{index}] has shapes {shapes} after the batch, the inputs have {wanted}")
    return [inputs, *more]
