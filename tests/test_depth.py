"""A network without some of its blocks equals the dense one with these blocks zeroed, alone and with fewer channels."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeprune as ep
from edgeprune.compact import analyse, apply, rebuild, remove_blocks
from edgeprune.compact.depth import Skip, removable
from edgeprune.compact.plans import check_fits
from edgeprune.config import PruneConfig, RunConfig, validate
from edgeprune.errors import ConfigError, ModelError, NothingToPrune, VerificationError
from edgeprune.graph.cost import count_macs, count_params
from edgeprune.graph.structure import output_tensors
from edgeprune.pipeline import folders, planning, steps
from edgeprune.pipeline.compress import compress
from edgeprune.pruning import PrunePlan
from edgeprune.report.commands import inspect_text, prune_text
from edgeprune.report.stages import stage_text
from edgeprune.workload import as_inputs
from tests.residual_networks import (
    Attention,
    Inverted,
    Residual,
    Tuples,
    batch_norm,
    random_stack,
    residual_mlp,
    resnet,
)
from tests.zoo.classics import ResNetBasic

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def zeroed(model: nn.Module, *names: str) -> nn.Module:
    """The reference, made without the code under test."""
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name in names:
            for parameter in copied.get_submodule(name).parameters():
                parameter.zero_()
    return copied


def outputs(model: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return output_tensors(model(*(tensor.clone() for tensor in inputs)))


def assert_equal(first: nn.Module, second: nn.Module, *inputs: torch.Tensor) -> None:
    for one, other in zip(outputs(first, *inputs), outputs(second, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def mobile() -> nn.Sequential:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), Inverted(4, 4), Inverted(4, 6, 2), Inverted(6, 6), Inverted(6, 6), *head)


def transformer() -> nn.Sequential:
    return nn.Sequential(*(Attention(8) for _ in range(3)), nn.LayerNorm(8), nn.Linear(8, 3))


CASES = {
    "residual mlp": (residual_mlp, ROWS, ("1.0", "1.2")),
    "resnet": (resnet, IMAGES, ("2.1", "3.1")),
    "first block": (resnet, IMAGES, ("2.0",)),
    "mobile": (mobile, IMAGES, ("1", "3", "4")),
    "transformer": (transformer, TOKENS, ("0", "2")),
    "tuples and keywords": (Tuples, torch.randn(3, 4), ("blocks.1", "blocks.2")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_blocks_equals_the_one_with_zeros(name: str) -> None:
    make, tensor, names = CASES[name]
    model, inputs = make().double().eval(), (tensor.double(),)
    before = copy.deepcopy(model.state_dict())
    small = remove_blocks(model, names, inputs)
    assert all(isinstance(small.get_submodule(path), Skip) for path in names)
    more = torch.cat([tensor.double() * 2 + 0.1, inputs[0]])
    assert_equal(small, zeroed(model, *names), *inputs)
    assert_equal(small, zeroed(model, *names), more)
    gone = tuple(f"{path}." for path in names)
    assert list(small.state_dict()) == [key for key in before if not key.startswith(gone)]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_any_blocks_of_any_stack_can_go(seed: int) -> None:
    model, names = random_stack(seed)
    inputs = (torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),)
    blocks = [block.name for block in removable(model, inputs)]
    assert blocks == names
    draw = Random(seed)
    chosen = [name for name in blocks if draw.random() < 0.6]
    small = remove_blocks(model, chosen, inputs)
    assert_equal(small, zeroed(model, *chosen), *inputs)
    assert_equal(small, zeroed(model, *chosen), -inputs[0])
    assert count_params(small) == count_params(model) - sum(count_params(model.get_submodule(name)) for name in chosen)


class Kept(nn.Module):
    """Keeps the input of a block for later and writes into what the block returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 8), Residual(nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        kept = self.stem(x).relu()
        return self.head(self.block(kept).view(-1, 7, 8).mul_(2) + kept)


def test_a_block_whose_result_is_written_into_leaves_a_copy() -> None:
    model = Kept().double().eval()
    small = remove_blocks(model, ["block"], (TOKENS.double(),))
    assert_equal(small, zeroed(model, "block"), TOKENS.double())
    small.train()(TOKENS.double()).sum().backward()  # a relu whose result is changed later could not go back
    assert small.stem.weight.grad is not None


def test_blocks_of_which_nothing_else_is_written_into_leave_no_copy() -> None:
    small = remove_blocks(residual_mlp().eval(), ["1.1"], (ROWS,))
    tensor = torch.ones(2, 8)
    assert small[1][1](tensor) is tensor
    assert "removed: ResidualLinear" in str(small)


def test_modes_are_those_of_the_network() -> None:
    model = resnet().train()
    model[2].eval()
    small = remove_blocks(model, ["3.1"], (IMAGES,))
    assert {path: module.training for path, module in small.named_modules()} == {
        path: module.training for path, module in model.named_modules() if not path.startswith("3.1.")
    }


def test_a_call_with_other_arguments_is_refused() -> None:
    small = remove_blocks(Tuples().eval(), ["blocks.0"], (torch.randn(3, 4),))
    with pytest.raises(TypeError, match="Block was removed; call what is left with the same arguments"):
        small.blocks[0](torch.randn(3, 6))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["9.9"], "the plan removes block '9.9', which does not exist in this network"),
        (["3.0"], "the plan removes block '3.0', which does not become the identity"),
        ([""], "the plan removes block '', which does not become the identity"),
        (["2", "2.1"], "the plan removes block '2.1' and one that it lies in"),
    ],
)
def test_what_is_no_block_is_a_config_error(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        remove_blocks(resnet().eval(), names, (IMAGES,))
    assert message in caught.value.message


class Hidden(nn.Module):
    """Runs a block that stays reachable beside the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Residual(nn.Linear(8, 8)), nn.Linear(8, 3)
        self.hidden = [self.block]

    def forward(self, x):
        return self.head(self.hidden[0](x))


class Reader(Hidden):
    def forward(self, x):
        return self.head(self.block(x)) * self.block.body.out_features


def test_a_removal_that_changes_nothing_or_breaks_the_code_is_told() -> None:
    with pytest.raises(VerificationError, match="differs from the dense one with these blocks zeroed on output 0"):
        remove_blocks(Hidden().eval(), ["block"], (TOKENS,))
    with pytest.raises(ModelError, match="cannot run: AttributeError") as caught:
        remove_blocks(Reader().eval(), ["block"], (TOKENS,))
    assert caught.value.where is not None
    assert "test_depth.py" in caught.value.where
    assert [block.pinned is None for block in removable(Reader().eval(), (TOKENS,))] == [False]


def test_check_fits_names_an_unknown_block() -> None:
    model = resnet().eval()
    plan = PrunePlan(network="Net", groups={}, inputs=(), settings={}, blocks=("4.1",))
    with pytest.raises(ConfigError, match=r"block '4\.1', which does not exist"):
        check_fits(analyse(model, (IMAGES,)), plan)
    with pytest.raises(ConfigError, match=r"block '4\.1', which does not exist"):
        apply(model, plan, (IMAGES,))


def test_width_and_depth_in_one_plan(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = ResNetBasic().eval()
    inputs = (torch.randn(2, 3, 32, 32),)
    plan = ep.plan(model, inputs, ratio=0.5, align=4, depth=0.7)
    assert len(plan.blocks) == 2
    assert "layer2.1" in plan.blocks
    assert not any(name.startswith(plan.blocks) for name in plan.groups)
    plan.save(tmp_path / "plan.json")
    loaded = PrunePlan.load(tmp_path / "plan.json")
    assert (loaded, loaded.digest) == (plan, plan.digest)
    compacted = apply(model, plan, inputs)
    small = compacted.model
    assert compacted.check.passed
    assert compacted.mode == "eager"
    assert count_macs(small, inputs) < 0.4 * count_macs(model, inputs)
    again = rebuild(model, loaded, small.state_dict(), inputs)
    assert all(
        torch.equal(one, other) for one, other in zip(outputs(small, *inputs), outputs(again, *inputs), strict=True)
    )
    artifact = ep.export(small, inputs, tmp_path / "small.onnx")
    assert artifact.size_bytes < 4.2 * count_params(small) + 20_000
    before = small.fc.weight.clone()
    trained = ep.finetune(
        small,
        data=[(inputs[0], torch.tensor([1, 2]))],
        step=lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]),
        epochs=1,
    )
    assert not torch.equal(trained.fc.weight, before)


def test_depth_alone_leaves_all_widths() -> None:
    model = resnet().eval()
    plan = ep.plan(model, (IMAGES,), ratio=0, depth=0.5, align=16)
    assert plan.keep == {}
    assert len(plan.blocks) == 2
    assert_equal(ep.apply(model, plan, (IMAGES,)), zeroed(model, *plan.blocks), IMAGES)


def test_a_macs_budget_is_a_share_of_the_dense_network() -> None:
    model = residual_mlp(6, 16).eval()
    dense = count_macs(model, (ROWS,))
    plan = ep.plan(model, (ROWS,), max_macs="0.5x", depth=0.34, align=1)
    small = ep.apply(model, plan, (ROWS,))
    assert len(plan.blocks) == 2
    assert plan.keep
    assert 0.4 * dense < count_macs(small, (ROWS,)) <= 0.5 * dense
    met = ep.plan(model, (ROWS,), max_macs="0.9x", depth=0.34, align=1)
    assert len(met.blocks) == 2
    assert met.keep == {}


def test_kept_blocks_stay_and_patterns_must_match_something() -> None:
    model = resnet().eval()
    plan = ep.plan(model, (IMAGES,), ratio=0, depth=0.99, keep=["3.1", "2.0"])
    assert plan.blocks == ("2.1",)
    with pytest.raises(ConfigError, match="keep = 'nothing' matches no group or tensor"):
        ep.plan(model, (IMAGES,), ratio=0.5, depth=0.99, keep=["nothing"])
    with pytest.raises(NothingToPrune, match="removes none of 0 blocks") as caught:
        ep.plan(model, (IMAGES,), ratio=0, depth=0.99, keep=["[23].?"])
    assert caught.value.fix is not None
    assert "3.1: kept by '[23].?'" in caught.value.fix


def test_influence_is_measured_on_the_data_where_there_is_some() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *(Residual(nn.Linear(4, 4)) for _ in range(3)))
    model.append(nn.Linear(4, 2)).eval()
    inputs, config = (torch.randn(2, 4),), PruneConfig(depth=0.5)
    _, examples = planning.weighed(model, inputs, config, None)
    _, batches = planning.weighed(model, inputs, config, [(torch.randn(50, 4) * 9, torch.zeros(50))])
    _, named = planning.weighed(model, inputs, config, [{"x": inputs[0]}])
    assert batches != examples
    assert named == examples


WORKLOAD = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())

def model():
    return nn.Sequential(nn.Linear(4, 16), *(Block() for _ in range(4)), nn.Linear(16, 2))

def inputs():
    return (torch.randn(2, 4),)

def train_data():
    return [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]

def train_step(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def test_a_folder_of_a_network_without_blocks_is_opened_again(tmp_path: Path) -> None:
    source = tmp_path / "workload.py"
    source.write_text(WORKLOAD)
    data = {"workload": str(source), "output": str(tmp_path / "small"), "prune": {"depth": 0.5, "align": 4}}
    events = []
    done = steps.prune(validate(data), None, listen=events.append)
    gone = [row["name"] for row in done["blocks"] if row["removed"]]
    assert len(done["blocks"]) == 4
    assert len(gone) == 2
    assert json.loads((tmp_path / "small/plan.json").read_text())["blocks"] == gone
    assert f"removed whole: {', '.join(gone)}" in prune_text(done)
    facts = next(event.facts for event in events if event.state == "done")
    assert stage_text("plan", facts).startswith(f"without {', '.join(gone)}; 3 of 4 groups")
    loaded = folders.open_pruned(tmp_path / "small")
    assert loaded.plan is not None
    assert list(loaded.plan.blocks) == gone
    assert_equal(loaded.model, apply(loaded.dense, loaded.plan, loaded.inputs).model, *loaded.inputs)
    again = steps.prune(
        validate(data | {"output": str(tmp_path / "again")}), str(tmp_path / "small/plan.json"), listen=events.append
    )
    assert again["plan_digest"] == done["plan_digest"]
    assert [row["name"] for row in again["blocks"]] == gone
    tuned = steps.finetune(str(tmp_path / "small"), RunConfig(), listen=events.append)
    assert tuned["history"]


def test_a_run_says_which_blocks_went(tmp_path: Path) -> None:
    source = tmp_path / "workload.py"
    source.write_text(WORKLOAD)
    bench = {"processes": 1, "min_runs": 5, "min_seconds": 0.01, "max_seconds": 0.5, "warmup_seconds": 0.0}
    data = {"workload": str(source), "output": str(tmp_path / "run"), "bench": bench}
    data |= {"prune": {"depth": 0.99, "align": 4}, "export": {"formats": ["onnx"]}, "finetune": {"epochs": 1}}
    result = compress(validate(data)).data
    gone = [row["name"] for row in result["blocks"] if row["removed"]]
    assert len(gone) == 3
    assert PrunePlan.load(tmp_path / "run/plan.json").blocks == tuple(gone)
    notice = next(notice for notice in result["notices"] if notice["code"] == "rounded")
    assert notice["text"].startswith("depth 0.99 became 3 of 4 blocks")
    told = f"3 of 4 residual blocks were removed whole: {', '.join(gone)}."
    assert told in (tmp_path / "run/report.html").read_text()


def test_inspect_lists_the_blocks(tmp_path: Path) -> None:
    source = tmp_path / "workload.py"
    source.write_text(WORKLOAD)
    found = steps.inspect(validate({"workload": str(source), "prune": {"keep": ["1"]}}))
    assert [row["name"] for row in found["blocks"]] == ["1", "2", "3", "4"]
    shares = [row["params"] / found["network"]["params"] for row in found["blocks"]]
    assert sum(row["macs_share"] for row in found["blocks"]) == pytest.approx(1 - (4 * 16 + 16 * 2) / (4 * 1024 + 96))
    lines = inspect_text(found, 120).splitlines()
    row = next(line for line in lines if line.split()[:1] == ["2"])
    assert f"{100 * shares[1]:.1f}%" in row
    assert row.endswith("yes")
    assert any("no   kept by '1'" in line for line in lines)
    assert "4 blocks, 3 removable (prune.depth)" in lines


def test_a_batch_norm_without_parameters_is_a_constant_branch() -> None:
    branch = nn.Sequential(nn.Conv2d(3, 3, 1), batch_norm(3))
    plain = nn.BatchNorm2d(3, affine=False)
    plain.running_mean = torch.ones(3)
    offset = nn.Sequential(nn.Conv2d(3, 3, 1), plain)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Residual(branch), Residual(offset), nn.Conv2d(3, 1, 1)).eval()
    assert [block.name for block in removable(model, (IMAGES,))] == ["1"]


def test_a_network_whose_data_decide_on_the_path_has_no_blocks() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu()
            return self.last(hidden if mask.all() else hidden * mask)

    rows = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    examples = as_inputs([(rows, torch.ones(2, 1)), (rows, torch.zeros(2, 1))])
    assert removable(Branching().eval(), examples) == ()
