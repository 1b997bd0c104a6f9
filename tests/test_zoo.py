"""Every network of the zoo through the engine, and the zoo itself: small, repeatable and alive networks.

Compaction must equal the masked network, at several ratios, on other inputs and by an independent comparison; what
cannot be followed or pruned must be refused with a reason.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.compact import analyse, apply, rebuild
from edgeprune.compact.reference import masked_copy, reference_outputs
from edgeprune.config import PruneConfig
from edgeprune.errors import NothingToPrune, TraceError
from edgeprune.graph import trace
from edgeprune.graph.cost import count_macs, count_params
from edgeprune.graph.structure import output_tensors
from edgeprune.pruning import make_plan, score
from edgeprune.pruning.budget import remaining_macs
from tests.masking import largest_difference, masked_by_hooks
from tests.zoo import NETWORKS, UNPRUNABLE, UNTRACEABLE
from tests.zoo.awkward_blocks import AWKWARD

PRUNABLE = NETWORKS | AWKWARD
EVERY = PRUNABLE | UNPRUNABLE | UNTRACEABLE


def flat(outputs: Any) -> torch.Tensor:
    """Return all outputs of a network as one matrix of shape (N, values)."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    return torch.cat([output.flatten(1) for output in outputs], 1)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_network_is_small_repeatable_and_alive(name: str) -> None:
    entry = EVERY[name]
    model, inputs = entry.build(), entry.inputs()
    assert not model.training
    assert 0 < sum(p.numel() for p in model.parameters()) < 1_000_000
    with torch.no_grad():
        first, again = flat(model(*inputs)), flat(entry.build()(*entry.inputs()))
        other = flat(model(*[value.flip(0) for value in inputs]))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert 1e-3 < float(first.abs().max()) < 1e4
    assert float((first - other).abs().max()) > 1e-4 * float(first.abs().max())


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    NETWORKS["conv2d"].build()
    NETWORKS["conv2d"].inputs()
    assert torch.equal(torch.rand(3), expected)


def test_every_pattern_of_the_supported_list_has_a_network() -> None:
    patterns = (
        "conv1d conv2d depthwise grouped transposed linear_mlp batch_norm group_norm layer_norm activations "
        "pooling residual se_mul cat split_chunk view_attribute permute interpolate pixel_shuffle embedding "
        "channel_shuffle resnet_basic resnet_bottleneck mobilenet_v2 mobilenet_v3 densenet shufflenet_v2 "
        "unet_transposed unet_bilinear inception"
    )
    assert set(patterns.split()) <= set(NETWORKS)


# Networks whose channels do not stay zero, whose channels no layer puts out, or whose sequences are packed: there the
# masked reference of edgeprune itself must do.
NOT_ZERO_PRESERVING = {
    "activations", "activations_rare", "activations_inplace", "bare_parameters", "weight_made_of_weights",
    "parameter_lists", "slice_of_a_weight", "dilations_of_one_kernel", "weight_of_another_layer", "hooks_of_its_own",
    "gru_packed",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRUNABLE))
def test_network_compacts_exactly(name: str) -> None:
    """At 0.25, 0.5 and 0.75 with any width and once in steps of eight; the original stays as it was, bit for bit."""
    model, inputs = PRUNABLE[name].build(), PRUNABLE[name].inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = analyse(model, inputs)
    scores = score(model, graph, "l2", inputs=inputs)
    dense, macs = count_params(model), count_macs(model, inputs)
    sizes = []
    for ratio, align in ((0.25, 1), (0.5, 1), (0.75, 1), (0.5, 8)):
        try:
            plan = make_plan(graph, scores, PruneConfig(ratio=ratio), align=align, model=model, inputs=inputs)
        except NothingToPrune:
            assert align == 8
            assert all(group.channels < 24 for group in graph.free)
            continue
        compacted = apply(model, plan, inputs, graph)
        assert compacted.check.passed
        assert compacted.check.max_rel < 1e-4
        if align == 1:
            sizes.append(count_params(compacted.model))
        masks = graph.masks(plan.keep)
        other = other_inputs(inputs)
        expected = reference_outputs(masked_copy(model, masks).double(), graph, plan.keep, other)
        with torch.no_grad():
            found = output_tensors(copy.deepcopy(compacted.model).double().eval()(*other))
        for reference, value in zip(expected, found, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-9 * float(reference.abs().max()))
        if name not in NOT_ZERO_PRESERVING and not any(group.statistics for group in graph.free):
            assert largest_difference(masked_by_hooks(model, graph.names, masks), compacted.model, other) < 1e-9
        left = count_macs(compacted.model, inputs) / macs
        assert left == pytest.approx(remaining_macs(graph, plan.keep, macs), rel=1e-9)
    assert dense > sizes[0] > sizes[1] > sizes[2]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def other_inputs(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return inputs with other values and one more sample, floats in float64."""
    generator = torch.Generator().manual_seed(5)
    result = []
    for tensor in inputs:
        shape = (tensor.shape[0] + 1, *tensor.shape[1:])
        if tensor.is_floating_point():
            result.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            result.append(torch.randint(0, int(tensor.max()) + 1, shape, generator=generator))
    return tuple(result)


# Its in-place operations overwrite what autograd needs, in the dense network too.
CANNOT_TRAIN = {"activations_inplace"}


@pytest.mark.parametrize("name", sorted(set(PRUNABLE) - CANNOT_TRAIN))
def test_pruned_network_trains_and_is_rebuilt_from_plan_and_weights(name: str) -> None:
    model, inputs = PRUNABLE[name].build().train(), PRUNABLE[name].inputs()
    graph = analyse(model, inputs)
    scores = score(model, graph, "l1", inputs=inputs)
    plan = make_plan(graph, scores, PruneConfig(ratio=0.5), align=1, model=model, inputs=inputs)
    compacted = apply(model, plan, inputs, graph)
    small = compacted.model
    assert all(module.training for module in small.modules())
    if compacted.mode == "eager":
        assert len(list(small.modules())) == len(list(model.modules()))
    untrained = {key: value.clone() for key, value in small.state_dict().items()}
    optimiser = torch.optim.SGD(small.parameters(), lr=1e-3)
    sum(output.square().mean() for output in output_tensors(small(*inputs))).backward()
    optimiser.step()
    trained = small.state_dict()
    assert any(not torch.equal(value, untrained[key]) for key, value in trained.items())
    fresh = PRUNABLE[name].build()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.01)  # the weights come from the file, not from the fresh network
    again = rebuild(fresh, plan, trained, inputs)
    first, second = ([tensor.clone() for tensor in inputs] for _ in range(2))
    with torch.no_grad():
        expected, found = output_tensors(small.eval()(*first)), output_tensors(again.eval()(*second))
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", sorted(UNTRACEABLE))
def test_untraceable_network_is_refused_with_its_line(name: str) -> None:
    entry = UNTRACEABLE[name]
    with pytest.raises(TraceError) as caught:
        trace(entry.build(), entry.inputs())
    path, _, line = str(caught.value.where).rpartition(":")
    assert Path(path).parent.name == "zoo"
    assert "forward" in "".join(Path(path).read_text(encoding="utf-8").splitlines(keepends=True)[: int(line)])
    assert caught.value.fix


@pytest.mark.parametrize("name", sorted(UNPRUNABLE))
def test_unprunable_network_is_refused_with_reasons(name: str) -> None:
    model, inputs = UNPRUNABLE[name].build(), UNPRUNABLE[name].inputs()
    graph = analyse(model, inputs)
    assert graph.free == ()
    assert all(group.pinned for group in graph.groups)
    with pytest.raises(NothingToPrune) as caught:
        make_plan(graph, {}, PruneConfig(), align=1, model=model, inputs=inputs)
    assert all(group.name in str(caught.value.fix) for group in graph.groups)


def test_a_network_without_layers_is_refused() -> None:
    graph = analyse(nn.ReLU(), (torch.randn(2, 3),))
    with pytest.raises(NothingToPrune, match="no group can be pruned"):
        make_plan(graph, {}, PruneConfig(), align=1, model=nn.ReLU(), inputs=(torch.randn(2, 3),))
