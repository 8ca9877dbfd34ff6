"""Why teacher and students answer as they do, in a report: how alike their gradients are, and what they look like.

Plain data in, Findings out, as in :mod:`stillroom.report.run_findings`. ``found`` is the ``gradients`` of metrics.json.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import number
from stillroom.report.readings import ENOUGH_SEEDS, quoted, reading

ALONE, RANDOM = "alone", "random weights"
INPUT, EXPLANATION = "input", "explanation"
LITTLE = 0.02  # a lead in cosine below which it is no use, however sure
MOSTLY = 0.5  # of the cosine: a control above this share says that the class explains most of it
STEPS = 31  # shades of a map: odd, so that nought is one of them
FOR, AGAINST = (226, 78, 38), (40, 132, 222)  # seen on light and on dark paper
FULL = 0.99  # of a map's numbers lie within full colour


def likeness(found: Mapping[str, Any], main: str) -> Finding:
    """Show how alike teacher and students are in what their answers depend on, with both controls."""
    word = "picture" if found["inputs"] == "pictures" else "example"
    panels = [_dots(found[INPUT]["models"], main, "Gradient of the answer by the input", word)]
    if EXPLANATION in found:
        panels.append(_dots(found[EXPLANATION]["models"], main, "Where in the picture (Grad-CAM)", word))
    note = (
        f"Cosine with the teacher's gradient along the teacher's first choice, mean over {found['examples']} test "
        f"{word}s; 1: the same, 0: nothing in common. 'other {word}s': the same student's against the teacher's at "
        f"another {word} of the same class. Bars: 95 % Student's t interval over seeds; small dots: the seeds."
    )
    figure: dict[str, Any] = {**panels[0], "note": note}
    if len(panels) > 1:
        figure = {"kind": "panels", "figures": panels, "note": note}
    text = f"{_asked(word)} {headline(found, main)}{_rival(found[INPUT]['models'], main)}"
    if EXPLANATION in found:
        text += f" {_maps(found[EXPLANATION]['models'], main)}"
    control = f"the teacher's gradients at other {word}s of the same class, and a student with random weights."
    mean = reading(found[INPUT]["models"].get(main), "cosine")["mean"]
    return Finding("Does it answer for the teacher's reasons?", text, mean, control, figure)


def _asked(word: str) -> str:
    what = "pixel" if word == "picture" else "number"
    return (
        f"The gradient says of each {what} whether more of it would make the answer surer or less sure: what the answer "
        f"hangs on in that {word}."
    )


def headline(found: Mapping[str, Any], main: str) -> str:
    """Say in a few sentences whether the student's answers hang on what the teacher's do, whichever way it went."""
    models, word = found[INPUT]["models"], "picture" if found["inputs"] == "pictures" else "example"
    if main not in models:
        return ""
    mine = reading(models[main], "cosine")["mean"]
    text = f"{quoted(main)} is like its teacher in that by a cosine of {number(mine, 2)}"
    random = reading(models.get(RANDOM), "cosine")["mean"]
    beside = f" (random weights {number(random, 2)})" if random is not None else ""
    lead = models[main].get("above_alone")
    if lead is None:
        return f"{text}{beside}.{_of_the_class(models[main], word)}"
    theirs = reading(models[ALONE], "cosine")["mean"]
    text += f", the same student alone by {number(theirs, 2)}{beside}: {_span(lead)}. "
    return text + _verdict(lead) + _of_the_class(models[main], word)


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
        return "That it answers more for the teacher's reasons than labels alone would teach it is not shown."
    if lead["mean"] < 0:
        return (
            "It answers less for the teacher's reasons than the student alone does: what its objectives ask for on "
            "training examples did not carry over; try another weight, or more of the teacher's views."
        )
    if lead["mean"] < LITTLE:
        return "That is a lead, but too small to matter."
    if lead["n"] < ENOUGH_SEEDS:
        return f"It seems that the teacher's reasons were passed on; {ENOUGH_SEEDS} seeds are needed to claim it."
    return "The teacher's reasons were passed on with its answers."


def _of_the_class(model: Mapping[str, Any], word: str) -> str:
    """Say how much of the likeness is about the class at large and would be there at any of its examples."""
    held, above = model.get("others"), model.get("above_others")
    if held is None or above is None:
        return ""
    mine, others = reading(model, "cosine")["mean"] or 0.0, reading(model, "others")["mean"] or 0.0
    start = f" Against the teacher's gradients at other {word}s of the class it is {number(others, 2)}: "
    if above["low"] is None or above["low"] <= 0:
        return f"{start}what it shares with the teacher is how a class looks, not what counts in this {word}."
    if others >= MOSTLY * mine:
        return (
            f"{start}most of what it shares is how a class looks; the rest, {number(above['mean'], 2)}, is about this "
            f"very {word}."
        )
    return f"{start}most of what it shares is about this very {word}, not about its class."


def _rival(models: Mapping[str, Any], main: str) -> str:
    others = [name for name in models if name not in (ALONE, RANDOM, main)]
    if not others or main not in models:
        return ""
    best = max(others, key=lambda name: models[name]["cosine"]["mean"])
    return f" Of the other arms {quoted(best)} is most like the teacher, by {number(models[best]['cosine']['mean'], 2)}."


def _maps(models: Mapping[str, Any], main: str) -> str:
    """Say the same of the explanation maps, shortly."""
    if main not in models:
        return ""
    mine = reading(models[main], "cosine")["mean"]
    text = f"Where they look (Grad-CAM) agrees by {number(mine, 2)}"
    lead = models[main].get("above_alone")
    if lead is not None:
        text += f", alone by {number(reading(models[ALONE], 'cosine')['mean'], 2)}: {_span(lead)}"
        low, high = lead.get("low"), lead.get("high")
        if low is None or high is None or low <= 0 <= high:
            text += ", which may be chance"
    others = reading(models[main], "others")["mean"]
    return text + (f". At other pictures of the class: {number(others, 2)}." if others is not None else ".")


def _dots(models: Mapping[str, Any], main: str, title: str, word: str) -> dict[str, Any]:
    order = _order(models, main)
    rows = [{"name": name, **reading(models[name], "cosine")} for name in order]
    rows += [
        {"name": f"{name}, other {word}s", "series": name, **reading(models[name], "others")}
        for name in order
        if name != RANDOM and models[name].get("others") is not None
    ]
    return {"kind": "dots", "title": title, "x_label": "cosine", "rows": rows, "zero": True, "digits": 2}


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
        "Red: a brighter pixel there would make the model surer of the teacher's answer. Blue: a darker one would. "
        "Where two maps have the same colours in the same places, both models answer for the same reasons; a map of "
        "specks that follow no shape hangs on single pixels, and small changes of the picture can turn such an answer."
    )
    number_ = items[0]["cosines"].get(main) if items else None
    return Finding("What the answers hang on", sentence, number_, "the same student trained alone.", figure)


def _rule(models: Sequence[str], main: str) -> str:
    if ALONE in models and main != ALONE:
        return (
            f"Not chosen by hand, from the first seed: two pictures where {quoted(main)} leads 'alone' most in cosine, "
            "two in the middle, two where it leads least or lags."
        )
    return f"Not chosen by hand, from the first seed: two pictures where the cosine of {quoted(main)} is highest, two in the middle, two where it is lowest."


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
