"""What a file says about itself to viewers and code generators: names, meanings, normalisation, labels.

Owns the description as plain data. How each format holds it is in `metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeprune.errors import ConfigError
from edgeprune.export.record import Record
from edgeprune.preprocessing import Preprocessing
from edgeprune.values import TensorSpec
from edgeprune.version import VERSION

LABELS = "labels.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNote:
    """What one input or output means.

    `low` and `high` bound the values of an input that were seen, if that is known; `channels` are those of a picture.
    `labels` name the places along the last axis of an output.
    """

    name: str
    text: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    low: float | None = None
    high: float | None = None
    channels: int | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a whole file means. `task` is a word such as `classification`; texts that nobody gave are empty."""

    name: str
    text: str
    precision: str
    inputs: tuple[TensorNote, ...]
    outputs: tuple[TensorNote, ...]
    task: str = ""
    version: str = VERSION
    author: str = ""
    license: str = ""


def describe_record(
    record: Record,
    *,
    name: str,
    preprocessing: Mapping[str, Preprocessing] | None = None,
    labels: Sequence[str] = (),
    task: str = "",
) -> Description:
    """Return the description of a file that will hold a record.

    Args:
        preprocessing: By the names of inputs.
        labels: Of the first output whose last axis has as many places.

    Raises:
        ConfigError: No output has a place for every label.
    """
    precision = record.values.get("precision", "fp32")
    known = preprocessing or {}
    position = labelled_output(record.outputs, labels) if labels else None
    outputs = tuple(
        TensorNote(name=spec.name, text=_output_text(spec), labels=tuple(labels) if index == position else ())
        for index, spec in enumerate(record.outputs)
    )
    pruned = "pruned" if "plan" in record.values else "not pruned"
    return Description(
        name=name,
        text=f"{name}, {pruned}, {precision}, written by edgeprune {VERSION}.",
        precision=precision,
        inputs=tuple(_input_note(spec, known.get(spec.name, Preprocessing())) for spec in record.inputs),
        outputs=outputs,
        task=task or ("classification" if labels else ""),
    )


def labelled_output(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> int:
    """Return the position of the first output whose last axis has a place for every label.

    Raises:
        ConfigError: There is none.
    """
    sizes = [spec.shape[-1] if spec.shape else None for spec in outputs]
    if len(labels) not in sizes:
        raise ConfigError(
            f"{len(labels)} labels, but the last axes of the outputs have {', '.join(map(str, sizes))} places",
            fix="give one label for every place of an output",
        )
    return sizes.index(len(labels))


def formula(found: Preprocessing) -> str:
    """Return the arithmetic of an input as people write it, empty where there is none."""
    scaled = f"raw * {_numbers(found.scale)}" if found.scale else "raw"
    if found.mean:
        scaled = f"{scaled} - {_numbers(found.mean)}"
    if found.std:
        scaled = f"({scaled}) / {_numbers(found.std)}" if scaled != "raw" else f"raw / {_numbers(found.std)}"
    return scaled if scaled != "raw" else ""


def _input_note(spec: TensorSpec, found: Preprocessing) -> TensorNote:
    parts = [f"{spec.dtype} {shape_text(spec.shape)}, values seen between {spec.low:g} and {spec.high:g}"]
    if formula(found):
        parts.append(f"value = {formula(found)}")
    if found.sample_rate is not None:
        parts.append(f"sampled at {found.sample_rate:g} Hz")
    if found.vocabulary is not None:
        parts.append(f"tokens from 0 to {found.vocabulary - 1}")
    if found.description:
        parts.append(found.description.rstrip("."))
    text = ". ".join(part[0].upper() + part[1:] if index else part for index, part in enumerate(parts))
    return TensorNote(
        name=spec.name,
        text=f"{text}.",
        preprocessing=found,
        low=spec.low,
        high=spec.high,
        channels=_channels(spec) if found.kind == "image" else None,
    )


def _channels(spec: TensorSpec) -> int | None:
    """Return the channels of a picture, first or last, None where both or neither can be meant."""
    found = {size for size in (spec.shape[1], spec.shape[-1]) if size in (1, 3)} if len(spec.shape) == 4 else set()
    return found.pop() if len(found) == 1 else None


def _output_text(spec: TensorSpec) -> str:
    return f"{spec.dtype} {shape_text(spec.shape)}."


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as `(batch, 3, 32, 32)`."""
    sizes = ["batch" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
