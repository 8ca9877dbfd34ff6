"""How the model behaves: how often it is right, how sure it should be, and which classes it finds hard."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.contracts import UNLABELLED, Finding
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.report.readings import listed
from stillroom.statistics import LEVEL, of_share
from stillroom.tasks import accuracy, by_rows, class_counts, confusions, recall_by_class, reliability, top_share

HARDEST, NAMED = 10, 3  # classes that are shown, and that a sentence names
COLDEST, HOTTEST = 0.05, 20.0  # temperatures between which the best is looked for
UNLIKELY = 1.92  # of log-likelihood, half the 95 % quantile of chi-squared with one degree of freedom
BETTER = 0.005  # of ECE: less is no repair


def answers(subject: Subject, budget: Budget) -> Panel:
    """Return accuracy, calibration with the temperature that repairs it, and which classes are harder than others.

    The temperature T is that of Guo et al. 2017 (https://arxiv.org/abs/1706.04599): the one whose softmax(logits / T)
    has the least cross-entropy on the validation split; what it repairs is measured on the test split. Controls: a
    model that always answers the most frequent class; T = 1. A class is harder than others (``harder``) if the whole
    interval of its recall, exact and 95 % for all classes together (Bonferroni), lies below the accuracy over all:
    some class is always last. ``validation`` are the same numbers of the validation split: a choice made from those can
    be judged on the test split.
    """
    test = subject.examples("test")
    labels, logits = subject.labels(test), subject.logits("test")
    known = labels != UNLABELLED
    if not bool(known.any()):
        return Panel("answers", notes=["no test example has a label, so nothing says how often it is right"])
    labels, logits = labels[known], logits[known]
    right = accuracy(logits, labels)
    train = subject.labels(subject.examples("train"))
    usual = int(torch.bincount(train[train >= 0], minlength=len(subject.classes)).argmax())
    guess = float((labels == usual).double().mean())
    fitted = _temperature(subject)
    temperature = None if fitted is None else fitted[0]
    before = reliability(logits, labels)
    after = reliability(logits / temperature, labels) if temperature is not None else None
    recalls = recall_by_class(logits, labels, len(subject.classes))
    ends = _ends(logits, labels, subject.classes)
    numbers = {
        "examples": len(labels),
        "accuracy": right,
        "majority_class": {"class": subject.classes[usual], "accuracy": guess},
        "ece": before.ece,
        "mean_confidence": float(top_share(logits).mean()),
        "temperature": temperature,
        "ece_repaired": None if after is None else after.ece,
        "recall": dict(zip(subject.classes, recalls, strict=True)),
        "rows": dict(zip(subject.classes, torch.bincount(labels, minlength=len(recalls)).tolist(), strict=True)),
        "recall_ends": ends,
        "harder": [name for name, (_, high) in ends.items() if high < right],
        "never_answered": _never_answered(logits, labels, subject.classes),
        "confusions": _confusions(logits, labels, subject.classes),
        "validation": validation(subject, fitted),
    }
    findings = [
        _right(numbers),
        _sure(numbers, before.plain(), None if after is None else after.plain()),
        _hard(numbers),
    ]
    return Panel("answers", findings, numbers)


def validation(subject: Subject, fitted: tuple[float, float, float] | None) -> dict[str, Any] | None:
    """Return what is known from labelled validation rows, None without any.

    ``examples``, ``accuracy``, ``mean_confidence``, ``ece``, by class ``recall`` (None where it has no row) and
    ``rows``, how many rows it has; and ``temperature``, the interval of the one ``fitted`` there.
    """
    labels, logits = _validation(subject)
    if not len(labels):
        return None
    recalls = recall_by_class(logits, labels, len(subject.classes))
    rows = torch.bincount(labels, minlength=len(subject.classes)).tolist()
    return {
        "examples": len(labels),
        "accuracy": accuracy(logits, labels),
        "mean_confidence": float(top_share(logits).mean()),
        "ece": reliability(logits, labels).ece,
        "recall": dict(zip(subject.classes, recalls, strict=True)),
        "rows": dict(zip(subject.classes, rows, strict=True)),
        "temperature": None if fitted is None else list(fitted[1:]),
    }


def _validation(subject: Subject) -> tuple[Tensor, Tensor]:
    """Labels and logits of the labelled validation rows."""
    examples = subject.examples("validation")
    if not len(examples):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, len(subject.classes))
    labels, logits = subject.labels(examples), subject.logits("validation")
    known = labels != UNLABELLED
    return labels[known], logits[known]


def _temperature(subject: Subject) -> tuple[float, float, float] | None:
    """The temperature of least cross-entropy on validation and the ends of its interval; None without labels.

    The interval (95 %) is that of the likelihood ratio (Wilks 1938, https://doi.org/10.1214/aoms/1177732360): of all
    temperatures under which the labels are not less likely than by a factor of exp(-1.92).
    """
    from scipy.optimize import brentq, minimize_scalar

    labels, logits = _validation(subject)
    if len(labels) < 2:
        return None
    ends = (math.log(COLDEST), math.log(HOTTEST))

    def cost(place: float) -> float:
        def losses(part: Tensor, of: Tensor) -> Tensor:
            return F.cross_entropy(part.double() / math.exp(place), of, reduction="none")

        return float(by_rows(losses, logits, labels).sum())

    best = float(minimize_scalar(cost, bounds=ends, method="bounded").x)
    least = cost(best) + UNLIKELY

    def edge(end: float) -> float:
        return end if cost(end) <= least else float(brentq(lambda place: cost(place) - least, best, end))

    return math.exp(best), math.exp(edge(ends[0])), math.exp(edge(ends[1]))


def _ends(logits: Tensor, labels: Tensor, classes: list[str]) -> dict[str, list[float]]:
    """The interval of each recall, 95 % for all classes together; by class, lowest recall first, without empty ones."""
    rows = torch.bincount(labels, minlength=len(classes)).tolist()
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=len(classes)).tolist()
    there = sorted((place for place, count in enumerate(rows) if count), key=lambda place: right[place] / rows[place])
    sure = 1 - (1 - LEVEL) / len(there)
    return {classes[place]: list(of_share(right[place], rows[place], sure)) for place in there}


def _never_answered(logits: Tensor, labels: Tensor, classes: list[str]) -> list[str]:
    """The classes that test examples have and the model never answers, the most frequent first."""
    counts = class_counts(logits, labels, len(classes))
    order = counts.rows.argsort(descending=True, stable=True).tolist()
    return [classes[place] for place in order if counts.rows[place] and not counts.answered[place]]


def _confusions(logits: Tensor, labels: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """The pairs that are mistaken most: the true class, what was answered, how often."""
    of = torch.bincount(labels, minlength=len(classes))
    return [
        {"true": classes[true], "answered": classes[told], "count": count, "share": count / float(of[true])}
        for true, told, count in confusions([logits], labels)[:HARDEST]
    ]


def _right(numbers: dict[str, Any]) -> Finding:
    right, usual = numbers["accuracy"], numbers["majority_class"]
    ahead = right - usual["accuracy"]
    sentence = f"It is right on {percent(right)} of {numbers['examples']:,} test examples"
    sentence += f", {100 * ahead:.1f} points more than answering '{usual['class']}' every time."
    if ahead < 0.02:
        sentence = f"It is right on {percent(right)} of the test examples, hardly more than answering "
        sentence += f"'{usual['class']}' every time. What follows describes a model that has learnt next to nothing."
    figure = {
        "kind": "dots",
        "unit": "%",
        "x_label": "accuracy",
        "rows": [
            {"name": "the model", "mean": 100 * right},
            {"name": "always the same", "mean": 100 * usual["accuracy"]},
        ],
    }
    control = f"Always '{usual['class']}', the most frequent class in training: {percent(usual['accuracy'])}."
    return Finding("How often it is right", sentence, right, control, figure)


def _sure(numbers: dict[str, Any], before: dict[str, Any], after: dict[str, Any] | None) -> Finding:
    ece, temperature = numbers["ece"], numbers["temperature"]
    lean = numbers["mean_confidence"] - numbers["accuracy"]
    way = "overconfident" if lean > 0 else "underconfident"
    sentence = f"Its mean confidence is {percent(numbers['mean_confidence'])}, its accuracy "
    sentence += f"{percent(numbers['accuracy'])}: it is {way if abs(lean) > 0.01 else 'as confident as it is right'}."
    series = [{"name": "as it is", **before}]
    if after is not None and ece - after["ece"] > BETTER:
        repaired = f"from {ece:.3f} to {after['ece']:.3f}"
        sentence += f" Dividing its logits by {temperature:.2f} lowers the calibration error {repaired}."
        series.append({"name": f"temperature {temperature:.2f}", **after})
    elif after is not None:
        sentence += " No temperature lowers the calibration error much: it is "
        sentence += f"{ece:.3f}, and {after['ece']:.3f} with the best one."
    control = "The temperature was chosen on validation examples, the error measured on test examples. Temperature 1 "
    control += "is the model as it is."
    return Finding("Whether its confidence is right", sentence, ece, control, {"kind": "reliability", "series": series})


def _hard(numbers: dict[str, Any]) -> Finding:
    recalls, ends = numbers["recall"], numbers["recall_ends"]
    sentence = _which_are_harder(numbers)
    if never := numbers["never_answered"]:
        rows_ = sum(numbers["rows"][name] for name in never)
        sentence = f"It never answers {listed(never)} ({rows_:,} test example{'s' * (rows_ != 1)}). {sentence}"
    if numbers["confusions"]:
        most = numbers["confusions"][0]
        sentence += f" The most frequent mistake: it answers '{most['answered']}' where '{most['true']}' is true "
        sentence += f"({most['count']} example{'s' * (most['count'] != 1)})."
    rows = [
        {"name": name, "mean": 100 * recalls[name], "low": 100 * low, "high": 100 * high, "series": "the model"}
        for name, (low, high) in list(ends.items())[:HARDEST]
    ]
    figure = {
        "kind": "dots",
        "unit": "%",
        "x_label": "recall",
        "rows": rows,
        "references": [{"name": "all classes", "value": 100 * numbers["accuracy"]}],
        "note": "Bars: 95 % intervals of recall, corrected for the number of classes (Bonferroni)." + _shown_of(ends),
    }
    control = f"The line is the accuracy over all classes, {percent(numbers['accuracy'])}. A class is reported as "
    control += "harder only if its recall is significantly below that (95 %, corrected for the number of classes)."
    return Finding("What it finds hard", sentence, recalls[next(iter(ends))], control, figure)


def _shown_of(ends: dict[str, list[float]]) -> str:
    return f" The {HARDEST} classes of lowest recall, of {len(ends):,}." if len(ends) > HARDEST else ""


def _which_are_harder(numbers: dict[str, Any]) -> str:
    """Which classes lie below all by more than chance; or that none does."""
    recalls, rows, harder, order = numbers["recall"], numbers["rows"], numbers["harder"], list(numbers["recall_ends"])
    last, best = order[0], order[-1]
    over_all = f"the accuracy over all classes ({percent(numbers['accuracy'])})"
    if len(harder) == 1:
        worst = harder[0]
        sentence = f"The hardest class is '{worst}': its recall, {percent(recalls[worst])} of {rows[worst]:,} test "
        return f"{sentence}examples, is clearly below {over_all}; that of '{best}' is {percent(recalls[best])}."
    if harder:
        named = ", ".join(f"'{name}' ({percent(recalls[name])})" for name in harder[:NAMED])
        more = f" and {len(harder) - NAMED} more" if len(harder) > NAMED else ""
        return f"The recall of {len(harder)} classes is clearly below {over_all}: {named}{more}."
    if len(order) == 1:
        return f"All test examples are of '{last}', so no class can be harder than another."
    if recalls[last] == recalls[best]:
        return f"No class is harder than the others: the recall of each is {percent(recalls[last])}."
    few, many = min(rows[name] for name in order), max(rows[name] for name in order)
    sentence = f"No class is clearly harder than the others: recall ranges from {percent(recalls[last])} ('{last}') to "
    sentence += f"{percent(recalls[best])} ('{best}'). With {few:,}"
    return f"{sentence}{f' to {many:,}' if many > few else ''} test examples a class that may be chance."
