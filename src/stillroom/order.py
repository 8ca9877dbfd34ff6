"""Which rows make up which batch: a pure function of (seed, step), so that nothing of it is ever saved.

Texts of about equal length go together (buckets): a batch is padded to its longest row, and padding costs as much as
text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import Source
from stillroom.errors import DataError
from stillroom.randomness import integers, permutation

Rows = NDArray[np.int64]
POOL = 50  # batches whose rows are sorted by length together: enough to be alike, few enough to stay random


def lengths_of(data: Source) -> Tensor | None:
    """Return the length of every example (int64, by number) where the source tells it, as texts do; else None."""
    lengths: Callable[[Tensor], Tensor] | None = getattr(data, "lengths", None)
    return lengths(torch.arange(len(data))) if callable(lengths) else None


@dataclass(frozen=True)
class Part:
    """A pool of examples and how many of them go into each batch."""

    name: str
    examples: Tensor
    count: int


class Order:
    """The batches of a training: ``order.ids(step)`` (B, 2) int64, the same on every machine.

    Each part is passed through in a new order each epoch; a batch may take the end of one epoch and the start of
    the next, so that all batches are full. With ``views`` above 1 each passing of an example draws one of its views.
    ``lengths`` (by example number) puts rows of about equal length into the same batch; each row still comes once an
    epoch, and batches of all lengths take turns.

    Raises:
        DataError: a part is empty.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, views: int = 1, lengths: Tensor | None = None) -> None:
        for part in parts:
            if len(part.examples) == 0:
                raise DataError(
                    f"There is nothing to train on: got no {part.name} rows. Allowed: at least one. "
                    "Check the splits and how many labels the student may see."
                )
        self.parts, self.seed, self.views = tuple(parts), seed, views
        self.lengths = None if lengths is None else lengths.numpy()
        self._epochs: dict[str, tuple[int, Tensor]] = {}

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return sum(part.count for part in self.parts)

    def ids(self, step: int) -> Tensor:
        """Return the ids of the batch at ``step`` (from 0): (example, view) a row."""
        pieces = []
        for part in self.parts:
            start, total = step * part.count, len(part.examples)
            end = start + part.count
            while start < end:
                epoch, offset = divmod(start, total)
                taken = min(end - start, total - offset)
                pieces.append(self._epoch(part, epoch)[offset : offset + taken])
                start += taken
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _epoch(self, part: Part, epoch: int) -> Tensor:
        """All ids of one passing of a part, in its order; the last one asked for is kept."""
        kept = self._epochs.get(part.name)
        if kept is not None and kept[0] == epoch:
            return kept[1]
        examples = part.examples.numpy()[permutation(len(part.examples), self.seed, part.name, epoch)]
        if self.lengths is not None:
            examples = self._bucketed(part, epoch, examples, self.lengths[examples])
        views = (
            integers(self.views, self.seed, "view", examples, epoch)
            if self.views > 1
            else np.zeros(len(examples), dtype=np.int64)
        )
        ids = torch.from_numpy(np.stack([examples, views], axis=1))
        self._epochs[part.name] = (epoch, ids)
        return ids

    def _bucketed(self, part: Part, epoch: int, examples: Rows, lengths: Rows) -> Rows:
        """Sort pools of rows by length, cut them into batches, and shuffle the batches of each pool."""
        begun = -epoch * len(examples) % part.count  # these fill the batch that the epoch before began
        pieces = [examples[:begun]]
        size = POOL * part.count
        for number, start in enumerate(range(begun, len(examples), size)):
            chosen = slice(start, start + size)
            rows = examples[chosen][np.argsort(lengths[chosen], kind="stable")]
            full = len(rows) // part.count
            batches = [rows[place * part.count : (place + 1) * part.count] for place in range(full)]
            turns = permutation(full, self.seed, part.name, epoch, "bucket", number)
            pieces += [batches[turn] for turn in turns] + [rows[full * part.count :]]
        return np.concatenate(pieces)
