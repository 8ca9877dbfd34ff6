"""Expected gradients: what each number of an input adds to a score, on the ways from training examples to the input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillroom.mining.attribution.gradients import BATCH, Score

STEPS = 4  # points on each way
GOLDEN = (5**0.5 - 1) / 2  # its multiples lie evenly between 0 and 1, however many there are


class Expected(NamedTuple):
    """What inputs (N, ...) add, shaped like them, and what that is made of; two ends.

    ``slopes`` is the mean gradient on the ways, ``far`` the mean difference from the background: were the gradient the
    same everywhere, ``values`` were their product.
    """

    values: Tensor
    slopes: Tensor
    far: Tensor
    ends: Tensor


def expected(score: Score, inputs: Tensor, background: Tensor, *, steps: int = STEPS, batch: int = BATCH) -> Expected:
    """Return expected gradients of ``score`` at ``inputs`` (N, ...) against ``background`` (P, ...).

    The mean over the background of integrated gradients from each of its examples, at ``steps`` points of each way,
    shifted from way to way, so that many ways together see all of it.
    ``ends`` (N, 2) are the mean score of the background and the score of the input: the values of an example sum up to
    their difference but for the error of the rule. Erion et al. 2021 (https://arxiv.org/abs/1906.10670), who draw
    example and place of each point at random, as GradientShap of captum does; here every example of the background is
    met as often, at places spread evenly.
    """
    ways = len(background)
    shift = (GOLDEN * torch.arange(ways, dtype=inputs.dtype) + 0.5) % 1
    places = (torch.arange(steps) + shift[:, None]) / steps
    places = places.view(1, ways, steps, *(1,) * (inputs.dim() - 1))
    values, slopes, far, ends = [], [], [], []
    for rows in torch.arange(len(inputs)).split(max(1, batch // (ways * steps))):
        span = inputs[rows][:, None] - background
        points = (background[None, :, None] + places * span[:, :, None]).flatten(0, 2).requires_grad_()
        with torch.enable_grad():
            total = score(points, rows.repeat_interleave(ways * steps)).sum()
        (slope,) = torch.autograd.grad(total, points)
        on_way = slope.unflatten(0, (len(rows), ways, steps)).mean(2)
        values.append((span * on_way).mean(1))
        slopes.append(on_way.mean(1))
        far.append(span.mean(1))
        with torch.no_grad():
            before = score(background.repeat(len(rows), *(1,) * (inputs.dim() - 1)), rows.repeat_interleave(ways))
            ends.append(torch.stack([before.view(len(rows), ways).mean(1), score(inputs[rows], rows)], 1))
    return Expected(*(torch.cat(parts) for parts in (values, slopes, far, ends)))
