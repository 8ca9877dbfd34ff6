"""Sources made of other sources: the same images with another question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.data.table import open_source, options_of
from stillroom.data.views import Views
from stillroom.errors import DataError, say
from stillroom.randomness import integers

TURNS = ("upright", "a quarter left", "upside down", "a quarter right")


def rotations(
    *,
    of: str = "fashion-mnist-sample",
    path: str | Path | None = None,
    only: Sequence[int] | None = None,
    train: int | None = None,
    seed: int = 0,
    views: int = 1,
) -> ArraySource:
    """Return the images of another source, each turned by 0, 90, 180 or 270 degrees; the question is by how much.

    A question that needs no labels and that pixels answer badly (Gidaris et al. 2018,
    https://arxiv.org/abs/1803.07728). ``of``, ``path`` and ``only`` say whose images; the turn of each is drawn from
    ``seed`` and its number. Splits stay as they are; there are no views but the plain one.

    Raises:
        DataError: the other source cannot be opened, its images are not square, or an option does not fit.
    """
    if views != 1:
        raise DataError(say("Turned images have no other views", f"views={views}", "1"))
    allowed = options_of(of)
    given = {"path": path, "only": only, "train": train, "seed": seed}
    base = open_source(of, **{name: value for name, value in given.items() if value is not None and name in allowed})
    if not isinstance(base, ArraySource) or base.inputs.ndim != 4 or base.inputs.shape[2] != base.inputs.shape[3]:
        raise DataError(say(f"The examples of '{of}' cannot be turned", "no square images", "square images"))
    turns = torch.from_numpy(integers(4, seed, "rotations", torch.arange(len(base)).numpy()))
    inputs = base.inputs.clone()
    for turn in (1, 2, 3):
        inputs[turns == turn] = torch.rot90(base.inputs[turns == turn], turn, (2, 3))
    if base.labels is not None:  # examples that no class was asked for stay out
        turns = torch.where(base.labels == UNLABELLED, UNLABELLED, turns)
    name = f"rotations-of-{base.name}"
    return ArraySource(inputs, turns, classes=TURNS, splits=base.splits, views=Views(1, 0, False, seed), name=name)
