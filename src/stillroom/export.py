"""The way out of PyTorch: a bundle, ``model.onnx`` in float32 and ``model.int8.onnx``, each tried on real rows.

Nothing is believed that was not run: a graph must answer like the network it came from, at another batch size
than it was traced with, before it takes its name. Graphs hold no trace of the author's machine.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom import files
from stillroom.contracts import Progress
from stillroom.errors import ExportError, MissingPart, say
from stillroom.models.bundle import CONFIG, WEIGHTS, Deployed, save_bundle

FLOAT32 = "model.onnx"
INT8 = "model.int8.onnx"
INPUT, OUTPUT = "inputs", "logits"
AGREEMENT = 0.98
_LIMIT = 1_900_000_000  # a protobuf file ends at 2 GB
_BATCH = 64
_NAMES = {torch.uint8: "uint8", torch.float32: "float32", torch.int64: "int64", torch.int32: "int32"}


def export(
    deployed: Deployed,
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

    ``examples`` (rows x ..., raw inputs of training, some 256) give the graph its shape and int8 its ranges;
    ``check`` are real rows and their labels (-1 or None: unknown), on which each graph is compared with the
    network. ``config`` goes into the bundle (see :func:`stillroom.models.bundle.save_bundle`; by default the
    one that ``deployed`` was loaded with). ``dynamic`` names the axes that may vary, by default the batch alone.

    Returns a dictionary that JSON can hold: ``files`` (by name: ``bytes``; for graphs also ``latency_ms``,
    ``throughput_per_s``, ``max_abs_difference`` of logits, ``agreement`` of top classes with the network and
    ``accuracy``), ``torch`` (``accuracy`` of the network on the same rows), ``rows`` and ``warnings``. An int8 graph
    that agrees on fewer than ``agreement`` of the rows is written, with ``accepted: False`` and a warning.

    Raises:
        ExportError: the network cannot be written as a graph, or the float32 graph answers otherwise.
        MissingPart: onnx, onnxscript or onnxruntime is not installed.
    """
    _need()
    folder, axes = Path(folder), dict(dynamic or {0: "batch"})
    tell = progress or (lambda done, of, what: None)
    steps = 3 if int8 else 2
    _check_rows(examples, check)
    if folder.exists() and not folder.is_dir():
        raise ExportError(say("An export is a folder", f"the file {folder}", "a folder, new or not", "Name another."))
    _clear(folder)
    tell(0, steps, "bundle")
    save_bundle(folder, deployed, config=_configuration(deployed, examples, config))
    files.faultpoint("export:bundle")
    answers = _answers(deployed, check[0])
    result: dict[str, Any] = {
        "files": {name: {"bytes": (folder / name).stat().st_size} for name in (WEIGHTS, CONFIG)},
        "torch": {"accuracy": _accuracy(answers, check[1])},
        "rows": len(answers),
        "warnings": [],
    }
    tell(1, steps, FLOAT32)
    result["files"][FLOAT32] = write_onnx(
        deployed, folder / FLOAT32, examples=examples, check=check, dynamic=axes, answers=answers
    )
    files.faultpoint("export:onnx")
    if int8:
        tell(2, steps, INT8)
        facts = write_int8(folder / FLOAT32, folder / INT8, examples=examples)
        facts |= _compare(folder / INT8, check, answers) | measure(folder / INT8, examples)
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
    """Write the float32 graph of ``deployed`` (raw inputs to logits) to ``path`` and return what it measures.

    Usable alone, for a teacher whose size and latency are to be compared. The graph takes its name only
    after it has answered like ``deployed`` on ``check`` (by default ``examples``), at two batch sizes.

    Raises:
        ExportError: the network cannot be written as a graph, or the graph answers otherwise.
        MissingPart: onnx, onnxscript or onnxruntime is not installed.
    """
    _need()
    path, axes = Path(path), dict(dynamic or {0: "batch"})
    rows = check or (examples, None)
    _check_rows(examples, rows)
    plain = _plain_copy(deployed)
    with files.writing(path) as temporary:
        _trace(plain, temporary, examples[:2], axes)
        _strip(temporary)
        answers = _answers(deployed, rows[0]) if answers is None else answers
        facts = _compare(temporary, rows, answers)
        _must_agree(plain, temporary, rows[0], facts, answers, axes)
        facts |= measure(temporary, examples)
    return facts


def write_int8(source: Path | str, path: Path | str, *, examples: Tensor) -> dict[str, Any]:
    """Write the int8 form of the float32 graph ``source`` to ``path``.

    Convolutions are quantised statically, a scale for each channel, ranges from ``examples``; without one, weights
    alone are quantised and ranges are taken as the graph runs.

    Raises:
        ExportError: the graph cannot be quantised.
        MissingPart: onnx or onnxruntime is not installed.
    """
    _need()
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with files.writing(Path(path)) as temporary, tempfile.TemporaryDirectory() as place, _quiet():
        ready = str(Path(place) / "ready.onnx")
        try:
            kinds = {node.op_type for node in onnx.load(str(source)).graph.node}
            static = bool(kinds & {"Conv", "ConvTranspose"})
            quant_pre_process(str(source), ready, skip_symbolic_shape=True)
            if static:
                quantization.quantize_static(
                    ready,
                    str(temporary),
                    _reader(examples),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
            else:
                quantization.quantize_dynamic(ready, str(temporary), weight_type=quantization.QuantType.QInt8)
        except Exception as error:
            raise ExportError(
                say(
                    f"{source} cannot be quantised to int8",
                    _first_line(error),
                    "graphs of the operators that onnxruntime quantises",
                    "Leave int8 out, or export the float32 graph alone.",
                )
            ) from error
        _strip(temporary)
    return {"method": "static, per channel" if static else "dynamic", "bytes": Path(path).stat().st_size}


def measure(path: Path | str, examples: Tensor, *, calls: int = 200) -> dict[str, Any]:
    """Return ``bytes``, ``latency_ms`` and ``throughput_per_s`` of a graph, on one thread.

    Latency is the median of ``calls`` calls with one row each; throughput that of 20 calls with 64 rows.

    Raises:
        ExportError: the file is not a graph that onnxruntime runs on these examples.
        MissingPart: onnxruntime is not installed.
    """
    session = _session(Path(path))
    rows = _numpy(examples)
    single = [rows[index : index + 1] for index in range(min(len(rows), _BATCH))]
    many = np.take(rows, np.arange(_BATCH) % len(rows), axis=0)
    latency = _median_seconds(session, single, calls)
    block = _median_seconds(session, [many], 20)
    return {
        "bytes": Path(path).stat().st_size,
        "latency_ms": latency * 1e3,
        "throughput_per_s": _BATCH / block,
    }


# --- tracing ---------------------------------------------------------------------------------------


def _plain_copy(deployed: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32 and eval mode; the caller's module stays as it is."""
    try:
        return copy.deepcopy(deployed).cpu().float().eval()
    except RuntimeError as error:
        raise ExportError(
            say(
                f"{type(deployed).__name__} cannot be copied for export",
                _first_line(error),
                "modules whose tensors are parameters and buffers",
                "Remove computed tensors kept as attributes (as weight_norm leaves them).",
            )
        ) from error


def _trace(module: nn.Module, path: Path, example: Tensor, axes: Mapping[int, str]) -> None:
    """Write ``module`` as a graph; torch's exporter is told to be silent and to start afresh."""
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > _LIMIT:
        raise ExportError(
            say("A network is too large for one ONNX file", f"{size:,} bytes of weights", f"up to {_LIMIT:,} bytes")
        )
    cache = getattr(torch.ops.aten.lstm.input, "_dispatch_cache", None)
    if cache is not None:
        # In torch 2.13 a second export in one process finds the LSTM of the first and fixes its length.
        cache.clear()
    shapes = ({axis: torch.export.Dim(name, min=1) for axis, name in axes.items()},)
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                (example.cpu(),),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            say(
                f"{type(module).__name__} cannot be written as an ONNX graph",
                _first_line(error),
                "networks whose path does not depend on values",
                "Packed sequences are a common cause: use a mask in the exported form. The bundle itself is written.",
            )
        ) from error


def _strip(path: Path) -> None:
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


# --- trying ----------------------------------------------------------------------------------------


def _answers(deployed: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's own logits on raw ``inputs``, float32 on the CPU, in eval mode."""
    plain = _plain_copy(deployed)
    with torch.no_grad():
        return torch.cat([plain(part.cpu()) for part in torch.split(inputs, _BATCH)])


def _compare(path: Path, check: tuple[Tensor, Tensor | None], answers: Tensor) -> dict[str, Any]:
    """Run a graph on real rows beside the network's answers."""
    session = _session(path)
    logits = torch.cat([torch.from_numpy(_run(session, _numpy(part))) for part in torch.split(check[0], _BATCH)])
    if logits.shape != answers.shape:
        raise ExportError(
            say(f"{path.name} answers in another shape", tuple(logits.shape), f"{tuple(answers.shape)}, as the network")
        )
    difference = float((logits - answers).abs().max())
    return {
        "max_abs_difference": difference if math.isfinite(difference) else None,
        "agreement": float((_top(logits) == _top(answers)).float().mean()),
        "accuracy": _accuracy(logits, check[1]),
    }


def _must_agree(
    plain: nn.Module, path: Path, inputs: Tensor, facts: Mapping[str, Any], answers: Tensor, axes: Mapping[int, str]
) -> None:
    """Refuse a float32 graph that differs from the network, also at shapes it was not traced with."""
    bound = 1e-3 * max(1.0, float(answers.abs().max()))
    worst = math.inf if facts["max_abs_difference"] is None else facts["max_abs_difference"]
    session = _session(path)
    other = inputs[:3]
    for axis in (axis for axis in axes if axis > 0):
        other = other.narrow(axis, 0, max(2, other.shape[axis] // 2))
    for rows in (other, other[:1]):
        with torch.no_grad():
            expected = plain(rows.cpu())
        worst = max(worst, float((torch.from_numpy(_run(session, _numpy(rows))) - expected).abs().max()))
    if not math.isfinite(worst) or worst > bound:
        raise ExportError(
            say(
                "The ONNX graph does not answer like the network",
                f"logits that differ by up to {worst:.3g}",
                f"at most {bound:.3g}",
                "Its path may depend on values or on the batch size; the bundle is written, the graph is not.",
            )
        )


def _session(path: Path) -> Any:
    """Open a graph with one thread."""
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
            say(f"{path} cannot be run", _first_line(error), "a whole ONNX graph", "Export it again.")
        ) from error


def _run(session: Any, rows: np.ndarray) -> np.ndarray:
    try:
        answer: np.ndarray = session.run(None, {session.get_inputs()[0].name: rows})[0]
    except Exception as error:
        wanted = session.get_inputs()[0]
        raise ExportError(
            say(
                "An ONNX graph does not take these rows",
                f"{rows.dtype} {rows.shape}",
                f"{wanted.type} {wanted.shape}",
                _first_line(error),
            )
        ) from error
    return answer


def _median_seconds(session: Any, batches: list[np.ndarray], calls: int) -> float:
    """Return the median duration of a call, over ``calls`` calls after a tenth as many to warm up."""
    for index in range(max(2, calls // 10)):
        _run(session, batches[index % len(batches)])
    durations = []
    for index in range(calls):
        rows = batches[index % len(batches)]
        start = time.perf_counter()
        _run(session, rows)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def _top(logits: Tensor) -> Tensor:
    """Return the top class of each row; a single logit stands for two classes."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


def _accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the share of labelled rows whose top class is right, or None without labels."""
    known = None if labels is None else labels >= 0
    if labels is None or known is None or not bool(known.any()):
        return None
    return float((_top(logits)[known].long() == labels[known].long()).float().mean())


# --- small things ----------------------------------------------------------------------------------


def _need() -> None:
    """Raises MissingPart for the first package of the ``export`` part that is not there."""
    import importlib

    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPart(package, "export", "Writing an ONNX graph") from error


def _clear(folder: Path) -> None:
    """Remove graphs of earlier weights, which must never stand beside new ones, and what a killed export left."""
    for stale in [folder / FLOAT32, folder / INT8, *folder.glob(".model*.part")]:
        with contextlib.suppress(FileNotFoundError):
            stale.unlink()


def _check_rows(examples: Tensor, check: tuple[Tensor, Tensor | None]) -> None:
    """Refuse rows from which no graph can be made or checked."""
    if len(examples) < 2 or len(check[0]) < 3:
        given = f"{len(examples)} examples and {len(check[0])} rows to check"
        do = "Give real rows; 256 examples are a good number."
        raise ExportError(say("Too few rows to export with", given, "at least 2 and 3", do))
    if examples.dtype != check[0].dtype or examples.dtype not in _NAMES:
        given = f"{examples.dtype} and {check[0].dtype}"
        raise ExportError(say("Rows of a type that cannot be exported", given, "one of " + ", ".join(_NAMES.values())))


def _configuration(deployed: Deployed, examples: Tensor, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete the bundle's configuration with what the rows say."""
    known = {"model", "shape", "input", "classes", "outputs", "score", "notes"}
    kept = dict(config) if config is not None else {key: deployed.config[key] for key in known & deployed.config.keys()}
    shape = list(examples.shape[1:])
    kept.setdefault("shape", shape)
    kept.setdefault("input", {"dtype": _NAMES[examples.dtype], "shape": shape})
    kept.setdefault("classes", deployed.classes)
    return kept


def _reader(examples: Tensor) -> Any:
    """Return the calibration rows in the form that onnxruntime's quantiser reads."""
    from onnxruntime.quantization import CalibrationDataReader

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(torch.split(examples, _BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: _numpy(part)}

    return Rows()


def _numpy(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().contiguous().numpy()


def _first_line(error: Exception) -> str:
    """Return the line of a foreign error that says something, short enough to be read."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


def _too_coarse(facts: Mapping[str, Any], agreement: float) -> str:
    return say(
        f"{INT8} is not to be trusted",
        f"agreement of {facts['agreement']:.1%} with the network",
        f"{agreement:.1%} and above",
        "Use model.onnx, or give more and more varied examples for its ranges.",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from writing to the console; their warnings concern their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
