"""What a store says about itself: ``plan.json`` when recording begins, ``manifest.json`` when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stillroom import files
from stillroom.errors import Damaged, StoreError
from stillroom.paths import is_file, is_folder
from stillroom.store.encoding import DTYPES, NORM, Column
from stillroom.store.shards import Shard, compare, intact, missing, plain_name

SCHEMA = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
SIDES = ("teacher", "data", "transform")


class Plan(BaseModel):
    """What is to be recorded, known before the teacher has said a word. ``inputs`` is its fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stillroom-plan"] = "stillroom-plan"
    schema_version: int = SCHEMA
    inputs: str
    rows: int
    views: int
    fingerprints: dict[str, str | None]
    taps: list[str]


class Manifest(BaseModel):
    """A whole store: who was asked about what, how the answers are laid out, and in which shards they lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stillroom-store"] = "stillroom-store"
    schema_version: int = SCHEMA
    inputs: str
    rows: int
    views: int
    fingerprints: dict[str, str | None]
    splits: list[str]
    counts: dict[str, int]
    classes: list[str] | None
    taps: list[str]
    signals: dict[str, Column]
    shards: list[Shard]
    canary: list[tuple[int, int]]
    notes: list[str] = []

    @property
    def bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(shard.bytes for shard in self.shards)


def write(path: Path, value: Plan | Manifest) -> None:
    """Write a plan or a manifest, whole or not at all."""
    files.write_json(path, value.model_dump(mode="json"), sealed=True)


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of the store in ``folder``, or None where there is none that can be read."""
    try:
        return Plan.model_validate(files.unseal(folder / PLAN, files.read_json(folder / PLAN), needed=False))
    except (StoreError, ValueError, RecursionError):
        return None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in ``folder``, and see that it agrees with itself and every shard is there in full length.

    Raises:
        StoreError: no store, not wholly recorded, of a newer schema, damaged, or a shard is missing or cut short.
    """
    path = folder / MANIFEST
    if not is_file(path):
        raise StoreError(_absent(folder))
    try:
        value = files.read_json(path)
        _recognise(path, value)
        manifest = Manifest.model_validate(files.unseal(path, value, needed=False))
    except Damaged as error:
        raise StoreError(_damaged(path, "it does not match its checksum")) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(_damaged(path, f"{place}: {first['msg']}")) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(_damaged(path, str(error))) from error
    if wrong := _contradiction(folder, manifest):
        raise StoreError(_damaged(path, wrong))
    for shard in manifest.shards:
        file = folder / shard.file
        if not is_file(file):
            raise StoreError(missing(file))
        size = file.stat().st_size
        if size != shard.bytes:
            raise StoreError(
                f"A shard of the store is damaged: {file} has {size:,} bytes, {shard.bytes:,} were written. Bring it "
                "back from a copy, or run the same record again: only this shard is recorded anew."
            )
    return manifest


def verified(folder: Path) -> dict[str, int]:
    """Read every byte of a store and compare; return how many shards and bytes there are.

    Raises:
        StoreError: there is no store, or a byte in it has changed.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        compare(folder, shard)
    return {"shards": len(manifest.shards), "bytes": manifest.bytes}


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a store of which every byte is as it was written."""
    try:
        for shard in read_manifest(folder).shards:
            intact(folder, shard)
    except StoreError:
        return False
    return True


def _damaged(path: Path, why: str) -> str:
    return (
        f"The manifest of the store is damaged: {path} ({why}). Bring it back from a copy, or run the same "
        "record again: whole shards are kept."
    )


def _contradiction(folder: Path, manifest: Manifest) -> str:
    """Return what in a manifest cannot be, held against the rest of it, or nothing."""
    for name, column in manifest.signals.items():
        if column.dtype not in DTYPES:
            return f"the signal '{name}' is of the type '{column.dtype}', allowed: {', '.join(DTYPES)}"
        if any(size is not None and size < 0 for size in column.shape):
            return f"the signal '{name}' has a shape below 0: {column.shape}"
        if column.form == "unit" and name + NORM not in manifest.signals:
            return f"the signal '{name}' lacks its norms, '{name + NORM}'"
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.rows or min([0, *manifest.counts.values()]) < 0:
        return f"its shards have {rows:,} rows, not {manifest.rows:,}"
    return _wrong_shard(folder, manifest)


def _wrong_shard(folder: Path, manifest: Manifest) -> str:
    """Return what cannot be of the shards, or nothing."""
    signals, seen, last = manifest.signals, set[str](), (-1, -1)
    for shard in manifest.shards:
        if not plain_name(shard.file) or shard.file in seen:
            return f"a shard is called '{shard.file}': a name of its own inside the folder is needed"
        if (folder / shard.file).resolve().parent != folder.resolve():
            return f"the shard {shard.file} is a link that leads out of the folder"
        if shard.sizes.keys() != signals.keys():
            odd = sorted(shard.sizes.keys() ^ signals.keys())
            return f"{shard.file} and the list of signals differ in {', '.join(odd[:5])}"
        for name, size in shard.sizes.items():
            unit = signals[name].row_bytes
            if not signals[name].ragged and size != shard.rows * unit or size < 0 or size % max(1, unit):
                return f"{shard.file} cannot have {size:,} bytes of '{name}' in {shard.rows:,} rows of {unit:,} bytes"
        if shard.first <= last or shard.last < shard.first:
            return f"the rows of {shard.file} are not behind those of the shard before: shards are in another order"
        seen.add(shard.file)
        last = shard.last
    return ""


def _recognise(path: Path, value: Any) -> None:
    if not isinstance(value, dict) or value.get("kind") != "stillroom-store":
        raise StoreError(f"This is not a store: {path} was not written by record. Give the folder that record wrote.")
    version = value.get("schema_version")
    if version != SCHEMA:
        raise StoreError(
            f"The store has another schema: got version {version} in {path}. Allowed: {SCHEMA}. "
            "Install the Stillroom that wrote it, or record again with this one."
        )


def _absent(folder: Path) -> str:
    plan = read_plan(folder)
    if plan is not None:
        done = len(list(folder.glob("shard-*.json")))
        return (
            f"The store is only partly recorded: {folder} has {done} whole shards of {plan.rows:,} rows planned, but "
            "no manifest yet. Run the same record again: it goes on where it stopped."
        )
    if not is_folder(folder):
        return f"There is no store: the folder {folder} does not exist. Check the path, or run record first."
    return (
        f"This is not a store: {folder} holds no manifest.json. Give a folder that record wrote, or run record first."
    )
