"""Integrated gradients: what each number of an input adds to a score, on the way from a baseline to the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.contracts import HasSteps
from stillroom.mining.subject import Subject

STEPS = 32
BATCH = 512  # points on the way that are asked about at once

Score = Callable[[Tensor, Tensor], Tensor]
"""``(points (M, ...), rows (M)) -> (M)``: a number of each point, which lies on the way to example ``rows``."""


class Embedded(NamedTuple):
    """What the tokens of texts add, (N, T); their ``mask`` and ``spans``; scores at both ends."""

    values: Tensor
    mask: Tensor
    spans: Tensor
    ends: Tensor


def centred(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logits (B) of ``classes`` less the mean of all: what all share does not change an answer."""
    return logits.gather(1, classes[:, None])[:, 0] - logits.mean(1)


def integrated(
    score: Score, inputs: Tensor, baseline: Tensor, *, steps: int = STEPS, batch: int = BATCH
) -> tuple[Tensor, Tensor]:
    """Return integrated gradients of ``score`` along straight lines, shaped like ``inputs`` (N, ...), and its two ends.

    (x - x') times the mean of the gradient at ``steps`` midpoints between ``baseline`` x' (broadcast to the inputs) and
    x. The second is (N, 2): the score at the baseline and at the input, whose difference the values of an example sum
    up to but for the error of the rule. Sundararajan, Taly and Yan 2017 (https://arxiv.org/abs/1703.01365), who use the
    right ends of the steps; midpoints err by less.
    """
    start = baseline.expand_as(inputs)
    span = inputs - start
    places = (torch.arange(steps, dtype=inputs.dtype) + 0.5) / steps
    values, ends = [], []
    for rows in torch.arange(len(inputs)).split(max(1, batch // steps)):
        of = rows.repeat_interleave(steps)
        at = places.repeat(len(rows)).view(-1, *(1,) * (inputs.dim() - 1))
        points = (start[of] + at * span[of]).requires_grad_()
        with torch.enable_grad():
            total = score(points, of).sum()
        (slope,) = torch.autograd.grad(total, points)
        values.append(span[rows] * slope.unflatten(0, (len(rows), steps)).mean(1))
        with torch.no_grad():
            ends.append(torch.stack([score(start[rows], rows), score(inputs[rows], rows)], 1))
    return torch.cat(values), torch.cat(ends)


def error(values: Tensor, ends: Tensor) -> float:
    """Return by how much attributions (N, ...) miss the difference they should sum up to, as a share of it (means)."""
    wanted = (ends[:, 1] - ends[:, 0]).double()
    missed = (values.double().flatten(1).sum(1) - wanted).abs().mean()
    return float(missed / wanted.abs().mean().clamp(min=1e-12))


def first_embedding(module: nn.Module) -> nn.Embedding | None:
    """Return the first ``nn.Embedding`` of a model, that of its tokens by custom; None without one."""
    return next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)


def embedded(subject: Subject, texts: Tensor, classes: Tensor, *, steps: int = STEPS) -> Embedded | None:
    """Return what each token of ``texts`` (uint8, N x bytes) adds to the score of ``classes`` (N), all in one batch.

    Integrated gradients at what leaves the model's first embedding, summed over its width; the baseline is the zero
    vector for each token that stands for text, while others ([CLS]) stay as they are. None where there is no such
    embedding, where it is not asked exactly once, or where ``encode`` does not say what its tokens stand for.
    """
    module = first_embedding(subject.opened)
    if module is None or not isinstance(subject.encode, HasSteps):
        return None
    mask, spans = subject.encode.steps(texts)
    if spans is None:
        return None
    shown: list[Tensor] = []
    with module.register_forward_hook(lambda part, given, output: shown.append(output.detach())), torch.no_grad():
        subject.forward(texts)
    if len(shown) != 1 or shown[0].shape[:2] != mask.shape:
        return None
    mask = mask & (spans[..., 1] > spans[..., 0])

    def score(points: Tensor, rows: Tensor) -> Tensor:
        with module.register_forward_hook(lambda part, given, output: points):
            return centred(subject.forward(texts[rows]), classes[rows])

    start = shown[0] * ~mask[..., None]
    values, ends = integrated(score, shown[0], start, steps=steps, batch=len(texts) * steps)
    return Embedded(values.sum(2) * mask, mask, spans, ends)
