"""For operators that edgeprune does not know: what one needs to write a rule for them.

A rule says how channels pass an operator. It is named in the settings (`[prune] rules = ["rules.py:gate_rule"]`), or
given to `ep.plan` and `ep.apply`:

    from edgeprune.rules import Call, Flow, rule

    @rule("mylib::gate")
    def gate_rule(flow: Flow, call: Call) -> None:
        x, weight = call.args["x"], call.args["weight"]
        flow.join(flow.of(x)[1], flow.of(weight)[0], call)
        flow.set(call.result, flow.of(x))

`call.args` are the arguments by the names in the operator's schema, tensors as `Ref` with their shape; `call.result` is
the `Ref` of the result, or a list of them.
"""

from __future__ import annotations

from edgeprune.graph.capture import Call, Ref
from edgeprune.graph.flow import Flow, Widths
from edgeprune.graph.rules.custom import resize, rule

__all__ = ["Call", "Flow", "Ref", "Widths", "resize", "rule"]
