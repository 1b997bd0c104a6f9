"""One row per network, seed, share of the MACs, tool and treatment.

Criterion, scope and learning rate of a row are those with the best validation accuracy after its treatment, chosen with
the first seed that is run; the others use them again. Only the chosen network meets the test data.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.recovery import edgeprune_tool, torch_pruning_tool
from benchmarks.recovery.candidate import Candidate, UnmetError
from benchmarks.recovery.cases import Case
from benchmarks.zoo.edgeprune_tool import version as edgeprune_source
from edgeprune.graph.cost import count_macs, count_params
from edgeprune.training.recalibrate import recalibrate

Row = dict[str, Any]
Known = dict[tuple[Any, ...], Row]
TOOLS = {"torch-pruning": torch_pruning_tool, "edgeprune": edgeprune_tool}
SAMPLES, FEWER_SAMPLES = 512, 256
LEARNING_RATES = (1e-3, 3e-4)
TREATMENTS = {
    "torch-pruning": ("plain", "recalibrated", "finetuned"),
    "edgeprune": ("plain", "recalibrated", "reconstructed", "reconstructed_256", "finetuned"),
}
# What training starts from, and which row's choice of criterion and scope is used again.
STARTS = {"torch-pruning": "recalibrated", "edgeprune": "reconstructed"}


def key_of(row: Row) -> tuple[Any, ...]:
    """Return what a row is about."""
    return tuple(row[name] for name in ("network", "seed", "share", "tool", "treatment"))


class Cell:
    """One network, seed and share: its pruned networks are made once and used by all treatments."""

    def __init__(self, case: Case, seed: int, share: float) -> None:
        self.case, self.seed, self.share = case, seed, share
        self.dense = case.build(seed).eval()
        self.calibration = case.calibration(seed, SAMPLES)
        self._made: dict[tuple[str, str, str], Candidate | UnmetError] = {}

    def rows(self, wanted: Iterable[tuple[str, str]], known: Known) -> Iterator[Row]:
        """Yield the rows that are not known yet.

        Args:
            wanted: Tools and treatments.
        """
        for tool, treatment in wanted:
            base = {"network": self.case.name, "seed": self.seed, "share": self.share}
            base |= {"tool": tool, "treatment": treatment}
            if key_of(base) in known:
                continue
            try:
                row = base | self._row(tool, treatment, known)
            except UnmetError as error:
                row = base | {"failed": str(error)}
            row["version"] = _versions(tool)
            known[key_of(row)] = row
            yield row

    def _row(self, tool: str, treatment: str, known: Known) -> Row:
        earlier = self._earlier(tool, treatment, known)
        if treatment in ("finetuned", "reconstructed_256"):
            start = self._earlier(tool, STARTS[tool], known)
            if start is None or "failed" in start:
                raise UnmetError(f"there is no network that is {STARTS[tool]}")
            if treatment == "reconstructed_256":
                return self._reused(tool, treatment, start["criterion"], start["scope"])
            rates = LEARNING_RATES if earlier is None else (earlier["lr"],)
            return self._finetuned(tool, start["criterion"], start["scope"], rates)
        if earlier is not None:
            if "failed" in earlier:
                raise UnmetError(earlier["failed"])
            return self._reused(tool, treatment, earlier["criterion"], earlier["scope"])
        return self._searched(tool, treatment)

    def _earlier(self, tool: str, treatment: str, known: Known) -> Row | None:
        """Return the first row that was made with the same settings, of whatever seed."""
        wanted = (self.case.name, self.share, tool, treatment)
        names = ("network", "share", "tool", "treatment")
        return next((row for row in known.values() if tuple(row[name] for name in names) == wanted), None)

    def _treated(self, candidate: Candidate, treatment: str) -> tuple[nn.Module, float]:
        """Return a pruned network after a treatment, and the CPU seconds that it took."""
        started = time.process_time()
        if treatment == "recalibrated":
            model = self._recalibrated(candidate.model)
        elif treatment == "reconstructed":
            model = self._reconstructed(candidate, self.calibration)
        elif treatment == "reconstructed_256":
            model = self._reconstructed(candidate, self.case.calibration(self.seed, FEWER_SAMPLES))
        else:
            model = copy.deepcopy(candidate.model)
        return model, time.process_time() - started

    def _searched(self, tool: str, treatment: str) -> Row:
        tried: list[Row] = []
        best: tuple[float, str, str, Candidate, nn.Module, float] | None = None
        for criterion in TOOLS[tool].CRITERIA:
            for scope in self.case.scopes():
                try:
                    candidate = self._candidate(tool, criterion, scope)
                except UnmetError as error:
                    tried.append({"criterion": criterion, "scope": scope, "unmet": str(error)})
                    continue
                model, spent = self._treated(candidate, treatment)
                validation = self._validation(model)
                tried.append({"criterion": criterion, "scope": scope, "validation": validation})
                if best is None or validation > best[0]:
                    best = (validation, criterion, scope, candidate, model, spent)
        if best is None:
            raise UnmetError("; ".join(row["unmet"] for row in tried))
        return self._facts(*best[1:]) | {"tried": tried}

    def _reused(self, tool: str, treatment: str, criterion: str, scope: str) -> Row:
        candidate = self._candidate(tool, criterion, scope)
        return self._facts(criterion, scope, candidate, *self._treated(candidate, treatment))

    def _candidate(self, tool: str, criterion: str, scope: str) -> Candidate:
        key = (tool, criterion, scope)
        if key not in self._made:
            try:
                made: Candidate | UnmetError = TOOLS[tool].prune(
                    self.case, self.dense, self.seed, self.share, criterion, scope
                )
            except UnmetError as error:
                made = error
            self._made[key] = made
        found = self._made[key]
        if isinstance(found, UnmetError):
            raise found
        return found

    def _recalibrated(self, model: nn.Module) -> nn.Module:
        return recalibrate(model.eval(), self.calibration)

    def _reconstructed(self, candidate: Candidate, calibration: list[tuple[torch.Tensor, ...]]) -> nn.Module:
        return edgeprune_tool.reconstructed(candidate, self.dense, self.case, calibration)

    def _finetuned(self, tool: str, criterion: str, scope: str, rates: Sequence[float]) -> Row:
        candidate = self._candidate(tool, criterion, scope)
        start, _ = self._treated(candidate, STARTS[tool])
        tried: list[Row] = []
        best, lr, spent = start, rates[0], 0.0
        for rate in rates:
            model = copy.deepcopy(start)
            started = time.process_time()
            train_one_epoch_(model, self.case, self.seed, rate)
            spent = time.process_time() - started
            validation = self._validation(model)
            if not tried or validation > max(row["validation"] for row in tried):
                best, lr = model, rate
            tried.append({"lr": rate, "validation": validation})
        return self._facts(criterion, scope, candidate, best, spent) | {"lr": lr, "tried": tried}

    def _facts(self, criterion: str, scope: str, candidate: Candidate, model: nn.Module, spent: float) -> Row:
        return {
            "criterion": criterion,
            "scope": scope,
            "validation": self._validation(model),
            "macs": candidate.macs,
            "params": count_params(model),
            "prune_cpu_s": round(candidate.prune_cpu_s, 3),
            "cpu_s": round(spent, 3),
            "test": self._test(model),
        }

    def _validation(self, model: nn.Module) -> float:
        return round(self.case.validation(fast(model)), 4)

    def _test(self, model: nn.Module) -> float:
        return round(self.case.test(fast(model)), 4)


def dense_row(case: Case, seed: int) -> Row:
    """Return the row of the dense network of a seed."""
    model = case.build(seed).eval()
    return {
        "network": case.name,
        "seed": seed,
        "share": 1.0,
        "tool": "dense",
        "treatment": "dense",
        "validation": round(case.validation(fast(model)), 4),
        "macs": count_macs(model, case.inputs()),
        "params": count_params(model),
        "batch_norms": sum(isinstance(module, _BatchNorm) for module in model.modules()),
        "test": round(case.test(fast(model)), 4),
        "version": {"torch": version("torch")},
    }


def fast(model: nn.Module) -> nn.Module:
    """Return a copy in the memory format in which convolutions are fastest here, ready for evaluation."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def train_one_epoch_(model: nn.Module, case: Case, seed: int, lr: float) -> None:
    """Train in place: AdamW, a cosine to zero, batches in the order of the seed, dropout the same for both tools."""
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for parameter in model.parameters():
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    batches = case.epoch(seed)
    total = len(case.training[0]) // case.batch_size
    torch.manual_seed(seed)
    factor: Callable[[int], float] = lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for batch in batches:
        optimizer.zero_grad()
        case.step(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()


def _versions(tool: str) -> dict[str, str]:
    own = edgeprune_source() if tool == "edgeprune" else version(tool)
    return {tool: own, "torch": version("torch")}
