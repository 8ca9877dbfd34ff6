"""How much memory the derivatives of a step take: found out on a few rows, before a training begins."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.contracts import Batch, Signals
from stillroom.errors import TrainError
from stillroom.learner import Learner, taken
from stillroom.system import free_memory, size_text
from stillroom.taps import sizing

FEW = 4  # rows that are tried
SHARE = 0.9  # of what is free


def room_for(learner: Learner, batch: Batch, teacher: Signals) -> str:
    """Return a note of what a step keeps for its backward pass, which derivatives make two to three times as much.

    A few rows are passed through the learner, what its graph keeps is counted, and the whole batch takes so many times
    as much. Statistics and generators stay as they were.

    Raises:
        TrainError: the batch would need more memory than is free.
    """
    rows = torch.arange(min(FEW, len(batch["id"])))
    kept: dict[int, int] = {}
    weights = {value.untyped_storage().data_ptr() for value in learner.parameters()}

    def keep(value: Tensor) -> Tensor:
        place = value.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return value

    with sizing(learner.student), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            losses = learner(taken(batch, rows), taken(teacher, rows))  # named, so that nothing is freed meanwhile
        del losses
    need = sum(kept.values()) * len(batch["id"]) // len(rows)
    free = free_memory()
    if free is not None and need > SHARE * free:
        raise TrainError(
            f"A step with derivatives would not fit into memory: got batches of {len(batch['id'])} rows, which keep "
            f"about {size_text(need)}. Allowed: {size_text(int(SHARE * free))}, {SHARE:.0%} of what is free. Lower "
            "train.batch, read the derivatives on a part of the batch (part: 0.25), or along directions (random=1)."
        )
    return f"a step keeps about {size_text(need)} for its backward pass, derivatives of derivatives among it"
