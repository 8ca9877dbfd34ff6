"""What the students kept of the model and what they lost: answers, certainty, reasons, layers, and whom it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Finding
from stillroom.errors import TapError
from stillroom.evaluate import plain_ids
from stillroom.mining.attribution.explained import effects, words_of
from stillroom.mining.cka import matrix
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.reading import read_once, vectors
from stillroom.mining.subgroups import Subgroup, subgroups
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.randomness import permutation
from stillroom.statistics import over_seeds
from stillroom.taps import read
from stillroom.tasks import accuracy, agreement, divergence, recall_by_class, reliability

ASKED = 400  # examples whose gradients and layers are compared
EXPLAINED = 24  # texts whose words are compared
PILOT, TIMES, LEAST = 16, 4, 60  # examples that are timed; passes a row takes with its gradients; no fewer are compared
SHOWN = 10
ALONE = "alone"
Pupils = Mapping[str, Sequence[Subject]]
Alike = Callable[[Subject], float | None]


def students(subject: Subject, budget: Budget, pupils: Pupils) -> Panel:
    """Return what each arm's students kept of the model, and which classes, subgroups and examples it cost.

    Controls: the arm without the teacher, where there is one; agreement by chance, that of two models which answer as
    often each class and know nothing of each other; a student with random weights, for layers; subgroups drawn at
    random, for subgroups.
    """
    logits, examples = subject.logits("test"), subject.examples("test")
    labels = subject.labels(examples)
    few = _afforded(subject, budget)
    alike = _by_words(subject, few) if subject.kind == "text" else _by_inputs(subject, few)
    arms = {name: _kept(seeds, logits, labels, alike) for name, seeds in pupils.items()}
    main = next((name for name in pupils if name != ALONE), next(iter(pupils)))
    told = [one.logits("test") for one in pupils[main]]
    notes = [f"to keep to the time, layers and reasons were compared on {few} examples"] * (few < ASKED)
    numbers: dict[str, Any] = {"kind": subject.kind, "main": main, "arms": arms, "model": _own(logits, labels)}
    findings = [_table(numbers)]
    if bool((labels != UNLABELLED).any()):
        numbers["classes"] = _classes(subject, logits, told, labels)
        findings.append(_lost(numbers["classes"], main))
    groups = _groups(subject, logits, told)
    numbers["subgroups"] = groups["groups"]
    findings.append(_cost(groups, main))
    if subject.module is not None and all(one.module is not None for one in pupils[main]):
        layers = _layers(subject, pupils[main][0], few)
        numbers["cka"] = layers
        findings.append(_alike(layers, main))
    else:
        notes.append("layers are not compared: only the answers of a model are known")
    items, apart = _disagreements(subject, told[0], logits, labels)
    numbers["disagreements"] = [{key: item[key] for key in ("example", "teacher", "student", "true")} for item in items]
    findings.append(_shown(items, apart, len(logits), main))
    return Panel("students", findings, numbers, notes=notes)


def _afforded(subject: Subject, budget: Budget) -> int:
    """How many examples can be asked about a few times within most of the time."""
    some = subject.inputs(subject.examples("test")[:PILOT])
    subject.answer(some[:2])  # what is done once, such as finding memory, is not timed
    began = time.perf_counter()
    subject.answer(some)
    spent = TIMES * (time.perf_counter() - began)
    return max(LEAST, budget.rows(ASKED, max(1, len(some)), spent, share=0.7))


# --- each arm ------------------------------------------------------------------------------------------


def _own(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if not bool((labels != UNLABELLED).any()):
        return {}
    return {"accuracy": accuracy(logits, labels), "ece": reliability(logits, labels).ece}


def _kept(seeds: Sequence[Subject], logits: Tensor, labels: Tensor, alike: Alike) -> dict[str, Any]:
    """Means and intervals over the seeds of an arm."""
    rows: dict[str, list[float]] = {}
    for one in seeds:
        answers = one.logits("test")
        found = {
            "agreement": agreement(answers, logits),
            "chance": _chance(answers, logits),
            "kl": divergence(answers, logits),
            **_own(answers, labels),
        }
        reasons = alike(one)
        found |= {} if reasons is None else {"gradient_cosine": reasons}
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    return {name: over_seeds(values).plain() for name, values in rows.items()}


def _chance(student: Tensor, teacher: Tensor) -> float:
    """How often two models would agree that answer each class as often as these, and independently."""
    count = teacher.shape[1]
    shares = [torch.bincount(one.argmax(1), minlength=count).double() / len(one) for one in (student, teacher)]
    return float(shares[0] @ shares[1])


def _by_inputs(subject: Subject, few: int) -> Alike:
    """Mean cosine of both input gradients along the model's top class; None for closed models."""

    def alike(student: Subject) -> float | None:
        if subject.module is None or student.module is None:
            return None
        examples = subject.examples("test")
        some = examples[torch.from_numpy(permutation(len(examples), subject.seed, "gradients")[:few].copy())]
        tap, batch = "logits@gradient", subject.data.batch(plain_ids(some))
        try:
            with torch.no_grad():
                ours = read(subject.module.eval(), ["logits", tap], subject.encode)(batch)
                theirs = read(student.module.eval(), [tap], student.encode)(batch, ours)
        except TapError:
            return None
        return _cosine(ours[tap].flatten(1), theirs[tap].flatten(1))

    return alike


def _by_words(subject: Subject, few: int) -> Alike:
    """Mean cosine of what each word adds to the model's answer, and to the student's score of it."""
    examples = subject.examples("test")
    order = permutation(len(examples), subject.seed, "gradients")[: max(2, few * EXPLAINED // ASKED)].copy()
    inputs = subject.inputs(examples[torch.from_numpy(order)])
    words = words_of(subject, inputs)
    some = torch.tensor([row for row, pieces in enumerate(words) if pieces], dtype=torch.int64)
    inputs, words = inputs[some], [words[row] for row in some.tolist()]
    classes = subject.answer(inputs).argmax(1)
    ours = None if subject.module is None or not words else effects(subject, inputs, words, classes)

    def alike(student: Subject) -> float | None:
        theirs = None if ours is None or student.module is None else effects(student, inputs, words, classes)
        return None if ours is None or theirs is None else _cosine(ours, theirs)

    return alike


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1).mean())


def _table(numbers: dict[str, Any]) -> Finding:
    arms, main = numbers["arms"], numbers["main"]
    kept = arms[main]
    sentence = f"'{main}' gives the model's own answer on {percent(kept['agreement']['mean'])} of the test examples"
    sentence += f" (by chance it would be {percent(kept['chance']['mean'])})."
    if ALONE in arms and main != ALONE:
        gain = 100 * (kept["agreement"]["mean"] - arms[ALONE]["agreement"]["mean"])
        sentence += f" Without the teacher the same student does so on {percent(arms[ALONE]['agreement']['mean'])}: "
        sentence += f"{gain:+.1f} points are the teacher's doing."
    if "gradient_cosine" in kept:
        sentence += f" Its reasons resemble the model's by a cosine of {kept['gradient_cosine']['mean']:.2f}."
    columns = [("agrees", "agreement", 100, "%"), ("KL", "kl", 1, ""), ("accuracy", "accuracy", 100, "%")]
    name, of = "gradient cosine", "gradients of the model's top logit with respect to the inputs"
    if numbers["kind"] == "text":
        name, of = "cosine of reasons", "reasons: what each word adds to the score of the model's answer"
    columns += [("calibration error", "ece", 1, ""), (name, "gradient_cosine", 1, "")]
    there = [column for column in columns if any(column[1] in arm for arm in arms.values())]
    rows = [[name, *(_cell(arm.get(key), scale) for _, key, scale, _ in there)] for name, arm in arms.items()]
    own = numbers["model"]
    first = ["the model", *(own[key] * scale if key in own else None for _, key, scale, _ in there)]
    figure = {
        "kind": "table",
        "columns": [
            {"name": "student"},
            *({"name": name, **({"unit": unit} if unit else {}), "best": _best(key)} for name, key, _, unit in there),
        ],
        "rows": [first, *rows],
        "apart": [0],
        "main": [1 + list(arms).index(main)],
        "note": f"Means over seeds with 95 % intervals; {of}.",
    }
    control = f"Agreement by chance: {percent(kept['chance']['mean'])}" + (
        "; the same student trained alone." if ALONE in arms and main != ALONE else "."
    )
    return Finding("What the students kept", sentence, kept["agreement"]["mean"], control, figure)


def _best(key: str) -> str:
    return "low" if key in ("kl", "ece") else "high"


def _cell(held: Mapping[str, Any] | None, scale: float) -> Any:
    if held is None:
        return None
    low, high = (None if held[end] is None else scale * held[end] for end in ("low", "high"))
    return {"mean": scale * held["mean"], "low": low, "high": high, "n": held["n"]}


# --- classes and subgroups -----------------------------------------------------------------------------


def _classes(subject: Subject, logits: Tensor, told: Sequence[Tensor], labels: Tensor) -> list[dict[str, Any]]:
    count = len(subject.classes)
    own = recall_by_class(logits, labels, count)
    each = [recall_by_class(one, labels, count) for one in told]
    found = []
    for place, name in enumerate(subject.classes):
        values = [one[place] for one in each]
        if own[place] is None or any(value is None for value in values):
            continue
        mean = sum(value for value in values if value is not None) / len(values)
        found.append({"class": name, "model": own[place], "student": mean, "lost": own[place] - mean})  # type: ignore[operator]
    return sorted(found, key=lambda row: -row["lost"])


def _lost(rows: list[dict[str, Any]], main: str) -> Finding:
    worst, kept = rows[0], sum(row["lost"] <= 0.01 for row in rows)
    sentence = f"In {kept} of {len(rows)} classes '{main}' recognises as many examples as the model, within a point."
    if worst["lost"] > 0.01:
        sentence += (
            f" It loses most on '{worst['class']}': {percent(worst['model'])} of its examples are recognised by "
        )
        sentence += f"the model, {percent(worst['student'])} by the student. Give that class more examples or weight."
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
    }
    return Finding("Which classes it cost", sentence, worst["lost"], "The model's own share in each class.", figure)


def _groups(subject: Subject, logits: Tensor, told: Sequence[Tensor]) -> dict[str, Any]:
    """How often the students agree with the model in each subgroup, and in subgroups drawn at random."""
    agrees = torch.stack([(one.argmax(1) == logits.argmax(1)).double() for one in told]).mean(0)
    whole = float(agrees.mean())
    found: list[dict[str, Any]] = []
    groups: list[Subgroup] = subgroups(subject)
    for group in groups:
        found.append({"name": group.name, "examples": len(group.rows), "agreement": float(agrees[group.rows].mean())})
    lowest = []
    for draw in range(100):
        order = torch.from_numpy(permutation(len(agrees), subject.seed, "subgroups", draw).copy())
        lowest.append(min((float(agrees[order[group.rows]].mean()) for group in groups), default=whole))
    least = float(np.quantile(lowest, 0.05)) if groups else whole
    return {"whole": whole, "least_by_chance": least, "groups": sorted(found, key=lambda row: row["agreement"])}


def _cost(groups: dict[str, Any], main: str) -> Finding:
    rows, least = groups["groups"], groups["least_by_chance"]
    title = "Whom it cost"
    control = f"Groups of the same sizes drawn at random: in 95 of 100 draws none falls below {percent(least)}."
    if not rows:
        return Finding(title, "There are no subgroups to compare in this data.", None, control)
    below = [row for row in rows if row["agreement"] < least]
    if below:
        worst = below[0]
        sentence = f"'{main}' follows the model least on {worst['name']}: on {percent(worst['agreement'])} of "
        sentence += f"{worst['examples']} examples, on {percent(groups['whole'])} of all. "
        sentence += (
            "That is more than chance explains." if len(below) == 1 else f"{len(below)} groups lie below chance."
        )
    else:
        sentence = f"No subgroup is left behind: '{main}' follows the model on {percent(rows[0]['agreement'])} even of "
        sentence += f"the worst one ({rows[0]['name']}), which is within chance."
    figure = {
        "kind": "dots",
        "unit": "%",
        "x_label": "agrees with the model",
        "rows": [{"name": row["name"], "mean": 100 * row["agreement"], "series": main} for row in rows[:SHOWN]],
        "references": [
            {"name": "all", "value": 100 * groups["whole"]},
            {"name": "least by chance", "value": 100 * least},
        ],
    }
    return Finding(title, sentence, rows[0]["agreement"], control, figure)


# --- layers --------------------------------------------------------------------------------------------


def _shown_by(subject: Subject, examples: Tensor) -> dict[str, Tensor]:
    """What each layer shows of the examples: one vector a row."""
    paths = read_once(subject)
    return vectors(subject, paths, examples) if paths else {}


def _layers(subject: Subject, student: Subject, few: int) -> dict[str, Any]:
    examples = subject.examples("test")
    some = examples[torch.from_numpy(permutation(len(examples), subject.seed, "layers")[:few].copy())]
    own, theirs = _shown_by(subject, some), _shown_by(student, some)
    twin = _shown_by(student.randomised(subject.seed), some)
    values, control = matrix(own, theirs), matrix(own, twin)
    best = {path: max(row) for path, row in zip(own, values, strict=True)}
    return {"model": list(own), "student": list(theirs), "values": values, "control": control, "best": best}


def _alike(layers: dict[str, Any], main: str) -> Finding:
    values = np.asarray(layers["values"], np.float64)
    control = np.asarray(layers["control"], np.float64)
    place = np.unravel_index(np.nanargmax(values), values.shape)
    top, by_chance = float(values[place]), float(np.nanmax(control))
    names = layers["model"][place[0]], layers["student"][place[1]]
    last = float(np.nanmax(values[-1])), float(np.nanmax(control[-1]))
    sentence = (
        f"Most alike are the model's '{names[0]}' and the student's '{names[1]}' ({top:.2f} of 1). Of the model's "
    )
    sentence += f"last layer the student has {last[0]:.2f}, one with random weights {last[1]:.2f}."
    if last[0] - last[1] < 0.1:
        sentence += " That is hardly more than the architecture gives: the student answers by ways of its own."
    figure = {
        "kind": "matrix",
        "labels": layers["model"],
        "columns": layers["student"],
        "values": [[None if np.isnan(value) else round(float(value), 2) for value in row] for row in values],
        "note": f"Debiased linear CKA of each layer of the model (rows) with each of '{main}' (columns).",
    }
    words = f"A student with random weights: {by_chance:.2f} at most. Layers that are alike need not answer alike."
    return Finding("Which layers became alike", sentence, last[0], words, figure)


# --- examples ------------------------------------------------------------------------------------------


def _disagreements(
    subject: Subject, student: Tensor, logits: Tensor, labels: Tensor
) -> tuple[list[dict[str, Any]], int]:
    """The examples on which both are surest of different classes, and on how many they differ."""
    ours, theirs = logits.double().softmax(1), student.double().softmax(1)
    apart = (ours.argmax(1) != theirs.argmax(1)).nonzero()[:, 0]
    order = (ours[apart].amax(1) * theirs[apart].amax(1)).argsort(descending=True, stable=True)[:SHOWN]
    items = []
    for row in apart[order].tolist():
        example = int(subject.examples("test")[row])
        items.append(
            {
                "example": example,
                "shown": subject.data.show(example),
                "teacher": subject.classes[int(ours[row].argmax())],
                "student": subject.classes[int(theirs[row].argmax())],
                "true": subject.classes[int(labels[row])] if int(labels[row]) >= 0 else None,
                "shares": (float(ours[row].max()), float(theirs[row].max())),
            }
        )
    return items, len(apart)


def _shown(items: list[dict[str, Any]], apart: int, count: int, main: str) -> Finding:
    title = "Where they disagree"
    sentence = f"The first of '{main}' differs from the model on {apart:,} of {count:,} test examples "
    sentence += f"({percent(apart / max(1, count))})."
    known = [item for item in items if item["true"] is not None]
    if known:
        right = sum(item["true"] == item["teacher"] for item in known)
        sentence += f" Of the {len(known)} on which both are surest the model is right {right} times, '{main}' "
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
