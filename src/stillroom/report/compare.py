"""Two or more finished runs side by side, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.contracts import Finding
from stillroom.errors import StoreError, UserError, say
from stillroom.files import read_json
from stillroom.paths import is_file, is_folder
from stillroom.report.numbers import finite, number, spread, with_interval
from stillroom.report.readings import main_arm, model_order, reading, reason_for, score_unit, share_of_gap, shown
from stillroom.statistics import CLAIM_FROM, unpaired

Run = tuple[str, Mapping[str, Any], Path]
AGAIN = "Run it (again) with: stillroom run RECIPE"
_ODD = "These are not the metrics of a run of Stillroom"


def compare(paths: Sequence[str | Path]) -> tuple[str, list[Finding]]:
    """Return a title and findings that set the runs in the folders ``paths`` side by side.

    Raises:
        UserError: fewer than two folders, or the same one twice.
        StoreError: a folder is missing, holds no finished run, or its metrics are not Stillroom's.
    """
    places = [Path(path) for path in paths]
    if len(places) < 2:
        raise UserError(
            say(
                "Nothing to compare",
                f"{len(places)} run folder(s)",
                "two or more",
                "Name two run folders: stillroom report RUN RUN",
            )
        )
    resolved = [place.resolve() for place in places]
    if len(set(resolved)) < len(resolved):
        raise UserError(
            say("A run cannot be compared with itself", ", ".join(map(str, places)), "different run folders")
        )
    runs = [(name, read_metrics(place), place) for name, place in zip(_labels(resolved), places, strict=True)]
    with told_from(*places):
        return _compared(runs)


def _compared(runs: Sequence[Run]) -> tuple[str, list[Finding]]:
    scores = list(dict.fromkeys(score_unit(metrics)[0] for _, metrics, _ in runs))
    findings = [_table(runs, scores), _dots(runs, scores)]
    costs = _costs(runs)
    if costs is not None:
        findings.append(costs)
    changed = _recipes(runs)
    if changed is not None:
        findings.append(changed)
    return f"Runs compared: {', '.join(name for name, _, _ in runs)}", findings


@contextmanager
def told_from(*folders: Path) -> Iterator[None]:
    """Say that metrics are not what Stillroom writes, where what is told from them does not hold what it must.

    Raises:
        StoreError: something is missing or of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        files = ", ".join(str(folder / "metrics.json") for folder in folders)
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StoreError(say(_ODD, f"{files} ({why})", "what 'stillroom run' wrote", AGAIN)) from error


def _labels(places: Sequence[Path]) -> list[str]:
    """Return the shortest tails of the paths that tell them apart."""
    depth = 1
    while True:
        tails = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(tails)) == len(tails):
            return tails
        depth += 1


def read_metrics(folder: Path) -> Mapping[str, Any]:
    """Return what a finished run measured.

    Raises:
        StoreError: the folder is no finished run.
    """
    if not is_folder(folder):
        raise StoreError(
            say(
                "No such run",
                f"'{folder}'",
                "a folder that 'stillroom run' made (runs/<recipe name>)",
                "Check the path.",
            )
        )
    file = folder / "metrics.json"
    if not is_file(file):
        begun = is_file(folder / "recipe.yaml")
        what = (
            "it holds a recipe but no metrics.json: the run has not finished" if begun else "it holds no metrics.json"
        )
        raise StoreError(say("Not a finished run", f"'{folder}', {what}", "a finished run folder", AGAIN))
    metrics = read_json(file)
    models = metrics.get("models") if isinstance(metrics, dict) else None
    sound = (
        isinstance(models, dict)
        and models
        and all(isinstance(one, dict) and "score" in one for one in models.values() if one is not None)
    )
    if not sound:
        raise StoreError(say(_ODD, f"'{file}'", "'models', each with a 'score'", AGAIN))
    return {**metrics, "models": {name: one for name, one in dict(models or {}).items() if one is not None}}


def _score(metrics: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    return reading(metrics["models"].get(name), "score", score_unit(metrics)[2])


def _table(runs: Sequence[Run], scores: Sequence[str]) -> Finding:
    one_score = len(scores) == 1
    unit = score_unit(runs[0][1])[1] if one_score else ""
    columns = [
        {"name": "run"}, {"name": "first arm"}, *([] if one_score else [{"name": "score"}]),
        {"name": "teacher", "unit": unit},
        {"name": "alone", "unit": unit}, {"name": "distilled", "unit": unit, "best": "high" if one_score else "none"},
        {"name": "gap closed"}, {"name": "agreement gain, points", "digits": 1}, {"name": "seeds"},
    ]  # fmt: skip
    rows, notes = [], []
    for name, metrics, _ in runs:
        first = main_arm(metrics)
        gain = metrics.get("agreement_gain")
        gains = (
            {k: None if (v := finite(gain.get(k))) is None else 100 * v for k in ("mean", "low", "high")}
            if isinstance(gain, Mapping)
            else None
        )
        rows.append([
            name, shown(first) if first else "–", *([] if one_score else [score_unit(metrics)[0]]),
            *(_score(metrics, one) for one in ("teacher", "alone", first)),
            share_of_gap(metrics)[0], gains,
            float(len(metrics.get("seeds") or [])),
        ])  # fmt: skip
        why = reason_for(metrics, "gap_closed")
        if why:
            notes.append(f"{name}: no share of the gap, {why}")
    figure = {
        "kind": "table",
        "title": "Runs side by side",
        "columns": columns,
        "rows": rows,
        "note": " ".join(f"{note.rstrip('.')}." for note in notes),
    }
    return Finding("The runs side by side", _sentence(runs, scores), None, "each run's own control 'alone'.", figure)


def _costs(runs: Sequence[Run]) -> Finding | None:
    """Return size and latency of each run's student, or None where no run measured them."""
    rows: list[list[Any]] = []
    for name, metrics, _ in runs:
        model = metrics["models"].get(main_arm(metrics))
        rows.append([name, *(reading(model, key) for key in ("parameters", "bytes", "latency_ms"))])
    lightest = sorted((row[2]["mean"], row[0]) for row in rows if row[2]["mean"] is not None)
    if not lightest:
        return None
    equal = lightest[0][0] == lightest[-1][0] and len(lightest) == len(rows)
    sentence = (
        "The students are equally large." if equal else f"The student of '{lightest[0][1]}' has the smallest file."
    )
    columns = [
        {"name": "run"}, {"name": "parameters", "unit": "count"}, {"name": "file", "unit": "bytes"},
        {"name": "latency", "unit": "ms"},
    ]  # fmt: skip
    note = "Latencies of runs on different machines, or at different times, do not compare."
    figure = {"kind": "table", "title": "Cost of the students", "columns": columns, "rows": rows, "note": note}
    return Finding("What the students cost to run", sentence, None, "", figure)


def _sentence(runs: Sequence[Run], scores: Sequence[str]) -> str:
    data = {json.dumps(metrics.get("data"), sort_keys=True) for _, metrics, _ in runs}
    if len(data) > 1:
        return "The runs were measured on different data, so their scores cannot be compared."
    if len(scores) > 1:
        return f"The runs are scored differently ({', '.join(scores)}), so their scores cannot be ranked."
    teachers = {round(mean, 6) for _, metrics, _ in runs if (mean := _score(metrics, "teacher")["mean"]) is not None}
    caution = (
        "" if len(teachers) < 2 else " Their teachers differ, so the difference is not the student's training alone."
    )
    held = [
        (mean, name, metrics)
        for name, metrics, _ in runs
        if (mean := _score(metrics, main_arm(metrics))["mean"]) is not None
    ]
    if len(held) < 2:
        return "Fewer than two of the runs have a distilled student, so there is nothing to rank." + caution
    held.sort(key=lambda one: (-one[0], one[1]))
    (_, best, first), (_, other, second) = held[0], held[1]
    found, how = _between(first, second)
    unit = score_unit(first)[1]
    shown = with_interval(found["mean"], found["low"], found["high"], 1 if unit else None) + (" points" if unit else "")
    if found["low"] is None:
        chance = "without at least two seeds each, this may be chance"
        return f"The student of '{best}' stands {shown} above that of '{other}'; {chance}.{caution}"
    if found["low"] <= 0:
        return f"The students of '{best}' and '{other}' cannot be told apart: {shown} ({how}).{caution}"
    few = min(_score(metrics, main_arm(metrics))["n"] for metrics in (first, second)) < CLAIM_FROM
    verb = "comes out better" if few else "is better"
    limit = f"; {CLAIM_FROM} seeds are needed to claim it" if few else ""
    return f"The student of '{best}' {verb} than that of '{other}' by {shown} ({how}{limit}).{caution}"


def _between(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the difference of two runs' students: paired where the seeds are the same, else Welch's interval."""
    a, b = (_score(metrics, main_arm(metrics)) for metrics in (first, second))
    if first.get("seeds") and first.get("seeds") == second.get("seeds") and a["n"] == b["n"]:
        found = spread([x - y for x, y in zip(a["points"], b["points"], strict=True)])
        return found, f"95 %, paired by {a['n']} seeds"
    return unpaired(a["points"], b["points"]).plain(), "95 %, Welch, seeds not shared"


def _dots(runs: Sequence[Run], scores: Sequence[str]) -> Finding:
    panels = []
    for score in scores:
        rows, unit = [], ""
        for name, metrics, _ in runs:
            if score_unit(metrics)[0] != score:
                continue
            unit = score_unit(metrics)[1]
            rows += [
                {
                    "name": f"{name}: {shown(one)}",
                    "series": one if one in ("teacher", "alone") else name,
                    **_score(metrics, one),
                }
                for one in model_order(metrics)
            ]
        panels.append({"kind": "dots", "title": score, "unit": unit, "x_label": score, "rows": rows})
    figure = panels[0] if len(panels) == 1 else {"kind": "panels", "figures": panels}
    note = "Large mark: mean. Bar: 95 % Student's t interval over seeds. Small dots: the single seeds."
    count = sum(len(model_order(metrics)) for _, metrics, _ in runs)
    return Finding(
        "Every model of every run",
        f"{count} models of {len(runs)} runs, on one scale where they share a score.",
        None,
        "",
        {**figure, "note": note},
    )


def _recipes(runs: Sequence[Run]) -> Finding | None:
    """Return what differs between the runs' resolved recipes, or None where they cannot be read."""
    from ruamel.yaml import YAML, YAMLError

    held = []
    for _, _, folder in runs:
        try:
            held.append(_flat(YAML(typ="safe", pure=True).load(folder / "recipe.yaml")))
        except (OSError, YAMLError, ValueError):
            return None
    keys = sorted(set().union(*held), key=str)
    rows = [[key, *(one.get(key, "–") for one in held)] for key in keys if len({one.get(key) for one in held}) > 1]
    title = "What differs in the recipes"
    if not rows:
        return Finding(
            title, "Nothing: the resolved recipes are the same, so what differs is chance, machine or version."
        )
    figure = {
        "kind": "table",
        "title": title,
        "columns": [{"name": "key"}, *({"name": name} for name, _, _ in runs)],
        "rows": rows,
    }
    only = "One key differs" if len(rows) == 1 else f"{number(len(rows), 0)} keys differ"
    advice = "." if len(rows) == 1 else "; change one at a time to learn which of them matters."
    return Finding(title, only + advice, float(len(rows)), "", figure)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Return every leaf of a recipe by its dotted path."""
    if isinstance(value, Mapping) and value:
        pairs = [(f"{path}.{key}" if path else str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and value and any(isinstance(one, Mapping | list) for one in value):
        pairs = [(f"{path}[{index}]", one) for index, one in enumerate(value)]
    else:
        return {path: "–" if value is None else str(value)}
    return {key: leaf for name, one in pairs for key, leaf in _flat(one, name).items()}
