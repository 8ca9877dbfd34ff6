"""Which steps of a batch are real, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import Batch, HasSteps


@dataclass(frozen=True)
class Timing:
    """The lengths (B) of a batch's rows, the numbers of steps they may be counted in, and spans where there are any."""

    lengths: Tensor | None = None
    counted: tuple[int, ...] = ()
    spans: Tensor | None = None

    def of(self, steps: int) -> Tensor | None:
        """Return the lengths (B) of rows padded to ``steps``, or None where they are not known."""
        return self.lengths if steps in self.counted else None

    def mask(self, steps: int) -> Tensor | None:
        """Return which of ``steps`` are real (bool, B x steps), or None where that is not known."""
        lengths = self.of(steps)
        return None if lengths is None else torch.arange(steps, device=lengths.device) < lengths[:, None]


def timing(batch: Batch, taken: str | None, encode: Callable[..., Any] | None) -> Timing:
    """Say what is known of time in ``batch``: from the encode's own steps, else from the column ``lengths``.

    ``taken`` is the column that enters the encode. Lengths of a column count the steps of that column, or those of the
    longest row where a model cuts the rest off.
    """
    if taken is not None and taken in batch and isinstance(encode, HasSteps):
        mask, spans = encode.steps(batch[taken])
        return Timing(mask.sum(1), (mask.shape[1],), spans)
    lengths = batch.get("lengths")
    if lengths is None or lengths.dim() != 1 or not len(lengths):
        return Timing()
    longest = int(lengths.max())
    inputs = batch.get(taken) if taken is not None else None
    whole = (inputs.shape[1],) if inputs is not None and inputs.dim() > 1 and inputs.shape[1] >= longest else ()
    return Timing(lengths, (longest, *whole))
