"""What a store says about itself: ``plan.json`` when recording begins, ``manifest.json`` when it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stillroom import files
from stillroom.errors import StoreError
from stillroom.store.encoding import Column
from stillroom.store.shards import Shard, missing

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
    files.write_json(path, value.model_dump(mode="json"))


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of the store in ``folder``, or None where there is none that can be read."""
    try:
        return Plan.model_validate(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in ``folder`` and see that every shard it names is there in full length.

    Raises:
        StoreError: no store, not wholly recorded, of a newer schema, or a shard is missing or cut short.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(_absent(folder))
    value = files.read_json(path)
    _recognise(path, value)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"The manifest of the store is damaged: {path} ({place}: {first['msg']}). Bring it back from a copy, or "
            "delete it and run the same record again: whole shards are kept."
        ) from error
    for shard in manifest.shards:
        file = folder / shard.file
        if not file.is_file():
            raise StoreError(missing(file))
        size = file.stat().st_size
        if size != shard.bytes:
            raise StoreError(
                f"A shard of the store is damaged: {file} has {size:,} bytes, {shard.bytes:,} were written. Bring it "
                "back from a copy, or run the same record again: only this shard is recorded anew."
            )
    return manifest


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
    if not folder.is_dir():
        return f"There is no store: the folder {folder} does not exist. Check the path, or run record first."
    return (
        f"This is not a store: {folder} holds no manifest.json. Give a folder that record wrote, or run record first."
    )
