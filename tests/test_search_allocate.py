"""Allocation: budgets are met, larger budgets take nothing back, bounds hold, and no other choice costs less."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import ConfigError, ResolveError
from edgeprune.search import Curve, Sensitivity, allocator
from edgeprune.search.allocate import MOST, predicted
from edgeprune.search.curves import rising

losses = st.floats(-0.2, 1.0)
points = st.lists(st.tuples(st.sampled_from([0.125, 0.25, 0.5, 0.75]), losses), min_size=1, max_size=6)


@st.composite
def curves(draw: st.DrawFn, least: int = 1) -> list[Curve]:
    count = draw(st.integers(least, 5))
    return [
        Curve(names=(f"g{index}",), units=draw(st.integers(2, 64)), measured=tuple(draw(points)))
        for index in range(count)
    ]


@given(measured=st.lists(st.tuples(st.floats(-1, 2), st.one_of(losses, st.just(math.nan))), max_size=8))
def test_a_curve_starts_at_nothing_and_never_falls(measured: list[tuple[float, float]]) -> None:
    found = rising(measured)
    assert found[0] == (0.0, 0.0)
    for before, after in itertools.pairwise(found):
        assert before[0] < after[0] < 1
        assert before[1] <= after[1]


@given(curve=curves(), first=st.floats(0, 0.999), second=st.floats(0, 0.999))
def test_a_loss_between_points_is_monotone_and_meets_them(curve: list[Curve], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert curve[0].loss(low) <= curve[0].loss(high) + 1e-12
    for ratio, loss in curve[0].points:
        assert curve[0].loss(ratio) == pytest.approx(loss)


@given(curve=curves())
def test_corners_are_convex_and_lie_below_the_points(curve: list[Curve]) -> None:
    corners = curve[0].corners
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(corners)]
    assert slopes == sorted(slopes)
    assert set(corners) <= set(curve[0].points)
    assert {corners[0], corners[-1]} == {curve[0].points[0], curve[0].points[-1]}


@given(found=curves(), share=st.floats(0, 1))
@settings(max_examples=200)
def test_the_budget_is_met_exactly_and_ratios_stay_in_bounds(found: list[Curve], share: float) -> None:
    freed = [float(curve.units) for curve in found]
    ratios = allocator(found, freed)(share)
    assert set(ratios) == {curve.names[0] for curve in found}
    assert all(0 <= ratio <= MOST for ratio in ratios.values())
    reached = sum(ratios[curve.names[0]] * units for curve, units in zip(found, freed, strict=True))
    assert reached == pytest.approx(min(share, MOST) * sum(freed))


@given(found=curves(), first=st.floats(0, 1), second=st.floats(0, 1))
@settings(max_examples=200)
def test_a_larger_budget_takes_nothing_back(found: list[Curve], first: float, second: float) -> None:
    allocate = allocator(found, [float(curve.units) for curve in found])
    low, high = (allocate(share) for share in sorted((first, second)))
    assert all(low[name] <= high[name] + 1e-12 for name in low)


@given(found=curves(least=2), share=st.floats(0.01, 0.7), data=st.data())
@settings(max_examples=200)
def test_no_exchange_between_groups_costs_less(found: list[Curve], share: float, data: st.DataObject) -> None:
    """On convex curves the sum is least: moving some of the budget from one group to another never helps."""
    convex = [Curve(names=curve.names, units=curve.units, measured=curve.corners[1:]) for curve in found]
    freed = [float(curve.units) for curve in convex]
    ratios = allocator(convex, freed)(share)
    tops = [curve.corners[-1][0] for curve in convex]
    if any(ratios[curve.names[0]] > top for curve, top in zip(convex, tops, strict=True)):
        return  # beyond what was measured nothing is claimed
    give, take = data.draw(st.permutations(range(len(convex))))[:2]
    most = min(ratios[f"g{give}"] * freed[give], (tops[take] - ratios[f"g{take}"]) * freed[take])
    moved = data.draw(st.floats(0, max(most, 0.0)))
    other = dict(ratios)
    other[f"g{give}"] -= moved / freed[give]
    other[f"g{take}"] += moved / freed[take]
    assert predicted(convex, ratios) <= predicted(convex, other) + 1e-9


def test_what_costs_nothing_goes_first_and_what_is_unknown_last() -> None:
    cheap = Curve(names=("a", "b"), units=10, measured=((0.5, 0.0),))
    dear = Curve(names=("c",), units=20, measured=((0.25, 0.1), (0.5, 0.9)))
    unknown = Curve(names=("d",), units=20)
    allocate = allocator([cheap, dear, unknown], [20.0, 20.0, 20.0], total=40.0)
    assert allocate(0.25) == {"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0}
    assert allocate(0.375) == {"a": 0.5, "b": 0.5, "c": 0.25, "d": 0.0}
    assert allocate(0.5) == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.0}
    beyond = allocate(0.75)
    assert beyond["a"] == beyond["c"] == pytest.approx(0.75)
    assert beyond["d"] == 0.0


def _sensitivity(**changes: object) -> Sensitivity:
    point = {"ratio": 0.5, "removed": 0.5, "kept": 16, "value": 0.8, "loss": 0.1, "failed": None}
    row = {"names": ["conv1"], "units": 32, "channels": 32, "macs_share": 0.5, "points": [point], "note": None}
    values = {"network": "Net", "metric": "top1", "source": "evaluate", "dense": 0.9, "reconstructed": False}
    return Sensitivity(**values | {"groups": (row,)} | changes)  # type: ignore[arg-type]


def test_a_sensitivity_survives_the_trip_through_json(tmp_path) -> None:
    import json

    (tmp_path / "sensitivity.json").write_text(json.dumps(_sensitivity().as_dict()))
    assert Sensitivity.load(tmp_path) == Sensitivity.load(tmp_path / "sensitivity.json") == _sensitivity()
    assert _sensitivity().curves == (Curve(names=("conv1",), units=32, measured=((0.5, 0.1),)),)


@pytest.mark.parametrize(
    ("text", "error", "what"),
    [
        (None, ResolveError, "cannot read sensitivity"),
        ("{", ConfigError, "is not JSON"),
        ("{}", ConfigError, "is not a sensitivity: KeyError"),
        ('{"schema_version": 9}', ConfigError, "has schema_version 9"),
        ("[1]", ConfigError, "is not a sensitivity: TypeError"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, text: str | None, error: type[Exception], what: str) -> None:
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=what):
        Sensitivity.load(path)


def test_a_sensitivity_of_another_network_is_refused() -> None:
    found = _sensitivity()
    found.check_fits({"conv1": 32, "conv2": 8})
    found.check_fits({"conv2": 8}, gone=True)
    with pytest.raises(ConfigError, match="another network \\(Net\\): there is no group 'conv1'"):
        found.check_fits({"conv2": 8})
    with pytest.raises(ConfigError, match="'conv1' had 32 units, here 16"):
        found.check_fits({"conv1": 16}, gone=True)
