"""Where knowledge is stored: what can be read from each layer, and how many directions it uses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Finding
from stillroom.errors import StillroomError
from stillroom.mining.cka import matrix
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.reading import read_once, vectors
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.randomness import permutation
from stillroom.statistics import one_more

ROWS = 1500  # of a split that layers are read on
KEPT = 0.95  # of the variance, for the suggested width
SHARE, PILOT, LEAST = 0.8, 64, 60  # of the time, for reading; rows that are timed; no fewer of a split are read
NEAR = 0.02  # of accuracy: as good as the best
NETWORKS, CHANGED = 5, 0.1  # with random weights, whose directions are counted; part of them that is a change
STRENGTHS = (1e-3, 1e-1, 1e1)  # of the probes' penalty, tried on validation rows
TRAINING = {
    "narrowed": "training has narrowed it",
    "widened": "training has widened it, so what was learnt needs more directions than the data alone",
    "neither": "training has not narrowed it, so the number may come from the data and the architecture alone",
    None: "one such network is too few to tell whether training has narrowed it",
}


def layers(subject: Subject, budget: Budget) -> Panel:
    """Return what a linear probe reads from each layer, its effective rank, and what that means for a student.

    Each layer gives one vector an example (maps averaged over places, sequences over steps). The probe is a ridge
    classifier fitted on training rows, its penalty chosen on validation rows, measured on test rows (Alain and
    Bengio 2016, https://arxiv.org/abs/1610.01644). The effective rank is the exponential of the entropy of the shares
    of variance (Roy and Vetterli 2007, https://ieeexplore.ieee.org/document/7098875). Suggested width: the directions
    that hold 95 % of the variance of what enters the last layer. Controls: the same layers with random weights; and the
    directions of ``NETWORKS`` such networks while there is time, since few directions may come from the data.
    """
    if subject.module is None:
        return Panel("layers", notes=["only the answers of this model are known, so no layer can be read"])
    notes: list[str] = []
    rows = {split: _some(subject, split) for split in ("train", "validation", "test")}
    labels = {split: subject.labels(part) for split, part in rows.items()}
    if any(not bool((one != UNLABELLED).any()) for one in labels.values()):
        return Panel("layers", notes=["a split has no labels, so no probe can be fitted, chosen or measured"])
    taps = read_once(subject)
    if not taps:
        return Panel("layers", notes=["no layer with weights runs once in a pass, so none can be read"])
    rows = _afforded(subject, taps, rows, budget, notes)
    labels = {split: labels[split][: len(part)] for split, part in rows.items()}
    entering = ["features"] if _has_features(subject, rows["train"][:2]) else []
    own, inside = _read(subject, [*taps, *entering], rows)
    tap = entering[0] if entering else taps[max(0, len(taps) - 2)]
    last = _spectrum(inside.pop(tap) if entering else inside[tap])
    began = time.perf_counter()
    twin, theirs = _read(subject.randomised(subject.seed), [*taps, *entering], rows)
    took = time.perf_counter() - began
    numbers: dict[str, Any] = {
        "layers": {
            path: {"probe": _probe(own[path], labels, len(subject.classes)), **_spectrum(inside[path])} for path in taps
        },
        "control": {path: _probe(twin[path], labels, len(subject.classes)) for path in taps},
        "entering_the_last": last,
        "suggested_width": last["directions"],
    }
    numbers["earliest"] = _earliest(numbers["layers"])
    numbers["pairs"] = _pairs({path: own[path]["test"] for path in taps})
    random = [_spectrum(theirs[tap]), *_random_weights(subject, tap, rows["train"], budget, took)]
    numbers["random_weights"] = _against(last["directions"], random)
    return Panel("layers", [_readable(numbers), _width(numbers)], numbers, notes=notes)


def _some(subject: Subject, split: str) -> Tensor:
    examples = subject.examples(split)
    order = torch.from_numpy(permutation(len(examples), subject.seed, "layers", split)[:ROWS].copy())
    return examples[order]


def _afforded(
    subject: Subject, taps: Sequence[str], rows: Mapping[str, Tensor], budget: Budget, notes: list[str]
) -> dict[str, Tensor]:
    """As many rows of each split as are read, by the model and by its control, in most of the time that is left."""
    some = rows["train"][:PILOT]
    vectors(subject, taps, some[:4])  # what is done once, such as finding memory, is not timed
    began = time.perf_counter()
    vectors(subject, taps, some)
    whole = sum(len(part) for part in rows.values())
    fit = budget.rows(whole, len(some), 2 * (time.perf_counter() - began), share=SHARE) / whole
    if fit < 1:
        notes.append(f"to keep to the time, {100 * fit:.0f} % of {whole:,} rows were looked at")
    return {split: part[: max(LEAST, math.ceil(fit * len(part)))] for split, part in rows.items()}


def _has_features(subject: Subject, few: Tensor) -> bool:
    """Whether one vector an example enters the layer that makes the logits."""
    try:
        return subject.rows(["features"], few)["features"].dim() == 2
    except StillroomError:
        return False


def _read(
    subject: Subject, taps: Sequence[str], rows: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """What each tap shows of each split, all taps by one pass over it; and of the training rows by themselves."""
    shown = {split: vectors(subject, taps, part) for split, part in rows.items()}
    own = {tap: {split: values[tap].double() for split, values in shown.items()} for tap in taps}
    return own, {tap: values["train"] for tap, values in own.items()}


def _spectrum(values: Tensor) -> dict[str, Any]:
    """Width, effective rank, and how many directions hold 95 % of the variance."""
    shares = _shares(values)
    return {
        "width": values.shape[1],
        "effective_rank": float(torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum())),
        "directions": int((shares.cumsum(0) < KEPT).sum()) + 1,
    }


def _random_weights(
    subject: Subject, tap: str, examples: Tensor, budget: Budget, seconds: float
) -> list[dict[str, Any]]:
    """What enters the last layer of more networks with random weights, while there is time; one takes ``seconds``."""
    found: list[dict[str, Any]] = []
    while len(found) + 1 < NETWORKS and budget.left > 2 * seconds:
        began = time.perf_counter()
        shown = vectors(subject.randomised(subject.seed + len(found) + 1), [tap], examples)[tap]
        found.append(_spectrum(shown.double()))
        seconds = time.perf_counter() - began
    return found


def _against(directions: int, random: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The directions that networks with random weights need, and whether training has ``changed`` that.

    Fewer or more than all of them, than one more would have, and than their mean by a tenth; None for one network.
    """
    counts = [int(one["directions"]) for one in random]
    mean, ends, changed = sum(counts) / len(counts), one_more(counts), None
    if ends is not None:
        changed = "neither"
        if directions < min(*counts, ends[0], (1 - CHANGED) * mean):
            changed = "narrowed"
        if directions > max(*counts, ends[1], (1 + CHANGED) * mean):
            changed = "widened"
    rank = sum(float(one["effective_rank"]) for one in random) / len(random)
    return {"directions": counts, "mean": mean, "effective_rank": rank, "changed": changed}


def _shares(values: Tensor) -> Tensor:
    """Shares of variance of the principal directions, largest first; one of 1 where nothing varies."""
    squares = torch.linalg.svdvals(values - values.mean(0)).square()
    return squares / squares.sum() if float(squares.sum()) > 0 else torch.ones(1, dtype=torch.float64)


def _probe(seen: Mapping[str, Tensor], labels: Mapping[str, Tensor], classes: int) -> float:
    """Test accuracy of a ridge classifier on standardised rows."""
    known = {split: labels[split] != UNLABELLED for split in seen}
    mean, deviation = seen["train"].mean(0), seen["train"].std(0).clamp(min=1e-6)
    ready = {
        split: torch.cat([(part - mean) / deviation, torch.ones(len(part), 1).double()], 1)
        for split, part in seen.items()
    }
    rows, told = ready["train"][known["train"]], labels["train"][known["train"]]
    aims = torch.nn.functional.one_hot(told, classes).double() - 1 / classes
    gram, cross = rows.T @ rows / len(rows), rows.T @ aims / len(rows)
    best, weights = -1.0, torch.zeros(rows.shape[1], classes).double()
    for strength in STRENGTHS:
        tried = torch.linalg.solve(gram + strength * torch.eye(len(gram)).double(), cross)
        right = _right(ready["validation"] @ tried, labels["validation"], known["validation"])
        if right > best:
            best, weights = right, tried
    return _right(ready["test"] @ weights, labels["test"], known["test"])


def _right(scores: Tensor, labels: Tensor, known: Tensor) -> float:
    return float((scores[known].argmax(1) == labels[known]).double().mean())


def _earliest(own: Mapping[str, Mapping[str, Any]]) -> str:
    """The first layer from which a probe reads as much as from the best, within two points."""
    best = max(entry["probe"] for entry in own.values())
    return next(path for path, entry in own.items() if entry["probe"] >= best - NEAR)


def _pairs(shown: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Three layers, apart from each other, that stand for the whole: places for a student to be compared at."""
    paths = list(shown)
    picked = list(dict.fromkeys(paths[round(share * (len(paths) - 1))] for share in (0.25, 0.6, 0.9)))
    some = {path: values[:300] for path, values in shown.items()}
    table = matrix({path: some[path] for path in picked}, {path: some[path] for path in picked})
    return [
        {"layer": path, "alike_to_next": None if place + 1 == len(picked) else _plain(table[place][place + 1])}
        for place, path in enumerate(picked)
    ]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _readable(numbers: dict[str, Any]) -> Finding:
    own, control, earliest = numbers["layers"], numbers["control"], numbers["earliest"]
    first, last = next(iter(own)), list(own)[-1]
    sentence = f"A linear classifier on the first layer ('{first}') is already right on {percent(own[first]['probe'])} "
    sentence += "of the test examples"
    sentence += f", on the last ('{last}') on {percent(own[last]['probe'])}." if last != first else "."
    if earliest != last:
        sentence += f" Layers after '{earliest}' add nothing: they could be smaller."
    gain = own[earliest]["probe"] - control[earliest]
    layer = f"'{earliest}'" if earliest == last else "That layer"
    sentence += f" {layer} with random weights reaches {percent(control[earliest])}"
    if gain < NEAR:
        sentence += ", so training adds next to nothing there."
    else:
        sentence += f", so training adds {100 * gain:.1f} points there."
    paths = list(own)
    figure = {
        "kind": "spread",
        "unit": "%",
        "x_label": "probe's accuracy on test examples",
        "labels": paths,
        "series": [
            {"name": "the model", "values": [100 * own[path]["probe"] for path in paths]},
            {"name": "random weights", "values": [100 * control[path] for path in paths]},
        ],
        "note": "From the first layer (above) to the answers (below).",
    }
    best = max(control, key=lambda path: control[path])
    words = f"The same layers with random weights: {percent(control[best])} at best ('{best}')."
    return Finding("From which layers the classes can be read", sentence, own[earliest]["probe"], words, figure)


def _width(numbers: dict[str, Any]) -> Finding:
    own, entry, random = numbers["layers"], numbers["entering_the_last"], numbers["random_weights"]
    few = "1 direction holds" if entry["directions"] == 1 else f"{entry['directions']} directions hold"
    sentence = f"Of the {entry['width']} features that enter the last layer {few} 95 % of the variance: "
    if entry["directions"] < 0.5 * entry["width"]:
        sentence += f"a student with features of {max(2, entry['directions'])} numbers is worth a try."
    else:
        sentence += "its width is hardly redundant."
    between = f"{min(random['directions'])} to {max(random['directions'])}"
    if min(random["directions"]) == max(random["directions"]):
        between = str(random["directions"][0])
    sentence += f" With random weights it would be {between}: {TRAINING[random['changed']]}."
    figure = {
        "kind": "table",
        "columns": [
            {"name": "layer"},
            {"name": "width", "digits": 0, "best": "none"},
            {"name": "effective rank", "digits": 1, "best": "none"},
            {"name": "directions of 95 %", "digits": 0, "best": "none"},
        ],
        "rows": [
            [path, one["width"], one["effective_rank"], one["directions"]]
            for path, one in [*own.items(), ("what enters the last", entry)]
        ]
        + [["the same with random weights", entry["width"], random["effective_rank"], random["mean"]]],
        "apart": [len(own)],
        "note": "Maps are averaged over places first, sequences over steps: widths are channels.",
    }
    asked = len(random["directions"])
    words = f"{asked} network{'s' * (asked > 1)} with random weights: {between} directions, {random['mean']:.1f} on "
    words += f"average, effective rank {random['effective_rank']:.1f}; its own is {entry['effective_rank']:.1f}."
    return Finding("How wide a student must be", sentence, float(entry["directions"]), words, figure)
