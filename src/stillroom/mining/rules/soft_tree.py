"""A tree whose questions are soft: each looks at the whole picture through a filter that can be drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stillroom.randomness import forked, permutation

BALANCE = 0.1  # of the penalty on questions that send all to one side, halved at each level
RATE = 2e-2
BATCH = 128
LEVELS = ((1500, 6), (800, 6), (500, 5), (300, 4))  # steps and depth, the most that fits the time
TIMED = 20  # steps
STEEP = 1.0
DRAWN = 14  # pixels a side of a filter's picture


class SoftTree(nn.Module):
    """A complete binary tree of ``depth``: node i sends x to the right with probability s(b_i (w_i x + c_i)).

    Each of the 2**depth leaves holds one answer. Nodes are numbered level by level: below i are 2i + 1 and 2i + 2.

    Source: Frosst and Hinton 2017 (https://arxiv.org/abs/1711.09784). The paper prints its loss as the logarithm of a
    sum; here it is the mean over leaves of the cross-entropy, weighted by the paths' probabilities, as the text says.
    b_i is learnt, the balance of a node is that of a batch, and the rate rises and falls once: it learns so in seconds.
    """

    def __init__(self, inputs: int, classes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        inner = 2**depth - 1
        self.filters = nn.Linear(inputs, inner)
        self.steepness = nn.Parameter(torch.full((inner,), STEEP))
        self.leaves = nn.Parameter(torch.zeros(inner + 1, classes))

    def paths(self, inputs: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the probability of each leaf (B, leaves), and of each level's nodes (B, nodes): reached, turned right.

        ``inputs`` is (B, pixels).
        """
        right = torch.sigmoid(self.steepness * self.filters(inputs))
        reached = torch.ones(len(inputs), 1)
        levels = []
        for level in range(self.depth):
            turned = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            levels.append((reached, turned))
            reached = torch.stack([reached * (1 - turned), reached * turned], 2).flatten(1)
        return reached, levels

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answer (B, classes; probabilities) of each example's likeliest leaf."""
        return self.leaves.softmax(1)[self.best(inputs)]

    def best(self, inputs: Tensor) -> Tensor:
        """Return the likeliest leaf (B) of each example."""
        return self.paths(inputs)[0].argmax(1)

    def loss(self, inputs: Tensor, answers: Tensor) -> Tensor:
        """Return the mean cross-entropy with ``answers`` (B, classes; probabilities) over leaves, and the balance."""
        reached, levels = self.paths(inputs)
        entropy = -answers @ functional.log_softmax(self.leaves, 1).T
        total = (reached * entropy).sum(1).mean()
        for level, (here, turned) in enumerate(levels):
            share = (here * turned).sum(0) / here.sum(0).clamp(min=1e-8)
            share = share.clamp(1e-6, 1 - 1e-6)
            total = total - BALANCE * 0.5**level * 0.5 * (share.log() + (1 - share).log()).sum()
        return total


@dataclass(frozen=True)
class Grown:
    """A soft tree that was trained: its steps, what was taken from each pixel, and how much each pixel varies."""

    tree: SoftTree
    steps: int
    depth: int
    middle: Tensor
    scale: float
    spread: Tensor
    shape: tuple[int, ...]

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) as the tree takes them (B, pixels)."""
        return (pixels.flatten(1) - self.middle) / self.scale

    def answer(self, pixels: Tensor) -> NDArray[np.int64]:
        """Return the class (B) at each picture's likeliest leaf."""
        with torch.no_grad():
            top: NDArray[np.int64] = self.tree(self.prepared(pixels)).argmax(1).numpy()
        return top

    def leaves_used(self, pixels: Tensor) -> int:
        """Return how many leaves are the likeliest one of some picture."""
        with torch.no_grad():
            return len(self.tree.best(self.prepared(pixels)).unique())


def level_for(pixels: Tensor, answers: Tensor, seconds: float) -> tuple[int, int] | None:
    """Return the steps and the depth that ``seconds`` allow; None when not even the least does."""
    spent = []
    for count in (1, 1 + TIMED):  # what comes before the first step is no part of a step
        began = time.monotonic()
        train(pixels, answers, steps=count, depth=LEVELS[0][1], seed=0)
        spent.append(time.monotonic() - began)
    a_step = max(0.0, spent[1] - spent[0]) / TIMED
    return next(((steps, depth) for steps, depth in LEVELS if steps * a_step <= seconds), None)


def train(pixels: Tensor, answers: Tensor, *, steps: int, depth: int, seed: int) -> Grown:
    """Train a soft tree on pictures (B, C, H, W) and ``answers`` (B, classes; probabilities)."""
    middle = pixels.flatten(1).mean(0)
    scale = max(float(pixels.max() - pixels.min()), 1e-12)
    with forked(seed, "soft tree"):
        tree = SoftTree(middle.numel(), answers.shape[1], depth)
    spread = pixels.flatten(1).std(0)
    grown = Grown(tree, steps, depth, middle, scale, spread, tuple(pixels.shape[1:]))
    inputs, wanted = grown.prepared(pixels), answers.float()
    optimiser = torch.optim.Adam(tree.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(steps, 2))
    order = np.empty(0, np.int64)
    epoch = 0
    for _ in range(steps):
        if len(order) < BATCH:
            order = np.concatenate([order, permutation(len(inputs), seed, "soft tree", epoch)])
            epoch += 1
        rows, order = torch.from_numpy(order[:BATCH]), order[BATCH:]
        optimiser.zero_grad()
        tree.loss(inputs[rows], wanted[rows]).backward()
        optimiser.step()
        rate.step()
    return grown


def filters(grown: Grown) -> list[NDArray[np.uint8]]:
    """Return the filter of each node as a picture (H, W, 3): red where light sends an example right, blue left.

    Each weight is drawn times its pixel's deviation: where pictures hardly differ, weights are left to chance. Of more
    than DRAWN pixels a side, neighbours are drawn as their mean.
    """
    drawn = []
    weights = (grown.tree.filters.weight * grown.tree.steepness[:, None] * grown.spread).detach()
    side = -(-max(grown.shape[1:]) // DRAWN)
    maps = functional.avg_pool2d(weights.reshape(-1, *grown.shape).sum(1, keepdim=True), side, ceil_mode=True)
    for one in maps[:, 0].numpy():
        strength = np.clip(one / max(float(np.abs(one).max()), 1e-12), -1, 1)
        red = np.where(strength > 0, 255, 255 * (1 + strength))
        blue = np.where(strength < 0, 255, 255 * (1 - strength))
        green = 255 * (1 - np.abs(strength))
        drawn.append(np.stack([red, green, blue], -1).round().astype(np.uint8))
    return drawn
