"""Texts from files and two samples that ship with Stillroom: each one function that gives a source.

Options that mean the same everywhere: ``train`` caps the training rows (stratified); ``seed`` is that of splits and
views; ``views`` counts the views (1 = plain only), and ``augment`` says how they are made: any of ``mask``, ``sample``,
``unit``, ``shortest``, ``longest`` of :class:`stillroom.data.text_views.TextViews`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts import UNLABELLED
from stillroom.data.images import SPLIT_FOLDERS
from stillroom.data.splits import NAMES, trim
from stillroom.data.text_tables import KINDS, MISSING, check_column, kind_of, label_notes, read_rows
from stillroom.data.text_views import TextViews
from stillroom.data.texts import Bytes, TextSource, split_texts
from stillroom.errors import DataError, say
from stillroom.paths import expand, is_folder

SAMPLES = Path(__file__).parent / "samples"
SIGNS = ("negative", "positive")
NEUTRAL = 0.5
"""A rating smaller than this in size takes no side, and its row is left out."""
SAMPLE_TEST = 2000
SPLITS = {**SPLIT_FOLDERS, "dev": "validation"}

RATING = "rating"
_NAME = "Write '{}: COLUMN', or give the file a first line that names its columns."

Augment = Mapping[str, float | str] | None
Numbers = NDArray[np.int64]


def movie_reviews_sample(
    *, train: int | None = None, seed: int = 0, views: int = 1, augment: Augment = None
) -> TextSource:
    """Return the English film reviews that ship with Stillroom: 3,400 train, 600 validation, 2,000 test snippets.

    Half are negative, half positive; the column ``ratings`` is the mean of what about twenty people said (-4 to 4).

    Raises:
        DataError: an option does not fit, or the shipped file is damaged.
    """
    return _sample("movie-reviews", 600, train, _views(views, seed, augment))


def reviews_zh_sample(
    *, train: int | None = None, seed: int = 0, views: int = 1, augment: Augment = None
) -> TextSource:
    """Return the Chinese reviews that ship with Stillroom: 5,200 train, 800 validation, 2,000 test.

    Half are negative, half positive: of books, computers and hotels. A view is cut to 2 to 10 characters where the
    paper has 1 to 5 words.

    Raises:
        DataError: an option does not fit, or the shipped file is damaged.
    """
    lengths: dict[str, float | str] = {"shortest": 2, "longest": 10}
    return _sample("reviews-zh", 800, train, _views(views, seed, lengths | dict(augment or {})))


def text(
    *,
    path: str | Path,
    text: str = "text",
    label: str | None = "label",
    encoding: str = "utf-8",
    validation: float = 0.1,
    test: float = 0.1,
    train: int | None = None,
    seed: int = 0,
    views: int = 1,
    augment: Augment = None,
) -> TextSource:
    """Return the texts in a .csv, .tsv or .jsonl file (also .gz), or in such files called train, validation and test.

    ``text`` and ``label`` name columns. An empty label is unknown; ``label: null`` means that all are. Labels that are
    numbers with a fraction are ratings: their sign is the label, and those below 0.5 in size are left out; so is a
    column ``rating`` where there is no ``label``. A column ``split`` (train, validation, test) is followed; what it
    does not name is taken from the training rows, ``validation`` and ``test`` being a count or a share. Empty texts
    are left out and texts over 20,000 bytes cut; ``notes`` of the source say so.

    Raises:
        DataError: a file is absent, damaged, in another encoding or no such table; a column is missing; there is one
            class only; a held-out row has no label.
    """
    place = expand(path, "'path'", DataError)
    found = _Found(text, label)
    rows = Bytes.of(row for split, file in _files(place) for row in found.read(file, split, encoding))
    if not len(rows):
        raise DataError(say(f"There are no texts in {place}", "0 rows", "at least one", "Check the file."))
    labels, classes, ratings = found.labelled(place)
    kept = np.arange(len(rows))
    if ratings is not None and found.signed and labels is not None:
        kept = np.flatnonzero((labels == UNLABELLED) | (np.abs(ratings) >= NEUTRAL))
        if len(kept) < len(rows):
            found.notes.append(f"{len(rows) - len(kept):,} rows with a rating below {NEUTRAL} in size left out")
    source = TextSource(
        (rows.row(row) for row in kept.tolist()),
        None if labels is None else labels[kept],
        classes=classes,
        splits={},
        views=_views(views, seed, augment),
        ratings=None if ratings is None or np.isnan(ratings).any() else ratings[kept],
        name=place.name.split(".")[0],
        notes=found.said(),
    )
    return _split(source, official=found.official(kept), validation=validation, test=test, seed=seed, train=train)


# --- rows ------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What the rows of a table hold beside their texts, and what was noted on the way."""

    text: str
    label: str | None
    signed: bool = False  # labels are signs of ratings
    labels: list[str] = field(default_factory=list)
    ratings: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)  # labels as they are written

    def read(self, file: Path, split: str, encoding: str) -> Iterator[bytes]:
        """Yield the texts of one file; ``split`` is empty where the file's own column says it."""
        for number, (line, row) in enumerate(read_rows(file, encoding)):
            if not number:
                self._check(row, file)
            place = f"{file.name}:{line}"
            found = row.get(self.text, "")
            if not found.replace("\0", "").strip():
                self.empty.append(place)
                continue
            part = split or row.get("split", "").strip().lower()
            if part not in SPLITS and (part or "split" in row):
                raise DataError(say(f"Line {line} of {file} is in no split", f"'{part}'", SPLITS))
            written = "" if self.label is None else row.get(self.label, "").strip()
            self.written[written] += 1
            self.labels.append("" if written in MISSING else written)
            self.ratings.append(row.get(RATING, "").strip())
            self.splits.append(SPLITS.get(part, ""))
            self.places.append(place)
            yield found.encode("utf-8", "replace")

    def _check(self, row: Mapping[str, str], file: Path) -> None:
        check_column(self.text, row, file, _NAME.format("text"))
        if self.label is None or self.label in row:
            return
        if RATING in row and self.label == "label":
            self.signed = True
        elif self.label == "label" and "label" not in map(str.lower, row):
            do = "Name the column: 'label: COLUMN'. A run needs labels on some rows; the others may be empty."
            raise DataError(say(f"{file} has no labels", f"columns {', '.join(row)[:200]}", "a column 'label'", do))
        else:
            check_column(self.label, row, file, _NAME.format("label"))

    def labelled(self, place: Path) -> tuple[Numbers | None, Sequence[str] | None, NDArray[np.float64] | None]:
        """Return class numbers, class names and ratings (NaN where there is none), each None where not given."""
        ratings = numbers_of(self.ratings)
        if self.label is None:
            return None, None, ratings
        values = ratings if self.signed else numbers_of(self.labels)
        if values is None and (names := set(self.labels) - {""}) and _infinite(names):
            given, do = f"'{_infinite(names)}' among numbers", "Mend it, or leave the cell empty."
            raise DataError(say(f"'{self.label}' of {place} holds infinity", given, "finite labels", do))
        if self.signed and values is None:
            raise DataError(
                say(f"{place} has no labels", "a column 'rating' that does not hold numbers", "numbers, or a 'label'")
            )
        classes: Sequence[str]
        if values is None:
            classes = sorted(set(self.labels) - {""})
            numbers = {name: number for number, name in enumerate(classes)}
            labels = np.array([numbers.get(name, UNLABELLED) for name in self.labels], np.int64)
        elif self.signed or (values[~np.isnan(values)] % 1).any():
            self.signed, ratings, classes = True, values, SIGNS
            labels = np.where(np.isnan(values), UNLABELLED, values > 0)
        else:
            known = np.unique(values[~np.isnan(values)])
            classes = [str(int(value)) for value in known]
            labels = np.where(np.isnan(values), UNLABELLED, np.searchsorted(known, values))
        self._check_classes(labels, classes, place)
        return labels, classes, ratings

    def _check_classes(self, labels: Numbers, classes: Sequence[str], place: Path) -> None:
        present, rows = np.unique(labels[labels != UNLABELLED]), int((labels != UNLABELLED).sum())
        if not len(present):
            do = "Label some rows. Texts without any can be read in Python: open_source('text', path=..., label=None)."
            raise DataError(say(f"{place} has no labels", "an empty label in every row", "at least two classes", do))
        if len(present) == 1:
            do = "Ratings are taken by their sign: subtract the middle of their scale." if self.signed else ""
            given = f"one class, '{classes[present[0]]}', in all {rows:,} labelled rows"
            raise DataError(say(f"There is nothing to tell apart in {place}", given, "at least 2 classes", do))
        if len(classes) > 50 and 2 * len(classes) > rows:
            given = f"{len(classes):,} different values in {rows:,} rows"
            raise DataError(say(f"'{self.label}' of {place} is no label", given, "classes", "Name another column."))
        held = [row for row in np.flatnonzero(labels == UNLABELLED) if self.splits[row] in ("validation", "test")]
        if held:
            given = f"{len(held):,} of them, the first in {self.places[held[0]]}"
            do = "Put them into 'train', where they are shown to the teacher only, or leave them out."
            raise DataError(say("Rows for validation or test have no label", given, "a label in each", do))

    def official(self, kept: Numbers) -> dict[str, Numbers]:
        """Return the rows of each split that the files name, numbered as they are kept."""
        names = np.array(self.splits)[kept]
        return {name: np.flatnonzero(names == name) for name in NAMES if (names == name).any()}

    def said(self) -> list[str]:
        """Return the notes."""
        odd = label_notes(self.written, str(self.label))
        if not self.empty:
            return [*odd, *self.notes]
        more = ", ..." if len(self.empty) > 5 else ""
        rows = f"{len(self.empty):,} row{'s' * (len(self.empty) != 1)}"
        return [f"{rows} without a text left out ({', '.join(self.empty[:5])}{more})", *odd, *self.notes]


def _infinite(names: Collection[str]) -> str:
    """Return the first of ``names`` that is infinite, if all are numbers; else nothing."""
    try:
        infinite = [name for name in sorted(names) if np.isinf(float(name))]
    except ValueError:
        return ""
    return infinite[0] if infinite else ""


def numbers_of(written: Sequence[str]) -> NDArray[np.float64] | None:
    """Return numbers as they are written, NaN where nothing is; None if something else or nothing at all is there."""
    try:
        values = np.array([float(one or "nan") for one in written], np.float64)
    except ValueError:
        return None
    return None if np.isinf(values).any() or np.isnan(values).all() else values


def _files(place: Path) -> list[tuple[str, Path]]:
    """Return each file to read and the split that its name says, which is empty for a file that was named itself."""
    if not is_folder(place, DataError):
        return [("", place)]
    files = [file for file in sorted(place.iterdir()) if kind_of(file) in KINDS]
    named = [(SPLITS[stem], file) for file in files if (stem := file.name.split(".")[0].lower()) in SPLITS]
    if "train" not in dict(named):
        given = ", ".join(file.name for file in files) or "no table"
        allowed = "train.csv (or .tsv, .jsonl), and validation and test where they exist"
        raise DataError(say(f"{place} has no training texts", given, allowed, "Or name one file as 'path'."))
    return named


# --- sources ---------------------------------------------------------------------------------------


def _split(
    source: TextSource, *, official: Mapping[str, Numbers], validation: float, test: float, seed: int, train: int | None
) -> TextSource:
    """Give ``source`` its splits, and note which rows are in none of them."""
    labels = None if source.labels is None else source.labels.numpy()
    splits = split_texts(source.keys, labels, official=official, validation=validation, test=test, seed=seed)
    copies = len(source) - sum(len(rows) for rows in splits.values())
    if copies:
        note = f"{copies:,} row{'s' * (copies != 1)} left out as the copy of another, case and white space aside"
        source.notes = (*source.notes, note + _unlike(source))
    source.splits = splits if train is None else trim(splits, labels, {"train": train}, seed)
    return source


def _unlike(source: TextSource) -> str:
    """Say how many texts have two labels."""
    if source.labels is None:
        return ""
    known = source.labels.numpy() != UNLABELLED
    pairs = np.unique(np.stack([source.keys[known], source.labels.numpy()[known].view(np.uint64)], 1), axis=0)
    several = len(pairs) - len(np.unique(pairs[:, 0]))
    return f"; {several:,} of these texts have more than one label: the first one holds" if several else ""


def _views(count: int, seed: int, augment: Augment) -> TextViews:
    options: dict[str, Any] = dict(augment or {})
    allowed = [one.name for one in fields(TextViews) if one.name not in ("count", "seed")]
    for option in options:
        if option not in allowed:
            raise DataError(say("Unknown option of 'augment'", f"'{option}'", allowed))
    return TextViews(count=count, seed=seed, **options)


def _sample(name: str, validation: int, train: int | None, views: TextViews) -> TextSource:
    """Open one of the shipped samples; its splits are the same for every seed."""
    found = [row for _, row in read_rows(SAMPLES / name / "reviews.tsv.gz")]
    source = TextSource(
        (row["text"] for row in found),
        [int(row["label"] == "pos") for row in found],
        classes=SIGNS,
        splits={},
        views=views,
        ratings=[float(row[RATING]) for row in found] if RATING in found[0] else None,
        name=f"{name}-sample",
    )
    labels = None if source.labels is None else source.labels.numpy()
    splits = split_texts(source.keys, labels, validation=validation, test=SAMPLE_TEST)
    source.splits = splits if train is None else trim(splits, labels, {"train": train}, views.seed)
    return source
