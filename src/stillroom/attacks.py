"""Inputs moved so that a model errs: to make a student robust while it learns, and to measure how robust it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.contracts import UNLABELLED, Batch, Progress, Source, Teacher
from stillroom.errors import DataError, ModelError, UserError, say
from stillroom.randomness import uniform
from stillroom.taps import Reader, Takes, read

CHUNK = 250  # examples attacked at once when a model is measured
NOISE = "attack"  # the name of the stream its random starts come from


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent: each input is moved, by at most ``epsilon`` a pixel, to where the model errs most.

    Madry et al. 2018 (https://arxiv.org/abs/1706.06083). ``epsilon`` and ``step_size`` are shares of the range from
    ``low`` to ``high`` of the raw ``inputs``, before the model's ``encode``: 8/255 of images that are bytes is 8 grey
    levels. The range of bytes is known, that of floats must be given. A ``step_size`` left out is 2.5 ``epsilon /
    steps``, as in the paper's code. One step of ``epsilon`` from the input itself (``random_start=False``) is FGSM
    (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572); no step at all leaves uniform noise, the free control.

    ``along`` says what is driven up: the ``loss``, cross-entropy with the label; or the ``disagreement``, KL(teacher ||
    model) with what ``teacher`` answers on the input as it was, which needs no label (RSLAD: Zi et al. 2021,
    https://arxiv.org/abs/2108.07969). Rows without a label are driven away from the model's own answer, by ``loss``.

    Random starts are drawn from PyTorch's generator, which :func:`stillroom.train` seeds anew at each step; with a
    ``seed`` they belong to (seed, example, view) alone. Attacked inputs are floats and are not rounded.

    Called as ``prepare`` of :func:`stillroom.train`, it gives the Batch its attacked ``inputs``, and beside them
    ``clean``, what they were, and ``direction``, from the attacked input through the clean one to its mirror image:
    ``logits@gradient(along=direction,step=1)`` is then f(x - d) - f(x + d), what IGDM compares (Lee, Cho and Kim 2025,
    https://arxiv.org/abs/2312.03286). ``share`` below 1 attacks only so many rows of each batch, the same that an
    objective with ``part: share`` reads; the others stay clean, with a ``direction`` of zeros, and cost nothing.

    Raises:
        UserError: an option is out of its range, or the two ends of a range are not given together.

    Example:
        >>> attack = PGD(8 / 255, steps=5, encode=encode, along="disagreement", teacher=teacher)
        >>> fit(learner, data, teacher, Training(steps=1000), prepare=attack)
        >>> robust_accuracy(learner.student, data, PGD(8 / 255, steps=20, encode=encode))
    """

    epsilon: float
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    along: Literal["loss", "disagreement"] = "loss"
    teacher: Teacher | None = None
    encode: Callable[..., Any] | None = None
    takes: Takes = ("inputs",)
    low: float | None = None
    high: float | None = None
    share: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        size = self.step_size
        if not _number(self.epsilon) or not 0 <= self.epsilon <= 1:
            do = "Divide pixels by the range: 8 grey levels of bytes are 8/255."
            raise UserError(
                say("An attack cannot go so far", f"epsilon={self.epsilon!r}", "a share of the range, 0 to 1", do)
            )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 0:
            raise UserError(say("An attack cannot take so many steps", f"steps={self.steps!r}", "0 or more"))
        if size is not None and (not _number(size) or not 0 < size <= 1):
            raise UserError(say("A step cannot be of that size", f"step_size={size!r}", "above 0, up to 1"))
        if not _number(self.share) or not 0 < self.share <= 1:
            raise UserError(say("No such share of a batch", f"share={self.share!r}", "above 0, up to 1"))
        if self.along not in ("loss", "disagreement"):
            raise UserError(say("An attack cannot go along this", f"'{self.along}'", ["loss", "disagreement"]))
        if self.along == "disagreement" and self.teacher is None:
            raise UserError(say("Disagreement is with a teacher", "no teacher", "teacher=Live(model, ['logits'])"))
        ends = (self.low, self.high)
        if (self.low is None) != (self.high is None) or (None not in ends and not self.low < self.high):  # type: ignore[operator]
            raise UserError(
                say("This is not a range", f"low={self.low}, high={self.high}", "low below high, or neither")
            )

    def __call__(self, model: nn.Module, batch: Batch) -> Batch:
        """Return ``batch`` with attacked ``inputs``, ``clean`` and ``direction``; the model is left as it was.

        Raises:
            ModelError: there is no derivative of the model's answer with respect to its inputs.
            DataError: the inputs are not numbers in a range, or there is nothing to drive away from.
        """
        clean = batch["inputs"].detach()
        rows = self._rows(len(batch["id"]))
        if rows is None:
            attacked = self.find(model, batch)
        else:
            attacked = clean.float().clone()
            attacked[rows] = self.find(model, {name: column[rows] for name, column in batch.items()})
        return batch | {"inputs": attacked, "clean": clean, "direction": 2 * (clean.float() - attacked)}

    def find(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the attacked inputs (float32, as large as the Batch's) of all rows, the clean ones untouched.

        Raises:
            ModelError: there is no derivative of the model's answer with respect to its inputs.
            DataError: the inputs are not numbers in a range, or there is nothing to drive away from.
        """
        if getattr(self.encode, "outside", False) or getattr(model, "reads_text", False):
            do = "Texts can be disturbed as views (TextViews), which the recipe's data takes."
            raise ModelError(
                say("Tokens have no direction to be moved in", "a model of texts", "numbers, as images", do)
            )
        low, high = self._range(batch["inputs"])
        clean = batch["inputs"].detach().float()
        reach = self.epsilon * (high - low)
        least, most = (clean - reach).clamp_(min=low), (clean + reach).clamp_(max=high)
        moved = torch.clamp(self._start(clean, batch["id"], reach), least, most) if self.random_start else clean.clone()
        if not self.steps or not reach:
            return moved
        step = 2.5 * reach / self.steps if self.step_size is None else self.step_size * (high - low)
        reader = read(model, ["logits"], self.encode, takes=self.takes)
        with still(model):
            away = self._away(reader, batch)
            for _ in range(self.steps):
                slope = _slope(reader, batch, moved, away)
                moved = torch.clamp(moved + step * slope.sign(), least, most)
        return moved

    # --- parts --------------------------------------------------------------------------------------

    def _rows(self, count: int) -> Tensor | None:
        """Return which rows are attacked, spread over the batch as those of an objective's ``part`` are."""
        if self.share == 1:
            return None
        wanted = max(1, round(self.share * count))
        return torch.arange(wanted) * count // wanted

    def _range(self, inputs: Tensor) -> tuple[float, float]:
        """Return the least and the greatest value that an input may have."""
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            given = f"inputs of type {str(inputs.dtype).removeprefix('torch.')}"
            raise DataError(say("Whole numbers such as tokens cannot be moved a little", given, "bytes or floats"))
        if self.low is not None and self.high is not None:
            low, high = float(self.low), float(self.high)
        elif inputs.dtype == torch.uint8:
            low, high = 0.0, 255.0
        else:
            raise DataError(
                say("The range of these inputs is not known", "floats", "low= and high=, for example low=0, high=1")
            )
        least, most = (float(end) for end in torch.aminmax(inputs)) if inputs.numel() else (low, high)
        if not (low <= least and most <= high):
            do = "Give the ends of the raw inputs' range as low= and high=."
            raise DataError(
                say("Inputs lie outside the range", f"{least:.4g} to {most:.4g}", f"{low:g} to {high:g}", do)
            )
        return low, high

    def _start(self, clean: Tensor, ids: Tensor, reach: float) -> Tensor:
        if self.seed is None:
            return clean + torch.empty_like(clean).uniform_(-reach, reach)
        examples, views = (column[:, None] for column in ids.cpu().numpy().T)
        drawn = uniform(self.seed, NOISE, examples, views, np.arange(math.prod(clean.shape[1:])))
        noise = torch.from_numpy(drawn.astype(np.float32)).view(clean.shape).to(clean.device)
        return clean + reach * (2 * noise - 1)

    def _away(self, reader: Reader, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return what is driven up, as a function of the logits."""
        if self.along == "disagreement":
            assert self.teacher is not None
            told = self.teacher(batch)["logits"].detach().float().softmax(1)
            return lambda logits: functional.kl_div(logits.log_softmax(1), told, reduction="sum")
        labels = batch.get("labels")
        if labels is None or labels.is_floating_point() or labels.dim() != 1:
            do = "Use along='disagreement' with a teacher where there are no labels."
            given = "none" if labels is None else "labels that are not classes"
            raise DataError(say("An attack along the loss needs labels", given, "a class for each row", do))
        if bool((labels == UNLABELLED).any()):
            with torch.no_grad():
                own = reader(batch)["logits"].argmax(1)
            labels = torch.where(labels == UNLABELLED, own, labels)
        return lambda logits: functional.cross_entropy(logits, labels, reduction="sum")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _slope(reader: Reader, batch: Batch, moved: Tensor, away: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of what is driven up, for every row its own: rows do not meet in eval mode."""
    with torch.enable_grad():
        asked = moved.detach().requires_grad_().view_as(moved)  # no leaf: operations could not be counted
        pushed = away(reader(batch | {"inputs": asked})["logits"].float())
        slope = None
        if pushed.requires_grad:
            (slope,) = torch.autograd.grad(pushed, asked, allow_unused=True)
    if slope is None:
        raise ModelError(
            say(
                f"{type(reader.module).__name__} cannot be attacked",
                "logits that do not depend on the inputs by anything with a derivative",
                "a PyTorch model and an encode that compute in floats from inputs to logits",
                "A model without derivatives (a graph, a tree, rounding, no_grad inside) has no gradient to follow.",
            )
        )
    detached: Tensor = slope.detach()
    return detached


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode for a while; the mode of every part comes back."""
    modes = [part for part in model.modules() if part.training]
    try:
        model.eval()
        yield
    finally:
        for part in modes:
            part.training = True


# --- measuring ---------------------------------------------------------------------------------------


def under_attack(
    model: nn.Module,
    data: Source,
    attack: PGD,
    *,
    split: str = "test",
    limit: int | None = 1000,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Return for the first ``limit`` rows of a split whether the model is right (bool, rows), without and with attack.

    Right with an attack means right on the attacked input and on the input as it was. Without a seed of its own the
    attack starts from seed 0, so that equal models get equal answers.

    Raises:
        DataError: the split has no rows, or rows without a label.
        ModelError: the model cannot be attacked.
    """
    examples = data.splits.get(split, torch.zeros(0, dtype=torch.int64))[:limit]
    if not len(examples):
        named = [name for name, rows in data.splits.items() if len(rows)]
        raise DataError(say("The data has no rows of this split", f"'{split}'", named))
    seeded = replace(attack, seed=0) if attack.seed is None else attack
    reader = read(model, ["logits"], attack.encode, takes=attack.takes)
    plain, attacked = [], []
    with still(model):
        for start in range(0, len(examples), CHUNK):
            part = examples[start : start + CHUNK]
            batch = data.batch(torch.stack([part, torch.zeros_like(part)], 1))
            labels = batch.get("labels")
            if labels is None or bool((labels == UNLABELLED).any()):
                raise DataError(say("Accuracy needs labels", f"rows of '{split}' without one", "a labelled split"))
            moved = seeded.find(model, batch)
            with torch.no_grad():
                right = [
                    reader(batch | {"inputs": inputs})["logits"].argmax(1) == labels
                    for inputs in (batch["inputs"], moved)
                ]
            plain.append(right[0])
            attacked.append(right[0] & right[1])
            if progress is not None:
                progress(min(start + CHUNK, len(examples)), len(examples), "attack")
    return torch.cat(plain), torch.cat(attacked)


def robust_accuracy(
    model: nn.Module,
    data: Source,
    attack: PGD,
    *,
    split: str = "test",
    limit: int | None = 1000,
    progress: Progress | None = None,
) -> float:
    """Return the share of a split's first ``limit`` rows that the model gets right with and without the attack.

    What one attack leaves standing is an upper bound: a stronger one may leave less. A model whose gradients are
    hidden (rounded, random) looks robust here and is not (Athalye et al. 2018, https://arxiv.org/abs/1802.00420).

    Raises:
        DataError: the split has no rows, or rows without a label.
        ModelError: the model cannot be attacked.

    Example:
        >>> robust_accuracy(student, data, PGD(8 / 255, steps=20, encode=encode))
    """
    _, attacked = under_attack(model, data, attack, split=split, limit=limit, progress=progress)
    return float(attacked.float().mean())
