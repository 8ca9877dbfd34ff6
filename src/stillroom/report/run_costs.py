"""What a student costs to run, what penalties did to its weights, and whether its exports answer alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import DASH, finite, number, size
from stillroom.report.readings import change, hundred, main_arm, model_order, quoted, reading


def sizes(metrics: Mapping[str, Any]) -> Finding:
    """Compare parameters, file size, latency and throughput; students of one shape share a row."""
    keys = ("parameters", "bytes", "latency_ms", "throughput_per_s")
    models = metrics["models"]
    groups: dict[Any, list[str]] = {}
    first = main_arm(metrics)
    for name in model_order(metrics):
        shape = tuple(reading(models[name], key)["mean"] for key in keys[:2])
        groups.setdefault("teacher" if name == "teacher" else shape, []).append(name)
    chosen = {
        ("teacher" if "teacher" in held else first if first in held else held[0]): held for held in groups.values()
    }
    rows: list[list[Any]] = []
    for lead, held in chosen.items():
        label = lead if lead == "teacher" else "student" if len(chosen) <= 2 else f"student ({', '.join(held)})"
        rows.append([label, *(reading(models[lead], key) for key in keys)])
    teacher, student = models.get("teacher"), models.get(first or "alone")
    ratios = [_ratio(reading(teacher, key)["mean"], reading(student, key)["mean"], key) for key in keys]
    if teacher and student:
        rows.append(["student against teacher", *ratios])
    columns = [
        {"name": "model"},
        {"name": "parameters", "unit": "count"},
        {"name": "file", "unit": "bytes"},
        {"name": "latency", "unit": "ms"},
        {"name": "a second", "unit": "count"},
    ]
    smaller = _times(reading(teacher, "bytes")["mean"], reading(student, "bytes")["mean"])
    faster = _times(reading(teacher, "latency_ms")["mean"], reading(student, "latency_ms")["mean"])
    parts = []
    if smaller is not None:
        parts.append(
            f"its file is {_compared(smaller, 'smaller', 'larger')} ({size(reading(student, 'bytes')['mean'])})"
        )
    if faster is not None:
        parts.append(
            f"one answer comes {_compared(faster, 'faster', 'slower')} "
            f"({number(reading(student, 'latency_ms')['mean'])} ms)"
        )
    sentence = (
        f"Against the teacher, the student's {' and '.join(parts).removeprefix('its ')}."
        if parts
        else _unmeasured(student)
    )
    kept = [0, *(place for place, key in enumerate(keys, 1) if any(_known(models[lead], key) for lead in chosen))]
    figure = {
        "kind": "table", "title": "Sizes and latencies",
        "columns": [columns[place] for place in kept], "rows": [[row[place] for place in kept] for row in rows],
        "apart": [i for i, row in enumerate(rows) if row[0] == "teacher"],
        "note": "File: the exported fp32 graph. Latency: median of at least 200 calls, one example, one thread."
        if set(kept) & {2, 3} else "",
    }  # fmt: skip
    if len(kept) == 1:
        figure = {}
    return Finding(
        "What it costs to run", sentence, faster, "the teacher, measured in the same way on the same machine.", figure
    )


def _known(model: Mapping[str, Any] | None, key: str) -> bool:
    return reading(model, key)["mean"] is not None


def _unmeasured(student: Mapping[str, Any] | None) -> str:
    """What to say where there is nothing to compare with."""
    file, call = reading(student, "bytes")["mean"], reading(student, "latency_ms")["mean"]
    if file is None or call is None:
        return "Size and latency were not measured in this run."
    return f"The student's file is {size(file)}, and one answer takes {number(call)} ms."


def _times(teacher: float | None, student: float | None) -> float | None:
    return teacher / student if teacher and student else None


def _compared(times: float, less: str, more: str) -> str:
    if 0.95 < times < 1.05:
        return f"about as {'large' if less == 'smaller' else 'fast'}"
    return f"{number(times, 1)} times {less}" if times > 1 else f"{number(1 / times, 1)} times {more}"


def _ratio(teacher: float | None, student: float | None, key: str) -> str:
    if not teacher or not student:
        return DASH
    if key == "throughput_per_s":
        return f"× {number(student / teacher, 1)}"
    return f"÷ {number(teacher / student, 1)}" if teacher >= student else f"× {number(student / teacher, 1)}"


def weights(
    tensors: Mapping[str, Sequence[Mapping[str, Any]]],
    accuracy_before: Mapping[str, float | None],
    accuracy_after: Mapping[str, float | None],
) -> Finding:
    """Show what weight penalties did: norms, share near nought, and accuracy once those weights are set to nought.

    ``tensors``: {arm: [{"name", "l1", "l2", "share_near_zero" (0..1), "size"?}]}; accuracies by arm, 0..1.
    """
    rows: list[list[Any]] = []
    zeroed = {}
    for arm, held in tensors.items():
        sizes_held = [finite(one.get("size")) or 1.0 for one in held]
        shares = [finite(one.get("share_near_zero")) or 0.0 for one in held]
        zeroed[arm] = sum(s * share for s, share in zip(sizes_held, shares, strict=True)) / (sum(sizes_held) or 1.0)
        rows += [
            [arm, str(one["name"]), one.get("l1"), one.get("l2"), 100 * share]
            for one, share in zip(held, shares, strict=True)
        ]
    columns = [
        {"name": "arm"},
        {"name": "tensor"},
        {"name": "L1 norm", "digits": 1},
        {"name": "L2 norm", "digits": 2},
        {"name": "near zero", "unit": "%", "digits": 1},
    ]
    figure = {
        "kind": "table", "title": "Norms and sparsity", "columns": columns, "rows": rows,
        "note": "Near zero: |w| below a thousandth of the tensor's largest |w|. " + "; ".join(
            f"{arm}: accuracy {number(hundred(accuracy_before.get(arm)), 2)} %, "
            f"with those weights at zero {number(hundred(accuracy_after.get(arm)), 2)} %"
            for arm in tensors
        ) + ".",
    }  # fmt: skip
    title = "The effect of penalties on the weights"
    if not zeroed:
        return Finding(title, "No weights were measured.")
    sparsest = max(zeroed, key=lambda arm: zeroed[arm])
    before, after = hundred(accuracy_before.get(sparsest)), hundred(accuracy_after.get(sparsest))
    sentence = f"{quoted(sparsest)} has the most weights near zero: {number(100 * zeroed[sparsest], 1)} %."
    if before is not None and after is not None:
        sentence += f" Setting them to zero changes its accuracy by {change(after - before, '%')}"
        sentence += (
            ": they can be pruned." if abs(after - before) <= 0.1 else ": they matter." if after < before else "."
        )
    return Finding(title, sentence, zeroed[sparsest], "the arm without a penalty, same start and order.", figure)


def parity(exports: Sequence[Mapping[str, Any]]) -> Finding:
    """Show whether the exported files answer like the student they came from.

    Each: ``name``, ``bytes``, ``rows`` (real examples compared), ``agreement`` (share of equal first choices, 0..1),
    ``largest_difference`` (of logits or probabilities), ``score``? (0..1).
    """
    title = "Do the exported files answer the same?"
    if not exports:
        return Finding(title, "Nothing was exported in this run.")
    columns = [
        {"name": "file"}, {"name": "size", "unit": "bytes"}, {"name": "compared on", "unit": "count"},
        {"name": "same first choice", "unit": "%", "digits": 2},
        {"name": "largest difference", "digits": "each"}, {"name": "accuracy", "unit": "%", "digits": 2},
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for one in exports:
        rows.append(
            [
                str(one["name"]),
                one.get("bytes"),
                one.get("rows"),
                hundred(one.get("agreement")),
                one.get("largest_difference"),
                hundred(one.get("score")),
            ]
        )
    if all(row[5] is None for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    known = [(held, str(one["name"])) for one in exports if (held := finite(one.get("agreement"))) is not None]
    figure = {"kind": "table", "title": "Parity of exports", "columns": columns, "rows": rows}
    if not known:
        return Finding(title, "The files were written, but not compared with the student.", None, "", figure)
    worst, name = min(known)
    sentence = "Yes: every file makes the student's first choice on every example compared."
    if worst < 1:
        more = "" if worst >= 0.99 else " That is more than rounding: compare its accuracy before you use it."
        share = number(100 * (1 - worst), 2)
        sentence = f"Nearly: {quoted(name)} makes another first choice on {share} % of the examples compared.{more}"
        if worst < 0.95:
            sentence = sentence.replace("Nearly", "Not all", 1)
    return Finding(title, sentence, worst, "the student in PyTorch, on real examples.", figure)
