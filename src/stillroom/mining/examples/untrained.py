"""Features that no label has touched: what a network could make of the inputs before it learnt anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.mining.subject import Subject
from stillroom.randomness import forked
from stillroom.utf8 import unpack

WIDTH, HASHED = 512, 1024  # of what is made of numbers, and of texts
SIDE = 28  # pixels, at most: larger pictures are brought down to it
PART = 500


def untrained(subject: Subject, examples: Tensor) -> Tensor:
    """Return features (N, D) of examples that nothing was learnt for: random projections, or hashed pieces of texts.

    A network that knows wrong labels by heart has features in which these look right. Here they cannot: nothing was
    learnt. Rahimi and Recht 2007 (https://papers.nips.cc/paper/3182) for what random features can do.
    """
    values = seen(subject, examples)
    if subject.kind == "text":
        return values
    values = (values - values.mean(0)) / values.std(0).clamp(min=1e-6)
    with forked(subject.seed, "untrained features"):
        ways, shift = torch.randn(values.shape[1], WIDTH), 0.5 * torch.rand(WIDTH)
    return torch.relu(values @ ways / values.shape[1] ** 0.5 + shift)


def seen(subject: Subject, examples: Tensor) -> Tensor:
    """Return numbers (N, D) of examples as they are read: pixels, columns, or hashed pieces of texts."""
    make = _texts if subject.kind == "text" else _numbers
    return torch.cat([make(subject, part) for part in examples.split(PART)])


def _numbers(subject: Subject, examples: Tensor) -> Tensor:
    """Pixels, or columns as the model takes them where these are numbers (categories then stand apart)."""
    raw = subject.inputs(examples)
    if raw.dim() == 4:
        height, width = raw.shape[2:]
        return F.adaptive_avg_pool2d(raw.float(), (min(SIDE, height), min(SIDE, width))).flatten(1)
    encoded = subject.encode(raw) if subject.encode is not None else raw
    values = encoded if isinstance(encoded, Tensor) and encoded.is_floating_point() else raw
    return values.detach().float().flatten(1)


def _texts(subject: Subject, examples: Tensor) -> Tensor:
    """Words and their pieces, hashed: for languages with and without blanks."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), n_features=HASHED, alternate_sign=True)
    return torch.from_numpy(hashed.transform(unpack(subject.inputs(examples))).toarray()).float()
