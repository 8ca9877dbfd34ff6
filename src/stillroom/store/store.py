"""A Store: a folder of what a teacher showed, that answers as the teacher would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom import files, randomness
from stillroom.contracts import SPANS, Batch, Signals, Source, State, Teacher, place, tap
from stillroom.errors import StoreError, TapError, say
from stillroom.paths import expand
from stillroom.store.decoded import CHUNK, Held, Shelf
from stillroom.store.encoding import MASK, NORM, Column, encode, named
from stillroom.store.manifest import MANIFEST, SIDES, Manifest, read_manifest, verified
from stillroom.store.shards import intact
from stillroom.tasks import check_names


def memory_budget() -> int:
    """Return a quarter of this machine's memory, in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (ValueError, OSError, AttributeError):
        return 2**31


class Store:
    """Stored knowledge as a teacher: ``store(batch)`` gives the signals recorded for ``batch["id"]``.

    Open one with :meth:`open`. Floats come out as float32 (float64 where it was asked for), everything
    else in the dtype it was recorded in, on the device of the batch's ``id``; all are copies.
    """

    def __init__(self, shelf: Shelf, names: Sequence[str]) -> None:
        self._shelf = shelf
        self._names = tuple(names)
        self._plain: tuple[tuple[str, Tensor], ...] = ()
        self._other: tuple[tuple[str, Held], ...] = ()
        self._ready = False

    @classmethod
    def open(cls, folder: str | Path, *, budget: int | None = None, verify: bool = True) -> Store:
        """Open the store in ``folder``.

        ``budget`` is the memory (bytes) that decoded columns may take, a quarter of the machine's by default;
        above it they lie in a mapped file. Every shard's checksum is compared first, and again before a column is read
        if the file has changed since; ``verify=False`` leaves that out.

        Raises:
            StoreError: no store, partly recorded, of another schema, or a shard is missing or damaged.
        """
        folder = expand(folder, "The folder of a store", StoreError)
        manifest = read_manifest(folder)
        for shard in manifest.shards if verify else ():
            intact(folder, shard)
        with contextlib.suppress(OSError):
            os.utime(folder / MANIFEST)  # what ``prune`` takes for the last use
        names = [name for name in manifest.signals if not _companion(name, manifest.signals)]
        room = memory_budget() if budget is None else budget
        return cls(Shelf(folder, manifest, room, verify=verify), sorted(names))

    # --- what it is ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._shelf.index.count

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, rows={len(self)}, signals={list(self._names)})"

    @property
    def folder(self) -> Path:
        """Where the store lies."""
        return self._shelf.folder

    @property
    def manifest(self) -> Manifest:
        """What the store says about itself."""
        return self._shelf.manifest

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that a call returns."""
        return self._names

    @property
    def fingerprint(self) -> str:
        """A name for what is stored: of every shard's content and of what it was recorded from."""
        shards = sorted(shard.sha256 for shard in self.manifest.shards)
        return files.fingerprint({"shards": shards, "from": self.manifest.fingerprints})

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes the teacher knows, where they were given."""
        return self.manifest.classes

    @property
    def views(self) -> int:
        """How many views of a training example were recorded."""
        return self.manifest.views

    @property
    def splits(self) -> dict[str, int]:
        """Recorded rows by split."""
        return dict(self.manifest.counts)

    @property
    def notes(self) -> list[str]:
        """How those derivatives that are asked for were read as the teacher was recorded, and why so."""
        return [note for note in self.manifest.notes if note.split(" ")[0] in self._names]

    def rows(self, split: str = "train") -> Tensor:
        """Return the (example, view) of every row of ``split``: int64, N x 2.

        Raises:
            StoreError: the store has no such split.
        """
        names = self.manifest.splits
        if split not in names:
            raise StoreError(say(f"The store {self.folder} has no such split", f"'{split}'", names))
        return self._shelf.index.ids(np.flatnonzero(self._shelf.splits() == names.index(split)))

    # --- answering ----------------------------------------------------------------------------------

    def use(self, names: str | Iterable[str]) -> Store:
        """Return the same store answering with ``names`` only; decoded columns are shared.

        A tap of a memory stands for the entries it gave (``memory@state/8`` for ``memory@h`` and ``memory@c``). What
        runs along time keeps the ``spans`` that say what its steps stand for, where they were recorded.

        Raises:
            StoreError: a signal was not recorded, or cells were at other borders.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        chosen: list[str] = []
        for name in (one for given in wanted for one in self._given_by(given)):
            if name not in self.manifest.signals and not self._shelf.has(name):
                raise StoreError(
                    say(
                        f"The store {self.folder} does not hold this signal",
                        f"'{name}'",
                        sorted(self.manifest.signals),
                        "Record again with this tap, or use one that is there.",
                    )
                )
            if name not in chosen:
                chosen.append(name)
        return Store(self._shelf, [*chosen, *_spans(chosen, self.manifest.signals)])

    def _given_by(self, name: str) -> list[str]:
        """Return the signals that ``name`` means: of a mask its base, of a memory's tap what it gave."""
        signals, base = self.manifest.signals, name.removesuffix(MASK)
        if name in signals or self._shelf.has(name):
            return [name]
        return [base] if base in signals else _of_memory(name, self.folder, self.manifest)

    def decode(self) -> Store:
        """Decode now what a call returns, so that the first step does not wait for it; return the store."""
        held = [(name, self._shelf.held(name)) for name in self._names]
        self._plain = tuple((name, column.values) for name, column in held if column.plain)
        self._other = tuple((name, column) for name, column in held if not column.plain)
        self._ready = True
        return self

    def __call__(self, batch: Batch) -> Signals:
        """Return what was recorded for ``batch["id"]`` (int64, B x 2: example, view).

        Raises:
            StoreError: an id was not recorded; the first five are named.
        """
        if not self._ready:
            self.decode()
        ids = batch["id"]
        elsewhere = ids.device.type != "cpu"
        rows = self._shelf.index.find(ids.cpu() if elsewhere else ids)
        signals = {name: values.index_select(0, rows) for name, values in self._plain}
        for name, held in self._other:
            signals[name], mask = held.take(rows)
            if mask is not None:
                signals[name + MASK] = mask
        return {name: value.to(ids.device) for name, value in signals.items()} if elsewhere else signals

    def derive(self, key: str, of: str, function: Callable[[Tensor], Tensor]) -> Store:
        """Make signal ``key`` once from signal ``of`` and add it to what a call returns; return the store.

        ``function`` maps rows (N x ...) to as many rows, each by itself: it is called chunk by chunk. ``key``
        stands for it: a second call with the same key computes nothing.

        Raises:
            StoreError: ``of`` was not recorded or has rows of varying length, or ``key`` is a recorded signal.
        """
        if key in self.manifest.signals:
            raise StoreError(f"A signal cannot be derived under a name that was recorded: got '{key}'. Choose another.")
        self.use([of])
        self._shelf.derive(key, of, function)
        if key not in self._names:
            self._names, self._ready = (*self._names, key), False
        return self

    def bank(self, names: Sequence[str], batch: Batch, *, rows: int, seed: int, step: int) -> Signals:
        """Return other training rows' signals: ``<name>.bank`` (rows x ...) and ``<name>.bank.mask`` (B x rows).

        The rows belong to (seed, step) alone, so they are equal on all ranks and after a resume; none comes
        twice where there are enough. The mask is False where a bank row is the batch row's own example.

        Raises:
            StoreError: a signal was not recorded or varies in length, or there are no training rows.
        """
        pool = self._shelf.train()
        if rows < 1 or not len(pool):
            raise StoreError(
                f"A bank of {rows} rows cannot be drawn from {len(pool)} training rows. Allowed: 1 or more."
            )
        drawn = pool[_sample(len(pool), rows, seed, step)]
        places, examples = torch.from_numpy(drawn), self._shelf.index.ids(drawn)[:, 0]
        ids = batch["id"]
        others = ids[:, :1] != examples.to(ids.device)
        signals: Signals = {}
        for name in self.use(names)._names:
            held = self._shelf.held(name)
            if held.starts is not None:
                raise StoreError(
                    f"Signal '{name}' cannot stand in a bank: its rows vary in length. Allowed: signals of one shape. "
                    "Pool it in the tap, or choose another."
                )
            signals[f"{name}.bank"] = held.take(places)[0].to(ids.device)
            signals[f"{name}.bank{MASK}"] = others
        return signals

    # --- trusting it --------------------------------------------------------------------------------

    def require(self, ids: Tensor, split: str = "train") -> None:
        """See that every one of ``ids`` (examples, or N x 2: example, view) was recorded as part of ``split``.

        Raises:
            StoreError: rows are not in the store, or belong to another split; the first five are named.
        """
        pairs = _pairs(ids)
        present = self._shelf.index.contains(pairs)
        if not bool(present.all()):
            absent = pairs[~present]
            raise StoreError(
                f"The store {self.folder} does not know these examples: {named(absent)}. It holds {len(self):,} rows "
                f"with up to {self.views} views. Record these examples (or more views) too, or leave them out."
            )
        names = self.manifest.splits
        if split not in names:
            raise StoreError(say(f"The store {self.folder} has no such split", f"'{split}'", names))
        found = self._shelf.splits()[self._shelf.index.find(pairs).numpy()]
        wrong = found != names.index(split)
        if wrong.any():
            code = int(found[wrong][0])
            other = names[code] if code >= 0 else "no split"
            raise StoreError(
                f"Rows of another split would be used as '{split}': examples {named(pairs[torch.from_numpy(wrong)])} "
                f"were recorded as '{other}'. Allowed: rows of '{split}'. Use the data's own splits, or record again."
            )

    def check(
        self,
        source: Source | None = None,
        *,
        teacher_fingerprint: str | None = None,
        data_fingerprint: str | None = None,
        transform_fingerprint: str | None = None,
        canary: Teacher | None = None,
    ) -> None:
        """See that the store belongs to this teacher, data and transform.

        With ``source`` each row's hash decides about the data, so that subsets and extended sets are usable; with
        ``canary``, the live teacher, its answers on 8 fixed rows are compared as well. A fingerprint that was not
        noted when recording is not compared.

        Raises:
            StoreError: which side differs, what was recorded and what is given, and what to do.
        """
        given = {"teacher": teacher_fingerprint, "transform": transform_fingerprint}
        if source is None:
            given["data"] = data_fingerprint
        for side in SIDES:
            now, then = given.get(side), self.manifest.fingerprints.get(side)
            if now is not None and then is not None and now != then:
                raise StoreError(
                    f"The store {self.folder} was recorded with another {side}: got {now}, recorded with {then}. Use "
                    f"the {side} it was recorded with, or record again into another folder."
                )
        if source is not None:
            self._check_classes(source)
            self._check_hashes(source)
        if canary is not None:
            if source is None:
                raise StoreError("The live teacher cannot be compared without its data: got no source. Give both.")
            if differing := self.unlike(source, canary):
                raise StoreError(
                    f"This is not the teacher that was recorded: {differing} from what the store {self.folder} holds. "
                    "Use that teacher with the same weights and transform, or record again into another folder."
                )

    def _check_classes(self, source: Source) -> None:
        here = getattr(source, "classes", None)
        check_names(self.classes, here, f"The store {self.folder}", numbers=False, error=StoreError)

    def _check_hashes(self, source: Source) -> None:
        start, size, differing = 0, len(source), []
        for hashes in self._shelf.key("hash"):
            rows = np.arange(start, start + len(hashes))
            start += len(hashes)
            ids = self._shelf.index.ids(rows)
            known = (ids[:, 1] == 0) & (ids[:, 0] < size)
            ids, hashes = ids[known], hashes[known.numpy()]
            for at in range(0, len(ids), CHUNK):
                part = ids[at : at + CHUNK]
                wrong = np.asarray(source.hashes(part[:, 0])) != hashes[at : at + CHUNK]
                differing.append(part[torch.from_numpy(wrong)])
        found = torch.cat([torch.empty(0, 2, dtype=torch.int64), *differing])
        if len(found):
            raise StoreError(
                f"The store {self.folder} was recorded from other data: examples {named(found)} are not what they were "
                "then. Bring the data back as it was (same files, same order), or record again."
            )

    def unlike(self, source: Source, teacher: Teacher, ids: Tensor | None = None) -> str:
        """Return what a live teacher answers otherwise than is stored, "" for nothing.

        Compared on 8 fixed rows, or on those of ``ids`` (int64, N x 2).
        """
        if ids is None:
            pairs = [pair for pair in self.manifest.canary if pair[0] < len(source)]
            ids = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        if not len(ids):
            return ""
        live = teacher(source.batch(ids))
        names = [name for name in self.manifest.signals if not _companion(name, self.manifest.signals)]
        lacking = sorted(set(names) - set(live))
        columns = {name: column for name, column in self.manifest.signals.items() if name not in lacking}
        shown = {name: value for name, value in live.items() if name.removesuffix(MASK) in columns}
        pieces = encode(columns, shown, ids)
        rows = self._shelf.index.find(ids)
        for name in sorted(set(names) - set(lacking)):
            held, piece = self._shelf.held(name), pieces[name]
            here = piece.values if piece.counts is not None else piece.values.view(len(ids), -1)
            there = _stored(held, rows, self.manifest.signals[name])
            far = _apart(here, there)
            if not far <= _allowed(self.manifest.signals[name]):
                return f"'{name}' on examples {named(ids)} is {far:.2g} (relative)"
        return ""

    def verify(self) -> dict[str, int]:
        """Compare every shard with the checksum it was written with; return how many shards and bytes were read.

        Raises:
            StoreError: a shard is missing or a byte in it has changed.
        """
        return verified(self.folder)


def _companion(name: str, signals: Mapping[str, Any]) -> bool:
    base = name.removesuffix(NORM)
    return base != name and base in signals and signals[base].form == "unit"


def _spans(chosen: Sequence[str], signals: Mapping[str, Column]) -> list[str]:
    """Return the spans, of each teacher, that say what the steps of the ``chosen`` signals stand for."""
    timed = [name for name in chosen if name in signals and signals[name].ragged]
    found = dict.fromkeys(name[: name.rfind("/") + 1] + SPANS for name in timed)
    return [name for name in found if name in signals and name not in chosen]


def _of_memory(name: str, folder: Path, manifest: Manifest) -> list[str]:
    """Return the entries that the tap of a memory gave, ``name`` itself where it is none or gave nothing.

    Raises:
        StoreError: its cells were recorded at other borders.
    """
    try:
        owner, found, _ = place(name)
        taps = [tap(one) for one in manifest.taps]
    except TapError:  # names of somebody's own
        return [name]
    if not isinstance(found, State):
        return [name]
    before = f"{owner}/{found.path}" if owner else found.path
    parts = ("h", "c") if found.part == "state" else (found.part,)
    held = [f"{before}@{part}" for part in parts if f"{before}@{part}" in manifest.signals]
    if any(one.endswith("@c") for one in held):
        others = [one for one in taps if isinstance(one, State) and one.path == found.path and one.part != "h"]
        if others and all(one.every != found.every for one in others):
            do = "Write the same number behind '/', or record again."
            raise StoreError(say(f"{folder} holds cells at other borders", f"'{name}'", map(str, others), do))
    return held or [name]


def _pairs(ids: Tensor) -> Tensor:
    ids = torch.as_tensor(ids, dtype=torch.int64).cpu()
    return ids if ids.dim() == 2 else torch.stack([ids, torch.zeros_like(ids)], dim=1)


def _stored(held: Held, rows: Tensor, column: Column) -> Tensor:
    """Return stored rows in the same flat form that :func:`encode` gives, norms not multiplied back."""
    if held.starts is None:
        return held.values.index_select(0, rows).flatten(1) if held.values.dim() > 1 else held.values[rows][:, None]
    flat, unit = held.values.flatten(), column.unit
    return torch.cat([flat[held.starts[row] * unit : held.starts[row + 1] * unit] for row in rows])


def _apart(here: Tensor, there: Tensor) -> float:
    """Return how far two answers are apart, relative to what is stored; infinity where lengths differ."""
    if here.shape != there.shape:
        return float("inf")
    if not there.is_floating_point():
        return float((here != there).any())
    a, b = here.double().flatten(), there.double().flatten()
    return float((a - b).norm() / b.norm().clamp_min(1e-6)) if len(b) else 0.0


def _allowed(column: Column) -> float:
    return {"bfloat16": 5e-2, "float16": 2e-2}.get(column.dtype, 1e-2)


def _sample(count: int, rows: int, seed: int, step: int) -> np.ndarray:
    """Draw ``rows`` of ``count``, none twice where there are enough."""
    if rows > count:
        return randomness.integers(count, seed, "bank", step, np.arange(rows))
    if rows * 4 <= count:  # twice as many as needed hold enough different ones, but for astronomical luck
        drawn = randomness.integers(count, seed, "bank", step, np.arange(2 * rows))
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= rows:
            return drawn[first[:rows]]
    return randomness.permutation(count, seed, "bank", step)[:rows]
