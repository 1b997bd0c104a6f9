"""One group after the other, on made-up networks: order, allowances, rollbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from edgeprune.search.layerwise import Measured, Trial, one_by_one


class Made:
    """A network whose loss is the sum of what its groups cost, by ratio; rounding is to a grain."""

    def __init__(self, costs: Mapping[str, float], grain: float = 0.0, failing: frozenset[str] = frozenset()) -> None:
        self.costs, self.grain, self.failing = costs, grain, failing
        self.calls: list[dict[str, float]] = []

    def measure(self, ratios: Mapping[str, float]) -> Measured:
        self.calls.append(dict(ratios))
        real = {n: math.floor(r / self.grain) * self.grain if self.grain else r for n, r in ratios.items()}
        plan = ",".join(f"{name}={ratio:.9f}" for name, ratio in sorted(real.items()) if ratio)
        failed = any(real.get(name, 0.0) for name in self.failing)
        loss = math.inf if failed else sum(self.costs[name] * ratio for name, ratio in real.items())
        return Measured(plan=plan, loss=loss)


def _states(trials: list[Trial]) -> list[tuple[str, float, str]]:
    return [(trial.names[0], trial.ratio, trial.state) for trial in trials]


def test_what_costs_too_much_is_rolled_back_and_half_of_it_tried() -> None:
    made = Made({"a": 0.01, "b": 0.03, "c": 1.0})
    kept, trials = one_by_one([("a",), ("b",), ("c",)], 0.5, allowance=0.01, halvings=1, measure=made.measure)
    assert kept == {"a": 0.5, "b": 0.25}
    assert _states(trials) == [
        ("a", 0.5, "kept"),
        ("b", 0.5, "rolled back"),
        ("b", 0.25, "kept"),
        ("c", 0.5, "rolled back"),
        ("c", 0.25, "rolled back"),
    ]
    assert made.calls[-1] == {"a": 0.5, "b": 0.25, "c": 0.25}


def test_linked_groups_go_together_and_rounding_is_seen() -> None:
    made = Made({"a": 0.0, "b": 0.0, "c": 1.0}, grain=0.25)
    kept, trials = one_by_one([("a", "b"), ("c",)], 0.3, allowance=0.01, halvings=2, measure=made.measure)
    assert kept == {"a": 0.3, "b": 0.3}
    assert _states(trials) == [("a", 0.3, "kept"), ("c", 0.3, "rolled back"), ("c", 0.15, "unchanged")]


def test_a_network_that_fails_is_rolled_back_without_a_number() -> None:
    made = Made({"a": 0.0, "b": 0.0}, failing=frozenset({"a"}))
    kept, trials = one_by_one([("a",), ("b",)], 0.5, allowance=1.0, halvings=0, measure=made.measure)
    assert kept == {"b": 0.5}
    assert (trials[0].state, trials[0].loss, trials[0].cost) == ("rolled back", None, None)


@given(
    costs=st.lists(st.floats(-0.05, 0.5), min_size=1, max_size=8),
    ratio=st.floats(0.05, 0.95),
    allowance=st.floats(0, 0.2),
    halvings=st.integers(0, 3),
    grain=st.sampled_from([0.0, 0.125]),
)
def test_no_group_costs_more_than_its_allowance(
    costs: list[float], ratio: float, allowance: float, halvings: int, grain: float
) -> None:
    made = Made({f"g{index}": cost for index, cost in enumerate(costs)}, grain)
    order = [(f"g{index}",) for index in range(len(costs))]
    kept, trials = one_by_one(order, ratio, allowance=allowance, halvings=halvings, measure=made.measure)
    assert made.measure(kept).loss <= allowance * len(costs) + 1e-9
    assert len(trials) <= len(costs) * (halvings + 1)
    assert list(dict.fromkeys(trial.names for trial in trials)) == order
    for trial in trials:
        assert trial.state != "kept" or (trial.cost is not None and trial.cost <= allowance + 1e-9)
        assert trial.ratio in [ratio / 2**count for count in range(halvings + 1)]
    for name, value in kept.items():
        assert any(trial.state == "kept" and trial.names == (name,) and trial.ratio == value for trial in trials)
