"""The engine zoo's runner, judge and table, on networks that need no other library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.zoo.__main__ import read_rows, run_worker, say
from benchmarks.zoo.entry import Network, Tokens
from benchmarks.zoo.judge import judge
from benchmarks.zoo.networks import all_networks, find
from benchmarks.zoo.own_networks import TABLE
from benchmarks.zoo.randomise import randomise_
from benchmarks.zoo.reach import held_by_outputs, reached, share, share_inside
from benchmarks.zoo.table import latest, outcome, table
from benchmarks.zoo.torch_pruning_tool import output_layers
from benchmarks.zoo.trained import trained_difference
from benchmarks.zoo.worker import empty_row, make_row, missing
from edgeprune.graph import trace

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["own/channels_last", "own/rotary_groups"])
def test_a_row_says_that_edgeprune_is_exact_and_how_it_was_found_out(name):
    shown = []
    row = make_row(find(name), "edgeprune", shown.append)
    assert row["exact"]
    assert row["independent"]
    assert not row["silent_wrong"]
    assert row["max_rel"] < 1e-9  # float64 leaves no doubt
    assert row["effect"] > 0.05
    assert row["signal"] > 0.05
    assert row["trains"]
    assert row["params"][1] < 0.6 * row["params"][0]
    assert row["reach_inside"] >= row["reach_params"] > 0.9
    assert row["macs"][1] < 0.6 * row["macs"][0]
    assert row["cpu_s"]["total"] > 0
    assert row["error"] is None
    assert len(shown) == 3
    json.dumps(row)


def test_a_worker_is_a_process_of_its_own_and_its_row_has_every_field():
    empty = empty_row(find("own/mixture"), "edgeprune")
    row = run_worker("own/mixture", "edgeprune", 60, empty)
    assert row["exact"]
    assert set(empty) <= set(row)
    assert row["peak_mb"][1] >= row["peak_mb"][0] > 0
    assert "exact" in say(row)


def test_a_worker_that_uses_up_its_seconds_leaves_what_was_known():
    empty = empty_row(find("own/mixture"), "edgeprune")
    row = run_worker("own/mixture", "edgeprune", 0, empty)
    assert row["timeout"]
    assert not row["exact"]
    assert row["params"][0] > 0
    assert "CPU seconds" in row["error"]


class Chain(nn.Module):
    """Two layers with a norm between."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.sigmoid(self.norm(self.first(x))))


def _cut(model: Chain, keep: torch.Tensor, last: torch.Tensor) -> Chain:
    small = Chain(len(keep))
    with torch.no_grad():
        small.first.weight.copy_(model.first.weight[keep])
        small.first.bias.copy_(model.first.bias[keep])
        small.norm.weight.copy_(model.norm.weight[keep])
        small.norm.bias.copy_(model.norm.bias[keep])
        small.last.weight.copy_(model.last.weight[:, last])
        small.last.bias.copy_(model.last.bias)
    return small


@pytest.mark.parametrize(("columns", "exact"), [((0, 2, 3, 6), True), ((0, 2, 3, 7), False), ((2, 0, 3, 6), False)])
def test_the_judge_tells_a_right_cut_from_one_with_other_columns(columns, exact):
    torch.manual_seed(0)
    model, x = Chain().eval(), torch.randn(5, 4)
    randomise_(model, (x,))
    keep, last = torch.tensor([0, 2, 3, 6]), torch.tensor(columns)
    tensors = ("first.weight", "first.bias", "norm.weight", "norm.bias")
    kept = {**{(name, 0): keep for name in tensors}, ("last.weight", 1): keep}
    verdict = judge(model, _cut(model, keep, last), kept, (x,))
    assert verdict.exact is exact
    assert verdict.effect > 0.05
    assert (verdict.max_rel < 1e-12) is exact


class Frozen(nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.detach(), self.bias)


class Plain(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_step_of_training_shows_whether_weights_are_still_tied(wrong):
    """The wrong one starts equal, but one of its weights no longer learns."""
    torch.manual_seed(0)
    model, x, keep = Plain().eval(), torch.randn(5, 4), torch.tensor([0, 2, 5])
    small = Plain(3).eval()
    with torch.no_grad():
        small.first.weight.copy_(model.first.weight[keep])
        small.first.bias.copy_(model.first.bias[keep])
        small.second.weight.copy_(model.second.weight[keep][:, keep])
        small.second.bias.copy_(model.second.bias[keep])
        small.last.weight.copy_(model.last.weight[:, keep])
        small.last.bias.copy_(model.last.bias)
    if wrong:
        small.second.__class__ = Frozen
    dims = [("first.weight", 0), ("first.bias", 0), ("second.weight", 0), ("second.weight", 1), ("second.bias", 0)]
    kept = dict.fromkeys([*dims, ("last.weight", 1)], keep)
    gap = trained_difference(model, small, kept, (x,))
    assert gap is not None
    assert (gap > 1e-4) is wrong


def test_what_cannot_be_trained_as_a_masked_network_is_not_judged():
    torch.manual_seed(0)
    model, x = Chain().eval(), torch.randn(5, 4)
    keep = torch.tensor([0, 2, 3, 6])
    tensors = ("first.weight", "first.bias", "norm.weight", "norm.bias")
    kept = {**{(name, 0): keep for name in tensors}, ("last.weight", 1): keep}
    assert trained_difference(model, _cut(model, keep, keep), kept, (x,)) is None


def test_the_judge_notices_outputs_of_another_shape():
    model, x = Chain().eval(), torch.randn(5, 4)
    verdict = judge(model, nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), {}, (x,))
    assert not verdict.exact
    assert "(5, 2)" in verdict.reason


def test_the_layers_that_make_the_outputs_are_found():
    model = Chain()
    assert output_layers(model, (torch.randn(5, 4),)) == [model.last]


def test_every_network_of_our_own_answers_to_its_inputs():
    for name, (make, inputs) in TABLE.items():
        network = Network(name=f"own/{name}", library="own", make=make, inputs=inputs)
        model, example = network.build()
        with torch.no_grad():
            assert bool(model(*example).isfinite().all()), name
            assert not torch.allclose(model(*example), model(*network.example(seed=2)), rtol=1e-2), name


def test_networks_have_names_of_their_own_and_are_many():
    names = [network.name for network in all_networks()]
    assert len(set(names)) == len(names) >= 160
    with pytest.raises(KeyError, match="0 networks"):
        find("no_such_network")


def test_the_seed_of_a_network_is_its_own():
    network = Network(name="own/x", library="own", make=Chain, inputs=((2, 4), Tokens(shape=(2, 3), below=5)))
    first, second = network.example(), network.example()
    assert torch.equal(first[0], second[0])
    assert int(first[1].max()) < 5


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules["benchmarks.zoo.worker"].LIBRARIES, "timm", "no-such-package")
    line = missing("timm", ["edgeprune"])
    assert line == "no-such-package is not installed: pip install --no-deps -r benchmarks/zoo/requirements.txt"
    assert missing("own", ["edgeprune"]) is None


def test_the_command_lists_networks_and_prints_a_table(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(_row("a", "edgeprune", exact=True)) + "\n", encoding="utf-8")
    for arguments, expected in ((["--list", "lstm"], "own/lstm_classifier"), (["--table", "-o", str(rows)], "| own |")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.zoo", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


def _row(name: str, tool: str, **fields: object) -> dict[str, object]:
    row = {
        **empty_row(Network(name=f"own/{name}", library="own", make=Chain, inputs=((2, 4),)), "edgeprune"),
        "tool": tool,
        "params": [2_000_000, 500_000],
        "cpu_s": {"trace": 0.1, "plan": 0.1, "compact": 0.1, "verify": 0.0, "total": 0.3},
        "peak_mb": [300.0, 340.0],
        "reach_params": 0.9,
    }
    return {**row, **fields}


def test_the_table_counts_outcomes_and_compares_cost_where_both_are_right():
    rows = [
        _row("a", "edgeprune", exact=False, error="old"),
        _row("a", "edgeprune", exact=True, trains=True),
        _row("a", "torch-pruning", exact=True, cpu_s={"total": 0.6}),
        _row("b", "edgeprune", exact=True, reach_inside=0.95),
        _row("b", "torch-pruning", silent_wrong=True),
        _row("c", "torch-pruning", timeout=True, cpu_s=None, params=None, peak_mb=None, reach_params=None),
    ]
    text = table(rows)
    assert "| all | edgeprune | 2 | 2 | 0 | 0 | 0 | 1 |  | 0.90 | 2 | 0.95 | 1 |" in text
    assert "| all | torch-pruning | 3 | 1 | 1 | 0 | 1 | 0 |  | 0.90 | 1 |  |  |" in text
    assert "Where both tools are right (1 networks)" in text
    assert "| edgeprune | 0.30 | 1 | 0.30 | 0.3 (own/a) | 0.25 | 40 |" in text
    assert "| torch-pruning | 0.60 | 0 | 0.60 | 0.6 (own/a) | 0.25 | 40 |" in text
    assert "| own/b | 2.00 M | exact | 0.90 | 0.95 | 0.25 | 0.30 | 40 | wrong | 0.90 |  | 0.25 | 0.30 | 40 |" in text
    assert "| own/c | | not run" in text.replace("|  |", "| |")
    assert table([]) == "There are no rows yet."


def test_rows_of_before_there_was_a_field_make_a_table():
    old = {key: value for key, value in _row("a", "edgeprune", exact=True).items() if key != "reach_inside"}
    assert "| all | edgeprune | 1 | 1 | 0 | 0 | 0 | 0 |  | 0.90 | 1 |  |  |" in table([old])


class Encoder(nn.Module):
    """Returns its residual stream, which nothing inside may narrow; the branch has a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return x + self.down(torch.relu(self.up(self.norm(x))))


def test_the_reach_inside_leaves_out_what_the_outputs_hold():
    model, inputs = Encoder(), (torch.randn(3, 4),)
    held = held_by_outputs(model, inputs)
    assert held == {"embed.weight", "embed.bias", "norm.weight", "norm.bias", "down.bias"}
    names = reached(trace(model, inputs))
    assert names == {"up.weight", "up.bias", "down.weight"}
    assert share(model, names) == round(272 / 336, 4)
    assert share_inside(model, inputs, names) == 1.0
    assert share_inside(model, inputs, {"up.weight", "embed.weight"}) == round(128 / 272, 4)


def test_what_is_pinned_for_another_reason_stays_in_the_reach_inside():
    class Sorted(Encoder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).sort(-1).values.sum(-1)

    model, inputs = Sorted(), (torch.randn(3, 4),)
    assert held_by_outputs(model, inputs) == set()
    assert share_inside(model, inputs, reached(trace(model, inputs))) == round(272 / 336, 4)
    assert share_inside(model, (torch.randn(3, 5),), ()) is None


def test_a_head_whose_columns_stay_for_another_reason_is_not_inside():
    class Headed(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(super().forward(x).sort(-1).values)

    assert held_by_outputs(Headed(), (torch.randn(3, 4),)) == {"head.bias"}


def test_what_meets_the_inputs_counts_as_held_by_the_outputs():
    model = nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8))
    assert held_by_outputs(model, (torch.tensor([[1, 2, 3]]),)) == {"0.weight", "1.weight", "1.bias"}
    image = nn.Sequential(nn.Conv2d(3, 8, 2), nn.PReLU(8)).eval()
    assert held_by_outputs(image, (torch.randn(1, 3, 4, 4),)) == {"0.weight", "0.bias", "1.weight"}


def test_the_last_row_of_a_network_and_a_tool_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [_row("a", "edgeprune", error="old"), _row("a", "edgeprune", exact=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert outcome(latest(read_rows(path))[("own/a", "edgeprune")]) == "exact"
