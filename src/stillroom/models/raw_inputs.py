"""Raw inputs of a model, held to the dtype and range that its bundle names: other numbers would give other answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import DataError, say

BYTES = 255


def held_to(rows: Tensor, wanted: Mapping[str, Any], what: str, *, gaps: bool = False) -> Tensor:
    """Return ``rows`` as the model takes them, whose bundle names ``wanted`` (``dtype``): values stay what they are.

    Whole numbers become uint8 where they fit. Floats for a uint8 model must lie between 0 and 255, as pixels do, and
    not all between 0 and 1. ``gaps``: NaN is a missing value. ``what`` names the rows in an error. Inputs that ask for
    gradients, and those of a graph that is being traced, are not looked at.

    Raises:
        DataError: NaN, infinity, or numbers that this dtype does not hold.
    """
    kind = getattr(torch, str(wanted.get("dtype")), None)
    if not isinstance(kind, torch.dtype) or not rows.numel() or _unseen(rows):
        return rows
    if rows.dtype == kind and not kind.is_floating_point:
        return rows
    if rows.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which PyTorch hardly computes with
        rows = rows.to(torch.int64)
    if rows.is_floating_point():
        wrong = torch.isinf(rows) if gaps else ~torch.isfinite(rows)
        if bool(wrong.any()):
            row = int(wrong.reshape(len(rows), -1).any(dim=1).nonzero()[0])
            raise DataError(say(f"{what} hold NaN or infinity", f"row {row + 1}", "finite numbers", "Mend this row."))
    if kind == torch.uint8:
        return _as_bytes(rows, what)
    if kind.is_floating_point:
        if rows.dtype == torch.uint8 and rows.ndim == 4:
            do = "Bring them to floats as it was done for the training data."
            raise DataError(
                say(f"{what} are not what the model takes", "uint8 pixels", f"{wanted['dtype']} values", do)
            )
        return rows.to(kind)
    if rows.is_floating_point() and bool((rows != rows.round()).any()):
        do = "Give the numbers that the model was trained on."
        raise DataError(say(f"{what} hold fractions", f"{_range(rows)}", f"whole numbers ({wanted['dtype']})", do))
    return rows.to(kind)


def _unseen(rows: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return bool(traced or rows.is_meta or rows.requires_grad)


def _as_bytes(rows: Tensor, what: str) -> Tensor:
    low, high = float(rows.min()), float(rows.max())
    allowed = "uint8 from 0 to 255"
    if low < 0 or high > BYTES:
        do = "Give the pixels as they were before they were normalised."
        raise DataError(say(f"{what} are not what the model takes", _range(rows), allowed, do))
    if (rows.is_floating_point() or rows.dtype == torch.bool) and high <= 1 and high > 0:
        do = "Multiply them by 255 and save them as uint8: (x * 255).round().astype('uint8')."
        raise DataError(say(f"{what} are not what the model takes", _range(rows), allowed, do))
    return rows if rows.is_floating_point() else rows.to(torch.uint8)


def _range(rows: Tensor) -> str:
    return f"{str(rows.dtype).removeprefix('torch.')} from {float(rows.min()):g} to {float(rows.max()):g}"
