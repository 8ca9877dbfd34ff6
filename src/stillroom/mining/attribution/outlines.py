"""Whether attributions show the model: what of them the weights bring, and what the outlines of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.mining.attribution.faithful import MOST, randomisation, rank_correlation
from stillroom.mining.attribution.findings import correlations
from stillroom.randomness import uniform

NEAR = 0.1  # correlations that differ by less are told as much the same


class Map(NamedTuple):
    """Attributions (N, parts), and how steeply the answer changes with each part (N, parts), not negative."""

    values: Tensor
    steep: Tensor


def origin(own: Map, twins: Sequence[Map], far: Tensor, seed: int) -> dict[str, Any]:
    """Return how alike attributions are to those of networks with random weights, as JSON; means over them.

    What a part adds is how ``far`` (N, parts; not negative) it lies from what stands in for it, times how steeply the
    answer changes on the way. The first is the same for any weights, so that sizes are alike whatever a network has
    learnt: ``blank`` is how alike two maps of noise are that share nothing else. ``steep`` is the rank correlation of
    the second, over parts that differ at all; the others are those of
    :func:`stillroom.mining.attribution.faithful.randomisation`. The test is that of Adebayo et al. 2018
    (https://arxiv.org/abs/1810.03292), who compare whole maps; that multiplication with the input carries them was
    seen by them too, and by Sundararajan and Taly 2018 (https://arxiv.org/abs/1806.04205), who compare with signs.
    """
    rows = len(twins[0].values)
    values, steep, far = own.values[:rows].double(), own.steep[:rows], far[:rows].double()
    told = [randomisation(values, twin.values.double(), contrast=far) for twin in twins]
    found: dict[str, Any] = {"examples": rows, "networks": len(twins), "most": MOST}
    found |= {name: _mean([one.get(name) for one in told]) for name in ("size", "signed", "contrast", "beyond")}
    order = (far <= 0).long().argsort(dim=1, stable=True)  # parts that differ come first
    counts = (far > 0).sum(1)
    alike = [rank_correlation(steep.gather(1, order), twin.steep.gather(1, order), counts) for twin in twins]
    blank = []
    for turn in range(len(twins)):
        one, other = (_noise(far, seed, turn, side) for side in range(2))
        blank.append(rank_correlation(one, other))
    return found | {"steep": _mean(alike), "steep_of_each": alike, "blank": _mean(blank)}


def _noise(far: Tensor, seed: int, turn: int, side: int) -> Tensor:
    places = np.arange(len(far))[:, None], np.arange(far.shape[1])
    one, other = (uniform(seed, "blank", 4 * turn + 2 * side + draw, *places) for draw in range(2))
    size = np.sqrt(-2 * np.log1p(-one)) * np.abs(np.cos(2 * np.pi * other))  # of a normal number
    return far * torch.from_numpy(size)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def outlines(found: dict[str, Any], what: str, part: str, whole: str) -> Finding:
    """Say whether attributions would look the same if the weights were random, and whose their outlines are."""
    steep, size, signed, blank = (found[name] for name in ("steep", "size", "signed", "blank"))
    title = f"Whether {what} show the model"
    control = f"{found['networks']} networks of the same architecture with random weights, asked about the same "
    control += f"{found['examples']} {whole}s and classes; noise with the same outlines."
    if steep is None or size is None or signed is None or blank is None:
        return Finding(title, f"With so few {part}s it cannot be told whether {what} show the model.", None, control)
    text = f"{what.capitalize()} are the product of how far each {part} lies from those of training {whole}s, which "
    text += f"depends on the {whole}, and of how steeply the answer changes with it, which depends on the weights. "
    text += f"The steepness has a rank correlation of {steep:.2f} with that of random weights"
    if steep <= MOST:
        text += f" ({MOST} at most is asked): it changes with the weights, so {what} show the model."
    else:
        text += f", more than the {MOST} that is asked: {what} show {whole} and architecture as much as what was"
        text += " learnt. Do not rely on them."
    text += f" The sizes of the products correlate by {size:.2f}"
    if size <= MOST:
        text += ": they change too."
    elif size <= blank + NEAR:
        text += f", and so does noise with the same outlines ({blank:.2f}): the outlines are the {whole}'s own."
        text += " Read what is strong and weak within them, and the signs" if abs(signed) <= MOST else ""
        text += f", which have nothing in common ({signed:.2f})." if abs(signed) <= MOST else ""
    else:
        text += f", noise with the same outlines by {blank:.2f}: the architecture has a share in them too."
    return Finding(title, text, steep, control, _figure(found))


def _figure(found: dict[str, Any]) -> dict[str, Any]:
    names = {"steep": "steepness", "size": "whole sizes", "blank": "noise with the same outlines"}
    names["signed"] = "with signs"
    shown = {told: found[name] for name, told in names.items() if found.get(name) is not None}
    return correlations([{"name": told, "mean": value} for told, value in shown.items()])
