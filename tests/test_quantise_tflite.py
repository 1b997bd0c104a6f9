"""Int8 TFLite files: names, what can be watched, and what operators that stay in float32 look like."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.errors import ExportError, ModelError
from edgeprune.quantise.flatbuffer import operator_kind, unpacked
from edgeprune.quantise.ranges import Histogram, Interval, interval
from edgeprune.quantise.tflite import TfliteFloat, _quiet
from tests.quantised_networks import inputs, lowered

FLOAT32, INT8 = 0, 9


def opened(name: str) -> TfliteFloat:
    return TfliteFloat(lowered(name, ".tflite", "fp32")[0].read_bytes())


def watched(name: str) -> tuple[dict[str, Histogram], dict[str, Interval]]:
    from edgeprune.export.opened import open_artifact

    counts: dict[str, Histogram] = {}
    artifact = open_artifact(lowered(name, ".tflite", "fp32")[0])
    samples = [artifact.feeds([x.numpy() for x in inputs(name, 1, seed)]) for seed in range(6)]
    opened(name).watch(samples, lambda key, array: counts.setdefault(key, Histogram()).add(array))
    return counts, {key: interval(counted, "minmax") for key, counted in counts.items()}


def tensors_of(content: bytes) -> list[tuple[str, str, list[tuple[int, int, int]]]]:
    """Return kind and name of every operator, and type, size and number of scales of what it reads and writes."""
    model = unpacked(content)
    graph, found = model.subgraphs[0], []
    for operator in graph.operators:
        ends = []
        for index in (*operator.inputs, *operator.outputs):
            if index < 0:
                continue
            tensor = graph.tensors[index]
            steps = tensor.quantization
            scales = 0 if steps is None or steps.scale is None else len(steps.scale)
            ends.append((tensor.type, int(np.prod(tensor.shape)) if tensor.shape is not None else 1, scales))
        found.append((operator_kind(model, operator), graph.tensors[operator.outputs[0]].name.decode(), ends))
    return found


@pytest.mark.parametrize("name", ["pictures", "words"])
def test_operators_have_names_of_their_own_and_every_float_between_them_is_watched(name: str) -> None:
    file = opened(name)
    names = [operator.name for operator in file.operators()]
    assert len(set(names)) == len(names) > 2
    counts, _ = watched(name)
    whole = {operator.name for operator in file.operators() if operator.kind in ("ARG_MAX", "RESHAPE")}
    assert set(names) - whole <= set(counts)
    assert all(counted.counts.sum() > 0 for counted in counts.values())


def test_the_padding_of_max_pooling_widens_no_range() -> None:
    counts, ranges = watched("pictures")
    assert all(-100 < found.low <= 0 <= found.high < 100 for found in ranges.values())
    assert all(np.isfinite([counted.low, counted.high]).all() for counted in counts.values())


def test_weights_have_a_scale_per_output_channel_and_activations_one() -> None:
    _, ranges = watched("loud")
    operators = tensors_of(opened("loud").quantise(ranges, frozenset()))
    products = [ends for kind, _, ends in operators if kind == "FULLY_CONNECTED"]
    assert len(products) == 2
    for (kind, _, scales), (weight_kind, size, weight_scales), *_ in products:
        assert (kind, scales) == (INT8, 1)
        assert weight_kind == INT8
        assert weight_scales == {64 * 256: 64, 64 * 8: 8}[size]


def test_an_operator_that_stays_in_float_reads_floats_and_keeps_integer_weights() -> None:
    file, (_, ranges) = opened("loud"), watched("loud")
    chosen = next(operator.name for operator in file.operators() if operator.kind == "FULLY_CONNECTED")
    content = file.quantise(ranges, frozenset([chosen]))
    kinds = {name.partition(";")[0]: ends for kind, name, ends in tensors_of(content) if kind == "FULLY_CONNECTED"}
    assert kinds[chosen][0][0] == FLOAT32
    assert kinds[chosen][-1][0] == FLOAT32
    other = next(ends for name, ends in kinds.items() if name != chosen)
    assert other[0][0] == INT8
    assert len(content) < 0.5 * lowered("loud", ".tflite", "fp32")[0].stat().st_size


def test_without_any_operator_on_integers_only_weights_are() -> None:
    file, (_, ranges) = opened("pictures"), watched("pictures")
    content = file.quantise(ranges, frozenset(operator.name for operator in file.operators()))
    for kind, _, ends in tensors_of(content):
        if kind != "DEQUANTIZE":
            assert INT8 not in (ends[0][0], ends[-1][0]), kind


def test_tables_of_words_get_integers_in_static_int8() -> None:
    operators = tensors_of(lowered("words", ".tflite", "int8")[0].read_bytes())
    tables = [end for _, _, ends in operators for end in ends[:-1] if end[1] == 50 * 32]
    assert (INT8, 50 * 32, 50) in tables


def test_words_beyond_the_table_are_told() -> None:
    from edgeprune.export.opened import open_artifact

    tokens, extra = (x.numpy() for x in inputs("words"))
    feeds = open_artifact(lowered("words", ".tflite", "fp32")[0]).feeds([tokens + 5000, extra])
    with pytest.raises(ModelError, match="calibration sample"):
        opened("words").watch([feeds], lambda name, array: None)


@pytest.mark.parametrize("error", [ValueError(), KeyError("a"), RuntimeError("one\ntwo")])
def test_what_the_quantiser_raises_is_an_error_with_a_fix(error: Exception) -> None:
    with pytest.raises(ExportError, match=type(error).__name__) as caught, _quiet():
        raise error
    assert caught.value.fix
    assert "two" not in caught.value.message
