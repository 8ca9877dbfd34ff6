"""What is said of students: what they kept, which classes and groups it cost, which layers are alike, where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.contracts import Finding
from stillroom.mining.students.classes import LOST
from stillroom.mining.wording import percent
from stillroom.statistics import CLAIM_FROM

ALONE = "alone"
SHOWN = 10


def kept(numbers: Mapping[str, Any]) -> Finding:
    """Say how much of the model's answers and reasons an arm kept, and whether the teacher is to be thanked."""
    arms, main = numbers["arms"], numbers["main"]
    told, gain = arms[main], numbers.get("gain")
    sentence = f"'{main}' gives the model's own answer on {percent(told['agreement']['mean'])} of the test examples"
    sentence += f" (by chance: {percent(told['chance']['mean'])})"
    sentence += "." if gain is None else _gained(gain)
    if "gradient_cosine" in told:
        sentence += f" The cosine of its attributions with the model's is {told['gradient_cosine']['mean']:.2f}."
    control = f"Agreement by chance: {percent(told['chance']['mean'])}"
    if gain is not None:
        control += f"; the same student trained alone: {percent(arms[ALONE]['agreement']['mean'])} ({gain['method']})"
    return Finding("What the students kept", sentence, told["agreement"]["mean"], f"{control}.", _table(numbers))


def _gained(gain: Mapping[str, Any]) -> str:
    """What the teacher added to agreement, as far as the interval says."""
    points, low, high = (100 * gain[key] for key in ("mean", "low", "high"))
    seeds = (
        "" if gain["n"] >= CLAIM_FROM else f" in these {gain['n']} seeds" if gain["n"] > 1 else " with this one seed"
    )
    if gain["verdict"] == "more":
        said = f", {points:.1f} points more than the same student alone ({low:.1f} to {high:.1f}): distilling helped"
        return f"{said}{seeds}."
    if gain["verdict"] == "less":
        said = f", {-points:.1f} points less than the same student alone ({-high:.1f} to {-low:.1f}){seeds}: "
        return f"{said}distilling made it less like the teacher. Try another loss, or a smaller weight."
    said = f". That is no clear gain over the same student alone: {points:+.1f} points ({low:+.1f} to {high:+.1f}). "
    return f"{said}More seeds and more test examples would show a smaller difference."


def _table(numbers: Mapping[str, Any]) -> dict[str, Any]:
    arms, own = numbers["arms"], numbers["model"]
    columns = [("agrees", "agreement", 100, "%"), ("KL", "kl", 1, ""), ("accuracy", "accuracy", 100, "%")]
    name, of = "gradient cosine", "gradients of the model's top logit with respect to the inputs"
    if numbers["kind"] == "text":
        name, of = "cosine of attributions", "attributions: what each word adds to the score of the model's answer"
    columns += [("calibration error", "ece", 1, ""), (name, "gradient_cosine", 1, "")]
    there = [column for column in columns if any(column[1] in arm for arm in arms.values())]
    rows = [[name, *(_cell(arm.get(key), scale) for _, key, scale, _ in there)] for name, arm in arms.items()]
    first = ["the model", *(own[key] * scale if key in own else None for _, key, scale, _ in there)]
    return {
        "kind": "table",
        "columns": [
            {"name": "student"},
            *({"name": name, **({"unit": unit} if unit else {}), "best": _best(key)} for name, key, _, unit in there),
        ],
        "rows": [first, *rows],
        "apart": [0],
        "main": [1 + list(arms).index(numbers["main"])],
        "note": f"Means over seeds with 95 % intervals; {of}.",
    }


def _best(key: str) -> str:
    return "low" if key in ("kl", "ece") else "high"


def _cell(held: Mapping[str, Any] | None, scale: float) -> Any:
    if held is None:
        return None
    low, high = (None if held[end] is None else scale * held[end] for end in ("low", "high"))
    return {"mean": scale * held["mean"], "low": low, "high": high, "n": held["n"]}


# --- classes and subgroups -----------------------------------------------------------------------------


def lost(rows: Sequence[Mapping[str, Any]], main: str, seeds: int) -> Finding:
    """Name the classes that lost more than chance explains, and how large a loss could have gone unseen in others."""
    clear = [row for row in rows if row["verdict"] == LOST]
    if clear:
        worst = clear[0]
        sentence = f"'{main}' clearly loses on {len(clear)} of {len(rows)} classes"
        sentence += ", on" if len(clear) == 1 else ", most on"
        sentence += f" '{worst['class']}': the model recognises {percent(worst['model'])} of its examples, the student "
        sentence += f"{percent(worst['student'])}, {_points(worst['lost'])} points fewer ({_points(worst['low'])} to "
        sentence += (
            f"{_points(worst['high'])}). Look at its examples, and try more of them in the transfer set, from which "
        )
        sentence += "the student learns."
    else:
        sentence = f"No class lost more than chance explains ({len(rows)} were compared)."
    sentence += _unseen([row for row in rows if row["verdict"] != LOST], bool(clear))
    control = f"The model on the same examples of each class; 95 % intervals over examples{' and seeds' * (seeds > 1)} "
    control += f"that hold for all {len(rows)} classes at once (Bonferroni)."
    if seeds == 1:
        control += " One student: another seed may lose on other classes."
    shown = rows[:SHOWN]
    figure = {
        "kind": "spread",
        "unit": "%",
        "x_label": "recognised",
        "labels": [row["class"] for row in shown],
        "series": [
            {"name": "the model", "values": [100 * row["model"] for row in shown]},
            {"name": main, "values": [100 * row["student"] for row in shown]},
        ],
        "note": f"Significant: {', '.join(row['class'] for row in clear[:SHOWN]) or 'none'}.{_cut(rows, 'classes')}",
    }
    return Finding("Which classes it cost", sentence, rows[0]["lost"], control, figure)


def _cut(rows: Sequence[object], what: str) -> str:
    return f" The {SHOWN} worst of {len(rows):,} {what}." if len(rows) > SHOWN else ""


def _unseen(rows: Sequence[Mapping[str, Any]], others: bool) -> str:
    """How large a loss the examples do not rule out, where none is clear."""
    most = max(rows, key=lambda row: float(row["high"]), default=None)
    if most is None or most["high"] <= 0:
        return ""
    count = "1 example" if most["examples"] == 1 else f"{most['examples']:,} examples"
    where = f" A loss of up to {_points(most['high'])} points in '{most['class']}' ({count}) "
    return f"{where}cannot be ruled out{' among the others' * others}."


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def cost(groups: Mapping[str, Any], main: str) -> Finding:
    """Say which subgroup an arm follows the model least on, and whether that is more than chance."""
    rows, least = groups["groups"], groups["least_by_chance"]
    title = "Which subgroups it cost"
    control = f"Groups of the same sizes drawn at random: in 95 of 100 draws none falls below {percent(least)}."
    if not rows:
        return Finding(title, "There are no subgroups to compare in this data.", None, control)
    below = [row for row in rows if row["agreement"] < least]
    if below:
        worst = below[0]
        sentence = f"'{main}' agrees with the model least on {worst['name']}: on {percent(worst['agreement'])} of "
        sentence += f"{worst['examples']} examples, against {percent(groups['whole'])} of all. "
        which = "That is" if len(below) == 1 else f"{len(below)} groups are"
        size = "its size" if len(below) == 1 else "their size"
        sentence += f"{which} below nearly all groups of {size} drawn at random."
    else:
        sentence = f"No subgroup is followed clearly less: even on the worst one ({rows[0]['name']}) '{main}' agrees "
        sentence += f"with the model on {percent(rows[0]['agreement'])}; groups drawn at random fall as low."
    figure = {
        "kind": "dots",
        "unit": "%",
        "x_label": "agrees with the model",
        "rows": [{"name": row["name"], "mean": 100 * row["agreement"], "series": main} for row in rows[:SHOWN]],
        "note": _cut(rows, "subgroups").strip(),
        "references": [
            {"name": "all", "value": 100 * groups["whole"]},
            {"name": "least by chance", "value": 100 * least},
        ],
    }
    return Finding(title, sentence, rows[0]["agreement"], control, figure)


# --- layers --------------------------------------------------------------------------------------------


def alike(layers: Mapping[str, Any], main: str) -> Finding:
    """Say which layers represent examples alike, beside a student that knows nothing; one value at least is there."""
    values, control = (np.array(layers[key], np.float64) for key in ("values", "control"))
    place = np.unravel_index(np.nanargmax(values), values.shape)
    names = layers["model"][place[0]], layers["student"][place[1]]
    row = int(np.flatnonzero(np.isfinite(values).any(1))[-1])
    last, chance = float(np.nanmax(values[row])), _most(control[row])
    sentence = f"The most similar layers are the model's '{names[0]}' and the student's '{names[1]}' "
    sentence += f"(CKA {float(values[place]):.2f} of 1). With the model's last layer the student reaches {last:.2f}"
    sentence += "." if chance is None else f", one with random weights {chance:.2f}."
    if chance is not None and last - chance < 0.1:
        sentence += " That is hardly more than the architecture gives: the student has representations of its own."
    figure = {
        "kind": "matrix",
        "labels": layers["model"],
        "columns": layers["student"],
        "values": [[None if value is None else round(value, 2) for value in each] for each in layers["values"]],
        "note": f"Debiased linear CKA of each layer of the model (rows) with each of '{main}' (columns).",
    }
    most = _most(control)
    words = "A student with random weights: " + ("none of its layers can be read." if most is None else "")
    words += "" if most is None else f"{most:.2f} at most."
    return Finding(
        "Which layers became similar", sentence, last, f"{words} Similar layers need not give similar answers.", figure
    )


def _most(values: np.ndarray) -> float | None:
    """The largest that is there."""
    there = values[np.isfinite(values)]
    return float(there.max()) if there.size else None


# --- examples ------------------------------------------------------------------------------------------


def shown(items: Sequence[Mapping[str, Any]], apart: int, count: int, main: str) -> Finding:
    """Show the examples on which both are surest of different classes."""
    title = "Where they disagree"
    sentence = f"The first seed of '{main}' differs from the model on {apart:,} of {count:,} test examples "
    sentence += f"({percent(apart / max(1, count))})."
    known = [item for item in items if item["true"] is not None]
    if known:
        right = sum(item["true"] == item["teacher"] for item in known)
        sentence += f" On the {len(known)} where both are most confident the model is right {right} times, '{main}' "
        sentence += f"{sum(item['true'] == item['student'] for item in known)} times. Look at these first."
    figure = {
        "kind": "pictures",
        "items": [
            {
                **({"text": item["shown"]} if isinstance(item["shown"], str) else {"pixels": item["shown"].tolist()}),
                "caption": f"true: {item['true']}" if item["true"] is not None else "",
                "rows": [
                    ["model", f"{item['teacher']} {100 * item['shares'][0]:.0f} %"],
                    [main, f"{item['student']} {100 * item['shares'][1]:.0f} %"],
                ],
            }
            for item in items
        ],
    }
    return Finding(title, sentence, apart / max(1, count), "The true class stands above.", figure if items else {})
