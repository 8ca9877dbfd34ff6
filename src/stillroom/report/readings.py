"""Reading ``metrics.json``: which models there are, their numbers with intervals, and how to put them into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.report.numbers import DASH, digits_for, finite, number, scaled, spread
from stillroom.statistics import CLAIM_FROM, MINUS, in_seeds, points, signed

SENSE = 1.0  # width of the interval of a share of the gap from which the share says nothing
SHARES = ("accuracy", "agreement", "ece", "recall", "precision", "f1", "share")


def main_arm(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the arm that ``distilled`` stands for, ``"distilled"`` if none equals it, None without one."""
    models = metrics["models"]
    if "distilled" not in models:
        return None
    listed = [str(name) for name in metrics.get("arms") or models]
    arms = [name for name in listed if name in models and name not in ("teacher", "alone", "distilled")]
    if metrics.get("main") in arms:
        return str(metrics["main"])
    return next((name for name in arms if models[name] == models["distilled"]), "distilled")


def shown(name: str) -> str:
    """Return what a model is called wherever a person reads of it: its arm's name, ``distilled`` for plain ``main``."""
    return "distilled" if name == "main" else name


def model_order(metrics: Mapping[str, Any]) -> list[str]:
    """Return the models to show: teacher, alone, the first arm, the other arms; ``distilled`` only if no arm is it."""
    models, first = metrics["models"], main_arm(metrics)
    listed = [*(str(name) for name in metrics.get("arms") or ()), *models]
    head = [name for name in ("teacher", "alone", first) if name in models]
    rest = [name for name in dict.fromkeys(listed) if name in models and name not in (*head, "distilled")]
    return [str(name) for name in head] + rest


def reading(model: Mapping[str, Any] | None, key: str, factor: float = 1.0) -> dict[str, Any]:
    """Return the reading ``key`` of a model with its t interval over seeds: ``{mean, low, high, n, points}``."""
    held = (model or {}).get(key)
    if isinstance(held, Mapping):
        found = spread(held.get("per_seed") or [held.get("mean")])
        if finite(held.get("mean")) is not None:
            found["mean"] = finite(held["mean"])
    else:
        found = spread([held])
    return scaled(found, factor)


def difference(metrics: Mapping[str, Any], name: str, against: str = "alone", factor: float = 1.0) -> dict[str, Any]:
    """Return the score of ``name`` minus that of ``against``: ``{mean, low, high, n, points, method}``.

    Its interval is the one that the run kept (``gains`` over ``alone``, ``leads`` over the first arm): the wider of
    that over seeds and that over examples. A run that kept none has that over seeds, paired.
    """
    pair = []
    for one in (name, against):
        held = (metrics["models"].get(one) or {}).get("score")
        pair.append(list(held.get("per_seed") or ()) if isinstance(held, Mapping) else [])
    if pair[0] and len(pair[0]) == len(pair[1]):
        both = [(finite(a), finite(b)) for a, b in zip(*pair, strict=True)]
        found = spread([a - b for a, b in both if a is not None and b is not None])
    else:
        one, other = (reading(metrics["models"].get(which), "score")["mean"] for which in (name, against))
        found = spread([None if one is None or other is None else one - other])
    kept = (metrics.get("gains" if against == "alone" else "leads") or {}).get(name)
    if against in ("alone", main_arm(metrics)) and isinstance(kept, Mapping):
        found |= {key: kept[key] for key in ("mean", "low", "high", "n", "method")}
    return scaled(found, factor)


def score_unit(metrics: Mapping[str, Any]) -> tuple[str, str, float]:
    """Return the score's name, its unit and the factor from what is stored to what is shown."""
    models = metrics["models"]
    name = next((str(m["score_name"]) for m in models.values() if m and m.get("score_name")), "score")
    if any(word in name.lower() for word in SHARES):
        return name, "%", 100.0
    return name, "", 1.0


def reason_for(metrics: Mapping[str, Any], key: str) -> str | None:
    """Return why ``metrics[key]`` is null, or None where it is a number."""
    held = metrics.get(key)
    if isinstance(held, Mapping):
        return None if finite(held.get("mean")) is not None else str(held.get("reason") or "no reason was noted")
    return str(metrics.get(f"{key}_reason") or metrics.get("reason") or "no reason was noted")


def quoted(name: str) -> str:
    """Put a name between quotation marks."""
    return f"'{name}'"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Put a few names into words: ``'a', 'b' and 'c'``, or ``'a', 'b', 'c' and 12 more``."""
    first = [quoted(str(name)) for name in names[:most]]
    rest = len(names) - len(first)
    if rest:
        return f"{', '.join(first)} and {rest} more"
    return " and ".join([", ".join(first[:-1]), first[-1]] if len(first) > 1 else first)


def change(value: float, unit: str) -> str:
    """Write a change of the score, as it is shown, with its sign; ``unit`` is "%" or empty."""
    if unit:
        return points(value / 100)
    return signed(value, digits_for([value]))


def certainty(found: Mapping[str, Any], unit: str) -> str:
    """Say in words how sure a difference is: its interval, how that was made, and what may be claimed from it."""
    low, high, seeds = found["low"], found["high"], found["points"]
    if low is None or high is None:
        return "one seed only, so chance cannot be told from effect"
    count, mean = found["n"], found["mean"]
    digits = 1 if unit else None
    method = str(found.get("method") or f"Student's t over {count} seeds").removesuffix(", 95 %")
    span = f"95 % interval {number(low, digits)} to {number(high, digits)}, {method}"
    if low <= 0 <= high:
        return f"{span}: it may be chance"
    same = sum(1 for value in seeds if (value > 0) == (mean > 0))
    if count < CLAIM_FROM:
        agree = f"{same} of {count} seeds agree" if count > 1 else "one seed"
        return f"{span}; {agree}, {CLAIM_FROM} are needed to claim it"
    return f"{span}, clear of nought"


def helped(found: Mapping[str, Any]) -> str:
    """Answer whether distilling helped, as far as an interval and its number of seeds reach."""
    low, high = found["low"], found["high"]
    if low is None or high is None or low <= 0 <= high:
        return "Not to be told from chance."
    where = in_seeds(found["n"])
    return (f"Yes,{where}." if where else "Yes.") if low > 0 else f"No, it made the student worse{where}."


def share_of_gap(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Return what share of the gap to the teacher was closed, in a few characters and in a sentence.

    Where the share says nothing, words stand in its place: above the teacher, below the control, or known so badly that
    its interval is wider than the gap.
    """
    gap = metrics.get("gap_closed")
    mean = finite(gap.get("mean")) if isinstance(gap, Mapping) else None
    if mean is None:
        why = str(reason_for(metrics, "gap_closed")).rstrip(".")
        return DASH, f"{why[:1].upper()}{why[1:]}."
    low, high = (finite(gap.get(key)) for key in ("low", "high"))  # type: ignore[union-attr]
    if mean > 1:
        sure = "" if low is not None and low > 1 else ", by no more than chance"
        return "above the teacher", f"The student is above the teacher{sure}."
    if mean < 0:
        sure = "" if high is not None and high < 0 else ", which may be chance"
        return "wider", f"The gap to the teacher widened{sure}."
    if low is None or high is None:
        return f"{100 * mean:.0f} %", f"It closed {100 * mean:.0f} % of the gap to the teacher."
    if high - low > SENSE:
        return "not known", "What share of the gap to the teacher it closed cannot be told from this run."
    share = f"{100 * mean:.0f} % [{100 * low:.0f}, {100 * high:.0f}]".replace("-", MINUS)
    return share, f"It closed {share} of the gap to the teacher."


def hundred(value: object) -> float | None:
    """Return a share as per cent, or None where it is missing."""
    held = finite(value)
    return None if held is None else 100 * held
