"""Whether attributions tell of the model: what is taken away in their order, and what random weights would show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.mining.attribution.removal import Ask, ask_all
from stillroom.randomness import draw
from stillroom.statistics import over_seeds

FINE = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)  # of the parts that are taken away or put in
COARSE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # where answers take long; both read the same backwards
DRAWS = 2  # random orders
MOST = 0.2  # rank correlation with the maps of random weights, from which on they show the input
BETTER = 0.05  # of an area: less is no use, however sure


class Curves(NamedTuple):
    """Shares of the predicted class (N, places): parts ``deleted`` from the input, ``inserted`` into nothing.

    Each in the order of attribution, and in random order (mean over draws); ``shares`` of the parts, at each place.
    """

    shares: tuple[float, ...]
    deleted: Tensor
    inserted: Tensor
    deleted_anyhow: Tensor
    inserted_anyhow: Tensor


def curves(
    ask: Ask, values: Tensor, counts: Tensor, classes: Tensor, seed: int, shares: tuple[float, ...] = FINE
) -> Curves:
    """Take parts away from examples, and put them in, in the order of ``values`` (N, parts), largest first.

    Deletion and insertion are those of Petsiuk, Das and Saenko 2018 (https://arxiv.org/abs/1806.07421). A random order
    of deletion, read backwards, is one of insertion.
    """
    there = torch.arange(values.shape[1]) < counts[:, None]
    rows, place = torch.arange(len(values)), classes[:, None]
    whole = ask_all(ask, rows, torch.ones_like(there)).gather(1, place)
    empty = ask_all(ask, rows, ~there).gather(1, place)  # what lies beyond the parts stays

    def kept(rank: Tensor, *, first: bool) -> Tensor:
        found = []
        for share in shares[1:-1]:
            taken = rank < (share * counts).round()[:, None]
            answered = ask_all(ask, rows, taken if first else ~taken)
            found.append(answered.gather(1, place))
        ends = (empty, whole) if first else (whole, empty)
        return torch.cat([ends[0], *found, ends[1]], 1)

    rank = _ranks(values.double().masked_fill(~there, -torch.inf))
    anyhow = []
    for turn in range(DRAWS):
        places = np.arange(len(values))[:, None], np.arange(values.shape[1])
        chance = torch.from_numpy((draw(seed, "any order", turn, *places) >> np.uint64(12)).astype(np.float64))
        anyhow.append(kept(_ranks(chance.masked_fill(~there, -torch.inf)), first=False))
    deleted = torch.stack(anyhow).mean(0)
    return Curves(shares, kept(rank, first=False), kept(rank, first=True), deleted, deleted.flip(1))


def together(parts: Sequence[Curves]) -> Curves:
    """Return the curves of several groups of examples as one."""
    joined = (torch.cat(columns) for columns in zip(*(one[1:] for one in parts), strict=True))
    return Curves(parts[0].shares, *joined)


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def area(curve: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Return the area (N) under curves (N, places), 0 to 1."""
    return torch.trapezoid(curve, torch.tensor(shares, dtype=curve.dtype), dim=1)


def faithfulness(found: Curves) -> dict[str, Any]:
    """Return areas under the curves beside those of random orders, and what order gains, paired by example, as JSON."""
    told: dict[str, Any] = {"examples": len(found.deleted), "shares": list(found.shares)}
    for name, own, anyhow, sign in (
        ("deletion", found.deleted, found.deleted_anyhow, -1),
        ("insertion", found.inserted, found.inserted_anyhow, 1),
    ):
        mine, chance = area(own, found.shares), area(anyhow, found.shares)
        gain = over_seeds((sign * (mine - chance)).tolist())
        told[name] = {
            "area": float(mine.mean()),
            "random": float(chance.mean()),
            "ratio": float(mine.mean() / chance.mean().clamp(min=1e-12)),
            "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high},
            "curve": own.mean(0).tolist(),
            "random_curve": anyhow.mean(0).tolist(),
        }
    return told


def helps(told: dict[str, Any], way: str) -> bool:
    """Return whether the order of attribution is surely better than a random one, by enough to matter."""
    found = told[way]
    low, chance = found["gain"]["low"], found["random"]
    room = chance if way == "deletion" else 1 - chance
    return low is not None and low > 0 and found["gain"]["mean"] > BETTER * room


def rank_correlation(one: Tensor, other: Tensor, counts: Tensor | None = None) -> float | None:
    """Return the mean of Spearman's correlations of rows (N, parts); None where no row tells parts apart.

    ``counts`` (N) says how many parts of each row count.
    """
    from scipy.stats import rankdata

    found = []
    for row in range(len(one)):
        end = one.shape[1] if counts is None else int(counts[row])
        ranks = [rankdata(side[row, :end].double().numpy()) for side in (one, other)]
        if end > 2 and all(np.ptp(rank) > 0 for rank in ranks):
            found.append(float(np.corrcoef(*ranks)[0, 1]))
    return float(np.mean(found)) if found else None


def randomisation(
    own: Tensor, twin: Tensor, counts: Tensor | None = None, contrast: Tensor | None = None
) -> dict[str, Any]:
    """Return how alike attributions (N, parts) are to those of random weights: rank correlations, as JSON.

    ``size`` of their absolute values, ``signed`` of the values themselves. With ``contrast`` (N, parts), how far each
    part lies from the baseline, ``beyond`` is the partial correlation of the sizes: without what both owe to it.
    Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292): what does not change with the weights cannot tell of them.
    """
    size = rank_correlation(own.abs(), twin.abs(), counts)
    told = {"examples": len(twin), "size": size, "signed": rank_correlation(own, twin, counts), "most": MOST}
    if contrast is None or size is None:
        return told
    mine, theirs = (rank_correlation(one.abs(), contrast, counts) for one in (own, twin))
    told["contrast"] = mine
    if mine is not None and theirs is not None and max(abs(mine), abs(theirs)) < 1:
        told["beyond"] = (size - mine * theirs) / math.sqrt((1 - mine**2) * (1 - theirs**2))
    return told
