"""What the students kept of the model and what they lost: answers, certainty, reasons, layers, and whom it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.errors import TapError
from stillroom.evaluate import plain_ids
from stillroom.mining.attribution.explained import effects, words_of
from stillroom.mining.cka import matrix
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.reading import read_once, vectors
from stillroom.mining.students.classes import lost_by_class
from stillroom.mining.students.findings import ALONE, SHOWN, alike, cost, kept, lost, shown
from stillroom.mining.subgroups import Subgroup, subgroups
from stillroom.mining.subject import Subject
from stillroom.randomness import permutation
from stillroom.statistics import over_seeds, paired
from stillroom.taps import read
from stillroom.tasks import accuracy, agreement, divergence, reliability

ASKED = 400  # examples whose gradients and layers are compared
EXPLAINED = 24  # texts whose words are compared
PILOT, LEAST, SHARE = 16, 60, 0.7  # examples that are timed; no fewer are compared; of the time that is left
GRADIENTS, LAYERS, TWIN = 4, 1, 1  # passes that a row takes: with its gradients, for layers, by random weights
Pupils = Mapping[str, Sequence[Subject]]
Alike = Callable[[Subject], float | None]


def students(subject: Subject, budget: Budget, pupils: Pupils) -> Panel:
    """Return what each arm's students kept of the model, and which classes, subgroups and examples it cost.

    Controls: the arm without the teacher, where there is one; agreement by chance, that of two models which answer as
    often each class and know nothing of each other; intervals over examples and seeds, for classes; a student with
    random weights, for layers; subgroups drawn at random, for subgroups.
    """
    logits, examples = subject.logits("test"), subject.examples("test")
    labels = subject.labels(examples)
    answers = {name: [one.logits("test") for one in seeds] for name, seeds in pupils.items()}
    few = afforded(subject, budget, pupils)
    resemble = _by_words(subject, few) if subject.kind == "text" else _by_inputs(subject, few)
    arms = {name: _kept(seeds, logits, labels, resemble) for name, seeds in pupils.items()}
    main = _main(pupils)
    told = answers[main]
    notes = [f"to keep to the time, layers and reasons were compared on {few} examples"]
    notes = [*notes * (few < min(ASKED, len(examples))), *_failed(answers)]
    numbers: dict[str, Any] = {"kind": subject.kind, "main": main, "arms": arms, "model": _own(logits, labels)}
    if main != ALONE and ALONE in pupils:
        numbers["gain"] = _gain(told, answers[ALONE], logits)
    findings = [kept(numbers)]
    if bool((labels != UNLABELLED).any()):
        numbers["classes"] = lost_by_class(logits, told, labels, subject.classes)
        findings.append(lost(numbers["classes"], main, len(told)))
    groups = _groups(subject, logits, told)
    numbers["subgroups"] = groups["groups"]
    findings.append(cost(groups, main))
    layers = _layers(subject, pupils[main], few, main)
    if isinstance(layers, str):
        notes.append(f"layers are not compared: {layers}")
    else:
        numbers["cka"] = layers
        findings.append(alike(layers, main))
    items, apart = _disagreements(subject, told[0], logits, labels)
    numbers["disagreements"] = [{key: item[key] for key in ("example", "teacher", "student", "true")} for item in items]
    findings.append(shown(items, apart, len(logits), main))
    return Panel("students", findings, numbers, notes=notes)


def _main(pupils: Pupils) -> str:
    """The arm that is told of: the first one with a teacher."""
    return next((name for name in pupils if name != ALONE), next(iter(pupils)))


def _failed(answers: Mapping[str, Sequence[Tensor]]) -> list[str]:
    """Say of which arms a student tells no example from another, or gives no numbers at all."""
    found = []
    for name, seeds in answers.items():
        same = sum(len(one) > 1 and bool((one - one[:1]).abs().max() <= 1e-6 * one.abs().max()) for one in seeds)
        broken = sum(not bool(one.isfinite().all()) for one in seeds)
        for count, what in ((same, "the same answer to every example"), (broken, "answers that are no numbers")):
            which = f"the student of '{name}'" if len(seeds) == 1 else f"{count} of {len(seeds)} students of '{name}'"
            says = f"{which} gives {what}: train it" if count == 1 else f"{which} give {what}: train them"
            found += [f"{says} anew, for example with a lower learning rate"] * (count > 0)
    return found


# --- how many ------------------------------------------------------------------------------------------


def afforded(subject: Subject, budget: Budget, pupils: Pupils) -> int:
    """Return on how many examples the model and every student can be compared within most of the time that is left."""
    whole = min(ASKED, len(subject.examples("test")))
    if subject.module is None:
        return whole
    seconds = (GRADIENTS + LAYERS) * pace(subject)
    for name, seeds in pupils.items():
        opened = [one for one in seeds if one.module is not None]
        if opened:
            layers = (LAYERS + TWIN) * (name == _main(pupils))
            seconds += (GRADIENTS * len(opened) + layers) * pace(opened[0])
    return min(whole, max(LEAST, budget.rows(whole, 1, seconds, share=SHARE)))


def pace(subject: Subject) -> float:
    """Return how many seconds a pass over an example takes; students of an arm are alike."""
    some = subject.inputs(subject.examples("test")[:PILOT])
    subject.answer(some[:2])  # what is done once, such as finding memory, is not timed
    began = time.perf_counter()
    subject.answer(some)
    return (time.perf_counter() - began) / max(1, len(some))


# --- each arm ------------------------------------------------------------------------------------------


def _own(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if not bool((labels != UNLABELLED).any()):
        return {}
    return {"accuracy": accuracy(logits, labels), "ece": reliability(logits, labels).ece}


def _kept(seeds: Sequence[Subject], logits: Tensor, labels: Tensor, resemble: Alike) -> dict[str, Any]:
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
        reasons = resemble(one)
        found |= {} if reasons is None else {"gradient_cosine": reasons}
        for name, value in found.items():
            if math.isfinite(value):
                rows.setdefault(name, []).append(value)
    return {name: over_seeds(values).plain() for name, values in rows.items()}


def _chance(student: Tensor, teacher: Tensor) -> float:
    """How often two models would agree that answer each class as often as these, and independently."""
    count = teacher.shape[1]
    shares = [torch.bincount(one.argmax(1), minlength=count).double() / len(one) for one in (student, teacher)]
    return float(shares[0] @ shares[1])


def _gain(told: Sequence[Tensor], alone: Sequence[Tensor], logits: Tensor) -> dict[str, Any]:
    """How much more often students agree with the model than those without it, paired by seed and by example."""
    seeds = min(len(told), len(alone))
    ours, others = (
        torch.stack([one.argmax(1) == logits.argmax(1) for one in each[:seeds]]).double().numpy()
        for each in (told, alone)
    )
    found = paired(ours, others)
    verdict = "not clear"
    if found.low is not None and found.high is not None:
        verdict = "more" if found.low > 0 else "less" if found.high < 0 else verdict
    return {**found.plain(), "verdict": verdict}


def _by_inputs(subject: Subject, few: int) -> Alike:
    """Mean cosine of both input gradients along the model's top class; None for closed models."""
    examples, tap = subject.examples("test"), "logits@gradient"
    order = permutation(len(examples), subject.seed, "gradients")[:few].copy()
    batch = subject.data.batch(plain_ids(examples[torch.from_numpy(order)]))
    ours: dict[str, Tensor] | None = None
    if subject.module is not None:
        try:
            with torch.no_grad():
                ours = dict(read(subject.module.eval(), ["logits", tap], subject.encode)(batch))
        except TapError:
            ours = None

    def resemble(student: Subject) -> float | None:
        if ours is None or student.module is None:
            return None
        try:
            with torch.no_grad():
                theirs = read(student.module.eval(), [tap], student.encode)(batch, ours)
        except TapError:
            return None
        return _cosine(ours[tap].flatten(1), theirs[tap].flatten(1))

    return resemble


def _by_words(subject: Subject, few: int) -> Alike:
    """Mean cosine of what each word adds to the model's answer, and to the student's score of it."""
    examples = subject.examples("test")
    order = permutation(len(examples), subject.seed, "gradients")[: max(2, few * EXPLAINED // ASKED)].copy()
    inputs = subject.inputs(examples[torch.from_numpy(order)])
    words = words_of(subject, inputs)
    some = torch.tensor([row for row, pieces in enumerate(words) if pieces], dtype=torch.int64)
    inputs, words = inputs[some], [words[row] for row in some.tolist()]
    ours = None
    if subject.module is not None and words:
        classes = subject.answer(inputs).argmax(1)
        ours = effects(subject, inputs, words, classes)

    def resemble(student: Subject) -> float | None:
        theirs = None if ours is None or student.module is None else effects(student, inputs, words, classes)
        return None if ours is None or theirs is None else _cosine(ours, theirs)

    return resemble


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1).mean())


# --- subgroups -----------------------------------------------------------------------------------------


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


# --- layers --------------------------------------------------------------------------------------------


def _shown_by(subject: Subject, examples: Tensor) -> dict[str, Tensor]:
    """What each layer shows of the examples: one vector a row."""
    paths = read_once(subject)
    return vectors(subject, paths, examples) if paths else {}


def _layers(subject: Subject, seeds: Sequence[Subject], few: int, main: str) -> dict[str, Any] | str:
    """How alike each layer of the model and of the first student are; or why that cannot be told."""
    if subject.module is None or any(one.module is None for one in seeds):
        return "only the answers of a model are known"
    examples, student = subject.examples("test"), seeds[0]
    some = examples[torch.from_numpy(permutation(len(examples), subject.seed, "layers")[:few].copy())]
    own, theirs = _shown_by(subject, some), _shown_by(student, some)
    for layers, whose in ((own, "the model"), (theirs, f"the first student of '{main}'")):
        if not layers:
            return f"no layer of {whose} can be read, or none varies from example to example"
    values = _plain(matrix(own, theirs))
    best = {
        path: max((value for value in row if value is not None), default=None)
        for path, row in zip(own, values, strict=True)
    }
    if all(value is None for value in best.values()):
        return f"on {len(some)} examples no layer of the model and none of the first student of '{main}' both vary"
    control = _plain(matrix(own, _shown_by(student.randomised(subject.seed), some)))
    return {"model": list(own), "student": list(theirs), "values": values, "control": control, "best": best}


def _plain(values: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """None where nothing varies: JSON knows no NaN."""
    return [[None if math.isnan(value) else value for value in row] for row in values]


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
