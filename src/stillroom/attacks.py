"""Inputs moved so that a model errs: to make a student robust while it learns, and to measure how robust it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from stillroom.tasks import check_answers, check_labels

End = float | Sequence[float] | Tensor  # of a range: one for all inputs, or one for each column of a table
CHUNK = 250  # examples attacked at once when a model is measured
NOISE = "attack"  # the name of the stream its random starts come from


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent: each input is moved, by at most ``epsilon`` a pixel, to where the model errs most.

    Madry et al. 2018 (https://arxiv.org/abs/1706.06083). ``epsilon`` and ``step_size`` are shares of the range from
    ``low`` to ``high`` of the raw ``inputs``, before the model's ``encode``: 8/255 of images that are bytes is 8 grey
    levels. The range of bytes is known, that of floats must be given; in a table each column may have its own, ``low``
    and ``high`` being as many numbers, and a column with equal ends stays as it is. A ``step_size`` left out is 2.5
    ``epsilon / steps``, as in the paper's code. One step of ``epsilon`` from the input itself (``random_start=False``)
    is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572); no step at all leaves uniform noise, the free
    control.

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
        UserError: an option is out of its range or of another type, or the ends of a range do not belong together.

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
    low: End | None = None
    high: End | None = None
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
        if self.along == "disagreement" and not callable(self.teacher):
            given = "no teacher" if self.teacher is None else f"teacher={self.teacher!r}"
            raise UserError(say("Disagreement is with a teacher", given, "teacher=Live(model, ['logits'])"))
        if self.seed is not None and not _whole(self.seed):
            raise UserError(say("This cannot be a seed", f"seed={self.seed!r}", "a whole number, or None"))
        if self.encode is not None and not callable(self.encode):
            allowed = "a function or module from raw inputs to what the model takes, or None"
            raise UserError(say("This cannot be an encode", f"encode={self.encode!r}", allowed))
        low, high = _ends(self.low, self.high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

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
        if not isinstance(model, nn.Module):
            raise ModelError(say("This cannot be attacked", f"a {type(model).__name__}", "a PyTorch model, nn.Module"))
        if getattr(self.encode, "outside", False) or getattr(model, "reads_text", False):
            do = "Texts can be disturbed as views (TextViews), which the recipe's data takes."
            raise ModelError(
                say("Tokens have no direction to be moved in", "a model of texts", "numbers, as images", do)
            )
        low, high, width = self._range(batch["inputs"])
        clean = batch["inputs"].detach().float()
        reach = (self.epsilon * width).float()
        least, most = (clean - reach).clamp_(min=low), (clean + reach).clamp_(max=high)
        moved = torch.clamp(self._start(clean, batch["id"], reach), least, most) if self.random_start else clean.clone()
        if not self.steps or not bool(reach.any()):
            return moved
        step = 2.5 * (self.epsilon * width) / self.steps if self.step_size is None else self.step_size * width
        step = step.float()
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

    def _range(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the least and the greatest value of an input and the width between: one for all, or one a column.

        What has no width stays as it is, whatever it is.
        """
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            given = f"inputs of type {str(inputs.dtype).removeprefix('torch.')}"
            raise DataError(say("Whole numbers such as tokens cannot be moved a little", given, "bytes or floats"))
        if self.low is None and inputs.dtype != torch.uint8:
            raise DataError(
                say("The range of these inputs is not known", "floats", "low= and high=, for example low=0, high=1")
            )
        ends = (0.0, 255.0) if self.low is None else (self.low, self.high)
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=inputs.device) for end in ends)
        width = high - low
        if low.dim() and (inputs.dim() != 2 or inputs.shape[1] != len(low)):
            given, allowed = (
                f"rows of shape {tuple(inputs.shape[1:])}",
                f"rows of {len(low)} columns, as low= and high=",
            )
            raise DataError(say("These inputs have other columns than their range", given, allowed))
        low, high = (end.float().masked_fill(width == 0, far) for end, far in ((low, -math.inf), (high, math.inf)))
        inputs = inputs.float()
        outside = ~((inputs >= low) & (inputs <= high))
        if bool(outside.any()):
            column = int(outside.any(0).nonzero()[0]) if low.dim() else None
            seen, least, most = (
                (inputs, low, high) if column is None else (inputs[:, column], low[column], high[column])
            )
            given = f"{float(seen.min()):.4g} to {float(seen.max()):.4g}"
            where = "" if column is None else f" of column {column}"
            do = "Give the ends of the raw inputs' range as low= and high=."
            raise DataError(
                say(f"Inputs{where} lie outside the range", given, f"{float(least):g} to {float(most):g}", do)
            )
        return low, high, width

    def _start(self, clean: Tensor, ids: Tensor, reach: Tensor) -> Tensor:
        if self.seed is None:
            if not reach.dim():
                return clean + torch.empty_like(clean).uniform_(-float(reach), float(reach))
            return clean + reach * torch.empty_like(clean).uniform_(-1, 1)
        examples, views = (column[:, None] for column in ids.cpu().numpy().T)
        drawn = uniform(self.seed, NOISE, examples, views, np.arange(math.prod(clean.shape[1:])))
        noise = torch.from_numpy(drawn.astype(np.float32)).view(clean.shape).to(clean.device)
        return clean + reach * (2 * noise - 1)

    def _away(self, reader: Reader, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return what is driven up, as a function of the logits."""
        if self.along == "disagreement":
            told = self._told(batch).softmax(1)

            def apart(logits: Tensor) -> Tensor:
                if logits.shape != told.shape:
                    given, allowed = f"{told.shape[1]} classes", f"{logits.shape[1]}, as the model has"
                    raise ModelError(say("The teacher knows other classes than the model", given, allowed))
                return functional.kl_div(logits.log_softmax(1), told, reduction="sum")

            return apart
        labels = batch.get("labels")
        count = len(batch["id"])
        if labels is None or labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count,):
            do = "Use along='disagreement' with a teacher where there are no labels."
            given = "none" if labels is None else "labels that are not classes"
            raise DataError(say("An attack along the loss needs labels", given, "a class for each row", do))
        labels = labels.long()
        if bool((labels == UNLABELLED).any()):
            with torch.no_grad():
                own = reader(batch)["logits"].argmax(1)
            labels = torch.where(labels == UNLABELLED, own, labels)

        def surprise(logits: Tensor) -> Tensor:
            least, most = (int(end) for end in torch.aminmax(labels))
            if least < 0 or most >= logits.shape[1]:
                given, allowed = f"labels {least} to {most}", f"0 to {logits.shape[1] - 1}, or -1 for none"
                do = "Give the data that the model was made for, or a model with as many outputs as classes."
                raise DataError(say("The model has no such class", given, allowed, do))
            return functional.cross_entropy(logits, labels, reduction="sum")

        return surprise

    def _told(self, batch: Batch) -> Tensor:
        """Return what the teacher answers on the inputs as they are: float logits (rows, classes)."""
        assert self.teacher is not None
        allowed = "a Store, Live(model, ['logits'], encode=...), or a function from a Batch to signals with 'logits'"
        try:
            shown = self.teacher(batch)
        except (TypeError, AttributeError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
            if not isinstance(self.teacher, nn.Module):
                raise
            do = "A module is asked about tensors, a teacher about a Batch: wrap it, teacher=Live(module, ['logits'])."
            raise ModelError(say("This is no teacher", f"a bare {type(self.teacher).__name__}", allowed, do)) from error
        logits = shown.get("logits") if isinstance(shown, Mapping) else None
        if logits is None:
            given = f"signals {', '.join(shown)}" if isinstance(shown, Mapping) else f"a {type(shown).__name__}"
            raise ModelError(say("The teacher of an attack shows no logits of classes", given, allowed))
        return check_answers(logits, "the teacher of an attack", len(batch["id"])).detach().float()


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _ends(low: End | None, high: End | None) -> tuple[End | None, End | None]:
    """Return the ends of a range as numbers, or as tuples of them, one for each column; equal attacks stay equal."""
    if low is None and high is None:
        return None, None
    wrong = UserError(
        say(
            "This is not a range",
            f"low={low}, high={high}",
            "low below high, or neither; of the columns of a table as many numbers each, equal where one stays",
        )
    )
    try:
        ends = [torch.as_tensor(end, dtype=torch.float64) for end in (low, high)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong from error
    width = ends[1] - ends[0] if ends[0].shape == ends[1].shape else torch.tensor(-1.0)
    if width.dim() > 1 or not width.numel() or not bool((width.isfinite() & (width >= 0)).all() & (width > 0).any()):
        raise wrong
    return (low, high) if not width.dim() else (tuple(ends[0].tolist()), tuple(ends[1].tolist()))


def _slope(reader: Reader, batch: Batch, moved: Tensor, away: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of what is driven up, for every row its own: rows do not meet in eval mode."""
    with torch.enable_grad():
        asked = moved.detach().requires_grad_().view_as(moved)  # no leaf: operations could not be counted
        shown = reader(batch | {"inputs": asked})["logits"]
        pushed = away(check_answers(shown, type(reader.module).__name__, len(asked)).float())
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
    if not isinstance(attack, PGD):
        raise UserError(say("This is no attack", repr(attack), "PGD(epsilon), for example PGD(8 / 255, steps=20)"))
    if not isinstance(getattr(data, "splits", None), Mapping):
        raise DataError(say("This is no source of data", repr(data)[:80], "open_source('digits'), as_source(arrays)"))
    if limit is not None and (not _whole(limit) or limit < 1):
        raise UserError(say("So many rows cannot be attacked", f"limit={limit!r}", "1 or more, or None for all"))
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
            check_labels(labels, len(part))
            if labels is None or bool((labels == UNLABELLED).any()):
                raise DataError(say("Accuracy needs labels", f"rows of '{split}' without one", "a labelled split"))
            with torch.no_grad():
                answers = check_answers(reader(batch)["logits"], type(model).__name__, len(part), data.classes)
            moved = seeded.find(model, batch)
            with torch.no_grad():
                told = reader(batch | {"inputs": moved})["logits"]
            right = [shown.argmax(1) == labels for shown in (answers, told)]
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
