"""The loop as stages of a run: every step prunes the last good network, rebuilds it, trains it and looks at it.

A step is a stage like others: with the same settings and the same last good network it is reused. All plans speak of
the dense network, so the last good one and its weights are all that the stages after the loop need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeprune import rundir
from edgeprune.config import RunConfig
from edgeprune.errors import BudgetMissed, ConfigError, NothingToPrune
from edgeprune.pipeline import planning
from edgeprune.pipeline.digests import sensitivity_digest
from edgeprune.pipeline.folders import load_state, save_state
from edgeprune.pipeline.networks import evaluate
from edgeprune.pipeline.stages import Session, run_stage, weights_of
from edgeprune.pipeline.tuning import (
    recalibrated,
    recalibrates,
    reconstructed,
    reconstruction_source,
    training_source,
    tuned,
    workload_features,
)
from edgeprune.rundir import StageKey, StageRecord
from edgeprune.search.loop import End, Outcome, walk
from edgeprune.values import COUNTED, Json, Notice, leading_metric, parse_bytes, parse_count, worsening

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.graph import ChannelGraph
    from edgeprune.graph.flow import UserRules
    from edgeprune.pruning import PrunePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Looped:
    """What the loop came to: the stage of the last step that was kept, and all that was tried."""

    last: StageRecord
    history: Json

    @property
    def plan(self) -> str:
        """The file of the last good plan."""
        return _plan_of(self.last)


def loop(session: Session, dense: StageRecord | None) -> Looped:
    """Prune in steps until the goal is reached, met before, or the floor lets no smaller step pass.

    Args:
        dense: The stage that evaluated the dense network.

    Raises:
        ConfigError: The floor is above what the dense network reaches.
        BudgetMissed: Not even the smallest step keeps to the floor.
    """
    config = session.prepared.config
    metric = _metric(config, dense)
    _check_floor(config, metric, dense)
    goal, unit = goal_of(session)
    steps = _Steps(session=session, unit=unit, metric=metric)
    reached, end = walk(goal, config.loop.steps, config.loop.tries, steps.attempt)
    if steps.last is None:
        fix = "-s loop.floor=... lower, -s loop.epochs=... more, or -s loop.tries=... more"
        if end == "floor":
            raise BudgetMissed(
                f"not even a {unit} of {steps.smallest:.3g} keeps {metric} at {config.loop.floor}", fix=fix
            )
        raise steps.nothing or NothingToPrune(f"no step removes anything up to a {unit} of {goal:g}")
    history = {"goal": goal, "unit": unit, "reached": reached, "end": end, "metric": metric, "steps": steps.history}
    history |= {"floor": config.loop.floor, "dense": dense.facts["metrics"] if dense is not None else None}
    _tell(session, history, end)
    return Looped(last=steps.last, history=history)


def goal_of(session: Session) -> tuple[float, str]:
    """Return how much is to go and of what: a ratio of the units, or a share of what there is a budget for.

    Raises:
        ConfigError: There is nothing to go for.
    """
    from edgeprune.pruning.budget import count

    config = session.prepared.config.prune
    if config.budget is None:
        goal, unit = config.ratio, "ratio"
    else:
        kind, text = config.budget
        value, limit = parse_count(text, kind)
        dense = count(kind, session.prepared.model, session.prepared.inputs)
        goal, unit = 1 - (value if limit == "share" else value / max(dense, 1)), f"share of {COUNTED[kind]}"
    if goal <= 0:
        raise ConfigError("the loop has no goal", fix="--ratio 0.5, --max-macs 0.5x  or  --max-params 0.5x")
    return goal, unit


@dataclass(slots=True, kw_only=True)
class _Steps:
    """The steps of one loop: the last good one, and what was tried."""

    session: Session
    unit: str
    metric: str | None
    last: StageRecord | None = None
    history: list[Json] = field(default_factory=list)
    smallest: float = 1.0
    nothing: NothingToPrune | None = None
    _graph: ChannelGraph | None = None

    def attempt(self, number: int, level: float, refused: frozenset[str]) -> Outcome:
        """Make a step, or take it over from the journal."""
        config = self.session.prepared.config
        key = self._key(number, level, refused)
        checkpoint = self.session.path(f"{rundir.CHECKPOINT}{key.digest()[:12]}")
        rundir.remove_checkpoints(self.session.run.path, checkpoint)

        def work() -> tuple[tuple[str, ...], Json]:
            return self._step(number, level, refused, checkpoint.name)

        record = run_stage(self.session, key, work, subject=f"{number}")
        rundir.remove_checkpoints(self.session.run.path)
        facts = record.facts
        self.history.append({name: facts.get(name) for name in HISTORY})
        if facts["state"] == "rolled back":
            self.smallest = min(self.smallest, level)
        if facts["state"] == "kept":
            self.last = record
        limit = parse_bytes(config.max_size) if config.max_size is not None else None
        met = facts["state"] == "kept" and limit is not None and facts["params"] * 4 <= limit
        return Outcome(state=facts["state"], plan=facts["plan"], met=met)

    def _key(self, number: int, level: float, refused: frozenset[str]) -> StageKey:
        prepared = self.session.prepared
        config = prepared.config
        settings: Json = {f"prune.{name}": value for name, value in config.prune.model_dump(mode="json").items()}
        for name in ("sensitivity", "ratio", "max_macs", "max_params"):
            settings.pop(f"prune.{name}")
        settings |= {f"reconstruct.{name}": value for name, value in config.reconstruct.model_dump(mode="json").items()}
        settings |= {f"finetune.{name}": value for name, value in config.finetune.model_dump(mode="json").items()}
        for name in ("epochs", "checkpoint_every_s"):
            settings.pop(f"finetune.{name}")
        settings |= {"loop.epochs": config.loop.epochs, "loop.floor": config.loop.floor, "seed": config.seed}
        settings |= {"prune.align": prepared.align, "level": level, "unit": self.unit, "refused": sorted(refused)}
        last = self.last.outputs if self.last is not None else {}
        inputs = prepared.digests | sensitivity_digest(config.prune) | last
        return StageKey(stage=f"loop {number}", settings=settings, inputs=inputs)

    def _step(
        self, number: int, level: float, refused: frozenset[str], checkpoint: str
    ) -> tuple[tuple[str, ...], Json]:
        from edgeprune.graph.cost import count_macs, count_params
        from edgeprune.graph.rules.custom import load_rules

        prepared = self.session.prepared
        facts: Json = {"number": number, "level": level, "unit": self.unit, "goal": None, "metrics": None}
        rules = load_rules(prepared.config.prune.rules)
        last = self._last(rules)
        plan = self._plan(level, rules, last)
        if plan is None or (self.last is not None and plan.digest == self.last.facts["plan"]):
            return (), facts | {"state": "unchanged", "plan": plan.digest if plan is not None else ""}
        facts["plan"] = plan.digest
        if plan.digest in refused:
            return (), facts | {"state": "repeated"}
        model, before, after = self._network(plan, rules, last, checkpoint)
        facts |= {"params": count_params(model), "macs": count_macs(model, prepared.inputs)}
        facts |= {"pruned": before, "metrics": after}
        floor, value = prepared.config.loop.floor, (after or {}).get(self.metric or "")
        if floor is not None and (value is None or not worsening(str(self.metric), floor, value) <= 0):
            return (), facts | {"state": "rolled back"}
        names = (f"{rundir.STEP}{number}.plan.json", f"{rundir.STEP}{number}.safetensors")
        plan.save(self.session.path(names[0]))
        save_state(self.session.path(names[1]), model.state_dict())
        return names, facts | {"state": "kept"}

    def _plan(self, level: float, rules: UserRules | None, last: planning.Last | None) -> PrunePlan | None:
        """Return the plan that removes this much in all; None where rounding leaves everything whole."""
        prepared = self.session.prepared
        data, step = training_source(prepared.workload)
        budget = prepared.config.prune.budget
        changes: Json = {"ratio": level} if budget is None else {"ratio": 0.0, f"max_{budget[0]}": f"{1 - level:.9f}x"}
        try:
            planned = planning.make(
                prepared.model,
                prepared.inputs,
                prepared.config.prune.model_copy(update=changes),
                align=prepared.align,
                step=step,
                data=data,
                seed=prepared.config.seed,
                rules=rules,
                sensitivity=planning.read_sensitivity(prepared.config.prune),
                last=last,
            )
        except NothingToPrune as error:
            self.nothing = error
            return None
        self._graph = planned.graph
        return planned.plan

    def _last(self, rules: UserRules | None) -> planning.Last | None:
        from edgeprune.pruning import PrunePlan

        if self.last is None:
            return None
        prepared = self.session.prepared
        plan = PrunePlan.load(self.session.path(_plan_of(self.last)))
        if self._graph is None:
            self._graph = planning.given(prepared.model, prepared.inputs, plan, rules).graph
        weights = load_state(self.session.path(weights_of(self.last)))
        return planning.Last(plan=plan, graph=self._graph, weights=weights)

    def _network(
        self, plan: PrunePlan, rules: UserRules | None, last: planning.Last | None, checkpoint: str
    ) -> tuple[nn.Module, Json | None, Json | None]:
        """Return the rebuilt and trained network, with its metrics before and after training."""
        from edgeprune.compact import apply as compact
        from edgeprune.compact import grown
        from edgeprune.compact.plans import prepared as entered

        prepared, config = self.session.prepared, self.session.prepared.config
        whole = prepared.model
        if last is not None:
            whole = entered(whole, prepared.inputs, split=config.prune.split_recurrent)
            whole = grown(whole, last.graph, last.plan.keep, last.weights)
        model = compact(whole, plan, prepared.inputs, self._graph, rules).model
        solved = False
        if config.reconstruct.samples > 0:
            model, found = reconstructed(
                prepared.workload, model, self._target(whole), plan, prepared.inputs, config.reconstruct, rules=rules,
                listen=self.session.listen,
            )  # fmt: skip
            solved = found["improved"]
        if not solved and recalibrates(prepared.workload, model, config.finetune.recalibrate_batches):
            model = recalibrated(prepared.workload, model, config.finetune.recalibrate_batches)
        before = evaluate(prepared.workload, model)
        if training_source(prepared.workload)[0] is None or config.loop.epochs == 0:
            return model, before, before
        training = config.finetune.model_copy(update={"epochs": config.loop.epochs})
        result = tuned(
            prepared.workload,
            model,
            prepared.model,
            training,
            checkpoint=self.session.path(checkpoint),
            seed=config.seed,
            listen=self.session.listen,
            features=workload_features(
                prepared.workload, training, model, prepared.model, plan, prepared.inputs, rules
            ),
        )
        after = evaluate(prepared.workload, result.model)
        if before is None or after is None or worsening(str(self.metric), *_values(self.metric, before, after)) <= 0:
            return result.model, before, after
        return model, before, before  # training that does not help is not kept

    def _target(self, whole: nn.Module) -> nn.Module:
        """Return the network whose layers the next one is to repeat: the last good one, which training improved.

        `whole` says what that one does unless statistics over channels count those that are gone, too; nor do inputs
        made up from statistics fit it.
        """
        prepared = self.session.prepared
        clean = self._graph is not None and not self._graph.statistics
        return whole if clean and reconstruction_source(prepared.workload)[0] is not None else prepared.model


def _plan_of(record: StageRecord) -> str:
    return next(name for name in record.outputs if name.endswith(".json"))


HISTORY = ("number", "level", "state", "plan", "params", "macs", "pruned", "metrics")


def _values(metric: str | None, before: Json, after: Json) -> tuple[float, float]:
    metric = str(metric)
    return before[metric], after[metric]


def _metric(config: RunConfig, dense: StageRecord | None) -> str | None:
    return leading_metric(dense.facts["metrics"], config.finetune.metric) if dense is not None else None


def _check_floor(config: RunConfig, metric: str | None, dense: StageRecord | None) -> None:
    floor = config.loop.floor
    if floor is None or dense is None or metric is None:
        return
    value = dense.facts["metrics"][metric]
    if worsening(metric, floor, value) > 0:
        raise ConfigError(
            f"loop.floor = {floor:g}, and the dense network has {metric} {value:.4g}: no network can be good enough",
            fix=f"-s loop.floor=... , such as {value - 0.01 * abs(value):.3g}",
        )


def _tell(session: Session, history: Json, end: End) -> None:
    """Say where the loop ended before its goal."""
    unit, reached, goal = history["unit"], history["reached"], history["goal"]
    if end == "floor":
        text = f"the loop ended at a {unit} of {reached:.3g} of {goal:g}: more would fall below {history['floor']:g}"
        fix = "-s loop.epochs=... trains longer in each step"
        session.notice("loop", Notice(code="floor", text=text, fix=fix))
    elif end == "met" and reached < goal - 1e-9:
        size = session.prepared.config.max_size
        text = f"the loop ended at a {unit} of {reached:.3g} of {goal:g}: the parameters take no more than {size}"
        session.notice("loop", Notice(code="met", text=text))
