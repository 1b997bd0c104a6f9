"""TFLite files as `FloatFile`s, and their forms with fewer bits.

The integers are written by the AI Edge Quantizer, from ranges that edgeprune measured: int8 activations with a zero
point, int8 weights per output channel. Operators that cannot run on integers, or must not, keep integer weights where
the quantiser has them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

import numpy as np

from edgeprune.errors import ExportError
from edgeprune.quantise.ends import Ends, Io, tflite_ends
from edgeprune.quantise.files import Feeds, Operator, Take, calibration_error
from edgeprune.quantise.flatbuffer import builtin_names, operator_kind, packed, unpacked
from edgeprune.quantise.ranges import Interval
from edgeprune.quantise.tensor_names import name_tensors_, named

_SIGNATURE = "serving_default"


class TfliteFloat:
    """A float32 `.tflite` file, ready to be watched and quantised."""

    def __init__(self, content: bytes) -> None:
        self._content = _with_own_names(content)

    def operators(self) -> tuple[Operator, ...]:
        """Return the operators that the quantiser can put on int8, in the order of the file."""
        known = _integer_kinds()
        return tuple(Operator(name=name, kind=kind) for kind, name in _operators(self._content) if kind in known)

    def watch(self, samples: Iterable[Feeds], take: Take) -> None:
        """Run the samples and hand over all float tensors, apart from constants."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        with _quiet():
            interpreter = Interpreter(
                model_content=self._content,
                experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                num_threads=1,
            )
            interpreter.allocate_tensors()
        moving = _moving_tensors(self._content)
        details = [detail for detail in interpreter.get_tensor_details() if detail["name"] in moving]
        inputs = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        for name in interpreter.get_signature_list():
            named = interpreter.get_signature_runner(name).get_input_details()
            inputs |= {key: detail["index"] for key, detail in named.items()}
        for feeds in samples:
            for key, array in feeds.items():
                interpreter.set_tensor(inputs[key], array)
            try:
                interpreter.invoke()
            except RuntimeError as error:
                raise calibration_error(error) from error
            for detail in details:
                take(detail["name"], interpreter.get_tensor(detail["index"]))

    def quantise(self, ranges: Mapping[str, Interval], floats: frozenset[str]) -> bytes:
        """Return the file with int8 activations and weights in all operators but those named."""
        return self.with_ends(ranges, floats, "float32")[0]

    def with_ends(self, ranges: Mapping[str, Interval], floats: frozenset[str], io: Io) -> tuple[bytes, Ends]:
        """Return the int8 file with inputs and outputs of a type, and their scales where they are integers."""
        from ai_edge_quantizer import qtyping, quantizer, recipe

        names, never = qtyping.TFLOperationName, quantizer.AlgorithmName.NO_QUANTIZE
        made = quantizer.Quantizer(bytearray(self._content), recipe.static_wi8_ai8())
        made.add_weight_only_config(".*", names.EMBEDDING_LOOKUP, 8)  # the static recipe has no tables
        # The last entry that fits an operator counts, and one that it cannot have is passed over: so an operator that
        # stays in float32 is first taken out, then given integer weights, if it has any. The two expressions differ
        # because one of them can be there only once.
        for name in sorted(floats):
            made.update_quantization_recipe(f"^{re.escape(name)}(;|$)", names.ALL_SUPPORTED, None, never)
            made.add_weight_only_config(f"^{re.escape(name)}(?:;|$)", names.ALL_SUPPORTED, 8)
        for end in (names.INPUT, names.OUTPUT):
            if io == "float32":
                made.update_quantization_recipe(".*", end, None, never)
            elif io == "uint8":
                made.update_quantization_recipe(".*", end, _unsigned())
        content = _written(made, {name: _statistics(value) for name, value in ranges.items()})
        return content, tflite_ends(content) if io != "float32" else {}

    def dynamic(self) -> bytes:
        """Return the file with integer weights, and products on values that are quantised as they come."""
        from ai_edge_quantizer import quantizer, recipe

        return _written(quantizer.Quantizer(bytearray(self._content), recipe.dynamic_wi8_afp32()))

    def integer_weights(self) -> bytes:
        """Return the file with int8 weights and float32 arithmetic."""
        from ai_edge_quantizer import quantizer, recipe

        return _written(quantizer.Quantizer(bytearray(self._content), recipe.weight_only_wi8_afp32()))

    def half(self) -> bytes:
        """Return the file with float16 weights and float32 arithmetic."""
        from ai_edge_quantizer import qtyping, quantizer

        made = quantizer.Quantizer(bytearray(self._content))
        every, casting = qtyping.TFLOperationName.ALL_SUPPORTED, quantizer.AlgorithmName.FLOAT_CASTING
        made.add_weight_only_config(".*", every, 16, algorithm_key=casting)
        return _written(made)


def _unsigned() -> Any:
    """Return the configuration of an end of a file that is uint8, of which the quantiser has no recipe."""
    from ai_edge_quantizer import qtyping

    unsigned = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT)
    weights = qtyping.TensorQuantizationConfig(num_bits=8, granularity=qtyping.QuantGranularity.CHANNELWISE)
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=unsigned,
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _written(quantizer: Any, statistics: Any = None) -> bytes:
    with _quiet():
        return bytes(quantizer.quantize(statistics).quantized_model)


def _integer_kinds() -> frozenset[str]:
    """Return the kinds that the quantiser's static recipe takes, by TFLite's names for them."""
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_CODE_TO_NAME

    manager = RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    never = quantizer.AlgorithmName.NO_QUANTIZE
    names = builtin_names()
    return frozenset(
        names[code]
        for code, name in TFL_OP_CODE_TO_NAME.items()
        if manager.get_quantization_configs(name, "any")[0] != never
    )


def _statistics(value: Interval) -> dict[str, np.ndarray]:
    return {"min": np.array([value.low], np.float32), "max": np.array([value.high], np.float32)}


def _with_own_names(content: bytes) -> bytes:
    """Return the file with names that are unique, which those of edgeprune are already."""
    model = unpacked(content)
    if named(model):
        return content
    name_tensors_(model)
    return packed(model)


def _operators(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield kind and name, that of the first result, of every operator."""
    model = unpacked(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            yield operator_kind(model, operator), graph.tensors[operator.outputs[0]].name.decode()


def _moving_tensors(content: bytes) -> set[str]:
    """Return the names of the float tensors that change from sample to sample."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpacked(content)
    names = set()
    for graph in model.subgraphs:
        made = {index for operator in graph.operators for index in operator.outputs} | set(graph.inputs)
        names |= {
            graph.tensors[index].name.decode()
            for index in made
            if graph.tensors[index].type == schema.TensorType.FLOAT32
        }
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's prints, warnings and progress away, and turn what it raises into an error with a fix."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(StringIO()),
            contextlib.redirect_stderr(StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    except (ValueError, KeyError, RuntimeError) as error:
        first = str(error).partition("\n")[0][:300]
        text = f"the AI Edge Quantizer failed: {type(error).__name__}: {first}"
        raise ExportError(text, fix="use --precision int8-weights, or fp16") from error
    finally:
        logging.disable(level)
