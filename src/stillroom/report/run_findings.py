"""What a distillation run has to say: plain data in, Findings out, a sentence a person can act on each.

Every function is pure. ``metrics`` is the content of ``metrics.json``: ``models`` holds ``teacher``, ``alone``,
each arm and ``distilled`` (the first arm again); each model holds ``score``, ``score_name`` and readings
such as ``accuracy`` or ``bytes``, each ``{mean, per_seed}`` or None. ``arms``, where given, is their order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import finite, number
from stillroom.report.readings import (
    SHARES,
    certainty,
    change,
    difference,
    helped,
    listed,
    main_arm,
    model_order,
    quoted,
    reading,
    reason_for,
    score_unit,
    share_of_gap,
    shown,
)
from stillroom.report.run_costs import parity, sizes, weights
from stillroom.report.run_examples import changed, disagreements

__all__ = [
    "arms_table",
    "changed",
    "disagreements",
    "lost_by_class",
    "parity",
    "reliability",
    "sizes",
    "training_curves",
    "verdict_dots",
    "weights",
]

SMOOTH_TO = 120
MOST_CLASSES = 20
GAINS_NOTE = "Bar of a difference: the wider of that interval and a bootstrap over test examples, as in the verdict."


# --- the verdict -----------------------------------------------------------------------------------


def verdict_dots(metrics: Mapping[str, Any]) -> Finding:
    """Show each arm's score with its interval, and its difference to training alone, paired by seed."""
    name, unit, factor = score_unit(metrics)
    models, first = metrics["models"], main_arm(metrics)
    order = [one for one in model_order(metrics) if one != "teacher"]
    teacher = reading(models.get("teacher"), "score", factor)["mean"]
    references = [{"name": "teacher", "value": teacher}] if teacher is not None else []
    rows = [{"name": shown(one), **reading(models[one], "score", factor)} for one in order]
    scores = {
        "kind": "dots",
        "title": f"Score of each arm ({name})",
        "unit": unit,
        "x_label": name,
        "rows": rows,
        "references": references,
    }
    compared = [one for one in order if one != "alone"] if "alone" in models else []
    if not compared or first is None:
        sentence = "There is no control in this run, so these scores do not say whether distilling helped."
        title = "Did distilling help?"
        if "teacher" not in models:
            title, sentence = (
                "How the arms compare",
                "Nothing was distilled in this run: its arms were trained from labels.",
            )
        return Finding(title, sentence, teacher, "", {**scores, "note": _dots_note(rows)})
    differences = [{"name": shown(one), **difference(metrics, one, "alone", factor)} for one in compared]
    found = differences[0]
    gains = {
        "kind": "dots", "title": "Difference to alone, paired by seed", "unit": unit and "points",
        "rows": differences, "zero": True, **({"digits": 1} if unit else {}),
    }  # fmt: skip
    apart = change(found["mean"] or 0.0, unit)
    sentence = f"{helped(found)} {quoted(shown(first))} differs from training alone by {apart} "
    sentence += f"({certainty(found, unit)})."
    if found["mean"] is None:
        sentence = "The scores of the two arms are missing, so nothing can be said."
    control = "the same student from the same start, in the same order and for as many steps, without the teacher."
    note = f"{_dots_note(rows)} {GAINS_NOTE}" if metrics.get("gains") else _dots_note(rows)
    figure = {"kind": "panels", "figures": [scores, gains], "note": note}
    return Finding("Did distilling help?", sentence, found["mean"], control, figure)


def _dots_note(rows: Sequence[Mapping[str, Any]]) -> str:
    if any(row.get("low") is not None for row in rows):
        return "Large mark: mean. Bar: 95 % Student's t interval over seeds. Small dots: the single seeds."
    return "One seed: no interval can be given."


def arms_table(metrics: Mapping[str, Any]) -> Finding:
    """Set teacher, control and every arm side by side."""
    name, unit, factor = score_unit(metrics)
    models, order, first = metrics["models"], model_order(metrics), main_arm(metrics)
    wanted = [
        ("score", name, unit, factor, "high"),
        *([] if name == "accuracy" else [("accuracy", "accuracy", "%", 100.0, "high")]),
        ("balanced_accuracy", "balanced accuracy", "%", 100.0, "high"), ("macro_f1", "macro F1", "%", 100.0, "high"),
        ("agreement", "agreement", "%", 100.0, "high"), ("kl", "KL", "nats", 1.0, "low"),
        ("ece", "calibration error", "%", 100.0, "low"),
    ]  # fmt: skip
    readings = {key: [reading(models[one], key, scale) for one in order] for key, _, _, scale, _ in wanted}
    kept = [one for one in wanted if one[0] == "score" or any(held["mean"] is not None for held in readings[one[0]])]
    seeds = max((held["n"] for held in readings["score"]), default=0)
    columns: list[dict[str, Any]] = [{"name": "model"}]
    columns += [
        {
            "name": head,
            "unit": of,
            "best": best if seeds > 1 else "none",
            "digits": 3 if key == "kl" else 1 if of else None,
        }
        for key, head, of, _, best in kept
    ]
    columns = [{key: value for key, value in column.items() if value is not None} for column in columns]
    rows: list[list[Any]] = [
        [shown(one), *(readings[key][index] for key, *_ in kept)] for index, one in enumerate(order)
    ]
    if name == "accuracy":
        plain = (metrics.get("baseline") or {}).values()
        rows += [[one["name"], 100 * one["accuracy"], *[None] * (len(kept) - 1)] for one in plain]
    balanced = any(key == "balanced_accuracy" for key, *_ in kept)
    note = "Balanced accuracy: the mean recall of the classes. " if balanced else ""
    note += "Agreement: how often the model's first choice is the teacher's. "
    note += "KL: how far its probabilities are from the teacher's. "
    note += "Calibration error: mean distance between confidence and accuracy, over 15 bins. "
    note += "± half the 95 % interval over seeds (Student's t). " if seeds > 1 else ""
    note += (
        "Underlined: the best, where its interval is clear of all others."
        if seeds > 1
        else "One seed: no interval, and no winner is named."
    )
    figure = {
        "kind": "table", "title": "Teacher, control and arms", "columns": columns, "rows": rows, "note": note,
        "apart": [i for i in range(len(rows)) if i >= len(order) or order[i] == "teacher"],
        "main": [i for i, one in enumerate(order) if one == first],
    }  # fmt: skip
    return Finding(
        "The arms side by side",
        _arms_sentence(metrics, name, unit, factor),
        _gap(metrics),
        "'alone', in the second row, and the teacher in the first." if {"alone", "teacher"} <= set(order) else "",
        figure,
    )


def _gap(metrics: Mapping[str, Any]) -> float | None:
    held = metrics.get("gap_closed")
    return finite(held.get("mean")) if isinstance(held, Mapping) else None


def _arms_sentence(metrics: Mapping[str, Any], name: str, unit: str, factor: float) -> str:
    models, first = metrics["models"], main_arm(metrics)
    means = {one: reading(models[one], "score", factor)["mean"] for one in model_order(metrics)}
    if first is None:
        return f"This run has no distilled arm; the table shows the {name} of what was trained."

    def told(value: float | None) -> str:
        return f"{number(value, 1 if unit else None)}{' %' if unit == '%' else ''}"

    parts = [f"{quoted(shown(first))} reaches {told(means.get(first))} {name}"]
    if means.get("alone") is not None:
        parts.append(f"the same student alone {told(means['alone'])}")
    if means.get("teacher") is not None:
        parts.append(f"the teacher {told(means['teacher'])}")
    sentence = ", ".join(parts) + "."
    why = reason_for(metrics, "gap_closed")
    sentence += f" No share of the gap is given: {why.rstrip('.')}." if why else f" {share_of_gap(metrics)[1]}"
    return sentence + _rival(metrics, first, means, unit, factor)


def _rival(metrics: Mapping[str, Any], first: str, means: Mapping[str, float | None], unit: str, factor: float) -> str:
    """Say honestly whether another arm did better than the first one."""
    held = {one: mean for one, mean in means.items() if one not in ("teacher", "alone", first) and mean is not None}
    mine = means.get(first)
    if not held or mine is None:
        return ""
    rival = max(held, key=lambda one: held[one])
    found = difference(metrics, rival, first, factor)
    if found["low"] is not None and found["low"] > 0:
        apart = change(found["mean"], unit)
        return f" Prefer {quoted(shown(rival))}: it does better still, by {apart} ({certainty(found, unit)})."
    if held[rival] > mine:
        return f" {quoted(shown(rival))} stands {change(held[rival] - mine, unit)} higher, which may be chance."
    if found["high"] is not None and found["high"] < 0:
        behind = change(found["mean"], unit).lstrip("−")
        return f" The next best arm, {quoted(shown(rival))}, stays {behind} behind."
    return f" The next best arm, {quoted(shown(rival))}, is not told apart from it."


# --- how it was learnt -----------------------------------------------------------------------------


def training_curves(curves: Mapping[str, Mapping[str, Any]], score_name: str = "score") -> Finding:
    """Show losses and validation score against steps.

    ``curves``: {arm: {"step": [...], "<term>": [...], "validation": {"step": [...], "score": [...]}}}; the
    terms are as long as ``step``. Losses are averaged in at most 120 equal stretches, as the note says.
    """
    factor = 100.0 if any(word in score_name.lower() for word in SHARES) else 1.0
    panels: list[dict[str, Any]] = []
    scored: list[dict[str, Any]] = []
    for arm, curve in curves.items():
        held = curve.get("validation") or {}
        if held.get("step"):
            scores = [None if (value := finite(one)) is None else value * factor for one in held["score"]]
            scored.append({"name": arm, "x": list(held["step"]), "y": scores})
    if scored:
        label = f"{score_name}{', %' if factor != 1 else ''}"
        panels.append(
            {"kind": "lines", "title": "On validation", "x_label": "step", "y_label": label, "series": scored}
        )
    terms = dict.fromkeys(term for curve in curves.values() for term in curve if term not in ("step", "validation"))
    stretch = 1
    for term in terms:
        series: list[dict[str, Any]] = []
        for arm, curve in curves.items():
            if curve.get(term):
                xs, ys, stretch_here = smoothed(curve["step"], curve[term])
                stretch = max(stretch, stretch_here)
                series.append({"name": arm, "x": xs, "y": ys})
        positive = [value for one in series for value in one["y"] if value is not None]
        log = bool(positive) and min(positive) > 0 and max(positive) / min(positive) > 30
        panels.append(
            {
                "kind": "lines",
                "title": f"Loss: {term}",
                "x_label": "step",
                "y_label": term,
                "series": series,
                "log_y": log,
            }
        )
    note = f"Each point of a loss is the mean of about {stretch} logged steps." if stretch > 1 else ""
    figure = {"kind": "panels", "figures": panels, "note": note}
    return Finding("How it learnt", _still_rising(scored), None, "", figure)


def smoothed(steps: Sequence[Any], values: Sequence[Any]) -> tuple[list[float], list[float | None], int]:
    """Return steps and values averaged over equal stretches, at most 120 of them, and a stretch's length."""
    count = min(len(steps), len(values))
    groups = min(count, SMOOTH_TO)
    edges = [index * count // groups for index in range(groups + 1)] if groups else []
    xs, ys = [], []
    for start, end in itertools.pairwise(edges):
        held = [found for one in values[start:end] if (found := finite(one)) is not None]
        xs.append(float(steps[end - 1]))
        ys.append(math.fsum(held) / len(held) if held else None)
    return xs, ys, round(count / groups) if groups else 1


def _still_rising(shown: Sequence[Mapping[str, Any]]) -> str:
    rising, falling = [], []
    for one in shown:
        held = [value for value in one["y"] if value is not None]
        if len(held) < 2:
            continue
        span = max(held) - min(held)
        late = held[-1] - held[-1 - max(1, len(held) // 4)]
        if span and late > 0.1 * span:
            rising.append(quoted(str(one["name"])))
        if span and max(held) - held[-1] > 0.1 * span:
            falling.append(quoted(str(one["name"])))
    if not shown:
        return "The loss terms over the steps; no score was taken on the way."
    parts = []
    if rising:
        parts.append(
            f"{', '.join(rising)} {'was' if len(rising) == 1 else 'were'} still gaining towards the end "
            "of the steps: more steps may be worth their price."
        )
    if falling:
        parts.append(
            f"{', '.join(falling)} ended below {'its' if len(falling) == 1 else 'their'} own best: "
            "fewer steps, or more smoothing, may serve better."
        )
    return " ".join(parts) or "All curves had levelled off: more steps of the same would change little."


def reliability(readings: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Show how far each model's certainty can be trusted.

    ``readings``: {name: {"confidence": [...], "accuracy": [...], "share": [...], "ece": x}},
    a number a bin, all in 0..1.
    """
    parts = []
    for name, held in readings.items():
        error = finite(held.get("ece"))
        if error is None:
            continue
        weight = [finite(share) or 0.0 for share in held["share"]]
        gaps = [
            (finite(c) or 0.0) - (finite(a) or 0.0) for c, a in zip(held["confidence"], held["accuracy"], strict=True)
        ]
        lean = sum(w * gap for w, gap in zip(weight, gaps, strict=True))
        word = (
            "overconfident"
            if lean > 0.01
            else "underconfident"
            if lean < -0.01
            else "on average as confident as it is right"
        )
        parts.append(f"{quoted(name)} is {word} (calibration error {number(100 * error, 1)} %)")
    sentence = "; ".join(parts) + "." if parts else "Calibration was not measured."
    series = [{"name": name, **held} for name, held in readings.items()]
    figure = {"kind": "reliability", "series": series}
    return Finding(
        "Is its confidence right?",
        sentence,
        None,
        "the diagonal, where accuracy equals confidence; each model with its first seed.",
        figure,
    )


# --- what was lost ---------------------------------------------------------------------------------


def lost_by_class(
    classes: Sequence[str],
    teacher_recall: Sequence[float | None],
    alone_recall: Sequence[float | None] | None,
    distilled_recall: Sequence[float | None],
    main: str = "distilled",
) -> Finding:
    """Show, class by class, what share of its examples each model finds (0..1; None where a class is absent)."""
    alone = list(alone_recall) if alone_recall is not None else [None] * len(classes)
    rows: list[tuple[Any, ...]] = [
        (str(name), *(None if (held := finite(value)) is None else 100 * held for value in trio))
        for name, *trio in zip(classes, teacher_recall, alone, distilled_recall, strict=True)
    ]
    known = [row for row in rows if row[1] is not None and row[3] is not None]
    title, control = "What was lost, class by class", "the teacher's own recall, and the same student trained alone."
    if not known:
        return Finding(title, "No class was seen in the test examples, so nothing can be said.", None, control)
    known.sort(key=lambda row: (row[3] - row[1], row[0]))
    worst = known[0]
    loss = worst[1] - worst[3]
    taught = [row for row in known if row[1] > 0]  # what the teacher never finds cannot be kept
    kept = sum(1 for row in taught if row[1] - row[3] <= 1.0)
    sentence = f"In {kept} of {len(taught)} classes the student keeps the teacher's recall within one point."
    if nobody := [str(row[0]) for row in known if not row[1] and not row[3]]:
        sentence += f" Neither of them ever finds {listed(nobody)}."
    if loss > 0:
        fall = f"{number(worst[1], 1)} to {number(worst[3], 1)} %"
        sentence += f" It loses most on {quoted(worst[0])}: {fall}; check that class before you rely on it."
    gains = sorted(
        ((row[3] - row[2], row[0]) for row in known if row[2] is not None), key=lambda pair: (-pair[0], pair[1])
    )
    if gains:
        worse = sum(1 for gain, _ in gains if gain < 0)
        best = (
            f"it gained most on {quoted(gains[0][1])} ({change(gains[0][0], '%')})"
            if gains[0][0] > 0
            else "it gained in no class"
        )
        sentence += f" Against training alone {best} and fell in {worse} of {len(gains)}."
    first = known[:MOST_CLASSES]
    cut = f" The {len(first)} classes with the largest loss of {len(known)}." if len(first) < len(known) else ""
    names = ("teacher", "alone", main) if gains else ("teacher", main)
    place = {"teacher": 1, "alone": 2, main: 3}
    figure = {
        "kind": "spread", "title": "Recall by class", "unit": "%", "x_label": "recall",
        "labels": [row[0] for row in first],
        "series": [{"name": name, "values": [row[place[name]] for row in first]} for name in names],
        "note": "Ordered by loss against the teacher." + cut,
    }  # fmt: skip
    return Finding(title, sentence, loss, control, figure)
