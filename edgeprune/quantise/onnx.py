"""ONNX files as `FloatFile`s, and their forms with fewer bits.

Static int8 is written as QuantizeLinear and DequantizeLinear pairs by ONNX Runtime's own quantiser, from ranges that
edgeprune measured: int8 activations and uint8 weights per output channel, both with a zero point. Signed weights would
be multiplied with saturation on x86 processors without VNNI: a small MobileNetV2 then has 13.7 dB where the same file
in reference arithmetic has 36.7, and no error is told. Unsigned ones are exact everywhere.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import ExportError
from edgeprune.quantise.ends import Ends, Io, onnx_with_integer_ends
from edgeprune.quantise.files import Feeds, Operator, Take, calibration_error
from edgeprune.quantise.onnx_weights import with_half_weights, with_integer_weights
from edgeprune.quantise.ranges import Interval

_FLOAT = 1
# Kinds that ONNX Runtime computes on values it quantises anew for every input; its integer convolutions would be three
# to ten times slower than float32 ones, so convolutions keep to integer weights.
_DYNAMIC = ("MatMul", "Gemm", "LSTM", "Attention", "Gather")


class OnnxFloat:
    """A float32 `.onnx` file, ready to be watched and quantised."""

    def __init__(self, content: bytes) -> None:
        import onnx

        self._model = _named_nodes(onnx.load_model_from_string(content))
        self._kinds = _integer_kinds()

    def operators(self) -> tuple[Operator, ...]:
        """Return the nodes that ONNX Runtime's quantiser can take, in the order of the file."""
        nodes = self._model.graph.node
        return tuple(Operator(name=node.name, kind=node.op_type) for node in nodes if node.op_type in self._kinds)

    def watch(self, samples: Iterable[Feeds], take: Take) -> None:
        """Run the samples and hand over all float tensors between operators."""
        import onnxruntime

        watched, names = self._watched()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(watched, options, providers=["CPUExecutionProvider"])
        for feeds in samples:
            for name, array in feeds.items():
                if array.dtype == np.float32:
                    take(name, array)
            try:
                found = session.run(names, dict(feeds))
            except _run_errors() as error:
                raise calibration_error(error) from error
            for name, array in zip(names, found, strict=True):
                take(name, array)

    def quantise(self, ranges: Mapping[str, Interval], floats: frozenset[str]) -> bytes:
        """Return the file with QuantizeLinear and DequantizeLinear around all operators but those named."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        data = {
            name: TensorData(lowest=np.float32(value.low), highest=np.float32(value.high))
            for name, value in ranges.items()
        }
        with _quiet():
            quantizer = QDQQuantizer(
                self._copy(),
                True,
                False,
                QuantType.QUInt8,
                QuantType.QInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                [],
                sorted(floats),
                sorted(self._kinds),
                {"ForceQuantizeNoInputCheck": False},
            )
            quantizer.quantize_model()
        return bytes(with_integer_weights(quantizer.model.model).SerializeToString())

    def with_ends(self, ranges: Mapping[str, Interval], floats: frozenset[str], io: Io) -> tuple[bytes, Ends]:
        """Return the int8 file with inputs and outputs of a type, and their scales where they are integers."""
        content = self.quantise(ranges, floats)
        return (content, {}) if io == "float32" else onnx_with_integer_ends(content, io)

    def dynamic(self) -> bytes:
        """Return the file with integer weights, and matrix products on values that are quantised as they come."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, _quiet():
            made = Path(folder) / "dynamic.onnx"
            quantize_dynamic(
                self._copy(), made, op_types_to_quantize=list(_DYNAMIC), per_channel=True, weight_type=QuantType.QUInt8
            )
            import onnx

            return bytes(with_integer_weights(onnx.load_model(str(made))).SerializeToString())

    def integer_weights(self) -> bytes:
        """Return the file with int8 weights and float32 arithmetic."""
        return bytes(with_integer_weights(self._copy()).SerializeToString())

    def half(self) -> bytes:
        """Return the file with float16 weights and float32 arithmetic."""
        return bytes(with_half_weights(self._copy()).SerializeToString())

    def _copy(self) -> Any:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        return model

    def _watched(self) -> tuple[bytes, list[str]]:
        """Return the file with every float tensor as an output, and the names of these outputs."""
        import onnx

        inferred = onnx.shape_inference.infer_shapes(self._model)
        known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
        outputs = {value.name for value in inferred.graph.output}
        names = []
        for node in inferred.graph.node:
            for name in node.output:
                value = known.get(name)
                if value is None or value.type.tensor_type.elem_type != _FLOAT or node.op_type == "Constant":
                    continue
                names.append(name)
                if name not in outputs:
                    inferred.graph.output.append(value)
        return bytes(inferred.SerializeToString()), names


def _named_nodes(model: Any) -> Any:
    """Give every node a name of its own: that of its first output that is used, by which people know it."""
    for node in model.graph.node:
        node.name = next(name for name in node.output if name)
    return model


def _run_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises where it cannot run a file on some inputs; these kinds share no parent."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.Fail, state.InvalidArgument, state.RuntimeException, state.NotImplemented


def _integer_kinds() -> frozenset[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset({*QDQRegistry, *QLinearOpsRegistry})


class _quiet:
    """ONNX Runtime's quantiser speaks through the root logger; it has nothing to say that a user could act on."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        logging.disable(self._level)
        if error is not None and isinstance(error, ValueError | KeyError | RuntimeError):
            text = f"ONNX Runtime's quantiser failed: {type(error).__name__}: {error}"
            raise ExportError(text, fix="use --precision int8-weights, or fp16") from error
