"""TFLite files as objects and back: constants where the schema wants them, and none lost behind the flatbuffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprune.quantise.flatbuffer import builtin_names, operator_kind, packed, unpacked
from edgeprune.values import PRECISIONS, Precision
from tests.flatbuffer_reader import Read
from tests.quantised_networks import lowered

BUFFERS, DATA, OFFSET = 4, 0, 1


def starts(content: bytes) -> list[int]:
    """Return where every constant of a file begins, read without the schema's own code."""
    found = [buffer.vector_start(DATA) for buffer in Read.root(content).tables(BUFFERS)]
    return [start for start, length in found if length]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_constant_of_every_exported_file_is_aligned(precision: Precision) -> None:
    content = lowered("loud", ".tflite", precision)[0].read_bytes()
    places = starts(content)
    assert len(places) >= 4
    assert all(place % 16 == 0 for place in places)
    assert all(buffer._at(OFFSET) is None for buffer in Read.root(content).tables(BUFFERS))


def test_packing_again_changes_nothing(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    content = lowered("loud", ".tflite", "fp32")[0].read_bytes()
    again = packed(unpacked(content))
    assert packed(unpacked(again)) == again
    assert again[4:8] == b"TFL3"
    assert all(place % 16 == 0 for place in starts(again))
    x, found = np.ones((1, 256), np.float32), []
    for each in (content, again):
        interpreter = Interpreter(model_content=each)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*found)


def test_weights_behind_the_flatbuffer_are_taken_in() -> None:
    content = lowered("loud", ".tflite", "fp32")[0].read_bytes()
    model = unpacked(content)
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in model.buffers]
    place = sizes.index(max(sizes))
    weights = bytes(model.buffers[place].data)
    model.buffers[place].data = None
    model.buffers[place].offset, model.buffers[place].size = 2**31, 2**31 + 1  # filled in below: they keep their width
    short = packed(model)
    model.buffers[place].offset, model.buffers[place].size = len(short), len(weights)
    outside = packed(model)
    assert len(outside) == len(short)
    taken = unpacked(outside + weights)
    assert bytes(taken.buffers[place].data) == weights
    assert taken.buffers[place].offset == taken.buffers[place].size == 0


def test_operators_have_their_names() -> None:
    model = unpacked(lowered("loud", ".tflite", "fp32")[0].read_bytes())
    assert {operator_kind(model, operator) for operator in model.subgraphs[0].operators} == {"FULLY_CONNECTED"}
    assert builtin_names()[9] == "FULLY_CONNECTED"
