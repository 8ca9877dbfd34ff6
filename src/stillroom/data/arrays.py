"""Examples in memory: tensors, arrays and map-style Datasets as a source whose batches are index selections."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stillroom.contracts import Batch, Source
from stillroom.data.columns import (
    as_images,
    as_labels,
    as_tensor,
    check_columns,
    class_names,
    given_splits,
    no_such_example,
)
from stillroom.data.known import known
from stillroom.data.loaders import taken_apart
from stillroom.data.splits import NAMES, by_hash, checksum_of, trim
from stillroom.data.texts import TextSource, texts_given, texts_in_splits
from stillroom.data.views import Views
from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.randomness import row_hashes

INSTEAD = (
    "(inputs, labels) as tensors or arrays, a dictionary with 'inputs' and 'labels', a map-style Dataset, "
    "a DataLoader over one, a list of texts or (texts, labels), or a dictionary of those called train, validation "
    "and test"
)


class ArraySource:
    """A source over tensors or arrays: rows are examples.

    Images are uint8, (N, C, H, W); uint8 (N, H, W) and (N, H, W, channels) are turned to that. Other inputs are kept
    (float64, float16 and bfloat16 as float32). ``labels``: int64 (N,), -1 = unlabelled. ``splits``: example numbers of
    train, validation and test, taken as they are; without them the rows are split 80/10/10 by hash. ``columns``:
    further columns by name, N rows each.

    Raises:
        DataError: unequal lengths, labels out of range, inputs that are not finite, unknown splits.
    """

    notes: Sequence[str] = ()

    def __init__(
        self,
        inputs: ArrayLike | Tensor,
        labels: ArrayLike | Tensor | None = None,
        *,
        classes: Sequence[str] | None = None,
        splits: Mapping[str, Any] | None = None,
        views: Views | None = None,
        columns: Mapping[str, ArrayLike | Tensor] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        self.inputs = as_images(as_tensor(inputs, "inputs"))
        self.labels = None if labels is None else as_labels(labels)
        self.columns: dict[str, Tensor] = {"inputs": self.inputs}
        if self.labels is not None:
            self.columns["labels"] = self.labels
        for column, values in (columns or {}).items():
            if column in ("id", "inputs", "labels"):
                raise DataError(say("This column's name is taken", f"'{column}'", "any name but id, inputs, labels"))
            self.columns[column] = as_tensor(values, column)
        check_columns(self.columns)
        self.classes: Sequence[str] | None = class_names(self.labels, classes)
        self.views = views or Views()
        if self.views.count > 1 and self.inputs.ndim != 4:
            shape = tuple(self.inputs.shape)
            raise DataError(
                say("Views are made of images", f"inputs of shape {shape}", "(N, C, H, W)", "Use views: 1.")
            )
        self.splits: Mapping[str, Tensor] = self._split(splits)

    def _split(self, splits: Mapping[str, Any] | None) -> dict[str, Tensor]:
        if splits is None:
            return by_hash(self._hashes, None if self.labels is None else self.labels.numpy())
        return given_splits(splits, len(self))

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def _hashes(self) -> NDArray[np.uint64]:
        return row_hashes(self.inputs.numpy())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a teacher may be shown: name, raw examples, shape, type and the settings of the views."""
        extra = {name: values for name, values in self.columns.items() if name not in ("inputs", "labels")}
        columns = {name: checksum_of(_row_prints(values)) for name, values in sorted(extra.items())}
        return fingerprint(
            ({"columns": columns} if columns else {})
            | {
                "name": self.name,
                "shape": list(self.inputs.shape),
                "type": str(self.inputs.dtype),
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
        examples = torch.from_numpy(pairs[:, 0].copy())  # contiguous once, instead of once a column
        batch = {"id": ids}
        try:
            for name, values in self.columns.items():
                batch[name] = values.index_select(0, examples)
        except IndexError:
            raise no_such_example(examples, len(self)) from None
        if pairs[:, 1].any():
            self.views.check(pairs[:, 1])
            seen = self.views.apply(batch["inputs"].numpy(), pairs[:, 0], pairs[:, 1])
            batch["inputs"] = torch.from_numpy(seen)
        return batch

    def hashes(self, examples: Tensor) -> NDArray[np.uint64]:
        """Return a 64-bit hash (uint64, B) of each raw example."""
        chosen: NDArray[np.uint64] = self._hashes[examples.numpy()]
        return chosen

    def show(self, example: int) -> NDArray[np.uint8] | str:
        """Return an image (uint8: height, width[, 3]) or, for other inputs, a line of text."""
        values = self.inputs[example]
        if values.ndim != 3 or values.shape[0] not in (1, 3):
            flat = ", ".join(f"{value:.4g}" for value in values.flatten()[:8].tolist())
            return f"{flat}{', ...' if values.numel() > 8 else ''} (shape {tuple(values.shape)})"
        if values.dtype != torch.uint8:
            low, high = values.min(), values.max()
            values = ((values - low) * (255 / (high - low).clamp(min=1e-12))).round().to(torch.uint8)
        return values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).contiguous().numpy()

    def trimmed(self, rows: Mapping[str, int], seed: int = 0) -> ArraySource:
        """Return the same source with at most ``rows[split]`` rows in each named split, by hash, stratified."""
        fewer = copy.copy(self)
        fewer.splits = trim(self.splits, None if self.labels is None else self.labels.numpy(), rows, seed)
        return fewer


def _row_prints(values: Tensor) -> Tensor:
    return torch.from_numpy(row_hashes(values.numpy()).view(np.int64))


# --- making sources of what was given --------------------------------------------------------------


def from_dataset(dataset: Any, *, name: str = "dataset", **options: Any) -> ArraySource:
    """Read a map-style Dataset once into an :class:`ArraySource`; a DataLoader gives the rows it draws from.

    Items are ``(input, label)``, an input alone, or a dictionary with ``inputs``; ``options`` go to ArraySource.

    Raises:
        DataError: it is a bare iterable, is empty, or does not answer the same twice.
    """
    return ArraySource(**_columns_of(dataset), name=name, **options)


def as_source(data: Any, *, name: str = "arrays", **options: Any) -> Source:
    """Return ``data`` as a source; what can be given is listed in ``INSTEAD``. A source is returned as it is.

    A source of one's own has ``len``, ``batch``, ``hashes``, ``show``, ``splits`` and ``classes``; a fingerprint, where
    it has none, is derived from these.

    A dictionary of train, validation, test keeps those splits; validation, where absent, is cut from train by hash.

    Raises:
        DataError: it is none of those.
    """
    if isinstance(data, Source):
        return data
    if (own := known(data)) is not None:
        return own
    if isinstance(data, Mapping) and data and set(data) <= set(NAMES):
        texts = {split: found for split in NAMES if split in data and (found := texts_given(data[split])) is not None}
        if len(texts) == len(data):
            return texts_in_splits(texts, name=name, **options)
        return _from_splits({split: data[split] for split in NAMES if split in data}, name=name, **options)
    if (given := texts_given(data)) is not None:
        return TextSource(**given, name=name, **options)
    return ArraySource(**_columns_of(data), name=name, **options)


def _from_splits(parts: Mapping[str, Any], *, name: str, **options: Any) -> ArraySource:
    if "train" not in parts:
        raise DataError(
            say("No training examples", ", ".join(parts), "train, and validation and test where they exist")
        )
    pieces = {split: _columns_of(part) for split, part in parts.items()}
    official: dict[str, NDArray[np.int64]] = {}
    start = 0
    for split, piece in pieces.items():
        if set(piece) != set(pieces["train"]) or set(piece.get("columns", {})) != set(
            pieces["train"].get("columns", {})
        ):
            raise DataError(
                say(f"'{split}' has other columns than 'train'", ", ".join(piece), ", ".join(pieces["train"]))
            )
        length = len(piece["inputs"])
        official[split] = np.arange(start, start + length)
        start += length
    joined: dict[str, Any] = {
        key: _join([piece[key] for piece in pieces.values()], key) for key in pieces["train"] if key != "columns"
    }
    extra = {
        key: _join([piece["columns"][key] for piece in pieces.values()], key)
        for key in pieces["train"].get("columns", {})
    }
    whole = np.arange(start)
    source = ArraySource(**joined, columns=extra, name=name, splits={"train": whole}, **options)
    labels = None if source.labels is None else source.labels.numpy()
    source.splits = by_hash(source.hashes(torch.from_numpy(whole)), labels, official=official)
    return source


def _join(parts: Sequence[Any], column: str) -> Tensor:
    tensors = [as_tensor(part, column) for part in parts]
    if len({(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors}) > 1:
        given = ", ".join(f"{tuple(tensor.shape[1:])} {tensor.dtype}" for tensor in tensors)
        raise DataError(say(f"Column '{column}' differs between the splits", given, "one shape and type"))
    return torch.cat(tensors)


def _columns_of(data: Any) -> dict[str, Any]:
    """Return ``inputs``, ``labels`` and ``columns`` of anything as_source takes, as tensors or arrays."""
    if isinstance(data, DataLoader):
        data = taken_apart(data)
    if isinstance(data, (Tensor, np.ndarray)) or _is_frame(data):
        return {"inputs": data}
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Mapping):
        if "inputs" not in data:
            raise DataError(say("No column 'inputs'", ", ".join(map(str, data)) or "nothing", INSTEAD))
        extra = {key: values for key, values in data.items() if key not in ("id", "inputs", "labels")}
        given = {key: data[key] for key in ("inputs", "labels") if data.get(key) is not None}
        return given | ({"columns": extra} if extra else {})
    if isinstance(data, (tuple, list)) and len(data) in (1, 2) and all(_is_array(part) for part in data):
        return dict(zip(("inputs", "labels"), data, strict=False))
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) or _is_indexed(data):
        return _stacked(data)
    raise DataError(
        say(
            "Examples cannot be taken from this",
            f"{type(data).__module__}.{type(data).__qualname__}",
            INSTEAD,
            "An iterable has no row numbers, so nothing could be stored for its rows: collect it into tensors first."
            if isinstance(data, Iterable)
            else "",
        )
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, list)) or _is_frame(value)


def _is_frame(value: Any) -> bool:
    """Whether it is a table or a column of one that turns into an array by itself, as those of pandas do."""
    return hasattr(value, "__array__") and hasattr(value, "__len__")


def _is_indexed(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, (str, bytes))


def _stacked(dataset: Any) -> dict[str, Any]:
    """Read every item once and stack the columns."""
    try:
        length = len(dataset)
    except TypeError as error:
        raise DataError(f"This Dataset does not know its length ({error}). Give it __len__, or pass tensors.") from None
    if not length:
        raise DataError(say("The Dataset is empty", "0 items", "at least one"))
    first = _item(dataset[0], 0)
    if any(
        not torch.equal(values, again)
        for values, again in zip(first.values(), _item(dataset[0], 0).values(), strict=True)
    ):
        raise DataError(
            say(
                "This Dataset answers differently each time",
                "two different readings of item 0",
                "items that stay the same",
                "Take its random transform out and use Stillroom's own views, which can be replayed.",
            )
        )
    rows = [first, *(_item(dataset[index], index) for index in range(1, length))]
    stacked: dict[str, Any] = {}
    for key in first:
        try:
            stacked[key] = torch.stack([row[key] for row in rows])
        except (KeyError, RuntimeError, TypeError) as error:
            raise DataError(
                f"Items of this Dataset do not fit together in '{key}': {error}. Make them equal."
            ) from None
    return _columns_of(stacked)


def _item(item: Any, index: int) -> dict[str, Tensor]:
    """Return one item of a Dataset as named tensors."""
    if isinstance(item, Mapping):
        parts = dict(item)
    elif isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        parts = dict(zip(("inputs", "labels"), item, strict=False))
    elif isinstance(item, (tuple, list)):
        raise DataError(
            say(f"Item {index} has {len(item)} parts", "a tuple", "(input, label), or a dictionary of columns")
        )
    else:
        parts = {"inputs": item}
    try:
        return {
            str(key): torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
            for key, value in parts.items()
        }
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Item {index} of the Dataset is not made of numbers: {error}. Return tensors or arrays."
        ) from None
