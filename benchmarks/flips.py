"""Flip bits in everything that a run leaves, read it as a run would, and count what nobody notices.

    python benchmarks/flips.py [--flips N] [--reruns N] [--seed N]

In process: one bit of a random byte of a random file, read by what reads that file in a run. ``detected``: the reader
refuses it, or takes the step as not done, so that it is made again. ``same``: what is read is what was written (a space
in JSON). ``silent``: something else is read and nothing said. With ``--reruns`` a bit of a finished run, of its cache
or of half a run is flipped, and the same command run again: it must end well, with the same result.

Out of scope: ``metrics.json``, ``report.html`` and ``events.jsonl``, which are results that a run does not read, and
``recipe.yaml``, which a person may edit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults import Lab, differences

from stillroom import files, tensors
from stillroom.errors import Damaged, UserError
from stillroom.store import Store

Read = Callable[[], Any]
RESULTS = ("metrics.json", "report.html", "events.jsonl", "recipe.yaml", ".lock")


def flip(path: Path, numbers: random.Random) -> None:
    """Change one random bit of one random byte."""
    content = bytearray(path.read_bytes())
    content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    path.write_bytes(bytes(content))


def readers(lab: Lab) -> dict[str, list[tuple[Path, Read]]]:
    """Return by kind of file every file and what reads it in a run."""
    found: dict[str, list[tuple[Path, Read]]] = {}
    for name, root in (("run", lab.root / "clean"), ("cache", lab.root / "clean-cache")):
        for mark in sorted(root.glob("**/done.json")):
            for file in sorted(path for path in mark.parent.rglob("*") if path.is_file() and path.name != "begun.json"):
                found.setdefault(f"{name}: {file.name}", []).append((file, lambda mark=mark: step(mark)))
    for folder in sorted(path.parent for path in (lab.root / "clean-cache").glob("knowledge/**/manifest.json")):
        for file in (*folder.glob("*.parquet"), folder / "manifest.json"):
            found.setdefault(f"store: {file.suffix[1:]}", []).append((file, lambda folder=folder: store(folder)))
    for file in sorted((lab.root / "half").glob("arms/*/*")):
        if file.name.startswith(("checkpoint", "mark-")):
            kind = "half: mark-*" if file.name.startswith("mark-") else f"half: {file.name}"
            found.setdefault(kind, []).append((file, lambda file=file: packed(file)))
        elif file.name in ("marks.json", "curve.json"):
            found.setdefault(f"half: {file.name}", []).append((file, lambda file=file: files.read_sealed(file)))
    return found


def step(mark: Path) -> Any:
    """Return what a run takes from a committed step, None where it would make the step again."""
    noted = files.committed(mark.parent, INPUTS[mark])
    return noted and [noted, *((mark.parent / name).read_bytes() for name in sorted(noted["files"]))]


def store(folder: Path) -> Any:
    """Return everything that an opened store says and answers."""
    opened = Store.open(folder)
    shown = [opened({"id": opened.rows(split)}) for split in opened.manifest.splits]
    return [opened.manifest.model_dump(mode="json"), *map(tensors.pack, shown)]


def packed(file: Path) -> Any:
    """Return the tensors and the note of a file."""
    kept, meta = tensors.unpack(file, error=Damaged)
    return [meta, tensors.pack(kept)]


INPUTS: dict[Path, str] = {}


def count(kinds: dict[str, list[tuple[Path, Read]]], flips: int, numbers: random.Random) -> dict[str, Counter[str]]:
    """Flip bits, as many in each kind of file, and count what came of them."""
    table: dict[str, Counter[str]] = {}
    for kind, places in kinds.items():
        row = table.setdefault(kind, Counter())
        wanted = {file: read() for file, read in places}
        for _ in range(max(1, flips // len(kinds))):
            file, read = numbers.choice(places)
            content = file.read_bytes()
            flip(file, numbers)
            try:
                found = read()
                row["detected" if found is None else "same" if found == wanted[file] else "SILENT"] += 1
            except UserError:
                row["detected"] += 1
            except Exception as error:  # what a person would be told is a fault of ours
                row[f"crash ({type(error).__name__})"] += 1
            file.write_bytes(content)
    return table


def rerun(lab: Lab, wanted: dict[str, Any], number: int, numbers: random.Random) -> tuple[str, str]:
    """Flip a bit in a copy of a finished run, of its cache or of half a run; run; return where, and what is wrong."""
    kind, name = ("finished", "cache", "half")[number % 3], f"flipped-{number}"
    begun = "half" if kind == "half" else "clean"
    lab.forget(name)
    shutil.copytree(lab.root / f"{begun}-cache", lab.root / f"{name}-cache")
    if kind != "cache":
        shutil.copytree(lab.root / begun, lab.root / name, symlinks=True)
        (lab.root / name / "knowledge").unlink()  # it leads into the other's cache
    root = lab.root / (f"{name}-cache" if kind == "cache" else name)
    file = numbers.choice([path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in RESULTS])
    flip(file, numbers)
    code = lab.run(name)
    wrong = f"ended with {code}: {(lab.root / f'{name}.log').read_text()[-200:]}" if code else ""
    if not wrong and (found := lab.result(name)) != wanted:
        wrong = f"another result: {differences(found, wanted)}"
    lab.forget(name)
    return f"{kind}: {file.relative_to(root)}", wrong


def show(table: dict[str, Counter[str]]) -> None:
    """Print the table in Markdown."""
    columns = ["detected", "same", "SILENT", *sorted({key for row in table.values() for key in row if "crash" in key})]
    print(f"| file, as a run reads it | flips | {' | '.join(columns)} |\n| --- |{' ---: |' * (1 + len(columns))}")
    for kind, row in [*table.items(), ("**all**", sum(table.values(), Counter[str]()))]:
        print(f"| {kind} | {row.total():,} | {' | '.join(f'{row[key]:,}' for key in columns)} |")


def main(given: Sequence[str] | None = None) -> int:
    """Make a finished and half a run, flip, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2000, help="flips in process, over all kinds of files")
    parser.add_argument("--reruns", type=int, default=12, help="flips after which the command is run again")
    parser.add_argument("--seed", type=int, default=0)
    asked, start = parser.parse_args(given), time.time()
    numbers, failed = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as place:
        lab = Lab.build(Path(place), onnx=False)
        assert lab.run("clean") == 0 and lab.run("half", "job:answers") == -signal.SIGKILL
        INPUTS.update((mark, json.loads(mark.read_text())["inputs"]) for mark in lab.root.glob("clean*/**/done.json"))
        wanted = lab.result("clean")
        table = count(readers(lab), asked.flips, numbers)
        show(table)
        for number in range(asked.reruns):
            where, wrong = rerun(lab, wanted, number, numbers)
            failed += bool(wrong)
            print(f"rerun {number}, {where}: {wrong or 'the same result'}")
    silent = sum(row["SILENT"] for row in table.values())
    print(f"{silent} silent, {failed} of {asked.reruns} reruns went wrong, {time.time() - start:.0f} s")
    return 1 if failed or silent else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
