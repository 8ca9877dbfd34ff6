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

PILOT, FIRST = 32, 4  # examples that are timed, after some by which all is loaded
BATCH = 250
SHARES = {"train": 0.35, "validation": 0.1, "test": 0.15}  # of the time, for reading
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


def read_all(subject: Subject, tap: str, budget: Budget, notes: list[str]) -> tuple[Rows, Rows, Rows]:
    """Return what the model shows at ``tap`` of training, validation and test examples, as many as time allows.

    Vectors are taken as they are, sequences averaged over their real steps. Maps of pictures are taken place by place,
    averaged down to at most 7 x 7 places. What enters the last layer as one vector was asked for all panels at once.

    Raises:
        TapError: there is no such tap, or none that is read.
        DataError: what is shown there is no numbers for each example.
    """
    if tap == "features" and "features" in subject.asked("train"):
        train, validation, test = (Rows(subject.features(split), subject.examples(split)) for split in SHARES)
        return train, validation, test
    first = subject.examples("train")[:PILOT]
    _shown(subject, tap, first[:FIRST])
    began = time.perf_counter()
    pilot = _shown(subject, tap, first)
    seconds = time.perf_counter() - began
    found = []
    for split, share in SHARES.items():
        examples = subject.examples(split)
        order = examples[torch.from_numpy(permutation(len(examples), subject.seed, "concepts", split).copy())]
        most = len(order) if pilot.places is None else min(PICTURES, len(order))
        allowed = budget.rows(most, len(first), seconds, share=share)
        if allowed < len(order):
            why = "to keep to the time" if allowed < most else "since each picture has many places"
            notes.append(f"{why}, {allowed:,} of {len(order):,} {split} examples were looked at")
        found.append(order[:allowed].sort().values)
    train, validation, test = (_shown(subject, tap, examples) for examples in found)
    return train, validation, test


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
