"""What is measured of a classifier: pure functions of logits and labels, on the CPU, in float64 where sums matter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED

BINS = 15
AT_ONCE = 2**22  # numbers that are worked on together: with 10,000 classes some hundred rows, in float64 32 MB


def by_rows(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Return ``function`` of tensors of as many rows each, worked out some rows at a time; it gives a row for each.

    So what it needs on the way (float64, softmax) does not grow with rows times classes.
    """
    size = max(1, AT_ONCE // max(1, max(value[:1].numel() for value in values)))
    return torch.cat([function(*parts) for parts in zip(*(value.split(size) for value in values), strict=True)])


def top_share(logits: Tensor) -> Tensor:
    """Return the probability of each row's top class, float64: the model's confidence."""
    return by_rows(lambda part: part.double().softmax(1).amax(1), logits)


def share_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probability that each row gives to a class of its own, float64."""
    return by_rows(lambda part, of: part.double().softmax(1).gather(1, of[:, None])[:, 0], logits, classes)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each labelled row's top class is its label: bool (labelled rows)."""
    known = labels != UNLABELLED
    return logits.argmax(1)[known] == labels[known]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of labelled rows whose top class is the label, 0 to 1."""
    return float(correct(logits, labels).double().mean())


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the share of rows on which both models' top class is the same, 0 to 1."""
    return float((student_logits.argmax(1) == teacher_logits.argmax(1)).double().mean())


def divergence(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return KL(teacher || student) at temperature 1, in nats, mean over rows."""

    def of_rows(ours: Tensor, theirs: Tensor) -> Tensor:
        student, teacher = (torch.log_softmax(part.double(), 1) for part in (ours, theirs))
        return (teacher.exp() * (teacher - student)).sum(1)

    return float(by_rows(of_rows, student_logits, teacher_logits).mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal bins of confidence; ``ece`` is the expected calibration error."""

    confidence: list[float | None]
    accuracy: list[float | None]
    share: list[float]
    ece: float

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {"confidence": self.confidence, "accuracy": self.accuracy, "share": self.share, "ece": self.ece}


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Return the reliability of the top class in equal-width bins of its probability.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599): ECE = sum over bins of share x |accuracy - confidence|.
    """
    known = labels != UNLABELLED
    top, right = top_share(logits)[known], correct(logits, labels).double()
    places = (top * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(places, minlength=bins).double()
    confidence = torch.bincount(places, top, minlength=bins) / counts
    accurate = torch.bincount(places, right, minlength=bins) / counts
    share = counts / counts.sum()
    gaps = (accurate - confidence).abs().nan_to_num(0)
    return Reliability(
        [None if value.isnan() else float(value) for value in confidence],
        [None if value.isnan() else float(value) for value in accurate],
        share.tolist(),
        float((share * gaps).sum()),
    )


@dataclass(frozen=True)
class ClassCounts:
    """How many labelled rows each class has, how often it is answered on them, and how often rightly: int64 each."""

    rows: Tensor
    answered: Tensor
    right: Tensor

    @property
    def recall(self) -> Tensor:
        """The share of each class's rows that are recognised; NaN for a class without rows."""
        return self.right.double() / self.rows

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have rows, as scikit-learn's ``balanced_accuracy_score``."""
        return float(self.recall[self.rows > 0].mean())

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have rows or are answered, as scikit-learn's ``f1_score`` by ``macro``."""
        both = (self.rows + self.answered).double()
        return float((2 * self.right / both)[both > 0].mean())


def class_counts(logits: Tensor, labels: Tensor, classes: int = 0) -> ClassCounts:
    """Count each class among the labelled rows, in one pass however many classes there are."""
    known = labels != UNLABELLED
    guess, truth = logits.argmax(1)[known], labels[known]
    count = max(classes, logits.shape[1], int(truth.max()) + 1 if len(truth) else 0)
    parts = (truth, guess, truth[guess == truth])
    return ClassCounts(*(torch.bincount(part, minlength=count) for part in parts))


def recall_by_class(logits: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Return, for each class, the share of its rows that are recognised; None for a class without rows."""
    recall = class_counts(logits, labels, classes).recall[:classes]
    return [None if math.isnan(value) else value for value in recall.tolist()]


def confusions(parts: Sequence[Tensor], labels: Tensor) -> list[tuple[int, int, int]]:
    """Return (true class, other class that was answered, how often in all of ``parts``), the most frequent first.

    There are no more of them than wrong answers, however many classes there are.
    """
    found: Counter[tuple[int, int]] = Counter()
    for logits in parts:
        known = labels != UNLABELLED
        guess, truth = logits.argmax(1)[known], labels[known]
        wrong = guess != truth
        found.update(zip(truth[wrong].tolist(), guess[wrong].tolist(), strict=True))
    return sorted(((true, other, count) for (true, other), count in found.items()), key=lambda one: (-one[2], one[:2]))


def measure(logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None) -> dict[str, float]:
    """Return all measures that apply.

    With labels ``accuracy``, ``balanced_accuracy``, ``macro_f1`` and ``ece``; with a teacher ``agreement`` and ``kl``.
    """
    found: dict[str, float] = {}
    if labels is not None and bool((labels != UNLABELLED).any()):
        counts = class_counts(logits, labels)
        found["accuracy"] = accuracy(logits, labels)
        found |= {"balanced_accuracy": counts.balanced_accuracy, "macro_f1": counts.macro_f1}
        found["ece"] = reliability(logits, labels).ece
    if teacher_logits is not None:
        found["agreement"] = agreement(logits, teacher_logits)
        found["kl"] = divergence(logits, teacher_logits)
    return found
