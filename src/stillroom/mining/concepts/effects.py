"""What the answers lose when a direction is taken out of the features, beside other directions of the same length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.mining.concepts.controls import drawn
from stillroom.mining.concepts.parts import Parts
from stillroom.mining.concepts.sparse import Sparse

DRAWS = 99  # draws: the least p-value is 1 %
CHANGED = 20  # of them, for which answers are counted
LEAST = 5  # examples of a class, below which nothing is said of it
AT_ONCE = 200_000  # rows that go through the last layer


@torch.no_grad()
def effects(
    found: Sparse | Parts, layer: nn.Module, fitted: Tensor, held: Tensor, told: Tensor, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return for each class, by its number, the concept it hangs on most and what it loses without it.

    A concept is taken away from the rows that the model answers with the class, by subtracting from each what its unit
    adds to it; the last layer is run on the rest. What falls is the logit less the mean of all logits, since what all
    share changes no answer. Which concept is a class's own is chosen on ``held`` (N, D), validation rows, what it does
    is measured on ``told``, test rows; ``fitted`` are training rows, by which directions are drawn.

    Three questions are told apart, always with the same lengths taken from the same rows:

    * ``random``: does the direction matter more than *any*? Directions drawn evenly do little in a wide layer whatever
      the model has learnt (about 1 / sqrt(D) of the most that can be done), so three times that is soon reached: six
      untrained networks came to 1.1 to 3.4 times on digits (2.3 in the middle of 26 classes, 1 with p <= 0.05).
    * ``such``: does it matter more than *one in which features vary*? What a model has learnt to tell apart is where
      its features vary most, so that such a direction does much, part or no part. It is the fairer yardstick.
    * ``p``: does it do more than the *best of as many* such directions, chosen on the same validation rows? The class's
      own concept was chosen among many, and this alone gives chance the same choice. It is what to believe: the share
      of 99 sets of directions, the set itself counted in, whose best does as much. As each class is asked, of K classes
      K / 20 are below 0.05 by chance.

    Directions at right angles to the concept would be a fourth; in a wide layer they are the first over again.
    """
    codes = {"held": found.codes(held), "told": found.codes(told)}
    answers = {"held": layer(held).argmax(1), "told": layer(told).argmax(1)}
    ways = {kind: drawn(fitted, DRAWS, like=kind == "such", seed=seed) for kind in ("random", "such")}
    units = len(found.directions)
    sets = drawn(fitted, DRAWS * units, like=True, seed=seed + 1)
    entries = []
    for label in range(int(layer(told[:1]).shape[1])):
        mine = {name: answers[name] == label for name in answers}
        if min(int(mine[name].sum()) for name in mine) < LEAST:
            continue
        rows, other = told[mine["told"]], held[mine["held"]]
        strength, before = codes["told"][mine["told"]], codes["held"][mine["held"]]
        each = [_lowered(layer, other, before[:, [unit]], found.directions[[unit]], label) for unit in range(units)]
        unit = int(torch.cat(each).argmax())
        size, same = strength[:, [unit]], before[:, [unit]]
        effect = float(_lowered(layer, rows, size, found.directions[[unit]], label))
        chance = {kind: float(_lowered(layer, rows, size, way, label).abs().mean()) for kind, way in ways.items()}
        best = _lowered(layer, other, same, sets, label).reshape(DRAWS, units).argmax(1)
        picked = sets.reshape(DRAWS, units, -1)[torch.arange(DRAWS), best]
        rivals = _lowered(layer, rows, size, picked, label)
        entries.append(
            {
                "class": label,
                "unit": unit,
                "effect": effect,
                **chance,
                "best_of_such": float(rivals.mean()),
                "p": (1 + int((rivals >= effect).sum())) / (1 + DRAWS),
                "examples": len(rows),
                "using": float((size > 0).double().mean()),
                "changed": _changed(layer, rows, size, found.directions[[unit]]),
                **{f"changed_{kind}": _changed(layer, rows, size, way[:CHANGED]) for kind, way in ways.items()},
            }
        )
    return entries


def _lowered(layer: nn.Module, rows: Tensor, sizes: Tensor, ways: Tensor, label: int) -> Tensor:
    """How much the logit of ``label``, less the mean of all, falls without ``sizes`` (N, 1) of each of ``ways`` (M)."""
    if isinstance(layer, nn.Linear):  # the mean of what it gives is what it gives of the mean
        rows, sizes = rows.mean(0, keepdim=True), sizes.mean(0, keepdim=True)
    whole = _centred(layer(rows))[:, label]
    parts = []
    for some in ways.split(max(1, AT_ONCE // len(rows))):
        rest = rows - sizes * some[:, None]
        after = _centred(layer(rest.flatten(0, 1)))[:, label].reshape(len(some), len(rows))
        parts.append((whole - after).mean(1))
    return torch.cat(parts)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _changed(layer: nn.Module, rows: Tensor, sizes: Tensor, ways: Tensor) -> float:
    """The share of answers that are others without ``sizes`` of a direction, on average over ``ways`` (M, D)."""
    before = layer(rows).argmax(1)
    shares = [float((layer(rows - sizes * way).argmax(1) != before).double().mean()) for way in ways]
    return sum(shares) / len(shares)
