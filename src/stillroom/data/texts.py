"""Texts as a source: one flat buffer of UTF-8 bytes and where each text begins.

So a batch is a gathering of bytes, and millions of texts are two arrays instead of millions of objects.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED, Batch
from stillroom.data.columns import as_labels, as_tensor, check_columns, class_names, given_splits, no_such_example
from stillroom.data.splits import by_hash, checksum_of, distinct, name_ids, trim
from stillroom.data.text_views import TextViews
from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.utf8 import pack_bytes

LONGEST = 20_000
"""Bytes of a text that are kept: one line of a megabyte would make every batch it is in a gigabyte of padding."""


class Bytes:
    """Rows of bytes in one buffer: a sequence of them with ``row(example)``, ``gather(examples)`` and ``lengths``."""

    def __init__(self, buffer: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self.buffer, self.starts = buffer, starts
        self.lengths = np.diff(starts)

    @classmethod
    def of(cls, rows: Iterable[bytes]) -> Bytes:
        """Return ``rows``, read once, as one buffer."""
        joined, starts = bytearray(), [0]
        for row in rows:
            joined += row
            starts.append(len(joined))
        return cls(np.frombuffer(joined, np.uint8), np.asarray(starts, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[bytes]:
        return (self.row(example) for example in range(len(self)))

    def row(self, example: int) -> bytes:
        """Return the bytes of one row."""
        return self.buffer[self.starts[example] : self.starts[example + 1]].tobytes()

    def gather(self, examples: NDArray[np.int64]) -> Tensor:
        """Return the rows of ``examples`` as uint8 (B, bytes of the longest; at least 1), padded with zeros."""
        lengths = self.lengths[examples]
        columns = np.arange(max(1, int(lengths.max(initial=0))))
        places = self.starts[examples][:, None] + columns
        inside = columns < lengths[:, None]
        if not len(self.buffer):
            return torch.zeros(inside.shape, dtype=torch.uint8)
        values = self.buffer[np.minimum(places, len(self.buffer) - 1)]
        return torch.from_numpy(np.where(inside, values, np.uint8(0)))

    def hashes(self) -> NDArray[np.uint64]:
        """Return a 64-bit hash of each row."""
        return _hashes(self)


class TextSource:
    """A source of texts: ``inputs`` are UTF-8 bytes, uint8 (B, bytes of the longest), padded with zeros.

    ``labels``: class numbers (int64, -1 = unlabelled) or class names (an empty one or None = unlabelled; the classes
    are then the names in order, or those given). ``ratings``: a number for each text, the column ``ratings``.
    ``splits`` are example numbers, taken as they are; without them 80/10/10 by hash, and texts that are the same but
    for case and white space are kept once. Zero bytes are removed and a text over ``longest`` bytes is cut; ``notes``
    say so.

    Raises:
        DataError: something that is not text, an empty text, columns of unequal length, labels out of range, unknown
            splits.
    """

    modality = "text"

    def __init__(
        self,
        texts: Iterable[str | bytes],
        labels: ArrayLike | Tensor | Sequence[str | None] | None = None,
        *,
        classes: Sequence[str] | None = None,
        splits: Mapping[str, Any] | None = None,
        views: TextViews | None = None,
        ratings: ArrayLike | Tensor | None = None,
        name: str = "texts",
        longest: int = LONGEST,
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        tidy = _Tidy(longest)
        self.texts = Bytes.of(tidy(text, row) for row, text in enumerate(_each(texts)))
        if not len(self.texts):
            raise DataError(say("There are no texts", "0 texts", "at least one"))
        if tidy.empty:
            do = "Leave these rows out."
            raise DataError(say("Texts are empty", name_ids(tidy.empty), "at least one character", do))
        self.notes = (*notes, *tidy.notes())
        named, classes = labels_of_names(labels, classes)
        self.labels = None if named is None else as_labels(named)
        self.columns: dict[str, Tensor] = {}
        if self.labels is not None:
            self.columns["labels"] = self.labels
        if ratings is not None:
            self.columns["ratings"] = as_tensor(ratings, "ratings").to(torch.float32)
        check_columns({"texts": torch.from_numpy(self.texts.lengths), **self.columns})
        self.classes: Sequence[str] | None = class_names(self.labels, classes)
        self.views = views or TextViews()
        known = None if self.labels is None else self.labels.numpy()
        self.splits: Mapping[str, Tensor] = (
            split_texts(self.keys, known) if splits is None else given_splits(splits, len(self))
        )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _hashes(self) -> NDArray[np.uint64]:
        return self.texts.hashes()

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each text as it is but for case and white space: what must not cross a split's border."""
        return keys_of(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a teacher may be shown: name, raw texts, ratings and the settings of the views."""
        ratings = self.columns.get("ratings")
        return fingerprint(
            ({} if ratings is None else {"ratings": checksum_of(ratings)})
            | {
                "name": self.name,
                "kind": self.modality,
                "hashes": checksum_of(torch.from_numpy(self._hashes.view(np.int64))),
                "views": self.views.fingerprint,
            }
        )

    @property
    def labels_fingerprint(self) -> str:
        """SHA-256 of the labels."""
        return fingerprint({"labels": None if self.labels is None else checksum_of(self.labels)})

    def batch(self, ids: Tensor) -> Batch:
        """Return the columns of ``ids`` (int64, B x 2: example, view).

        Raises:
            DataError: an example or a view does not exist.
        """
        pairs = ids.numpy()
        examples = torch.from_numpy(pairs[:, 0].copy())
        if len(examples) and not 0 <= int(examples.min()) <= int(examples.max()) < len(self):
            raise no_such_example(examples, len(self))
        batch = {"id": ids}
        if pairs[:, 1].any():
            self.views.check(pairs[:, 1])
            texts = [self.show(example) for example in pairs[:, 0].tolist()]
            seen = self.views.apply(texts, pairs[:, 0], pairs[:, 1])
            batch["inputs"] = pack_bytes([text.encode() for text in seen])
        else:
            batch["inputs"] = self.texts.gather(pairs[:, 0])
        for name, values in self.columns.items():
            batch[name] = values.index_select(0, examples)
        return batch

    def lengths(self, examples: Tensor) -> Tensor:
        """Return the bytes (int64, B) of each raw text, before any view."""
        return torch.from_numpy(self.texts.lengths[examples.numpy()])

    def hashes(self, examples: Tensor) -> NDArray[np.uint64]:
        """Return a 64-bit hash (uint64, B) of each raw text."""
        chosen: NDArray[np.uint64] = self._hashes[examples.numpy()]
        return chosen

    def show(self, example: int) -> str:
        """Return the text."""
        return self.texts.row(int(example)).decode("utf-8", "replace")

    def trimmed(self, rows: Mapping[str, int], seed: int = 0) -> TextSource:
        """Return the same source with at most ``rows[split]`` rows in each named split, by hash, stratified."""
        fewer = copy.copy(self)
        fewer.splits = trim(self.splits, None if self.labels is None else self.labels.numpy(), rows, seed)
        return fewer


class _Tidy:
    """Turns each text into bytes that a Batch can hold, and counts what it had to change."""

    def __init__(self, longest: int) -> None:
        self.longest, self.cut, self.zeros = longest, 0, 0
        self.empty: list[int] = []

    def __call__(self, text: str | bytes, row: int) -> bytes:
        if not isinstance(text, (str, bytes)):
            given = f"{type(text).__name__} at example {row}"
            raise DataError(say("Not every example is a text", given, "str", "Leave missing texts out."))
        # bytes that are no UTF-8 would read otherwise in a batch with views, which are made of strings
        whole = text if isinstance(text, str) else text.decode("utf-8", "replace")
        found = whole.encode("utf-8", "replace")
        if b"\0" in found:
            self.zeros += 1
            found = found.replace(b"\0", b"")
        if len(found) > self.longest:
            self.cut += 1
            found = found[: self.longest].decode("utf-8", "ignore").encode()
        if not found.strip():
            self.empty.append(row)
        return found

    def notes(self) -> list[str]:
        """Say what was changed."""
        said = []
        if self.cut:
            said.append(f"{self.cut:,} text{'s' * (self.cut != 1)} cut to {self.longest:,} bytes")
        if self.zeros:
            said.append(f"zero bytes removed from {self.zeros:,} text{'s' * (self.zeros != 1)}")
        return said


def _each(texts: Iterable[str | bytes]) -> Iterable[str | bytes]:
    if isinstance(texts, (str, bytes)):
        raise DataError(say("One text is not a list of texts", repr(texts[:40]), "a list of them"))
    return texts


def _hashes(rows: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows), "<u8").astype(
        np.uint64
    )


def keys_of(texts: Bytes) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each text, the same for texts that differ in case and white space only."""
    return _hashes(" ".join(row.decode("utf-8", "replace").casefold().split()).encode() for row in texts)


def labels_of_names(labels: Any, classes: Sequence[str] | None) -> tuple[Any, Sequence[str] | None]:
    """Return class numbers and class names where ``labels`` are names; anything else is returned as it is.

    Raises:
        DataError: a name is not among ``classes``.
    """
    if not isinstance(labels, (list, tuple, Tensor)) and hasattr(labels, "tolist"):
        labels = labels.tolist() if getattr(labels.dtype, "kind", "O") in "UO" else labels
    if not isinstance(labels, (list, tuple)) or not any(isinstance(label, str) for label in labels):
        return labels, classes
    given = ["" if label is None else str(label) for label in labels]
    names = [str(name) for name in classes] if classes is not None else sorted(set(given) - {""})
    numbers = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
    for row, label in enumerate(given):
        if label not in numbers:
            raise DataError(say(f"The label of example {row} is none of the classes", f"'{label}'", names))
    return np.array([numbers[label] for label in given], np.int64), names


def split_texts(
    keys: NDArray[np.uint64],
    labels: NDArray[np.int64] | None,
    *,
    official: Mapping[str, NDArray[np.int64]] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Split texts as :func:`by_hash` does, but hold no unlabelled one out: these are for training, after the others.

    Raises:
        DataError: a split's size does not fit.
    """
    official = dict(official or {})
    whole = np.arange(len(keys))
    spare = whole[:0] if labels is None or (labels == UNLABELLED).all() else np.flatnonzero(labels == UNLABELLED)
    for name in ("validation", "test"):
        spare = np.setdiff1d(spare, official.get(name, whole[:0]))
    rest = np.setdiff1d(whole, spare)
    named = {name: np.searchsorted(rest, np.setdiff1d(rows, spare)) for name, rows in official.items()}
    few = None if labels is None else labels[rest]
    splits = by_hash(keys[rest], few, official=named, validation=validation, test=test, seed=seed)
    found = {name: rest[rows.numpy()] for name, rows in splits.items()}
    more = distinct(spare, keys, keys[np.concatenate(list(found.values()))])
    found["train"] = np.union1d(found["train"], more)
    return {name: torch.from_numpy(rows) for name, rows in found.items()}


# --- texts that were given as Python objects --------------------------------------------------------


def texts_given(data: Any) -> dict[str, Any] | None:
    """Return ``texts``, ``labels`` and ``ratings`` of a list of texts, (texts, labels) or a dictionary of columns.

    None where ``data`` is something else.

    Raises:
        DataError: a dictionary of texts holds another column.
    """
    if (texts := _list_of_texts(data)) is not None:
        return {"texts": texts}
    if isinstance(data, (tuple, list)) and len(data) == 2 and (texts := _list_of_texts(data[0])) is not None:
        return {"texts": texts, "labels": data[1]}
    if isinstance(data, Mapping) and (texts := _list_of_texts(data.get("inputs", data.get("texts")))) is not None:
        columns = {key: values for key, values in data.items() if key not in ("inputs", "texts") and values is not None}
        if strange := set(columns) - {"labels", "ratings"}:
            raise DataError(say("Unknown column beside texts", f"'{sorted(strange)[0]}'", ("labels", "ratings")))
        return {"texts": texts, **columns}
    return None


def texts_in_splits(parts: Mapping[str, Any], *, name: str, **options: Any) -> TextSource:
    """Join what :func:`texts_given` found for each split; validation and test, where absent, are cut from train.

    Raises:
        DataError: there is no train, the splits have different columns, or what TextSource raises.
    """
    if "train" not in parts:
        allowed = "train, and validation and test where they exist"
        raise DataError(say("No training examples", ", ".join(parts), allowed))
    joined: dict[str, list[Any]] = {}
    official: dict[str, NDArray[np.int64]] = {}
    start = 0
    for split, columns in parts.items():
        if set(columns) != set(parts["train"]):
            raise DataError(
                say(f"'{split}' has other columns than 'train'", ", ".join(columns), ", ".join(parts["train"]))
            )
        for column, values in columns.items():
            joined.setdefault(column, []).extend(values.tolist() if hasattr(values, "tolist") else values)
            if len(joined[column]) != start + len(columns["texts"]):
                given = f"{len(values)} {column} for {len(columns['texts'])} texts"
                raise DataError(say(f"Columns of '{split}' differ in length", given, "as many in each"))
        official[split] = np.arange(start, start + len(columns["texts"]))
        start += len(columns["texts"])
    everything: dict[str, Any] = {**joined, **options}
    source = TextSource(**everything, splits={}, name=name)
    labels = None if source.labels is None else source.labels.numpy()
    source.splits = split_texts(source.keys, labels, official=official)
    return source


def _list_of_texts(values: Any) -> Sequence[str] | None:
    """Return a non-empty list, tuple, array or column of texts; None for anything else."""
    if not isinstance(values, (list, tuple, Tensor)) and hasattr(values, "tolist"):
        values = values.tolist()
    texts: Sequence[str] | None = values if isinstance(values, (list, tuple)) and values else None
    return texts if texts and isinstance(texts[0], str) else None
