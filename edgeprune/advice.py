"""Advice: a strategy and settings from a network, its data and a budget, each with the measurement that it rests on.

Owns the rules and what they quote. Every figure stands in the named file of the repository, and a test looks it up
there. Does not look at networks: `Facts` are all it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from edgeprune.values import Countable, parse_bytes

RECOVERY = "benchmarks/results/recovery.md"
OVERFITTING = "benchmarks/results/overfitting.md"
RUNS = "benchmarks/results/README.md"
BYTES_PER_PARAMETER = 4.3
_FEW_SAMPLES, _LARGE = 5000, 0.3
Family = Literal["convolutional", "attention", "recurrent", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at.

    Attributes:
        family: What most of the multiply-accumulates are made by.
        depthwise: Some convolutions have a group per channel.
        stream: The widest thing that many layers write and normalisations count, by name.
        embeddings: Share of the parameters in tables that are looked up.
        prunable: Share of the multiply-accumulates that pruning can lower.
        labels: There are training data and a loss.
        inputs: There are inputs to calibrate and distil with.
        scored: There is an `evaluate`.
        samples: Training samples of an epoch, None where they were not counted.
        budget: `max_macs` or `max_params` as asked for.
        ratio: Fraction of the channels that goes where there is no budget.
        max_size: The size budget of a file, as written.
        max_latency: The same of the latency.
    """

    family: Family
    depthwise: bool = False
    stream: str | None = None
    embeddings: float = 0.0
    prunable: float = 1.0
    params: int
    labels: bool = False
    inputs: bool = False
    scored: bool = False
    samples: int | None = None
    budget: tuple[Countable, str] | None = None
    ratio: float = 0.5
    max_size: str | None = None
    max_latency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One recommendation.

    Attributes:
        words: What to add to the command line; empty where the default is right or something else is to be done.
        text: What to do and why.
        figures: What was measured.
        source: The file in the repository that says so.
    """

    words: tuple[str, ...] = ()
    text: str
    figures: str
    source: str


def advise(facts: Facts) -> tuple[Advice, ...]:
    """Return what the rules say of a network: the goal first, then how to choose channels, then how to recover."""
    return tuple(
        advice
        for rule in (_goal, _shape, _embeddings, _criterion, _recovery, _generalisation)
        for advice in rule(facts)
    )


def words_of(advices: Iterable[Advice]) -> list[str]:
    """Return the command-line words of all recommendations, in their order."""
    return [word for advice in advices for word in advice.words]


def _goal(facts: Facts) -> Iterator[Advice]:
    """Say how much to remove."""
    if facts.max_size is not None:
        share = parse_bytes(facts.max_size) / (BYTES_PER_PARAMETER * facts.params)
        if share >= 1:
            text = f"the network fits {facts.max_size} as it is: prune for speed, or not at all"
            words: tuple[str, ...] = ("--ratio", "0.5")
        else:
            text = f"{facts.max_size} holds {share:.0%} of the parameters as float32"
            words = ("--max-params", f"{int(share * 1000) / 1000:g}x")
        figures = "an exported file has 4.0 to 4.3 bytes for every parameter, a TFLite file with an LSTM up to 7.4"
        yield Advice(words=(*words, "--max-size", facts.max_size), text=text, figures=figures, source=RUNS)
    elif facts.budget is not None:
        kind, limit = facts.budget
        yield _depth(facts, (f"--max-{kind}", limit))
    else:
        yield _depth(facts, ("--ratio", f"{facts.ratio:g}"))
    if facts.max_latency is not None:
        yield Advice(
            words=("--max-latency", facts.max_latency),
            text="latency falls less than the multiply-accumulates and has to be measured: look at the verdict and "
            "ask for less or more",
            figures="a quarter of the multiply-accumulates made the ResNet-8 2.63x as fast in ONNX Runtime and 3.23x "
            "in LiteRT",
            source=RUNS,
        )


def _depth(facts: Facts, words: tuple[str, str]) -> Advice:
    """Say what removing so much costs a network of its family."""
    if facts.family == "attention":
        return Advice(
            words=words,
            text="a Transformer with room to spare loses little at half, and at a quarter",
            figures="tweets Transformer: 74.7 % dense, 74.5 % at 0.5x of the MACs and 73.7 % at 0.25x, reconstructed "
            "only",
            source=RECOVERY,
        )
    if facts.family == "recurrent":
        return Advice(
            words=words,
            text="half of a recurrent network costs about half a point, a quarter more than one",
            figures="mail LSTM: 96.0 % dense, 95.6 % at 0.5x of the MACs and 94.7 % at 0.26x, reconstructed only",
            source=RECOVERY,
        )
    return Advice(
        words=words,
        text="half of a convolutional network's MACs costs little without any training, a quarter wants an epoch",
        figures="ResNet-8: 92.8 % dense, 91.8 % at 0.5x reconstructed, 89.6 % at 0.25x, 91.6 % after an epoch; "
        "MobileNetV2-like: 92.0 %, 89.9 %, 86.0 %, 89.8 %",
        source=RECOVERY,
    )


def _shape(facts: Facts) -> Iterator[Advice]:
    """Say which groups to leave alone."""
    if facts.stream is not None:
        text = f"'{facts.stream}' is a stream that normalisations count: it is left whole where the goal allows it"
        if facts.embeddings > _LARGE:
            text += (
                f"; {facts.embeddings:.0%} of the parameters are embeddings, for the most part as wide as it: ask for "
            )
            text += "fewer MACs rather than parameters"
        yield Advice(
            text=text,
            figures="tweets Transformer at 0.25x, on validation: 73.6 % with the stream whole, 70.0 % at best without",
            source=RECOVERY,
        )


def _embeddings(facts: Facts) -> Iterator[Advice]:
    """Say what to do about tables that hold most of the parameters."""
    if _mostly_tables(facts):
        yield Advice(
            words=("-s", "prune.criterion=taylor", "-s", "finetune.distill=0.5") if facts.labels else (),
            text=f"{facts.embeddings:.0%} of the parameters are embeddings: their number falls with the ratio, not "
            "with its square",
            figures="MovieLens recommender with half of its parameters: top1 0.724 -> 0.723, 2.03x smaller",
            source=RUNS,
        )


def _mostly_tables(facts: Facts) -> bool:
    return facts.embeddings > _LARGE and facts.family != "attention"


def _criterion(facts: Facts) -> Iterator[Advice]:
    """Say how to rank channels."""
    if _mostly_tables(facts):
        return
    if facts.family == "attention":
        yield Advice(
            words=("-s", "prune.scope=global"),
            text="rank over the network: some layers of a Transformer matter much more than others",
            figures="tweets Transformer, on validation: global ranking is best at 0.5x and at 0.25x",
            source=RECOVERY,
        )
    elif facts.family == "recurrent":
        yield Advice(
            words=("-s", "prune.criterion=l1", "-s", "prune.scope=global"),
            text="L1 over the network",
            figures="mail LSTM, on validation: best at 0.5x and at 0.26x",
            source=RECOVERY,
        )
    elif facts.depthwise:
        yield Advice(
            words=("-s", "prune.criterion=l1"),
            text="depthwise convolutions: L1 by layer; gradients and BatchNorm scales mislead",
            figures="MobileNetV2-like at 0.25x, on validation: 87.0 % with L1 by layer, 85.7 % with Taylor and 83.3 % "
            "with BatchNorm scales over the network",
            source=RECOVERY,
        )
    elif facts.family == "convolutional" and facts.labels:
        yield Advice(
            words=("-s", "prune.criterion=taylor", "-s", "prune.scope=global"),
            text="there are labels: Taylor over the network",
            figures="ResNet-8 at 0.5x, on validation: 92.8 % with Taylor over the network, 92.2 % with L2 by layer",
            source=RECOVERY,
        )


def _recovery(facts: Facts) -> Iterator[Advice]:
    """Say how to win the accuracy back."""
    if not facts.inputs:
        yield Advice(
            text="write calibration_data(): 256 inputs without labels are enough to reconstruct",
            figures="ResNet-8 at 0.25x: 49.0 % with new BatchNorm statistics, 89.1 % reconstructed on 256 images",
            source=RECOVERY,
        )
    elif not facts.labels:
        yield Advice(
            text="no labels are needed: the network is reconstructed, and learns to repeat the dense one",
            figures="CREPE full at half of the MACs, made-up tones and voices: sines are read 6.488 cents off, 4.791 "
            "by the dense network",
            source=RUNS,
        )
        if facts.family == "attention":
            yield Advice(
                text="a large Transformer and few texts without labels: try --max-macs 0.75x first",
                figures="MiniLM at half of the MACs, 2,048 tweets: cosine to the dense embeddings 0.876, a classifier "
                "on them 0.689 -> 0.662",
                source=RUNS,
            )
    else:
        yield Advice(
            words=("-s", "finetune.epochs=1"),
            text="after reconstruction one epoch brings most of what training can bring",
            figures="ResNet-8 at 0.5x: 91.8 % reconstructed, 92.3 % after one epoch, 92.8 % dense",
            source=RECOVERY,
        )
    if not facts.scored:
        yield Advice(
            text="write evaluate(): without it nobody knows what pruning cost",
            figures="MobileNetV2-like at 0.25x of the MACs: from 92.0 to 10.6 % before reconstruction",
            source=RECOVERY,
        )


def _generalisation(facts: Facts) -> Iterator[Advice]:
    """Say what not to hope for."""
    if facts.samples is not None and facts.samples < _FEW_SAMPLES and facts.labels:
        yield Advice(
            text="do not prune against overfitting: the gap to the test narrows only where the test falls too",
            figures="2,000 images and a perceptron: half of the units gone, the gap is as wide; nine tenths, it is 11 "
            "points narrower and the test reads 5 points less",
            source=OVERFITTING,
        )
