"""Rules of the user, for operators that edgeprune does not know: how to write, name and load them.

A rule is a decorated function in a module of the user. It is named as `package.module:function` or `rules.py:function`
and holds for the analysis that it was named for, nowhere else: the built-in tables are never written to.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch

from edgeprune.errors import ConfigError, EdgePruneError
from edgeprune.graph.capture import Record
from edgeprune.graph.flow import RESIZES, RULES, Resize, Rule, UserRules
from edgeprune.graph.operators import operator_name
from edgeprune.workload import import_code


@dataclass(frozen=True, slots=True)
class CustomRule:
    """A decorated function with the operators that it is for; calling it calls the function.

    `operators` are names with their namespace, such as `mylib::gate`. `override` lets it replace a built-in rule.
    """

    function: Callable[..., Any]
    operators: tuple[str, ...]
    kind: Literal["rule", "resize"]
    override: bool

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", "rule"))

    @property
    def reference(self) -> str:
        """`module:function`, by which the settings of a run name it."""
        return f"{self.function.__module__}:{self.__name__}"

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


Entry = str | CustomRule


def rule(*operators: str, override: bool = False) -> Callable[[Rule], CustomRule]:
    """Mark a function as the rule of operators: how the labels of their arguments move to their results.

    The function takes the flow and the call. It reads labels with `flow.of(tensor)` (one per dimension, `None` where a
    dimension is fixed), ties dimensions with `flow.join(a, b, call)`, and gives every result its labels with
    `flow.set(call.result, [...])`. What cannot be pruned it pins: `flow.pin(label, call, "reason")`. Where it raises,
    everything that the call touches is kept whole. A rule that is wrong is found out when edgeprune prunes a little of
    everything on trial; then the channels involved are kept whole too.

    Args:
        operators: Names with their namespace and without overload, such as `mylib::gate`.
        override: Let it replace a built-in rule of the same operator, which is an error otherwise.

    Raises:
        ConfigError: A name has no namespace, or none is given.
    """
    return _marked(operators, "rule", override)


def resize(*operators: str, override: bool = False) -> Callable[[Resize], CustomRule]:
    """Mark a function that rewrites the numbers in an operator's own arguments (sizes, groups) when channels are gone.

    The function takes the call and what is left of its tensors. It returns all arguments by name, changed where they
    must: `{**call.args, "groups": int(widths.kept(call.args["x"], 1).sum())}`. Operators without sizes among their
    arguments need none. It comes along with the rule of the same operator in the same module.

    Args:
        operators: Names with their namespace and without overload, such as `mylib::gate`.
        override: Let it replace a built-in one of the same operator, which is an error otherwise.

    Raises:
        ConfigError: A name has no namespace, or none is given.
    """
    return _marked(operators, "resize", override)


def load_rules(entries: Sequence[Entry]) -> UserRules:
    """Return the rules that entries name; resizes that no entry names come from the modules of their rules.

    Args:
        entries: `package.module:function`, `rules.py:function`, or decorated functions themselves.

    Raises:
        ConfigError: An entry names nothing or no rule, two are for one operator, or one is for a built-in operator.
    """
    found: dict[tuple[str, str], CustomRule] = {}
    beside: list[CustomRule] = []
    for entry in entries:
        if isinstance(entry, CustomRule):
            chosen, home = entry, import_code(entry.function.__module__)
        elif isinstance(entry, str):
            chosen, home = _resolve(entry)
        else:
            raise _no_rule(repr(entry), type(entry).__name__)
        _add_(found, chosen)
        beside.extend(_companions(chosen, home))
    named = dict(found)
    for one in beside:
        if not any((one.kind, _call_name(operator)) in named for operator in one.operators):
            _add_(found, one)
    return UserRules(
        rules={name: one for (kind, name), one in found.items() if kind == "rule"},
        resizes={name: one for (kind, name), one in found.items() if kind == "resize"},
    )


def reference(entry: Entry) -> str:
    """Return how the settings of a run name a rule."""
    return entry.reference if isinstance(entry, CustomRule) else entry


def check_operators(own: UserRules, records: Iterable[Record]) -> None:
    """Check that the operators of the user's rules exist; a misspelt one would be left out without a word.

    Raises:
        ConfigError: One does not; the nearest operator that the network calls is named.
    """
    called = {call.name for record in records for call in record.calls}
    for name in {**own.rules, **own.resizes}:
        if name in called or _exists(name):
            continue
        near = difflib.get_close_matches(name, called, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"there is a rule for '{name}', but no such operator{hint}",
            fix="name the operator as it was registered, such as mylib::gate",
        )


def _marked(operators: tuple[str, ...], kind: Literal["rule", "resize"], override: bool) -> Callable[..., CustomRule]:
    if not operators or not all(isinstance(name, str) and name.count("::") == 1 for name in operators):
        raise ConfigError(
            f"@{kind}{operators!r} names no operator", fix=f'give its namespace and name: @{kind}("mylib::gate")'
        )

    def mark(function: Callable[..., Any]) -> CustomRule:
        return CustomRule(function, operators, kind, override)

    return mark


def _resolve(entry: str) -> tuple[CustomRule, ModuleType]:
    """Return the decorated function that an entry names, and its module."""
    home, _, name = entry.rpartition(":")
    if not home or not name:
        raise ConfigError(
            f"prune.rules: '{entry}' names no function", fix="write package.module:function or rules.py:function"
        )
    try:
        module = import_code(home)
    except EdgePruneError as error:
        raise ConfigError(
            f"prune.rules: '{entry}': {error.message}",
            where=error.where,
            fix=error.fix or "write package.module:function or rules.py:function",
        ) from error
    value = getattr(module, name, None)
    if value is None:
        marked = [key for key, one in vars(module).items() if isinstance(one, CustomRule)]
        near = difflib.get_close_matches(name, marked, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"prune.rules: {home} has no '{name}'{hint}", where=module.__file__, fix=f"its rules: {', '.join(marked)}"
        )
    if not isinstance(value, CustomRule):
        raise _no_rule(f"'{entry}'", type(value).__name__)
    return value, module


def _no_rule(what: str, kind: str) -> ConfigError:
    return ConfigError(
        f"prune.rules: {what} is {kind}, not a rule",
        fix='decorate the function: from edgeprune.rules import rule, then  @rule("mylib::gate")',
    )


def _companions(chosen: CustomRule, home: ModuleType) -> list[CustomRule]:
    """Return the resizes of a rule's operators from its module."""
    if chosen.kind == "resize":
        return []
    others = [one for one in vars(home).values() if isinstance(one, CustomRule) and one.kind == "resize"]
    return [one for one in others if not set(one.operators).isdisjoint(chosen.operators)]


def _add_(found: dict[tuple[str, str], CustomRule], one: CustomRule) -> None:
    for operator in one.operators:
        name = _call_name(operator)
        before = found.get((one.kind, name))
        if before is not None and before is not one:
            raise ConfigError(
                f"prune.rules: {before.reference} and {one.reference} are both the {one.kind} of {operator}",
                fix="name one of them",
            )
        if not one.override and _built_in(name, one.kind):
            raise ConfigError(
                f"prune.rules: {one.reference} would replace the built-in {one.kind} of {operator}",
                fix=f'if that is meant:  @{one.kind}("{operator}", override=True)',
            )
        found[(one.kind, name)] = one


def _call_name(operator: str) -> str:
    """Return the name that calls of an operator have in a record."""
    namespace, _, name = operator.partition("::")
    if namespace not in ("aten", "prim", "prims"):
        return operator
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _built_in(name: str, kind: str) -> bool:
    if kind == "resize":
        return name in RESIZES
    packet = getattr(torch.ops.aten, name, None) if "::" not in name else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return name in RULES or any(torch.Tag.pointwise in one.tags for one in overloads)


def _exists(name: str) -> bool:
    namespace, _, base = name.rpartition("::")
    packet = getattr(getattr(torch.ops, namespace or "aten"), base, None)
    return packet is not None and operator_name(getattr(packet, packet.overloads()[0])) == name
