"""Texts: which words an answer hangs on, and which push towards each class."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.errors import UserError
from stillroom.mining.attribution.faithful import COARSE, curves, faithfulness, randomisation
from stillroom.mining.attribution.findings import afford, drawn, percent, shows_the_model, spread_out, top_shares, trust
from stillroom.mining.attribution.gradients import embedded, error
from stillroom.mining.attribution.removal import Ask, occlusion
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.models import vocabulary
from stillroom.utf8 import pack_bytes, unpack, unpack_bytes

MOST, CONTROLLED, CHECKED = 600, 60, 80  # texts that are explained; by random weights too; whose words are taken away
STEPS = 16  # midpoints: with half as many a transformer misses its sum by more than half
THIN = 50  # texts, below which words at large are not known
TOGETHER = 16  # texts in a batch
LONGEST = 120  # words of a text that are told apart
LEAST = 3  # times a word must occur, or once in a hundred texts
CLASSES, LISTED, NAMED = 6, 8, 4  # panels in the figure; words in each; words of an example
SHORT = 400  # characters of an example

Pieces = list[vocabulary.Piece]


class Said(NamedTuple):
    """Texts (uint8, N x bytes) that are explained, their words, their answers, and what each word adds (N, words)."""

    inputs: Tensor
    words: list[Pieces]
    counts: Tensor
    classes: Tensor
    shares: Tensor
    values: Tensor
    error: float | None = None  # of integrated gradients; None where words were taken away instead


def texts(subject: Subject, budget: Budget) -> Panel:
    """Return which words a model of texts looks at; see stillroom.mining.attribution.panel.attribution."""
    notes: list[str] = []
    found = _explained(subject, budget, notes)
    opened = found.error is not None
    numbers: dict[str, Any] = {
        "kind": "text",
        "examples": len(found.words),
        "method": f"integrated gradients at the embedding, {STEPS} midpoints" if opened else "words taken away",
        "completeness": found.error,
        "least": _least(len(found.words)),
    }
    twin = None
    if opened:
        twin = _twin(subject, found, budget)
        numbers["random_weights"] = randomisation(found.values[: len(twin)], twin, found.counts[: len(twin)])
    numbers["words"] = _pushes(found, len(subject.classes), found.values)
    numbers["typical"] = _typical(found, found.values)
    numbers["faithfulness"] = _checked(subject, found, budget)
    findings = [_overall(subject, found, numbers, twin), _six(subject, found)]
    findings.append(trust(numbers["faithfulness"], "words", "Integrated gradients", numbers["completeness"]))
    if twin is not None:
        why = "some places and words weigh more than others, whatever the weights"
        findings.append(shows_the_model(numbers["random_weights"], "these effects", why))
    if len(found.words) < min(MOST, len(subject.examples("test"))):
        few = "; so few say little of words at large, give it more seconds" if len(found.words) < THIN else ""
        notes.append(f"{len(found.words)} texts were explained, to keep to the time{few}")
    named = {subject.classes[place]: rows for place, rows in numbers["words"].items()}
    numbers["words"] = named
    files = {"words.json": json.dumps(named, indent=1, ensure_ascii=False).encode()}
    return Panel("attribution", findings, numbers, files, notes)


# --- asking --------------------------------------------------------------------------------------------


def _explained(subject: Subject, budget: Budget, notes: list[str]) -> Said:
    inputs = subject.inputs(drawn(subject, MOST))
    words = _words(subject, inputs)
    there = torch.tensor([row for row, pieces in enumerate(words) if pieces], dtype=torch.int64)
    inputs, words = inputs[there], [words[row] for row in there.tolist()]
    counts = torch.tensor([len(pieces) for pieces in words])
    try:
        found = None if subject.module is None else _by_gradients(subject, budget, inputs, words)
        if found is None:
            why = (
                "only its answers are known" if subject.module is None else "its tokens have no embedding of their own"
            )
            notes.append(f"{why}: words were taken away, and no gradients taken")
    except (RuntimeError, UserError) as problem:
        notes.append(f"it gives no gradients at its embedding ({str(problem).splitlines()[0][:120]})")
        found = None
    if found is not None:
        return found
    ask = _ask(subject, inputs, words)

    def work(rows: int) -> Tensor:
        return occlusion(ask, counts[:rows], top_shares(subject, inputs[:rows])[0])[0]

    rows = afford(budget, len(words), 0.5, work)
    classes, shares = top_shares(subject, inputs[:rows])
    return Said(inputs[:rows], words[:rows], counts[:rows], classes, shares, work(rows))


def _by_gradients(subject: Subject, budget: Budget, inputs: Tensor, words: list[Pieces]) -> Said | None:
    """What is found by gradients; None where there are none."""
    if _gradients(subject, inputs[:1], words[:1], torch.zeros(1, dtype=torch.int64)) is None:
        return None

    def work(rows: int) -> Said:
        classes, shares = top_shares(subject, inputs[:rows])
        explained = _gradients(subject, inputs[:rows], words[:rows], classes)
        assert explained is not None, "one was explained before"
        counts = torch.tensor([len(pieces) for pieces in words[:rows]])
        return Said(inputs[:rows], words[:rows], counts, classes, shares, *explained)

    return work(afford(budget, len(words), 0.55, work))


def _words(subject: Subject, inputs: Tensor) -> list[Pieces]:
    """The words of each text; characters where Chinese or Japanese is written, or the model reads them."""
    raw = unpack(inputs)
    unit = getattr(subject.encode, "unit", None)
    unit = unit if unit in vocabulary.UNITS else vocabulary.unit_for(raw)
    return [vocabulary.pieces(text, unit, LONGEST) for text in raw]


def _gradients(subject: Subject, inputs: Tensor, words: list[Pieces], classes: Tensor) -> tuple[Tensor, float] | None:
    """What each word adds (N, words), from its tokens, and by how much the tokens miss what they should sum up to."""
    values = torch.zeros(len(words), max(len(pieces) for pieces in words), dtype=torch.float64)
    sums, ends = torch.zeros(len(words)), torch.zeros(len(words), 2)
    order = (inputs != 0).sum(1).argsort(stable=True)  # texts of a length stand together, which saves padding
    for part in order.split(TOGETHER):
        longest = int((inputs[part] != 0).sum(1).max())
        found = embedded(subject, inputs[part, : max(1, longest)], classes[part], steps=STEPS)
        if found is None:
            return None
        sums[part], ends[part] = found.values.sum(1), found.ends
        for place, row in enumerate(part.tolist()):
            real = found.mask[place]
            of = _belongs(found.spans[place][real].numpy(), words[row])
            known = of >= 0
            values[row].index_add_(0, torch.from_numpy(of[known]), found.values[place][real].double()[known])
    return values, error(sums[:, None], ends)


def _belongs(spans: np.ndarray, words: Pieces) -> np.ndarray:
    """The word each token lies in, by their bytes; -1 for none."""
    firsts = np.array([piece.first for piece in words])
    ends = np.array([piece.end for piece in words])
    place: np.ndarray = np.searchsorted(ends, spans[:, 0], side="right")
    inside = np.minimum(place, len(words) - 1)
    return np.where((place < len(words)) & (firsts[inside] < spans[:, 1]), inside, -1)


def _ask(subject: Subject, inputs: Tensor, words: list[Pieces]) -> Ask:
    """Texts of which some words are kept; what lies between words, and beyond the last that is told apart, stays."""
    raw = unpack_bytes(inputs)

    def without(row: int, keep: list[bool]) -> bytes:
        text, parts, behind = raw[row], [], 0
        for piece, kept in zip(words[row], keep, strict=False):
            if not kept:
                parts.append(text[behind : piece.first])
                behind = piece.end
        return b"".join([*parts, text[behind:]])

    def ask(rows: Tensor, keep: Tensor) -> Tensor:
        left = [without(row, kept) for row, kept in zip(rows.tolist(), keep.tolist(), strict=True)]
        return subject.answer(pack_bytes(left)).double().softmax(1)

    return ask


def _twin(subject: Subject, found: Said, budget: Budget) -> Tensor:
    """What random weights would have explained (fewer, words)."""
    other = subject.randomised(subject.seed)

    def work(rows: int) -> tuple[Tensor, float] | None:
        return _gradients(other, found.inputs[:rows], found.words[:rows], found.classes[:rows])

    done = work(afford(budget, min(CONTROLLED, len(found.words)), 0.3, work))
    assert done is not None, "the same architecture was explained before"
    values = torch.zeros(len(done[0]), found.values.shape[1], dtype=torch.float64)
    values[:, : done[0].shape[1]] = done[0]
    return values


def _checked(subject: Subject, found: Said, budget: Budget) -> dict[str, Any]:
    ask = _ask(subject, found.inputs, found.words)

    def work(rows: int) -> dict[str, Any]:
        told = curves(ask, found.values[:rows], found.counts[:rows], found.classes[:rows], subject.seed, COARSE)
        return faithfulness(told)

    return work(afford(budget, min(CHECKED, len(found.words)), 0.8, work))


# --- words over all texts ------------------------------------------------------------------------------


def _least(count: int) -> int:
    return max(LEAST, count // 100)


def _pushes(found: Said, classes: int, values: Tensor) -> dict[int, list[dict[str, Any]]]:
    """For each class the words that push towards it, on average over where they occur, the strongest first.

    With two classes what speaks against one speaks for the other; with more, texts answered with the class count.
    """
    held: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in range(len(values)):
        own = int(found.classes[row])
        for piece, value in zip(found.words[row], values[row].tolist(), strict=False):
            held[own, piece.text].append(value)
            if classes == 2:
                held[1 - own, piece.text].append(-value)
    least = _least(len(values))
    told: dict[int, list[dict[str, Any]]] = {place: [] for place in range(classes)}
    for (place, word), each in held.items():
        mean = sum(each) / len(each)
        if len(each) >= least and mean > 0:
            told[place].append({"word": word, "push": mean, "count": len(each)})
    return {place: sorted(rows, key=lambda row: (-row["push"], row["word"]))[:50] for place, rows in told.items()}


def _typical(found: Said, values: Tensor) -> float:
    """The mean size of what a word adds, wherever it occurs."""
    return float(values.abs().sum() / found.counts[: len(values)].sum())


# --- saying --------------------------------------------------------------------------------------------


def _overall(subject: Subject, found: Said, numbers: dict[str, Any], twin: Tensor | None) -> Finding:
    typical, title = numbers["typical"], "What it looks at"
    tops = {place: rows for place, rows in numbers["words"].items() if rows}
    control = f"what any word adds, on average over {numbers['examples']} texts: {typical:.2f}"
    if not tops:
        text = (
            f"No word occurs {numbers['least']} times in what was asked about: nothing can be said of words at large."
        )
        return Finding(title, text, None, control + ".")
    best = max(tops, key=lambda place: tops[place][0]["push"])
    top = tops[best][0]
    times = top["push"] / max(typical, 1e-12)
    sentence = (
        f"Most of all '{top['word']}' pushes, towards '{subject.classes[best]}': by {top['push']:.2f}, {times:.1f}"
    )
    sentence += " times what any word adds."
    for place in list(tops)[:CLASSES]:
        named = ", ".join(f"'{row['word']}'" for row in tops[place][:NAMED])
        sentence += f" Towards '{subject.classes[place]}': {named}."
    sentence += " A word among them that should not matter is a shortcut."
    if numbers["examples"] < THIN:
        sentence += f" But only {numbers['examples']} texts were explained: take it for a first look."
    if twin is not None:
        other = _pushes(found, len(subject.classes), twin)
        most = max((rows[0]["push"] for rows in other.values() if rows), default=0.0)
        ratio = most / max(_typical(found, twin), 1e-12)
        numbers["random_weights"]["strongest"] = ratio
        control += f"; with random weights the strongest word has {ratio:.1f} times what any has"
    shown = sorted(tops, key=lambda place: -len(tops[place]))[:CLASSES]
    figures = [
        {
            "kind": "bars",
            "title": f"Towards {subject.classes[place]}",
            "labels": [f"{row['word']} ({row['count']})" for row in tops[place][:LISTED]],
            "series": [{"name": "logits", "values": [row["push"] for row in tops[place][:LISTED]]}],
            "unit": "",
            "horizontal": True,
        }
        for place in sorted(shown)
    ]
    note = (
        f"{numbers['method'].capitalize()}: what a word adds to the logit, on average over where it occurs (how often)"
    )
    note += f"; words that occur at least {numbers['least']} times in {numbers['examples']} test texts."
    return Finding(title, sentence, times, control + ".", {"kind": "panels", "figures": figures, "note": note})


def _six(subject: Subject, found: Said) -> Finding:
    items = []
    raw = unpack(found.inputs)
    for row in spread_out(found.shares):
        place, values = int(found.classes[row]), found.values[row, : int(found.counts[row])]
        order = values.argsort(descending=True, stable=True).tolist()
        words = found.words[row]
        sides = []
        for name, chosen in (("for", order[:NAMED]), ("against", order[::-1][:NAMED])):
            sign = 1 if name == "for" else -1
            told = [f"{words[one].text} {values[one]:+.2f}" for one in chosen if sign * float(values[one]) > 0]
            sides.append([name, ", ".join(told) or "nothing"])
        text = raw[row] if len(raw[row]) <= SHORT else raw[row][:SHORT] + " ..."
        caption = f"{subject.classes[place]} {100 * float(found.shares[row]):.0f} %"
        items.append({"text": text, "caption": caption, "rows": sides})
    sentence = "The words that spoke for each answer and against it, with what they add in logits. Where these are not "
    sentence += f"what a reader would name, look closer: the strongest word has {percent(_first_share(found))} of all "
    sentence += "effects of a text on average."
    note = "Not chosen by hand: the two surest answers, two in the middle, the two least sure."
    figure = {"kind": "pictures", "items": items, "note": note}
    control = f"an even share of the words of a text: {percent(float((1 / found.counts.double()).mean()))}."
    return Finding("Six answers, and what they hang on", sentence, _first_share(found), control, figure)


def _first_share(found: Said) -> float:
    """The share of the strongest word in all effects of a text, on average."""
    size = found.values.abs()
    return float((size.amax(1) / size.sum(1).clamp(min=1e-12)).mean())
