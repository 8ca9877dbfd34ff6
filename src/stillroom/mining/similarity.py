"""What the model thinks is alike: the classes to which it gives what it does not give to its first choice."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.randomness import integers

TEMPERATURE = 2.0
DRAWS = 50  # bootstrap samples of the examples
PAIRS = 10
STABLE = 0.8  # of a measure that is 1 for always the same
Values = NDArray[np.float64]


def similarity(subject: Subject, budget: Budget, *, temperature: float = TEMPERATURE) -> Panel:
    """Return which classes are alike to the model, in which groups, and how sure that is.

    Of what an answer leaves to classes other than its first, class j gets p_j / (1 - p_i) where i is first: its mean
    over the examples answered i is the likeness of i to j, which is averaged with that of j to i. This is the dark
    knowledge of Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531), at ``temperature``. Groups are those
    of average linkage, cut where the next merger is the dearest step. Each number is found again on ``DRAWS`` bootstrap
    samples. Control: the same architecture with random weights; of a model that shows answers only, its own answers
    with what is left shared out at random. ``validation`` says how firm the pairs and groups of the validation split
    are by themselves: a choice made from that can be judged on the test split.
    """
    logits = subject.logits("test")
    count = logits.shape[1]
    if count < 3:
        return Panel("similarity", notes=["with two classes there is nothing beside the first choice and the other"])
    own = _likeness(logits, temperature)
    known: NDArray[np.bool_] = np.bincount(logits.argmax(1).numpy(), minlength=count) > 0
    if known.sum() < 3:
        return Panel("similarity", notes=[f"it answers only {int(known.sum())} of its {count} classes"])
    names = [name for name, there in zip(subject.classes, known.tolist(), strict=True) if there]
    own = own[np.ix_(known, known)]
    again = [_resampled(logits, known, temperature, draw, subject.seed) for draw in range(DRAWS)]
    pairs, groups = _pairs(own), _groups(own)
    control = _likeness(_control(subject, logits), temperature)[np.ix_(known, known)]
    numbers: dict[str, Any] = {
        "temperature": temperature,
        "classes": names,
        "likeness": own.round(5).tolist(),
        "pairs": [{"classes": [names[i], names[j]], "likeness": float(own[i, j])} for i, j in pairs],
        "pairs_again": _overlap(pairs, [_pairs(one) for one in again]),
        "groups": [[names[place] for place in group] for group in groups],
        "groups_again": _same_groups(groups, [_groups(one) for one in again], len(names)),
        "even": 1 / (len(names) - 1),
        "control": {"strongest": _strongest(control), "correlation": _correlation(own, control)},
        "validation": _validation(subject, temperature),
        "left_out": [name for name in subject.classes if name not in names],
    }
    notes = [f"never answered, so not compared: {', '.join(numbers['left_out'])}"] if numbers["left_out"] else []
    order = _order(own)
    findings = [_alike(numbers, own, names, order), _grouped(numbers, own, names)]
    files = {"classes.json": json.dumps(numbers, indent=1).encode()}
    return Panel("similarity", findings, numbers, files, notes)


def _validation(subject: Subject, temperature: float) -> dict[str, Any] | None:
    """How firm likenesses are on validation examples alone; None where fewer than three classes are answered there."""
    logits = subject.logits("validation") if len(subject.examples("validation")) else torch.zeros(0, 3)
    known: NDArray[np.bool_] = np.bincount(logits.argmax(1).numpy(), minlength=logits.shape[1]) > 0
    if known.sum() < 3:
        return None
    own = _likeness(logits, temperature)[np.ix_(known, known)]
    again = [_resampled(logits, known, temperature, draw, subject.seed) for draw in range(DRAWS)]
    return {
        "examples": len(logits),
        "pairs_again": _overlap(_pairs(own), [_pairs(one) for one in again]),
        "groups_again": _same_groups(_groups(own), [_groups(one) for one in again], len(own)),
    }


def _likeness(logits: Tensor, temperature: float) -> Values:
    """The symmetric matrix of likeness (classes, classes), 0 on its diagonal; NaN for a class that is never first."""
    shares = torch.softmax(logits.double() / temperature, 1)
    first = shares.argmax(1)
    rest = shares.scatter(1, first[:, None], 0.0)
    rest = rest / rest.sum(1, keepdim=True).clamp(min=1e-300)
    total = torch.zeros(shares.shape[1], shares.shape[1], dtype=torch.float64).index_add_(0, first, rest)
    mean = total / torch.bincount(first, minlength=shares.shape[1])[:, None]
    return np.asarray((mean + mean.T) / 2)


def _resampled(logits: Tensor, known: NDArray[np.bool_], temperature: float, draw: int, seed: int) -> Values:
    rows = torch.from_numpy(integers(len(logits), seed, "similarity", draw, np.arange(len(logits))))
    found = _likeness(logits[rows], temperature)[np.ix_(known, known)]
    return np.nan_to_num(found)


def _control(subject: Subject, logits: Tensor) -> Tensor:
    """Answers that know nothing of classes being alike."""
    if subject.module is not None:
        twin = subject.randomised(subject.seed)
        return twin.logits("test")
    first = logits.argmax(1, keepdim=True)
    order = torch.from_numpy(
        np.argsort(integers(1 << 30, subject.seed, "shared out", np.arange(logits.numel())).reshape(logits.shape), 1)
    )
    rest = logits.scatter(1, first, -torch.inf).gather(1, order)
    kept = rest.masked_fill(rest == -torch.inf, float(logits.min()))
    return kept.scatter(1, first, logits.gather(1, first))


def _pairs(likeness: Values) -> list[tuple[int, int]]:
    rows, columns = np.triu_indices(len(likeness), 1)
    order = np.argsort(-likeness[rows, columns], kind="stable")[: min(PAIRS, len(rows) // 2 or 1)]
    return [(int(rows[place]), int(columns[place])) for place in order]


def _linked(likeness: Values) -> Values:
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    apart = likeness.max() - likeness
    np.fill_diagonal(apart, 0.0)
    return np.asarray(linkage(squareform(apart, checks=False), "average"))


def _order(likeness: Values) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    apart = likeness.max() - likeness
    np.fill_diagonal(apart, 0.0)
    return [
        int(place) for place in leaves_list(optimal_leaf_ordering(_linked(likeness), squareform(apart, checks=False)))
    ]


def _groups(likeness: Values) -> list[list[int]]:
    """The groups before the dearest step of average linkage; at least two."""
    from scipy.cluster.hierarchy import fcluster

    linked = _linked(likeness)
    steps = np.diff(linked[:, 2])
    count = len(likeness) - 1 - int(steps.argmax()) if len(steps) else 2
    member = fcluster(linked, count, "maxclust")
    return [np.flatnonzero(member == number).tolist() for number in np.unique(member)]


def _overlap(pairs: list[tuple[int, int]], again: list[list[tuple[int, int]]]) -> float:
    """Mean Jaccard index of the strongest pairs with those of each bootstrap sample."""
    mine = set(pairs)
    return float(np.mean([len(mine & set(one)) / len(mine | set(one)) for one in again]))


def _same_groups(groups: list[list[int]], again: list[list[list[int]]], count: int) -> float:
    """Mean adjusted Rand index of the groups with those of each bootstrap sample."""
    from sklearn.metrics import adjusted_rand_score

    def member(parts: list[list[int]]) -> list[int]:
        found = [0] * count
        for number, part in enumerate(parts):
            for place in part:
                found[place] = number
        return found

    return float(np.mean([adjusted_rand_score(member(groups), member(one)) for one in again]))


def _strongest(likeness: Values) -> float | None:
    known = likeness[~np.isnan(likeness)]
    return float(known.max()) if known.size else None


def _correlation(own: Values, control: Values) -> float | None:
    """Pearson's correlation of the two models' likenesses; None where the control never answers enough classes."""
    rows, columns = np.triu_indices(len(own), 1)
    mine, theirs = own[rows, columns], control[rows, columns]
    there = ~np.isnan(theirs)
    if there.sum() < 3 or theirs[there].std() < 1e-12 or mine[there].std() < 1e-12:
        return None
    return float(np.corrcoef(mine[there], theirs[there])[0, 1])


def _alike(numbers: dict[str, Any], own: Values, names: list[str], order: list[int]) -> Finding:
    most = numbers["pairs"][0]
    one, other = most["classes"]
    times = most["likeness"] / numbers["even"]
    sentence = f"Most alike to it are '{one}' and '{other}': where it answers one, the other gets "
    sentence += f"{100 * most['likeness']:.0f} % of what is left, {times:.1f} times an even share."
    again = numbers["pairs_again"]
    if again >= STABLE:
        sentence += " The strongest pairs are the same on other draws of the examples: a student is taught this beside "
        sentence += "the right class."
    else:
        sentence += f" But on other draws of the examples only {100 * again:.0f} % of the strongest pairs are the same."
    figure = {
        "kind": "matrix",
        "labels": [names[place] for place in order],
        "values": [[None if i == j else round(100 * float(own[i, j]), 1) for j in order] for i in order],
        "note": "Per cent of what an answer leaves to other classes; classes that are alike stand side by side.",
    }
    control = numbers["control"]
    said = "-" if control["correlation"] is None else f"{control['correlation']:.2f}"
    words = f"Random weights instead: their pairs correlate with the model's by {said}; an even share is "
    words += f"{100 * numbers['even']:.0f} %."
    return Finding("What it thinks is alike", sentence, most["likeness"], words, figure)


def _grouped(numbers: dict[str, Any], own: Values, names: list[str]) -> Finding:
    groups, again = numbers["groups"], numbers["groups_again"]
    if again >= STABLE:
        shown = "; ".join(", ".join(group) for group in groups)
        sentence = f"It sees {len(groups)} families of classes, the same on other draws of the examples: {shown}."
    else:
        sentence = "It sees no firm families of classes: on other draws of the examples the groups come out otherwise "
        sentence += f"(agreement {again:.2f} of 1)."
    control = (
        f"Agreement of the groups over {DRAWS} bootstrap samples (adjusted Rand index): {again:.2f}; chance gives 0."
    )
    merges = [[int(one), int(other), _alike_at(own, apart)] for one, other, apart, _ in _linked(own)]
    figure = {"kind": "dendrogram", "labels": names, "merges": merges, "text": _tree(own, names)}
    if again >= STABLE:
        figure["groups"] = [[names.index(name) for name in group] for group in groups]
    figure["x_label"] = "per cent of what an answer leaves to other classes"
    return Finding("Families of classes", sentence, again, control, figure)


def _alike_at(likeness: Values, apart: float) -> float:
    """Per cent of likeness at which classes that are this far apart are merged."""
    return round(100 * (float(likeness.max()) - float(apart)), 1)


def _tree(likeness: Values, names: list[str]) -> str:
    """The dendrogram as text: what is merged first stands deepest."""
    linked, count = _linked(likeness), len(names)
    lines: list[str] = []

    def write(node: int, before: str, last: bool, root: bool) -> None:
        branch = "" if root else ("`-- " if last else "|-- ")
        if node < count:
            lines.append(f"{before}{branch}{names[node]}")
            return
        row = linked[node - count]
        lines.append(f"{before}{branch}+ {_alike_at(likeness, row[2]):.1f} %")
        inner = before + ("" if root else "    " if last else "|   ")
        write(int(row[0]), inner, False, False)
        write(int(row[1]), inner, True, False)

    write(2 * count - 2, "", True, True)
    return "\n".join(lines)
