"""Which labels look wrong: those that a layer which has not seen them would not give, beyond what its doubt allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stillroom.mining.examples.left_out import LastLayer
from stillroom.randomness import integers, permutation

COOLEST = -7.0  # of temperatures, as a logarithm
PLANTED = 0.05  # of the labels, exchanged on purpose to see how many of them are found
CLEARLY = 0.01  # of the labels, that look wrong to one search and not to the other
BEHIND = 0.15  # of rows told right: random features of pictures are 0.05 behind a small network
EVALUATIONS = 130  # of how likely the labels are, about as many as it takes to find temperature and share
LIKELY = 0.5  # a label more likely wrong than right is a suspect


@dataclass(frozen=True)
class Doubt:
    """``wrong`` (N): how likely each label is wrong; ``share``: how many are, in all; ``temperature`` of the scores."""

    wrong: Tensor
    share: float
    temperature: float

    @property
    def order(self) -> Tensor:
        """Rows by doubt, most first."""
        return self.wrong.argsort(descending=True, stable=True)

    @property
    def suspects(self) -> Tensor:
        """Rows whose label is more likely wrong than right, most doubted first."""
        return self.order[: int((self.wrong > LIKELY).sum())]


def doubt(scores: Tensor, labels: Tensor) -> Doubt:
    """Return how likely each label is wrong, from scores (N, K) of a layer that has not seen it.

    A label is taken to be drawn from softmax(scores / T) or, in a share s of the cases, from all classes alike; T and s
    are those under which the labels are most likely. So a class that is hard to tell raises T, not the number of
    suspects. A wrong label is thought to be chosen evenly: confusions of neighbouring classes count as hard, not wrong.

    Self-influence is how much less a label is believed where its own example has not been seen (Feldman and Zhang 2020,
    https://arxiv.org/abs/2008.03703); a layer that fits all the same shows it in the scores of rows left out. To
    estimate noise from such scores comes from confident learning (Northcutt, Jiang and Chuang 2021,
    https://arxiv.org/abs/1911.00068); the mixture is our own.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    scores, classes = scores.double(), scores.shape[1]

    def parts(place: np.ndarray) -> tuple[Tensor, float]:
        share = float(expit(place[1]))
        own = (scores / math.exp(max(COOLEST, place[0]))).softmax(1).gather(1, labels[:, None])[:, 0]
        return own, share

    def cost(place: np.ndarray) -> float:
        own, share = parts(place)
        return -float((own * (1 - share) + share / classes).log().mean())

    begin = min(((math.log(warmth), -3.0) for warmth in (0.03, 0.1, 0.3, 1.0)), key=lambda one: cost(np.array(one)))
    found = minimize(cost, begin, method="Nelder-Mead").x
    own, share = parts(found)
    even = share / classes
    wrong = even * (1 - own) / (own * (1 - share) + even).clamp(min=1e-300)
    return Doubt(wrong, share * (1 - 1 / classes), math.exp(found[0]))


def better(learnt: Doubt, untrained: Doubt, *, behind: float) -> Literal["learnt", "untrained"]:
    """Return by which features to search: those that a model has learnt, or those that no label has touched.

    The first are better informed, but hardly show any wrong label that the model has learnt by heart. So the second are
    taken where clearly more looks wrong to them; unless the share of rows they tell right lies far ``behind`` the
    model's on rows that it has not learnt from: to features that tell little, right labels look wrong.
    """
    return "untrained" if untrained.share - learnt.share > CLEARLY and behind <= BEHIND else "learnt"


def planted(layer: LastLayer, labels: Tensor, clean: Tensor, seed: int) -> float:
    """Return how many of the most doubted rows are wrong, when a twentieth of the ``clean`` rows is made wrong.

    As many rows are looked at as were made wrong; chance is a twentieth.
    """
    classes = layer.aims.shape[1]
    count = max(1, round(PLANTED * len(clean)))
    bad = clean[torch.from_numpy(permutation(len(clean), seed, "planted").copy())[:count]]
    told = labels.clone()
    shift = torch.from_numpy(1 + integers(classes - 1, seed, "planted", np.arange(count)))
    told[bad] = (labels[bad] + shift) % classes
    wrong = doubt(layer.relabelled(told).left_out, told).wrong[clean]
    top = clean[wrong.argsort(descending=True, stable=True)[:count]]
    return float(torch.isin(top, bad).double().mean())
