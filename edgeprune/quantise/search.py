"""The int8 form of a float32 file that loses least: which ranges, and which operators stay in float32.

Owns the search. What a form costs is the energy of its error, which nearly adds up over operators: so what each part
costs is measured with that part alone on integers, the dearest parts stay in float32, and how many must is found by
bisection, on the real file. Knows neither formats nor runtimes: a `FloatFile` writes, and a function measures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeprune.errors import ExportError, ModelError
from edgeprune.quantise.files import Feeds, FloatFile, Operator
from edgeprune.quantise.ranges import Histogram, Interval, Method, interval
from edgeprune.values import Json

_LOG = logging.getLogger(__name__)
Measure = Callable[[bytes], float]
Progress = Callable[[str, int, int], None]
Accept = Callable[[float, bytes], bool]
Ranges = Mapping[str, Interval]
MOST_PIECES, BIG_BYTES, MOST_PIECES_OF_BIG = 64, 2**24, 24
# A part whose error is smaller than this share of the whole is not looked into.
_WORTH_SPLITTING = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Operators that go to integers or stay in float32 together, and what they cost.

    `noise` is the energy of the output's error over that of the output, with only these operators on integers.
    """

    name: str
    kind: str
    operators: frozenset[str]
    noise: float

    def as_dict(self) -> Json:
        return {"name": self.name, "kind": self.kind, "operators": len(self.operators), "noise": self.noise}


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """An int8 file and how it was chosen.

    `methods` has the output SQNR in dB of every way to choose ranges that was tried, and `equalised` whether the file
    comes from the equalised network. `floats` are the operators that stay in float32. `ranking` lists the parts, the
    dearest first, where any had to stay in float32; the first `kept` of them did.
    """

    content: bytes = field(repr=False)
    ranges: Mapping[str, Interval] = field(repr=False)
    method: Method
    methods: dict[str, float]
    sqnr_db: float
    equalised: bool = False
    floats: frozenset[str] = frozenset()
    ranking: tuple[Part, ...] = ()
    kept: int = 0

    def as_dict(self) -> Json:
        return {
            "method": self.method,
            "methods": dict(self.methods),
            "sqnr_db": self.sqnr_db,
            "equalised": self.equalised,
            "ranking": [part.as_dict() for part in self.ranking],
            "kept": self.kept,
            "floats": sorted(self.floats),
        }


def histograms(file: FloatFile, samples: Iterable[Feeds], on_progress: Progress, total: int) -> dict[str, Histogram]:
    """Return the counts of every float tensor's values, after streaming the samples through the file.

    Raises:
        ModelError: A tensor holds NaN on a sample.
    """
    found: dict[str, Histogram] = {}

    def take(name: str, array: np.ndarray) -> None:
        found.setdefault(name, Histogram()).add(array)

    def told() -> Iterator[Feeds]:
        for done, sample in enumerate(samples, 1):
            yield sample
            on_progress("calibrating", done, max(total, done))

    file.watch(told(), take)
    for name, histogram in found.items():
        if histogram.not_numbers:
            raise ModelError(
                f"tensor '{name}' is not a number for {histogram.not_numbers} values of the calibration samples",
                fix="look for NaN in calibration_data() and in the weights",
            )
    return found


def with_best_ranges(
    file: FloatFile,
    counts: Mapping[str, Histogram],
    measure: Measure,
    *,
    methods: Sequence[Method],
    percentile: float,
    on_progress: Progress,
) -> Int8:
    """Return a file with all operators on integers, with the ranges whose output is nearest to the network's.

    Args:
        counts: From `histograms`.
        measure: The output SQNR in dB of a file's content.
    """
    found: dict[str, float] = {}
    best: Int8 | None = None
    for done, method in enumerate(methods, 1):
        ranges = {name: interval(counted, method, percentile) for name, counted in counts.items()}
        content = file.quantise(ranges, frozenset())
        found[method] = measure(content)
        if best is None or found[method] > best.sqnr_db:
            best = Int8(content=content, ranges=ranges, method=method, methods=found, sqnr_db=found[method])
        on_progress("choosing ranges", done, len(methods))
    assert best is not None
    return best


def unworkable(file: FloatFile, ranges: Ranges, works: Callable[[bytes], bool]) -> frozenset[str]:
    """Return the operators that the format's quantiser cannot write, or writes so that no runtime opens the file.

    Args:
        works: Whether a runtime opens a file of this content.
    """
    operators = file.operators()
    every = frozenset(operator.name for operator in operators)

    def good(names: frozenset[str]) -> bool:
        try:
            return works(file.quantise(ranges, every - names))
        except ExportError as error:
            _LOG.info("without %d operators: %s", len(every - names), error)
            return False

    if good(every):
        return frozenset()
    bad = [part for part in _by_kind(operators) if not good(part.operators)]
    return frozenset(name for part in bad for name in part.operators if not good(frozenset([name])))


def rank(file: FloatFile, ranges: Ranges, measure: Measure, on_progress: Progress) -> tuple[Part, ...]:
    """Return the parts of a file, the dearest first: kinds of operators, single ones where a kind costs much."""
    operators = file.operators()
    every = frozenset(operator.name for operator in operators)
    floats = file.quantise(ranges, every)
    floor = _noise(measure(floats))
    most = MOST_PIECES if len(floats) < BIG_BYTES else MOST_PIECES_OF_BIG

    def alone(part: Part) -> Part:
        noise = _noise(measure(file.quantise(ranges, every - part.operators)))
        return Part(name=part.name, kind=part.kind, operators=part.operators, noise=max(noise - floor, 0.0))

    kinds = []
    groups = _by_kind(operators)
    for done, part in enumerate(groups, 1):
        kinds.append(alone(part))
        on_progress("ranking kinds of operators", done, len(groups))
    total = sum(part.noise for part in kinds)
    dear = [part for part in kinds if len(part.operators) > 1 and part.noise > _WORTH_SPLITTING * total]
    pieces = [piece for part in dear for piece in _pieces(part, operators, round(most * part.noise / total))]
    single = []
    for done, piece in enumerate(pieces, 1):
        single.append(alone(piece))
        on_progress("ranking operators", done, len(pieces))
    parts = [part for part in kinds if part not in dear] + single
    return tuple(sorted(parts, key=lambda part: -part.noise))


def mixed(file: FloatFile, whole: Int8, measure: Measure, accept: Accept, on_progress: Progress) -> Int8:
    """Return the file that keeps the fewest of the dearest parts in float32 and is accepted, found by bisection.

    Where even the file with all of them in float32 is not accepted, that one is returned.

    Args:
        whole: The file with all operators on integers.
        accept: Whether a file of this SQNR, with this content, is good enough.
    """
    ranking = rank(file, whole.ranges, measure, on_progress)

    def made(kept: int) -> Int8:
        floats = frozenset(name for part in ranking[:kept] for name in part.operators)
        content = file.quantise(whole.ranges, floats)
        sqnr = measure(content)
        return replace(whole, content=content, sqnr_db=sqnr, floats=floats, ranking=ranking, kept=kept)

    low, high = 0, len(ranking)
    steps = max(high.bit_length(), 1)
    best = made(high)
    if not accept(best.sqnr_db, best.content):
        return best
    for step in range(1, steps + 1):
        on_progress("mixing precisions", step, steps)
        if high - low <= 1:
            break
        found = made((low + high) // 2)
        if accept(found.sqnr_db, found.content):
            high, best = found.kept, found
        else:
            low = found.kept
    return best


def _noise(sqnr_db: float) -> float:
    return float(10.0 ** (-sqnr_db / 10.0))


def _by_kind(operators: Sequence[Operator]) -> list[Part]:
    kinds: dict[str, list[str]] = {}
    for operator in operators:
        kinds.setdefault(operator.kind, []).append(operator.name)
    return [Part(name=kind, kind=kind, operators=frozenset(names), noise=0.0) for kind, names in kinds.items()]


def _pieces(part: Part, operators: Sequence[Operator], most: int) -> list[Part]:
    """Return a part's operators one by one, or in runs of neighbours where there are too many."""
    names = [operator.name for operator in operators if operator.name in part.operators]
    size = -(-len(names) // max(most, 2))
    runs = [names[start : start + size] for start in range(0, len(names), size)]
    return [
        Part(
            name=run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}",
            kind=part.kind,
            operators=frozenset(run),
            noise=0.0,
        )
        for run in runs
    ]
