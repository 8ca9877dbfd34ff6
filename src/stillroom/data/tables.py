"""Tables: rows of numbers and of categories, from files or from scikit-learn, as a source.

An example is one row, float32 (columns): numbers as they are, categories as their numbers. What is missing is filled
with what is known of the training rows, and ``notes`` say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.data.images import SPLIT_FOLDERS
from stillroom.data.splits import NAMES, by_hash, trim
from stillroom.data.table_files import SPLIT, Column, Columns, check_categories, column_of, place_of, read_columns
from stillroom.data.text_tables import check_column, label_notes
from stillroom.data.texts import split_texts
from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.paths import expand
from stillroom.randomness import row_hashes

SPLITS = {**SPLIT_FOLDERS, "dev": "validation"}
SHOWN = 40  # columns of a row that is shown
_NAMED = 5  # columns that a note names
_ROUNDED = 1e-3  # of a column's deviation: what float32 may take from a number without a word
_DO = "Write '{}: COLUMN', or give the file a first line that names its columns."


class TableSource(ArraySource):
    """A source whose examples are rows of a table: ``inputs`` are float32 (N, F).

    ``names`` name the columns; ``categories`` hold the texts of those that are categories, by name, of which inputs
    are the numbers. ``kinds`` say of each column whether it is "numeric" or "categorical". ``notes`` say what was
    filled, left out or looks odd.

    Raises:
        DataError: names and columns differ in number, a category has no text, or what ArraySource raises.
    """

    modality = "table"

    def __init__(
        self,
        inputs: ArrayLike | Tensor,
        labels: ArrayLike | Tensor | None = None,
        *,
        names: Sequence[str],
        categories: Mapping[str, Sequence[str]] | None = None,
        classes: Sequence[str] | None = None,
        splits: Mapping[str, Any] | None = None,
        name: str = "table",
        notes: Sequence[str] = (),
    ) -> None:
        rows = torch.as_tensor(np.asarray(inputs) if not isinstance(inputs, Tensor) else inputs).to(torch.float32)
        self.names = [str(one) for one in names]
        self.categories = {str(one): [str(text) for text in texts] for one, texts in (categories or {}).items()}
        self.kinds = ["categorical" if one in self.categories else "numeric" for one in self.names]
        self.notes: Sequence[str] = tuple(notes)
        if rows.ndim != 2 or rows.shape[1] != len(self.names) or len(set(self.names)) != len(self.names):
            given = f"{len(set(self.names))} different names and inputs of shape {tuple(rows.shape)}"
            raise DataError(say("Names and columns of a table do not fit", given, "(rows, as many columns as names)"))
        if unknown := sorted(set(self.categories) - set(self.names)):
            raise DataError(say("Categories of a column that is not there", f"'{unknown[0]}'", self.names))
        for place, one in enumerate(self.names):
            known = len(self.categories.get(one, ()))
            values = rows[:, place]
            if one in self.categories and not bool(((values >= 0) & (values < known) & (values % 1 == 0)).all()):
                given = f"{float(values.min()):g} to {float(values.max()):g}"
                raise DataError(say(f"Column '{one}' holds what is no category", given, f"numbers 0 to {known - 1}"))
        super().__init__(rows, labels, classes=classes, splits=splits, name=name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a teacher may be shown: the rows, and what their columns mean."""
        meaning = {"names": self.names, "categories": self.categories}
        return fingerprint({"rows": super().fingerprint, **meaning})

    def show(self, example: int) -> str:
        """Return a row in words: each column with its value, 40 at most."""
        told = [
            f"{name} {self.categories[name][int(value)] if name in self.categories else f'{value:.6g}'}"
            for name, value in zip(self.names[:SHOWN], self.inputs[example].tolist(), strict=False)
        ]
        return ", ".join(told) + (f", ... ({len(self.names)} in all)" if len(self.names) > SHOWN else "")


def table(
    *,
    path: str | Path,
    label: str | None = "label",
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
    categorical: Sequence[str] = (),
    encoding: str = "utf-8",
    validation: float = 0.1,
    test: float = 0.1,
    train: int | None = None,
    seed: int = 0,
) -> TableSource:
    """Return the rows of a .csv, .tsv, .jsonl (also .gz), .parquet, .npy or .npz file.

    ``label`` names the column of labels, where an empty cell is an unknown label; ``label: null`` means that there is
    none. ``columns`` are those to learn from, by default all others but ``without``. Texts are categories, numbers are
    numbers, unless ``categorical`` names them. Missing values are filled with the median, or the most frequent text,
    of the training rows. A column ``split`` (train, validation, test) is followed; what it does not name is taken from
    the training rows, ``validation`` and ``test`` being a count or a share; ``train`` caps the training rows.

    Raises:
        DataError: the file is absent, damaged, empty or no such table; a column is missing, empty, neither numbers nor
            texts, or has too many categories; there is one class only; a held-out row has no label.
    """
    file = expand(path, "'path'", DataError)
    found = read_columns(file, encoding)
    labels, classes, odd = (None, None, []) if label is None else _labels(found, label, file)
    official = _official(found, file, {label, *(columns or ())})
    chosen = _chosen(found, [label, *([SPLIT] if official else [])], columns, without, file)
    for name in categorical:
        check_column(name, dict.fromkeys(chosen, ""), file, "Name columns that are learnt from.")
    read = {
        name: column_of(found, name, file, "categorical" if name in categorical else "auto", _DO.format("columns"))
        for name in chosen
    }
    for name, column in read.items():
        check_categories(column, name, file)
    _check_held(labels, official, file)
    rows = np.stack([column.values for column in read.values()], axis=1) + 0.0  # no -0.0, which has other bytes
    hashes = row_hashes(np.where(np.isnan(rows), np.nan, rows).astype(np.float32))
    splits = split_texts(hashes, labels, official=official, validation=validation, test=test, seed=seed)
    notes = _copies(hashes, labels, splits)
    if train is not None:
        splits = trim(splits, labels, {"train": train}, seed)
    if np.isnan(rows).any():
        notes.append(_fill(rows, read, splits["train"].numpy(), file))
        kept = {name: members.numpy() for name, members in splits.items()}
        splits = by_hash(row_hashes(rows.astype(np.float32)), labels, official=kept)  # equal rows may be equal now only
    return TableSource(
        torch.from_numpy(rows.astype(np.float32)),
        labels,
        names=chosen,
        categories={name: column.categories for name, column in read.items() if column.categories is not None},
        classes=classes,
        splits=splits,
        name=file.name.split(".")[0],
        notes=[*_listed_notes(read), *odd, *notes, *_odd(rows, read, splits["train"].numpy())],
    )


def breast_cancer(
    *, validation: float = 0.1, test: float = 0.3, train: int | None = None, seed: int = 0
) -> TableSource:
    """Return the 569 tumours inside scikit-learn: 30 measurements of cell nuclei each, malignant or benign.

    Wolberg, Street, Mangasarian 1995 (https://doi.org/10.24432/C5DW2B).

    Raises:
        DataError: an option does not fit.
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    inputs, labels = found.data.astype(np.float32), found.target.astype(np.int64)
    splits = by_hash(row_hashes(inputs), labels, validation=validation, test=test, seed=seed)
    if train is not None:
        splits = trim(splits, labels, {"train": train}, seed)
    classes = [str(name) for name in found.target_names]
    return TableSource(inputs, labels, names=found.feature_names, classes=classes, splits=splits, name="breast-cancer")


# --- columns ---------------------------------------------------------------------------------------


def _chosen(
    found: Columns, taken: Sequence[str | None], columns: Sequence[str] | None, without: Sequence[str], file: Path
) -> list[str]:
    """Return the names of the columns to learn from."""
    for option, given in (("columns", columns or ()), ("without", without)):
        if isinstance(given, str):
            raise DataError(say(f"'{option}' is a list of columns", f"'{given}'", f"{option}: [{given}]"))
        for name in given:
            check_column(name, found, file, f"Name columns of the file in '{option}'.")
    if columns is not None and taken[0] in columns:
        given = f"'{taken[0]}' in both"
        raise DataError(say("A label is not learnt from", given, "other columns than the label", "Leave it out."))
    wanted = columns if columns is not None else [name for name in found if name not in taken]
    chosen = list(dict.fromkeys(name for name in wanted if name not in without))
    if not chosen:
        given = f"the columns {', '.join(found)}"[:200]
        raise DataError(say(f"Nothing is left of {file} to learn from", given, "a column besides the label"))
    return chosen


def _labels(found: Columns, label: str, file: Path) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Return class numbers (-1 where there is none), class names (numbers by size, or texts in order) and notes."""
    if label == "label" and label not in map(str.lower, found):
        given = f"columns {', '.join(found)}"[:200]
        do = "Name the column: 'label: COLUMN'. A run needs labels on some rows; the others may be empty."
        raise DataError(say(f"{file} has no labels", given, "a column 'label'", do))
    check_column(label, found, file, _DO.format("label"))
    read = column_of(found, label, file, "categorical")
    names = list(read.categories or ())
    labels = np.where(np.isnan(read.values), UNLABELLED, read.values).astype(np.int64)
    rows = int((labels != UNLABELLED).sum())
    if not rows:
        do = "Label some rows. Rows without any can be read in Python: open_source('table', path=..., label=None)."
        raise DataError(say(f"{file} has no labels", "an empty label in every row", "at least two classes", do))
    if len(names) == 1:
        given = f"one class, '{names[0]}', in all {rows:,} labelled rows"
        raise DataError(say(f"There is nothing to tell apart in {file}", given, "at least 2 classes"))
    counted = dict(zip(names, np.bincount(labels[labels >= 0], minlength=len(names)).tolist(), strict=True))
    notes = label_notes(counted | found.missing.get(label, {}), label)
    values = _as_numbers(names)
    if values is not None and not np.isfinite(values).all():
        given = f"'{next(name for name in names if not math.isfinite(float(name)))}'"
        do = "Mend it, or leave the cell empty."
        raise DataError(say(f"Column '{label}' of {file} holds infinity", given, "finite labels", do))
    whole = values is not None and all(value == int(value) for value in values)
    if (values is not None and not whole) or (len(names) > 50 and 2 * len(names) > rows):
        given = f"{len(names):,} different values in {rows:,} rows, such as {names[0][:40]}"
        do = "Name another column, or cut these numbers into classes."
        raise DataError(say(f"'{label}' of {file} is no label", given, "classes: names or whole numbers", do))
    if values is not None:
        names = [str(int(value)) for value in values]
        if len(set(names)) < len(names):  # 1 and 1.0
            order = sorted(set(names), key=int)
            labels = np.where(labels < 0, labels, np.array([order.index(one) for one in names])[labels])
            names = order
    return labels, names, notes


def _as_numbers(names: Sequence[str]) -> list[float] | None:
    try:
        return [float(name) for name in names]
    except ValueError:
        return None


def _official(found: Columns, file: Path, taken: set[str | None]) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each split that a column ``split`` names; nothing where that column is about other things."""
    if SPLIT in taken or SPLIT not in found:
        return {}
    read = column_of(found, SPLIT, file, "categorical")
    known = [SPLITS.get(text.lower(), "") for text in read.categories or ()]
    if not known or np.isnan(read.values).any() or not all(known):
        return {}
    splits = np.array(known)[read.values.astype(np.int64)]
    return {name: np.flatnonzero(splits == name) for name in NAMES if (splits == name).any()}


def _check_held(labels: NDArray[np.int64] | None, official: Mapping[str, NDArray[np.int64]], file: Path) -> None:
    if "train" not in official and official:
        given = ", ".join(official)
        raise DataError(say(f"Column 'split' of {file} names no training rows", given, "train, validation, test"))
    for name in ("validation", "test"):
        rows = official.get(name, np.empty(0, np.int64))
        bare = rows[:0] if labels is None else rows[labels[rows] == UNLABELLED]
        if len(bare):
            given = f"{len(bare):,} of '{name}', the first in {place_of(file, int(bare[0]))}"
            do = "Put them into 'train', where they are shown to the teacher only, or leave them out."
            raise DataError(say("Rows for validation or test have no label", given, "a label in each", do))


# --- what was done to the rows ---------------------------------------------------------------------


def _fill(rows: NDArray[np.float64], read: Mapping[str, Column], train: NDArray[np.int64], file: Path) -> str:
    """Fill what is missing in ``rows``, in place, and say how."""
    told = []
    for place, (name, column) in enumerate(read.items()):
        empty = np.isnan(rows[:, place])
        if not empty.any():
            continue
        known = rows[train, place][~empty[train]]
        if not len(known):
            do = f"Leave it out: 'without: [{name}]'."
            given = f"no value in {len(train):,} training rows"
            raise DataError(say(f"Column '{name}' of {file} is empty", given, "a value in some row", do))
        if column.categories is None:
            rows[empty, place] = value = float(np.float32(np.median(known)))
            shown = f"{value:g}"
        else:
            rows[empty, place] = value = float(np.bincount(known.astype(np.int64)).argmax())
            shown = f"'{column.categories[int(value)]}'"
        told.append(f"'{name}' {int(empty.sum()):,} ({shown})")
    return f"missing values filled with the median or the most frequent text of the training rows: {_listed(told)}"


def _copies(hashes: NDArray[np.uint64], labels: NDArray[np.int64] | None, splits: Mapping[str, Tensor]) -> list[str]:
    """Say how many rows are left out as copies, and how many of them contradict each other."""
    copies = len(hashes) - sum(len(members) for members in splits.values())
    if not copies:
        return []
    unlike = 0
    if labels is not None:
        known = labels != UNLABELLED
        pairs = np.unique(np.stack([hashes[known], labels[known].view(np.uint64)], 1), axis=0)
        unlike = len(pairs) - len(np.unique(pairs[:, 0]))
    note = f"{copies:,} row{'s' * (copies != 1)} left out as the copy of another"
    return [note + (f"; {unlike:,} of these rows have more than one label: the first one holds" if unlike else "")]


def _odd(rows: NDArray[np.float64], read: Mapping[str, Column], train: NDArray[np.int64]) -> list[str]:
    """Say which columns never change, only number the rows, or lose what makes them differ as float32."""
    constant, counting, rounded = [], [], []
    for place, (name, column) in enumerate(read.items()):
        values = rows[:, place]
        seen = values[train]
        if not len(seen):
            continue
        if (seen == seen[0]).all():
            constant.append(f"'{name}'")
        elif column.categories is None:
            if len(values) > 2 and (values % 1 == 0).all() and (np.abs(np.diff(values)) == 1).all():
                counting.append(f"'{name}'")
            if np.abs(values - values.astype(np.float32)).max() > _ROUNDED * seen.std():
                rounded.append(f"'{name}'")
    said = {
        "the same in every training row": constant,
        "counts the rows, and may tell how they were sorted (leave it out: 'without')": counting,
        "large numbers that differ little, of which float32 keeps 7 digits (subtract the smallest)": rounded,
    }
    return [f"{_listed(names)}: {what}" for what, names in said.items() if names]


def _listed_notes(read: Mapping[str, Column]) -> list[str]:
    """Return what is odd about the columns as they were read, the first few in words."""
    notes = [column.note for column in read.values() if column.note]
    more = len(notes) - _NAMED
    return notes[:_NAMED] + ([f"so {more:,} more columns; 'stillroom data show' lists their kinds"] if more > 0 else [])


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more
