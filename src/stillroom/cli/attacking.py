"""What the command evaluate --attack does: a model's accuracy on images that were moved against it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stillroom.errors import UserError, say

if TYPE_CHECKING:
    from stillroom.contracts import Source
    from stillroom.models.bundle import Deployed

STEPS, ROWS = 20, 1000


def size_of(text: str) -> float:
    """Read how far an attack may go, a share of the inputs' range: ``8/255`` or ``0.03``.

    Raises:
        UserError: it is not a number from 0 to 1.
    """
    above, _, below = text.partition("/")
    try:
        share = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        share = math.nan
    if not 0 <= share <= 1:
        allowed = "a share of the inputs' range, 0 to 1, such as 8/255 or 0.03"
        raise UserError(say("An attack cannot go so far", f"'{text}'", allowed))
    return share


def attacked(deployed: Deployed, source: Source, split: str, size: float, *, quiet: bool) -> dict[str, Any]:
    """Return the accuracy on the first thousand rows of a split, as they are and under PGD, and what it was."""
    from stillroom.attacks import PGD, under_attack
    from stillroom.progress import ticking

    low, high = _ends(deployed, source, split)
    with ticking(1, {"attack": "attack"}, quiet=quiet) as told:
        told("attack", 0, 0, "")
        plain, right = under_attack(
            deployed,
            source,
            PGD(size, steps=STEPS, low=low, high=high),
            split=split,
            limit=ROWS,
            progress=lambda done, of, _: told("attack", done, max(of, 2), "rows"),
        )
        told("attack", 1, 1, "")
    return {
        "attack": f"PGD, {STEPS} steps, up to {size:.4g} of the range {low:g} to {high:g}",
        "attacked": len(right),
        "plain": float(plain.float().mean()),
        "robust": float(right.float().mean()),
    }


def _ends(deployed: Deployed, source: Source, split: str) -> tuple[float, float]:
    """Return the least and the greatest value that an input may have: of bytes, or found in the split's floats."""
    import torch

    if not str(deployed.config["input"]["dtype"]).startswith("float"):
        return 0.0, 255.0
    examples = source.splits[split]
    inputs = source.batch(torch.stack([examples, torch.zeros_like(examples)], 1))["inputs"]
    low, high = (float(end) for end in torch.aminmax(inputs))
    return low, high if low < high else low + 1.0
