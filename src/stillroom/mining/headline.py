"""The most important of what was found: one sentence at the head of the report, and one line a panel on the screen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stillroom.mining.panel import Panel
from stillroom.mining.wording import percent
from stillroom.report.readings import listed

LEAD = 0.02  # over always the same answer: less, and the model has learnt next to nothing
FAR = 0.5  # of the accuracy: a class recognised less often than that is named at the head
OFF = 0.05  # of mean confidence from accuracy
WRONG = 0.01  # of the training labels
SHORTCUT = 0.1  # of the answers change without one patch at the edge of a picture
END = re.compile(r"(?<=[.!?]) (?=[A-Z'])")


def headline(panels: Mapping[str, Panel]) -> str:
    """Return how often the model is right and the gravest that was found; without answers the first finding."""
    grave = list(_graves({name: panel.numbers for name, panel in panels.items()}))
    told = panels["answers"].numbers if "answers" in panels else {}
    right = f"It is right on {percent(told['accuracy'])} of {told['examples']:,} test examples" if told else ""
    if right and grave:
        return f"{right}, but {grave[0]}."
    if grave:
        return f"It {grave[0].removeprefix('it ')}."
    if right:
        return f"{right}, and every class that these hold is answered."
    first = next((finding.sentence for panel in panels.values() for finding in panel.findings), "")
    return first or "Nothing was found out: no panel could be asked."


def _graves(numbers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a person should know before anything else, the gravest first, each as the end of a sentence."""
    told = numbers.get("answers") or {}
    if told:
        usual = told["majority_class"]
        if told["accuracy"] - usual["accuracy"] < LEAD:
            yield f"always answering '{usual['class']}' would be right on {percent(usual['accuracy'])}"
        if never := told["never_answered"]:
            rows = sum(told["rows"][name] for name in never)
            yield f"it never answers {listed(never)} ({rows:,} test example{'s' * (rows != 1)})"
        far = [name for name in told["harder"] if told["recall"][name] < FAR * told["accuracy"]]
        if far:
            worst = min(told["recall"][name] for name in far)
            yield f"it recognises {listed(far)} far less often (recall {'down to ' * (len(far) > 1)}{percent(worst)})"
    yield from _of_examples(numbers)
    if told:
        lean = told["mean_confidence"] - told["accuracy"]
        if abs(lean) > OFF:
            way = "overconfident" if lean > 0 else "underconfident"
            yield f"it is {way}: its mean confidence is {percent(told['mean_confidence'])}"


def _of_examples(numbers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    top = numbers.get("attribution", {}).get("top_patch")
    if top and top["edge"] and top["changed"] >= SHORTCUT:
        yield f"{percent(top['changed'])} of its answers change without one patch at the edge of the picture"
    labels = numbers.get("examples", {}).get("labels")
    if labels and labels["share_wrong"] >= WRONG:
        yield f"{percent(labels['share_wrong'])} of the training labels look wrong"


def summary(panels: Mapping[str, Panel]) -> list[tuple[str, object]]:
    """Return the few numbers at the head of the report."""
    numbers = {name: panel.numbers for name, panel in panels.items()}
    told, shown = numbers.get("answers") or {}, list[tuple[str, object]]()
    if told:
        shown += [("accuracy", percent(told["accuracy"])), ("calibration error", percent(told["ece"]))]
        shown += [("classes never answered", f"{len(told['never_answered'])} of {len(told['recall']):,}")]
    if "rules" in numbers and "fidelity" in numbers["rules"]:
        rules = numbers["rules"]
        size = f"{rules['rules']} rule{'s' * (rules['rules'] != 1)}"
        shown.append((f"{size} give its answer on", percent(rules["fidelity"])))
    labels = numbers.get("examples", {}).get("labels")
    if labels:
        shown.append(("training labels that look wrong", percent(labels["share_wrong"])))
    return shown


def first_sentence(text: str) -> str:
    """Return the first sentence of a finding."""
    return END.split(text, maxsplit=1)[0]


__all__ = ["first_sentence", "headline", "summary"]
