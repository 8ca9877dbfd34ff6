"""Features of a whole source as one Parquet file that pandas and DuckDB read: streamed, resumable, whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stillroom import files
from stillroom.contracts import Progress, Source
from stillroom.errors import Damaged, UserError
from stillroom.features.extractor import DType, FeatureExtractor
from stillroom.fingerprints import never_again
from stillroom.paths import exists

ROWS = 8192  # rows that are held in memory, and lost when killed


def write_features(
    extractor: FeatureExtractor,
    source: Source,
    target: str | Path,
    *,
    splits: Sequence[str] | None = None,
    dimensions: int | None = None,
    dtype: DType | None = None,
    normalise: bool | None = None,
    progress: Progress | None = None,
    rows: int = ROWS,
) -> dict[str, Any]:
    """Write features of every example (of ``splits``, by default all) to the Parquet file ``target``; return its facts.

    Columns: example (int64), split (text), label (int64, where the source has labels) and features (a list a row;
    ``binary``: bytes of packed bits). Killed and started again with the same arguments it goes on where it was.

    Raises:
        UserError: an option does not fit, or the file cannot be written.
    """
    target = Path(target)
    names, examples, codes = _rows(source, splits)
    inputs = files.fingerprint(
        {
            "features": extractor.fingerprint() or never_again(),
            "data": str(getattr(source, "fingerprint", "")),
            "rows": rows,
            "examples": files.fingerprint([len(examples), int(examples.sum()), list(names)]),
            "form": [
                dimensions,
                extractor.dimensions,
                dtype or extractor.dtype,
                extractor.normalise if normalise is None else normalise,
            ],
        }
    )
    parts = target.with_name(f".{target.name}.parts")
    if exists(parts) and not exists(parts / inputs):
        shutil.rmtree(parts)
    files.write_bytes(parts / inputs, b"")
    starts = range(0, len(examples), rows)
    for number, start in enumerate(starts):
        place = parts / f"{number:06d}.parquet"
        if not _whole(place):
            chosen = slice(start, start + rows)
            table = _table(extractor, source, names, examples[chosen], codes[chosen], (dimensions, dtype, normalise))
            with files.writing(place) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            files.write_json(place.with_suffix(".json"), {"sha256": files.checksum(place)}, sealed=True)
            files.faultpoint("features:part")
        if progress is not None:
            progress(min(start + rows, len(examples)), len(examples), "rows")
    width = _join(parts, target, len(starts))
    shutil.rmtree(parts)
    return {
        "file": str(target),
        "rows": len(examples),
        "columns": width,
        "dtype": dtype or extractor.dtype,
        "bytes": target.stat().st_size,
    }


def _rows(source: Source, splits: Sequence[str] | None) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Return the names of the splits, every example in order, and the number of its split (-1: none)."""
    names = list(source.splits) if splits is None else list(splits)
    for name in names:
        if name not in source.splits:
            raise UserError(f"The data has no split '{name}'. Allowed: {', '.join(source.splits)}. Name one of these.")
    codes = np.full(len(source), -1, np.int64)
    for code, name in enumerate(names):
        codes[np.asarray(source.splits[name])] = code
    examples = np.arange(len(source)) if splits is None else np.flatnonzero(codes >= 0)
    if not len(examples):
        raise UserError(
            f"There are no examples to read features of: got splits {', '.join(names) or 'none'}. Name others."
        )
    return names, examples, codes[examples]


def _table(
    extractor: FeatureExtractor,
    source: Source,
    names: Sequence[str],
    examples: NDArray[np.int64],
    codes: NDArray[np.int64],
    form: tuple[int | None, DType | None, bool | None],
) -> pa.Table:
    values = extractor.transform((source, examples), *form)
    columns: dict[str, Any] = {
        "example": pa.array(examples),
        "split": pa.array([names[code] if code >= 0 else None for code in codes], pa.string()),
    }
    ids = torch.from_numpy(np.stack([examples[:1], np.zeros(1, np.int64)], 1))
    if "labels" in source.batch(ids):
        pairs = torch.from_numpy(np.stack([examples, np.zeros_like(examples)], 1))
        columns["label"] = pa.array(
            np.concatenate([source.batch(part)["labels"].numpy() for part in pairs.split(1024)])
        )
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)


def _whole(part: Path) -> bool:
    """Whether a part is there with the content that was written; where it has changed since, a note says so."""
    try:
        if files.read_sealed(part.with_suffix(".json"))["sha256"] == files.known_checksum(part):
            return True
        files.note(f"{part} does not match its checksum; it is made again.")
    except (Damaged, OSError):  # none was written, or its checksum was not
        pass
    return False


def _join(parts: Path, target: Path, count: int) -> int:
    """Join the parts to one file, one part in memory at a time; return the width of a row."""
    with files.writing(target) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for number in range(count):
                table = pq.read_table(parts / f"{number:06d}.parquet")
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return int(table.schema.field("features").type.list_size)
