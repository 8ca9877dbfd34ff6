"""What the numbers about memory mean: was it passed on, and to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.contracts import Finding
from stillroom.statistics import CLAIM_FROM, Interval, over_seeds

TEACHER, ALONE, RANDOM = "teacher", "alone", "random weights"
NEAR_FULL = 0.7  # of the state's units: a student that holds so many numbers has little room for more
LITTLE = 0.1  # numbers: a lead below this is no use to anybody, however sure
SEEN = 0.02  # r2 below which a curve has come to its end
CLOSE = 0.8  # of what so few numbers can hold of the teacher's state


def findings(result: Mapping[str, Any], main: str = "distilled", *, alone: str = ALONE) -> list[Finding]:
    """Return the findings of :func:`stillroom.memory.memory_of`: the curve of memory, and the totals.

    ``main`` is the distilled arm the sentence is about, ``alone`` the student without a teacher.
    """
    return [_curve(result, main, alone), _totals(result, main, alone)]


def headline(result: Mapping[str, Any], main: str = "distilled", *, alone: str = ALONE) -> str:
    """Say in one sentence whether memory was passed on, whichever way it went; empty without both students."""
    lead = lead_of(result, main, alone)
    if lead is None:
        return ""
    mine, theirs = _mean(result, main), _mean(result, alone)
    told = f"{_number(mine)} numbers of its past input where the one without the teacher remembers {_number(theirs)}"
    others = [
        f"{who} {_number(_mean(result, name))}"
        for name, who in ((TEACHER, "the teacher"), (RANDOM, "random weights"))
        if name in result["models"]
    ]
    rest = f" ({', '.join(others)})" if others else ""
    text = f"The distilled student remembers {told}{rest}"
    if lead.low is None:
        return f"{text}; one seed, so chance cannot be told from effect."
    return f"{text}: {_signed(lead.mean)} [{_signed(lead.low)}, {_signed(lead.high or 0.0)}] over {lead.n} seeds."


def lead_of(result: Mapping[str, Any], name: str, other: str) -> Interval | None:
    """Return the capacity of ``name`` minus that of ``other`` with its interval over seeds, paired where they can be.

    None where one of them was not asked.
    """
    if not {name, other} <= set(result["models"]):
        return None
    one, two = (result["models"][which]["totals"] for which in (name, other))
    if len(one) == len(two):
        return over_seeds([mine - theirs for mine, theirs in zip(one, two, strict=True)])
    longer, single = (one, two) if len(two) == 1 else (two, one)
    if len(single) == 1:
        sign = 1.0 if longer is one else -1.0
        return over_seeds([sign * (value - single[0]) for value in longer])
    return Interval(float(np.mean(one) - np.mean(two)), None, None, min(len(one), len(two)), "seeds do not pair up")


def _curve(result: Mapping[str, Any], main: str, alone: str) -> Finding:
    shown = _shown(result)
    series = [_line(name, result["models"][name], shown) for name in _order(result, main, alone)]
    first = result["models"][_order(result, main, alone)[0]]
    asked = "tokens" if first["kind"] == "tokens" else "numbers"
    figure = {
        "kind": "lines",
        "title": "How much of the input is still there, step by step back",
        "x_label": "steps back",
        "y_label": "share of the input that a linear probe reads from the state (r2)",
        "series": series,
        "note": f"Probe inputs: the real {asked}, shuffled over all rows and steps so that no step tells of another; "
        f"{result['rows']} rows, half to fit, half to ask. Bands: 95 % over seeds.",
    }
    lead = lead_of(result, main, alone)
    text = (headline(result, main, alone=alone) or _plain(result)) + _advice(result, main, alone, lead)
    control = (
        "the same student trained without a teacher, and with random weights, on the same probe inputs; asked for "
        f"inputs they never saw, none of them scores more than {_chance(result):.2f}."
    )
    return Finding("Was memory passed on?", text, None if lead is None else lead.mean, control, figure)


def _shown(result: Mapping[str, Any]) -> int:
    """Return how many steps back are worth drawing: all that any network remembers, and a few to see the end."""
    curves = [curve for held in result["models"].values() for curve in held["curves"]]
    last = max((back for curve in curves for back, share in enumerate(curve) if share > SEEN), default=0)
    return min(last + 4, max(len(curve) for curve in curves))


def _line(name: str, held: Mapping[str, Any], shown: int) -> dict[str, Any]:
    columns = [over_seeds(values) for values in list(zip(*held["curves"], strict=True))[:shown]]
    line: dict[str, Any] = {"name": name, "x": list(range(len(columns))), "y": [one.mean for one in columns]}
    if len(held["curves"]) > 1:
        line["low"] = [max(0.0, one.low or 0.0) for one in columns]
        line["high"] = [min(1.0, one.high or 0.0) for one in columns]
    return line


def _advice(result: Mapping[str, Any], main: str, alone: str, lead: Interval | None) -> str:
    """Say what to do with it."""
    if lead is None:
        return ""
    models = result["models"]
    if TEACHER in models and _mean(result, TEACHER) <= max(_mean(result, alone), _mean(result, RANDOM)):
        return (
            " The teacher itself remembers no more than the student does without it, so it has no memory to pass on: "
            "distil its answers, or train a teacher on a task that needs its memory."
        )
    if lead.low is not None and lead.low > 0:
        if lead.mean < LITTLE:
            return " That is a lead, but too small to be of use: give the memory objectives more weight or more steps."
        claim = "Memory was passed on."
        if lead.n < CLAIM_FROM:
            claim = f"It seems that memory was passed on; {CLAIM_FROM} seeds are needed to claim it."
        best = _rival(result, main, alone)
        return f" {claim}{best}{_untrained(result, main)} Remembering more is not yet answering better: see the score."
    if lead.high is not None and lead.high < 0:
        return (
            " Memory was not passed on; some was lost: train longer, or lower the weight of the objectives that pull "
            "the state elsewhere."
        )
    if _mean(result, alone) >= NEAR_FULL * models[alone]["units"]:
        return (
            f" Its {models[alone]['units']} units are nearly full without a teacher: only a wider student holds more."
        )
    if lead.low is None:
        return " Run five seeds before you rely on it." + _rival(result, main, alone)
    return (
        " That it was passed on is not shown: give the memory objectives more weight or more steps, or run more seeds."
        + _rival(result, main, alone)
    )


def _untrained(result: Mapping[str, Any], main: str) -> str:
    """Say so where random weights hold more than what was trained: training lets go of what a task does not need."""
    if RANDOM not in result["models"] or _mean(result, RANDOM) <= _mean(result, main):
        return ""
    return " Random weights hold more than it: training lets go of what the task does not need, and this asks for all."


def _rival(result: Mapping[str, Any], main: str, alone: str) -> str:
    """Say how the best of the other distilled arms compares."""
    others = [name for name in result["models"] if name not in (TEACHER, RANDOM, alone, main)]
    if not others:
        return ""
    best = max(others, key=lambda name: _mean(result, name))
    lead = lead_of(result, main, best)
    assert lead is not None
    text = f" Of the other arms '{best}' remembers most, {_number(_mean(result, best))}"
    if lead.low is None or lead.high is None:
        return f"{text}."
    if lead.low <= 0 <= lead.high:
        return f"{text}: the two cannot be told apart."
    return f"{text}: {_number(abs(lead.mean))} {'less' if lead.mean > 0 else 'more'}."


def _plain(result: Mapping[str, Any]) -> str:
    told = [f"{name} remembers {_number(_mean(result, name))} numbers" for name in result["models"]]
    return f"Of its past input {', '.join(told)}."


def _totals(result: Mapping[str, Any], main: str, alone: str) -> Finding:
    models, order = result["models"], _order(result, main, alone)
    stated = any("state" in held for held in models.values())
    columns: list[dict[str, Any]] = [
        {"name": "memory of"},
        {"name": "units", "unit": "count"},
        {"name": "remembers", "digits": 1},
        {"name": "of units", "unit": "%", "digits": 0},
        {"name": "half to step", "digits": 0},
        {"name": f"over '{alone}'", "digits": 1},
    ]
    if stated:
        columns += [
            {"name": "teacher's state", "unit": "%", "digits": 0},
            {"name": "of possible", "unit": "%", "digits": 0},
        ]
    rows: list[list[Any]] = []
    for name in order:
        held = models[name]
        lead = lead_of(result, name, alone) if name != alone else None
        row: list[Any] = [
            name,
            held["units"],
            _cell(held["totals"]),
            100 * _mean(result, name) / held["units"],
            _depth(held["depths"]),
            None if lead is None else _interval(lead),
        ]
        fits = held.get("state")
        if stated:
            row += [_cell([100 * fit[key] for fit in fits]) if fits else None for key in ("r2", "ratio")]
        rows.append(row)
    figure = {
        "kind": "table",
        "title": "Memory in numbers",
        "columns": columns,
        "rows": rows,
        "apart": [place for place, name in enumerate(order) if name in (TEACHER, RANDOM)],
        "main": [place for place, name in enumerate(order) if name == main],
        "note": _note(stated, result.get("left_out", {})),
    }
    return Finding("How full the memories are", _full(result, main), _share(result, main), "random weights.", figure)


def _note(stated: bool, left_out: Mapping[str, str]) -> str:
    text = (
        "Remembers: r2 summed over steps back and over the numbers asked of each step; no state can hold more than it "
        "has units. Half to step: how many steps back a probe still tells half of the input. State: h of all layers, "
        "forward directions."
    )
    if stated:
        text += (
            " Teacher's state: what a linear map from the student's explains of it, on real inputs and on rows the map "
            "was not fitted to; of possible: beside the teacher's own first principal components, as many as the "
            "student has units."
        )
    return text + "".join(f" '{name}' was not asked: {why}" for name, why in left_out.items())


def _full(result: Mapping[str, Any], main: str) -> str:
    if main not in result["models"]:
        return _plain(result)
    held = result["models"][main]
    text = (
        f"The distilled student's {held['units']} units hold {_number(_mean(result, main))} numbers of its past input"
    )
    fits = held.get("state")
    if not fits:
        if TEACHER not in result["models"]:
            return f"{text}."
        return f"{text}. Its state was not set beside the teacher's, whose steps in time are others."
    ratio = float(np.mean([fit["ratio"] for fit in fits]))
    explained = float(np.mean([fit["r2"] for fit in fits]))
    text += (
        f"; they explain {100 * explained:.0f} % of the teacher's state, {100 * ratio:.0f} % of what that many could"
    )
    if ratio >= CLOSE:
        return f"{text}: what is still missing needs a wider student."
    return f"{text}: there is room for more of it at this size."


def _share(result: Mapping[str, Any], name: str) -> float | None:
    return _mean(result, name) / result["models"][name]["units"] if name in result["models"] else None


def _order(result: Mapping[str, Any], main: str, alone: str) -> list[str]:
    head = [name for name in (TEACHER, alone, main) if name in result["models"]]
    rest = [name for name in result["models"] if name not in (*head, RANDOM)]
    return [*head, *rest, *([RANDOM] if RANDOM in result["models"] else [])]


def _depth(depths: Sequence[int]) -> float | None:
    mean = float(np.mean(depths))
    return None if mean < 0 else mean


def _cell(values: Sequence[float]) -> Any:
    return _interval(over_seeds(values))


def _interval(found: Interval) -> Any:
    if found.low is None:
        return found.mean
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _mean(result: Mapping[str, Any], name: str) -> float:
    return float(np.mean(result["models"][name]["totals"])) if name in result["models"] else 0.0


def _chance(result: Mapping[str, Any]) -> float:
    return max(value for held in result["models"].values() for value in held["chances"])


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}"
