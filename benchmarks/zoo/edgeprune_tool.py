"""edgeprune's engine on one network: find the groups, plan half of every one, compact, be judged."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import edgeprune
from benchmarks.zoo.judge import Kept
from benchmarks.zoo.reach import reached, share

RATIO = 0.5
Report = Callable[..., None]


def version() -> str:
    """Return the version and a digest of the package's source: rows of another source are made again."""
    folder = Path(edgeprune.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return f"{edgeprune.__version__}+{digest.hexdigest()[:12]}"


def prune(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], report: Report, seed: int = 0
) -> tuple[nn.Module, Kept, Any]:
    """Prune half of every free group, or what a seed draws; return the network, the kept positions and graph and plan.

    Args:
        report: Takes fields of the row as they become known.
    """
    from edgeprune.compact import apply
    from edgeprune.compact.rehearse import rehearse
    from edgeprune.compact.verify import Reference
    from edgeprune.config import PruneConfig
    from edgeprune.graph import trace
    from edgeprune.pruning import make_plan, score

    spent = dict.fromkeys(("trace", "plan", "compact", "verify"), 0.0)
    with _clock(spent, "trace"):
        graph = trace(model, inputs)
    with _clock(spent, "verify"):
        graph = rehearse(model, graph, inputs)
    report(captured=True, reach_params=share(model, reached(graph)), pinned=_pinned(graph), groups_free=len(graph.free))
    with _clock(spent, "plan"):
        scores = score(model, graph, "random" if seed else "l2", inputs=inputs, seed=seed)
        config = PruneConfig(ratio=RATIO, streams="free", ratios=_drawn(graph, seed) if seed else {})
        plan = make_plan(graph, scores, config, align=1, model=model, inputs=inputs)
    checking = dict.fromkeys(("verify",), 0.0)
    unclocked = Reference.check
    Reference.check = _clocked(unclocked, checking)  # type: ignore[method-assign]
    try:
        with _clock(spent, "compact"):
            compacted = apply(model, plan, inputs, graph)
    finally:
        Reference.check = unclocked  # type: ignore[method-assign]
    spent["compact"] -= checking["verify"]
    spent["verify"] += checking["verify"]
    spent["total"] = sum(spent.values())
    report(
        mode=compacted.mode,
        own_max_rel=compacted.check.max_rel,
        cpu_s={key: round(value, 4) for key, value in spent.items()},
    )
    kept = {dim: torch.from_numpy(mask).nonzero().flatten() for dim, mask in graph.masks(plan.keep).items()}
    return compacted.model, kept, (graph, plan)


def _drawn(graph: Any, seed: int) -> dict[str, float]:
    """Return a ratio for every free group: none for three in ten, up to nine tenths for the others."""
    draw = Random(seed)
    names = [group.name for group in graph.free]
    ratios = {name: 0.0 if draw.random() < 0.3 else round(draw.uniform(0.1, 0.9), 2) for name in names}
    return ratios if any(ratios.values()) else dict.fromkeys(names, RATIO)


def hooked(model: nn.Module, small: nn.Module, inputs: tuple[torch.Tensor, ...], made: Any) -> bool | None:
    """Say whether zeroing the outputs of layers alone gives the pruned network; None where statistics depend on width.

    False is no proof of a mistake: where a zeroed channel does not stay zero (a sigmoid, a shift), this differs too.
    """
    graph, plan = made
    masks = graph.masks(plan.keep)
    alive = graph.alive(plan.keep)
    if any(not bool(alive[units].all()) for mark in graph.statistics for units in mark.units.values()):
        return None
    try:
        from tests.masking import largest_difference, masked_by_hooks

        return largest_difference(masked_by_hooks(model, graph.names, masks), small, inputs) <= 1e-4
    except (ImportError, RuntimeError, TypeError, AttributeError, KeyError, AssertionError):
        return None


def _pinned(graph: Any) -> list[list[Any]]:
    largest = sorted((g for g in graph.groups if g.pinned is not None), key=lambda group: -group.params)[:8]
    return [[g.name, g.params, g.pinned, _short(g.where)] for g in largest]


def _short(where: str | None) -> str | None:
    root = str(Path(__file__).resolve().parent.parent.parent)
    return where and where.split("site-packages/")[-1].removeprefix(f"{root}/")


@contextmanager
def _clock(spent: dict[str, float], part: str) -> Iterator[None]:
    """Add the CPU seconds of a block to a part."""
    started = time.process_time()
    try:
        yield
    finally:
        spent[part] += time.process_time() - started


def _clocked(function: Any, spent: dict[str, float]) -> Any:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        with _clock(spent, "verify"):
            return function(*args, **kwargs)

    return clocked
