"""Features: which inner tensors are compared, at which channels, and that training on them is sound."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune as ep
from edgeprune.compact import analyse, grown
from edgeprune.config import validate
from edgeprune.errors import ConfigError, ModelError
from edgeprune.pruning import PrunePlan
from edgeprune.pruning.plan import GroupPlan
from edgeprune.training import features_of, finetune
from edgeprune.training.checkpoint import network_tensors
from edgeprune.training.distill import answers, recorded
from edgeprune.training.features import MOST, Features, digest_features, feature_loss, watched
from tests.training_case import (
    EXAMPLE,
    assert_same_training,
    killed,
    pruned_small_net,
    samples,
    settings,
    small_net,
    train_data,
    train_featured,
    train_step,
)


class Residual(nn.Module):
    """A block with a shortcut; the ReLU writes in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))


class ResidualNet(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*[Residual(8) for _ in range(blocks)])
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Shortcuts(nn.Module):
    """Every layer sees all layers before it, so that nothing is ever narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(9, 8, 3, padding=1)
        self.three, self.last = nn.Conv2d(17, 8, 3, padding=1), nn.Conv2d(25, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.one, self.two, self.three):
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.last(x)


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(20, 16), nn.Dropout(0.5)
        self.layer = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.drop(self.words(tokens)))[0].amax(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.again(torch.tanh(self.again(x)))))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network in evaluation mode whose weights and BatchNorm statistics come from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) * 0.1
                module.running_var = torch.rand(module.num_features) + 0.5
    return model


def chosen(model: nn.Module, inputs: tuple[torch.Tensor, ...], **how: Any) -> tuple[nn.Module, PrunePlan, Features]:
    plan = ep.plan(model, inputs, align=1, **how)
    small = ep.apply(model, plan, inputs)
    return small, plan, features_of(small, model, plan, inputs)


def loss_of(student: nn.Module, teacher: nn.Module, features: Features, *inputs: torch.Tensor) -> torch.Tensor:
    with recorded(student, features) as calls:
        student(*inputs)
    wanted = answers(teacher, calls, features)
    return feature_loss([call.inner for call in calls], [call.inner for call in wanted], features)


def hooks(*models: nn.Module) -> int:
    return sum(len(module._forward_hooks) for model in models for module in model.modules())


def test_the_ends_of_residual_blocks_are_compared() -> None:
    *_, features = chosen(seeded(ResidualNet), EXAMPLE)
    assert [feature.path for feature in features] == ["stem.1", "blocks.0", "blocks.1"]
    assert [list(feature.kept) for feature in features] == [[1], [1], [1]]


def test_layers_are_compared_where_nothing_is_narrow() -> None:
    *_, features = chosen(seeded(Shortcuts), EXAMPLE)
    assert [feature.path for feature in features] == ["one", "two", "three"]


def test_what_is_behind_dropout_is_left_out_and_recurrent_layers_are_compared() -> None:
    *_, features = chosen(seeded(Texts), (torch.zeros(1, 5, dtype=torch.int64),))
    assert [(feature.path, feature.leaf) for feature in features] == [("words", 0), ("layer", 0)]


def test_a_layer_that_runs_twice_is_left_out() -> None:
    *_, features = chosen(seeded(Twice), (torch.zeros(1, 6),))
    assert [feature.path for feature in features] == ["first"]


def test_a_deep_network_has_a_few_features_and_the_last_among_them() -> None:
    *_, features = chosen(seeded(lambda: ResidualNet(12)), EXAMPLE)
    assert len(features) == MOST
    assert features[-1].path == "blocks.11"
    assert len({feature.path for feature in features}) == MOST


def test_an_unpruned_student_has_no_loss() -> None:
    model = seeded(ResidualNet)
    plan = ep.plan(model, EXAMPLE, align=1)
    whole = replace(
        plan, groups={name: GroupPlan(units=g.units, keep=tuple(range(g.units))) for name, g in plan.groups.items()}
    )
    student = copy.deepcopy(model)
    features = features_of(student, model, whole, EXAMPLE)
    assert len(features) == 3
    assert loss_of(student, model, features, samples(8, seed=3)[0]).item() == 0.0


@pytest.mark.parametrize("make", [ResidualNet, Shortcuts])
def test_the_kept_channels_are_those_that_are_compared(make: Callable[[], nn.Module]) -> None:
    """Where the channels that go are zero, the rest is as in the dense network, and other channels are not."""
    model = seeded(make)
    plan = ep.plan(model, EXAMPLE, align=1, criterion="random", seed=5)
    small = ep.apply(model, plan, EXAMPLE)
    others = {
        name: GroupPlan(units=group.units, keep=tuple(sorted(set(range(group.units)) - set(group.keep))))
        for name, group in plan.groups.items()
    }
    other = replace(plan, groups=others)
    zeroed = grown(model, analyse(model, EXAMPLE), plan.keep, small.state_dict())
    images = samples(8, seed=3)[0]
    torch.testing.assert_close(zeroed(images), small(images), atol=1e-5, rtol=1e-4)
    right, wrong = (features_of(small, model, one, EXAMPLE) for one in (plan, other))
    assert digest_features(right) != digest_features(wrong)
    assert loss_of(small, zeroed, right, images).item() < 1e-8
    assert loss_of(small, zeroed, wrong, images).item() > 0.1


def test_the_gradient_reaches_the_student_only() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    loss_of(small, teacher, features, samples(8, seed=3)[0]).backward()
    reached = {name for name, tensor in small.named_parameters() if tensor.grad is not None}
    assert reached == {name for name, _ in small.named_parameters() if not name.startswith("head")}
    assert all(tensor.grad is None for tensor in teacher.parameters())


def test_training_adds_the_loss_and_lowers_it() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    before = network_tensors(copy.deepcopy(teacher))
    given: dict[str, Any] = {"data": train_data, "teacher": teacher, "features": features}
    alone = finetune(small, step=train_step, config=settings(features=0.5), **given).history
    mixed = finetune(small, step=train_step, config=settings(features=0.5, distill=0.25), **given).history
    unlabelled = finetune(small, step=None, config=settings(features=0.5), **given).history
    for history, shares in (
        (alone, {"step_loss": 1.0, "feature_loss": 0.5}),
        (mixed, {"step_loss": 0.75, "distill_loss": 0.25, "feature_loss": 0.5}),
        (unlabelled, {"distill_loss": 1.0, "feature_loss": 0.5}),
    ):
        train = history[0].train
        assert set(train) == {"loss", *shares}
        assert train["loss"] == pytest.approx(sum(share * train[name] for name, share in shares.items()), rel=1e-5)
        assert history[-1].train["feature_loss"] < 0.8 * train["feature_loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network_tensors(teacher).items())


@pytest.mark.parametrize(
    ("step", "weight", "parts"),
    [
        (train_step, None, {}),
        (train_step, 0.0, {}),
        (None, 0.0, {}),
        (None, None, {"distill_loss": 1.0, "feature_loss": 1.0}),
    ],
)
def test_features_count_by_default_where_there_are_no_labels(
    step: Any, weight: float | None, parts: dict[str, float]
) -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    config = settings(epochs=1, features=weight)
    train = finetune(small, step=step, data=train_data, config=config, teacher=teacher, features=features)
    found = train.history[0].train
    assert set(found) == {"loss", *parts}
    if parts:
        assert found["loss"] == pytest.approx(sum(found[name] * share for name, share in parts.items()), rel=1e-5)


def test_pruned_weights_stay_zero() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    sparse, masks = ep.sparsify(small, amount=0.5)
    config = settings(features=1.0, epochs=1)
    result = finetune(
        sparse, step=None, data=train_data, config=config, teacher=teacher, features=features, masks=masks
    )
    assert all(bool((result.model.get_parameter(name)[~kept] == 0).all()) for name, kept in masks.kept.items())


def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    killed("killed features", tmp_path / "checkpoint")
    resumed = train_featured(tmp_path / "checkpoint")
    assert resumed.notices == ()
    assert_same_training(resumed, train_featured())


def test_a_checkpoint_of_other_features_is_not_used(tmp_path: Path) -> None:
    train_featured(tmp_path / "checkpoint")
    teacher, small, features = pruned_small_net()
    other = tuple(replace(feature, kept={1: (8, torch.arange(4))}) for feature in features)
    assert digest_features(other) != digest_features(features)
    result = finetune(
        small,
        step=train_step,
        data=train_data,
        config=settings(features=1.0, distill=0.5),
        teacher=teacher,
        features=other,
        checkpoint=tmp_path / "checkpoint",
        seed=7,
    )
    assert "the features differ" in result.notices[0].text


def test_no_hook_stays_behind() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    with watched(small, features) as found:
        assert hooks(small) == len(features)
        small(*EXAMPLE)
    assert set(found) == {feature.path for feature in features}
    loss_of(small, teacher, features, *EXAMPLE)
    assert hooks(small, teacher) == 0
    seen: list[nn.Module] = []

    def failing(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(model)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        finetune(
            small, step=failing, data=train_data, config=settings(features=1.0), teacher=teacher, features=features
        )
    assert hooks(small, teacher, *seen) == 0


def test_layers_that_training_leaves_out_count_where_they_ran() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    images = samples(8, seed=3)[0]
    with recorded(small, features) as calls:
        small(images)
    wanted = [call.inner for call in answers(teacher, calls, features)]
    own = [{name: tensor for name, tensor in calls[0].inner.items() if name != "blocks.1"}]
    rest = tuple(feature for feature in features if feature.path != "blocks.1")
    assert feature_loss(own, wanted, features).item() == feature_loss(own, wanted, rest).item()
    with pytest.raises(ModelError, match="no layer ran"):
        feature_loss([{}], wanted, features)


def test_sizes_that_do_not_fit_are_errors() -> None:
    teacher = seeded(ResidualNet)
    small, _, features = chosen(teacher, EXAMPLE)
    found = loss_of(small, teacher, features, *EXAMPLE)
    assert found.isfinite()
    wrong = tuple(replace(feature, kept={1: (8, torch.arange(3))}) for feature in features)
    with pytest.raises(ModelError, match=r"'stem.1' returns .* in the pruned network and"):
        loss_of(small, teacher, wrong, *EXAMPLE)
    wrong = tuple(replace(feature, kept={1: (9, torch.arange(4))}) for feature in features)
    with pytest.raises(ModelError, match="9 channels were expected along dimension 1"):
        loss_of(small, teacher, wrong, *EXAMPLE)


def test_what_training_returns_in_another_shape_is_left_out() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.layer(x))
            return x.unsqueeze(1) if self.training else x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.moody, self.head = nn.Linear(6, 8), Moody(), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.moody(torch.tanh(self.first(x))).flatten(1))

    *_, features = chosen(seeded(Net), (torch.zeros(1, 6),))
    assert [feature.path for feature in features] == ["first"]


def test_blocks_that_went_are_no_obstacle() -> None:
    teacher = seeded(lambda: ResidualNet(3))
    small, _, features = chosen(teacher, EXAMPLE, blocks=["blocks.1"])
    assert "blocks.2" in {feature.path for feature in features}
    loss = loss_of(small, teacher, features, samples(8, seed=3)[0])
    assert 0.0 < loss.item() < 10.0


def test_recorded_calls_are_refused_by_name() -> None:
    teacher = seeded(ResidualNet)
    plan = ep.plan(teacher, EXAMPLE, align=1)
    plan = replace(plan, settings=plan.settings | {"output": "graph"})
    small = ep.apply(teacher, plan, EXAMPLE)
    with pytest.raises(ConfigError, match="came out as recorded calls") as caught:
        features_of(small, teacher, plan, EXAMPLE)
    assert "prune.output=eager" in str(caught.value.fix)
    with pytest.raises(ConfigError, match=r"finetune.features = 1 does not go with prune.output = 'graph'"):
        validate({"prune": {"output": "graph"}, "finetune": {"features": 1}})


def test_what_is_missing_is_said() -> None:
    teacher = seeded(ResidualNet)
    small, plan, _ = chosen(teacher, EXAMPLE)
    given: dict[str, Any] = {"data": list(train_data()), "features": 1.0, "epochs": 1}
    with pytest.raises(ConfigError, match="also needs plan= and inputs="):
        ep.finetune(small, teacher=teacher, **given)
    with pytest.raises(ConfigError, match="also needs the dense network, teacher="):
        ep.finetune(small, step=train_step, plan=plan, inputs=EXAMPLE, **given)
    labelled = ep.finetune(small, step=train_step, teacher=teacher, data=list(train_data()), epochs=1)
    assert type(labelled) is ResidualNet  # unset, nothing is missing
    with pytest.raises(ConfigError, match="no tensor to compare"):
        finetune(small, step=None, data=train_data, config=settings(features=1.0), teacher=teacher)
    single = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    with pytest.raises(ConfigError, match="no inner tensor"):
        features_of(single, single, replace(plan, groups={}), EXAMPLE)


def test_the_public_function_takes_the_plan() -> None:
    teacher = ep.recalibrate(seeded(ResidualNet), list(train_data()))
    small, plan, features = chosen(teacher, EXAMPLE)
    tuned = ep.finetune(
        small,
        data=list(train_data()),
        teacher=nn.DataParallel(teacher),
        plan=plan,
        inputs=EXAMPLE,
        features=5.0,
        epochs=4,
        lr=0.01,
    )
    images = samples(32, seed=9)[0]
    assert loss_of(tuned, teacher, features, images).item() < 0.8 * loss_of(small, teacher, features, images).item()


def test_small_net_has_a_feature() -> None:
    _, small, features = pruned_small_net()
    assert [feature.path for feature in features] == ["norm"]
    assert small.conv.weight.shape[0] < small_net().conv.weight.shape[0]
