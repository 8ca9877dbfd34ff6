"""Ask a teacher once and keep what it shows: shard by shard, resumable, by one process or many."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom import files
from stillroom.contracts import Progress, Signals, Source, Teacher
from stillroom.data.known import check_source
from stillroom.errors import StoreError, say
from stillroom.paths import expand, is_file
from stillroom.store.decoded import Shelf
from stillroom.store.encoding import Column, encode, lay_out
from stillroom.store.manifest import MANIFEST, PLAN, SCHEMA, SIDES, Manifest, Plan, read_manifest, read_plan, write
from stillroom.store.shards import Note, Shard, array, build, committed, intact, note_path, shard_name, write_shard
from stillroom.store.store import Store, memory_budget

SPLITS = ("train", "validation", "test")
EXAMPLE_ROWS = 32  # rows asked first, to learn what a row weighs
SHARD_BYTES = 2**27  # a shard is held in memory while it is recorded
CANARY_ROWS = 8
ANEW = "asked anew"


@dataclass(frozen=True)
class Recording:
    """Options of :func:`record`.

    ``ids``: examples to record (int64, N), else all of ``splits`` (by default those of train, validation and
    test that the source has). ``views``: of training examples; of the others view 0 only. ``batch``: rows asked
    at a time. ``rows_per_shard``: fewer where rows are heavy. ``taps``, ``classes``: for the manifest.
    ``fingerprints``: of teacher, data and transform; where none is given, a live module's and the source's own.
    ``dtypes``: overrides by signal. ``order_by``: maps examples (int64, N) to numbers, by which rows are asked
    inside a shard (lengths, say). ``compression``: "none" or "zstd".
    ``rank`` of ``world`` processes writes every ``world``-th shard; ``wait``: seconds without a new shard of
    another rank before giving up. ``limit``: bytes the store may have. ``budget``: memory for what the
    returned store decodes. ``progress``: told rows done.
    """

    ids: Tensor | NDArray[np.int64] | Sequence[int] | None = None
    splits: Sequence[str] | None = None
    views: int = 1
    batch: int = 256
    rows_per_shard: int = 8192
    taps: Sequence[Any] = ()
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    dtypes: Mapping[str, str] | None = None
    order_by: Callable[[Tensor], Tensor] | None = None
    compression: str = "none"
    rank: int = 0
    world: int = 1
    wait: float = 600.0
    limit: int | None = None
    budget: int | None = None
    progress: Progress | None = None
    asked_anew: list[str] = field(default_factory=list, init=False)  # why what was here before was not kept


@dataclass(frozen=True)
class Estimate:
    """What a store will weigh: rows (views counted), bytes, and bytes a row by signal."""

    rows: int
    bytes: int
    by_signal: Mapping[str, float]


def record(teacher: Teacher, source: Source, folder: str | Path, **options: Any) -> Store:
    """Record what ``teacher`` shows on ``source`` into ``folder`` and open it; options: :class:`Recording`.

    Run again with the same plan it keeps whole shards and asks only for what is missing or damaged; a folder with
    another plan's store is moved to ``old/`` beside it. So is a store of the same plan if the teacher does not answer
    a few of its rows as it did then; the new one says so in its notes. Memory: one shard.

    Raises:
        StoreError: an option is wrong, the store would not fit, the teacher's signals are not finite, change
            their shape or cannot be stored, shards of other ranks did not come, or another teacher is given to some
            ranks of several.
    """
    check_source(source)
    job = _options(options)
    folder = expand(folder, "The folder of a store", StoreError)
    rows = _Rows.plan(source, job)
    plan = _plan(teacher, source, job, rows)
    _open_folder(folder, plan, job)
    if differing := _changed(teacher, source, folder, plan, rows, job):
        if job.world > 1:
            raise StoreError(
                f"{folder} holds the answers of another teacher: got {differing} from what is stored. Use that teacher "
                "on all ranks, or record into another folder."
            )
        old = files.set_aside(folder)
        write(folder / PLAN, plan)
        job.asked_anew.append(f"{ANEW}: {differing} from what the teacher showed before, which lies in {old.name}")
    if not _whole(folder, plan.inputs):
        weight, columns = _example(teacher, source, rows, job)
        per_shard = _rows_per_shard(job, weight)
        starts = range(0, len(rows.ids), per_shard)
        missing = [number for number in range(len(starts)) if not _kept(folder, number, plan.inputs, columns)]
        if missing:
            _fits(folder, weight, job, len(missing) / len(starts))
        writer = _Writer(teacher, source, folder, plan.inputs, columns, rows, job)
        for number in missing:
            if number % job.world == job.rank:
                writer.shard(number, starts[number], min(len(rows.ids), starts[number] + per_shard))
        _finish(folder, plan, len(starts), rows, source, job)
    return Store.open(folder, budget=job.budget)


def still_shows(teacher: Teacher, source: Source, folder: str | Path, **options: Any) -> bool:
    """Whether ``folder`` holds a whole store, and ``teacher`` answers some of its rows as it did then.

    ``options`` are those that it was recorded with.
    """
    job, folder = _options(options), Path(folder)
    try:
        manifest = read_manifest(folder)
    except StoreError:
        return False
    return not _differing(Store.open(folder), teacher, source, _Rows.plan(source, job), job) or manifest.rows == 0


def _changed(teacher: Teacher, source: Source, folder: Path, plan: Plan, rows: _Rows, job: Recording) -> str:
    """What a teacher answers otherwise than the whole or partial store of the same plan in ``folder``; "" for nothing.

    A fingerprint alone does not tell: some teachers have none, and others depend on what no fingerprint sees.
    """
    if _whole(folder, plan.inputs):
        return _differing(Store.open(folder), teacher, source, rows, job)
    numbers = [int(path.stem.removeprefix("shard-")) for path in sorted(folder.glob("shard-*.json"))]
    notes = [note for number in numbers if (note := committed(folder, number, plan.inputs)) is not None]
    notes = [note for note in notes if note.signals == notes[0].signals]
    if not notes:
        return ""
    part = _manifest(plan, notes, rows, None)
    chosen = np.unique(np.linspace(0, len(notes) - 1, CANARY_ROWS).astype(np.int64))
    part = part.model_copy(update={"canary": [notes[number].shard.first for number in chosen]})
    return _differing(Store(Shelf(folder, part, memory_budget()), sorted(part.signals)), teacher, source, rows, job)


def _differing(store: Store, teacher: Teacher, source: Source, rows: _Rows, job: Recording) -> str:
    """What a teacher answers otherwise than the store; where the answer hangs on the batch, in the batches of then."""
    try:
        if not (said := store.unlike(source, teacher)):
            return ""
        for ids in _batches(store.manifest, rows, job):
            if said := store.unlike(source, teacher, ids):
                return said
    except StoreError as error:  # signals of another shape, or that cannot be stored
        return f"what it shows ({error}) is far"
    return ""


def _batches(manifest: Manifest, rows: _Rows, job: Recording) -> Iterator[Tensor]:
    """Yield the batches in which the canary's rows were asked."""
    wanted = set(manifest.canary)
    for shard in manifest.shards:
        start = int(np.flatnonzero((rows.ids == np.asarray(shard.first)).all(1))[0])
        asked = _in_order(rows.ids[start : start + shard.rows], job)[0]
        for at in range(0, len(asked), job.batch):
            part = asked[at : at + job.batch]
            if any((int(example), int(view)) in wanted for example, view in part):
                yield torch.from_numpy(part.copy())


def _in_order(ids: NDArray[np.int64], job: Recording) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the rows of a shard in the order in which they are asked, and that order, None where it is their own."""
    if job.order_by is None:
        return ids, None
    order = np.argsort(np.asarray(job.order_by(torch.from_numpy(ids[:, 0].copy()))), kind="stable")
    return ids[order], order


def estimate(teacher: Teacher, source: Source, **options: Any) -> Estimate:
    """Return what :func:`record` would write with the same options, from the teacher's answer to one small batch."""
    job = _options(options)
    few = replace(job, views=min(job.views, EXAMPLE_ROWS))  # the rows that are asked first are the same
    rows = _Rows.plan(source, few)
    weight = _example(teacher, source, rows, few)[0]
    train = int((rows.codes == rows.splits.index("train")).sum()) if "train" in rows.splits else 0
    count = weight.rows + train // few.views * (job.views - few.views)
    return Estimate(count, int(count * _row_bytes(weight.by_signal)), weight.by_signal)


def _options(options: Mapping[str, Any]) -> Recording:
    known = [entry.name for entry in fields(Recording) if entry.init]
    for name in options:
        if name not in known:
            raise StoreError(say("record has no such option", f"'{name}'", known))
    job = Recording(**{name: value for name, value in options.items() if value is not None})
    for name in ("views", "batch", "rows_per_shard", "world"):
        if getattr(job, name) < 1:
            raise StoreError(say(f"record cannot work with this '{name}'", getattr(job, name), "1 or more"))
    if not 0 <= job.rank < job.world:
        raise StoreError(say("There is no such rank", job.rank, f"0 to {job.world - 1}"))
    if job.compression not in ("none", "zstd"):
        raise StoreError(say("A store cannot be compressed so", f"'{job.compression}'", ["none", "zstd"]))
    unknown = set(job.fingerprints) - set(SIDES)
    if unknown:
        raise StoreError(say("There is no such fingerprint", f"'{sorted(unknown)[0]}'", SIDES))
    return job


# --- what to record ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Every (example, view) to record, sorted, and the number of its split (-1: none)."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    splits: tuple[str, ...]

    @classmethod
    def plan(cls, source: Source, job: Recording) -> _Rows:
        there = source.splits
        names = [name for name in SPLITS if name in there] if job.splits is None else list(job.splits)
        for name in names:
            if name not in there:
                raise StoreError(say("The data has no such split to record", f"'{name}'", list(there)))
        members = {name: np.unique(np.asarray(there[name], np.int64)) for name in names}
        examples = np.concatenate([np.empty(0, np.int64), *members.values()])
        codes = np.repeat(np.arange(len(names), dtype=np.int8), [len(part) for part in members.values()])
        order = np.argsort(examples, kind="stable")
        examples, codes = examples[order], codes[order]
        twice = np.unique(examples[1:][examples[1:] == examples[:-1]])
        if len(twice):
            shown = ", ".join(str(example) for example in twice[:5])
            raise StoreError(
                f"Splits overlap: examples {shown} ({len(twice)} in all) are in more than one of {', '.join(names)}. "
                "Each example may be in one only, or scores would be flattered. Split the data anew."
            )
        if job.ids is not None:
            examples, codes = _choose(source, np.unique(np.asarray(job.ids, np.int64)), examples, codes)
        if not len(examples):
            raise StoreError(
                f"There is nothing to record: got no examples in {names or 'any split'}. Check splits, ids."
            )
        train = names.index("train") if "train" in names else None
        views = np.where(codes == train, job.views, 1) if train is not None else np.ones(len(examples), np.int64)
        number = np.arange(int(views.sum())) - np.repeat(np.cumsum(views) - views, views)
        return cls(np.stack([np.repeat(examples, views), number], axis=1), np.repeat(codes, views), tuple(names))


def _choose(
    source: Source, wanted: NDArray[np.int64], examples: NDArray[np.int64], codes: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    if wanted.ndim != 1 or (len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(source))):
        beyond = wanted[(wanted < 0) | (wanted >= len(source))] if wanted.ndim == 1 else wanted.shape
        raise StoreError(say("There are no such examples to record", beyond, f"0 to {len(source) - 1}"))
    if not len(examples):
        return wanted, np.full(len(wanted), -1, np.int8)
    places = np.searchsorted(examples, wanted).clip(max=len(examples) - 1)
    return wanted, np.where(examples[places] == wanted, codes[places], np.int8(-1)).astype(np.int8)


def _plan(teacher: Teacher, source: Source, job: Recording, rows: _Rows) -> Plan:
    prints: dict[str, str | None] = {side: job.fingerprints.get(side) for side in SIDES}
    if prints["teacher"] is None:
        prints["teacher"] = _print_of(teacher)
    if prints["data"] is None:
        own = getattr(source, "fingerprint", None)
        prints["data"] = str(own() if callable(own) else own) if own is not None else None
    taps = [str(tap) for tap in job.taps]
    shape = {
        "schema": SCHEMA,
        "fingerprints": prints,
        "ids": files.fingerprint([_digest(rows.ids), _digest(rows.codes), rows.splits]),
        "taps": taps,
        "rows_per_shard": job.rows_per_shard,
        "dtypes": dict(job.dtypes or {}),
        "compression": job.compression,
    }
    views = int(rows.ids[:, 1].max()) + 1
    return Plan(inputs=files.fingerprint(shape), rows=len(rows.ids), views=views, fingerprints=prints, taps=taps)


def _print_of(teacher: Teacher) -> str | None:
    """The fingerprint that a teacher gives itself: without it, only its answers tell it from another one."""
    known = getattr(teacher, "fingerprint", None)
    return known if isinstance(known, str) else None


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _open_folder(folder: Path, plan: Plan, job: Recording) -> None:
    """Make ``folder`` ready for ``plan``; rank 0 moves another plan's store away, the others wait for that."""
    until = time.monotonic() + job.wait
    while True:
        found = read_plan(folder)
        if found is not None and found.inputs == plan.inputs:
            return
        if job.rank == 0:
            break
        if time.monotonic() > until:
            raise StoreError(
                f"Rank {job.rank} waits in vain for rank 0 to begin {folder}: nothing came in {job.wait:g} s. "
                "Start rank 0 with the same options, then run this again."
            )
        time.sleep(0.05)
    if found is not None or is_file(folder / MANIFEST):
        files.set_aside(folder)
    write(folder / PLAN, plan)


def _whole(folder: Path, inputs: str) -> bool:
    if not is_file(folder / MANIFEST):
        return False
    try:
        manifest = read_manifest(folder)
        for shard in manifest.shards if manifest.inputs == inputs else ():
            intact(folder, shard)
        return bool(manifest.inputs == inputs)
    except StoreError as error:
        files.note(f"{str(error).partition('. ')[0]}; it is recorded again.")
        return False


def _kept(folder: Path, number: int, inputs: str, columns: Mapping[str, Column]) -> bool:
    note = committed(folder, number, inputs)
    return note is not None and note.signals == dict(columns)


# --- what it weighs -----------------------------------------------------------------------------------


def _ask(teacher: Teacher, source: Source, ids: Tensor) -> Signals:
    signals = teacher(source.batch(ids))
    for name, value in signals.items():
        if not isinstance(value, Tensor) or value.dim() < 1 or len(value) != len(ids):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StoreError(
                f"The teacher's signal '{name}' does not have one row an example: got {shape} for {len(ids)} examples. "
                "The first axis must be the example's. Correct the teacher, or leave this tap out."
            )
    if not signals:
        raise StoreError("The teacher showed nothing: got no signals. Name at least one tap, logits for instance.")
    return signals


def _example(teacher: Teacher, source: Source, rows: _Rows, job: Recording) -> tuple[Estimate, dict[str, Column]]:
    ids = torch.from_numpy(rows.ids[: min(job.batch, EXAMPLE_ROWS)].copy())
    signals = _ask(teacher, source, ids)
    columns = lay_out(signals, job.dtypes)
    pieces = encode(columns, signals, ids)
    weights = {name: piece.values.nbytes / len(ids) for name, piece in pieces.items()}
    return Estimate(len(rows.ids), int(len(rows.ids) * _row_bytes(weights)), weights), columns


def _row_bytes(weights: Mapping[str, float]) -> float:
    return sum(weights.values()) + 21  # example, view, hash, split


def _rows_per_shard(job: Recording, weight: Estimate) -> int:
    heavy = max(1.0, sum(weight.by_signal.values()))
    return max(1, min(job.rows_per_shard, max(job.batch, int(SHARD_BYTES / heavy))))


def _fits(folder: Path, weight: Estimate, job: Recording, share: float) -> None:
    free = shutil.disk_usage(folder).free
    heaviest = max(weight.by_signal, key=lambda name: weight.by_signal[name])
    cure = (
        f"Most is '{heaviest}' ({weight.by_signal[heaviest]:,.0f} bytes a row). Record fewer taps, views or examples, "
        "or choose another folder."
    )
    if job.limit is not None and weight.bytes > job.limit:
        raise StoreError(
            f"The store would be larger than allowed: {weight.rows:,} rows need {weight.bytes:,} bytes, the limit is "
            f"{job.limit:,} bytes. {cure}"
        )
    if weight.bytes * share > free:
        raise StoreError(
            f"The store does not fit on the disk: {weight.rows:,} rows need {int(weight.bytes * share):,} more bytes, "
            f"{folder} has {free:,} bytes free. {cure}"
        )


# --- writing ------------------------------------------------------------------------------------------


@dataclass
class _Writer:
    """Records shards; ``done`` counts rows for the progress."""

    teacher: Teacher
    source: Source
    folder: Path
    inputs: str
    columns: Mapping[str, Column]
    rows: _Rows
    job: Recording
    done: int = 0

    def shard(self, number: int, start: int, end: int) -> None:
        """Ask for rows ``start`` to ``end``, write them, then commit them by their note."""
        ids = self.rows.ids[start:end]
        asked, order = _in_order(ids, self.job)
        arrays: dict[str, list[pa.Array]] = {name: [] for name in self.columns}
        sizes = dict.fromkeys(self.columns, 0)
        hashes = np.empty(len(ids), np.uint64)
        for at in range(0, len(asked), self.job.batch):
            part = torch.from_numpy(asked[at : at + self.job.batch].copy())
            pieces = encode(self.columns, _ask(self.teacher, self.source, part), part)
            for name, piece in pieces.items():
                arrays[name].append(array(self.columns[name], piece))
                sizes[name] += piece.values.nbytes
            hashes[at : at + len(part)] = self.source.hashes(part[:, 0])
            files.faultpoint("record:batch")
            self._tell(len(part))
        back = None if order is None else np.argsort(order)
        codes = self.rows.codes[start:end]
        keys = {"example": ids[:, 0], "view": ids[:, 1].astype(np.int32), "split": codes}
        keys["hash"] = hashes if back is None else hashes[back]
        path = self.folder / shard_name(number)
        digest, size = write_shard(path, build(keys, arrays, back), self.job.compression)
        files.faultpoint("record:shard")
        counts = {name: int((codes == code).sum()) for code, name in enumerate(self.rows.splits)}
        first, last = (int(ids[0, 0]), int(ids[0, 1])), (int(ids[-1, 0]), int(ids[-1, 1]))
        shard = Shard(
            file=path.name, rows=len(ids), bytes=size, sha256=digest, first=first, last=last, splits=counts, sizes=sizes
        )
        notes = list(getattr(self.teacher, "notes", ()))
        note = Note(inputs=self.inputs, shard=shard, signals=dict(self.columns), notes=notes)
        files.write_json(note_path(self.folder, number), note.model_dump(mode="json"), sealed=True)
        files.faultpoint("record:committed")

    def _tell(self, rows: int) -> None:
        self.done += rows
        if self.job.progress is not None:
            self.job.progress(self.done, len(self.rows.ids), "rows")


def _finish(folder: Path, plan: Plan, count: int, rows: _Rows, source: Source, job: Recording) -> None:
    """Write the manifest once all shards are there, whoever wrote them: every rank would write the same bytes."""
    notes = _gather(folder, plan.inputs, count, job)
    classes = job.classes if job.classes is not None else getattr(source, "classes", None)
    manifest = _manifest(plan, notes, rows, classes)
    manifest = manifest.model_copy(update={"notes": [*dict.fromkeys([*job.asked_anew, *manifest.notes])]})
    files.faultpoint("record:manifest")
    write(folder / MANIFEST, manifest)
    files.faultpoint("record:done")


def _manifest(plan: Plan, notes: Sequence[Note], rows: _Rows, classes: Sequence[str] | None) -> Manifest:
    chosen = np.unique(np.linspace(0, len(rows.ids) - 1, CANARY_ROWS).astype(np.int64))
    counts = {name: int((rows.codes == code).sum()) for code, name in enumerate(rows.splits)}
    return Manifest(
        inputs=plan.inputs,
        rows=plan.rows,
        views=plan.views,
        fingerprints=plan.fingerprints,
        splits=list(rows.splits),
        counts=counts,
        classes=None if classes is None else [str(name) for name in classes],
        taps=plan.taps,
        signals=notes[0].signals,
        shards=[note.shard for note in notes],
        canary=[(int(example), int(view)) for example, view in rows.ids[chosen]],
        notes=list(dict.fromkeys(one for note in notes for one in note.notes)),
    )


def _gather(folder: Path, inputs: str, count: int, job: Recording) -> list[Note]:
    until, before = time.monotonic() + job.wait, -1
    while True:
        notes = [committed(folder, number, inputs) for number in range(count)]
        found = [note for note in notes if note is not None]
        if len(found) == count:
            break
        if len(found) != before:
            until, before = time.monotonic() + job.wait, len(found)
        if time.monotonic() >= until:
            absent = [shard_name(number) for number, note in enumerate(notes) if note is None]
            raise StoreError(
                f"The store {folder} is not whole yet: rank {job.rank} of {job.world} has written its shards, but "
                f"{', '.join(absent[:5])} ({len(absent)} in all) are missing. Run the other ranks, then this again."
            )
        time.sleep(0.1)
    if any(note.signals != found[0].signals for note in found):
        raise StoreError(
            f"Shards of {folder} hold different signals: the teacher did not answer alike on all ranks. "
            "Use the same teacher everywhere, remove the folder and record again."
        )
    return found
