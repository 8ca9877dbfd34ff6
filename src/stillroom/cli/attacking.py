"""What the command evaluate --attack does: a model's accuracy on images or rows that were moved against it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, UserError, say

if TYPE_CHECKING:
    from torch import Tensor

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
        raise UserError(say("This attack has no such size", f"'{text}'", allowed))
    return share


def attacked(deployed: Deployed, source: Source, split: str, size: float) -> dict[str, Any]:
    """Return the accuracy on the first thousand rows of a split, as they are and under PGD, and what it was."""
    from stillroom.attacks import PGD, under_attack
    from stillroom.progress import waiting

    low, high, range_ = _ends(deployed, source, split)
    with waiting("attacking") as told:
        plain, right = under_attack(
            deployed,
            source,
            PGD(size, steps=STEPS, low=low, high=high),
            split=split,
            limit=ROWS,
            progress=lambda done, of, _: told(done, of, "rows"),
        )
    return {
        "attack": f"PGD, {STEPS} steps, up to {size:.4g} of {range_}",
        "attacked": len(right),
        "plain": float(plain.float().mean()),
        "robust": float(right.float().mean()),
    }


def _ends(deployed: Deployed, source: Source, split: str) -> tuple[float | Tensor, float | Tensor, str]:
    """Return the least and the greatest value that an input may have, and how to call them.

    Of bytes they are known. In a split's floats they are found: of rows of numbers in each column, for columns have
    units of their own; a category is no number to be moved a little, and stays.

    Raises:
        DataError: no column holds numbers that differ.
    """
    import torch

    if not str(deployed.config["input"]["dtype"]).startswith("float"):
        return 0.0, 255.0, "the range 0 to 255"
    examples = source.splits[split]
    inputs = source.batch(torch.stack([examples, torch.zeros_like(examples)], 1))["inputs"]
    if inputs.dim() != 2:
        low, high = (float(end) for end in torch.aminmax(inputs))
        high = high if low < high else low + 1.0
        return low, high, f"the range {low:g} to {high:g}"
    least, most = torch.aminmax(inputs, dim=0)
    categories = getattr(source, "categories", None) or {}
    kept = [place for place, name in enumerate(getattr(source, "names", ())) if name in categories]
    most[kept] = least[kept]
    if not bool((least < most).any()):
        do = "From Python, stillroom.PGD takes low= and high=, a number for each column."
        given = f"{inputs.shape[1]} columns, {len(kept)} of categories"
        raise DataError(say("No column of this table can be attacked", given, "columns of numbers that differ", do))
    return least, most, f"each column's range in '{split}'" + (", categories as they are" if kept else "")
