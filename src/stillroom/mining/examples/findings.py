"""What is said of typical examples, of those that moved most, and of labels that look wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.mining.subject import Subject

CLASSES = 10  # that are shown
TEXTS = 4  # classes of texts or rows, which take more room
SUSPECTS = 12
DOUBTFUL = 0.01  # chance that a label is wrong: less is not worth a look
FOUND = 0.3  # of planted labels; with fewer found the search is not to be relied on


def typical(standing: Mapping[str, Any], subject: Subject) -> Finding:
    """Say how well a few prototypes a class stand for what the model answers, and show them."""
    curve = {one["each"]: one for one in standing["curve"]}
    told = curve[standing["each"]]
    ours, others, best = (100 * told[key] for key in ("prototypes", "random", "random_best"))
    sentence = f"With {told['each']} prototypes a class, the nearest prototype has the model's answer for "
    sentence += f"{ours:.1f} % of the test examples, against {others:.1f} % with as many drawn at random."
    if ours <= best:
        sentence += " That is within chance: in its features the classes do not form clusters around a centre."
    control = f"As many training examples of each class at random, {standing['draws']} draws: {others:.1f} % on "
    control += f"average, {best:.1f} % at best."
    return Finding(
        "What it finds typical", sentence, told["prototypes"], control, _gallery(standing["classes"], subject)
    )


def _gallery(classes: Sequence[Mapping[str, Any]], subject: Subject) -> dict[str, Any]:
    if subject.kind == "image":
        wide = max(len(one["typical"]) for one in classes), max(len(one["unusual"]) for one in classes)
        full = [one for one in classes if (len(one["typical"]), len(one["unusual"])) == wide][:CLASSES]
        rows = [
            [_cell(subject, example, one["class"]) for example in (*one["typical"], *one["unusual"])] for one in full
        ]
        columns = [*("typical" for _ in range(wide[0])), *("unusual" for _ in range(wide[1]))]
        note = "Each row is an answer of the model. Unusual: examples that the typical ones represent least."
        if len(full) < len(classes):
            note += f" {len(full)} of {len(classes)} classes are shown."
        return {"kind": "sheet", "columns": columns, "rows": rows, "width": 84, "note": note}
    items = [
        shown(subject, example, f"{how} of {one['class']}")
        for one in classes[:TEXTS]
        for how, examples in (("typical", one["typical"][:2]), ("unusual", one["unusual"][:1]))
        for example in examples
    ]
    figure: dict[str, Any] = {"kind": "pictures", "items": items}
    return figure | ({"note": f"{TEXTS} of {len(classes)} classes are shown."} if len(classes) > TEXTS else {})


def moved(told: Mapping[str, Any], subject: Subject) -> Finding:
    """Say what leaving out the most helpful examples does, and show which taught the surest mistakes."""
    whole, less, fewer = (100 * told[key] for key in ("all", "without_most_helpful", "without_most_harmful"))
    chance, drawn = told["chance"], told["without_random"]
    low, high = 100 * chance["lowest"], 100 * chance["highest"]
    sentence = f"Without the {told['left_out']:,} most helpful training examples, a refitted last layer is right "
    sentence += f"on {less:.1f} % of the {told['measured_on']} examples instead of {whole:.1f} %"
    if less < low:
        sentence += f" (without as many at random: {100 * drawn['mean']:.1f} %), so these matter more than others."
    else:
        sentence += f", which is within chance ({low:.1f} % or more): no few examples decide."
    sentence += f" Without the {told['left_out']:,} most harmful: {fewer:.1f} %"
    sentence += ", more than by chance: look at them." if fewer > high else f", within chance ({high:.1f} % or less)."
    if told["mistakes"]:
        sentence += " Below are its most confident mistakes, each with the examples that influenced them most."
    control = f"As many left out at random, {drawn['draws']} draws: {100 * drawn['mean']:.1f} % "
    control += f"({100 * drawn['low']:.1f} to {100 * drawn['high']:.1f}). By chance, in draws and in "
    control += f"{told['measured_on']} examples, {100 * chance['sure']:.0f} % of the time no less than {low:.1f} % and "
    control += f"no more than {high:.1f} %. The layer fitted anew gives the model's answer on "
    control += f"{100 * told['agreement']:.1f} % of the test examples; what the "
    control += "layers before it owe to an example is not seen."
    return Finding(
        "Which examples moved it", sentence, told["all"] - told["without_most_helpful"], control, _taught(told, subject)
    )


def _taught(told: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    if not told["mistakes"]:
        rows = [[one["example"], one["label"], one["loss_without"]] for one in told["most_helpful"][:10]]
        columns = [{"name": "example"}, {"name": "label"}, {"name": "loss without it", "digits": 4, "best": "none"}]
        return {"kind": "table", "columns": columns, "rows": rows}
    if subject.kind == "image":
        rows = [
            [
                _cell(subject, one["example"], f"{one['label']}, answered {one['answered']}"),
                _cell(subject, one["to_answered"]["example"], f"{one['answered']}, training"),
                _cell(subject, one["to_right"]["example"], f"{one['label']}, training"),
            ]
            for one in told["mistakes"]
        ]
        columns = ["a mistake", "pulled to the answer", "pulled to the label"]
        return {"kind": "sheet", "columns": columns, "rows": rows, "width": 140}
    items = [
        shown(subject, example, caption)
        for one in told["mistakes"][:3]
        for example, caption in (
            (one["example"], f"a mistake: {one['label']}, answered {one['answered']}"),
            (one["to_answered"]["example"], f"pulled to the answer, {one['answered']}"),
            (one["to_right"]["example"], f"pulled to the label, {one['label']}"),
        )
    ]
    return {"kind": "pictures", "items": items}


def mislabelled(told: Mapping[str, Any], suspects: Sequence[Mapping[str, Any]], subject: Subject) -> Finding:
    """Say how many labels look wrong, whether such a search finds any, and show the most doubted."""
    of = f"{told['examples']:,} training labels"
    doubtful = [one for one in (suspects or told["most_doubted"])[:SUSPECTS] if one["score"] >= DOUBTFUL]
    if suspects:
        count = f"{len(suspects):,} of {of} are" if len(suspects) > 1 else f"1 of {of} is"
        sentence = f"{count} more likely wrong than right: check these first. In all, an estimated "
        sentence += f"{_share(told['share_wrong'])} are wrong."
    else:
        sentence = f"None of {of} is more likely wrong than right. An estimated {_share(told['share_wrong'])} may be "
        sentence += "wrong, but not known which."
        sentence += " Below are the most doubtful." if doubtful else ""
    if suspects and told["features"] == "untrained":
        sentence += (
            f" The model answers {told['given_back']:,} of these labels itself: it has memorised them, or they are "
        )
        sentence += "right. They were found without its features, in which only "
        sentence += f"{told['searches']['learnt']['suspects']:,} look wrong."
    if told["planted"] < FOUND:
        sentence += " Few labels that were swapped on purpose are found here: do not rely on this search."
    control = (
        f"5 % of the other labels were swapped on purpose: {100 * told['planted']:.0f} % of the most doubtful 5 % "
    )
    control += "are such (chance: 5 %)."
    if told["features"] == "learnt":
        control += " The model was not trained on the swapped labels, which makes them easier to find."
    items = [
        shown(subject, one["example"], f"{one['label']}? rather {one['suggested']}", _rows_of(one)) for one in doubtful
    ]
    figure = {"kind": "pictures", "items": items} if items else {}
    return Finding("Which labels look wrong", sentence, len(suspects), control, figure)


def _rows_of(one: Mapping[str, Any]) -> list[list[str]]:
    return [["example", str(one["example"])], ["wrong", f"{100 * one['score']:.0f} %"]]


def shown(subject: Subject, example: int, caption: str, rows: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Return an example as an item of a figure of pictures."""
    found = subject.data.show(int(example))
    what = {"text": found} if isinstance(found, str) else {"pixels": found.tolist()}
    return {**what, "caption": caption, "rows": [list(row) for row in rows]}


def _cell(subject: Subject, example: int, text: str) -> dict[str, Any]:
    return {"pixels": subject.data.show(int(example)).tolist(), "text": text, "about": text}


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 else "less than 0.1 %"
