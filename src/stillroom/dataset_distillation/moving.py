"""Moves that can be differentiated: the same small turn, stretch and shift for real and synthetic images alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stillroom.randomness import uniform

TURN, STRETCH, SHIFT = 15.0, 1.2, 0.125  # degrees, a factor, a share of the side


def moved(images: Tensor, strength: float, seed: int, *position: int | str) -> Tensor:
    """Return ``images`` (B, C, H, W) all turned, stretched and shifted by one draw of (seed, position).

    Differentiable siamese augmentation (Zhao & Bilen, ICML 2021, https://arxiv.org/abs/2102.08259): what is drawn is
    shared by the two batches that are compared. Theirs draws one kind of change a step, among them colours and
    cut-outs, here turn (15 degrees), stretch (1.2 each way) and shift (an eighth of the side) come together,
    ``strength`` (0 to 1) times as far; what enters at the border repeats it.
    """
    if not strength:
        return images
    turn, wide, high, right, down = (
        strength * (2 * float(uniform(seed, "move", kind, *position)) - 1)
        for kind in ("turn", "wide", "high", "right", "down")
    )
    angle = math.radians(TURN * turn)
    matrix = torch.tensor(
        [
            [math.cos(angle) * STRETCH**wide, -math.sin(angle), 2 * SHIFT * right],
            [math.sin(angle), math.cos(angle) * STRETCH**high, 2 * SHIFT * down],
        ]
    )
    grid = functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
