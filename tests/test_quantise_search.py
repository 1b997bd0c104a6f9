"""The search for the int8 form that loses least, on files whose every operator adds a noise that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import ExportError, ModelError
from edgeprune.quantise.files import Feeds, Operator, Take, Without
from edgeprune.quantise.ranges import Interval
from edgeprune.quantise.search import Int8, histograms, mixed, rank, unworkable, with_best_ranges

RANGES = {"x": Interval(low=-1.0, high=1.0)}


class Fake:
    """A file of named operators with a kind and a noise each; its content says which of them are in float32."""

    def __init__(self, noises: Mapping[str, tuple[str, float]], raising: Sequence[str] = ()) -> None:
        self.noises, self.raising, self.written = noises, raising, 0

    def operators(self) -> tuple[Operator, ...]:
        return tuple(Operator(name=name, kind=kind) for name, (kind, _) in self.noises.items())

    def watch(self, samples: Sequence[Feeds], take: Take) -> None:
        for feeds in samples:
            for name, array in feeds.items():
                take(name, array)

    def quantise(self, ranges: Mapping[str, Interval], floats: frozenset[str]) -> bytes:
        assert floats <= set(self.noises)
        bad = [name for name in self.raising if name not in floats]
        if bad:
            raise ExportError(f"cannot quantise {bad[0]}")
        self.written += 1
        return json.dumps([sorted(floats), ranges["x"].high]).encode()

    def measure(self, content: bytes) -> float:
        floats = set(json.loads(content)[0])
        noise = sum(noise for name, (_, noise) in self.noises.items() if name not in floats)
        return -10 * math.log10(noise + 1e-12)


class Told:
    """Progress that was told: the last count of every step."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        self.steps.setdefault(step, []).append((done, total))

    def ended(self) -> bool:
        return all(
            counts[-1][0] == counts[-1][1] and [done for done, _ in counts] == list(range(1, len(counts) + 1))
            for counts in self.steps.values()
        )


def whole(file: Fake) -> Int8:
    content = file.quantise(RANGES, frozenset())
    return Int8(content=content, ranges=RANGES, method="minmax", methods={}, sqnr_db=file.measure(content))


def named(noises: Sequence[float], kinds: int = 3) -> dict[str, tuple[str, float]]:
    return {f"op{place}": (f"kind{place % kinds}", noise) for place, noise in enumerate(noises)}


NOISES = st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=20)


@settings(deadline=None, max_examples=150)
@given(NOISES, st.integers(1, 4), st.floats(0.0, 90.0))
def test_the_fewest_of_the_dearest_parts_stay_in_float(noises: list[float], kinds: int, wanted: float) -> None:
    file, told = Fake(named(noises, kinds)), Told()
    found = mixed(file, whole(file), file.measure, lambda sqnr, _: sqnr >= wanted, told)
    assert found.sqnr_db >= wanted or found.kept == len(found.ranking)
    assert found.floats == {name for part in found.ranking[: found.kept] for name in part.operators}
    assert json.loads(found.content)[0] == sorted(found.floats)
    assert [part.noise for part in found.ranking] == sorted((part.noise for part in found.ranking), reverse=True)
    # Brute force: no shorter beginning of the ranking is good enough. (Bisection starts from int8 being refused.)
    for kept in range(1, found.kept):
        floats = {name for part in found.ranking[:kept] for name in part.operators}
        assert file.measure(file.quantise(RANGES, frozenset(floats))) < wanted
    assert told.ended()


@settings(deadline=None, max_examples=60)
@given(NOISES, st.integers(1, 4))
def test_the_parts_are_all_operators_once_with_their_own_noise(noises: list[float], kinds: int) -> None:
    file = Fake(named(noises, kinds))
    parts = rank(file, RANGES, file.measure, Told())
    operators = [name for part in parts for name in part.operators]
    assert sorted(operators) == sorted(file.noises)
    for part in parts:
        assert part.noise == pytest.approx(sum(file.noises[name][1] for name in part.operators), rel=1e-6, abs=1e-12)
        assert {file.noises[name][0] for name in part.operators} == {part.kind}


def test_one_dear_operator_of_a_cheap_kind_stays_in_float_alone() -> None:
    noises = {f"conv{place}": ("Conv", 1e-6) for place in range(30)} | {"softmax": ("Softmax", 1e-5)}
    noises["conv17"] = ("Conv", 1.0)
    file, told = Fake(noises), Told()
    found = mixed(file, whole(file), file.measure, lambda sqnr, _: sqnr >= 40, told)
    assert found.floats == {"conv17"}
    assert found.kept == 1
    assert set(told.steps) == {"ranking kinds of operators", "ranking operators", "mixing precisions"}
    assert told.ended()


def test_a_kind_of_many_operators_is_split_into_runs_of_neighbours() -> None:
    file = Fake({f"op{place:03}": ("Conv", 0.001) for place in range(200)})
    parts = rank(file, RANGES, file.measure, Told())
    assert 2 <= len(parts) <= 64
    assert file.written <= 1 + 1 + 64
    for part in parts:
        numbers = sorted(int(name[2:]) for name in part.operators)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert part.name == f"op{numbers[0]:03} to op{numbers[-1]:03}"


def test_a_candidate_needs_the_callers_consent_too() -> None:
    file, asked = Fake(named([0.1, 0.01, 0.001, 0.0001], 4)), list[bytes]()

    def accept(sqnr: float, content: bytes) -> bool:
        asked.append(content)
        return "op2" in json.loads(content)[0]

    found = mixed(file, whole(file), file.measure, accept, Told())
    assert found.floats == {"op0", "op1", "op2"}
    assert found.content in asked


def test_where_nothing_is_good_enough_everything_is_in_float() -> None:
    file = Fake(named([0.1, 0.2, 0.3]))
    found = mixed(file, whole(file), file.measure, lambda sqnr, content: False, Told())
    assert found.floats == set(file.noises)
    assert found.kept == len(found.ranking) == 3


def test_a_file_without_operators_has_nothing_to_mix() -> None:
    file = Fake({})
    found = mixed(file, whole(file), file.measure, lambda sqnr, content: True, Told())
    assert (found.kept, found.ranking, found.floats) == (0, (), frozenset())


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_exactly_the_operators_that_break_a_file_are_found(count: int, kinds: int, data: st.DataObject) -> None:
    noises = named([0.1] * count, kinds)
    some = st.sets(st.sampled_from(sorted(noises)))
    raising, shut = data.draw(some), data.draw(some)
    file = Fake(noises, sorted(raising))
    found = unworkable(file, RANGES, lambda content: shut <= set(json.loads(content)[0]))
    assert found == raising | shut


def test_operators_that_never_have_integers_are_not_offered_and_always_excluded() -> None:
    file = Fake(named([0.1, 0.2, 0.3]), raising=["op1"])
    without = Without(file, frozenset(["op1"]))
    assert [operator.name for operator in without.operators()] == ["op0", "op2"]
    assert json.loads(without.quantise(RANGES, frozenset(["op0"])))[0] == ["op0", "op1"]


def test_the_best_of_the_ways_to_choose_ranges_is_taken_and_all_are_told() -> None:
    samples = [{"x": np.append(np.random.default_rng(seed).normal(size=9000), 50.0)} for seed in range(4)]
    file, told = Fake(named([0.1])), Told()
    counts = histograms(file, samples, told, 4)
    found = with_best_ranges(
        file,
        counts,
        lambda content: -json.loads(content)[1],  # the narrower, the better
        methods=("minmax", "percentile", "mse"),
        percentile=99.0,
        on_progress=told,
    )
    assert set(found.methods) == {"minmax", "percentile", "mse"}
    assert found.method == max(found.methods, key=lambda method: found.methods[method]) != "minmax"
    assert found.methods["minmax"] == -50.0
    assert found.sqnr_db == found.methods[found.method] == -found.ranges["x"].high
    assert json.loads(json.dumps(found.as_dict()))["method"] == found.method
    assert told.ended()
    assert told.steps["calibrating"][-1] == (4, 4)


def test_progress_of_calibration_never_passes_its_total() -> None:
    told = Told()
    samples = [{"x": np.ones(3, np.float32)}] * 5
    histograms(Fake({}), samples, told, 3)
    assert all(done <= total for done, total in told.steps["calibrating"])
    assert told.ended()


def test_a_tensor_that_is_not_a_number_is_named() -> None:
    samples = [{"x": np.array([1.0, math.nan], np.float32)}, {"x": np.array([math.nan], np.float32)}]
    with pytest.raises(ModelError, match=r"'x' is not a number for 2 values"):
        histograms(Fake({}), samples, Told(), 2)
