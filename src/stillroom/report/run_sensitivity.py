"""Why teacher and students answer as they do, in a report: how alike their gradients are, and what they look like.

Plain data in, Findings out, as in :mod:`stillroom.report.run_findings`. ``found`` is the ``gradients`` of metrics.json.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import finite, number
from stillroom.report.readings import quoted, reading
from stillroom.statistics import CLAIM_FROM

ALONE, RANDOM = "alone", "random weights"
INPUT, EXPLANATION = "input", "explanation"
LITTLE = 0.02  # a lead in cosine below which it is no use, however sure
ALIKE = 0.7  # between the teacher's own gradients in a class: little is left that is a single example's
STEPS = 31  # shades of a map: odd, so that nought is one of them
FOR, AGAINST = (226, 78, 38), (40, 132, 222)  # seen on light and on dark paper
FULL = 0.99  # of a map's numbers lie within full colour


def likeness(found: Mapping[str, Any], main: str) -> Finding:
    """Show how alike teacher and students are in what their answers depend on, with the controls."""
    word = "picture" if found["inputs"] == "pictures" else "example"
    panels = _panels(found[INPUT], main, "The gradients", word)
    if EXPLANATION in found:
        panels += _panels(found[EXPLANATION], main, "Grad-CAM maps", word)
    note = (
        f"Cosine with the teacher's gradient along the teacher's first choice, mean over {found['examples']} test "
        f"{word}s; 1: the same direction, 0: unrelated. 'Other {word}s': compared with the teacher's at another {word} "
        f"of the class. 'Without the class mean': each model's mean over the class is subtracted first. Bars: 95 % "
        "Student's t interval over seeds; small dots: the seeds."
    )
    text = f"{_asked(word)} {headline(found, main)}{_rival(found[INPUT]['models'], main)}"
    if EXPLANATION in found:
        text += f" {_maps(found[EXPLANATION]['models'], main)}"
    control = f"the teacher's gradients at other {word}s of the class, and a student with random weights."
    mean = reading(found[INPUT]["models"].get(main), "cosine")["mean"]
    figure = {"kind": "panels", "figures": panels, "note": note}
    return Finding("Do its gradients resemble the teacher's?", text, mean, control, figure)


def _asked(word: str) -> str:
    what = "pixel" if word == "picture" else "number"
    return f"A gradient says for each {what} how the answer's score changes with it: what the answer depends on."


def headline(found: Mapping[str, Any], main: str) -> str:
    """Say in a few sentences whether the student's answers hang on what the teacher's do, whichever way it went."""
    side, word = found[INPUT], "picture" if found["inputs"] == "pictures" else "example"
    models = side["models"]
    if main not in models:
        return ""
    text = f"The gradients of {quoted(main)} have a cosine of {_told(models[main], 'cosine')} with the teacher's"
    beside = f" (random weights {_told(models[RANDOM], 'cosine')})" if RANDOM in models else ""
    lead = models[main].get("above_alone")
    if lead is None:
        return f"{text}{beside}.{_of_the_class(side, main, word)}"
    text += f", those of the same student alone {_told(models[ALONE], 'cosine')}{beside}: {_span(lead)}. "
    return text + _verdict(lead) + _of_the_class(side, main, word)


def _told(model: Mapping[str, Any], key: str) -> str:
    return number(reading(model, key)["mean"], 2)


def _span(lead: Mapping[str, Any]) -> str:
    low, high = lead.get("low"), lead.get("high")
    told = _signed(lead["mean"])
    if low is None or high is None:
        return told
    seeds = f"{lead['n']} seeds" if lead["n"] > 1 else "one seed"
    return f"{told} [{_signed(low)}, {_signed(high)}] over {seeds}"


def _verdict(lead: Mapping[str, Any]) -> str:
    low, high = lead.get("low"), lead.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "It is not shown that its gradients are more like the teacher's than those learnt from labels alone."
    if lead["mean"] < 0:
        return (
            "They are less like the teacher's than those of the student alone: what the objectives taught on training "
            "examples did not generalise; try another weight, or more views."
        )
    if lead["mean"] < LITTLE:
        return "That is a lead, but too small to matter."
    if lead["n"] < CLAIM_FROM:
        return f"The teacher's gradients seem to have been passed on; {CLAIM_FROM} seeds are needed to claim it."
    return "The teacher's gradients were passed on with its answers."


def _of_the_class(side: Mapping[str, Any], main: str, word: str) -> str:
    """Say how much of the likeness is about the class at large and would be there at any of its examples."""
    models, within = side["models"], finite(side.get("teacher"))
    above = models[main].get("above_others")
    if within is None or above is None:
        return ""
    start = f" With the teacher's at other {word}s of the class it is {_told(models[main], 'others')}"
    if above["low"] is None or above["low"] <= 0:
        return f"{start}, no less: the similarity is that of the class, not of the single {word}."
    text = f"{start}; the teacher's own have {number(within, 2)} with each other"
    if within >= ALIKE:
        text += f", so most of it belongs to the class, not to one {word}"
    if models[main].get("particular") is None:
        return f"{text}."
    text += f". With the mean of the class removed the cosine is {_told(models[main], 'particular')}"
    if models.get(ALONE, {}).get("particular") is not None:
        text += f", alone {_told(models[ALONE], 'particular')}"
    return f"{text}."


def _rival(models: Mapping[str, Any], main: str) -> str:
    others = [name for name in models if name not in (ALONE, RANDOM, main)]
    if not others or main not in models:
        return ""
    best = max(others, key=lambda name: models[name]["cosine"]["mean"])
    return f" Of the other arms {quoted(best)} has the highest cosine, {number(models[best]['cosine']['mean'], 2)}."


def _maps(models: Mapping[str, Any], main: str) -> str:
    """Say the same of the explanation maps, shortly."""
    if main not in models:
        return ""
    mine = reading(models[main], "cosine")["mean"]
    text = f"Their Grad-CAM maps have a cosine of {number(mine, 2)}"
    lead = models[main].get("above_alone")
    if lead is not None:
        text += f", those of 'alone' {_told(models[ALONE], 'cosine')}: {_span(lead)}"
        low, high = lead.get("low"), lead.get("high")
        if low is None or high is None or low <= 0 <= high:
            text += ", which may be chance"
    others = reading(models[main], "others")["mean"]
    return text + (f". At other pictures of the class: {number(others, 2)}." if others is not None else ".")


def _panels(side: Mapping[str, Any], main: str, title: str, word: str) -> list[dict[str, Any]]:
    models = side["models"]
    order = _order(models, main)
    rows = [{"name": name, **reading(models[name], "cosine")} for name in order]
    if finite(side.get("teacher")) is not None:
        other = f"other {word}s"
        rows.append({"name": f"teacher, {other}", "series": "teacher", "mean": side["teacher"]})
        rows += [
            {"name": f"{name}, {other}", "series": name, **reading(models[name], "others")}
            for name in order
            if name != RANDOM
        ]
    beyond = [
        {"name": name, **reading(models[name], "particular")}
        for name in order
        if models[name].get("particular") is not None
    ]
    shared = {"kind": "dots", "x_label": "cosine", "zero": True, "digits": 2}
    panels = [{**shared, "title": title, "rows": rows}]
    return panels + ([{**shared, "title": f"{title}, without the class mean", "rows": beyond}] if beyond else [])


def _order(models: Mapping[str, Any], main: str) -> list[str]:
    head = [name for name in (ALONE, main) if name in models]
    rest = [name for name in models if name not in (*head, RANDOM)]
    return [*head, *rest, *([RANDOM] if RANDOM in models else [])]


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value, 2)}"


# --- pictures --------------------------------------------------------------------------------------------------------


def pictures(items: Sequence[Mapping[str, Any]], models: Sequence[str], main: str) -> Finding:
    """Show the gradients of a few test pictures, the teacher's beside the students'.

    Each item: ``pixels``; ``class``, the teacher's first choice; ``maps`` of ``teacher`` and each of ``models``, (H, W)
    signed; ``cosines`` of each of ``models``.
    """
    rows = []
    for item in items:
        cells: list[dict[str, Any]] = [{"pixels": item["pixels"], "text": item["class"], "about": item["class"]}]
        for name in ("teacher", *models):
            told = number(item["cosines"][name], 2) if name in item["cosines"] else ""
            about = f"gradient of {name} for {item['class']}{f', cosine {told}' if told else ''}"
            cells.append({"pixels": map_picture(item["maps"][name]), "text": told, "about": about})
        rows.append(cells)
    figure = {
        "kind": "sheet",
        "title": "Gradients of test pictures",
        "columns": ["picture", "teacher", *models],
        "rows": rows,
        "note": _rule(models, main) + " Each map has a scale of its own. Below a map: its cosine with the teacher's.",
    }
    sentence = (
        "Red: a brighter pixel there raises the score of the teacher's answer. Blue: a darker one does. "
        "Where two maps have the same colours in the same places, both models depend on the same pixels. A map of "
        "specks without a shape means that the answer depends on single pixels."
    )
    number_ = items[0]["cosines"].get(main) if items else None
    return Finding("What the answers depend on", sentence, number_, "the same student trained alone.", figure)


def _rule(models: Sequence[str], main: str) -> str:
    if ALONE in models and main != ALONE:
        return (
            f"Not chosen by hand, from the first seed: two pictures where {quoted(main)} leads 'alone' most in cosine, "
            "two in the middle, two where it leads least or lags."
        )
    return (
        f"Not chosen by hand, from the first seed: two pictures where the cosine of {quoted(main)} is highest, two in "
        "the middle, two where it is lowest."
    )


def map_picture(values: Sequence[Sequence[float]]) -> str:
    """Return a signed map as a PNG in base64: red above nought, blue below, and as clear as glass at nought.

    So it lies on light and on dark paper alike. Full colour is the 99th percentile of the map's absolute values.
    """
    import numpy as np
    from PIL import Image

    array = np.nan_to_num(np.asarray(values, np.float64))
    most = float(np.quantile(np.abs(array), FULL)) or float(np.abs(array).max()) or 1.0
    half = STEPS // 2
    shades = np.rint(np.clip(array / most, -1, 1) * half).astype(np.int64) + half
    image = Image.frombytes("P", array.shape[::-1], shades.astype(np.uint8).tobytes())
    image.putpalette([part for shade in range(STEPS) for part in (FOR if shade >= half else AGAINST)])
    stream = io.BytesIO()
    depths = bytes(round(255 * abs(shade - half) / half) for shade in range(STEPS))
    image.save(stream, format="PNG", transparency=depths, optimize=False, compress_level=9)
    return base64.b64encode(stream.getvalue()).decode()


__all__ = ["RANDOM", "headline", "likeness", "map_picture", "pictures"]


def _one(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
