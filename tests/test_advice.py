"""Advice: what the rules say of which network, and that every figure they quote stands in the results they name."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from edgeprune.advice import OVERFITTING, RECOVERY, RUNS, Advice, Facts, advise, words_of

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"ResNet-8": "resnet8", "MobileNetV2-like": "mobile", "mail LSTM": "spam_lstm"}
WITH_LSTM = ("watch", "spam_lstm")
NETWORKS |= {"tweets Transformer": "tweets_transformer"}


def _every_advice() -> list[Advice]:
    """Return what is said to all kinds of networks, data and budgets."""
    found: dict[Advice, None] = {}
    kinds = ("convolutional", "attention", "recurrent", "linear")
    shares = (0.0, 0.9)
    data = ((False, False, None), (False, True, None), (True, True, 2000), (True, True, 50_000))
    budgets = ({}, {"max_size": "100kB"}, {"max_size": "9MB"}, {"max_latency": "1ms"}, {"budget": ("macs", "0.25x")})
    for family, (labels, inputs, samples), budget, embeddings in product(kinds, data, budgets, shares):
        facts = Facts(
            family=family,
            params=100_000,
            depthwise=family == "convolutional" and samples == 2000,
            embeddings=embeddings,
            stream="embedding" if family == "attention" else None,
            labels=labels,
            inputs=inputs,
            scored=labels,
            samples=samples,
            **budget,
        )
        found |= dict.fromkeys(advise(facts))
    return list(found)


EVERY = _every_advice()


def _measured(network: str) -> set[str]:
    """Return the accuracies of a network in the recovery rows: means over seeds, and each that was chosen from."""
    rows = [json.loads(line) for line in (ROOT / RECOVERY).with_suffix(".jsonl").read_text().splitlines()]
    tests: dict[tuple[object, ...], list[float]] = defaultdict(list)
    values: set[str] = set()
    for row in rows:
        if row["network"] == network and "failed" not in row:
            tests[row["share"], row["tool"], row["treatment"]].append(row["test"])
            values |= {f"{tried['validation']:.1f}" for tried in row.get("tried", ()) if "validation" in tried}
    return values | {f"{fmean(found):.1f}" for found in tests.values()}


def _numbers(text: str) -> Iterable[str]:
    return re.findall(r"(\d+\.\d)(?= %)", text)


@pytest.mark.parametrize("advice", EVERY, ids=lambda advice: advice.figures[:40])
def test_figures_stand_in_the_results_that_are_named(advice: Advice) -> None:
    assert advice.source in (RECOVERY, OVERFITTING, RUNS)
    text = (ROOT / advice.source).read_text(encoding="utf-8")
    for part in advice.figures.split("; ") if advice.source == RECOVERY else ():
        name = next(name for name in NETWORKS if part.startswith(name))
        missing = set(_numbers(part)) - _measured(NETWORKS[name])
        assert not missing, f"{part}: {missing}"
    if advice.source == RUNS:
        said = [*re.findall(r"\d\.\d\dx", advice.figures), *re.findall(r"\d\.\d{3}", advice.figures)]
        assert [number for number in said if number not in text] == []
    if advice.source == OVERFITTING:
        (row,) = [line for line in text.splitlines() if line.startswith("| 784-64-10 | 90% of the units")]
        assert re.search(r"\| -1[01]\.\d ± .* \| -[45]\.\d ± ", row)
        (half,) = [line for line in text.splitlines() if line.startswith("| 784-64-10 | 50% of the units")]
        assert re.search(r"\| -0\.[0-4] ± .* \| ", half)


def test_files_have_as_many_bytes_per_parameter_as_is_said() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(path.read_text())
        for row in result.get("artifacts", ()):  # not all are results of runs
            params = result["network"]["params"]["dense" if row["role"] == "baseline" else "pruned"]
            unrolled = path.stem.startswith(WITH_LSTM) and row["artifact"]["format"] == "tflite"
            assert 3.95 < row["artifact"]["size_bytes"] / params < (7.4 if unrolled else 4.3), path


def test_best_by_validation_is_what_is_advised() -> None:
    rows = [json.loads(line) for line in (ROOT / RECOVERY).with_suffix(".jsonl").read_text().splitlines()]
    chosen = defaultdict(set)
    for row in rows:
        if row["tool"] == "edgeprune" and row["treatment"] == "reconstructed":
            chosen[row["network"]].add((row["criterion"], row["scope"].partition(",")[0]))
    advised = {
        "resnet8": Facts(family="convolutional", params=1, labels=True),
        "mobile": Facts(family="convolutional", params=1, labels=True, depthwise=True),
        "spam_lstm": Facts(family="recurrent", params=1),
    }
    for name, facts in advised.items():
        words = words_of(advise(facts))
        setting = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("prune.")}
        assert (setting["prune.criterion"], setting.get("prune.scope", "local")) in chosen[name]
    assert {scope for _, scope in chosen["tweets_transformer"]} == {"global"}
    assert "prune.scope=global" in words_of(advise(Facts(family="attention", params=1)))


def test_a_size_budget_becomes_a_share_of_the_parameters() -> None:
    words = words_of(advise(Facts(family="convolutional", params=1_000_000, max_size="1MB")))
    share = float(words[words.index("--max-params") + 1].rstrip("x"))
    assert share * 1_000_000 * 4.3 <= 1e6 < (share + 0.002) * 1_000_000 * 4.3
    assert words[words.index("--max-size") + 1] == "1MB"
    roomy = advise(Facts(family="convolutional", params=1_000, max_size="1MB"))
    assert "fits 1MB as it is" in roomy[0].text


def test_what_is_missing_is_asked_for() -> None:
    bare = [advice.text for advice in advise(Facts(family="linear", params=1))]
    assert any("calibration_data()" in text for text in bare)
    assert any("evaluate()" in text for text in bare)
    whole = Facts(family="linear", params=1, labels=True, inputs=True, scored=True, samples=60_000)
    assert not any("write " in advice.text or "overfitting" in advice.text for advice in advise(whole))
