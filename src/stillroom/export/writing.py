"""The export of a model as a whole: its bundle, its graphs, and what each of them measures."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillroom import files
from stillroom.contracts import Progress
from stillroom.errors import ExportError, say
from stillroom.export.feeding import DTYPES, Served, check_rows, described, feed, outside, serve, to_trace
from stillroom.export.foreign import need
from stillroom.export.graph import strip, trace
from stillroom.export.quantise import write_int8
from stillroom.export.running import accuracy, compare, measure, must_agree
from stillroom.models.bundle import CONFIG, WEIGHTS, Deployed, save_bundle
from stillroom.paths import exists, is_folder

FLOAT32 = "model.onnx"
INT8 = "model.int8.onnx"
AGREEMENT = 0.98


def export(
    deployed: nn.Module,
    folder: Path | str,
    *,
    examples: Tensor,
    check: tuple[Tensor, Tensor | None],
    config: Mapping[str, Any] | None = None,
    int8: bool = False,
    agreement: float = AGREEMENT,
    dynamic: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the bundle, ``model.onnx`` and, asked for, ``model.int8.onnx`` to ``folder``; return what they measure.

    ``deployed`` is a model with its encode, or a network that takes the raw inputs itself.
    ``examples`` (rows x ..., raw inputs of training, some 256) give the graph its shape and int8 its ranges;
    ``check`` are real rows and their labels (-1 or None: unknown), on which each graph is compared with the
    network. ``config`` goes into the bundle (see :func:`stillroom.models.bundle.save_bundle`; by default the
    one that ``deployed`` was loaded with). ``dynamic`` names the axes that may vary: by default the batch alone, of
    texts also the time.

    An encode that is ``outside`` (a tokenizer) is no part of the graph: rows are still raw (texts as uint8 bytes), the
    graph takes what the encode makes of them by name, and the bundle's ``notes`` say what that is.

    Returns a dictionary that JSON can hold: ``files`` (by name: ``bytes``; for graphs also ``latency_ms``,
    ``throughput_per_s``, of texts ``encode_ms``, ``max_abs_difference`` of logits, ``agreement`` of top classes with
    the network and ``accuracy``), ``torch`` (``accuracy`` of the network on the same rows), ``rows`` and ``warnings``.
    An int8 graph that agrees on fewer than ``agreement`` of the rows is written, with ``accepted: False`` and a
    warning.

    Raises:
        ExportError: the network cannot be written as a graph, or the float32 graph answers otherwise.
        MissingPart: onnx, onnxscript or onnxruntime is not installed.
    """
    need()
    deployed = deployed if isinstance(deployed, Deployed) else Deployed(deployed)
    folder, encode = Path(folder), outside(deployed)
    tell = progress or (lambda done, of, what: None)
    steps = 3 if int8 else 2
    check_rows(examples, check, text=encode is not None)
    if exists(folder) and not is_folder(folder):
        raise ExportError(say("An export is a folder", f"the file {folder}", "a folder, new or not", "Name another."))
    _clear(folder)
    served = serve(deployed, examples, dynamic)
    tell(0, steps, "bundle")
    save_bundle(folder, deployed, config=_configuration(deployed, served, examples, config))
    files.faultpoint("export:bundle")
    answers = served.answers(check[0])
    result: dict[str, Any] = {
        "files": {name: {"bytes": (folder / name).stat().st_size} for name in (WEIGHTS, CONFIG)},
        "torch": {"accuracy": accuracy(answers, check[1])},
        "rows": len(answers),
        "warnings": [],
    }
    tell(1, steps, FLOAT32)
    result["files"][FLOAT32] = _write_float32(served, folder / FLOAT32, examples, check, answers)
    files.faultpoint("export:onnx")
    if int8:
        tell(2, steps, INT8)
        facts = write_int8(folder / FLOAT32, folder / INT8, examples=examples, encode=encode)
        facts |= compare(folder / INT8, check, answers, encode) | measure(folder / INT8, examples, encode=encode)
        facts["accepted"] = facts["agreement"] >= agreement and facts["max_abs_difference"] is not None
        if not facts["accepted"]:
            result["warnings"].append(_too_coarse(facts, agreement))
        result["files"][INT8] = facts
        files.faultpoint("export:int8")
    tell(steps, steps, "exported")
    return result


def write_onnx(
    deployed: nn.Module,
    path: Path | str,
    *,
    examples: Tensor,
    check: tuple[Tensor, Tensor | None] | None = None,
    dynamic: Mapping[int, str] | None = None,
    answers: Tensor | None = None,
) -> dict[str, Any]:
    """Write the float32 graph of ``deployed`` to ``path`` and return what it measures.

    The graph goes from raw inputs to logits or, where ``deployed.encode`` is ``outside``, from what that makes of them.
    Usable alone, for a teacher whose size and latency are to be compared. The graph takes its name only
    after it has answered like ``deployed`` on ``check`` (by default ``examples``), at other shapes too.

    Raises:
        ExportError: the network cannot be written as a graph, or the graph answers otherwise.
        MissingPart: onnx, onnxscript or onnxruntime is not installed.
    """
    need()
    rows = check or (examples, None)
    check_rows(examples, rows, text=outside(deployed) is not None)
    served = serve(deployed, examples, dynamic)
    return _write_float32(served, Path(path), examples, rows, served.answers(rows[0]) if answers is None else answers)


def _write_float32(
    served: Served, path: Path, examples: Tensor, check: tuple[Tensor, Tensor | None], answers: Tensor
) -> dict[str, Any]:
    with files.writing(path) as temporary:
        trace(served, temporary, to_trace(examples, served))
        strip(temporary)
        facts = compare(temporary, check, answers, served.encode)
        must_agree(served, temporary, check[0], facts, answers)
        facts |= measure(temporary, examples, encode=served.encode)
    return facts


def _clear(folder: Path) -> None:
    """Remove graphs of earlier weights, which must never stand beside new ones, and what a killed export left."""
    for stale in [folder / FLOAT32, folder / INT8, *folder.glob(".model*.part")]:
        with contextlib.suppress(FileNotFoundError):
            stale.unlink()


def _configuration(
    deployed: Deployed, served: Served, examples: Tensor, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Complete the bundle's configuration with what the rows say, and with what a graph of texts takes."""
    known = {"model", "shape", "input", "classes", "outputs", "score", "notes"}
    kept = dict(config) if config is not None else {key: deployed.config[key] for key in known & deployed.config.keys()}
    raw = shape = list(examples.shape[1:])
    if served.encode is not None:
        size = getattr(served.encode, "size", None)
        raw, shape = [], [] if size is None else [int(size)]
        graph = {
            "takes": described(feed(examples[:2], served.encode), served.axes),
            "from": "texts, by the tokenizer under 'encode'",
            "gives": "logits (batch, classes)",
        }
        kept["notes"] = {**kept.get("notes", {}), "graph": graph}
    kept.setdefault("shape", shape)
    kept.setdefault("input", {"dtype": "text" if served.encode is not None else DTYPES[examples.dtype], "shape": raw})
    kept.setdefault("classes", deployed.classes)
    return kept


def _too_coarse(facts: Mapping[str, Any], agreement: float) -> str:
    return say(
        f"{INT8} is not to be trusted",
        f"agreement of {facts['agreement']:.1%} with the network",
        f"{agreement:.1%} and above",
        "Use model.onnx, or give more and more varied examples for its ranges.",
    )


__all__ = ["AGREEMENT", "FLOAT32", "INT8", "export", "write_onnx"]
