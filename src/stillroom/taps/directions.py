"""Directions that belong to an example, and derivatives that are found by going along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.randomness import draw

STEP, CENTRAL, FINE = 3e-4, 1e-3, 1e-6
"""Steps relative to the example's length: of a difference to one side, where in float32 what is rounded off and what is
cut off of the Taylor series are alike on networks of images, both below a hundredth where these are smooth; of one to
both sides, which cuts off less; and of either in float64, which rounds off nothing to speak of."""


def directions(ids: Tensor, shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Return ``count`` directions of length 1 for each row, all of whose numbers are plus or minus one and the same.

    They are a pure function of (seed, example, view): a store and a student see the same. The mean of their outer
    product with themselves is the identity over the number of coordinates, as that of any random unit vector.

    Shapes: ``ids`` (B, 2) -> (B, count, *shape), float32.
    """
    size = math.prod(shape)
    rows = ids.cpu().numpy()[:, :, None, None]
    number, word = np.arange(count)[:, None], np.arange(-(-size // 64))
    words = draw(seed, "direction", rows[:, 0], rows[:, 1], number, word)
    bits = np.unpackbits(words.view(np.uint8), axis=-1)[..., :size]
    signs = torch.from_numpy(bits).to(ids.device).float().mul_(2).sub_(1) / math.sqrt(max(1, size))
    return signs.reshape(len(ids), count, *shape)


def usual(values: Tensor, answers: Tensor, *, central: bool = False) -> float:
    """Return the step that is taken where none is named: by the precision of what goes in and of what comes out."""
    exact = values.dtype == answers.dtype == torch.float64
    return FINE if exact else CENTRAL if central else STEP


def steps(values: Tensor, step: float, *, relative: bool) -> Tensor:
    """Return how far to go along a direction: (B, 1, ...), of as many axes as ``values``.

    ``relative`` to the length of the example, of which an example of zeros has 1.
    """
    if not relative:
        return values.new_full((len(values), *[1] * (values.dim() - 1)), step)
    lengths = torch.linalg.vector_norm(values.detach().flatten(1), dim=1)
    lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths)) * step
    return lengths.reshape(-1, *[1] * (values.dim() - 1))


def differences(clean: Tensor, values: Tensor, ways: Tensor, far: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (f(x + h d) - f(x)) / h for each direction d: (B, ways, classes); ``answer`` gives f, ``clean`` is f(x).

    The clean pass is there in any case, so each direction costs one pass.
    """
    moved = [answer(values + far * ways[:, number]) for number in range(ways.shape[1])]
    return torch.stack([(there - clean) / far.flatten(1)[:, :1] for there in moved], 1)


def by_classes(logits: Tensor, values: Tensor, ways: Tensor, *, keep: bool) -> Tensor | None:
    """Return the derivatives along ``ways`` from the whole Jacobian, one backward pass a class: (B, ways, classes).

    None where no class has a gradient by ``values``.
    """
    rows = []
    for number in range(logits.shape[1]):
        one = logits[:, number].sum()
        rows.append(torch.autograd.grad(one, values, create_graph=keep, retain_graph=True, allow_unused=True)[0])
    if all(row is None for row in rows):
        return None
    known = [torch.zeros_like(values) if row is None else row for row in rows]
    return torch.stack([torch.einsum("bd,bwd->bw", row.flatten(1), ways.flatten(2)) for row in known], 2)


def by_coordinates(values: Tensor, step: float, number: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of ``number`` (one a row) by central differences, in two passes for each coordinate."""
    flat, far = values.flatten(1), steps(values, step, relative=True).flatten(1)
    found = torch.zeros_like(flat)
    for place in range(flat.shape[1]):
        move = torch.zeros_like(flat)
        move[:, place : place + 1] = far
        there, back = (number((flat + sign * move).view_as(values)) for sign in (1, -1))
        found[:, place] = (there - back) / (2 * far[:, 0])
    return found.view_as(values)


__all__ = ["by_classes", "by_coordinates", "differences", "directions", "steps", "usual"]
