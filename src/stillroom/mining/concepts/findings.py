"""What is said of concepts: how much they hold, which examples show them, and which classes hang on them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.mining.concepts.rows import Rows
from stillroom.mining.subject import Subject
from stillroom.mining.wording import percent

AHEAD = 0.04  # of the variance, more than of rows without parts, before parts are said to be there
FIRM = 0.5  # of the directions found again, before they are called firm
HALF = 0.5
MARK = 3.0  # times a random direction, the mark that is asked
SURE, FEW = 0.05, 0.25  # a p-value; the share of classes, up to which those below it are few
SHOWN, PICTURES, TEXTS, COLUMNS = 10, 4, 2, 5
USUAL = 1000  # rows by which a table's values are called unusual
NAMES = {"sparse": "sparse autoencoder", "parts": "NMF"}


def held(numbers: Mapping[str, Any]) -> Finding:
    """Say how much each method's directions explain, and whether they are found again."""
    methods = numbers["methods"]
    best = methods[numbers["shown"]]
    name = "directions" if numbers["shown"] == "sparse" else "non-negative directions"
    sentence = f"{best['directions']} {name}, of which an example uses {best['at_a_time']:.1f}, explain "
    sentence += f"{percent(best['explained'])} of the variance of its features."
    if best["explained"] < HALF:
        sentence += " They leave most of the variance unexplained."
    if best["explained"] - best["by_chance"] < AHEAD:
        sentence += " Random rows without parts are explained about as well, so do not take the directions for parts "
        sentence += "that are really there."
    else:
        sentence += f" Of random rows without parts the same method explains {percent(best['by_chance'])}."
    again, chance = best["found_again"], best["found_again_by_chance"]
    sentence += f" In the other half of the examples {percent(again, 0)} of them are found again"
    if again < FIRM:
        sentence += ": most depend on the examples they were fitted on, so do not name them yet."
    elif again <= chance:
        sentence += ", no more than in random rows, so that proves nothing."
    else:
        sentence += f" ({percent(chance, 0)} in random rows)."
    control = f"Random rows of equal mean and covariance, which have no parts: {percent(best['by_chance'])}. As many "
    control += f"principal components as are used at most ({best['compared_with']}): "
    control += f"{percent(best['principal_components'])}."
    return Finding("How much its concepts explain", sentence, best["explained"], control, _compared(methods))


def _compared(methods: Mapping[str, Any]) -> dict[str, Any]:
    told = {
        "directions": lambda one: str(one["directions"]),
        "used at a time": lambda one: f"{one['at_a_time']:.1f}",
        "never used": lambda one: percent(one["dead"], 0),
        "variance explained": lambda one: percent(one["explained"]),
        "explained of random rows": lambda one: percent(one["by_chance"]),
        "principal components": lambda one: f"{percent(one['principal_components'])} ({one['compared_with']})",
        "found again": lambda one: percent(one["found_again"], 0),
        "found again in random rows": lambda one: percent(one["found_again_by_chance"], 0),
    }
    columns = [{"name": ""}, *({"name": NAMES[name].split()[-1]} for name in methods)]
    rows = [[what, *(write(one) for one in methods.values())] for what, write in told.items()]
    note = "Autoencoder: sparse (TopK). NMF: non-negative matrix factorisation. "
    note += "Found again: directions of one half of the examples that the other half has too (cosine 0.9 or more). "
    note += "Random rows: of equal mean and covariance, without parts."
    return {"kind": "table", "columns": columns, "rows": rows, "note": note}


def shown(numbers: Mapping[str, Any], subject: Subject, test: Rows) -> Finding:
    """Show the examples that use each concept most."""
    entries = numbers["concepts"]
    first = entries[0]
    some = "The strongest of " if len(entries) > _fits(subject) else "Its "
    sentence = f"{some}{len(entries)} concepts are below, each with the examples that use it most. "
    clear = [one for one in entries if one["clear"]]
    sentence += f"{len(clear) or 'None'} of them belong mostly to one class"
    sentence += f", such as concept {clear[0]['unit'] + 1} to '{clear[0]['mostly']}'" if clear else ""
    sentence += "; the others are shared by classes." if len(clear) < len(entries) else "."
    where = "a place in the picture" if test.places is not None else "an example"
    control = f"Of the strength with which concepts are used by {where}, an even share for a class would be "
    control += f"{percent(1 / len(subject.classes), 0)}; of concept {first['unit'] + 1} '{first['mostly']}' has "
    control += f"{percent(first['mostly_share'], 0)}."
    return Finding(
        "What its concepts are", sentence, len(entries), control, _figure(entries[: _fits(subject)], subject, test)
    )


def _fits(subject: Subject) -> int:
    """How many concepts are shown; texts take more room."""
    return SHOWN if subject.kind == "image" else SHOWN // 2


def _figure(entries: Sequence[Mapping[str, Any]], subject: Subject, test: Rows) -> dict[str, Any]:
    if subject.kind == "image":
        full = [one for one in entries if len(one["top"]) >= PICTURES]
        rows = [
            [
                {"pixels": _picture(subject, test, row).tolist(), "text": _named(one) if not place else ""}
                for place, row in enumerate(one["top"][:PICTURES])
            ]
            for one in full
        ]
        note = "Each row is a concept, with the class that depends on it most, or else uses it most."
        if test.places is not None:
            note += " A picture is cut out around the place that uses the concept most."
        return {"kind": "sheet", "columns": ["strongest", "second", "third", "fourth"], "rows": rows, "note": note}
    items = []
    for one in entries:
        told = _columns(subject, test.examples[one["top"]]) if subject.kind == "table" else None
        for row in one["top"][:TEXTS]:
            example = int(test.examples[row])
            text = str(subject.data.show(example)) if told is None else told(example)
            items.append(
                {"text": text, "caption": f"concept {_named(one)}", "rows": [["used by", percent(one["share"], 0)]]}
            )
    return {"kind": "pictures", "items": items}


def _named(entry: Mapping[str, Any]) -> str:
    shared = entry["mostly"] if entry["clear"] else "shared by classes"
    return f"{entry['unit'] + 1}: {', '.join(entry['classes']) or shared}"


def _picture(subject: Subject, test: Rows, row: int) -> Any:
    picture = np.asarray(subject.data.show(int(test.examples[row])))
    if test.places is None:
        return picture
    cut = []
    for axis in (0, 1):
        size, count = picture.shape[axis], test.side[axis]
        length = min(size, max(8, round(3 * size / count)))
        begin = round(float(test.places[row, axis]) * size - length / 2)
        cut.append(slice(max(0, min(begin, size - length)), max(0, min(begin, size - length)) + length))
    return picture[cut[0], cut[1]]


def _columns(subject: Subject, top: Tensor) -> Any:
    """A way to write a row of a table: the columns in which the ``top`` examples are most unusual."""
    usual, unusual = subject.inputs(subject.examples("train")[:USUAL]).float(), subject.inputs(top).float()
    apart = ((unusual.mean(0) - usual.mean(0)) / usual.std(0).clamp(min=1e-9)).abs()
    places = apart.argsort(descending=True, stable=True)[:COLUMNS].tolist()
    names = list(getattr(subject.data, "names", []) or [f"column {place}" for place in range(len(apart))])
    categories: Mapping[str, Sequence[str]] = getattr(subject.data, "categories", {})

    def written(example: int) -> str:
        values = subject.inputs(torch.tensor([example]))[0]
        return ", ".join(
            f"{name}={categories[name][int(values[place])] if name in categories else f'{float(values[place]):.4g}'}"
            for place, name in ((place, names[place]) for place in places)
        )

    return written


def hung_on(numbers: Mapping[str, Any], subject: Subject) -> Finding:
    """Say what each class loses without the concept it hangs on most, beside directions at random."""
    entries = sorted(numbers["methods"][numbers["shown"]]["classes"], key=lambda one: -float(one["effect"]))
    times = [one["effect"] / max(1e-9, one["random"]) for one in entries]
    many, sure = sum(value >= MARK for value in times), sum(one["p"] <= SURE for one in entries)
    top = entries[0]
    sentence = f"'{top['class']}' depends most on one concept: with it removed, its score falls by {top['effect']:.2f} "
    sentence += f"and {percent(top['changed'], 0)} of these answers change, against "
    sentence += f"{percent(top['changed_random'], 0)} with a random direction removed. For {many} of "
    sentence += (
        f"{len(entries)} classes the effect of their concept is at least {MARK:.0f} times that of a random direction "
    )
    sentence += f"(median {statistics.median(times):.1f} times)."
    units = numbers["methods"][numbers["shown"]]["directions"]
    sentence += f" For {sure} of {len(entries)} it also exceeds the best of {units} directions drawn with the "
    sentence += f"covariance of the features ({SURE * len(entries):.1f} would by chance)"
    few = sure <= max(1.0, FEW * len(entries))
    sentence += ": the effect comes from where the features vary most rather than from the concept." if few else "."
    sentence += _by_the_other(numbers)
    control = f"Random directions of the same lengths: {top['random']:.2f}; drawn with the covariance of the features: "
    control += f"{top['such']:.2f}, the best of {units} of them "
    control += f"{top['best_of_such']:.2f} (p = {top['p']:.2f}). Concepts were chosen on validation examples."
    figure = {
        "kind": "spread",
        "unit": "",
        "x_label": "how far the class's score falls",
        "labels": [f"{one['class']} ({one['unit'] + 1})" for one in entries],
        "series": [
            {"name": "its concept", "values": [one["effect"] for one in entries]},
            {"name": "a random direction", "values": [one["random"] for one in entries]},
            {"name": "the best drawn with their covariance", "values": [one["best_of_such"] for one in entries]},
        ],
        "note": "The score is the logit less the mean of all logits. In brackets: the number of the concept.",
    }
    return Finding("Which classes depend on a concept", sentence, statistics.median(times), control, figure)


def _by_the_other(numbers: Mapping[str, Any]) -> str:
    """The same two counts by the method that is not shown, if there is one."""
    told = ""
    for name, one in numbers["methods"].items():
        if name != numbers["shown"] and one["classes"]:
            many = sum(entry["effect"] >= MARK * entry["random"] for entry in one["classes"])
            told += f" With the other method ({NAMES[name]}) the first holds for {many} classes, the second for "
            told += f"{sum(entry['p'] <= SURE for entry in one['classes'])}."
    return told
