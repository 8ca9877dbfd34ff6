"""The way out of PyTorch: a bundle, ``model.onnx`` in float32 and ``model.int8.onnx``, each tried on real rows.

Nothing is believed that was not run: a graph must answer like the network it came from, at other sizes than it was
traced with, before it takes its name. Graphs hold no trace of the author's machine.
"""

from stillroom.export.feeding import INPUT, OUTPUT
from stillroom.export.quantise import write_int8
from stillroom.export.running import measure
from stillroom.export.writing import AGREEMENT, FLOAT32, INT8, export, write_onnx

__all__ = [
    "AGREEMENT",
    "FLOAT32",
    "INPUT",
    "INT8",
    "OUTPUT",
    "export",
    "measure",
    "write_int8",
    "write_onnx",
]
