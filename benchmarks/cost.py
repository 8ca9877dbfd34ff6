"""What Stillroom costs beside the least that is possible: python benchmarks/cost.py [--quick] [--record] [--only ab].

Ratios only, both sides in one process, one thread, one core, in turns. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import store_cost
import training_cost
from keeping import facts, measured, met, remark, target, write
from rich.console import Console
from rich.table import Table
from rich.text import Text
from timing import ALLOCATOR, Figure, pin

PARTS = "abcdef"


def main() -> None:
    """Measure the parts that are asked for, print them, and keep them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer pairs, shorter blocks")
    parser.add_argument("--record", action="store_true", help="write benchmarks/records/<date>-cost/")
    parser.add_argument("--only", default=PARTS, help="letters of the parts to measure (a comes with b)")
    options = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():  # it is read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    console, started = Console(width=None if sys.stdout.isatty() else 160), time.monotonic()
    pin()
    figures: list[Figure] = []
    for part, run in _parts(options.quick).items():
        if set(part) & set(options.only):
            console.print(f"[{time.monotonic() - started:4.0f} s] part {part[-1]} ...", highlight=False, markup=False)
            figures += run()
    console.print(table(figures))
    for figure in figures:
        if "extra" in figure.more:
            console.print(f"{figure.name}: {figure.more['extra']}", highlight=False)
    took = time.monotonic() - started
    console.print(f"{sum(f.met is False for f in figures)} targets missed; {took:.0f} s", highlight=False)
    if options.record:
        folder = write(figures, " ".join(["python", "benchmarks/cost.py", *sys.argv[1:]]), facts(), took)
        console.print(f"kept in {folder}", highlight=False)


def _parts(quick: bool) -> dict[str, Callable[[], Sequence[Figure]]]:
    pairs = 3 if quick else 9
    block, store_pairs = (20, 5) if quick else (50, 15)
    material = training_cost.Material.load()
    return {
        "ab": lambda: training_cost.distilling(material, pairs=pairs, block=block),
        "c": lambda: store_cost.recording(material, pairs=pairs, share=0.25 if quick else 1.0),
        "d": lambda: training_cost.fast_path(material, pairs=pairs, block=block, steps=100 if quick else 400, seeds=3),
        "e": lambda: store_cost.memory(rows=(60_000, 150_000 if quick else 600_000)),
        "f": lambda: store_cost.reading(rows=60_000, pairs=store_pairs),
    }


def table(figures: Sequence[Figure]) -> Table:
    """Return the figures as a table for the terminal."""
    shown = Table("", "figure", "target", "measured, median [range]", "met", "remark", title="What Stillroom costs")
    colours = {True: "green", False: "red", None: ""}
    for one in figures:
        shown.add_row(
            one.part, one.name, target(one), Text(measured(one)), Text(met(one), style=colours[one.met]), remark(one)
        )
    return shown


if __name__ == "__main__":
    main()
