"""What the numbers on other tasks mean, in sentences, with the tables and curves behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.contracts import Finding
from stillroom.generality.compare import ALONE, RANDOM, RAW, STUDENT, TEACHER

QUARTER, KEPT = 0.25, 0.95
ORDER = (TEACHER, ALONE, STUDENT, RANDOM, RAW)
COLOURS = {STUDENT: "distilled", ALONE: "alone"}  # the names that keep their colour in every report


def findings(result: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of :func:`stillroom.generality.compare` (and of ``curve``, where it is in the result)."""
    found = [_linear(result), _ways(result), _shots(result)]
    if result.get("curve"):
        found.append(_curve(result))
    return found


def summary(result: Mapping[str, Any]) -> str:
    """Say in one or two sentences what the student's features are worth on other tasks, whichever way it went."""
    means, names = result["mean"], list(result["tasks"])
    tasks = f"{len(names)} other task{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    if STUDENT not in means:
        return f"Features were compared on {tasks}."
    width = _width(result, STUDENT)
    text = f"On {tasks} a linear probe on the student's {width} numbers reaches {_percent(means[STUDENT])}"
    if TEACHER in means:
        large = _width(result, TEACHER)
        text += (
            f", {_percent(result['kept'])} of what the teacher's {large} numbers reach "
            f"({_percent(means[TEACHER])}), at {100 * width / large:.0f} % of their size"
        )
    text += "."
    for name in (ALONE, RANDOM, RAW):
        if name in means:
            text += f" {_compared(name, means[name], result['lead'][name])}"
    return text


def headline(result: Mapping[str, Any]) -> str:
    """Say the same in one short sentence, for the verdict of a run."""
    means, count = result["mean"], len(result["tasks"])
    if STUDENT not in means or TEACHER not in means:
        return ""
    share = _width(result, STUDENT) / _width(result, TEACHER)
    text = (
        f"On {count} other task{'s' if count > 1 else ''} its features, {100 * share:.0f} % of the teacher's size, "
        "keep "
        f"{_percent(result['kept'])} of the teacher's linear probe"
    )
    if ALONE in means:
        lead = result["lead"][ALONE]
        ends = sorted(abs(100 * lead[key]) for key in ("low", "high"))
        who = "those of the same student trained on labels alone"
        if lead["low"] > 0 or lead["high"] < 0:
            text += f" and {'lead' if lead['low'] > 0 else 'trail'} {who} by {abs(100 * lead['mean']):.1f} points"
            text += f" [{ends[0]:.1f}, {ends[1]:.1f}]"
        else:
            text += f" and cannot be told from {who} ({100 * lead['mean']:+.1f} points"
            text += f" [{100 * lead['low']:+.1f}, {100 * lead['high']:+.1f}])"
    return f"{text}."


def _compared(name: str, mean: float, lead: Mapping[str, Any]) -> str:
    who = {
        ALONE: "the same student trained on labels only",
        RANDOM: "the same network with random weights",
        RAW: "the raw input",
    }.get(name, name)
    points = f"{100 * lead['mean']:+.1f} points"
    span = f" [{100 * lead['low']:+.1f}, {100 * lead['high']:+.1f}]" if lead.get("low") is not None else ""
    if lead.get("low") is not None and lead["low"] > 0:
        verdict = "is behind by"
        points = points.lstrip("+")
    elif lead.get("high") is not None and lead["high"] < 0:
        verdict = "is better: the student's lead is"
    else:
        verdict = "cannot be told apart: the student's lead is"
    return f"{who[:1].upper()}{who[1:]} ({_percent(mean)}) {verdict} {points}{span}."


def _advice(result: Mapping[str, Any]) -> str:
    """Say what to do with it."""
    means, lead = result["mean"], result.get("lead", {})
    if STUDENT not in means or TEACHER not in means:
        return ""
    share = _width(result, STUDENT) / _width(result, TEACHER)
    better = [name for name in (RAW, RANDOM) if name in means and (lead[name]["high"] or 0) < 0]
    if better:
        return (
            f" These tasks do not need trained features: {better[0]} does better; take that, or judge the features on "
            "harder tasks."
        )
    even = [name for name in (RAW, RANDOM) if name in means and (lead[name]["low"] or 0) <= 0]
    also = "".join(
        f" {name[:1].upper()}{name[1:]} does as well, with {_width(result, name)} numbers instead of "
        f"{_width(result, STUDENT)}."
        for name in even
    )
    return also + _next(result, share)


def _next(result: Mapping[str, Any], share: float) -> str:
    """Say whether these features can take the teacher's place."""
    lead = result["lead"]
    if result["kept"] < KEPT:
        return (
            f" Less than {100 * KEPT:.0f} % of the teacher's is kept: give the student more dimensions, more steps "
            "or more "
            "transfer images before it replaces the teacher."
        )
    if ALONE in lead and (lead[ALONE]["low"] is None or lead[ALONE]["low"] <= 0):
        return (
            " For such tasks training on labels alone would do: the teacher did not make these features more general."
        )
    small = "a quarter of the size or less" if share <= QUARTER else f"{100 * share:.0f} % of the size"
    return f" They can stand in for the teacher's features at {small}."


def _linear(result: Mapping[str, Any]) -> Finding:
    readers = [name for name in ORDER if name in result["mean"]] + [
        name for name in result["mean"] if name not in ORDER
    ]
    tasks = list(result["tasks"])
    rows: list[list[Any]] = []
    for name in readers:
        cells = [_cell(result["tasks"][task]["readers"][name]["linear"]) for task in tasks]
        rows.append([name, _width(result, name), 100 * result["mean"][name], *cells])
    columns = [
        {"name": "features"},
        {"name": "numbers", "unit": "count"},
        {"name": "mean", "unit": "%", "digits": 1},
        *({"name": task, "unit": "%", "digits": 1} for task in tasks),
    ]
    sizes = "; ".join(
        f"{task}: {held['train']} rows to learn from, {held['test']} to answer"
        for task, held in result["tasks"].items()
    )
    figure = {
        "kind": "table",
        "title": "Linear probe on other tasks",
        "columns": columns,
        "rows": rows,
        "apart": [index for index, name in enumerate(readers) if name == TEACHER],
        "main": [index for index, name in enumerate(readers) if name == STUDENT],
        "note": f"Accuracy of logistic regression, L2 chosen by cross-validation on the rows to learn from. {sizes}.",
    }
    control = (
        "the same architecture and seed trained on labels only, or not at all; the teacher's features; the raw input."
    )
    number = result.get("kept")
    return Finding(
        "What the features are worth on other tasks", summary(result) + _advice(result), number, control, figure
    )


def _cell(held: Mapping[str, Any]) -> Any:
    seeds = held["per_seed"]
    if len(seeds) < 2:
        return 100 * held["mean"]
    from stillroom.statistics import over_seeds

    found = over_seeds([100 * one for one in seeds])
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _ways(result: Mapping[str, Any]) -> Finding:
    keys = {
        "knn": "nearest neighbours",
        "nmi": "clusters (NMI)",
        "recall_at_1": "found first",
        "recall_at_5": "in first 5",
        "map": "mAP",
    }
    readers = [name for name in ORDER if name in result["mean"]]
    means = {
        name: {
            key: sum(task["readers"][name][key] for task in result["tasks"].values()) / len(result["tasks"])
            for key in keys
        }
        for name in readers
    }
    columns = [{"name": "features"}, *({"name": text, "unit": "%", "digits": 1} for text in keys.values())]
    rows = [[name, *(100 * means[name][key] for key in keys)] for name in readers]
    figure = {
        "kind": "table",
        "title": "Without training anything on them",
        "columns": columns,
        "rows": rows,
        "apart": [index for index, name in enumerate(readers) if name == TEACHER],
        "main": [index for index, name in enumerate(readers) if name == STUDENT],
        "note": "Means over the tasks. Nearest neighbours: 20 by cosine, temperature 0.07. NMI: k-means with as many "
        "clusters as "
        "classes. Found first / in first 5: an image asks for others of its class.",
    }
    sentence = "Search and grouping, which train nothing on top of the features."
    if STUDENT in means:
        near = {name: means[name]["knn"] for name in readers}
        sentence = f"A vote of the 20 nearest images is right in {_percent(near[STUDENT])} of cases"
        others = [
            f"{_percent(near[name])} with {text}"
            for name, text in (
                (TEACHER, "the teacher's features"),
                (ALONE, "a student trained on labels only"),
                (RAW, "raw input"),
            )
            if name in near
        ]
        sentence += f" ({'; '.join(others)})" if others else ""
        first = _percent(means[STUDENT]["recall_at_1"])
        sentence += f"; asked for more of the same class, the first image shown is right in {first}."
    return Finding(
        "Search and grouping with the features",
        sentence,
        means.get(STUDENT, {}).get("knn"),
        "the same questions to every kind of features.",
        figure,
    )


def _shots(result: Mapping[str, Any]) -> Finding:
    readers = [name for name in ORDER if name in result["mean"]]
    tasks = list(result["tasks"].values())
    shots = sorted(next(iter(tasks))["readers"][readers[0]]["few_shot"], key=int)  # JSON may have sorted them as text
    means = {
        name: [sum(task["readers"][name]["few_shot"][count]["mean"] for task in tasks) / len(tasks) for count in shots]
        for name in readers
    }
    series = [{"name": COLOURS.get(name, name), "values": [100 * value for value in means[name]]} for name in readers]
    draws = next(iter(tasks))["readers"][readers[0]]["few_shot"][shots[0]]["n"]
    figure = {
        "kind": "spread",
        "title": "Accuracy from a few examples",
        "unit": "%",
        "x_label": "accuracy",
        "labels": [f"{count} example{'s' if count != '1' else ''} a class" for count in shots],
        "series": series,
        "note": f"The nearest class mean; means over {draws} draws and the tasks. 'distilled' are the student's "
        "features, "
        "'alone' those of the same student trained on labels only.",
    }
    if STUDENT not in means:
        return Finding("Learning from a few examples", "How far a few labelled examples go.", None, "", figure)
    few = {name: values[min(1, len(values) - 1)] for name, values in means.items()}
    count = shots[min(1, len(shots) - 1)]
    rest = [
        f"{_percent(few[name])} with {text}"
        for name, text in (
            (TEACHER, "the teacher's"),
            (ALONE, "those of a student trained on labels only"),
            (RANDOM, "random weights"),
        )
        if name in few
    ]
    sentence = f"With {count} labelled examples of each class the student's features reach {_percent(few[STUDENT])}"
    sentence += f", against {', '.join(rest)}." if rest else "."
    return Finding(
        "Learning from a few examples", sentence, few[STUDENT], "the same draws for every kind of features.", figure
    )


def _curve(result: Mapping[str, Any]) -> Finding:
    points = result["curve"]
    plain = [one for one in points if one["dtype"] == "float32"]
    whole = plain[-1]
    enough = next((one for one in plain if one["linear"] >= 0.98 * whole["linear"]), whole)
    columns = [
        {"name": "stored as"},
        {"name": "bytes an example", "unit": "count"},
        {"name": "linear probe", "unit": "%", "digits": 1},
        {"name": "nearest neighbours", "unit": "%", "digits": 1},
    ]
    rows = [
        [f"{one['dimensions']} x {one['dtype']}", one["bytes"], 100 * one["linear"], 100 * one["knn"]] for one in points
    ]
    text = (
        f"The first {enough['dimensions']} of {whole['dimensions']} dimensions keep "
        f"{_percent(enough['linear'] / whole['linear'])} of the linear probe's accuracy"
    )
    coarse = [one for one in points if one["dtype"] in ("int8", "binary")]
    if coarse:
        text += "; stored as " + " and as ".join(
            f"{one['dtype']} ({one['bytes']} bytes instead of {whole['bytes']}) all of them keep "
            f"{_percent(one['linear'] / whole['linear'])}"
            for one in coarse
        )
    good = [one for one in points if one["linear"] >= 0.98 * whole["linear"]]
    best = min(good, key=lambda one: one["bytes"])
    size = f"{best['dimensions']} dimensions as {best['dtype']}, {best['bytes']} bytes an example"
    text += f". Smallest that keeps 98 %: {size}."
    figure = {
        "kind": "table",
        "title": "Quality by dimensions and precision",
        "columns": columns,
        "rows": rows,
        "note": "Means over the tasks. Dimensions are ordered by a PCA of the student's own training images.",
    }
    return Finding("How small the features may be", text, best["bytes"], "all dimensions as float32.", figure)


def _width(result: Mapping[str, Any], name: str) -> int:
    return int(next(iter(result["tasks"].values()))["readers"][name]["dimensions"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
