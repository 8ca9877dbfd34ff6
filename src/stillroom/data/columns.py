"""Columns of examples: tensors made of what was given, and the checks that every kind of source shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.data.splits import NAMES, name_ids
from stillroom.errors import DataError, say

_MOST_CLASSES = 100_000


def as_tensor(values: ArrayLike | Tensor, column: str) -> Tensor:
    """Return ``values`` as a contiguous tensor in memory, without a copy where possible.

    Raises:
        DataError: the values are not numbers, or the rows differ in shape.
    """
    if isinstance(values, Tensor):
        tensor = values.detach().cpu().contiguous()
    else:
        try:
            array = np.ascontiguousarray(values)
            array = array if array.flags.writeable else array.copy()
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Column '{column}' is not an array of numbers: {error}. Give equal rows of numbers."
            ) from None
    if tensor.ndim == 0 or len(tensor) == 0:
        raise DataError(
            say(f"Column '{column}' holds no examples", f"shape {tuple(tensor.shape)}", "one row an example")
        )
    if tensor.dtype in (torch.float64, torch.float16, torch.bfloat16):
        return tensor.to(torch.float32)
    return tensor


def as_images(values: Tensor) -> Tensor:
    """Bring uint8 images to (N, C, H, W); leave all else as it is."""
    if values.dtype == torch.uint8 and values.ndim == 3:
        return values.unsqueeze(1)
    channels = (1, 3, 4)
    if (
        values.dtype == torch.uint8
        and values.ndim == 4
        and values.shape[3] in channels
        and values.shape[1] not in channels
    ):
        return values.permute(0, 3, 1, 2).contiguous()
    return values


def as_labels(values: ArrayLike | Tensor) -> Tensor:
    """Return labels as int64 (N,).

    Raises:
        DataError: they are not whole numbers, one a row.
    """
    labels = as_tensor(values, "labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = not labels.is_floating_point() and not labels.is_complex()
    if labels.ndim != 1 or not whole or labels.dtype == torch.bool:
        given = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
        do = "Give class numbers; put soft targets or measurements into a column of their own."
        raise DataError(say("Labels must be whole numbers, one a row", given, "integers of shape (N,)", do))
    return labels.to(torch.int64).contiguous()


def check_columns(columns: Mapping[str, Tensor]) -> None:
    """Refuse columns of unequal length and inputs that are not finite.

    Raises:
        DataError: naming the columns, or the examples.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(say("Columns differ in length", given, "as many rows in each", "Check how they were cut."))
    for name, values in columns.items():
        # the sum is finite only if all are; exact positions are looked for only when it is not
        if values.is_floating_point() and not bool(torch.isfinite(values.sum(dtype=torch.float64))):
            wrong = (~torch.isfinite(values.reshape(len(values), -1)).all(dim=1)).nonzero()[:, 0]
            do = "Remove or mend these rows."
            raise DataError(say(f"Column '{name}' holds NaN or infinity", name_ids(wrong), "finite numbers", do))


def class_names(labels: Tensor | None, classes: Sequence[str] | None) -> list[str] | None:
    """Return the class names (numbers as text where none are given), after checking that every label has one.

    Raises:
        DataError: a label is below -1 or has no class, or there are -1 and one class alone.
    """
    if labels is None:
        return None if classes is None else [str(name) for name in classes]
    seen = labels.unique().tolist()
    if len(seen) == 2 and seen[0] == UNLABELLED:
        do = "Where both are classes, number them from 0: labels = (labels > 0).long(). Leave labels out for none."
        given = f"-1, which stands for an example without a label, and {seen[1]} alone"
        raise DataError(say("These labels tell no classes apart", given, "0, 1, ... and -1 where unknown", do))
    known = len(classes) if classes is not None else min(int(labels.max()) + 1, _MOST_CLASSES)
    if int(labels.min()) < UNLABELLED or int(labels.max()) >= known:
        wrong = ((labels < UNLABELLED) | (labels >= known)).nonzero()[:, 0]
        given = f"label {int(labels[wrong[0]])} at {name_ids(wrong)}"
        raise DataError(say("Labels out of range", given, f"0 to {known - 1} ({known} classes), -1 for unlabelled"))
    return [str(name) for name in (classes if classes is not None else range(known))]


def given_splits(splits: Mapping[str, Any], rows: int) -> dict[str, Tensor]:
    """Return the example numbers (int64) of train, validation and test as they were given, after checking them.

    Raises:
        DataError: an unknown split, a row that does not exist, or one that is there twice.
    """
    if unknown := set(splits) - set(NAMES):
        raise DataError(say("Unknown split", f"'{sorted(unknown)[0]}'", NAMES))
    found = {name: torch.as_tensor(splits.get(name, []), dtype=torch.int64) for name in NAMES}
    together = torch.cat(list(found.values()))
    if len(together) and not 0 <= int(together.min()) <= int(together.max()) < rows:
        wrong = together[(together < 0) | (together >= rows)]
        raise DataError(say("A split names rows that do not exist", name_ids(wrong), f"0 to {rows - 1}"))
    if len(torch.unique(together)) != len(together):
        values, counts = torch.unique(together, return_counts=True)
        raise DataError(say("A row is in two splits, or twice in one", name_ids(values[counts > 1]), "once each"))
    return found


def no_such_example(examples: Tensor, rows: int) -> DataError:
    """Return the error that names those of ``examples`` which are not among 0 .. rows - 1."""
    wrong = examples[(examples < 0) | (examples >= rows)]
    return DataError(say("No such example", name_ids(wrong), f"0 to {rows - 1}"))
