"""Whose class a derivative along ``top`` is of: the teacher's it is compared with, or the model's own."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.contracts import Batch, GradCam, Gradient, Signals
from stillroom.errors import TapError, say

TOP = ".top"
"""Beside a derivative's name among what a reader is given: the class each row follows. ``OWN`` is the model's own."""

OWN = torch.empty(0, dtype=torch.int64)


def followed(one: Gradient | GradCam, given: Signals) -> dict[str, Tensor | None]:
    """Return the names ``one`` is read under, each with the class of each row: one for each teacher it follows.

    ``big/logits@gradient`` follows the teacher ``big``. Where nobody says whom to follow, it is each that showed
    its logits. None: the model's own first choice, or no first choice at all.
    """
    name = str(one)
    if one.along != "top":
        return {name: None}
    ends = f"{name}{TOP}"
    found = {key.removesuffix(TOP): told for key, told in given.items() if key == ends or key.endswith(f"/{ends}")}
    if found:
        return {key: told if len(told) else None for key, told in found.items()}
    led = {key: told for key, told in given.items() if key == "logits" or key.endswith("/logits")}
    return {key.removesuffix("logits") + name: told.detach().argmax(1) for key, told in led.items()} or {name: None}


def without_owner(name: str) -> str:
    """Return the name of a derivative without the teacher it follows."""
    return name.partition("/")[2] if "/" in name.partition("@")[0] else name


def classes(one: Gradient | GradCam, logits: Tensor, told: Tensor | None, batch: Batch) -> Tensor:
    """Return the class of each row whose logit or loss is differentiated; -1 for none.

    Raises:
        TapError: the model lacks a class that it follows, or the batch has no labels of classes.
    """
    if one.along == "top":
        chosen = logits.detach().argmax(1) if told is None else told
        if int(chosen.max()) >= logits.shape[1]:
            what = f"class {int(chosen.max())} of the teacher"
            raise TapError(
                say(f"'{one}' follows a class that this model does not have", what, f"{logits.shape[1]} classes")
            )
        return chosen
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point() or labels.dim() != 1:
        what = "a batch without labels" if labels is None else f"labels {tuple(labels.shape)}, {labels.dtype}"
        raise TapError(say(f"'{one}' needs the class of each row", what, "labels of classes", "Use '(top)'."))
    return labels


__all__ = ["OWN", "TOP", "classes", "followed", "without_owner"]
