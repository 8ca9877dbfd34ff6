"""Which classes a student lost: the paired difference to the model in each, told from chance for all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.statistics import LEVEL

PRIOR = 3.0  # degrees of freedom of the variance all classes share; so 1 in 25 simulated panels, or fewer, named one
LOST, UNCLEAR, GAINED = "lost", "not clear", "gained"


def lost_by_class(own: Tensor, told: Sequence[Tensor], labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what each class lost against the model, the greatest loss first: shares recognised, interval, verdict.

    ``own`` (N, classes) and each seed's ``told`` are logits of the same examples, ``labels`` (N) -1 where unknown;
    classes without examples are left out. ``low`` and ``high`` hold for all classes at once (95 %, Bonferroni). The
    variance of a loss is that over examples, with z^2 / 2 pairs added to the four outcomes as Agresti and Min 2005 do
    for two proportions (https://doi.org/10.1002/sim.1781), so that few examples cannot be sure of anything; plus that
    over seeds, drawn towards the mean of all classes (Smyth 2004, https://doi.org/10.2202/1544-6115.1027), since three
    seeds tell little of a variance. The t quantile has Satterthwaite's degrees of freedom.
    """
    right = torch.stack([one.argmax(1) == labels for one in told]).double()
    known = [(name, (labels == place).nonzero()[:, 0]) for place, name in enumerate(names)]
    known = [(name, rows) for name, rows in known if len(rows)]
    model = (own.argmax(1) == labels).double()
    lost = [model[rows] - right[:, rows] for _, rows in known]
    shared = _over_seeds(lost)
    found = []
    for (name, rows), difference, varied in zip(known, lost, shared, strict=True):
        low, high = _interval(difference, varied, len(known))
        verdict = LOST if low > 0 else GAINED if high < 0 else UNCLEAR
        shares = {"model": float(model[rows].mean()), "student": float(right[:, rows].mean())}
        entry = {"class": name, **shares, "lost": shares["model"] - shares["student"]}
        found.append({**entry, "low": low, "high": high, "examples": len(rows), "verdict": verdict})
    return sorted(found, key=lambda row: -float(row["lost"]))


class _Varied(NamedTuple):
    """The variance of a mean over seeds, and how many degrees of freedom it is known by."""

    variance: float
    freedom: float


def _over_seeds(lost: Sequence[Tensor]) -> list[_Varied]:
    """Of each class, from losses (seeds, examples); 0 for a single seed, of which nothing can be known."""
    seeds = len(lost[0]) if lost else 0
    if seeds < 2:
        return [_Varied(0.0, 1.0)] * len(lost)
    each = [float(one.mean(1).var()) / seeds for one in lost]
    prior, own = min(PRIOR, (seeds - 1.0) * (len(lost) - 1.0)), seeds - 1.0
    mean = sum(each) / len(each)
    return [_Varied((prior * mean + own * one) / (prior + own), prior + own) for one in each]


def _interval(lost: Tensor, seeds: _Varied, classes: int) -> tuple[float, float]:
    from scipy.special import stdtrit  # imported on use; scipy.stats would take over a second

    sure = 0.5 + (1 - (1 - LEVEL) / classes) / 2
    added = NormalDist().inv_cdf(sure) ** 2 / 2
    each = lost.mean(0)
    count = len(each) + added
    middle = float(each.sum()) / count
    variance = ((float(each.square().sum()) + added / 2) / count - middle**2) / count
    whole = variance + seeds.variance
    freedom = whole**2 / (variance**2 / (count - 1) + seeds.variance**2 / seeds.freedom)
    half = float(stdtrit(freedom, sure)) * math.sqrt(whole)
    return max(-1.0, middle - half), min(1.0, middle + half)
