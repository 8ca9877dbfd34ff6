"""Which data taught it: typical and unusual examples, those that moved most, and labels that look wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Finding
from stillroom.errors import TapError
from stillroom.mining.examples.findings import mislabelled, moved, typical
from stillroom.mining.examples.left_out import LastLayer, fitted, one_hot
from stillroom.mining.examples.mislabels import LIKELY, better, doubt, planted
from stillroom.mining.examples.prototypes import chosen, nearest
from stillroom.mining.examples.untrained import untrained
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.randomness import permutation

LEAST = 40  # labelled rows, below which nothing is fitted
TYPICAL, UNUSUAL = 3, 2  # of a class
SIZES = (1, 2, 3, 5, 10)  # prototypes a class that are tried
DRAWS = 20  # of random rows, to compare with
GONE = 0.05  # of the rows, that are taken away
LISTED, WRONG = 50, 6


@dataclass(frozen=True)
class Rows:
    """A split as the panel sees it: example numbers (N), features (N, D), labels (N, -1 unknown), answers (N, K)."""

    examples: Tensor
    features: Tensor
    labels: Tensor
    logits: Tensor

    @property
    def labelled(self) -> Rows:
        """The rows whose label is known."""
        at = self.labels != UNLABELLED
        return Rows(self.examples[at], self.features[at], self.labels[at], self.logits[at])


def examples(subject: Subject, budget: Budget) -> Panel:
    """Return which training examples are typical, which moved the answers most, and whose labels look wrong.

    All three are asked of what enters the layer that makes the logits; of a model that shows answers only, of these.
    Prototypes and criticisms are those of :func:`~stillroom.mining.examples.prototypes.chosen`. Effect and doubt are
    those of a last layer fitted anew on these features (:class:`~stillroom.mining.examples.left_out.LastLayer`), of
    which leaving out a row is exact; how the layers before would have learnt without that row is not known. Rows whose
    effect is told were chosen on validation examples, what leaving them out does is measured on test examples.
    Controls: random examples as prototypes; random examples left out; labels exchanged on purpose.
    """
    notes: list[str] = []
    train, validation, test = (_rows(subject, split) for split in ("train", "validation", "test"))
    numbers: dict[str, Any] = {"examples": len(train.examples)}
    findings: list[Finding] = []
    files: dict[str, bytes] = {}
    standing = _typical(subject, train, test)
    numbers["prototypes"] = standing
    findings.append(typical(standing, subject))
    files["prototypes.json"] = _json(standing["classes"])
    known, held = train.labelled, validation.labelled
    if min(len(known.labels), len(held.labels)) < LEAST or len(known.labels.unique()) < 2:
        notes.append(
            f"fewer than {LEAST} labelled training or validation rows: no effect of an example, no wrong labels"
        )
        return Panel("examples", findings, numbers, files, notes)
    layer = fitted(known.features, known.labels, len(subject.classes))
    numbers["influence"] = _influence(subject, layer, known, held, test)
    findings.append(moved(numbers["influence"], subject))
    numbers["labels"] = _labels(subject, layer, known)
    numbers["suspects"] = numbers["labels"].pop("suspects")
    findings.append(mislabelled(numbers["labels"], numbers["suspects"], subject))
    files["suspects.json"] = _json(numbers["suspects"])
    return Panel("examples", findings, numbers, files, notes)


def _rows(subject: Subject, split: str) -> Rows:
    """A split's features and answers; answers stand for features that are not shown."""
    examples, logits = subject.examples(split), subject.logits(split)
    try:
        features = logits if subject.module is None else subject.features(split)
    except TapError:
        features = logits
    return Rows(examples, features, subject.labels(examples), logits)


# --- what is typical -----------------------------------------------------------------------------------


def _typical(subject: Subject, train: Rows, test: Rows) -> dict[str, Any]:
    answered, asked = train.logits.argmax(1), test.logits.argmax(1)
    groups = {int(one): (answered == one).nonzero()[:, 0] for one in answered.unique()}
    taken = {one: chosen(train.features[rows], max(SIZES), UNUSUAL, subject.seed) for one, rows in groups.items()}
    curve = []
    for size in SIZES:
        ours = {one: groups[one][places[:size]] for one, (places, _) in taken.items()}
        drawn = [
            {
                one: rows[torch.from_numpy(permutation(len(rows), subject.seed, "drawn", draw, one)[:size].copy())]
                for one, rows in groups.items()
            }
            for draw in range(DRAWS)
        ]
        others = [_stands(train, test, asked, one) for one in drawn]
        curve.append(
            {
                "each": size,
                "prototypes": _stands(train, test, asked, ours),
                "random": sum(others) / len(others),
                "random_best": max(others),
            }
        )
    classes = [
        {
            "class": subject.classes[one],
            "typical": train.examples[groups[one][places[:TYPICAL]]].tolist(),
            "unusual": train.examples[groups[one][odd]].tolist(),
        }
        for one, (places, odd) in taken.items()
    ]
    return {"curve": curve, "classes": classes, "each": TYPICAL}


def _stands(train: Rows, test: Rows, asked: Tensor, taken: dict[int, Tensor]) -> float:
    """How often the nearest of the taken rows has the class that the model answers."""
    rows = torch.cat(list(taken.values()))
    of = torch.cat([torch.full((len(part),), one) for one, part in taken.items()])
    return float((nearest(test.features, train.features[rows], of) == asked).double().mean())


# --- what moved it -------------------------------------------------------------------------------------


def _influence(subject: Subject, layer: LastLayer, known: Rows, held: Rows, test: Rows) -> dict[str, Any]:
    measured = test.labelled if len(test.labelled.labels) else held
    rises = layer.loss_without(held.features, one_hot(held.labels, len(subject.classes)))
    order = rises.argsort(descending=True, stable=True)
    count = max(1, round(GONE * len(order)))
    drawn = [
        torch.from_numpy(permutation(len(order), subject.seed, "left out", draw)[:count].copy())
        for draw in range(DRAWS)
    ]
    others = [_right(layer.without(one), measured) for one in drawn]
    return {
        "share": GONE,
        "left_out": count,
        "measured_on": "test" if len(test.labelled.labels) else "validation",
        "all": _right(layer, measured),
        "without_most_helpful": _right(layer.without(order[:count]), measured),
        "without_most_harmful": _right(layer.without(order[-count:]), measured),
        "without_random": {"mean": sum(others) / len(others), "low": min(others), "high": max(others)},
        "agreement": float((layer.answer(test.features).argmax(1) == test.logits.argmax(1)).double().mean()),
        "most_helpful": _ranked(subject, known, rises, order[:LISTED]),
        "most_harmful": _ranked(subject, known, rises, order.flip(0)[:LISTED]),
        "mistakes": _mistakes(subject, layer, known, measured),
    }


def _right(layer: LastLayer, rows: Rows) -> float:
    return float((layer.answer(rows.features).argmax(1) == rows.labels).double().mean())


def _ranked(subject: Subject, known: Rows, rises: Tensor, order: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "example": int(known.examples[row]),
            "label": subject.classes[int(known.labels[row])],
            "loss_without": float(rises[row]),
        }
        for row in order
    ]


def _mistakes(subject: Subject, layer: LastLayer, known: Rows, test: Rows) -> list[dict[str, Any]]:
    """The surest wrong answers, each with the rows that pulled most to what was answered and to what is right."""
    shares = test.logits.double().softmax(1).max(1)
    wrong = (shares.indices != test.labels).nonzero()[:, 0]
    wrong = wrong[shares.values[wrong].argsort(descending=True, stable=True)][:WRONG]
    pull, rest = layer.pull(test.features[wrong]), layer.aims - layer.scores
    found = []
    for place, row in enumerate(wrong.tolist()):
        told, right = int(shares.indices[row]), int(test.labels[row])
        moved = {one: pull[place] * rest[:, one] for one in (told, right)}
        taken = {one: int(moved[one].masked_fill(known.labels != one, -torch.inf).argmax()) for one in moved}
        found.append(
            {
                "example": int(test.examples[row]),
                "label": subject.classes[right],
                "answered": subject.classes[told],
                "confidence": float(shares.values[row]),
                "to_answered": {
                    "example": int(known.examples[taken[told]]),
                    "score": float(moved[told][taken[told]]),
                },
                "to_right": {
                    "example": int(known.examples[taken[right]]),
                    "score": float(moved[right][taken[right]]),
                },
            }
        )
    return found


# --- which labels look wrong ---------------------------------------------------------------------------


def _labels(subject: Subject, layer: LastLayer, known: Rows) -> dict[str, Any]:
    """What two searches doubt: by what the model made of the inputs, and by features that no label has touched."""
    layers = {"learnt": layer}
    layers["untrained"] = fitted(untrained(subject, known.examples), known.labels, len(subject.classes))
    searches = {name: doubt(one.left_out, known.labels) for name, one in layers.items()}
    taken = better(searches["learnt"], searches["untrained"])
    doubted, scores = searches[taken], layers[taken].left_out
    clean = (doubted.wrong <= LIKELY).nonzero()[:, 0]
    right = known.logits.argmax(1) == known.labels
    return {
        "examples": len(known.labels),
        "features": taken,
        "share_wrong": doubted.share,
        "right_in": float(right.double().mean()),
        "searches": {
            name: {
                "share_wrong": searches[name].share,
                "suspects": len(searches[name].suspects),
                "temperature": searches[name].temperature,
                "right_left_out": float((one.left_out.argmax(1) == known.labels).double().mean()),
            }
            for name, one in layers.items()
        },
        "given_back": int(right[doubted.suspects].sum()),
        "planted": planted(layers[taken], known.labels, clean, subject.seed),
        "most_doubted": _doubted(subject, known, scores, doubted.wrong, doubted.order[:LISTED]),
        "suspects": _doubted(subject, known, scores, doubted.wrong, doubted.suspects),
    }


def _doubted(subject: Subject, known: Rows, scores: Tensor, wrong: Tensor, rows: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "example": int(known.examples[row]),
            "label": subject.classes[int(known.labels[row])],
            "suggested": subject.classes[int(scores[row].argmax())],
            "score": float(wrong[row]),
        }
        for row in rows
    ]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
