"""What Stillroom measures is classification; every way in refuses another task here, before anything is trained.

The shape of the answers, the kind of the targets and the names of the classes are held against what a verdict can
speak of. Training without a verdict (``fit``, ``train``, ``record``) asks nobody here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.errors import DataError, ModelError, UserError, say

MEASURED = "Stillroom measures classification only"
ALLOWED = "logits (rows, classes), at least 2 classes"
INSTEAD = (
    "Of two classes give a logit each. Another task can be trained, without a verdict, with stillroom.fit or "
    "stillroom.train and a loss of your own."
)
OTHER_TASKS = {"kd_multilabel": "several labels a row", "regression": "measurements"}
LISTED = 10


def check_answers(
    answers: Tensor,
    whose: str,
    rows: int,
    classes: Sequence[str] | None = None,
    *,
    error: type[UserError] = ModelError,
) -> Tensor:
    """Return what a model answered to ``rows`` rows if it is logits of classes: of those named, where they are.

    Raises:
        UserError: of the class ``error``: no row of logits an example, fewer than two classes, or another number of
            classes than the data has.
    """
    shape, allowed = tuple(answers.shape), f"logits ({rows}, classes), at least 2 classes"
    given = f"answers of shape {shape} to {rows} rows from {whose}"
    if answers.dim() != 2 or len(answers) != rows:
        kind = " (a sequence a row)" if answers.dim() == 3 else " (a number a row)" if answers.dim() == 1 else ""
        raise error(say(MEASURED, given + kind, allowed, INSTEAD))
    if shape[1] < 2:
        raise error(say(MEASURED, f"{given} (a number a row, as of a regression)", allowed, INSTEAD))
    if not answers.is_floating_point():
        kind = str(answers.dtype).removeprefix("torch.")
        raise error(say(MEASURED, f"{given}, {kind}", "logits, which are floating numbers", INSTEAD))
    if classes is not None and len(classes) != shape[1]:
        do = f"Give a model with {len(classes)} outputs, one for each class of the labels."
        if shape[1] > len(classes):
            do += (
                " Where the labels at hand do not reach the last class, name all of them: "
                f"as_source(data, classes=[... {shape[1]} names])."
            )
        raise error(
            say(
                f"The data has {len(classes)} classes, and the model answers {shape[1]}",
                given,
                f"({rows}, {len(classes)}), the classes {listed(classes)}",
                do,
            )
        )
    return answers


def check_labels(labels: Tensor | None, rows: int) -> None:
    """See that the labels of some rows are class numbers, one a row.

    Raises:
        DataError: they are measurements, or several a row.
    """
    if labels is None:
        return
    if labels.is_floating_point() or labels.dim() != 1:
        kind = "several labels a row" if labels.dim() > 1 else "measurements, as of a regression"
        given = f"labels {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)} ({kind})"
        raise DataError(say(MEASURED, given, f"one class number a row, int64 of shape ({rows},)", INSTEAD))


def check_targets(targets: Tensor, column: str, objective: str) -> None:
    """See that a column which a loss reads in the place of labels is one of classes: numbers, or shares that sum to 1.

    Raises:
        DataError: it holds measurements, or several labels a row.
    """
    flat = targets.squeeze(1) if targets.dim() == 2 and targets.shape[1] == 1 else targets
    kind = ""
    if flat.dim() == 1 and flat.is_floating_point():
        kind = "a measurement a row, as of a regression"
    elif flat.dim() == 2:
        values = flat.double()
        if bool((values < 0).any()) or not bool(torch.allclose(values.sum(1), torch.ones(()).double(), atol=1e-3)):
            kind = "several labels or measurements a row"
    if kind:
        given = f"'{column}' of shape {tuple(targets.shape)} ({kind}), which the objective '{objective}' reads"
        allowed = f"labels, one class number a row, or soft labels that sum to 1; {ALLOWED}"
        raise DataError(say(MEASURED, given, allowed, INSTEAD))


def check_objective(loss: str) -> None:
    """See that a loss which is learnt from without labels of classes is not one of another task.

    Raises:
        DataError: it is.
    """
    if loss in OTHER_TASKS:
        given = f"the loss '{loss}' ({OTHER_TASKS[loss]}) and no labels of classes"
        raise DataError(say(MEASURED, given, f"labels, one class number a row, or a loss on {ALLOWED}", INSTEAD))


def check_known(labels: Tensor | None, classes: Sequence[str] | None) -> None:
    """See that there are two classes to tell apart, among the names and among the labels that are known (not -1).

    Raises:
        DataError: there is one class only.
    """
    if classes is None:
        return
    known = None if labels is None else labels[labels >= 0].unique()
    if len(classes) < 2 or (known is not None and len(known) == 1):
        name = classes[0] if known is None or not len(known) else classes[int(known[0])]
        do = "Check the labels: -1 stands for a row without one."
        raise DataError(say("There is nothing to tell apart", f"one class, '{name}'", "at least 2 classes", do))


def check_names(
    theirs: Sequence[str] | None,
    data: Sequence[str] | None,
    whose: str,
    *,
    numbers: bool = True,
    error: type[UserError] = DataError,
) -> None:
    """See that a model's logits stand for the data's classes, in the same order.

    With ``numbers`` 0, 1, 2, ... fit any names of as many classes: so classes are called that nobody named.

    Raises:
        UserError: of the class ``error``: the classes are others, or stand in another order; says which.
    """
    if theirs is None or data is None:
        return
    there, here = [str(name) for name in theirs], [str(name) for name in data]
    unnamed = numbers and len(there) == len(here) and (_numbers(there) or _numbers(here))
    if there == here or unnamed:
        return
    if sorted(there) == sorted(here):
        place = next(number for number, name in enumerate(there) if here[number] != name)
        given = f"{listed(there)}, where the data has {listed(here)}"
        do = (
            f"Its logit {place} is '{there[place]}', which is class {here.index(there[place])} of the data: name the "
            "data's classes in the order of the model, or train it again on this data."
        )
        raise error(say(f"{whose} knows the classes of the data in another order", given, listed(here), do))
    given = f"{len(there)} classes, {listed(there)}"
    do = "Use the data that it was made for, name the data's classes as it does, or train it again on this data."
    raise error(say(f"{whose} knows other classes than the data", given, f"{len(here)} classes, {listed(here)}", do))


def probabilities(answers: Tensor) -> bool:
    """Whether these answers are probabilities: each from 0 to 1, each row with the sum 1."""
    if answers.dim() != 2 or answers.shape[1] < 2 or not len(answers):
        return False
    values = answers.double()
    inside = bool((values >= 0).all()) and bool((values <= 1 + 1e-6).all())
    return inside and bool(((values.sum(1) - 1).abs() < 1e-3).all())


def softened_twice(whose: str) -> str:
    """Return what to say of a teacher that answers probabilities."""
    return (
        f"{whose} answers probabilities, not logits: kd softens them a second time, and they say less than they could. "
        "Give the teacher without its softmax, or let it answer log-probabilities."
    )


def listed(names: Sequence[str]) -> str:
    """Return names as one text, the first few of many."""
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(str(name) for name in names[:LISTED]) + more


def _numbers(names: Sequence[str]) -> bool:
    """Whether these are what classes are called that nobody named: 0, 1, 2, ..."""
    return list(names) == [str(number) for number in range(len(names))]
