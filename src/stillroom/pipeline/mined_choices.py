"""From panels to choices: each value of a recipe for which something that was found gives a reason, with that reason.

Choices are made from training and validation rows alone, so that what they are worth can be measured on test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from torch import Tensor, nn

from stillroom.data.leaving_out import examples_in
from stillroom.mining import Panel, Subject
from stillroom.pipeline.mined_layers import alike, read_at
from stillroom.recipe import Recipe

BESIDE, NEARLY = 0.25, 0.05  # of a softened answer, that should lie beside its top class, and how nearly
STABLE = 0.8  # of a measure that is 1 for always the same
COOLEST, WARMEST, STEP = 1.0, 8.0, 0.5  # temperatures of kd to choose from
LEAST, MOST, ROUND = 0.05, 0.5, 0.01  # the part of labels in the weight of labels and kd
LIGHTEST, HEAVIEST = 0.5, 2.0  # a class's weight, beside the others'
SURE = 0.95  # that a value which is changed lies beside what was found
LOST = "lost"  # a class, by more than chance explains
TOLD = 6  # suspected examples that are told with their labels
LITTLE, MANY = 0.01, 0.2  # of the rows that were searched: fewer teach no other lesson, more are not left out unseen

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Choices:
    """Values by their place in the recipe; ``reasons`` by the same places, or by one with no value of its own."""

    values: dict[Path, Any] = field(default_factory=dict)
    reasons: dict[Path, str] = field(default_factory=dict)

    def take(self, place: Path, value: Any, why: str) -> None:
        """Choose a value."""
        self.values[place], self.reasons[place] = value, why

    def say(self, place: Path, what: str) -> None:
        """Add to what is said of a place."""
        self.reasons[place] = f"{self.reasons[place]} {what}" if place in self.reasons else what


def choose(recipe: Recipe, panels: Mapping[str, Panel], subject: Subject, student: Subject | None) -> Choices:
    """Return what the panels give a reason for, of a recipe whose teacher is ``subject``.

    See :func:`temperature`, :func:`labels_part`, :func:`class_weights`, :func:`left_out` and
    :mod:`~stillroom.pipeline.mined_layers` for the rules.
    """
    resolved, found = recipe.resolved(), Choices()
    found.take(("name",), f"{recipe.name}-mined", f"Its own folder, beside that of '{recipe.name}', to compare with.")
    numbers = {name: panel.numbers for name, panel in panels.items()}
    answers, similar = numbers.get("answers", {}), numbers.get("similarity", {})
    weights = class_weights(answers)
    for place, objectives in lists_of(resolved):
        for index, one in enumerate(objectives):
            if one["use"] == "kd" and answers:
                warm = temperature(answers, similar, subject.logits("train"), float(one["temperature"]))
                if warm is not None:
                    found.take((*place, index, "temperature"), *warm)
        _weigh(found, place, objectives, answers)
        if weights is not None:
            _of_classes(found, place, objectives, weights[1])
    _width(found, resolved, numbers.get("layers", {}), student)
    _layers(found, resolved, numbers.get("layers", {}), subject, student)
    left_out(found, resolved, numbers.get("examples", {}), len(subject.data.splits["train"]))
    _remarks(found, numbers)
    return found


# --- answers -------------------------------------------------------------------------------------------


def temperature(
    answers: Mapping[str, Any], similar: Mapping[str, Any], logits: Tensor, now: float
) -> tuple[float, str] | None:
    """Return kd's temperature and why; None where nothing speaks against the one it has ``now``.

    The nearer a teacher's probabilities are to the true ones, the less a student's risk varies (Menon et al. 2021,
    https://proceedings.mlr.press/v139/menon21a.html): where the present one lies beside the interval of what repairs
    the calibration on validation examples, its nearer end is taken. Where the classes the teacher finds alike are the
    same on other draws of the validation examples, so that what lies beside the top class is knowledge and no noise, it
    is the least above what repairs at which a quarter of the softened answer to training rows, ``logits``
    (rows, classes), lies there (what is to be taught: Hinton, Vinyals and Dean 2015,
    https://arxiv.org/abs/1503.02531); one under which nearly as much does stays. The quarter is our own.
    """
    held = answers.get("validation") or {}
    if not held.get("temperature"):
        return None
    low, high = held["temperature"]
    best = answers["temperature"]
    why = f"{best:.2f} repairs the teacher's calibration on {held['examples']:,} validation examples"
    again = (similar.get("validation") or {}).get("pairs_again")
    if again is None or again < STABLE:
        chosen = _near(now, low, high, STEP, COOLEST, WARMEST)
        why += f" ({low:.1f} to {high:.1f} may); which classes it finds alike "
        why += "is not known" if again is None else f"changes with the examples ({100 * again:.0f} % stay)"
        why += f", so no more is asked for: {100 * beside(logits, chosen):.0f} % lie beside the top class."
    elif abs(beside(logits, now) - BESIDE) <= NEARLY and now >= low:
        return None
    else:
        chosen = min(WARMEST, max(COOLEST, math.ceil(best / STEP - 0.5) * STEP))
        while chosen < WARMEST and beside(logits, chosen) < BESIDE:
            chosen += STEP
        why += f"; at {chosen:g}, {100 * beside(logits, chosen):.0f} % of its answer to a training row lie beside the "
        why += f"top class ({100 * beside(logits, 1.0):.0f} % at 1), and its likenesses are firm ({again:.2f} of 1)."
    return None if chosen == now else (chosen, why)


def _near(now: float, low: float, high: float, step: float, least: float, most: float) -> float:
    """``now`` if it lies between, else the nearest end, on whole steps and within what may be chosen."""
    if low <= now <= high:
        return now
    end = math.ceil(low / step - 1e-9) * step if now < low else math.floor(high / step + 1e-9) * step
    return round(min(most, max(least, end)), 4)


def beside(logits: Tensor, warmth: float) -> float:
    """Return which part of the softened answers lies beside the top class, mean over rows."""
    return 1 - float((logits.double() / warmth).softmax(1).amax(1).mean())


def labels_part(answers: Mapping[str, Any], now: float) -> tuple[float, str] | None:
    """Return the part of labels in the weight of labels and kd, and why; None where the one it has ``now`` may stay.

    It is how often the teacher is wrong: there labels say what it cannot. Hinton, Vinyals and Dean 2015
    (https://arxiv.org/abs/1503.02531) found a considerably lower weight of labels best; this number for it is our own.
    A present one within the Wilson interval (95 %) of that rate on validation examples stays, of another the nearer end
    is taken.
    """
    held = answers.get("validation")
    if not held:
        return None
    wrong, rows = 1 - held["accuracy"], held["examples"]
    low, high = wilson(wrong, rows, SURE)
    part = _near(now, low, high, ROUND, LEAST, MOST)
    if part == now or (part == LEAST and now < LEAST):
        return None
    why = f"The teacher is wrong on {100 * wrong:.1f} % of {rows:,} validation examples ({100 * low:.0f} to "
    return (
        part,
        f"{why}{100 * high:.0f} % of all such): labels had {100 * now:.0f} % of the weight, now {100 * part:.0f} %.",
    )


def class_weights(answers: Mapping[str, Any]) -> tuple[list[float], str] | None:
    """Return a weight for each class in the ``labels`` term, and why; None where all are known alike.

    The rule of :func:`labels_part`, class by class: where the teacher is wrong more often than elsewhere, what it
    teaches is worth less and the label more, so a class weighs its rate of errors divided by that of all, between a
    half and two. Only a class whose Wilson interval (95 % for all classes together, by Bonferroni) does not hold the
    rate of all has another weight than 1. The rule is our own, and is told, not chosen: no benefit of it has been
    recorded. How frequent a class is gives no reason: labels are kept in proportion, and weights against that would
    trade accuracy for balance.
    """
    held = answers.get("validation")
    if not held or held["accuracy"] == 1:
        return None
    wrong, count, weights, told = 1 - held["accuracy"], len(held["recall"]), [], []
    for name, recall in held["recall"].items():
        low, high = (0.0, 1.0) if recall is None else wilson(1 - recall, held["rows"][name], 1 - (1 - SURE) / count)
        if low <= wrong <= high:
            weights.append(1.0)
            continue
        weights.append(round(min(HEAVIEST, max(LIGHTEST, (1 - recall) / wrong)), 2))
        told.append((1 - recall, f"'{name}' {100 * (1 - recall):.0f} %"))
    if not told:
        return None
    named = ", ".join(word for _, word in sorted(told, key=lambda one: -one[0]))
    listed = ", ".join(f"{one:g}" for one in weights)
    why = f"The teacher is wrong on {100 * wrong:.0f} % of the validation examples, but on {named}. If the labels of "
    why += f"these are to count accordingly: [{listed}], in the order {', '.join(held['recall'])}. None are set, since "
    return weights, f"{why}no benefit of class weights has been recorded: try them against a run without."


def wilson(share: float, rows: int, sure: float) -> tuple[float, float]:
    """Return Wilson's interval (1927, https://doi.org/10.2307/2276774) of a share of ``rows``."""
    if not rows:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + sure) / 2)
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return middle - half, middle + half


def _weigh(found: Choices, place: Path, objectives: Sequence[Mapping[str, Any]], answers: Mapping[str, Any]) -> None:
    """Share the weight of one term on labels and one of kd anew, its sum as it was; ramps stay as they are."""
    at = {use: [index for index, one in enumerate(objectives) if one["use"] == use] for use in ("labels", "kd")}
    if any(len(places) != 1 for places in at.values()):
        return
    labels, kd = at["labels"][0], at["kd"][0]
    given = [objectives[index]["weight"] for index in (labels, kd)]
    if not all(isinstance(one, int | float) and one > 0 for one in given):
        return
    whole = float(sum(given))
    chosen = labels_part(answers, given[0] / whole)
    if chosen is not None:
        found.take((*place, labels, "weight"), round(whole * chosen[0], 4), chosen[1])
        found.values[(*place, kd, "weight")] = round(whole * (1 - chosen[0]), 4)


def _of_classes(found: Choices, place: Path, objectives: Sequence[Mapping[str, Any]], why: str) -> None:
    """Say beside labels that stand with kd which weights their classes might have, unless their author gave some."""
    if not any(one["use"] == "kd" for one in objectives):
        return
    for index, one in enumerate(objectives):
        if one["use"] == "labels" and one.get("class_weights") is None:
            found.say((*place, index, "class_weights"), why)


# --- examples ------------------------------------------------------------------------------------------


def left_out(found: Choices, resolved: Mapping[str, Any], examples: Mapping[str, Any], rows: int) -> None:
    """Leave out the training examples whose label looks wrong, beside those that are left out already.

    Fewer than a hundredth of those that were searched are named only: they can hardly change what is learnt, and to
    leave them out trains the teacher anew. So are more than a fifth, a sign that something else is amiss. ``rows`` is
    how many training examples there are: of many, or without labels, or in haste, not all are searched.
    """
    suspects = [dict(one) for one in examples.get("suspects") or []]
    if not suspects:
        return
    each = ", ".join(f"{one['example']} ('{one['label']}', looks like '{one['suggested']}')" for one in suspects[:TOLD])
    more = f" and {len(suspects) - TOLD:,} more (examples/suspects.json)" if len(suspects) > TOLD else ""
    searched = (examples.get("labels") or {}).get("examples", rows)
    many = f"{len(suspects):,} of {searched:,} training examples"
    rest = ""
    if searched < rows:
        many += " that were searched"
        rest = f" {rows - searched:,} others were not searched: they have no label, or there are too many."
    share = len(suspects) / searched
    if not LITTLE <= share <= MANY:
        what = "too few to change much" if share < LITTLE else "too many to leave out unseen"
        one = "label" if len(suspects) == 1 else "labels"
        looks = "looks" if len(suspects) == 1 else "look"
        word = f"The {one} of {many} {looks} wrong, {what}: {each}{more}.{rest} "
        found.say(("data",), f"{word}'leave_out: [...]' leaves examples out.")
        return
    before = resolved["data"].get("leave_out")
    gone = sorted({*(examples_in(before) if before else []), *(int(one["example"]) for one in suspects)})
    why = f"The labels of {many} look wrong: {each}{more}.{rest} Without the suspects the teacher is trained "
    found.take(("data", "leave_out"), gone, f"{why}anew; look at them first.")


# --- layers --------------------------------------------------------------------------------------------


def _width(found: Choices, resolved: Mapping[str, Any], layers: Mapping[str, Any], student: Subject | None) -> None:
    """Widen a student whose last features are fewer than the directions the model uses; never narrow it.

    Directions of the last features (of training rows) bound a student from below. They say nothing of how narrow its
    other layers may be.
    """
    wanted, own = layers.get("suggested_width"), resolved["student"]
    linear = [] if student is None or student.module is None else student.module.modules()
    wide = [part.in_features for part in linear if isinstance(part, nn.Linear)]
    if not wanted or not wide or wide[-1] >= wanted:
        return
    key = next((key for key in ("hidden", "width") if key in own), None)
    if key is None:
        return
    given, factor = own[key], wanted / wide[-1]
    grown = [*given[:-1], math.ceil(given[-1] * factor)] if isinstance(given, list) else math.ceil(given * factor)
    why = f"The teacher's last features use {wanted} directions (95 % of what varies in training rows); the student "
    found.take(("student", key), grown, f"{why}had {wide[-1]}.")


def _layers(
    found: Choices, resolved: Mapping[str, Any], layers: Mapping[str, Any], subject: Subject, student: Subject | None
) -> None:
    """Choose the teacher's layer of each term that compares two; without any, say which two are worth a try."""
    candidates = [str(one["layer"]) for one in layers.get("pairs") or []]
    if not candidates or student is None or subject.module is None or student.module is None:
        return
    compared = False
    for place, objectives in lists_of(resolved):
        arm = resolved["arms"].get(place[1], {}) if place[0] == "arms" else {}
        for index, one in enumerate(objectives):
            taps = one.get("student"), one.get("teacher")
            if not all(isinstance(text, str) and read_at(text) for text in taps):
                continue
            compared = True
            if "student" in arm or place[0] == "stages":
                continue
            better = alike(subject, student, candidates, *map(str, taps))
            if better is not None:
                found.take((*place, index, "teacher"), *better)
    if not compared and (tried := alike(subject, student, candidates)) is not None:
        found.say(("objectives",), tried[1])


# --- what is told only ---------------------------------------------------------------------------------


def _remarks(found: Choices, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """What a recipe cannot do is told beside the key it belongs to."""
    lost = [row for row in numbers.get("students", {}).get("classes") or [] if row["verdict"] == LOST][:3]
    if lost:
        each = ", ".join(f"{row['class']} ({100 * row['lost']:.1f} points)" for row in lost)
        found.say(("data",), f"The student clearly lost on {each} (test examples; no choice is made from it).")


def lists_of(resolved: Mapping[str, Any]) -> list[tuple[Path, list[dict[str, Any]]]]:
    """Return every list of objectives, with its place."""
    found: list[tuple[Path, list[dict[str, Any]]]] = [(("objectives",), resolved["objectives"])]
    found += [
        (("arms", name, key), arm[key])
        for name, arm in resolved.get("arms", {}).items()
        for key in ("objectives", "add")
        if arm.get(key)
    ]
    stages = enumerate(resolved.get("stages", []))
    return found + [(("stages", at, "objectives"), one["objectives"]) for at, one in stages if one.get("objectives")]
