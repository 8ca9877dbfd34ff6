"""What a model shows at a tap, as rows: one for each example, or one for each place of a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.errors import DataError, say
from stillroom.evaluate import plain_ids
from stillroom.mining.cka import as_rows
from stillroom.mining.panel import Budget
from stillroom.mining.subject import Subject
from stillroom.randomness import permutation
from stillroom.taps import read

PILOT = 64  # examples that are timed
BATCH = 250
PICTURES, GRID = 400, 7  # pictures of which places are read, and into how many each side is cut at most


@dataclass(frozen=True)
class Rows:
    """``values`` (N, D), the number of each row's example (N), and its place (N, 2): middle, down and across, 0..1.

    ``places`` is None where a row is a whole example; ``side`` is how many places there are down and across.
    """

    values: Tensor
    examples: Tensor
    places: Tensor | None = None
    side: tuple[int, int] = (1, 1)

    def some(self, most: int, seed: int) -> Tensor:
        """Return the values of at most ``most`` rows (N, D), drawn without order."""
        order = permutation(len(self.values), seed, "concepts rows")[:most]
        return self.values[torch.from_numpy(order.copy())]


def rows_at(subject: Subject, tap: str, split: str, budget: Budget, share: float, notes: list[str]) -> Rows:
    """Return what the model shows of a split at ``tap``, of as many examples as fit into a share of what is left.

    Vectors are taken as they are, sequences averaged over their real steps. Maps of pictures are taken place by place,
    averaged down to at most 7 x 7 places.

    Raises:
        TapError: there is no such tap, or none that is read.
        DataError: what is shown there is no numbers for each example.
    """
    examples = subject.examples(split)
    order = examples[torch.from_numpy(permutation(len(examples), subject.seed, "concepts", split).copy())]
    began = time.perf_counter()
    pilot = _shown(subject, tap, order[:PILOT])
    most = len(order) if pilot.places is None else min(PICTURES, len(order))
    fit = budget.rows(most, min(PILOT, len(order)), time.perf_counter() - began, share=share)
    if fit < len(order):
        why = "to keep to the time" if fit < most else "since each picture has many places"
        notes.append(f"{why}, {fit:,} of {len(order):,} {split} examples were looked at")
    return _shown(subject, tap, order[:fit].sort().values)


def _shown(subject: Subject, tap: str, examples: Tensor) -> Rows:
    reader = read(subject.opened.eval(), [tap], subject.encode)
    parts, side = [], (0, 0)
    with torch.no_grad():
        for part in examples.split(BATCH):
            shown = reader(subject.data.batch(plain_ids(part)))
            if tap not in shown or not shown[tap].is_floating_point() or shown[tap].dim() < 2:
                raise DataError(say("Concepts are looked for in vectors, sequences or maps", f"'{tap}'", list(shown)))
            value = shown[tap].float()
            if subject.kind == "image" and value.dim() == 4 and value.shape[2] * value.shape[3] > 1:
                side = (min(GRID, value.shape[2]), min(GRID, value.shape[3]))
                value = torch.nn.functional.adaptive_avg_pool2d(value, side).permute(0, 2, 3, 1).flatten(0, 2)
            else:
                value = as_rows(value, shown.get(f"{tap}.mask"))
            parts.append(value)
    if side == (0, 0):
        return Rows(torch.cat(parts), examples)
    down, across = ((torch.arange(count) + 0.5) / count for count in side)
    places = torch.cartesian_prod(down, across).repeat(len(examples), 1)
    return Rows(torch.cat(parts), examples.repeat_interleave(side[0] * side[1]), places, side)
