"""Running a graph beside the network it came from, and measuring it, on one thread."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import ExportError, MissingPart, say
from stillroom.export.feeding import BATCH, INPUT, Feeds, Served, feed, in_batches, numpy, other_shapes
from stillroom.export.foreign import first_line


def measure(path: Path | str, examples: Tensor, *, encode: nn.Module | None = None, calls: int = 200) -> dict[str, Any]:
    """Return ``bytes``, ``latency_ms`` and ``throughput_per_s`` of a graph, on one thread.

    Latency is the median of ``calls`` calls with one row each; throughput that of 20 calls with 64 rows. ``encode`` is
    one that is no part of the graph (a text model's): each text is then encoded alone, at its own length. Neither
    number counts the encoding; its own median for one text, seen for the first time, is ``encode_ms``.

    Raises:
        ExportError: the file is not a graph that onnxruntime runs on these examples.
        MissingPart: onnxruntime is not installed.
    """
    session = open_session(Path(path))
    single = [feed(examples[index : index + 1], encode) for index in range(min(len(examples), BATCH))]
    many = feed(examples[torch.arange(BATCH) % len(examples)], encode)
    latency = _median_seconds(session, single, calls)
    block = _median_seconds(session, [many], 20)
    facts = {
        "bytes": Path(path).stat().st_size,
        "latency_ms": latency * 1e3,
        "throughput_per_s": BATCH / block,
    }
    return facts if encode is None else facts | {"encode_ms": _encode_seconds(encode, examples) * 1e3}


def compare(
    path: Path, check: tuple[Tensor, Tensor | None], answers: Tensor, encode: nn.Module | None
) -> dict[str, Any]:
    """Run a graph on real rows beside the network's answers.

    Raises:
        ExportError: the graph does not run on these rows, or answers in another shape.
    """
    session = open_session(path)
    logits = torch.cat([_run(session, feeds) for feeds in in_batches(check[0], encode)])
    if logits.shape != answers.shape:
        raise ExportError(
            say(f"{path.name} answers in another shape", tuple(logits.shape), f"{tuple(answers.shape)}, as the network")
        )
    difference = float((logits - answers).abs().max())
    return {
        "max_abs_difference": difference if math.isfinite(difference) else None,
        "agreement": float((_top(logits) == _top(answers)).float().mean()),
        "accuracy": accuracy(logits, check[1]),
    }


def must_agree(served: Served, path: Path, rows: Tensor, facts: Mapping[str, Any], answers: Tensor) -> None:
    """Refuse a float32 graph that differs from the network, also at shapes it was not traced with."""
    bound = 1e-3 * max(1.0, float(answers.abs().max()))
    worst = math.inf if facts["max_abs_difference"] is None else facts["max_abs_difference"]
    session = open_session(path)
    for feeds in other_shapes(rows, served):
        worst = max(worst, float((_run(session, feeds) - served.answer(feeds)).abs().max()))
    if not math.isfinite(worst) or worst > bound:
        raise ExportError(
            say(
                "The ONNX graph does not answer like the network",
                f"logits that differ by up to {worst:.3g}",
                f"at most {bound:.3g}",
                "Its path may depend on values or on the batch size; the bundle is written, the graph is not.",
            )
        )


def open_session(path: Path) -> Any:
    """Open a graph with one thread.

    Raises:
        ExportError: the file is no whole graph.
        MissingPart: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPart("onnxruntime", "export", "Running an ONNX graph") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            say(f"{path} cannot be run", first_line(error), "a whole ONNX graph", "Export it again.")
        ) from error


def _run(session: Any, feeds: Feeds) -> Tensor:
    try:
        return torch.from_numpy(session.run(None, _arrays(session, feeds))[0])
    except Exception as error:
        raise ExportError(
            say(
                "An ONNX graph does not take these rows",
                ", ".join(f"{name}: {value.dtype} {tuple(value.shape)}" for name, value in feeds.items()),
                ", ".join(f"{one.name}: {one.type} {one.shape}" for one in session.get_inputs()),
                f"{first_line(error)}. A forward that asks len(x) fixes the number of rows: let it ask x.size(0).",
            )
        ) from error


def _arrays(session: Any, feeds: Feeds) -> dict[str, Any]:
    """Return the feeds as arrays; a graph's only input may have any name."""
    wanted = [one.name for one in session.get_inputs()]
    if list(feeds) == [INPUT] and len(wanted) == 1:
        return {wanted[0]: numpy(feeds[INPUT])}
    return {name: numpy(value) for name, value in feeds.items()}


def _median_seconds(session: Any, batches: list[Feeds], calls: int) -> float:
    """Return the median duration of a call, over ``calls`` calls after a tenth as many to warm up."""
    for index in range(max(2, calls // 10)):
        _run(session, batches[index % len(batches)])
    ready = [_arrays(session, feeds) for feeds in batches]
    durations = []
    for index in range(calls):
        arrays = ready[index % len(ready)]
        start = time.perf_counter()
        session.run(None, arrays)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def _encode_seconds(encode: nn.Module, examples: Tensor) -> float:
    """Return the median duration of encoding one text; a copy, since an encode may remember what it saw."""
    fresh, durations = copy.deepcopy(encode), []
    for index in range(min(len(examples), BATCH)):
        row = examples[index : index + 1]
        start = time.perf_counter()
        fresh(row)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def _top(logits: Tensor) -> Tensor:
    """Return the top class of each row; a single logit stands for two classes."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


def accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the share of labelled rows whose top class is right, or None without labels."""
    known = None if labels is None else labels >= 0
    if labels is None or known is None or not bool(known.any()):
        return None
    return float((_top(logits)[known].long() == labels[known].long()).float().mean())
