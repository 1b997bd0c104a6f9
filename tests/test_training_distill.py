"""Distillation: the right loss for each output, and a student that comes close to its teacher without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.training import finetune
from edgeprune.training.distill import (
    Call,
    answers,
    distillation_loss,
    output_tensors,
    outputs_loss,
    recorded,
    tensor_loss,
)
from tests.training_case import samples, settings, small_net, train_data, train_step


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _images() -> Iterator[torch.Tensor]:
    yield from samples(128, seed=1)[0].split(16)


def _through(wrap: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return wrap(_logits(6, 4)), wrap(_logits(6, 4, seed=1)).detach()


def test_a_student_comes_close_to_its_teacher_without_labels() -> None:
    teacher, student = small_net(1), small_net(2)
    images = samples(64, seed=9)[0]

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return F.mse_loss(model(images), teacher(images)).item()

    result = finetune(student, step=None, data=_images, config=settings(epochs=20), teacher=teacher)
    assert distance(result.model) < 0.2 * distance(student)
    assert set(result.history[0].train) == {"loss"}


def test_several_inputs_and_nested_outputs_are_distilled() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            return {"a": (self.one(x), None), "b": [torch.sigmoid(self.two(y))], "index": x.argmax(1)}

    torch.manual_seed(0)
    student, teacher = Nested(), Nested()
    batches = [((torch.randn(16, 3), torch.randn(16, 3)), "no label") for _ in range(8)]
    config = settings(epochs=30, lr=0.05)
    result = finetune(student, step=None, data=lambda: batches, config=config, teacher=teacher)
    assert result.history[-1].train["loss"] < 0.05 * result.history[0].train["loss"]


def test_the_share_of_the_teacher_mixes_both_losses() -> None:
    result = finetune(
        small_net(), step=train_step, data=train_data, config=settings(distill=0.25, epochs=1), teacher=small_net(1)
    )
    train = result.history[0].train
    assert train["loss"] == pytest.approx(0.75 * train["step_loss"] + 0.25 * train["distill_loss"], rel=1e-5)
    assert train["distill_loss"] > 0


def test_a_teacher_without_a_share_is_not_asked() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("asked")

    result = finetune(
        small_net(), step=train_step, data=train_data, config=settings(epochs=1, distill=0.0), teacher=Silent()
    )
    assert set(result.history[0].train) == {"loss"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        torch.sigmoid,
        lambda x: torch.softmax(x, 1),
        lambda x: torch.log_softmax(x, 1),
        lambda x: torch.sigmoid(x).reshape(2, 3, 4).squeeze(),
        lambda x: torch.softmax(x, 1).t(),
    ],
)
def test_every_loss_is_zero_where_both_agree_and_pulls_together_elsewhere(
    wrap: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    student, teacher = _through(wrap)
    assert tensor_loss(wrap(_logits(6, 4, seed=1)), teacher, [], 4.0).item() == pytest.approx(0.0, abs=1e-6)
    loss = tensor_loss(student, teacher, [], 4.0)
    assert loss.item() > 1e-3
    logits = _logits(6, 4)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        tensor_loss(wrap(logits), teacher, [], 4.0).backward()
        optimizer.step()
    assert tensor_loss(wrap(logits), teacher, [], 4.0).item() < 0.01 * loss.item()


def test_sigmoid_outputs_get_cross_entropy() -> None:
    student, teacher = _through(torch.sigmoid)
    expected = F.binary_cross_entropy(student, teacher) - F.binary_cross_entropy(teacher, teacher)
    assert tensor_loss(student, teacher, [], 4.0).item() == pytest.approx(expected.item())
    sure = torch.full((1, 1), -12.0, requires_grad=True)
    tensor_loss(torch.sigmoid(sure), torch.tensor([[0.9]]), [], 4.0).backward()
    assert sure.grad is not None
    assert sure.grad.item() < -0.5  # a squared error would have a gradient of 1e-5 here


def test_probabilities_and_their_logarithms_are_one_divergence() -> None:
    labels = [torch.zeros(6, dtype=torch.int64)]
    plain = tensor_loss(_logits(6, 4), _logits(6, 4, seed=1).detach(), labels, 3.0).item()
    for wrap in (lambda x: torch.softmax(x, 1), lambda x: torch.log_softmax(x, 1)):
        assert tensor_loss(*_through(wrap), [], 3.0).item() == pytest.approx(plain, rel=1e-4)
    wanted = torch.softmax(_logits(6, 4, seed=1) / 3, 1)
    given = torch.log_softmax(_logits(6, 4) / 3, 1)
    assert plain == pytest.approx((F.kl_div(given, wanted, reduction="batchmean") * 9).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("output", "labels", "classes"),
    [
        ((6, 4), torch.tensor([0, 3, 1, 2, 0, -100]), 1),
        ((2, 5, 3, 3), torch.full((2, 3, 3), 4), 1),
        ((2, 7, 5), torch.full((2, 7), 4), 2),
        ((6, 4), torch.tensor([0, 9, 1, 2, 0, 3]), None),  # sample numbers: as many, but too large for classes
        ((6, 4), torch.zeros(6, 4, dtype=torch.int64), None),
        ((6, 1), torch.zeros(6, dtype=torch.int64), None),
        ((6, 4), torch.zeros(6, dtype=torch.bool), None),
    ],
)
def test_integer_labels_make_an_output_class_scores(
    output: tuple[int, ...], labels: torch.Tensor, classes: int | None
) -> None:
    student, teacher = _logits(*output), _logits(*output, seed=1).detach()
    dim = 1 if classes is None else classes
    shifted = student + torch.randn_like(student.select(dim, 0)).unsqueeze(dim)  # a softmax does not see this shift
    first, second = (tensor_loss(value, teacher, [labels], 2.0).item() for value in (student, shifted))
    assert (first == pytest.approx(second, rel=1e-4)) is (classes is not None)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_squared_error_does_not_depend_on_units(scale: float) -> None:
    student, teacher = _logits(8, 3), _logits(8, 3, seed=1).detach()
    plain = F.mse_loss(student, teacher) / teacher.var(correction=0)
    assert tensor_loss(student * scale, teacher * scale, [], 4.0).item() == pytest.approx(plain.item(), rel=1e-4)


def test_constant_and_zero_targets_give_finite_losses() -> None:
    for teacher in (torch.full((1, 1), 5.0), torch.zeros(4, 2)):
        loss = tensor_loss(torch.zeros_like(teacher).requires_grad_(), teacher, [], 4.0)
        assert torch.isfinite(loss)


def test_outputs_of_any_structure_are_found() -> None:
    @dataclass
    class Found:
        boxes: torch.Tensor
        more: list[Any]

    a, b = torch.zeros(1), torch.zeros(2)
    assert list(output_tensors(a)) == [""]
    assert output_tensors((a, {"x": [b, None], "n": 3}))["1.x.0"] is b
    assert list(output_tensors(Found(a, [b, "text"]))) == ["boxes", "more.0"]
    assert output_tensors(Found) == {}


def test_outputs_that_do_not_match_are_errors() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ModelError, match=r"differ at '1': \(2, 3\) against \(2, 4\)"):
        outputs_loss((a, a), (a, b), [], 4.0)
    with pytest.raises(ModelError, match=r"differ at '0': \(2, 3\) against nothing"):
        outputs_loss((a, a), a, [], 4.0)
    with pytest.raises(ModelError, match="no floating-point tensor"):
        outputs_loss(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), [], 4.0)


def test_a_step_that_goes_around_the_call_is_an_error() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model.forward(batch[0]), batch[1])

    with pytest.raises(ModelError, match="did not call the network") as caught:
        finetune(small_net(), step=step, data=train_data, config=settings(distill=0.5), teacher=small_net(1))
    assert "call model(inputs)" in str(caught.value.fix)


def test_calls_are_recorded_with_their_inputs_and_the_teacher_gets_the_same() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, *, factor: float = 1.0) -> torch.Tensor:
            return x * factor

    model = Scaled()
    x = torch.ones(2, 2, requires_grad=True)
    with recorded(model) as calls:
        model(x)
        model(x, factor=3.0)
    model(x)
    assert [call.kwargs for call in calls] == [{}, {"factor": 3.0}]
    assert distillation_loss(calls, answers(Scaled(), calls), x, 4.0).item() == 0.0
    off = [Call(args=(x,), kwargs={}, output=x * 2)]
    loss = distillation_loss(off, answers(Scaled(), off), x, 4.0).item()
    assert loss == pytest.approx(1.0)  # 1 squared over the mean square 1
