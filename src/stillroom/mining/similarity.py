"""What the model thinks is alike: the classes to which it gives what it does not give to its first choice."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.errors import DataError, say
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import CONTROL, Subject
from stillroom.mining.wording import percent
from stillroom.randomness import integers
from stillroom.statistics import one_more, over_seeds

TEMPERATURE = 2.0
DRAWS = 50  # bootstrap samples of the examples
PAIRS = 10
MOST, DRAWN = 100, 40  # classes that are compared, that the matrix shows: classes squared are worked on
STABLE = 0.8  # of a measure that is 1 for always the same
NETWORKS, SHARED_OUT = 5, 20  # with random weights; times that what is left is shared out at random
FOLLOWS = 0.5  # correlation with random weights, below which their mean must lie with its interval
Values = NDArray[np.float64]


def similarity(subject: Subject, budget: Budget, *, temperature: float = TEMPERATURE) -> Panel:
    """Return which classes are alike to the model, in which groups, and how sure that is.

    Of what an answer leaves to classes other than its first, class j gets p_j / (1 - p_i) where i is first: its mean
    over the examples answered i is the likeness of i to j, which is averaged with that of j to i. This is the dark
    knowledge of Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531), at ``temperature``. Groups are those
    of average linkage, cut where the next merger is the dearest step. Each number is found again on ``DRAWS`` bootstrap
    samples. Controls: its own answers with what is left shared out at random (chance); and, of a model that can be
    opened, the same architecture with random weights, ``NETWORKS`` times while there is time. Such networks lean to one
    or two classes whatever they see, so model and controls are compared without each class's mean logit. ``verdict`` is
    "beyond" only if the strongest pair is above all controls and where one more would lie, and the likenesses do not
    follow those of random weights. ``validation`` says how firm the pairs and groups of the validation split are by
    themselves: a choice made from that can be judged on the test split.

    Raises:
        DataError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise DataError(say("The temperature of likenesses does not fit", temperature, "above 0, such as 2"))
    logits = subject.logits("test")
    if logits.shape[1] < 3:
        return Panel("similarity", notes=["with two classes there is nothing beside the first choice and the other"])
    classes, compared = subject.classes, _most_answered(logits)
    logits, classes = _among(logits, compared), [classes[place] for place in compared.tolist()]
    count = len(classes)
    own = _likeness(logits, temperature)
    known: NDArray[np.bool_] = np.bincount(logits.argmax(1).numpy(), minlength=count) > 0
    if known.sum() < 3:
        return Panel("similarity", notes=[f"it answers only {int(known.sum())} of its {count} classes"])
    names = [name for name, there in zip(classes, known.tolist(), strict=True) if there]
    own = own[np.ix_(known, known)]
    again = [_resampled(logits, known, temperature, draw, subject.seed) for draw in range(DRAWS)]
    pairs, groups = _pairs(own), _groups(own)
    notes, random = list[str](), None

    def alike(answered: Tensor) -> Values:
        return _likeness(answered, temperature)[np.ix_(known, known)]

    level = _level(logits)
    if subject.module is not None:
        others = (_level(_among(one, compared)) for one in _random_weights(subject, budget, notes))
        random = _compared(alike(level), [alike(one) for one in others])
    chance = _compared(alike(level), [alike(one) for one in _shared_out(subject, level, budget)])
    levelled = float(alike(level)[pairs[0]])
    numbers: dict[str, Any] = {
        "temperature": temperature,
        "classes": names,
        "likeness": own.round(5).tolist(),
        "pairs": [{"classes": [names[i], names[j]], "likeness": float(own[i, j])} for i, j in pairs],
        "pairs_again": _overlap(pairs, [_pairs(one) for one in again]),
        "groups": [[names[place] for place in group] for group in groups],
        "groups_again": _same_groups(groups, [_groups(one) for one in again], len(names)),
        "even": 1 / (count - 1),
        "control": chance if random is None else random,
        "shared_out": chance,
        "levelled": None if math.isnan(levelled) else levelled,
        "verdict": _verdict(levelled, chance, random),
        "validation": _validation(subject, temperature, compared),
        "left_out": [name for name in classes if name not in names],
    }
    if count < len(subject.classes):
        notes.insert(0, f"the {count} classes answered most often were compared, of {len(subject.classes):,}")
    if numbers["left_out"]:
        notes.insert(0, f"never answered, so not compared: {', '.join(numbers['left_out'])}")
    findings = [_alike(numbers, own, names, subject.module is not None), _grouped(numbers, own, names)]
    files = {"classes.json": json.dumps(numbers, indent=1).encode()}
    return Panel("similarity", findings, numbers, files, notes)


def _most_answered(logits: Tensor) -> Tensor:
    """The classes that are compared, in their order: all, or where they are many those that are answered most."""
    count = logits.shape[1]
    often = torch.bincount(logits.argmax(1), minlength=count)
    return often.argsort(descending=True, stable=True)[: min(count, MOST)].sort().values


def _among(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits of some classes, of rows whose first choice is one of them."""
    if len(classes) == logits.shape[1]:
        return logits
    return logits[torch.isin(logits.argmax(1), classes)][:, classes]


def _validation(subject: Subject, temperature: float, compared: Tensor) -> dict[str, Any] | None:
    """How firm likenesses are on validation examples alone; None where fewer than three classes are answered there."""
    there = len(subject.examples("validation"))
    logits = _among(subject.logits("validation"), compared) if there else torch.zeros(0, len(compared))
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


def _level(logits: Tensor) -> Tensor:
    """Logits without what each class gets on average; nought where all examples get the same answer."""
    values = logits.double()
    if not len(values):
        return values
    values = values.clamp(min=float(values[values.isfinite()].min()))  # a probability of 0 has no mean logit
    apart = values - values.mean(0)
    return apart * (float(apart.abs().max()) > 1e-5 * float(values.abs().max()))  # less is rounding


def _resampled(logits: Tensor, known: NDArray[np.bool_], temperature: float, draw: int, seed: int) -> Values:
    rows = torch.from_numpy(integers(len(logits), seed, "similarity", draw, np.arange(len(logits))))
    found = _likeness(logits[rows], temperature)[np.ix_(known, known)]
    return np.nan_to_num(found)


def _shared_out(subject: Subject, logits: Tensor, budget: Budget) -> Iterator[Tensor]:
    """Its own answers with what each leaves to other classes dealt among them anew: they know nothing of likeness."""
    rows, count = logits.shape
    first = logits.argmax(1, keepdim=True)
    others = torch.arange(count).expand(rows, count)[torch.arange(count) != first].view(rows, count - 1)
    rest, began = logits.gather(1, others), time.perf_counter()
    for draw in range(SHARED_OUT):
        keys = integers(1 << 30, subject.seed, "shared out", draw, np.arange(rest.numel())).reshape(rest.shape)
        yield logits.scatter(1, others, rest.gather(1, torch.from_numpy(np.argsort(keys, 1))))
        if draw + 1 >= NETWORKS and budget.left < 2 * (time.perf_counter() - began) / (draw + 1):
            return


def _random_weights(subject: Subject, budget: Budget, notes: list[str]) -> list[Tensor]:
    """What networks with random weights answer; at least one of them, and as many as there is time for."""
    found: list[Tensor] = []
    while len(found) < NETWORKS:
        began = time.perf_counter()
        found.append(subject.randomised(subject.seed + len(found)).logits("test"))
        if budget.left < 2 * (time.perf_counter() - began):
            break
    if len(found) < NETWORKS:
        notes.append(
            f"to keep to the time, only {len(found)} of {NETWORKS} networks with random weights could be asked"
        )
    return found


def _compared(own: Values, controls: Iterable[Values]) -> dict[str, Any]:
    """Strongest pair and correlation of those that answer enough classes: mean, range; and what one more may reach."""
    each = list(controls)
    able = [one for one in each if np.count_nonzero(~np.isnan(_upper(one))) >= 3]
    found: dict[str, Any] = {"asked": len(each), "compared": len(able)}
    strongest = [float(np.nanmax(_upper(one))) for one in able]
    correlations = [value for one in able if (value := _correlation(own, one)) is not None]
    for name, values in (("strongest", strongest), ("correlation", correlations)):
        found[name] = float(np.mean(values)) if values else None
        found[f"{name}_range"] = [min(values), max(values)] if values else None
    ends = one_more([math.log(max(one, 1e-12)) for one in strongest])  # shares differ by factors
    found["strongest_reach"] = None if ends is None else math.exp(min(0.0, ends[1]))
    found["correlation_high"] = over_seeds(correlations).high if correlations else None
    return found


def _verdict(strongest: float, chance: dict[str, Any], random: dict[str, Any] | None) -> str:
    """Whether the likenesses are "beyond" the controls, or why not."""
    if math.isnan(strongest) or chance["compared"] < 2:
        return "lean"
    if not _above(strongest, chance):
        return "chance"
    if random is None:
        return "beyond"
    if random["compared"] < 2:
        return "unknown"
    if not _above(strongest, random):
        return "as strong"
    high = random["correlation_high"]
    apart = random["correlation"] is None or (high is not None and high < FOLLOWS)
    return "beyond" if apart else "follows"


def _above(strongest: float, control: dict[str, Any]) -> bool:
    return bool(strongest > max(control["strongest_range"][1], control["strongest_reach"]))


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


def _upper(likeness: Values) -> Values:
    return likeness[np.triu_indices(len(likeness), 1)]


def _correlation(own: Values, control: Values) -> float | None:
    """Pearson's correlation of the two models' likenesses; None for few pairs, or all equally alike."""
    mine, theirs = _upper(own), _upper(control)
    there = ~np.isnan(mine + theirs)
    if there.sum() < 3 or theirs[there].std() < 1e-12 or mine[there].std() < 1e-12:
        return None
    return float(np.corrcoef(mine[there], theirs[there])[0, 1])


def _alike(numbers: dict[str, Any], own: Values, names: list[str], opened: bool) -> Finding:
    most, order = numbers["pairs"][0], _order(own)
    if len(order) > DRAWN:  # those of the strongest pairs
        strongest = set(np.argsort(-own.max(1), kind="stable")[:DRAWN].tolist())
        order = [place for place in order if place in strongest]
    one, other = most["classes"]
    times = most["likeness"] / numbers["even"]
    sentence = f"The most similar classes are '{one}' and '{other}': where it answers one, the other gets "
    sentence += f"{percent(most['likeness'])} of the remaining probability, {times:.1f} times an even share. "
    sentence += _held_against(numbers, opened)
    again = numbers["pairs_again"]
    if again < STABLE:
        sentence += " But on" if numbers["verdict"] == "beyond" else " On"
        sentence += f" other draws of the examples only {100 * again:.0f} % of the strongest pairs are the same."
    elif numbers["verdict"] == "beyond":
        sentence += " The strongest pairs are the same on other draws of the examples: besides the right class a "
        sentence += "student is taught this."
    figure = {
        "kind": "matrix",
        "labels": [names[place] for place in order],
        "values": [[None if i == j else round(100 * float(own[i, j]), 1) for j in order] for i in order],
        "note": "Per cent of the probability left to the other classes; similar classes stand side by side."
        + (f" The {len(order)} classes of the strongest pairs, of {len(names)}." if len(order) < len(names) else ""),
    }
    words = f"An even share: {percent(numbers['even'])}. "
    if numbers["levelled"] is not None:
        words += "For the comparison each class's mean logit is subtracted: the pair above then gets "
        words += f"{percent(numbers['levelled'])}. "
    if numbers["shared_out"]["compared"]:
        words += f"The remaining probability shared out at random, {numbers['shared_out']['asked']} times: "
        words += f"{_strongest_of(numbers['shared_out'])}. "
    if not opened:
        words += "The model cannot be opened, so what its architecture alone would show is not known."
    elif numbers["control"]["compared"]:
        words += f"{_networks(numbers['control'])}: {_strongest_of(numbers['control'])}."
    else:
        words += f"{_networks(numbers['control'])}: none answers three of these classes, so none can be compared."
    return Finding("Which classes it finds similar", sentence, most["likeness"], words, figure)


def _held_against(numbers: dict[str, Any], opened: bool) -> str:
    """Whether the likenesses are more than what the controls show, in words."""
    verdict, chance, random = numbers["verdict"], numbers["shared_out"], numbers["control"]
    if verdict == "lean":
        words = "But once each class's mean logit is subtracted it answers too few classes to "
        return f"{words}compare: these similarities may be no more than a bias towards some classes."
    if verdict == "chance":
        words = "But shared out at random, the remaining probability makes as strong a pair "
        return f"{words}({_reach(chance)}): these similarities are no more than chance."
    if verdict == "beyond" and not opened:
        words = "That is more than chance: shared out at random, the remaining probability makes no pair stronger "
        return f"{words}than {percent(chance['strongest_range'][1])}."
    if verdict == "unknown":
        able, asked = random["compared"], random["asked"]
        words = "It is more than chance, but whether it was learnt is not known: "
        if asked == 1:
            return f"{words}there was time for 1 network with random weights, and two are needed to compare with."
        words += f"of {asked} networks with random weights {f'only {able} answers' if able else 'none answers'} at "
        return f"{words}least three of these classes, and two are needed to compare with."
    if verdict == "as strong":
        words = f"But networks with random weights show as strong a pair ({_reach(random)}): these similarities are no "
        return f"{words}more than what the architecture shows without any training."
    follow = _correlated(random)
    if verdict == "follows":
        high = random["correlation_high"]
        more = f", and more such networks might average {high:.2f}" if high is not None and high < 1 else ""
        words = (
            f"But networks with random weights may find the same classes similar ({follow}{more}, not clearly below "
        )
        words += (
            f"{FOLLOWS}): it is not shown that these similarities are more than what the architecture gives without "
        )
        return f"{words}any training."
    pair = _shares(random["strongest_range"])
    words = f"That goes beyond what networks with random weights show: their strongest pair gets {pair}, and their "
    return f"{words}similarities do not follow the model's ({follow}, clearly below {FOLLOWS})."


def _networks(random: dict[str, Any]) -> str:
    many = f"Networks with random weights, {random['compared']} of {random['asked']} compared"
    return f"{many}, each asked about at most {CONTROL:,} examples"


def _strongest_of(control: dict[str, Any]) -> str:
    """The strongest pairs and the correlations of a control, mean and range."""
    words = f"strongest pair {percent(control['strongest'])} on average, {_shares(control['strongest_range'])}"
    return f"{words}; {_correlated(control, ' with the model')}"


def _correlated(control: dict[str, Any], other: str = "") -> str:
    if control["correlation"] is None:
        return f"no correlation{other} that could be measured"
    low, high = control["correlation_range"]
    return f"correlation{other} {control['correlation']:.2f} on average, {low:.2f} to {high:.2f}"


def _reach(control: dict[str, Any]) -> str:
    return f"{_shares(control['strongest_range'])}, and one more may reach {percent(control['strongest_reach'])}"


def _shares(ends: Sequence[float]) -> str:
    low, high = (percent(end) for end in ends)
    return high if low == high else f"{low.removesuffix(' %')} to {high}"


def _grouped(numbers: dict[str, Any], own: Values, names: list[str]) -> Finding:
    groups, again = numbers["groups"], numbers["groups_again"]
    firm = again >= STABLE and numbers["verdict"] == "beyond"
    together = [group for group in groups if len(group) > 1]
    if firm and 2 * len(groups) > len(names):  # most of them are one class
        shown = "; ".join(", ".join(group) for group in together)
        sentence = f"Most classes stand alone: of {len(names)} only these are grouped, the same on other draws of the "
        sentence += f"examples: {shown}."
    elif firm:
        shown = "; ".join(", ".join(group) for group in groups)
        sentence = f"It sees {len(groups)} families of classes, the same on other draws of the examples: {shown}."
    elif again < STABLE:
        sentence = "It sees no firm families of classes: on other draws of the examples the groups change "
        sentence += f"(agreement {again:.2f} of 1)."
    else:
        sentence = "No families of classes are named: they come out the same on other draws of the examples, but it is "
        sentence += "not shown that the similarities they rest on were learnt."
    control = (
        f"Agreement of the groups over {DRAWS} bootstrap samples (adjusted Rand index): {again:.2f}; chance gives 0."
    )
    merges = [[int(one), int(other), _alike_at(own, apart)] for one, other, apart, _ in _linked(own)]
    figure = {"kind": "dendrogram", "labels": names, "merges": merges, "text": _tree(own, names)}
    if firm:
        figure["groups"] = [[names.index(name) for name in group] for group in groups]
    figure["x_label"] = "per cent of the probability left to the other classes"
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
