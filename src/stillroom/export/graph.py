"""Writing a network as an ONNX graph that says nothing about the machine it was written on."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import ExportError, say
from stillroom.export.feeding import OUTPUT, Feeds, Served
from stillroom.export.foreign import first_line, quiet

_LIMIT = 1_900_000_000  # a protobuf file ends at 2 GB


def trace(served: Served, path: Path, feeds: Feeds) -> None:
    """Write a network as a graph; torch's exporter is told to be silent and to start afresh.

    Raises:
        ExportError: the network is too large for one file, or cannot be written as a graph.
    """
    module = served.module
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > _LIMIT:
        raise ExportError(
            say("A network is too large for one ONNX file", f"{size:,} bytes of weights", f"up to {_LIMIT:,} bytes")
        )
    try:
        with quiet(), torch.no_grad(), _lengths_stay_free():
            torch.onnx.export(
                module,
                tuple(feeds.values()),
                str(path),
                input_names=list(feeds),
                output_names=[OUTPUT],
                dynamic_shapes=_shapes(served, feeds),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            say(
                f"{type(getattr(module, 'model', module)).__name__} cannot be written as an ONNX graph",
                first_line(error),
                "networks whose path does not depend on values",
                "Packed sequences are a common cause: use a mask in the exported form. The bundle itself is written.",
            )
        ) from error


def _shapes(served: Served, feeds: Feeds) -> tuple[Any, ...]:
    if served.encode is None:
        return ({axis: torch.export.Dim(name, min=1) for axis, name in served.axes.items()},)
    # Names alone, without a range: a network may have a longest text of its own.
    named = ({axis: name for axis, name in served.axes.items() if axis < value.ndim} for value in feeds.values())
    return (tuple(named),)


@contextlib.contextmanager
def _lengths_stay_free() -> Iterator[None]:
    """Let LSTMs and GRUs have any number of steps through all of an export.

    torch 2.13 sees to that only while it captures the network: when it then rewrites the graph, it takes the example's
    length for the length. And what it once found for a recurrent operator it keeps for the next export, and the other
    way round.
    """
    operators = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    patches: Any
    try:
        patches = importlib.import_module("torch.export._patches")
    except ImportError:  # another version of torch: graphs are tried at other lengths all the same
        patches = None
    with contextlib.ExitStack() as stack:
        for name in ("register_lstm_while_loop_decomposition", "register_gru_while_loop_decomposition"):
            if hasattr(patches, name):
                stack.enter_context(getattr(patches, name)())
        _forget(operators)
        stack.callback(_forget, operators)
        yield


def _forget(operators: tuple[Any, ...]) -> None:
    for operator in operators:
        cache = getattr(operator, "_dispatch_cache", None)
        if cache is not None:
            cache.clear()


def strip(path: Path) -> None:
    """Remove what names the author's machine (stack traces, paths) and what inference does not need."""
    import onnx

    proto = onnx.load(str(path))
    graphs = [proto.graph, *proto.functions]
    parts: list[Any] = [proto, *graphs]
    parts += [part for graph in graphs for part in _everything(graph)]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _everything(graph: Any) -> Iterator[Any]:
    """Yield the nodes and values of a graph and of the graphs inside its nodes (loops, branches)."""
    for field in ("value_info", "input", "output", "initializer"):
        # A function's inputs and outputs are plain names.
        yield from (part for part in getattr(graph, field, ()) if not isinstance(part, str))
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                yield inner
                yield from _everything(inner)
