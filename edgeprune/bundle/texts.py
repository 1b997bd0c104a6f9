"""The texts of a bundle: the script, snippets for Kotlin and C++, the instructions.

Owns what a template is told about a file: names that the languages take, types, sizes in the file's own layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.resources import files

from edgeprune.errors import ConfigError
from edgeprune.export.description import formula, shape_text
from edgeprune.preprocessing import Preprocessing
from edgeprune.values import Json

SCRIPT = "predict.py"
TEMPLATES = ("Predict.kt", "predict.cpp", "README.txt")
# dtype: Kotlin array, view of a ByteBuffer, its bytes, C++ type of a vector, C++ type of an ONNX Runtime tensor.
_TYPES = {
    "float32": ("FloatArray", "asFloatBuffer()", 4, "float", "float"),
    "float64": ("DoubleArray", "asDoubleBuffer()", 8, "double", "double"),
    "float16": ("ShortArray", "asShortBuffer()", 2, "uint16_t", "Ort::Float16_t"),
    "int64": ("LongArray", "asLongBuffer()", 8, "int64_t", "int64_t"),
    "int32": ("IntArray", "asIntBuffer()", 4, "int32_t", "int32_t"),
    "int16": ("ShortArray", "asShortBuffer()", 2, "int16_t", "int16_t"),
    "int8": ("ByteArray", "", 1, "int8_t", "int8_t"),
    "uint8": ("ByteArray", "", 1, "uint8_t", "uint8_t"),
    "bool": ("ByteArray", "", 1, "uint8_t", "bool"),
}


def texts(bundle: Json) -> dict[str, str]:
    """Return the script, the snippets and the instructions of a bundle by their names in it."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("edgeprune.bundle")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=False,  # code and plain text, never HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = {
        "bundle": bundle,
        "files": [_file(name, file, bundle) for name, file in bundle["files"].items()],
        "formats": {file["format"] for file in bundle["files"].values()},
        "preprocessing": _sentences(bundle["inputs"]),
        "own": " ".join(f"{entry['name']}.npy" for entry in bundle["inputs"]),
    }
    rendered = {name: environment.get_template(f"{name}.jinja").render(**facts) for name in TEMPLATES}
    return {SCRIPT: folder.joinpath(SCRIPT).read_text(encoding="utf-8"), **rendered}


def _file(name: str, file: Json, bundle: Json) -> Json:
    """Return what a template needs of one file."""
    batch = file["batch"] or 1
    words = re.split(r"\W+", name, flags=re.ASCII)
    named = "".join(word[:1].upper() + word[1:] for word in words if word)
    labels = next((entry["name"] for entry in bundle["outputs"] if entry["labels"]), None)
    return {
        "name": name,
        "format": file["format"],
        "precision": file["precision"],
        "class": named if named[:1].isalpha() else f"Model{named}",
        "inputs": [_tensor("in_", *pair, batch) for pair in zip(file["inputs"], bundle["inputs"], strict=True)],
        "outputs": [_tensor("out_", *pair, batch) for pair in zip(file["outputs"], bundle["outputs"], strict=True)],
        "labelled": labels,
    }


def _tensor(side: str, own: Json, network: Json, batch: int) -> Json:
    """Return what a template needs of one input or output."""
    shape = [batch if size is None else size for size in own["shape"]]
    scale = own["quantization"]
    if own["dtype"] not in (_TYPES if scale is None else ("int8", "uint8")):
        raise ConfigError(
            f"'{own['name']}' is {own['dtype']}, which the snippets of a bundle cannot hold",
            fix="export with inputs and outputs of float32, int8 or uint8",
        )
    kotlin, view, size, cpp, ort = _TYPES[own["dtype"]]
    outside = _TYPES["float32"] if scale else _TYPES[own["dtype"]]
    found: Json = {
        "name": own["file_name"],
        "identifier": _identifier(own["name"], side),
        "position": own["position"],
        "shape": shape,
        "count": math.prod(shape),
        "dtype": own["dtype"],
        "bytes": size,
        "view": view,
        "kotlin": outside[0],
        "kotlin_inside": kotlin,
        "cpp": outside[3],
        "cpp_inside": cpp,
        "ort": ort,
        "quantization": scale,
        "signed": own["dtype"] == "int8",
        "text": f"{'float32' if scale else own['dtype']} {shape_text(shape)}{_layout(own)}",
        "normalisation": None,
    }
    if network.get("preprocessing"):
        found["normalisation"] = _normalisation(own, network, shape)
    return found


def _normalisation(own: Json, network: Json, shape: Sequence[int]) -> Json | None:
    """Return the arithmetic of an input for a flat array in the file's layout; None where there is none."""
    found = network["preprocessing"]
    if not found.keys() & {"mean", "std", "scale"} or own["dtype"] not in ("float32", "int8", "uint8"):
        return None
    axis = network["channel_axis"]
    axis = own["axes"].index(axis) if own["axes"] else axis
    values = {key: found.get(key, [default]) for key, default in (("scale", 1.0), ("mean", 0.0), ("std", 1.0))}
    count = max(map(len, values.values()))
    lists = {key: value * count if len(value) == 1 else value for key, value in values.items()}
    return lists | {"count": count, "step": math.prod(shape[axis + 1 :]) if count > 1 else 1, "text": _formula(found)}


def _formula(found: Json) -> str:
    mean, std, scale = (tuple(found.get(key, ())) for key in ("mean", "std", "scale"))
    return formula(Preprocessing(mean=mean, std=std, scale=scale))


def _layout(own: Json) -> str:
    return f" {own['layout'].upper()}" if own["layout"] else ""


def _sentences(inputs: Sequence[Json]) -> list[str]:
    """Return what has to be done to each input, in words."""
    lines = []
    for entry in inputs:
        found = entry["preprocessing"]
        parts = [f"{entry['dtype']} {shape_text(entry['shape'])}"]
        if _formula(found):
            parts.append(f"value = {_formula(found)}")
        if "sample_rate" in found:
            parts.append(f"sampled at {found['sample_rate']:g} Hz")
        if "vocabulary" in found:
            parts.append(f"tokens from 0 to {found['vocabulary'] - 1}")
        if "description" in found:
            parts.append(found["description"])
        lines.append(f"{entry['name']}: {', '.join(parts)}")
    return lines


def _identifier(name: str, side: str) -> str:
    """Return a name for Kotlin and C++: with the side before it, it is no word of either language."""
    return side + re.sub(r"\W", "_", name, flags=re.ASCII)
