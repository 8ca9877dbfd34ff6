"""What a distillation run has to say: plain data in, Findings out, a sentence a person can act on each.

Every function is pure. ``metrics`` is the content of ``metrics.json``: ``models`` holds ``teacher``, ``alone``,
each arm and ``distilled`` (the first arm again); each model holds ``score``, ``score_name`` and readings
such as ``accuracy`` or ``bytes``, each ``{mean, per_seed}`` or None. A fifth seed is where an interval above
nought may be claimed; below that the sentences count seeds instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import DASH, finite, number, over_seeds, scaled, size, with_interval

ENOUGH_SEEDS = 5
SMOOTH_TO = 120
MOST_CLASSES = 15
SHARES = ("accuracy", "agreement", "ece", "recall", "precision", "f1", "share")


# --- reading metrics -------------------------------------------------------------------------------


def main_arm(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the arm that ``distilled`` stands for, ``"distilled"`` if none equals it, None without one."""
    models = metrics["models"]
    if "distilled" not in models:
        return None
    listed = [str(name) for name in metrics.get("arms") or models]
    arms = [name for name in listed if name in models and name not in ("teacher", "alone", "distilled")]
    return next((name for name in arms if models[name] == models["distilled"]), "distilled")


def model_order(metrics: Mapping[str, Any]) -> list[str]:
    """Return the models to show: teacher, alone, the first arm, the other arms; ``distilled`` only if no arm is it."""
    models, first = metrics["models"], main_arm(metrics)
    listed = [*(str(name) for name in metrics.get("arms") or ()), *models]
    head = [name for name in ("teacher", "alone", first) if name in models]
    rest = [name for name in dict.fromkeys(listed) if name in models and name not in (*head, "distilled")]
    return [str(name) for name in head] + rest


def reading(model: Mapping[str, Any] | None, key: str, factor: float = 1.0) -> dict[str, Any]:
    """Return the reading ``key`` of a model with its t interval over seeds: ``{mean, low, high, n, points}``."""
    held = (model or {}).get(key)
    if isinstance(held, Mapping):
        found = over_seeds(held.get("per_seed") or [held.get("mean")])
        if finite(held.get("mean")) is not None:
            found["mean"] = finite(held["mean"])
    else:
        found = over_seeds([held])
    return scaled(found, factor)


def difference(metrics: Mapping[str, Any], name: str, against: str = "alone", factor: float = 1.0) -> dict[str, Any]:
    """Return the score of ``name`` minus that of ``against``, paired by seed, with its t interval."""
    pair = []
    for one in (name, against):
        held = (metrics["models"].get(one) or {}).get("score")
        pair.append(list(held.get("per_seed") or ()) if isinstance(held, Mapping) else [])
    if pair[0] and len(pair[0]) == len(pair[1]):
        both = [(finite(a), finite(b)) for a, b in zip(*pair, strict=True)]
        return scaled(over_seeds([a - b for a, b in both if a is not None and b is not None]), factor)
    one, other = (reading(metrics["models"].get(which), "score")["mean"] for which in (name, against))
    return scaled(over_seeds([None if one is None or other is None else one - other]), factor)


def score_unit(metrics: Mapping[str, Any]) -> tuple[str, str, float]:
    """Return the score's name, its unit and the factor from what is stored to what is shown."""
    models = metrics["models"]
    name = next((str(m["score_name"]) for m in models.values() if m and m.get("score_name")), "score")
    if any(word in name.lower() for word in SHARES):
        return name, "%", 100.0
    return name, "", 1.0


def reason_for(metrics: Mapping[str, Any], key: str) -> str | None:
    """Return why ``metrics[key]`` is null, or None where it is a number."""
    held = metrics.get(key)
    if isinstance(held, Mapping):
        return None if finite(held.get("mean")) is not None else str(held.get("reason") or "no reason was noted")
    return str(metrics.get(f"{key}_reason") or metrics.get("reason") or "no reason was noted")


def _quoted(name: str) -> str:
    return f"'{name}'"


def _points(change: float, unit: str) -> str:
    sign = "+" if change > 0 else ""
    return f"{sign}{number(change, 1 if unit else None)}{' points' if unit else ''}"


def _certainty(found: Mapping[str, Any], unit: str) -> str:
    """Say in words how sure a paired difference is; see the module's docstring for five seeds."""
    low, high, points = found["low"], found["high"], found["points"]
    if low is None or high is None:
        return "one seed only, so chance cannot be told from effect"
    count, mean = len(points), found["mean"]
    digits = 1 if unit else None
    span = f"95 % interval {number(low, digits)} to {number(high, digits)} over {count} seeds"
    if low <= 0 <= high:
        return f"{span}: it may be chance"
    same = sum(1 for value in points if (value > 0) == (mean > 0))
    if count < ENOUGH_SEEDS:
        return f"{span}; {same} of {count} seeds agree, {ENOUGH_SEEDS} are needed to claim it"
    return f"{span}, clear of nought"


# --- the verdict -----------------------------------------------------------------------------------


def verdict_dots(metrics: Mapping[str, Any]) -> Finding:
    """Show each arm's score with its interval, and its difference to training alone, paired by seed."""
    name, unit, factor = score_unit(metrics)
    models, first = metrics["models"], main_arm(metrics)
    order = [one for one in model_order(metrics) if one != "teacher"]
    teacher = reading(models.get("teacher"), "score", factor)["mean"]
    references = [{"name": "teacher", "value": teacher}] if teacher is not None else []
    rows = [{"name": one, **reading(models[one], "score", factor)} for one in order]
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
        return Finding("Did distilling help?", sentence, teacher, "", {**scores, "note": _dots_note(rows)})
    differences = [{"name": one, **difference(metrics, one, "alone", factor)} for one in compared]
    found = differences[0]
    gains = {
        "kind": "dots", "title": "Difference to training alone, paired by seed", "unit": unit and "points",
        "rows": differences, "zero": True,
    }  # fmt: skip
    sentence = f"{_helped(found)} {_quoted(first)} differs from training alone by {_points(found['mean'] or 0.0, unit)} ({_certainty(found, unit)})."
    if found["mean"] is None:
        sentence = "The scores of the two arms are missing, so nothing can be said."
    control = "the same student from the same start, in the same order and for as many steps, without the teacher."
    figure = {"kind": "panels", "figures": [scores, gains], "note": _dots_note(rows)}
    return Finding("Did distilling help?", sentence, found["mean"], control, figure)


def _helped(found: Mapping[str, Any]) -> str:
    low, high, mean = found["low"], found["high"], found["mean"] or 0.0
    if low is not None and high is not None and low <= 0 <= high:
        return "Not to be told from chance."
    sure = low is not None and len(found["points"]) >= ENOUGH_SEEDS
    if mean > 0:
        return "Yes." if sure else "By every sign yes." if low is not None else "Perhaps."
    return (
        "No, it made the student worse."
        if sure
        else "By every sign no: the student came out worse."
        if low is not None
        else "It seems not."
    )


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
        ("agreement", "agreement", "%", 100.0, "high"), ("kl", "KL", "nats", 1.0, "low"), ("ece", "calibration error", "%", 100.0, "low"),
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
    rows: list[list[Any]] = [[one, *(readings[key][index] for key, *_ in kept)] for index, one in enumerate(order)]
    note = "Agreement: how often the model's first choice is the teacher's. KL: how far its probabilities are from the teacher's. "
    note += "Calibration error: distance between how sure and how right, over 15 bins. "
    note += (
        "Underlined: best by a margin that no interval bridges."
        if seeds > 1
        else "One seed: no interval, and no winner is named."
    )
    figure = {
        "kind": "table", "title": "Teacher, control and arms", "columns": columns, "rows": rows, "note": note,
        "apart": [i for i, one in enumerate(order) if one == "teacher"], "main": [i for i, one in enumerate(order) if one == first],
    }  # fmt: skip
    return Finding(
        "The arms side by side",
        _arms_sentence(metrics, name, unit, factor),
        _gap(metrics),
        "'alone', in the second row, and the teacher in the first.",
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

    parts = [f"{_quoted(first)} reaches {told(means.get(first))} {name}"]
    if means.get("alone") is not None:
        parts.append(f"the same student alone {told(means['alone'])}")
    if means.get("teacher") is not None:
        parts.append(f"the teacher {told(means['teacher'])}")
    sentence = ", ".join(parts) + "."
    gap, why = metrics.get("gap_closed"), reason_for(metrics, "gap_closed")
    if why is None and isinstance(gap, Mapping):
        span = with_interval(gap["mean"], gap.get("low"), gap.get("high"), 2)
        method = f" ({gap['method']}, n = {gap['n']})" if gap.get("method") and gap.get("n") else ""
        sentence += f" Share of the gap closed: {span}{method}."
    else:
        sentence += f" No share of the gap is given: {str(why).rstrip('.')}."
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
        return f" Prefer {_quoted(rival)}: it does better still, by {_points(found['mean'], unit)} ({_certainty(found, unit)})."
    if held[rival] > mine:
        return f" {_quoted(rival)} stands {_points(held[rival] - mine, unit)} higher, which may be chance."
    if found["high"] is not None and found["high"] < 0:
        return f" The next best arm, {_quoted(rival)}, stays {_points(found['mean'], unit).lstrip('−')} behind."
    return f" The next best arm, {_quoted(rival)}, is not told apart from it."


# --- how it was learnt -----------------------------------------------------------------------------


def training_curves(curves: Mapping[str, Mapping[str, Any]], score_name: str = "score") -> Finding:
    """Show losses and validation score against steps.

    ``curves``: {arm: {"step": [...], "<term>": [...], "validation": {"step": [...], "score": [...]}}}; the
    terms are as long as ``step``. Losses are averaged in at most 120 equal stretches, as the note says.
    """
    factor = 100.0 if any(word in score_name.lower() for word in SHARES) else 1.0
    panels, shown = [], []
    for arm, curve in curves.items():
        held = curve.get("validation") or {}
        if held.get("step"):
            scores = [None if (value := finite(one)) is None else value * factor for one in held["score"]]
            shown.append({"name": arm, "x": list(held["step"]), "y": scores})
    if shown:
        label = f"{score_name}{', %' if factor != 1 else ''}"
        panels.append({"kind": "lines", "title": "On validation", "x_label": "step", "y_label": label, "series": shown})
    terms = dict.fromkeys(term for curve in curves.values() for term in curve if term not in ("step", "validation"))
    stretch = 1
    for term in terms:
        series = []
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
    note = f"Each point of a loss is the mean of {stretch} logged steps." if stretch > 1 else ""
    figure = {"kind": "panels", "figures": panels, "note": note}
    return Finding("How it learnt", _still_rising(shown), None, "", figure)


def smoothed(steps: Sequence[Any], values: Sequence[Any]) -> tuple[list[float], list[float | None], int]:
    """Return steps and values averaged over equal stretches, at most 120 of them, and a stretch's length."""
    count = min(len(steps), len(values))
    stretch = max(1, -(-count // SMOOTH_TO))
    xs, ys = [], []
    for start in range(0, count, stretch):
        held = [found for one in values[start : start + stretch] if (found := finite(one)) is not None]
        xs.append(float(steps[min(start + stretch, count) - 1]))
        ys.append(statistics.fmean(held) if held else None)
    return xs, ys, stretch


def _still_rising(shown: Sequence[Mapping[str, Any]]) -> str:
    rising, falling = [], []
    for one in shown:
        held = [value for value in one["y"] if value is not None]
        if len(held) < 4:
            continue
        span = max(held) - min(held)
        late = held[-1] - held[-1 - max(1, len(held) // 4)]
        if span and late > 0.1 * span:
            rising.append(_quoted(str(one["name"])))
        if span and max(held) - held[-1] > 0.1 * span:
            falling.append(_quoted(str(one["name"])))
    if not shown:
        return "The loss terms over the steps; no score was taken on the way."
    parts = []
    if rising:
        parts.append(
            f"{', '.join(rising)} {'was' if len(rising) == 1 else 'were'} still gaining in the last quarter of the steps: more steps may be worth their price."
        )
    if falling:
        parts.append(
            f"{', '.join(falling)} ended below {'its' if len(falling) == 1 else 'their'} own best: fewer steps, or more smoothing, may serve better."
        )
    return " ".join(parts) or "All curves had levelled off: more steps of the same would change little."


def reliability(readings: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Show how far each model's certainty can be trusted.

    ``readings``: {name: {"confidence": [...], "accuracy": [...], "share": [...], "ece": x}}, a number a bin, all in 0..1.
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
            "too sure of itself"
            if lean > 0.01
            else "less sure than it may be"
            if lean < -0.01
            else "about as sure as it is right"
        )
        parts.append(f"{_quoted(name)} is {word} (off by {number(100 * error, 1)} points on average)")
    sentence = "; ".join(parts) + "." if parts else "Calibration was not measured."
    series = [{"name": name, **held} for name, held in readings.items()]
    figure = {"kind": "reliability", "series": series}
    return Finding(
        "Can its certainty be trusted?",
        sentence,
        None,
        "the diagonal, where a model is right exactly as often as it says.",
        figure,
    )


# --- what was lost ---------------------------------------------------------------------------------


def lost_by_class(
    classes: Sequence[str],
    teacher_recall: Sequence[float | None],
    alone_recall: Sequence[float | None] | None,
    distilled_recall: Sequence[float | None],
) -> Finding:
    """Show, class by class, what share of its examples each model finds (0..1; None where a class is absent)."""
    alone = list(alone_recall) if alone_recall is not None else [None] * len(classes)
    rows = [
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
    kept = sum(1 for row in known if row[1] - row[3] <= 1.0)
    sentence = f"In {kept} of {len(known)} classes the student keeps the teacher's recall within one point."
    if loss > 0:
        sentence += f" It loses most on {_quoted(worst[0])}: {number(worst[1], 1)} to {number(worst[3], 1)} %; check that class before you rely on it."
    gains = sorted(
        ((row[3] - row[2], row[0]) for row in known if row[2] is not None), key=lambda pair: (-pair[0], pair[1])
    )
    if gains:
        worse = sum(1 for gain, _ in gains if gain < 0)
        best = (
            f"it gained most on {_quoted(gains[0][1])} ({_points(gains[0][0], '%')})"
            if gains[0][0] > 0
            else "it gained in no class"
        )
        sentence += f" Against training alone {best} and fell in {worse} of {len(gains)}."
    shown = known[:MOST_CLASSES]
    names = ("teacher", "alone", "distilled") if gains else ("teacher", "distilled")
    place = {"teacher": 1, "alone": 2, "distilled": 3}
    figure = {
        "kind": "spread", "title": "Recall by class", "unit": "%", "x_label": "recall", "labels": [row[0] for row in shown],
        "series": [{"name": name, "values": [row[place[name]] for row in shown]} for name in names],
        "note": "Ordered by loss against the teacher." + (f" The {len(shown)} classes with the largest loss of {len(known)}." if len(shown) < len(known) else ""),
    }  # fmt: skip
    return Finding(title, sentence, loss, control, figure)


def disagreements(
    items: Sequence[Mapping[str, Any]], disagreeing: int | None = None, examples: int | None = None
) -> Finding:
    """Show examples on which teacher and student differ.

    Each item: ``pixels`` (as the figure kind "pictures" takes them) or ``text``; ``true``, ``teacher``, ``student``
    (class names; ``true`` may be None); ``teacher_share``, ``student_share`` (their probability, 0..1).
    ``disagreeing`` of ``examples`` is how often it happens over the whole test set.
    """
    title = "Where teacher and student differ"
    if not items:
        return Finding(title, "Teacher and student gave the same first choice on every example that was looked at.")
    labelled = [item for item in items if item.get("true") is not None]
    sides = [sum(1 for item in labelled if item[who] == item["true"]) for who in ("teacher", "student")]
    sentence = ""
    if disagreeing is not None and examples:
        sentence = f"They differ on {number(disagreeing, 0)} of {number(examples, 0)} test examples ({number(100 * disagreeing / examples, 1)} %). "
    if labelled:
        neither = len(labelled) - sum(sides)
        sentence += f"Of the {len(labelled)} shown the teacher is right in {sides[0]}, the student in {sides[1]}, neither in {neither}."
    else:
        sentence += f"{len(items)} of them are shown."
    drawn = []
    for item in items:
        rows = [[who, f"{item[who]}{_share(item.get(f'{who}_share'))}"] for who in ("teacher", "student")]
        caption = f"true: {item['true']}" if item.get("true") is not None else "unlabelled"
        drawn.append({"pixels": item.get("pixels"), "text": item.get("text", ""), "caption": caption, "rows": rows})
    return Finding(title, sentence, finite(disagreeing), "", {"kind": "pictures", "items": drawn})


def _share(value: object) -> str:
    held = finite(value)
    return "" if held is None else f" {number(held, 2)}"


# --- what it costs ---------------------------------------------------------------------------------


def sizes(metrics: Mapping[str, Any]) -> Finding:
    """Compare parameters, file size, latency and throughput; students of one shape share a row."""
    keys = ("parameters", "bytes", "latency_ms", "throughput_per_s")
    models, groups = metrics["models"], {}
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
            f"one answer comes {_compared(faster, 'faster', 'slower')} ({number(reading(student, 'latency_ms')['mean'])} ms)"
        )
    sentence = (
        f"Against the teacher, the student's {' and '.join(parts).removeprefix('its ')}."
        if parts
        else "Size and latency were not measured in this run."
    )
    figure = {
        "kind": "table", "title": "Sizes and latencies", "columns": columns, "rows": rows, "apart": [i for i, row in enumerate(rows) if row[0] == "teacher"],
        "note": "File: the exported fp32 graph. Latency: median of at least 200 calls, one example, one thread.",
    }  # fmt: skip
    return Finding(
        "What it costs to run", sentence, faster, "the teacher, measured in the same way on the same machine.", figure
    )


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
        {"name": "near nought", "unit": "%", "digits": 1},
    ]
    figure = {
        "kind": "table", "title": "Norms and sparsity", "columns": columns, "rows": rows,
        "note": "Near nought: |w| below a thousandth of the tensor's largest |w|. " + "; ".join(
            f"{arm}: accuracy {number(_hundred(accuracy_before.get(arm)), 2)} %, with those weights at nought {number(_hundred(accuracy_after.get(arm)), 2)} %"
            for arm in tensors
        ) + ".",
    }  # fmt: skip
    title = "What the penalties did to the weights"
    if not zeroed:
        return Finding(title, "No weights were measured.")
    sparsest = max(zeroed, key=lambda arm: zeroed[arm])
    before, after = _hundred(accuracy_before.get(sparsest)), _hundred(accuracy_after.get(sparsest))
    sentence = f"{_quoted(sparsest)} leaves the most weights near nought: {number(100 * zeroed[sparsest], 1)} %."
    if before is not None and after is not None:
        sentence += f" Setting them to nought moves its accuracy by {_points(after - before, '%')}"
        sentence += (
            ": they can go." if abs(after - before) <= 0.1 else ": they are not idle." if after < before else "."
        )
    return Finding(title, sentence, zeroed[sparsest], "the arm without a penalty, same start and order.", figure)


def _hundred(value: object) -> float | None:
    held = finite(value)
    return None if held is None else 100 * held


def parity(exports: Sequence[Mapping[str, Any]]) -> Finding:
    """Show whether the exported files answer like the student they came from.

    Each: ``name``, ``bytes``, ``rows`` (real examples compared), ``agreement`` (share of equal first choices, 0..1),
    ``largest_difference`` (of logits or probabilities), ``score``? (0..1).
    """
    title = "Do the exported files answer the same?"
    if not exports:
        return Finding(title, "Nothing was exported in this run.")
    columns = [
        {"name": "file"}, {"name": "size", "unit": "bytes"}, {"name": "compared on", "unit": "count"}, {"name": "same first choice", "unit": "%", "digits": 2},
        {"name": "largest difference"}, {"name": "accuracy", "unit": "%", "digits": 2},
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for one in exports:
        gap = finite(one.get("largest_difference"))
        shown = DASH if gap is None else f"{gap:.1e}".replace("-", "−")
        rows.append(
            [
                str(one["name"]),
                one.get("bytes"),
                one.get("rows"),
                _hundred(one.get("agreement")),
                shown,
                _hundred(one.get("score")),
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
        sentence = f"Nearly: {_quoted(name)} makes another first choice on {number(100 * (1 - worst), 2)} % of the examples compared.{more}"
        if worst < 0.95:
            sentence = sentence.replace("Nearly", "Not all", 1)
    return Finding(title, sentence, worst, "the student in PyTorch, on real examples.", figure)
