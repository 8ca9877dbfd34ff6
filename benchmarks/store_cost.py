"""Parts c, e and f: what recording costs, the memory it takes, and how fast what was recorded comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from timing import ALLOCATOR, Figure, paired, pin
from torch import Tensor
from training_cost import Material

from stillroom import randomness
from stillroom.contracts import Batch, Signals
from stillroom.data.arrays import ArraySource
from stillroom.models.zoo import build, parameters
from stillroom.record import record
from stillroom.store import Store
from stillroom.teachers import Live

WIDTH, BATCH = 512, 128
BUDGET = 16 * 2**20
TEACHERS = (
    ("resnet, depth 8, width 32, stem 2", {"depth": 8, "width": 32, "stem": 2}, 8192),
    ("resnet, depth 14, width 32, stem 1", {"depth": 14, "width": 32, "stem": 1}, 2048),
)


# --- c: recording beside the bare teacher ---------------------------------------------------------------


def recording(material: Material, *, pairs: int, share: float) -> list[Figure]:
    """Part c: rows a second of ``record`` over those of the bare forward pass, from normalised floats in memory."""
    figures = []
    for title, options, rows in TEACHERS:
        rows = int(rows * share)
        torch.manual_seed(0)
        network = build("resnet", shape=(1, 28, 28), classes=10, **options).eval()
        teacher = Live(network, ["logits"], encode=material.encode)
        images = material.source.inputs[:rows]
        with TemporaryDirectory() as folder:
            timed = paired(_bare(network, material.inputs[:rows]), _recorder(teacher, images, Path(folder)), pairs)
        note = f"{parameters(network):,} parameters, {rows:,} rows a block"
        figures.append(
            Figure(
                "c",
                f"recording logits, {title}",
                timed.speed(),
                0.95,
                most=False,
                unit="x the bare rate",
                note=note,
                more=timed.more(),
            )
        )
    return figures


def _bare(network: torch.nn.Module, inputs: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for part in inputs.split(256):
                network(part)

    return run


def _recorder(teacher: Live, images: Tensor, folder: Path) -> Callable[[], None]:
    """Return a call that records into a new folder each time; hashing the examples is part of it."""
    count = iter(range(10**6))

    def run() -> None:
        source = ArraySource(images, splits={"train": torch.arange(len(images))})
        record(teacher, source, folder / str(next(count)))

    return run


# --- e: memory ------------------------------------------------------------------------------------------


class Numbers:
    """A source without data: an example is its number."""

    classes = None

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.splits = {"train": torch.arange(rows)}

    def __len__(self) -> int:
        return self.rows

    def batch(self, ids: Tensor) -> Batch:
        """Return the ids alone."""
        return {"id": ids}

    def hashes(self, examples: Tensor) -> np.ndarray:
        """Return a hash of each number."""
        return randomness.draw(0, examples.numpy())

    def show(self, example: int) -> str:
        """Return the number as text."""
        return str(example)


def features(batch: Batch) -> Signals:
    """Show 512 numbers a row that depend on its id alone."""
    examples = batch["id"][:, 0].float()
    return {"features": torch.sin(examples[:, None] * torch.linspace(0.1, 1.0, WIDTH))}


def memory(*, rows: tuple[int, int]) -> list[Figure]:
    """Part e: the most anonymous memory that recording, and then 200 shuffled batches, take; fewer and many rows."""
    found = [_in_a_process(count) for count in rows]
    less, many = found
    names = {"recording": "recording", "reading": "decoding and reading"}
    return [
        Figure(
            "e",
            f"most RssAnon while {names[phase]}, {rows[1]:,} rows over {rows[0]:,}",
            (many[phase] / less[phase],),
            1.1,
            note=f"{less[phase] / 1e6:.0f} MB, {many[phase] / 1e6:.0f} MB; "
            f"the data {rows[1] * WIDTH * 2 / 1e6:.0f} MB, the budget {BUDGET / 1e6:.0f} MB",
            more={"bytes": {str(rows[0]): less[phase], str(rows[1]): many[phase]}},
        )
        for phase in names
    ]


def _in_a_process(rows: int) -> dict[str, int]:
    usual = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    run = subprocess.run([sys.executable, __file__, str(rows)], capture_output=True, text=True, check=True, env=usual)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def anonymous() -> int:
    """Return the bytes of memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("This kernel does not tell RssAnon in /proc/self/status; part e needs Linux.")


def take_memory(rows: int) -> dict[str, int]:
    """Record ``rows`` rows, read them in shuffled batches, and return the most anonymous memory of both."""
    pin()
    most = {"recording": 0, "reading": 0}

    def look(phase: str) -> None:
        most[phase] = max(most[phase], anonymous())

    with TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        store = record(features, Numbers(rows), place, batch=1024, budget=BUDGET, progress=lambda *_: look("recording"))
        look("recording")
        store.decode()
        for step in range(200):
            chosen = torch.from_numpy(randomness.integers(rows, 0, step, np.arange(BATCH)))
            store({"id": torch.stack([chosen, torch.zeros_like(chosen)], dim=1)})
            look("reading")
    return most


# --- f: reading back ------------------------------------------------------------------------------------


def reading(*, rows: int, pairs: int) -> list[Figure]:
    """Part f: decoding, files in the page cache, and shuffled batches beside indexing tensors in memory."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        store = record(features, Numbers(rows), place, batch=1024, budget=2**40)
        size = store.manifest.signals["features"].row_bytes * rows
        rates = [size / _decode_seconds(place) / 1e6 for _ in range(pairs + 1)][1:]
        store.decode()
        held = features({"id": torch.arange(rows)[:, None]})["features"].half()
        order = torch.from_numpy(randomness.permutation(rows, 0, "read"))
        ids = torch.stack([order, torch.zeros_like(order)], dim=1).split(BATCH)
        places = order.split(BATCH)

        def from_store() -> None:
            for part in ids:
                store({"id": part})

        def widened() -> None:
            for part in places:
                held.index_select(0, part).float()

        def as_held() -> None:
            for part in places:
                held.index_select(0, part)

        like, bare = paired(widened, from_store, pairs), paired(as_held, from_store, pairs)
    about = f"{rows:,} rows of {WIDTH} float16"
    return [
        Figure("f", "decoding", tuple(rates), 700, most=False, unit="MB/s", note=about),
        Figure(
            "f",
            "shuffled batches, against indexing a tensor and widening it to float32",
            like.speed(),
            0.6,
            most=False,
            unit="x the rate",
            note=f"{about}; a loss takes float32",
            more=like.more(),
        ),
        Figure("f", "the same, against indexing alone (no float32)", bare.speed(), unit="x the rate", more=bare.more()),
    ]


def _decode_seconds(folder: Path) -> float:
    store: Any = Store.open(folder, budget=2**40)
    start = time.perf_counter()
    store.decode()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(take_memory(int(sys.argv[1]))))
