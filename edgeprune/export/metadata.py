"""Metadata that model viewers show: properties and texts of an ONNX file, standard TFLite Metadata of a TFLite file.

Owns what goes where in each format, bytes in and bytes out. What a file computes does not change, and neither does the
record of `record`, which is edgeprune's own.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

from edgeprune.errors import ConfigError
from edgeprune.export.description import LABELS, Description, TensorNote
from edgeprune.export.flatbuffer import Byte, Table, build, pack_model
from edgeprune.preprocessing import Preprocessing

TFLITE_NAME = "TFLITE_METADATA"
TFLITE_IDENTIFIER = b"M001"
# The first version of the schema that has all the fields used here.
_PARSER_VERSION = "1.0.0"
_AXIS_LABELS, _NORMALIZATION = 2, 1
_FEATURE, _IMAGE = 1, 2
_COLOURS: dict[int | None, int] = {3: 1, 1: 2}  # RGB, greyscale


def describe_file(content: bytes, suffix: str, description: Description) -> bytes:
    """Return a `.onnx` or `.tflite` file with a description in it, in place of the one it may have.

    Raises:
        ConfigError: The suffix is another one, or the description has other inputs or outputs than the file.
    """
    if suffix == ".onnx":
        return _describe_onnx(content, description)
    if suffix == ".tflite":
        return _describe_tflite(content, description)
    raise ConfigError(f"'{suffix}' is neither .onnx nor .tflite")


def _describe_onnx(content: bytes, description: Description) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    model.producer_name, model.producer_version = "edgeprune", description.version
    model.doc_string = model.graph.doc_string = description.text
    for values, notes in ((model.graph.input, description.inputs), (model.graph.output, description.outputs)):
        for value, note in zip(values, _in_order(notes, [value.name for value in values]), strict=True):
            value.doc_string = note.text
    labels = next((note.labels for note in description.outputs if note.labels), ())
    inputs = {note.name: {"meaning": note.text} | note.preprocessing.as_dict() for note in description.inputs}
    added = {
        "name": description.name,
        "description": description.text,
        "task": description.task,
        "precision": description.precision,
        "model_author": description.author,
        "model_license": description.license,
        "inputs": json.dumps(inputs, sort_keys=True),
        "labels": "\n".join(labels),
    }
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in added]
    del model.metadata_props[:]
    for key, value in [*kept, *((key, value) for key, value in added.items() if value)]:
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def _describe_tflite(content: bytes, description: Description) -> bytes:
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(content))
    inputs = _in_order(description.inputs, tflite_tensor_names(model, "inputs"))
    outputs = _in_order(description.outputs, tflite_tensor_names(model, "outputs"))
    data = np.frombuffer(tflite_metadata(description, inputs, outputs), dtype=np.uint8)
    entry = next((item for item in model.metadata or [] if item.name == TFLITE_NAME.encode()), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = TFLITE_NAME, len(model.buffers)
        model.buffers.append(schema.BufferT())
        model.metadata = [*(model.metadata or []), entry]
    model.buffers[entry.buffer].data = data
    model.description = description.text
    labels = next((note.labels for note in description.outputs if note.labels), ())
    return with_files(pack_model(model), {LABELS: "".join(f"{label}\n" for label in labels)} if labels else {})


def with_files(content: bytes, files: dict[str, str]) -> bytes:
    """Return a TFLite file with files appended as a zip archive, which interpreters do not look at."""
    if not files:
        return content
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return stream.getvalue()


def tflite_metadata(description: Description, inputs: Sequence[TensorNote], outputs: Sequence[TensorNote]) -> bytes:
    """Return the TFLite Metadata of a file whose one subgraph has these inputs and outputs, in its order."""
    tensors = {2: tuple(_tensor(note) for note in inputs), 3: tuple(_tensor(note) for note in outputs)}
    graph = Table({0: description.name, 1: description.text, **tensors})
    about: dict[int, Any] = {0: description.name, 1: description.text, 2: description.version, 3: (graph,)}
    about |= {4: description.author, 5: description.license, 7: _PARSER_VERSION}
    return build(Table(about), TFLITE_IDENTIFIER)


def _tensor(note: TensorNote) -> Table:
    found = note.preprocessing
    if found.kind == "image":
        content = Table({0: Byte(_IMAGE), 1: Table({0: Byte(_COLOURS.get(note.channels, 0))})})
    else:
        content = Table({0: Byte(_FEATURE), 1: Table({})})
    fields: dict[int, Any] = {0: note.name, 1: note.text, 3: content}
    if found.mean or found.std or found.scale:
        mean, std = standard_normalisation(found)
        fields[4] = (Table({0: Byte(_NORMALIZATION), 1: Table({0: mean, 1: std})}),)
    if note.low is not None and note.high is not None:
        fields[5] = Table({0: (note.high,), 1: (note.low,)})
    if note.labels:
        fields[6] = (Table({0: LABELS, 1: "Names of the places along the last axis.", 2: Byte(_AXIS_LABELS)}),)
    return Table(fields)


def standard_normalisation(found: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of TFLite's `(raw - mean) / std`, which has no scale: it goes into both."""
    count = max(len(found.mean), len(found.std), len(found.scale))
    mean, std, scale = (
        values * count if len(values) == 1 else values or (default,) * count
        for values, default in ((found.mean, 0.0), (found.std, 1.0), (found.scale, 1.0))
    )
    return (
        tuple(value / factor for value, factor in zip(mean, scale, strict=True)),
        tuple(value / factor for value, factor in zip(std, scale, strict=True)),
    )


def _in_order(notes: Sequence[TensorNote], names: Sequence[str]) -> list[TensorNote]:
    """Return the notes in a file's order: by name where the names agree, else by position."""
    if len(notes) != len(names):
        raise ConfigError(f"{len(notes)} inputs or outputs are described, the file has {len(names)}")
    by_name = {note.name: note for note in notes}
    return [by_name[name] for name in names] if set(by_name) == set(names) else list(notes)


def tflite_tensor_names(model: Any, side: str) -> list[str]:
    """Return the names of a TFLite model's inputs or outputs in the order of its subgraph, those of its signature."""
    graph = model.subgraphs[0]
    indices = [int(index) for index in getattr(graph, side)]
    names = {index: graph.tensors[index].name.decode() for index in indices}
    for signature in model.signatureDefs or []:
        if signature.subgraphIndex == 0:
            names |= {entry.tensorIndex: entry.name.decode() for entry in getattr(signature, side) or []}
    return [names[index] for index in indices]
