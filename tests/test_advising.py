"""`edgeprune advise` as a user meets it: what is seen in a network and its data, and a command that works."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import edgeprune as ep
from edgeprune.compact import analyse
from edgeprune.pipeline.advising import facts_of, family_of, samples_of
from edgeprune.workload import load_workload
from tests.test_cli import Run, _rewrite, run  # noqa: F401
from tests.test_select import Tokens
from tests.workloads import tiny


def _family(model: nn.Module, *shape: int) -> str:
    inputs = (torch.zeros(shape),)
    return family_of(model.eval(), analyse(model, inputs))


def test_families_are_told_by_heads_and_by_where_the_work_is() -> None:
    torch.manual_seed(0)
    assert _family(Tokens(), 2, 5, 6) == "attention"
    assert _family(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), 1, 3, 8, 8) == "convolutional"
    assert _family(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), 2, 8) == "linear"

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.lstm(x)[0].mean(1))

    assert _family(Recurrent(), 2, 6, 8) == "recurrent"


def test_facts_name_the_stream_and_what_the_workload_offers() -> None:
    torch.manual_seed(0)
    model, inputs = Tokens().eval(), (torch.zeros(2, 5, 6),)
    config = ep.RunConfig(max_size="10kB")
    facts = facts_of(model, analyse(model, inputs), load_workload("tests.workloads.tiny"), config)
    assert (facts.stream, facts.labels, facts.inputs, facts.scored) == ("enter", True, True, True)
    assert (facts.max_size, facts.budget, facts.depthwise) == ("10kB", None, False)


def test_samples_are_counted_without_reading_a_sized_source() -> None:
    workload = load_workload("tests.workloads.tiny")
    (first, *_), batches = next(iter(tiny.train_data())), tiny.train_data()
    assert samples_of(workload) == len(batches) * len(first)

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(2, 3)

    def three() -> Iterator[torch.Tensor]:
        yield from (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3))

    assert samples_of(replace(workload, train_data=three)) == 5
    assert samples_of(replace(workload, train_data=endless)) is None
    assert samples_of(replace(workload, train_data=None)) is None


def test_advise_prints_reasons_and_a_command_that_compress_takes(run: Run) -> None:  # noqa: F811
    said = run("advise", "tiny.py", "--max-params", "0.5x")
    assert said.code == 0, said.err
    assert "[benchmarks/results/recovery.md]" in said.out
    command = said.out.rstrip().splitlines()[-1].removeprefix("next: ")
    _, _, *words = shlex.split(command)
    assert "--max-params" in words
    pruned = run("prune", *words, "-o", "small")
    assert pruned.code == 0, pruned.err
    found = json.loads(run("advise", "tiny.py", "--max-params", "0.5x", "--json").out)
    assert found["command"] == command
    assert found["facts"]["budget"] == ["params", "0.5x"]
    assert ep.advise("tiny.py", ep.RunConfig(prune=ep.PruneConfig(max_params="0.5x")))["command"] == command


def test_inspect_ends_with_the_advised_command(run: Run) -> None:  # noqa: F811
    found = json.loads(run("inspect", "tiny.py", "--json").out)
    assert found["advice"]["command"] in run("inspect", "tiny.py").out
    assert all((Path(__file__).parent.parent / one["source"]).is_file() for one in found["advice"]["advice"])


def test_a_budget_that_cannot_be_read_is_an_error(run: Run) -> None:  # noqa: F811
    said = run("advise", "tiny.py", "--max-size", "small")
    assert said.code == 2
    assert "max_size" in said.err
