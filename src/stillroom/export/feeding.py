"""What a graph takes: the raw rows themselves, or what an ``encode`` that stays outside of it makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stillroom import utf8
from stillroom.errors import ExportError, say
from stillroom.export.foreign import first_line
from stillroom.taps.places import find_logits

INPUT, OUTPUT = "inputs", "logits"
BATCH = 64
DTYPES = {
    torch.uint8: "uint8",
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}

Feeds = dict[str, Tensor]
"""The inputs of a graph by name, in the order in which it takes them."""


class Served(NamedTuple):
    """A network as a graph will hold it: ``module`` takes the feeds by position, ``encode`` makes them, if any does."""

    module: nn.Module
    encode: nn.Module | None
    axes: dict[int, str]

    def answers(self, rows: Tensor) -> Tensor:
        """Return the network's own logits on raw ``rows``."""
        return torch.cat([self.answer(feeds) for feeds in in_batches(rows, self.encode)])

    def answer(self, feeds: Feeds) -> Tensor:
        """Return the network's own logits on what a graph would take."""
        with torch.no_grad():
            logits: Tensor = self.module(*feeds.values())
        return logits


class _Inner(nn.Module):
    """The network behind an encode that stays outside; positions, because the exporter wants no keywords."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        """Return logits of the named inputs, given in the order of ``names``."""
        output = self.model(**dict(zip(self.names, values, strict=True)))
        return find_logits(output, type(self.model).__name__)


def serve(deployed: nn.Module, examples: Tensor, dynamic: Mapping[int, str] | None = None) -> Served:
    """Return a copy of ``deployed`` for a graph: on the CPU, in float32 and eval mode; the caller's stays as it is.

    Raises:
        ExportError: the network cannot be copied, or its encode gives no named tensors.
    """
    encode = outside(deployed)
    try:
        if encode is None:
            return Served(copy.deepcopy(deployed).cpu().float().eval(), None, dict(dynamic or {0: "batch"}))
        model = copy.deepcopy(deployed.get_submodule("model")).cpu().float().eval()
    except RuntimeError as error:
        raise ExportError(
            say(
                f"{type(deployed).__name__} cannot be copied for export",
                first_line(error),
                "modules whose tensors are parameters and buffers",
                "Remove computed tensors kept as attributes (as weight_norm leaves them).",
            )
        ) from error
    names = tuple(feed(examples[:2], encode))
    return Served(_Inner(model, names).eval(), encode, dict(dynamic or {0: "batch", 1: "time"}))


def outside(deployed: nn.Module) -> nn.Module | None:
    """Return the encode that is no part of a graph (a tokenizer is Python), or None."""
    encode = getattr(deployed, "encode", None)
    return encode if getattr(encode, "outside", False) else None


def feed(rows: Tensor, encode: nn.Module | None = None) -> Feeds:
    """Return what a graph takes for raw ``rows``.

    Raises:
        ExportError: the encode gives no named tensors.
    """
    if encode is None:
        return {INPUT: rows.cpu()}
    with torch.no_grad():
        encoded = encode(rows.cpu())
    if not isinstance(encoded, Mapping) or not all(isinstance(value, Tensor) for value in encoded.values()):
        raise ExportError(
            say(
                f"{type(encode).__name__} stays outside of the graph, so it must name what the graph takes",
                type(encoded).__name__,
                "a dictionary of tensors",
            )
        )
    return {name: value.cpu() for name, value in encoded.items()}


def in_batches(rows: Tensor, encode: nn.Module | None = None) -> Iterator[Feeds]:
    """Yield what a graph takes for 64 raw rows after another; texts are as long as the longest beside them."""
    return (feed(part, encode) for part in torch.split(rows, BATCH))


def to_trace(rows: Tensor, served: Served) -> Feeds:
    """Return two rows to trace with: of texts two long ones, since a length of one would be taken for a rule."""
    if served.encode is None:
        return feed(rows[:2])
    longest = (rows != 0).sum(1).argsort(descending=True, stable=True)[:2]
    first, second = utf8.unpack_bytes(rows[longest])
    return feed(utf8.pack_bytes([first + b" " + second, second]), served.encode)


def other_shapes(rows: Tensor, served: Served) -> Iterator[Feeds]:
    """Yield feeds of shapes that the graph was not traced with: other batches and lengths, also of one."""
    whole = feed(rows[:3], served.encode)
    cuts = (2,) if served.encode is None else (2, 1)
    for least in cuts:
        cut = {name: _shorter(value, served.axes, least) for name, value in whole.items()}
        yield cut
        yield {name: value[:1] for name, value in cut.items()}
    if served.encode is not None:
        yield feed(rows[:1], served.encode)


def _shorter(value: Tensor, axes: Mapping[int, str], least: int) -> Tensor:
    for axis in (axis for axis in axes if 0 < axis < value.ndim):
        length = 1 if least == 1 else max(least, value.shape[axis] // 2)
        value = value.narrow(axis, 0, min(length, value.shape[axis]))
    return value


def check_rows(examples: Tensor, check: tuple[Tensor, Tensor | None], *, text: bool) -> None:
    """Refuse rows from which no graph can be made or checked."""
    if len(examples) < 2 or len(check[0]) < 3:
        given = f"{len(examples)} examples and {len(check[0])} rows to check"
        do = "Give real rows; 256 examples are a good number."
        raise ExportError(say("Too few rows to export with", given, "at least 2 and 3", do))
    allowed = [torch.uint8] if text else [dtype for dtype in DTYPES if dtype != torch.bool]
    if examples.dtype != check[0].dtype or examples.dtype not in allowed:
        given = f"{examples.dtype} and {check[0].dtype}"
        one = "texts as uint8 (rows, bytes)" if text else "one of " + ", ".join(DTYPES[dtype] for dtype in allowed)
        raise ExportError(say("Rows of a type that cannot be exported", given, one))


def described(feeds: Feeds, axes: Mapping[int, str]) -> dict[str, str]:
    """Return in words what each input of a graph is: its type and axes."""
    return {
        name: f"{DTYPES.get(value.dtype, str(value.dtype))} "
        f"({', '.join(axes.get(axis, str(size)) for axis, size in enumerate(value.shape))})"
        for name, value in feeds.items()
    }


def numpy(rows: Tensor) -> np.ndarray:
    """Return a tensor as onnxruntime takes it."""
    return rows.detach().cpu().contiguous().numpy()
