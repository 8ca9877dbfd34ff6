"""Stretches of a memory: where the student's begin, from the states the teacher was in.

The tap ``memory@segments.c/8`` reads where the student gets to in eight steps from the teacher's own state at the
border before; compared with the teacher's state at the next border, it asks for one transition of the memory at a time.
By analogy with the second stage of MOHAWK (Bick et al. 2024, https://arxiv.org/abs/2408.10189), whose blocks are fed
the teacher's inputs; the rest is our own construction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.contracts import Place, Segments, State
from stillroom.errors import LossError, say


def at_borders(
    title: str, ours: Place, theirs: Place, states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the teacher's forward states after each of the student's stretches, and which of them there are.

    Shapes: (B, T, layers, directions, D) of ``@h`` or (B, borders, ...) of ``@c``, with a mask -> (B, borders, layers,
    1, D) and (B, borders).

    Raises:
        LossError: the teacher's place is no memory, or its cells stand at other borders.
    """
    tap, wanted = theirs.tap, ours.tap
    assert isinstance(wanted, Segments)
    if not isinstance(tap, State) or tap.part == "state" or (tap.part == "c" and tap.every != wanted.every):
        raise LossError(
            say(
                f"The objective '{title}' starts stretches of '{ours.key}' from states of the teacher",
                f"'{tap}'",
                f"'{wanted.path}@h' or '{wanted.path}@c/{wanted.every}' of the teacher's own memory",
            )
        )
    states = states[:, :, :, :1]
    if tap.part == "c":
        return states, mask
    ends = torch.arange(wanted.every, states.shape[1] + wanted.every, wanted.every, device=states.device)
    if mask is None:
        return states[:, ends.clamp(max=states.shape[1]) - 1], None
    lengths = mask.sum(1, keepdim=True)
    places = (torch.minimum(ends, lengths) - 1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device)[:, None], places], ends - wanted.every < lengths


def starts(borders: Tensor, connector: nn.Module | None) -> Tensor:
    """Return where the student's stretches start: zeros, then the teacher's states, in the student's width.

    A connector leads from the student's width to the teacher's; the way back is its pseudo-inverse, so that a state of
    the student's that it maps to the teacher's is the very state to start from. Nothing is learnt through it.

    Shapes: (B, borders, layers, 1, teacher's width) -> (B, borders, layers, 1, student's width).
    """
    begin = torch.cat([torch.zeros_like(borders[:, :1]), borders[:, :-1]], 1)
    if connector is None:
        return begin
    weight = connector.weight
    assert isinstance(weight, Tensor)
    return F.linear(begin, torch.linalg.pinv(weight.detach().float()))
