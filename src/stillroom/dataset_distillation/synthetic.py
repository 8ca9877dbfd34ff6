"""Synthetic examples as a source: they are its training rows, while validation and test stay real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import Source
from stillroom.data.arrays import ArraySource
from stillroom.data.splits import labels_of
from stillroom.errors import DataError, say
from stillroom.files import writing
from stillroom.paths import reading

PART = 4096


def with_synthetic(source: Source, inputs: Tensor, labels: Tensor) -> ArraySource:
    """Return a source whose training rows are ``inputs`` (N, ...) with ``labels`` (int64, N).

    They are numbered after the real examples, so that a number means one example only; classes, validation and test
    are those of ``source``.

    Raises:
        DataError: the examples have another shape or type than those of ``source``.
    """
    real = real_inputs(source, torch.arange(len(source)))
    if real.shape[1:] != inputs.shape[1:] or real.dtype != inputs.dtype:
        given = f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape[1:])}"
        allowed = f"{str(real.dtype).removeprefix('torch.')} of shape {tuple(real.shape[1:])}"
        raise DataError(say("Synthetic examples differ in kind from the real ones", given, allowed))
    train = torch.arange(len(real), len(real) + len(inputs))
    return ArraySource(
        torch.cat([real, inputs]),
        torch.cat([labels_of(source), labels]),
        classes=source.classes,
        splits={**source.splits, "train": train},
        views=getattr(source, "views", None),
        name=f"{getattr(source, 'name', 'data')}-distilled",
    )


def plain_ids(rows: Tensor) -> Tensor:
    """Return the ids (B, 2) of examples without any view."""
    return torch.stack([rows, torch.zeros_like(rows)], 1)


def real_inputs(source: Source, rows: Tensor) -> Tensor:
    """Return the raw ``inputs`` of ``rows`` (int64), plain view."""
    return torch.cat([source.batch(plain_ids(part))["inputs"] for part in rows.split(PART)])


def synthetic_rows(source: Source) -> tuple[Tensor, Tensor]:
    """Return the training examples of a source and their labels."""
    batch = source.batch(plain_ids(source.splits["train"]))
    return batch["inputs"], batch["labels"]


def save_synthetic(source: Source, path: Path) -> None:
    """Write a source as one archive that ``data: {use: npz, path: ...}`` reads: its splits, and the class names."""
    arrays: dict[str, np.ndarray] = {}
    for split, rows in source.splits.items():
        if len(rows):
            batch = source.batch(plain_ids(rows))
            arrays |= {f"x_{split}": batch["inputs"].numpy(), f"y_{split}": batch["labels"].numpy()}
    arrays["classes"] = np.array([str(name) for name in source.classes or ()])
    with writing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_synthetic(source: Source, path: Path) -> ArraySource:
    """Return ``source`` with the training rows that :func:`save_synthetic` wrote.

    Raises:
        DataError: the file is absent or damaged.
    """
    try:
        with reading(path, DataError), np.load(path, allow_pickle=False) as archive:
            inputs, labels = torch.from_numpy(archive["x_train"]), torch.from_numpy(archive["y_train"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"Unreadable synthetic examples: {path} ({error}). Remove its folder and run again.") from error
    return with_synthetic(source, inputs, labels)
