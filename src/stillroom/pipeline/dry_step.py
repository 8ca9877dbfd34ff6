"""One step of a training before any training: what a model or a loss would raise later is said now, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stillroom.contracts import Batch, Signals
from stillroom.errors import ModelError, StillroomError, TapError, out_of_memory, say
from stillroom.learner import Learner, taken
from stillroom.randomness import forked
from stillroom.settings import Training
from stillroom.taps.derivatives import trained_through
from stillroom.train import optimizer_of

MOST = 128  # rows of a step that is tried; more tell no more, unless a part of them is small
TYPES = re.compile(r"dtype|scalar type|[Ii]nput type|not implemented for '|can't be cast|(Double|Float|Long)Tensor")
REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        r"more than 1 value per channel when training",
        "2 rows or more a step for a model with BatchNorm",
        "Raise train.batch (Training(batch=...)), or the objective's part of it.",
    ),
    (
        r"CUDA|cuda|NVIDIA|HIP|MPS",
        "models that compute on the processor",
        "Take .cuda() and .to(device) out of its forward, and move its weights to the processor: model.cpu().",
    ),
    (
        r"shape|size|dimension|channel|index|out of range|broadcast|elements",
        "shapes that it is made for",
        "Give inputs of the shape it takes, taps whose shapes fit, or as many outputs as there are classes.",
    ),
)


def try_step(learner: Learner, whose: str, batch: Batch, teacher: Signals, settings: Training) -> None:
    """Train a sized learner for one step in training mode, on as many rows as a batch will have.

    The learner is spoilt by it; PyTorch's generator stays as it was. The few rows of ``batch`` are repeated.

    Raises:
        UserError: it cannot be trained so; says ``whose`` it is.
    """
    rows = torch.arange(rows_tried(learner, settings)) % len(batch["id"])
    optimizer, some = optimizer_of(learner, settings), taken(batch, rows)
    with blaming(f"a step of training {whose}", some, learner.student), forked(0, "dry step"), learner.reader:
        learner.train()
        losses = learner(some, taken(teacher, rows))
        if not losses["loss"].requires_grad:
            kind = type(learner.student).__name__
            given = f"a {kind} whose answers do not depend on its weights by anything with a derivative"
            do = "Take no_grad, detach() and rounding out of its forward."
            raise ModelError(say(f"Nothing can be learnt by {whose}", given, "a forward with a gradient", do))
        with trained_through(learner.reader.taps):
            losses["loss"].backward()
        optimizer.step()
    learner.eval()


def rows_tried(learner: Learner, settings: Training) -> int:
    """Return how many rows a step that is tried has: those of a batch, or as many as tell the same."""
    least = min(getattr(objective, "part", 1.0) for objective in learner.objectives)
    return min(settings.rows, max(MOST, math.ceil(2 / least)))


@contextmanager
def blaming(whose: str, signals: Mapping[str, Tensor], module: nn.Module | None = None) -> Iterator[None]:
    """Say in words whose computing failed, on what, and what it said itself: PyTorch alone does not know whose it is.

    Raises:
        UserError: of the kind that fits.
    """
    try:
        yield
    except TapError as error:
        raise TapError(f"In {whose}: {error}") from error
    except (StillroomError, MemoryError):
        raise
    except Exception as error:  # a person's own module may raise anything
        if out_of_memory(error):
            raise
        raise ModelError(_told(whose, signals, module, error)) from error


def _told(whose: str, signals: Mapping[str, Tensor], module: nn.Module | None, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"
    shown = [(name, value) for name, value in signals.items() if name != "id"]
    weights = sorted({_name(value.dtype) for value in module.parameters()}) if module is not None else []
    kinds = bool(TYPES.search(str(error)))
    given = ", ".join(f"{name} {tuple(value.shape)}" + f" {_name(value.dtype)}" * kinds for name, value in shown)
    if kinds:
        given += f", weights of {', '.join(weights)}" if weights else ""
        allowed = "inputs of the type of its weights (int64 for an nn.Embedding)"
        do = "Turn the inputs into that type, for example inputs.float(), or the model, for example model.float()."
    else:
        told = [(allowed, do) for words, allowed, do in REMEDIES if re.search(words, str(error))]
        allowed, do = told[0] if told else ("a forward that takes such a batch in both modes", "Mend it.")
    given += " and " if given else ""
    return f"A first try failed in {whose}: got {given}'{reason}'. Allowed: {allowed}. {do}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
