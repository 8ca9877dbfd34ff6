"""Who may see which rows: splits by hash, stratified, free of duplicates; and labels hidden from the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED, Batch, Source
from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.randomness import draw, row_hashes

NAMES = ("train", "validation", "test")
Rows = NDArray[np.int64]
Labels = NDArray[np.int64] | None


def quotas(sizes: NDArray[np.int64], count: int, seed: int, *, least: int = 0) -> NDArray[np.int64]:
    """Share ``count`` out over groups in proportion to ``sizes``, whole numbers, by largest remainder.

    Every group gets at least ``least`` (which must fit); ties fall by the seed.
    """
    exact = sizes * (count / max(1, int(sizes.sum())))
    given = np.minimum(np.maximum(np.floor(exact).astype(np.int64), least), sizes)
    tie = draw(seed, "quota", np.arange(len(sizes))).astype(np.float64) / 2.0**64
    while (missing := count - int(given.sum())) > 0:
        wish = np.where(given < sizes, exact - given + tie * 1e-9, -np.inf)
        best = np.argsort(-wish, kind="stable")[: min(missing, int((given < sizes).sum()))]
        given[best] += 1
    while (given.sum()) > count:
        surplus = np.where(given > least, given - exact + tie * 1e-9, -np.inf)
        given[np.argmax(surplus)] -= 1
    shared: Rows = given
    return shared


def choose(labels: Labels, rows: Rows, count: int, seed: int, purpose: str, *, least: int = 0) -> Rows:
    """Return ``count`` of ``rows``, sorted, each class in proportion; who is chosen depends on (seed, purpose, id)."""
    order = draw(seed, purpose, rows)
    strata = np.zeros(len(rows), np.int64) if labels is None else labels[rows]
    _, group, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    sequence = np.lexsort((order, group))
    place = np.empty(len(rows), np.int64)
    place[sequence] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(rows[place < quotas(sizes, count, seed, least=least)[group]])


def amount(value: float, rows: int, what: str) -> int:
    """Turn a count (whole number) or a share (between 0 and 1) of ``rows`` into a count.

    Raises:
        DataError: it is negative, or leaves no row for training.
    """
    allowed = f"a whole number from 0 to {max(0, rows - 1)}, or a share such as 0.1"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(say(f"The size of '{what}' is not a number", repr(value), allowed))
    count = round(value * rows) if isinstance(value, float) and 0 <= value < 1 else value
    if count != int(count) or not 0 <= count < max(1, rows):
        raise DataError(say(f"The size of '{what}' does not fit the {rows} rows at hand", f"{value:g}", allowed))
    return int(count)


def by_hash(
    hashes: NDArray[np.uint64],
    labels: Labels = None,
    *,
    official: Mapping[str, Rows] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Split rows into train, validation and test so that no exact duplicate crosses a border.

    ``official`` splits keep their members; what they do not name (validation, test) is taken from the training
    rows by hash of (seed, id), each class in proportion. An official test split stays whole, so that published
    numbers can be compared; a copy of one of its rows is dropped from validation and training. Elsewhere only the
    first of several equal rows is kept.

    Raises:
        DataError: a split's size does not fit, or nothing is left of one since its rows are copies of another's.
    """
    official = dict(official or {})
    taken: NDArray[np.uint64] = np.empty(0, np.uint64)
    found: dict[str, Rows] = {}
    for name in ("test", "validation", "train"):
        if name in official:
            rows = np.sort(np.asarray(official[name], np.int64))
        elif name == "train":
            named = [np.asarray(rows, np.int64) for rows in official.values()]
            rows = np.setdiff1d(np.arange(len(hashes)), np.concatenate([np.empty(0, np.int64), *named]))
        else:
            continue
        if name != "test":
            given, rows = len(rows), distinct(rows, hashes, taken)
            if given and not len(rows):
                raise _all_copies(name, given, [other for other in found if len(found[other])])
        found[name] = rows
        taken = np.union1d(taken, hashes[rows])
    for name, size in (("test", test), ("validation", validation)):
        if name not in found:
            found[name] = choose(labels, found["train"], amount(size, len(found["train"]), name), seed, f"split {name}")
            found["train"] = np.setdiff1d(found["train"], found[name])
    return {name: torch.from_numpy(found[name]) for name in NAMES}


def _all_copies(name: str, rows: int, others: Sequence[str]) -> DataError:
    given = f"{rows:,} rows, each a copy of one in {' or '.join(others)}"
    do = "Give each split rows of its own; a copy in training would make the score mean nothing."
    if name == "validation":
        do += " Without a validation split, one is cut from the training rows."
    return DataError(say(f"No row of '{name}' is left", given, "rows that no other split holds", do))


def distinct(rows: Rows, hashes: NDArray[np.uint64], taken: NDArray[np.uint64]) -> Rows:
    """Return the first of each group of equal ``rows``, without those whose hash is in ``taken``."""
    _, first = np.unique(hashes[rows], return_index=True)
    rows = rows[np.sort(first)]
    return rows[~np.isin(hashes[rows], taken)]


def trim(splits: Mapping[str, Tensor], labels: Labels, rows: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Return ``splits`` with at most ``rows[name]`` rows each, chosen by hash, each class in proportion."""
    trimmed = dict(splits)
    for name, most in rows.items():
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise DataError(
                say(f"The number of rows of '{name}' cannot be used", repr(most), "a whole number from 1 on")
            )
        members = splits[name].numpy()
        if len(members) > most:
            trimmed[name] = torch.from_numpy(choose(labels, members, most, seed, f"trim {name}"))
    return trimmed


def few_labels(labels: Tensor, rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """Choose ``count`` of the training ``rows`` that keep their labels: sorted int64 example numbers.

    Each class in proportion, but at least one row of each; rows already unlabelled are never chosen.

    Raises:
        DataError: fewer labels than classes, or more than there are.
    """
    known = rows.numpy()[labels.numpy()[rows.numpy()] != UNLABELLED]
    classes = len(np.unique(labels.numpy()[known]))
    if isinstance(count, bool) or not isinstance(count, int) or not max(1, classes) <= count <= len(known):
        raise DataError(
            say(
                "That many labels cannot be shown to the student",
                f"labels={count!r}",
                f"a whole number from {max(1, classes)} (one a class) to {len(known)} (all labelled training rows)",
                "Change 'labels', or leave it out to show them all.",
            )
        )
    return torch.from_numpy(choose(labels.numpy(), known, count, seed, "few labels", least=1))


class LabelledSubset:
    """A source whose training rows outside ``labelled`` answer with label -1; validation and test keep theirs.

    ``labelled`` and ``unlabelled`` are the training rows of each kind (sorted int64). The fingerprint is that of the
    source beneath, since a teacher sees the same examples; ``labels_fingerprint`` tells the subsets apart.

    Raises:
        DataError: the source has no labels, or a row to keep is not a training row.
    """

    def __init__(self, source: Source, labelled: Tensor) -> None:
        self.source = source
        train = source.splits["train"]
        chosen = torch.unique(torch.as_tensor(labelled, dtype=torch.int64))
        strangers = chosen[~torch.isin(chosen, train)]
        if len(strangers):
            raise DataError(
                say("Only training rows can keep their labels", name_ids(strangers), "rows of source.splits['train']")
            )
        hidden = train[~torch.isin(train, chosen)]
        self.labels = labels_of(source).clone()
        self.labels[hidden] = UNLABELLED
        known = self.labels[train] != UNLABELLED
        self.labelled = train[known].sort().values
        self.unlabelled = train[~known].sort().values

    @property
    def name(self) -> str:
        """The name of the source beneath."""
        return str(getattr(self.source, "name", "source"))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the source beneath."""
        return str(self.source.fingerprint)  # type: ignore[attr-defined]

    @property
    def labels_fingerprint(self) -> str:
        """SHA-256 of what the student may know: every label, -1 where hidden."""
        return fingerprint({"labels": checksum_of(self.labels)})

    @property
    def splits(self) -> Mapping[str, Tensor]:
        """The splits of the source beneath."""
        return self.source.splits

    @property
    def classes(self) -> Sequence[str] | None:
        """The class names of the source beneath."""
        return self.source.classes

    @property
    def views(self) -> Any:
        """The views of the source beneath, or None."""
        return getattr(self.source, "views", None)

    @property
    def modality(self) -> str:
        """What the examples beneath are: "text", "table", or nothing where the source does not say."""
        return str(getattr(self.source, "modality", ""))

    @property
    def lengths(self) -> Callable[[Tensor], Tensor] | None:
        """How the source beneath tells the lengths of examples, or None where all are of one length."""
        lengths: Callable[[Tensor], Tensor] | None = getattr(self.source, "lengths", None)
        return lengths

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns of a table beneath; there is no such attribute where it is none."""
        names: Sequence[str] = self.source.names  # type: ignore[attr-defined]
        return names

    @property
    def kinds(self) -> Sequence[str]:
        """What each column of a table beneath is, "numeric" or "categorical"; absent where it is none."""
        kinds: Sequence[str] = self.source.kinds  # type: ignore[attr-defined]
        return kinds

    @property
    def categories(self) -> Mapping[str, Sequence[str]]:
        """The texts of the categories of a table beneath, by column; absent where it is none."""
        categories: Mapping[str, Sequence[str]] = self.source.categories  # type: ignore[attr-defined]
        return categories

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, ids: Tensor) -> Batch:
        """Return the columns of ``ids`` (int64, B x 2) with hidden labels as -1 and ``ratings``, if any, as NaN."""
        batch = self.source.batch(ids)
        batch["labels"] = self.labels.index_select(0, ids[:, 0])
        if "ratings" in batch:  # they tell the label too
            batch["ratings"] = batch["ratings"].masked_fill(batch["labels"] == UNLABELLED, torch.nan)
        return batch

    def hashes(self, examples: Tensor) -> NDArray[np.uint64]:
        """Return the hashes of the source beneath."""
        return self.source.hashes(examples)

    def show(self, example: int) -> Any:
        """Show an example of the source beneath."""
        return self.source.show(example)


def labels_of(source: Source) -> Tensor:
    """Return every label of ``source`` (int64, by example number), read from its batches where it has no ``labels``.

    Raises:
        DataError: the source has no labels.
    """
    labels = getattr(source, "labels", None)
    if labels is None:
        parts = []
        for start in range(0, len(source), 1024):
            examples = torch.arange(start, min(start + 1024, len(source)))
            batch = source.batch(torch.stack([examples, torch.zeros_like(examples)], dim=1))
            if "labels" not in batch:
                raise DataError(
                    say(
                        "This source has no labels",
                        getattr(source, "name", type(source).__name__),
                        "",
                        "Give it labels.",
                    )
                )
            parts.append(batch["labels"])
        labels = torch.cat(parts)
    return labels


def labels_known(source: Source) -> Tensor | None:
    """Return every class number of ``source`` as :func:`labels_of` does, or None where it has none."""
    try:
        labels = labels_of(source)
    except DataError:
        return None
    return labels if labels.ndim == 1 and not labels.is_floating_point() else None


def labelled_rows(source: Source) -> Tensor:
    """Return the training rows that carry a label: sorted int64 example numbers; all of a source without classes."""
    labels, train = labels_known(source), source.splits["train"]
    return train if labels is None else train[labels[train] != UNLABELLED]


def labels_print(source: Source) -> str | None:
    """Return a fingerprint of every label, by the source's own word or read from its batches; None without labels."""
    own = getattr(source, "labels_fingerprint", None)
    if own is not None:
        return str(own)
    labels = labels_known(source)
    return None if labels is None else fingerprint({"labels": checksum_of(labels)})


def checksum_of(values: Tensor) -> str:
    """Return a short text that changes when any of ``values`` (one axis) does."""
    return f"{int(row_hashes(np.ascontiguousarray(values.numpy()).reshape(1, -1))[0]):016x}-{len(values)}"


def name_ids(ids: Tensor | NDArray[Any] | Sequence[int], most: int = 5) -> str:
    """Name the first few example numbers: ``examples 3, 17, 20 and 4 more``."""
    numbers = [int(number) for number in ids]
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"example{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers[:most]))}{more}"
