"""Learning from the dense network inside: tensors that both networks have, compared at the channels that were kept.

Owns the choice of the tensors and their loss. They are what modules return where everything that follows is made from
that one tensor: the ends of residual blocks, the layers of a chain, the stream of a Transformer; nothing can be wrong
before such a place that does not show there. Where a network has no such places, as with shortcuts from end to end, the
outputs of its layers are taken. At most `MOST` of them, evenly spread.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.compact import analyse, remove_blocks
from edgeprune.compact.plans import check_fits, output_of, prepared
from edgeprune.compact.program import Captured
from edgeprune.compact.verify import run_
from edgeprune.config import FinetuneConfig
from edgeprune.errors import ConfigError, ModelError
from edgeprune.graph.capture import Record, Ref, attention_in_parts
from edgeprune.graph.flow import refs
from edgeprune.graph.results import take_apart
from edgeprune.graph.structure import copy_model
from edgeprune.workload import as_inputs

if TYPE_CHECKING:
    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan

MOST = 8
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A tensor that a module of both networks returns: leaf `leaf` of the result of the module at `path`.

    `kept` holds what is left of the dense tensor, by dimension: its size, and the positions that stay.
    """

    path: str
    leaf: int
    kept: Mapping[int, tuple[int, torch.Tensor]]

    def of(self, result: Any) -> torch.Tensor | None:
        """Return the tensor from what the module returned, None where there is none at its place."""
        leaves, _ = take_apart(result)
        found = leaves[self.leaf] if self.leaf < len(leaves) else None
        return found if isinstance(found, torch.Tensor) else None

    def restricted(self, dense: torch.Tensor) -> torch.Tensor:
        """Return the tensor of the dense network at the positions that the pruned one kept.

        Raises:
            ModelError: It has another size than the one that the positions are of.
        """
        for axis, (size, positions) in self.kept.items():
            if dense.dim() <= axis or dense.shape[axis] != size:
                raise ModelError(
                    f"'{self.path}' of the dense network returns {tuple(dense.shape)}, and {size} channels were "
                    f"expected along dimension {axis}",
                    fix=_OFF,
                )
            dense = dense.index_select(axis, positions.to(dense.device))
        return dense


Features = tuple[Feature, ...]
Tensors = dict[str, torch.Tensor]

_OFF = "set finetune.features=0"


def feature_weight(config: FinetuneConfig, *, labelled: bool) -> float:
    """Return the weight of the features in the loss.

    By default they count where nothing but the teacher says what is right: few samples say little through the outputs
    alone.

    Args:
        labelled: There is a loss of the user's.
    """
    return config.features if config.features is not None else float(not labelled)


def features_of(
    student: nn.Module,
    teacher: nn.Module,
    plan: PrunePlan,
    inputs: tuple[torch.Tensor, ...],
    rules: UserRules | None = None,
) -> Features:
    """Return the tensors at which a pruned network is compared with the dense one.

    Args:
        student: What the plan left of the dense network, with any weights.
        teacher: The dense network, as it came or without its wrappers.
        inputs: Example tensors.
        rules: The user's rules for operators, as the plan was made with.

    Raises:
        ConfigError: There are none: the network came out as recorded calls, takes different paths for different data,
            or has a single layer; or the plan does not fit.
    """
    if isinstance(student, Captured):
        raise ConfigError(
            "finetune.features compares layers, and the pruned network came out as recorded calls, which have none",
            fix=f"-s prune.output=eager, or {_OFF}",
        )
    inputs = as_inputs(inputs)
    whole = prepared(teacher, inputs, split=bool(plan.settings.get("split_recurrent")))
    shallow = remove_blocks(whole, plan.blocks, inputs) if plan.blocks else whole
    graph = analyse(shallow, inputs, output_of(plan), rules)
    check_fits(graph, plan)
    if graph.branching:
        raise ConfigError(
            "finetune.features compares both networks along one path, and this one takes different paths for "
            "different data",
            fix=_OFF,
        )
    known = {path for path, _ in teacher.named_modules()}
    found = _chosen(graph, plan, known.intersection(_own_layers(student)))
    found = _alike(student, teacher, found, inputs)
    if not found:
        raise ConfigError("the network has no inner tensor that finetune.features could compare", fix=_OFF)
    return found


def _alike(student: nn.Module, teacher: nn.Module, features: Features, inputs: tuple[torch.Tensor, ...]) -> Features:
    """Leave out what a network that trains returns in another shape, as seen in a trial with two samples."""
    trial, dense = copy_model(student).train(), copy_model(teacher).eval()
    double = tuple(torch.cat([tensor, tensor]) if tensor.dim() > 0 else tensor for tensor in inputs)
    with (
        torch.random.fork_rng(),
        attention_in_parts(),
        watched(trial, features) as own,
        watched(dense, features) as all_,
    ):
        try:
            run_(trial, double)
            run_(dense, double)
        except ModelError:  # one size of batch only, or more arguments while it trains: training itself will show it
            return features
    return tuple(feature for feature in features if _fits(feature, own, all_))


def _fits(feature: Feature, own: Tensors, dense: Tensors) -> bool:
    if feature.path not in own or feature.path not in dense:
        return False
    try:
        return feature.restricted(dense[feature.path]).shape == own[feature.path].shape
    except ModelError:
        return False


def digest_features(features: Features) -> str:
    """Return the sha256 of what is compared."""
    digest = hashlib.sha256()
    for feature in features:
        kept = [(axis, size, positions.tolist()) for axis, (size, positions) in feature.kept.items()]
        digest.update(f"{feature.path} {feature.leaf} {kept}\n".encode())
    return digest.hexdigest()


def _own_layers(student: nn.Module) -> Iterator[str]:
    """Yield the paths of modules whose forward runs: those inside of recorded calls do not."""
    hidden = tuple(f"{path}." for path, module in student.named_modules() if isinstance(module, Captured))
    for path, _ in student.named_modules():
        if path and not path.startswith(hidden):
            yield path


def _chosen(graph: ChannelGraph, plan: PrunePlan, paths: set[str]) -> Features:
    record, alive = graph.trail.record, graph.alive(plan.keep)
    runs = Counter(span.path for span in record.spans)
    once = {path for path in paths if runs[path] == 1}
    walk = _Walk(record)
    places = walk.narrow(once)
    if len(places) < 2 < walk.layers:
        places = walk.outputs(once)
    found = []
    for path, leaf, ref, index in _spread(places):
        masks = graph.trail.left(index, ref, alive)
        if masks and masks[0] is not None:
            continue  # channels folded into the batch: their positions depend on its size
        kept = {
            axis: (ref.shape[axis], torch.from_numpy(mask.nonzero()[0]))
            for axis, mask in enumerate(masks)
            if mask is not None
        }
        found.append(Feature(path=path, leaf=leaf, kept=kept))
    return tuple(found)


Place = tuple[str, int, Ref, int]


def _spread(places: Sequence[Place]) -> list[Place]:
    """Return at most `MOST` of the places, the last one among them."""
    count = min(MOST, len(places))
    return [places[-1 - (number * len(places)) // count] for number in reversed(range(count))]


class _Walk:
    """Which tensors of a recorded forward carry what the network computes, and how long they are needed."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.makers: dict[int, int] = {}
        self.before: list[int] = []  # how many calls have taken a weight when each call ends
        self.weighty: set[int] = set()
        from_inputs = {ref.id for ref in record.inputs}
        from_weights = set(record.tensors)
        for index, call in enumerate(record.calls):
            given, made = {ref.id for ref in refs(call.args)}, {ref.id for ref in refs(call.result)}
            if any(len(record.shapes[record.tensors[key]]) > 1 for key in given if key in record.tensors):
                self.weighty.add(index)
            self.before.append(len(self.weighty))
            self.makers.update(dict.fromkeys(made, index))
            from_inputs |= made if given & from_inputs else set()
            from_weights |= made if given & from_weights else set()
        self.layers = len(self.weighty)
        self.flowing = (from_inputs & from_weights) - set(record.tensors)
        self.last = {ref.id: index for index, call in enumerate(record.calls) for ref in refs(call.args)}
        self.last.update({ref.id: len(record.calls) for ref in record.outputs})

    def narrow(self, paths: Iterable[str]) -> list[Place]:
        """Return the places where one tensor alone is needed by what follows: the last one before each next layer."""
        returned = self._returned(paths)
        found: dict[int, Place] = {}
        alive: set[int] = set()
        for index, call in enumerate(self.record.calls):
            alive |= {ref.id for ref in refs(call.result) if ref.id in self.flowing}
            alive = {key for key in alive if self.last.get(key, -1) > index}
            if "dropout" in call.name:
                continue  # what is behind it is noise while the student trains
            if len(alive) == 1 and next(iter(alive)) in returned and 0 < self.before[index] < self.layers:
                path, leaf, ref = returned[next(iter(alive))]
                found[self.before[index]] = (path, leaf, ref, index)
        return [(path, leaf, ref, self.makers[ref.id]) for path, leaf, ref, _ in found.values()]

    def outputs(self, paths: Iterable[str]) -> list[Place]:
        """Return the outputs of the layers that hold weights, without the last one and those that lead nowhere."""
        used = self._used()
        found: dict[int, Place] = {}
        for path, leaf, ref in self._returned(paths).values():
            index = self.makers[ref.id]
            own = index in self.weighty and self.record.calls[index].module == path
            if own and self.before[index] < self.layers and ref.id in used:
                found.setdefault(index, (path, leaf, ref, index))
        return [found[index] for index in sorted(found)]

    def _returned(self, paths: Iterable[str]) -> dict[int, tuple[str, int, Ref]]:
        """Return the floating tensors that modules return, by identity: the first module that returns each.

        A module that returns what it was given may be noise while the network trains, such as dropout.
        """
        wanted = set(paths)
        found: dict[int, tuple[str, int, Ref]] = {}
        for span in self.record.spans:
            given = {ref.id for ref in refs(span.args)}
            for leaf, ref in enumerate(span.result):
                if span.path not in wanted or not isinstance(ref, Ref) or ref.id not in self.flowing - given:
                    continue
                if ref.dtype is not None and ref.dtype.is_floating_point and len(ref.shape) > 1:
                    found.setdefault(ref.id, (span.path, leaf, ref))
        return found

    def _used(self) -> set[int]:
        """Return the tensors that the outputs are made from."""
        used = {ref.id for ref in self.record.outputs}
        for call in reversed(self.record.calls):
            if any(ref.id in used for ref in refs(call.result)):
                used |= {ref.id for ref in refs(call.args)}
        return used


@contextmanager
def watched(model: nn.Module, features: Features) -> Iterator[Tensors]:
    """Collect the tensors that a network's modules return in the block, by path; each run replaces the one before."""
    found: Tensors = {}
    handles = []
    modules = dict(model.named_modules())

    def watch(feature: Feature) -> Any:
        def keep(_: nn.Module, __: Any, result: Any) -> None:
            tensor = feature.of(result)
            if tensor is not None:
                found[feature.path] = tensor

        return keep

    try:
        for feature in features:
            handles.append(modules[feature.path].register_forward_hook(watch(feature)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def feature_loss(student: Sequence[Tensors], teacher: Sequence[Tensors], features: Features) -> torch.Tensor:
    """Return the mean squared error over features and calls, each relative to how much the dense feature varies.

    Layers that training leaves out at random count only where they ran.

    Args:
        student: For each call of the network, the tensors that `watched` collected. So is `teacher`.

    Raises:
        ModelError: The shapes do not match, or no feature was seen in any call.
    """
    losses = []
    for own, dense in zip(student, teacher, strict=True):
        for feature in features:
            if feature.path not in own or feature.path not in dense:
                continue
            found, wanted = own[feature.path], feature.restricted(dense[feature.path])
            if found.shape != wanted.shape:
                raise ModelError(
                    f"'{feature.path}' returns {tuple(found.shape)} in the pruned network and {tuple(wanted.shape)} "
                    "in what is kept of the dense one",
                    fix=_OFF,
                )
            losses.append(relative_error(found, wanted))
    if not losses:
        raise ModelError("no layer ran at which the network is compared with the dense one", fix=_OFF)
    return torch.stack(losses).mean()


def relative_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over the teacher's variance, or over its mean square where it hardly varies."""
    spread = teacher.var(correction=0)
    size = teacher.square().mean()
    scale = torch.where(spread > 1e-6 * size, spread, size).clamp_min(_TINY)
    return F.mse_loss(student, teacher) / scale
