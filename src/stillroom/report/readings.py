"""Reading ``metrics.json``: which models there are, their numbers with intervals, and how to put them into words.

A fifth seed is where an interval above nought may be claimed; below that the words count seeds instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.report.numbers import finite, number, over_seeds, scaled

ENOUGH_SEEDS = 5
SHARES = ("accuracy", "agreement", "ece", "recall", "precision", "f1", "share")


def main_arm(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the arm that ``distilled`` stands for, ``"distilled"`` if none equals it, None without one."""
    models = metrics["models"]
    if "distilled" not in models:
        return None
    listed = [str(name) for name in metrics.get("arms") or models]
    arms = [name for name in listed if name in models and name not in ("teacher", "alone", "distilled")]
    return next((name for name in arms if models[name] == models["distilled"]), "distilled")


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
        found = over_seeds(held.get("per_seed") or [held.get("mean")])
        if finite(held.get("mean")) is not None:
            found["mean"] = finite(held["mean"])
    else:
        found = over_seeds([held])
    return scaled(found, factor)


def difference(metrics: Mapping[str, Any], name: str, against: str = "alone", factor: float = 1.0) -> dict[str, Any]:
    """Return the score of ``name`` minus that of ``against``, paired by seed, with its t interval."""
    pair = []
    for one in (name, against):
        held = (metrics["models"].get(one) or {}).get("score")
        pair.append(list(held.get("per_seed") or ()) if isinstance(held, Mapping) else [])
    if pair[0] and len(pair[0]) == len(pair[1]):
        both = [(finite(a), finite(b)) for a, b in zip(*pair, strict=True)]
        return scaled(over_seeds([a - b for a, b in both if a is not None and b is not None]), factor)
    one, other = (reading(metrics["models"].get(which), "score")["mean"] for which in (name, against))
    return scaled(over_seeds([None if one is None or other is None else one - other]), factor)


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


def points(change: float, unit: str) -> str:
    """Write a change of the score with its sign; ``unit`` is "%" or empty."""
    sign = "+" if change > 0 else ""
    return f"{sign}{number(change, 1 if unit else None)}{' points' if unit else ''}"


def certainty(found: Mapping[str, Any], unit: str) -> str:
    """Say in words how sure a paired difference is; see the module's docstring for five seeds."""
    low, high, seeds = found["low"], found["high"], found["points"]
    if low is None or high is None:
        return "one seed only, so chance cannot be told from effect"
    count, mean = len(seeds), found["mean"]
    digits = 1 if unit else None
    span = f"95 % interval {number(low, digits)} to {number(high, digits)} over {count} seeds"
    if low <= 0 <= high:
        return f"{span}: it may be chance"
    same = sum(1 for value in seeds if (value > 0) == (mean > 0))
    if count < ENOUGH_SEEDS:
        return f"{span}; {same} of {count} seeds agree, {ENOUGH_SEEDS} are needed to claim it"
    return f"{span}, clear of nought"


def hundred(value: object) -> float | None:
    """Return a share as per cent, or None where it is missing."""
    held = finite(value)
    return None if held is None else 100 * held
