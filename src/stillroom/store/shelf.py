"""What can be done with a store, or a cache folder of stores, without a teacher: look, verify, list, prune, export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stillroom import files
from stillroom.errors import StoreError
from stillroom.paths import is_file, is_folder
from stillroom.store.decoded import Held
from stillroom.store.manifest import MANIFEST, PLAN, read_manifest, read_plan, verified
from stillroom.store.shards import read_shard
from stillroom.store.store import Store

DAY = 86_400.0
_WHOLE = ("shard-[0-9]*.parquet", "shard-[0-9]*.json", MANIFEST, PLAN)
_OURS = (*_WHOLE, ".shard-*.part", ".manifest.json.*.part", ".plan.json.*.part", ".decoded-*", files.DONE, "begun.json")


def inspect(folder: str | Path) -> dict[str, Any]:
    """Return what the store in ``folder`` says about itself, partly recorded ones included.

    Raises:
        StoreError: there is no store, or it is damaged.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    if plan is not None and not is_file(folder / MANIFEST):
        done = len(list(folder.glob("shard-*.json")))
        said = plan.model_dump(mode="json", include={"rows", "views", "fingerprints", "taps"})
        return {"folder": str(folder), "complete": False, "shards": done, **said}
    manifest = read_manifest(folder)
    signals = {
        name: {**column.model_dump(mode="json"), "bytes": sum(shard.sizes[name] for shard in manifest.shards)}
        for name, column in sorted(manifest.signals.items())
    }
    said = manifest.model_dump(mode="json", exclude={"kind", "signals", "shards", "inputs"})
    return {
        "folder": str(folder),
        "complete": True,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        "signals": signals,
        **said,
    }


def verify(folder: str | Path) -> dict[str, int]:
    """Compare every shard of the store with its checksum; return how many shards and bytes were read.

    Raises:
        StoreError: see :meth:`Store.verify`.
    """
    return verified(Path(folder))


def list_stores(root: str | Path) -> list[dict[str, Any]]:
    """Return the stores below ``root``, last used first: folder, rows, bytes on disk, whether whole, last use.

    Raises:
        StoreError: ``root`` is not a folder.
    """
    root = Path(root)
    if not is_folder(root):
        raise StoreError(f"There is no folder to look for stores in: got {root}. Check the path.")
    found = []
    for folder in sorted({path.parent for name in (MANIFEST, PLAN) for path in root.rglob(name)}):
        kind = _kind(folder)
        if kind is None:
            continue
        own = [path for pattern in _OURS for path in folder.glob(pattern)]
        whole = kind.get("kind") == "stillroom-store"
        found.append(
            {
                "folder": str(folder),
                "complete": whole,
                "rows": kind.get("rows"),
                "bytes": sum(path.stat().st_size for path in own if is_file(path)),
                "used": max(path.stat().st_mtime for path in own),
                "teacher": (kind.get("fingerprints") or {}).get("teacher"),
                "signals": sorted(kind.get("signals") or {}),
            }
        )
    return sorted(found, key=lambda entry: -float(entry["used"]))


def _kind(folder: Path) -> dict[str, Any] | None:
    for name, kind in ((MANIFEST, "stillroom-store"), (PLAN, "stillroom-plan")):
        if is_file(folder / name):
            try:
                value = files.read_json(folder / name)
            except StoreError:
                continue
            if isinstance(value, dict) and value.get("kind") == kind:
                return value
    return None


def prune(
    root: str | Path, *, keep: int | None = None, older_than: float | None = None, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Remove stores below ``root``, never anything that is not part of one; return those removed.

    ``keep`` spares that many of the last used; ``older_than`` removes only those unused for so many days.
    ``dry_run`` removes nothing and returns what would go.

    Raises:
        StoreError: neither ``keep`` nor ``older_than`` is given, or one is negative.
    """
    if keep is None and older_than is None:
        raise StoreError(
            "Nothing says which stores may go: got neither keep nor older_than. Allowed: keep=3 (the last used stay), "
            "older_than=30 (days since the last use), or both."
        )
    if (keep or 0) < 0 or (older_than or 0) < 0:
        raise StoreError(f"Stores cannot be chosen so: got keep={keep}, older_than={older_than}. Allowed: 0 or more.")
    chosen = list_stores(root)[keep or 0 :]
    if older_than is not None:
        limit = time.time() - older_than * DAY
        chosen = [entry for entry in chosen if entry["used"] < limit]
    if not dry_run:
        for entry in chosen:
            _remove(Path(entry["folder"]))
    return chosen


def _remove(folder: Path) -> None:
    """Remove a store's own files, the manifest first so that no half store looks whole; strangers' files stay."""
    own = {path for pattern in _OURS for path in folder.glob(pattern) if is_file(path) and not path.is_symlink()}
    try:
        for path in sorted(own, key=lambda path: (path.name == PLAN, path.name != MANIFEST, path.name)):
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise StoreError(
            f"A store could not be removed: {folder} ({error.strerror}). Check who owns it and its rights."
        ) from error


# --- ordinary columns --------------------------------------------------------------------------------


def export_columns(folder: str | Path, target: str | Path) -> Path:
    """Write the store as one ordinary Parquet file that pandas and DuckDB read; return its path.

    Columns: example, view, hash, split (text), and each signal as numbers or (nested) lists of them, floats
    as float32. ``target`` is the file, or a folder to put ``<store's name>.parquet`` into.

    Raises:
        StoreError: there is no store, or it is damaged.
    """
    store, target = Store.open(folder, budget=0), Path(target)
    if is_folder(target) or not target.suffix:
        target = target / f"{store.folder.resolve().name}.parquet"
    names, start = [*store.manifest.splits], 0
    with files.writing(target) as temporary:
        writer: pq.ParquetWriter | None = None
        for shard in store.manifest.shards:
            keys = read_shard(store.folder / shard.file, ["example", "view", "hash", "split"])
            codes = keys.column("split").to_numpy()
            data = {name: keys.column(name) for name in ("example", "view", "hash")}
            data["split"] = pa.array([names[code] if code >= 0 else None for code in codes], pa.string())
            rows = torch.arange(start, start + shard.rows)
            start += shard.rows
            for name in store.signals:
                data[name] = _lists(store._shelf.held(name), rows)
            table = pa.table(data)
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return target


def _lists(held: Held, rows: Tensor) -> pa.Array:
    values, mask = held.take(rows)
    if mask is None:
        return _nested(values)
    shape = held.column.shape if held.column else ()
    if shape[0] is not None:  # axes that vary inside a row (attention maps): row by row
        return pa.array([_cut(row, keep, shape).tolist() for row, keep in zip(values, mask, strict=True)])
    inner = _nested(values[mask])
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1).numpy())]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), inner)


def _cut(row: Tensor, keep: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    length = int(keep.sum())
    return row[tuple(slice(length if size is None else size) for size in shape)]


def _nested(values: Tensor) -> pa.Array:
    """Return rows as an Arrow array: numbers, or lists of lists as deep as there are axes."""
    array = pa.array(values.flatten().numpy())
    for size in reversed(values.shape[1:]):
        offsets = np.arange(len(array) // size + 1, dtype=np.int64) * size
        array = pa.LargeListArray.from_arrays(pa.array(offsets), array)
    return array
