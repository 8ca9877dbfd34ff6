"""Which data taught it: typical and unusual examples, those that moved most, and labels that look wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Finding
from stillroom.data.splits import choose
from stillroom.errors import TapError
from stillroom.mining.examples.findings import mislabelled, moved, typical
from stillroom.mining.examples.left_out import LastLayer, fitted, one_hot
from stillroom.mining.examples.mislabels import LIKELY, Doubt, better, doubt, planted
from stillroom.mining.examples.pace import DRAWS, NEAREST, draws, fit
from stillroom.mining.examples.prototypes import chosen, nearest
from stillroom.mining.examples.untrained import untrained
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.randomness import permutation

ENOUGH = 40  # labelled rows, below which nothing is fitted
TYPICAL, UNUSUAL = 3, 2  # of a class
SIZES = (1, 2, 3, 5, NEAREST)  # prototypes a class that are tried
FOR_TYPICAL, FOR_MOVED = 0.4, 0.5  # of the time left, after which no more random rows are drawn
GONE = 0.05  # of the rows, that are taken away
SURE = 0.99  # that chance explains what is called chance
LISTED, DOUBTED, WRONG = 50, 0.05, 6  # examples that are listed, the least share of the most doubted, mistakes


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
        return self.only(self.labels != UNLABELLED)

    def only(self, at: Tensor) -> Rows:
        """Some of the rows."""
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
    train, validation, test = _in_time(subject, budget, notes)
    numbers: dict[str, Any] = {"examples": len(train.examples)}
    findings: list[Finding] = []
    files: dict[str, bytes] = {}
    numbers["prototypes"] = standing = _typical(subject, train, test, budget)
    findings.append(typical(standing, subject))
    files["prototypes.json"] = _json(standing["classes"])
    known, held = train.labelled, validation.labelled
    if min(len(known.labels), len(held.labels)) < ENOUGH or len(known.labels.unique()) < 2:
        notes.append(
            f"fewer than {ENOUGH} labelled training or validation rows: no effect of an example, no wrong labels"
        )
        return Panel("examples", findings, numbers, files, notes + _fewer(standing["draws"]))
    layer = fitted(known.features, known.labels, len(subject.classes))
    numbers["influence"] = influence = _influence(subject, layer, (known, held, test), budget)
    findings.append(moved(influence, subject))
    numbers["labels"] = _labels(subject, layer, known, held)
    numbers["suspects"] = numbers["labels"].pop("suspects")
    every = numbers["labels"].pop("every")
    findings.append(mislabelled(numbers["labels"], numbers["suspects"], subject))
    files |= {"suspects.json": _json(numbers["suspects"]), "doubt.json": _json(every)}
    notes += _fewer(min(standing["draws"], influence["without_random"]["draws"]))
    return Panel("examples", findings, numbers, files, notes)


def _in_time(subject: Subject, budget: Budget, notes: list[str]) -> list[Rows]:
    """Training, validation and test rows, each class in proportion; no more than the time allows, which is noted."""
    found = [_rows(subject, split) for split in ("train", "validation", "test")]
    longest = max(len(rows.examples) for rows in found)
    known = float((found[0].labels != UNLABELLED).double().mean())
    most = fit(subject, longest, found[0].features.shape[1], known, budget)
    if most >= longest:
        return found
    one = f"{most:,} rows of a split at most were looked at, not {longest:,}"
    notes.append(f"to keep to the time, {one}: what is said of training examples is said of these")
    return [_some(rows, most, subject.seed) for rows in found]


def _some(rows: Rows, most: int, seed: int) -> Rows:
    if len(rows.examples) <= most:
        return rows
    kept = choose(rows.labels.numpy(), torch.arange(len(rows.labels)).numpy(), most, seed, "examples in time")
    return rows.only(torch.from_numpy(kept))


def _fewer(drawn: int) -> list[str]:
    return [f"to keep to the time, {drawn} random draws were compared with, not {DRAWS}"] if drawn < DRAWS else []


def _rows(subject: Subject, split: str) -> Rows:
    """A split's features and answers; answers stand for features that are not shown."""
    examples, logits = subject.examples(split), subject.logits(split)
    try:
        features = logits if subject.module is None else subject.features(split)
    except TapError:
        features = logits
    return Rows(examples, features, subject.labels(examples), logits)


# --- what is typical -----------------------------------------------------------------------------------


def _typical(subject: Subject, train: Rows, test: Rows, budget: Budget) -> dict[str, Any]:
    answered, asked = train.logits.argmax(1), test.logits.argmax(1)
    groups = {int(one): (answered == one).nonzero()[:, 0] for one in answered.unique()}
    taken = {one: chosen(train.features[rows], max(SIZES), UNUSUAL, subject.seed) for one, rows in groups.items()}
    ours = _stands(train, test, asked, {one: groups[one][places] for one, (places, _) in taken.items()})
    others = []
    for draw in draws(budget, FOR_TYPICAL):
        drawn = {
            one: rows[torch.from_numpy(permutation(len(rows), subject.seed, "drawn", draw, one)[: max(SIZES)].copy())]
            for one, rows in groups.items()
        }
        others.append(_stands(train, test, asked, drawn))
    curve = [
        {"each": size, "prototypes": ours[at], "random": sum(by_chance) / len(by_chance), "random_best": max(by_chance)}
        for at, size in enumerate(SIZES)
        for by_chance in [[one[at] for one in others]]
    ]
    classes = [
        {
            "class": subject.classes[one],
            "typical": train.examples[groups[one][places[:TYPICAL]]].tolist(),
            "unusual": train.examples[groups[one][odd]].tolist(),
        }
        for one, (places, odd) in taken.items()
    ]
    return {"curve": curve, "classes": classes, "each": TYPICAL, "draws": len(others)}


def _stands(train: Rows, test: Rows, asked: Tensor, taken: Mapping[int, Tensor]) -> list[float]:
    """How often the nearest of the taken rows has the class that the model answers, for each of ``SIZES``."""
    rows = torch.cat(list(taken.values()))
    of = torch.cat([torch.full((len(part),), one) for one, part in taken.items()])
    turns = torch.cat([torch.arange(len(part)) for part in taken.values()])
    found = nearest(test.features, train.features[rows], of, turns, SIZES)
    return [float((one == asked).double().mean()) for one in found]


# --- what moved it -------------------------------------------------------------------------------------


def _influence(subject: Subject, layer: LastLayer, rows: tuple[Rows, Rows, Rows], budget: Budget) -> dict[str, Any]:
    known, held, test = rows
    measured = test.labelled if len(test.labelled.labels) else held
    asked = layer.asked(measured.features)

    def right(weights: Tensor) -> Tensor:
        return ((asked @ weights).argmax(1) == measured.labels).double()

    rises = layer.loss_without(held.features, one_hot(held.labels, len(subject.classes)))
    order = rises.argsort(descending=True, stable=True)
    count = max(1, round(GONE * len(order)))
    gone = [
        torch.from_numpy(permutation(len(order), subject.seed, "left out", draw)[:count].copy())
        for draw in range(DRAWS)
    ]
    others = torch.stack([right(layer.without(gone[draw])) for draw in draws(budget, FOR_MOVED)])
    less, fewer = right(layer.without(order[:count])), right(layer.without(order[-count:]))
    return {
        "share": GONE,
        "left_out": count,
        "measured_on": "test" if len(test.labelled.labels) else "validation",
        "all": float(right(layer.weights).mean()),
        "without_most_helpful": float(less.mean()),
        "without_most_harmful": float(fewer.mean()),
        "without_random": {
            "mean": float(others.mean()),
            "low": float(others.mean(1).min()),
            "high": float(others.mean(1).max()),
            "draws": len(others),
        },
        "chance": {
            "lowest": max(0.0, float(others.mean()) - _margin(others, less)),
            "highest": min(1.0, float(others.mean()) + _margin(others, fewer)),
            "sure": SURE,
        },
        "agreement": float((layer.answer(test.features).argmax(1) == test.logits.argmax(1)).double().mean()),
        "most_helpful": _ranked(subject, known, rises, order[:LISTED]),
        "most_harmful": _ranked(subject, known, rises, order.flip(0)[:LISTED]),
        "mistakes": _mistakes(subject, layer, known, measured),
    }


def _margin(others: Tensor, one: Tensor) -> float:
    """How far from the mean of random draws, right or not (draws, M), another (M) lies by chance in draws and examples.

    Student's t for one more draw, and for the difference of the same examples: neither alone is all there is to chance.
    """
    from scipy.special import stdtrit  # imported on use; scipy.stats would take over a second

    count, apart = len(others), others.mean(0) - one
    of_draws = float(others.mean(1).var()) * (1 + 1 / count)
    of_examples = float(apart.var()) / len(apart) if len(apart) > 1 else 0.0
    return float(stdtrit(count - 1, (1 + SURE) / 2)) * math.sqrt(of_draws + of_examples)


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


def _labels(subject: Subject, layer: LastLayer, known: Rows, held: Rows) -> dict[str, Any]:
    """What two searches doubt: by what the model made of the inputs, and by features that no label has touched."""
    layers = {"learnt": layer}
    layers["untrained"] = fitted(untrained(subject, known.examples), known.labels, len(subject.classes))
    searches = {name: doubt(one.left_out, known.labels) for name, one in layers.items()}
    told = {name: float((one.left_out.argmax(1) == known.labels).double().mean()) for name, one in layers.items()}
    knows = float((held.logits.argmax(1) == held.labels).double().mean())
    taken = better(searches["learnt"], searches["untrained"], behind=knows - told["untrained"])
    doubted, scores = searches[taken], layers[taken].left_out
    clean = (doubted.wrong <= LIKELY).nonzero()[:, 0]
    right = known.logits.argmax(1) == known.labels
    every = _doubted(subject, known, scores, doubted)
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
                "right_left_out": told[name],
            }
            for name in layers
        },
        "given_back": int(right[doubted.suspects].sum()),
        "planted": planted(layers[taken], known.labels, clean, subject.seed),
        "most_doubted": every[: max(LISTED, math.ceil(DOUBTED * len(every)))],
        "suspects": every[: len(doubted.suspects)],
        "every": every,
    }


def _doubted(subject: Subject, known: Rows, scores: Tensor, doubted: Doubt) -> list[dict[str, Any]]:
    """All rows, the most doubted first, so that suspects come first of all."""
    order = doubted.order
    columns = (known.examples, known.labels, scores.argmax(1), doubted.wrong)
    return [
        {"example": example, "label": subject.classes[label], "suggested": subject.classes[other], "score": score}
        for example, label, other, score in zip(*(one[order].tolist() for one in columns), strict=True)
    ]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
