"""Windows, pooling, transforms and pointwise operators of every kind: channels pass them or are pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from edgeprune.compact import analyse
from edgeprune.compact.outputs import compact
from edgeprune.config import PruneConfig
from edgeprune.graph import trace
from edgeprune.pruning.select import resting
from tests.rearrangements import axis_of, shapes
from tests.test_rules import check_every_move

SIZES = st.integers(2, 4)
CASES: dict[str, Callable[[Any], Any]] = {}


def case(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    CASES[function.__name__] = function
    return function


@case
def im2col(draw):
    shape = (*draw(shapes(0, 1, SIZES)), draw(SIZES), draw(SIZES), draw(SIZES))
    kernel = (draw(st.integers(1, shape[-2])), draw(st.integers(1, shape[-1])))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
    return shape, lambda x: F.unfold(x + 1, kernel, stride=stride, padding=padding) - 1


@case
def im2col_alone(draw):
    """Nothing but channels."""
    return (1, draw(SIZES), 1, 1), lambda x: F.unfold(x, 1)


@case
def col2im(draw):
    """Blocks that do not overlap: every value arrives once."""
    kernel, across, down = (draw(st.integers(1, 3)), draw(st.integers(1, 3))), draw(SIZES), draw(SIZES)
    shape = (*draw(shapes(0, 1, SIZES)), draw(SIZES) * kernel[0] * kernel[1], across * down)
    return shape, lambda x: F.fold(x, (kernel[0] * across, kernel[1] * down), kernel, stride=kernel)


@case
def there_and_back(draw):
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    shape = (1, draw(SIZES), kernel[0] * 2, kernel[1])
    return shape, lambda x: F.fold(F.unfold(x, kernel, stride=kernel), x.shape[2:], kernel, stride=kernel)


@case
def sliding_window(draw):
    shape = draw(shapes(1, 3, SIZES))
    axis = axis_of(draw, shape)
    size, step = draw(st.integers(1, shape[axis])), draw(st.integers(1, 2))
    return shape, lambda x: x.unfold(axis, size, step)


@case
def strides(draw):
    shape = draw(shapes(2, 3, SIZES))
    return shape, draw(st.sampled_from([lambda x: x.as_strided((2,), (1,)), lambda x: x]))


@case
def complex_numbers(draw):
    shape = (*draw(shapes(1, 2, SIZES)), 2)
    ways = [
        lambda x: torch.view_as_real(torch.view_as_complex(x)),
        lambda x: torch.view_as_complex(x).imag,
        lambda x: torch.view_as_real(torch.complex(x, -torch.ones_like(x)))[..., 0],
        lambda x: torch.complex(x, x * 0).real,
    ]
    return shape, draw(st.sampled_from(ways))


@case
def pooled_by_one(draw):
    """Windows of one position only move values."""
    shape = draw(shapes(3, 4, SIZES))
    ways: list[Callable[[Any], Any]] = [
        lambda x: F.max_pool2d(x, 1),
        lambda x: F.avg_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, x.shape[-2:]),
        lambda x: F.max_pool2d(x, 1, stride=2),
        lambda x: F.max_pool1d(x.flatten(0, -3), 1),
    ]
    if len(shape) == 4:
        ways += [
            lambda x: F.interpolate(x, scale_factor=2),
            lambda x: F.interpolate(x, size=(3, 5), mode="nearest-exact"),
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 1, return_indices=True), 1),
            lambda x: F.fractional_max_pool2d(x, 1, output_size=1),
            lambda x: F.max_pool3d(x[None], 1)[0],
        ]
    return shape, draw(st.sampled_from(ways))


@pytest.mark.parametrize("name", sorted(CASES))
def test_labels_move_as_values_do(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_every_move(CASES[name], caplog)


class Net(nn.Module):
    """A convolution to eight channels, an operator, a convolution that reads them at every place."""

    def __init__(self, operator: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 2, 1)
        self.operator = operator

    def forward(self, x):
        return self.b(self.operator(F.relu(self.a(x))))


def blocks(h: torch.Tensor) -> torch.Tensor:
    columns = F.unfold(h, 3, padding=1)
    return F.fold(columns * columns.sigmoid(), h.shape[2:], 3, padding=1)


PASSING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fold_unfold": blocks,
    "sliding_windows": lambda h: h.unfold(2, 2, 1).unfold(3, 3, 1).mean((-1, -2)),
    "max_unpool": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "max_pool3d": lambda h: F.max_pool3d(h[..., None], (2, 2, 1))[..., 0],
    "lp_pool": lambda h: F.lp_pool2d(h + 0.1, 2, 2),
    "adaptive": lambda h: F.adaptive_avg_pool2d(h, 2) + F.adaptive_max_pool2d(h, 2),
    "adaptive3d": lambda h: F.adaptive_avg_pool3d(h[..., None], (2, 2, 1))[..., 0],
    "interpolate": lambda h: F.interpolate(h, size=(5, 7), mode="bicubic", antialias=True),
    "interpolate_area": lambda h: F.interpolate(h, size=(2, 2), mode="area"),
    "affine_grid": lambda h: F.grid_sample(
        h, F.affine_grid(torch.eye(2, 3, dtype=h.dtype).expand(len(h), 2, 3), [len(h), 1, 3, 3]), align_corners=False
    ),
    "rfft2": lambda h: torch.fft.irfft2(torch.fft.rfft2(h) * 2, s=h.shape[2:]),
    "fft": lambda h: torch.fft.fft(h, dim=2).abs() + torch.fft.ifft(h, dim=-1).real,
    "fftn": lambda h: torch.fft.fftn(h, dim=(2, 3)).imag + torch.fft.fftn(h, s=(4, 4)).abs(),
    "fftshift": lambda h: torch.fft.fftshift(torch.fft.fft2(h), (2, 3)).abs(),
    "complex": lambda h: (torch.polar(h, h + 1) * torch.complex(h, h)).abs(),
    "real_and_imaginary": lambda h: torch.view_as_real(torch.polar(h, h))[..., 1].square(),
    "complex_of_space": lambda h: torch.view_as_real(torch.view_as_complex(h.unflatten(3, (2, 2))) * 1j).flatten(3),
    "stft": lambda h: torch.stft(
        h.flatten(0, 1).flatten(1), 4, window=torch.ones(4, dtype=h.dtype), return_complex=True
    ).abs().unflatten(0, (len(h), -1)),
    "norms": lambda h: F.instance_norm(h) + F.normalize(h, dim=2) + h / (h.norm(dim=(2, 3), keepdim=True) + 1),
    "local_statistics": lambda h: h - F.avg_pool2d(h, 3, 1, 1) + torch.var_mean(h, (2, 3), keepdim=True)[0],
    "softmax_over_space": lambda h: h * h.flatten(2).softmax(-1).unflatten(2, h.shape[2:]),
    "dropouts": lambda h: F.dropout(F.dropout2d(F.alpha_dropout(h), training=False), training=False),
    "comparisons": lambda h: h * ((h > 0.1) | (h < 0.05)) * h.isclose(h) * ~(h.isnan() & h.isinf()) * h.isfinite(),
    "integers": lambda h: (h * 9).long().bitwise_and(3) + (h * 9).long() // 2 + h.remainder(2),
    "in_place": lambda h: h.clone().mul_(3).abs_().gt_(0.2) * h + F.threshold_(h.clone(), 0.1, 0.05),
    "other_names": lambda h: h.absolute() + h.arctan() + h.negative() * h.greater(0.2) + h.fix() + h.less_equal(0.3),
    "logic": lambda h: torch.logical_xor(h > 0.1, h > 0.2) * h + torch.logical_not(h > 0.1) * h,
    "rare": lambda h: h.erf() + h.sinc() + h.logaddexp(h) + h.hypot(h) + h.copysign(-h) + h.frac() + h.nan_to_num(),
    "special": lambda h: (
        torch.special.expit(h) + torch.special.xlogy(h, h + 1) + torch.special.i0(h) + h.digamma().nan_to_num(0, 0, 0)
    ),
    "activations": lambda h: F.threshold(h, 0.1, 0.05) + F.silu(h) + F.hardshrink(h) + F.logsigmoid(h) + F.elu(h),
    "where": lambda h: torch.where(h > 0.5, h, 0.0) + h.masked_fill(h > 0.5, 0.25) + h.clip(max=0.4),
    "broadcast": lambda h: sum(torch.broadcast_tensors(h, h[:, :, :1], h.new_ones(1, 1, 1, 4))),
    "sums_of_squares": lambda h: (h - h * 2).square() + torch.rsub(h, 2 * h),
    "real_of_real": lambda h: h.real + h.conj(),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PASSING))
def test_channels_pass(name: str) -> None:
    torch.manual_seed(0)
    model = Net(PASSING[name]).double().eval()
    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    graph = trace(model, inputs)
    (group,) = graph.free
    for keep in ((0, 1, 5), (2, 3, 4, 6, 7), (7,)):
        assert compact(model, graph, {group.name: keep}, inputs).check.max_rel < 1e-9


TOUCHING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "local_response_norm": lambda h: F.local_response_norm(h, 3),
    "fft_over_channels": lambda h: torch.fft.fft(h, dim=1).abs(),
    "fftn_of_all": lambda h: torch.fft.fftn(h).abs(),
    "pool_over_channels": lambda h: F.max_pool1d(h.flatten(2).mT, 2, 1, padding=1).mT[:, :8].unflatten(2, (4, 4)),
    "windows_of_channels": lambda h: F.pad(h.unfold(1, 2, 1).sum(-1), (0, 0, 0, 0, 0, 1)),
    "strided": lambda h: h.as_strided(h.shape, h.stride()),
    "quantile": lambda h: h - h.quantile(0.5, 1, keepdim=True),
    "cross": lambda h: h + torch.linalg.cross(h[:, :, :3], h[:, :, :3], dim=2).sum() + torch.cross(
        h.flatten(1)[:, :3], h.flatten(1)[:, :3], 1).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOUCHING))
def test_a_touched_dimension_is_pinned_with_its_reason(name: str) -> None:
    model = Net(TOUCHING[name]).double().eval()
    graph = trace(model, (torch.randn(2, 3, 4, 4, dtype=torch.float64),))
    pinned = [group.pinned for group in graph.groups if "a.weight" in group.tensors and group.pinned]
    assert pinned
    assert not any("not understood" in str(reason) for reason in pinned)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_any_rank_and_grouping_compact_exactly(seed: int, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = 1 + seed % 3
    groups, each_in, each_out = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(3))
    kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d] if transposed else [
        nn.Conv1d, nn.Conv2d, nn.Conv3d]  # fmt: skip
    kind = kinds[rank - 1]
    torch.manual_seed(seed)
    model = nn.Sequential(
        kind(2, groups * each_in * 2, 1),
        nn.ReLU(),
        kind(groups * each_in * 2, groups * each_out * 2, 2, groups=groups, stride=1 + seed % 2, bias=seed % 2 == 0),
        nn.ReLU(),
        kind(groups * each_out * 2, 3, 1),
    ).double()
    inputs = (torch.randn(2, 2, *[3] * rank, dtype=torch.float64),)
    graph = analyse(model, inputs)
    assert trace(model, inputs).free
    for group in graph.free:
        if group.size > 1 and group.name not in resting(graph, PruneConfig()):
            keep = {group.name: tuple(range(0, group.size, 2))}
            assert compact(model, graph, keep, inputs).check.max_rel < 1e-9
