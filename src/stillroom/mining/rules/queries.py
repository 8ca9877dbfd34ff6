"""Examples nobody collected, for the model to answer: rows mixed and shaken, pictures with noise, words left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stillroom.mining.rules.reading import unit_of
from stillroom.mining.subject import Subject
from stillroom.models import vocabulary
from stillroom.randomness import forked, uniform
from stillroom.utf8 import pack_bytes, unpack_bytes

NOISE = 0.1  # of a column's deviation
IMAGE_NOISE = 0.15  # of the range of pixels
FEW = 10  # different values from which on a column of numbers is one that can be mixed
REDRAWN = 0.1  # of cells with few values: drawn anew from those seen
MOST_LEFT_OUT = 0.5  # of a text's words

Sample = Callable[[Tensor, Tensor, int], Tensor]
"""Takes rows (B, ...), as many others, and a number that makes each call its own; returns queries (B, ...)."""


def sampler(subject: Subject, inputs: Tensor) -> Sample:
    """Return what makes queries like the training rows ``inputs``; the same call gives the same queries."""
    if subject.kind == "text":
        return _left_out(subject)
    return _noised(subject, inputs) if subject.kind == "image" else _mixed(subject, inputs)


def _mixed(subject: Subject, inputs: Tensor) -> Sample:
    """Mix two rows and shake the numbers; cells of few values, and categories, stay among those seen."""
    flat = inputs.reshape(len(inputs), -1).double()
    kinds = list(getattr(subject.data, "kinds", ())) or ["numeric"] * flat.shape[1]
    seen = [torch.unique(column) for column in flat.T]
    few = torch.tensor([len(one) <= FEW or kind == "categorical" for one, kind in zip(seen, kinds, strict=True)])
    whole = (flat == flat.round()).all(0)
    low, high, spread = flat.amin(0), flat.amax(0), flat.std(0)

    def sample(rows: Tensor, others: Tensor, number: int) -> Tensor:
        first, second = (one.reshape(len(rows), -1).double() for one in (rows, others))
        with forked(subject.seed, "queries", number):
            share = torch.rand(len(rows), 1, dtype=torch.float64)
            noise = NOISE * spread * torch.randn(first.shape, dtype=torch.float64)
            coins, again = (torch.rand(first.shape, dtype=torch.float64) for _ in range(2))
            which = torch.rand(first.shape, dtype=torch.float64)
        mixed = share * first + (1 - share) * second + noise
        mixed = torch.where(whole, mixed.round(), mixed).clamp(low, high)
        picked = torch.where(coins < share, first, second)
        for column in few.nonzero().flatten().tolist():
            known = seen[column]
            anew = known[(which[:, column] * len(known)).long()]
            mixed[:, column] = torch.where(again[:, column] < REDRAWN, anew, picked[:, column])
        return mixed.to(inputs.dtype).reshape(rows.shape)

    return sample


def _noised(subject: Subject, inputs: Tensor) -> Sample:
    """Lay noise over each picture; mixing two, measured on digits, made trees worse than no queries at all."""
    bytes_ = inputs.dtype == torch.uint8
    low, high = (0.0, 255.0) if bytes_ else (float(inputs.min()), float(inputs.max()))

    def sample(rows: Tensor, others: Tensor, number: int) -> Tensor:
        with forked(subject.seed, "queries", number):
            noise = IMAGE_NOISE * (high - low) * torch.randn(rows.shape)
        noised = (rows.float() + noise).clamp(low, high)
        return noised.round().to(torch.uint8) if bytes_ else noised.to(inputs.dtype)

    return sample


def _left_out(subject: Subject) -> Sample:
    """Leave words (characters) out of each text, from none to a half of them."""
    unit = unit_of(subject.encode)

    def sample(rows: Tensor, others: Tensor, number: int) -> Tensor:
        changed = []
        for place, text in enumerate(unpack_bytes(rows)):
            raw = text.decode("utf-8", "replace")
            pieces = vocabulary.pieces(raw, unit or vocabulary.unit_for([raw]))
            share = MOST_LEFT_OUT * float(uniform(subject.seed, "share", number, place))
            gone = uniform(subject.seed, "gone", number, place, np.arange(len(pieces))) < share
            data = raw.encode("utf-8", "replace")
            left, end = [], 0
            for piece, out in zip(pieces, gone.tolist(), strict=True):
                left.append(data[end : piece.first])
                if not out:
                    left.append(data[piece.first : piece.end])
                end = piece.end
            changed.append(b"".join([*left, data[end:]]))
        return pack_bytes(changed)

    return sample
