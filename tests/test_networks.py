"""Samples of the user's data on which files are compared with the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from edgeprune.pipeline.networks import SAMPLES, true_samples
from edgeprune.workload import load_workload
from tests.test_cli import SHORT, Run, run  # noqa: F401
from tests.workloads import tiny


def test_samples_are_the_first_of_the_data_and_look_like_the_inputs() -> None:
    workload = load_workload("tests.workloads.tiny")
    ((found,),) = true_samples(workload, tiny.inputs())
    source = tiny.test_data if workload.test_data is not None else tiny.train_data
    assert torch.equal(found, next(iter(source()))[0][:SAMPLES])
    assert true_samples(workload, (torch.zeros(1, 1, 3, 3),)) == []
    assert true_samples(workload, (torch.zeros(1, dtype=torch.int64),)) == []
    bare = replace(workload, test_data=None, calibration_data=None, train_data=None)
    assert true_samples(bare, tiny.inputs()) == []


def test_compress_compares_its_files_on_them(run: Run) -> None:  # noqa: F811
    done = run("compress", "tiny.py", *SHORT, "-o", "run")
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    for row in result["artifacts"]:
        assert sum(check["inputs"] == "user inputs" for check in row["checks"]) == 2
