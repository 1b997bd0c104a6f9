"""One line of text for each stage of a run: what it achieved, from its facts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from edgeprune.report import quantities as q
from edgeprune.values import Json


def stage_text(stage: str, facts: Json, subject: str | None = None) -> str:
    """Return what a finished stage achieved.

    Args:
        facts: What the stage recorded.
        subject: The file it is about, shown for a stage that is not known here.
    """
    describe = _DESCRIPTIONS.get(stage)
    return describe(facts) if describe is not None else subject or ""


def _describe_plan(facts: Json) -> str:
    groups = facts["groups"]
    free = [group for group in groups if group["pinned"] is None]
    before = sum(group["channels_before"] for group in free)
    after = sum(group["channels_after"] for group in free)
    removed = f" ({q.share(1 - after / before)} removed)" if before else ""
    text = f"{len(free)} of {len(groups)} groups, {before} -> {after} channels{removed}, align {facts['align']}"
    if facts.get("layerwise"):
        states = [trial["state"] for trial in facts["layerwise"]["trials"]]
        text += f", {states.count('kept')} of {len(states)} trials kept"
    gone = [row["name"] for row in facts.get("blocks") or () if row["removed"]]
    return f"without {', '.join(gone)}; {text}" if gone else text


def _describe_apply(facts: Json) -> str:
    before = facts.get("before") or {}
    params = f"{q.count(facts['params'])} params"
    macs = q.macs(facts["macs"])
    if before:
        params = f"{q.count(before['params'])} -> {params}"
        macs = f"{q.macs(before['macs'])} -> {macs}"
    captured = {"swapped": "in part ", "graph": ""}.get((facts.get("output") or {}).get("mode", "eager"))
    calls = "" if captured is None else f", {captured}as recorded calls"
    return f"{params}, {macs}{calls}, verified: {_difference([facts['check']])}"


def _describe_sparsify(facts: Json) -> str:
    return f"{zeros_text(facts)} by {facts['method']}  {metrics_text(facts.get('metrics'))}".rstrip()


def zeros_text(facts: Json) -> str:
    """Return how many of the weights that were considered are zero.

    Args:
        facts: `weights`, `zeros` and `layers` of weight pruning.
    """
    layers = len(facts["layers"])
    share = q.share(facts["zeros"] / max(facts["weights"], 1))
    return f"{share} of {q.count(facts['weights'])} weights in {layers} layer{'s' * (layers != 1)} are zero"


def _describe_reconstruct(facts: Json) -> str:
    if not facts["improved"]:
        return "the pruned weights were kept"
    layers = len({row["weight"] for row in facts["layers"]})
    parts = [f"{layers} weights solved on {facts['samples']} samples{_of(facts)}"]
    parts += [f"error of the outputs {facts['error_before']:.2f} -> {facts['error_after']:.2f}"]
    return "  ".join([", ".join(parts), *filter(None, [metrics_text(facts.get("metrics"))])])


def _of(facts: Json) -> str:
    made_up = facts.get("source") not in (None, "calibration_data", "train_data")
    return f" of {facts['source']}" if made_up else ""


def _describe_metrics(facts: Json) -> str:
    return metrics_text(facts.get("metrics")) or "no evaluate() in the workload"


def _describe_finetune(facts: Json) -> str:
    history = facts["history"]
    if not history:
        return "nothing trained"
    losses = [value for name, value in history[-1]["train"].items() if name == "loss"]
    parts = [f"{len(history)} epoch{'' if len(history) == 1 else 's'}"]
    parts += [f"loss {losses[0]:.3g}"] if losses else []
    parts += (
        [f"{len(facts['features'])} inner tensors compared with the dense network"] if facts.get("features") else []
    )
    parts += [metrics_text(facts["metrics"])] if facts["metrics"] else []
    return "  ".join(parts)


def _describe_train(facts: Json) -> str:
    return f"{_describe_finetune(facts)}  {trail_text(facts['gradual'])}"


def trail_text(gradual: Json) -> str:
    """Return how far pruning came in a training, and after which step.

    Args:
        gradual: `what` and `trail` of it.
    """
    rows = gradual["trail"]
    if not rows:
        return "nothing zeroed"
    return f"{q.share(rows[-1]['zeros'])} of the {gradual['what']} zero after step {rows[-1]['step']}"


def _describe_export(facts: Json) -> str:
    if facts.get("refused"):
        return f"no {PurePath(facts['refused']['path']).name}: {facts['refused']['message']}"
    artifact, name = facts["artifact"], PurePath(facts["artifact"]["path"]).name
    gain = f"  {gain_text(facts['gain'])}" if facts.get("gain") else ""
    return f"{name} {q.size(artifact['size_bytes'])} verified: {_difference(facts['checks'])}{gain}"


def _describe_qat(facts: Json) -> str:
    rounded = f", on integers {metrics_text(facts['rounded'])}" if facts["rounded"] else ""
    return f"{_describe_finetune(facts)}{rounded}"


def gain_text(gain: Json) -> str:
    """Return what quantisation-aware training did to an int8 file.

    Args:
        gain: `post` and `aware` with their metrics and SQNR, the `metric` that decided, and which was `kept`.
    """
    kept = "kept" if gain["kept"] == "aware" else "undone"
    return f"quantisation-aware training {kept}: {kept_words(gain)}"


def kept_words(gain: Json) -> str:
    """Return both figures that decided between a file quantised after training and one that was trained for it."""
    post, aware, metric = gain["post"], gain["aware"], gain["metric"]
    if post is None or aware is None:
        failed = "the post-training file" if post is None else "the file behind quantisation-aware training"
        return f"{failed} was refused"
    decibels = f"SQNR {q.decibels(aware['sqnr_db'])} with it, {q.decibels(post['sqnr_db'])} without"
    if metric is None:
        return decibels
    before, after = (q.metric(side["validation"][metric]) for side in (post, aware))
    return f"{metric} {after} with it, {before} without, {decibels}"


def _describe_accuracy(facts: Json) -> str:
    return f"{facts['artifact']} {metrics_text(facts['metrics'])} through its runtime"


def _describe_train_metrics(facts: Json) -> str:
    return f"on training data: dense {metrics_text(facts['dense'])}, final {metrics_text(facts['final'])}"


def _describe_bench(facts: Json) -> str:
    failed = len(facts.get("failed") or ())
    return f"{facts['rows']} measurements" + (f", {failed} failed" if failed else "")


def _describe_sensitivity(facts: Json) -> str:
    again = f", {facts['reused']} reused" if facts["reused"] else ""
    return f"{facts['groups']} groups, {facts['made']} networks measured{again}: {facts['metric']}"


def _describe_loop(facts: Json) -> str:
    parts = [f"step {facts['number']}, {facts['unit']} {facts['level']:.3g}: {facts['state']}"]
    if facts.get("params") is not None:
        parts.append(f"{q.count(facts['params'])} params, {q.macs(facts['macs'])}")
    return "  ".join([*parts, *filter(None, [metrics_text(facts.get("metrics"))])])


def metrics_text(metrics: Json | None) -> str:
    """Return named metrics in one line."""
    return "  ".join(f"{name} {q.metric(value)}" for name, value in (metrics or {}).items())


def output_lines(output: Json, name: str) -> list[str]:
    """Return which output a compaction has and, where it is not the user's own module, why.

    Args:
        output: `mode`, `captured`, `reason` and `where` of it.
        name: The name of the network's class.
    """
    if output["mode"] == "eager":
        return [f"the result is your {name}, with smaller layers"]
    shown = output["captured"][:3] + ["..."] * (len(output["captured"]) > 3)
    captured = name if output["mode"] == "graph" else ", ".join(shown)
    lines = [f"the result runs {captured} as recorded calls" + (f" inside {name}" if captured != name else "")]
    if output["reason"]:
        place = f" at {q.place(output['where'])}" if output["where"] else ""
        lines.append(f"  because {output['reason'].partition(chr(10))[0]}{place}")
    return lines


def _difference(checks: list[Json]) -> str:
    worst = max(checks, key=q.excess)
    if worst.get("min_sqnr_db") is not None:
        return f"SQNR {q.decibels(worst['sqnr_db'])}, limit {q.check_limit(worst)}"
    return f"max |diff| {q.difference(worst['max_abs'])}, limit {worst['tolerance']:.0e}"


_DESCRIPTIONS: dict[str, Callable[[Json], str]] = {
    "train": _describe_train,
    "plan": _describe_plan,
    "baseline": _describe_metrics,
    "loop": _describe_loop,
    "apply": _describe_apply,
    "reconstruct": _describe_reconstruct,
    "recalibrate": _describe_metrics,
    "sparsify": _describe_sparsify,
    "finetune": _describe_finetune,
    "qat": _describe_qat,
    "export": _describe_export,
    "accuracy": _describe_accuracy,
    "generalise": _describe_train_metrics,
    "bench": _describe_bench,
    "sensitivity": _describe_sensitivity,
}
