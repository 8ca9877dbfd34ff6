"""The files of a store: one Parquet file a shard, and a small note beside it that commits it.

All bytes of a shard pass through :func:`write_shard` and :func:`read_shard`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from stillroom import files
from stillroom.errors import StoreError, out_of_memory
from stillroom.paths import exists, is_file, reading
from stillroom.store.encoding import Column, Piece

KEYS = ("example", "view", "hash", "split")


class Shard(BaseModel):
    """One shard: its file, what is in it, and the checksum that proves it. ``sizes`` are bytes of values by signal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    rows: int
    bytes: int
    sha256: str
    first: tuple[int, int]
    last: tuple[int, int]
    splits: dict[str, int]
    sizes: dict[str, int]


class Note(BaseModel):
    """What commits a shard: the fingerprint of all that went into it, and how its signals are laid out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: str
    shard: Shard
    signals: dict[str, Column]
    notes: list[str] = []


def shard_name(number: int) -> str:
    """Return the file name of shard ``number``."""
    return f"shard-{number:05d}.parquet"


def note_path(folder: Path, number: int) -> Path:
    """Return the path of the note that commits shard ``number``."""
    return (folder / shard_name(number)).with_suffix(".json")


def committed(folder: Path, number: int, inputs: str) -> Note | None:
    """Return the note of shard ``number`` if it was made from ``inputs`` and has the content it had, else None.

    A shard that has another content is told of: who asks records it anew.
    """
    path = note_path(folder, number)
    if not is_file(path):
        return None
    try:
        note = Note.model_validate(files.unseal(path, files.read_json(path)))
    except (StoreError, ValueError, RecursionError):
        files.note(f"{path} does not match its checksum; the shard is recorded again.")
        return None
    if note.inputs != inputs or not plain_name(note.shard.file):
        return None
    try:
        intact(folder, note.shard)
    except StoreError as error:
        if exists(folder / note.shard.file):
            files.note(f"{str(error).partition('. ')[0]}; it is recorded again.")
        return None
    return note


def intact(folder: Path, shard: Shard) -> None:
    """See that a shard has the content it was written with; once a process, while its size and times stay the same.

    Raises:
        StoreError: it is missing, or a byte in it has changed.
    """
    compare(folder, shard, files.known_checksum)


def compare(folder: Path, shard: Shard, digest: Callable[[Path], str] = files.checksum) -> None:
    """See that a shard has the content it was written with, reading every byte of it.

    Raises:
        StoreError: it is missing, or a byte in it has changed.
    """
    path = folder / shard.file
    try:
        found = digest(path)
    except FileNotFoundError as error:
        raise StoreError(missing(path)) from error
    except OSError as error:
        raise StoreError(f"A shard of the store cannot be read: {path} ({error.strerror}). Allow it to be.") from error
    if found != shard.sha256:
        raise StoreError(damaged(path, f"SHA-256 {found[:12]}... instead of {shard.sha256[:12]}..."))


def plain_name(name: str) -> bool:
    """Whether ``name`` is that of a file inside a folder, and no path."""
    return name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


# --- the two functions through which all bytes of shards pass ----------------------------------------


def write_shard(path: Path, table: pa.Table, compression: str = "none") -> tuple[str, int]:
    """Write ``table`` to ``path``, whole or not at all; return its SHA-256 and its size in bytes."""
    with files.writing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=max(1, len(table)),
            compression=compression,
            compression_level=1 if compression == "zstd" else None,
            use_dictionary=False,  # pyarrow's default costs a factor of four to ten on raw bytes
            write_statistics=list(KEYS),
        )
        return files.checksum(temporary), temporary.stat().st_size


def read_shard(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read ``columns`` of the shard at ``path``.

    Raises:
        StoreError: the shard is missing or damaged.
    """
    wanted = [escape(name) for name in columns]
    try:
        with reading(path, StoreError), pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            return file.read(columns=wanted, use_threads=False).rename_columns(list(columns))
    except FileNotFoundError as error:
        raise StoreError(missing(path)) from error
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        if out_of_memory(error) or isinstance(error, StoreError):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(damaged(path, first)) from error


def missing(path: Path) -> str:
    """Say that a shard is not there."""
    return (
        f"A shard of the store is missing: {path.name} is not in {path.parent}. "
        "Bring it back from a copy, or run the same record again: only this shard is recorded anew."
    )


def damaged(path: Path, found: str) -> str:
    """Say that a shard is not what was written."""
    return (
        f"A shard of the store is damaged: {path} ({found}). Bring it back from a copy, or run the same record again: "
        "only this shard is recorded anew."
    )


def escape(name: str) -> str:
    """Return the Parquet name of a signal: a dot there would mean a nested column."""
    return name.replace("%", "%25").replace(".", "%2E")


# --- tables ----------------------------------------------------------------------------------------


def array(column: Column, piece: Piece) -> pa.Array:
    """Return the rows of ``piece`` as an Arrow array of raw bytes."""
    data = pa.py_buffer(piece.values.view(torch.uint8).numpy())
    if piece.counts is None:
        rows = piece.values.numel() // column.unit
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(column.row_bytes), rows, [None, data])
    offsets = np.zeros(len(piece.counts) + 1, np.int64)
    np.cumsum(piece.counts.numpy() * column.torch_dtype.itemsize, out=offsets[1:])
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(piece.counts), [None, pa.py_buffer(offsets), data])


def build(keys: dict[str, Any], arrays: dict[str, list[pa.Array]], order: NDArray[np.int64] | None) -> pa.Table:
    """Join the arrays of a shard; ``order`` gives, for each row of the table, its place among what was recorded."""
    types = (pa.int64(), pa.int32(), pa.uint64(), pa.int8())
    data = {name: pa.array(keys[name], kind) for name, kind in zip(KEYS, types, strict=True)}
    for name, parts in sorted(arrays.items()):
        whole = pa.concat_arrays(parts)
        data[escape(name)] = whole if order is None else whole.take(pa.array(order))
    return pa.table(data)


def raw(values: pa.ChunkedArray) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64] | None]]:
    """Yield, chunk by chunk and without copying, the bytes of a column and each row's byte count where it varies."""
    for chunk in values.chunks:
        if not len(chunk):
            continue
        if pa.types.is_fixed_size_binary(chunk.type):
            width = chunk.type.byte_width
            data = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
            yield data, None
            continue
        offsets = np.frombuffer(chunk.buffers()[1], np.int64, len(chunk) + 1, chunk.offset * 8)
        held = chunk.buffers()[2]
        first, last = int(offsets[0]), int(offsets[-1])
        data = np.frombuffer(held, np.uint8, last - first, first) if last > first else np.empty(0, np.uint8)
        yield data, np.diff(offsets)
