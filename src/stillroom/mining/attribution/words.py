"""Texts: which words an answer hangs on, and which push towards each class."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.mining.attribution.explained import (
    MOST,
    Pieces,
    Said,
    by_random_weights,
    checked,
    explained,
    one_at_a_time,
)
from stillroom.mining.attribution.faithful import randomisation
from stillroom.mining.attribution.findings import agreeing, shows_the_model, spread_out, trust
from stillroom.mining.panel import Budget, Panel
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent
from stillroom.utf8 import unpack_bytes

THIN = 50  # texts, below which words at large are not known
LEAST = 3  # times a word must occur, or once in two hundred texts
PRIOR = 3  # occurrences that the spread of a word's effects over all words counts for, beside its own
APART = 3.0  # times what any word adds, from which on a word stands out
CLASSES, LISTED, NAMED = 6, 8, 4  # panels in the figure; words in each; words of an example
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")
SHORT = 400  # characters of an example


def texts(subject: Subject, budget: Budget) -> Panel:
    """Return which words a model of texts looks at; see stillroom.mining.attribution.panel.attribution."""
    notes: list[str] = []
    found = explained(subject, budget, notes)
    opened = found.steps is not None
    numbers: dict[str, Any] = {
        "kind": "text",
        "examples": len(found.words),
        "method": _method(found),
        "completeness": found.missed,
        "least": _least(len(found.words)),
    }
    twin = by_random_weights(subject, found, budget) if opened else None
    if twin is not None:
        numbers["random_weights"] = randomisation(found.values[: len(twin)], twin, found.counts[: len(twin)])
    numbers["words"] = _pushes(found, len(subject.classes), found.values)
    numbers["typical"] = _typical(found, found.values)
    numbers["faithfulness"] = checked(subject, found, budget)
    findings = [_overall(subject, found, numbers, twin), _six(subject, found)]
    sure = trust(numbers["faithfulness"], "words", "Integrated gradients", numbers["completeness"])
    if opened:
        told = numbers["one_at_a_time"] = one_at_a_time(subject, found, budget)
        sure = agreeing(sure, "leaving out one word at a time", "words", told["alike"])
    findings.append(sure)
    if twin is not None:
        why = "some places and words have larger effects than others with any weights"
        findings.append(shows_the_model(numbers["random_weights"], "these effects", why))
    wanted = min(MOST, len(subject.examples("test")))
    if len(found.words) < wanted:
        few = "; so few say little of words at large, give it more seconds" if len(found.words) < THIN else ""
        notes.append(f"{len(found.words)} of {wanted} texts were explained, to keep to the time{few}")
    named = {subject.classes[place]: rows for place, rows in numbers["words"].items()}
    numbers["words"] = named
    files = {"words.json": json.dumps(named, indent=1, ensure_ascii=False).encode()}
    return Panel("attribution", findings, numbers, files, notes)


def _method(found: Said) -> str:
    if found.steps is None:
        return "words taken away"
    return f"integrated gradients at the embedding, {found.steps} midpoints{', in bfloat16' if found.halved else ''}"


# --- words over all texts ------------------------------------------------------------------------------


def _least(count: int) -> int:
    return max(LEAST, count // 200)


def _pushes(found: Said, classes: int, values: Tensor) -> dict[int, list[dict[str, Any]]]:
    """For each class the words that surely push towards it, on average over where they occur, the surest first.

    With two classes what speaks against one speaks for the other; with more, texts answered with the class count.
    Surely: the mean less twice its standard error, of which words that occur rarely owe a part to all words, is above
    nought. By the mean alone a word that was seen three times would lead.
    """
    held: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in range(len(values)):
        own = int(found.classes[row])
        for piece, value in zip(found.words[row], values[row].tolist(), strict=False):
            held[own, piece.text].append(value)
            if classes == 2:
                held[1 - own, piece.text].append(-value)
    spread = float(np.mean([np.var(each) for each in held.values() if len(each) > 1] or [np.float64(0.0)]))
    least = _least(len(values))
    told: dict[int, list[dict[str, Any]]] = {place: [] for place in range(classes)}
    for (place, word), each in held.items():
        count, mean = len(each), sum(each) / len(each)
        variance = (count * float(np.var(each)) + PRIOR * spread) / (count - 1 + PRIOR)
        low = mean - 2 * (variance / count) ** 0.5
        if count >= least and low > 0:
            told[place].append({"word": word, "push": mean, "low": low, "count": count})
    return {place: sorted(rows, key=lambda row: (-row["low"], row["word"]))[:50] for place, rows in told.items()}


def _typical(found: Said, values: Tensor) -> float:
    """The mean size of what a word adds, wherever it occurs."""
    return float(values.abs().sum() / found.counts[: len(values)].sum())


# --- saying --------------------------------------------------------------------------------------------


def _overall(subject: Subject, found: Said, numbers: dict[str, Any], twin: Tensor | None) -> Finding:
    title, control = "What it looks at", _typically(subject, found, numbers, twin)
    tops = {place: rows for place, rows in numbers["words"].items() if rows}
    numbers["stands_out"] = None
    if not tops:
        text = f"No word that occurs at least {numbers['least']} times surely speaks for a class, so nothing can be "
        return Finding(title, f"{text}said of single words.", None, control)
    best = max(tops, key=lambda place: tops[place][0]["low"])
    top = tops[best][0]
    times = top["push"] / max(numbers["typical"], 1e-12)
    towards = f"towards '{subject.classes[best]}'"
    if times >= APART:
        numbers["stands_out"] = top["word"]
        sentence = f"The word '{top['word']}' has the strongest effect: it adds {top['push']:.2f} {towards}, "
        sentence += f"{times:.1f} times the effect of an average word."
    else:
        sentence = f"No word stands out: even the surest, '{top['word']}', adds only {top['push']:.2f} {towards}, "
        sentence += f"{times:.1f} times the effect of an average word."
    for place in list(tops)[:CLASSES]:
        named = ", ".join(f"'{row['word']}'" for row in tops[place][:NAMED])
        sentence += f" Towards '{subject.classes[place]}': {named}."
    sentence += " A word among them that should not matter is a shortcut."
    if numbers["examples"] < THIN:
        sentence += f" But only {numbers['examples']} texts were explained: take it for a first look."
    return Finding(title, sentence, times, control, _by_class(subject, tops, numbers))


def _typically(subject: Subject, found: Said, numbers: dict[str, Any], twin: Tensor | None) -> str:
    told = f"the mean effect of a word over {numbers['examples']} texts: {numbers['typical']:.2f}"
    if twin is None:
        return f"{told}."
    other = [rows[0]["push"] for rows in _pushes(found, len(subject.classes), twin).values() if rows]
    ratio = max(other, default=0.0) / max(_typical(found, twin), 1e-12)
    numbers["random_weights"]["strongest"] = ratio
    if not other:
        return f"{told}; with random weights no word surely speaks for any class."
    return f"{told}; with random weights the surest word has {ratio:.1f} times the effect of an average one."


def _by_class(subject: Subject, tops: dict[int, list[dict[str, Any]]], numbers: dict[str, Any]) -> dict[str, Any]:
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
    note = f"{numbers['method'].capitalize()}: the mean effect of a word on the logit (in brackets: how often it "
    note += f"occurs), the surest first; words that occur at least {numbers['least']} times in {numbers['examples']} "
    note += "test texts."
    if numbers["completeness"] is not None:
        note += " Baseline: texts whose every word is the mean of all words."
    if len(tops) > len(shown):
        note += f" The {len(shown)} classes with the most such words, of {len(tops)} that have any."
    if (without := len(subject.classes) - len(tops)) > 0:
        note += f" For {without:,} of {len(subject.classes):,} classes no word is sure."
    return {"kind": "panels", "figures": figures, "note": note}


def _six(subject: Subject, found: Said) -> Finding:
    items = []
    raw = unpack_bytes(found.inputs)
    for row in spread_out(found.shares):
        place, values = int(found.classes[row]), found.values[row, : int(found.counts[row])].tolist()
        words = found.words[row]
        order = sorted(range(len(values)), key=lambda one: -values[one])
        sides = []
        for name, chosen in (("for", order[:NAMED]), ("against", order[::-1][:NAMED])):
            sign = 1 if name == "for" else -1
            told = [f"{words[one].text} {values[one]:+.2f}" for one in chosen if sign * values[one] > 0]
            sides.append([name, ", ".join(told) or "nothing"])
        caption = f"{subject.classes[place]} {100 * float(found.shares[row]):.0f} %"
        items.append({"words": _marked(raw[row], words, values), "caption": caption, "rows": sides})
    sentence = (
        "The words that speak for and against each answer, with their effect on the logit. Check the model where "
    )
    sentence += "a reader would name other words. On average the strongest word has "
    sentence += f"{percent(_first_share(found), 0)} of all effects in a text."
    note = "Red speaks for the answer, blue (underlined) against it; the stronger, the more, in each text by itself. "
    note += "Not chosen by hand: the two surest answers, two in the middle, the two least sure."
    figure = {"kind": "pictures", "items": items, "note": note}
    control = f"an even share of the words of a text: {percent(float((1 / found.counts.double()).mean()), 0)}."
    one = len(items) == 1
    title = "One answer, and what it depends on" if one else f"{NUMBERS[len(items)]} answers, and what they depend on"
    return Finding(title, sentence, _first_share(found), control, figure)


def _marked(text: bytes, words: Pieces, values: list[float]) -> list[list[Any]]:
    """The text in pieces as written, each with how much it speaks for the answer (-1 to 1); cut where it is long."""
    most = max(map(abs, values), default=0.0) or 1.0
    found: list[list[Any]] = []
    behind = length = 0
    for piece, value in zip(words, values, strict=True):
        between, said = text[behind : piece.first].decode("utf-8", "replace"), text[piece.first : piece.end]
        word = said.decode("utf-8", "replace")
        length += len(between) + len(word)
        if length > SHORT:
            return [*found, [" ...", 0.0]]
        found += [[between, 0.0]] * bool(between) + [[word, round(value / most, 2)]]
        behind = piece.end
    rest = text[behind:].decode("utf-8", "replace")
    return [*found, [rest if length + len(rest) <= SHORT else " ...", 0.0]] if rest else found


def _first_share(found: Said) -> float:
    """The share of the strongest word in all effects of a text, on average."""
    size = found.values.abs()
    return float((size.amax(1) / size.sum(1).clamp(min=1e-12)).mean())
