"""The int8 form of a graph."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillroom import files
from stillroom.errors import ExportError, say
from stillroom.export.feeding import in_batches, numpy
from stillroom.export.foreign import first_line, need, quiet
from stillroom.export.graph import strip


def write_int8(
    source: Path | str, path: Path | str, *, examples: Tensor, encode: nn.Module | None = None
) -> dict[str, Any]:
    """Write the int8 form of the float32 graph ``source`` to ``path``.

    Convolutions are quantised statically, a scale for each channel, ranges from ``examples`` (raw rows; a text model's
    through its ``encode``); without one, weights alone are quantised and ranges are taken as the graph runs. What
    onnxruntime has no int8 form of, the weights of a GRU, stays float32, and ``note`` says so.

    Raises:
        ExportError: the graph cannot be quantised.
        MissingPart: onnx or onnxruntime is not installed.
    """
    need()
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with files.writing(Path(path)) as temporary, tempfile.TemporaryDirectory() as place, quiet():
        ready = str(Path(place) / "ready.onnx")
        try:
            kinds = {node.op_type for node in onnx.load(str(source)).graph.node}
            static = bool(kinds & {"Conv", "ConvTranspose"})
            quant_pre_process(str(source), ready, skip_symbolic_shape=True)
            if static:
                quantization.quantize_static(
                    ready,
                    str(temporary),
                    _reader(examples, encode),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    op_types_to_quantize=None if encode is None else ["Conv", "Gather", "Gemm", "MatMul"],
                )
            else:
                quantization.quantize_dynamic(ready, str(temporary), weight_type=quantization.QuantType.QInt8)
        except Exception as error:
            raise ExportError(
                say(
                    f"{source} cannot be quantised to int8",
                    first_line(error),
                    "graphs of the operators that onnxruntime quantises",
                    "Leave int8 out, or export the float32 graph alone.",
                )
            ) from error
        strip(temporary)
    facts = {"method": "static, per channel" if static else "dynamic", "bytes": Path(path).stat().st_size}
    return facts | ({"note": "the weights of the GRU stay float32"} if "GRU" in kinds else {})


def _reader(examples: Tensor, encode: nn.Module | None) -> Any:
    """Return the calibration rows in the form that onnxruntime's quantiser reads."""
    from onnxruntime.quantization import CalibrationDataReader

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = in_batches(examples, encode)

        def get_next(self) -> dict[str, Any] | None:
            feeds = next(self.parts, None)
            return None if feeds is None else {name: numpy(value) for name, value in feeds.items()}

    return Rows()
