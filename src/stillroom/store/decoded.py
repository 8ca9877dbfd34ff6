"""Columns of a store, decoded once: in memory within the budget, above it in a file that is mapped.

Nothing here hands out a view of what is held: what is taken is copied by ``index_select``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom import files
from stillroom.errors import StoreError, say
from stillroom.store.encoding import NORM, Column, named
from stillroom.store.manifest import Manifest
from stillroom.store.shards import Shard, damaged, intact, raw, read_shard

CHUNK = 8192
Bytes = NDArray[np.uint8]


def widened(values: Tensor) -> Tensor:
    """Return halves as float32: objectives compute in nothing narrower."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@dataclass(frozen=True)
class Held:
    """A decoded column. ``starts`` (rows + 1) are where rows begin if they vary; ``norms`` undo a unit form."""

    values: Tensor
    column: Column | None = None
    starts: Tensor | None = None
    norms: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether taking rows is one ``index_select`` and nothing more."""
        half = self.values.dtype in (torch.float16, torch.bfloat16)
        return self.starts is None and self.norms is None and not half

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a copy of ``rows`` (int64) and, where an axis varies, padded with zeros and beside its mask."""
        if self.starts is None:
            values, mask = widened(self.values.index_select(0, rows)), None
        else:
            values, mask = self._padded(rows)
        if self.norms is not None:
            values = values * self.norms.index_select(0, rows).view(-1, *[1] * (values.dim() - 1))
        return values, mask

    def _padded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.column is not None and self.starts is not None
        begin, shape = self.starts.index_select(0, rows), self.column.shape
        counts = self.starts.index_select(0, rows + 1) - begin
        varying = shape.count(None)
        lengths = counts if varying == 1 else counts.double().sqrt().round().long()
        longest = int(lengths.max()) if len(rows) else 0
        mask = torch.arange(longest) < lengths[:, None]
        if shape[0] is None:
            places, inside = begin[:, None] + torch.arange(longest), mask
        else:
            places, inside = _places(begin, lengths, shape, longest)
        if not places.numel() or not len(self.values):
            padded = [longest if size is None else size for size in shape]
            return widened(self.values.new_zeros([len(rows), *padded])), mask
        taken = self.values.index_select(0, places.masked_fill(~inside, 0).flatten())
        taken = taken.view(*places.shape, *self.values.shape[1:])
        outside = (~inside).view(*inside.shape, *[1] * (taken.dim() - inside.dim()))
        return widened(taken).masked_fill_(outside, 0), mask


def _places(begin: Tensor, lengths: Tensor, shape: tuple[int | None, ...], longest: int) -> tuple[Tensor, Tensor]:
    """Return where each element of padded rows lies among all elements, and whether it is there at all.

    ``begin`` counts units: elements over the fixed axes' product.
    """
    unit = 1
    for size in shape:
        unit *= size or 1
    axes = len(shape)
    stride = torch.ones_like(lengths).view(-1, *[1] * axes)
    places = (begin * unit).view(-1, *[1] * axes)
    inside = torch.ones_like(places, dtype=torch.bool)
    for axis in reversed(range(axes)):
        size = shape[axis]
        along = torch.arange(longest if size is None else size).view(*[-1 if at == axis else 1 for at in range(axes)])
        places = places + along * stride
        own = lengths.view(-1, *[1] * axes)
        if size is None:
            inside = inside & (along < own)
        stride = stride * (own if size is None else size)
    return places, inside.expand(places.shape)


class Index:
    """Finds the row of an (example, view). Rows are sorted by both; dense stores need no table at all."""

    def __init__(self, examples: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        self.count = len(examples)
        self.views = int(views.max()) + 1 if self.count else 1
        self.first = int(examples[0]) if self.count else 0
        steps = np.arange(self.count)
        self.dense = bool(
            self.count % self.views == 0
            and np.array_equal(examples, self.first + steps // self.views)
            and np.array_equal(views, steps % self.views)
        )
        self._keys = None if self.dense else examples * self.views + views
        self._rows = None if self._keys is None else _table(self._keys)

    def find(self, ids: Tensor) -> Tensor:
        """Return the rows (int64, B) of ``ids`` (int64, B x 2).

        Raises:
            StoreError: an id is not in the store; the first five are named.
        """
        table = ids.numpy()
        if table.ndim != 2 or table.shape[1] != 2 or table.dtype != np.int64:
            raise StoreError(
                say(
                    "A batch's 'id' does not name rows",
                    f"{ids.dtype} {tuple(ids.shape)}",
                    "int64 (B, 2): example, view",
                )
            )
        if not len(table):
            return torch.empty(0, dtype=torch.int64)
        examples, views = table[:, 0], table[:, 1]
        if not self.dense:
            return torch.from_numpy(self._search(ids, examples, views))
        if self.first:
            examples = examples - self.first
        # as unsigned numbers, negative ones are too large as well
        beyond = int(examples.view(np.uint64).max()) * self.views >= self.count
        if beyond or int(views.view(np.uint64).max()) >= self.views:
            self._absent(ids, self.contains(ids))
        if self.views == 1 and not self.first:
            return ids.select(1, 0)
        return torch.from_numpy(examples * self.views + views)

    def _search(self, ids: Tensor, examples: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self._keys is not None
        keys = examples * self.views + views
        beyond = int(views.view(np.uint64).max()) >= self.views
        if self._rows is None:
            rows = np.searchsorted(self._keys, keys)
            beyond = beyond or not (self._keys.take(rows, mode="clip") == keys).all()
        else:
            keys -= self._keys[0]
            beyond = beyond or int(keys.view(np.uint64).max()) >= len(self._rows)
            rows = keys if beyond else self._rows.take(keys)
            beyond = beyond or int(rows.min()) < 0
        if beyond:
            self._absent(ids, self.contains(ids))
        return rows

    def contains(self, ids: Tensor) -> Tensor:
        """Return for each of ``ids`` (B x 2) whether the store has it."""
        table = ids.numpy()
        examples, views = table[:, 0] - (self.first if self.dense else 0), table[:, 1]
        inside = (views >= 0) & (views < self.views)
        if self._keys is None:
            return torch.from_numpy(inside & (examples >= 0) & (examples < self.count // self.views))
        keys = examples * self.views + views
        return torch.from_numpy(inside & (self._keys.take(np.searchsorted(self._keys, keys), mode="clip") == keys))

    def _absent(self, ids: Tensor, present: Tensor) -> None:
        raise StoreError(
            f"The store does not know these examples: {named(ids[~present])}. It holds {self.count:,} rows with up to "
            f"{self.views} views. Record these examples (or more views) too, or leave them out."
        )

    def ids(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the (example, view) of ``rows``: int64, N x 2."""
        keys = rows + self.first * self.views if self._keys is None else self._keys[rows]
        return torch.from_numpy(np.stack([keys // self.views, keys % self.views], axis=1))


def _table(keys: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the row of each key from the first on, -1 where there is none: a third of the time of a search.

    None where keys lie far apart, or are not in order as in a damaged shard.
    """
    span = int(keys[-1] - keys[0]) + 1
    if span > 4 * len(keys) or (keys[1:] <= keys[:-1]).any():
        return None
    rows = np.full(span, -1, np.int64)
    rows[keys - keys[0]] = np.arange(len(keys))
    return rows


class Shelf:
    """What all views of one opened store share: its manifest, its index and its decoded columns."""

    def __init__(self, folder: Path, manifest: Manifest, budget: int, *, verify: bool = True) -> None:
        self.folder, self.manifest, self.budget, self.verify = folder, manifest, budget, verify
        self.used = 0
        self._held: dict[str, Held] = {}
        self._drawn: NDArray[np.int64] | None = None
        tables = [self._table(shard, ["example", "view"]) for shard in manifest.shards]
        examples, views = (
            np.concatenate([np.empty(0, np.int64), *(table[name].to_numpy().astype(np.int64) for table in tables)])
            for name in ("example", "view")
        )
        self.index = Index(examples, views)
        self._splits: NDArray[np.int8] | None = None

    def _table(self, shard: Shard, columns: list[str]) -> pa.Table:
        """Read columns of a shard, which has not changed since it was verified."""
        if self.verify:
            intact(self.folder, shard)
        table = read_shard(self.folder / shard.file, columns)
        if len(table) != shard.rows:
            raise StoreError(damaged(self.folder / shard.file, f"{len(table):,} rows instead of {shard.rows:,}"))
        return table

    def key(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield the column ``hash`` or ``split`` shard by shard."""
        for shard in self.manifest.shards:
            yield self._table(shard, [name]).column(name).to_numpy()

    def splits(self) -> NDArray[np.int8]:
        """Return the number of each row's split, -1 for none."""
        if self._splits is None:
            self._splits = np.concatenate([np.empty(0, np.int8), *self.key("split")])
        return self._splits

    def train(self) -> NDArray[np.int64]:
        """Return the rows that are there to be trained on."""
        if self._drawn is None:
            names = self.manifest.splits
            code = names.index("train") if "train" in names else None
            rows = np.arange(self.index.count) if code is None else np.flatnonzero(self.splits() == code)
            self._drawn = rows
        return self._drawn

    def held(self, name: str) -> Held:
        """Return a column, decoding it now if nobody has asked before."""
        if name not in self._held:
            self._held[name] = self._decode(name)
        return self._held[name]

    def has(self, name: str) -> bool:
        """Whether ``name`` is held already: decoded or derived."""
        return name in self._held

    def _decode(self, name: str) -> Held:
        column, shards = self.manifest.signals[name], self.manifest.shards
        size = sum(shard.sizes[name] for shard in shards)
        counts: list[NDArray[np.int64]] = []
        flat = self._gather(self._bytes(name, counts), size).view(column.torch_dtype)
        pa.default_memory_pool().release_unused()
        norms = self.held(name + NORM).values if column.form == "unit" else None
        if not column.ragged:
            return Held(flat.view(-1, *(want for want in column.shape if want is not None)), column, None, norms)
        starts = np.zeros(self.index.count + 1, np.int64)
        np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]) // column.row_bytes, out=starts[1:])
        rest = [want for want in column.shape[1:] if want is not None] if column.shape[0] is None else []
        return Held(flat.view(-1, *rest) if rest else flat, column, torch.from_numpy(starts), norms)

    def _bytes(self, name: str, counts: list[NDArray[np.int64]]) -> Iterator[Bytes]:
        """Yield a column's bytes; note each row's byte count in ``counts`` where it varies."""
        for shard in self.manifest.shards:
            path, size = self.folder / shard.file, 0
            for data, lengths in raw(self._table(shard, [name]).column(name)):
                size += len(data)
                if lengths is not None:
                    counts.append(lengths)
                yield data
            if size != shard.sizes[name]:
                raise StoreError(damaged(path, f"{size:,} bytes of '{name}' instead of {shard.sizes[name]:,}"))

    def _gather(self, chunks: Iterable[Bytes], size: int) -> Tensor:
        """Bring ``size`` bytes together: in memory within the budget, else in a file without a name."""
        if self.used + size <= self.budget or not size:
            whole, at = torch.empty(size, dtype=torch.uint8), 0
            target = whole.numpy()
            for chunk in chunks:
                target[at : at + len(chunk)] = chunk
                at += len(chunk)
            self.used += size
            return whole
        place = _writable(self.folder)
        free = shutil.disk_usage(place).free
        if size > free:
            raise StoreError(
                f"Decoded knowledge does not fit: {size:,} bytes are needed, the budget leaves "
                f"{max(0, self.budget - self.used):,} bytes of memory and {place} has {free:,} bytes free. Free some "
                "space, raise the budget, or use fewer signals."
            )
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".decoded-") as stream:
                for chunk in chunks:
                    stream.write(chunk.data)
                stream.flush()
                return torch.from_file(stream.name, shared=True, size=size, dtype=torch.uint8)
        except OSError as error:
            raise files.refused(place, error) from error

    def derive(self, key: str, of: str, function: Callable[[Tensor], Tensor]) -> None:
        """Hold ``function`` of a column as another column, made chunk by chunk, once."""
        if key in self._held:
            return
        source, rows = self.held(of), self.index.count
        if source.starts is not None:
            raise StoreError(
                f"Nothing can be derived from signal '{of}': its rows vary in length. Allowed: signals of one shape."
            )
        first = function(source.take(torch.arange(min(1, rows)))[0])

        def chunks() -> Iterator[Bytes]:
            for start in range(0, rows, CHUNK):
                part = function(source.take(torch.arange(start, min(rows, start + CHUNK)))[0])
                if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                    raise StoreError(f"'{key}' changes its shape from chunk to chunk: it must map each row by itself.")
                yield part.detach().contiguous().flatten().view(torch.uint8).numpy()

        size = first[:1].numel() * first.element_size() * rows
        self._held[key] = Held(self._gather(chunks(), size).view(first.dtype).view(rows, *first.shape[1:]))


def _writable(folder: Path) -> Path:
    """Return ``folder``, so that a big file lies on the store's own disk, or the temporary folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.gettempdir())
