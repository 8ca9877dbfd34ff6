"""What gradients are worth: matched derivatives, robustness, distilled data, two momenta, the choice of a teacher.

    python benchmarks/gradient.py                          # every part, one after the other
    python benchmarks/gradient.py --quick                  # a look: two seeds, few steps; scores mean nothing
    python benchmarks/gradient.py --only derivatives       # one part; may be given again for another
    python benchmarks/gradient.py --record                 # and keep it in benchmarks/records/<date>-gradient/
    python benchmarks/gradient.py --page                   # write the page of today's record anew from its figures
    python benchmarks/gradient.py --out found.json         # keep the parts in a file instead,
    python benchmarks/gradient.py --take found.json        # from which today's record takes them

Every part chooses what it has to choose on validation, with seeds that are not measured; test is measured once a seed.
With --record each part is kept as it ends; --only replaces its part of today's record and leaves the others. Seeds are
10 to 14, or those that a part names itself.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from keeping import RECORDS, facts

PARTS = ("derivatives", "robust", "data", "optimiser", "teachers")
SEEDS = (10, 11, 12, 13, 14)


def there() -> list[str]:
    """Return the parts that exist."""
    return [part for part in PARTS if find_spec(f"gradient_{part}") is not None]


def folder() -> Path:
    """Return where today's record is kept."""
    return RECORDS / f"{datetime.now(UTC).date().isoformat()}-gradient"


def kept() -> dict[str, Any]:
    """Return the parts of today's record, none where there is no record yet."""
    file = folder() / "result.json"
    return json.loads(file.read_text(encoding="utf-8"))["parts"] if file.exists() else {}


def keep(parts: dict[str, Any]) -> Path:
    """Write the record of ``parts`` and return its path from here."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    ordered = {part: parts[part] for part in PARTS if part in parts}
    marks = {part: import_module(f"gradient_{part}").marks(one["result"]) for part, one in ordered.items()}
    content = {"date": place.name[:10], "marks": marks, "parts": ordered}
    (place / "result.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (place / "README.md").write_text("\n".join(page(ordered, marks, place.name[:10])), encoding="utf-8")
    return place.relative_to(RECORDS.parent.parent)


def page(parts: dict[str, Any], marks: dict[str, Any], date: str) -> list[str]:
    """Return the record as lines of markdown: marks first, then each part's own page."""
    every = [mark for listed in marks.values() for mark in listed]
    missed = [mark["name"] for mark in every if not mark["met"]]
    told = f"; missed: {'; '.join(missed)}." if missed else "."
    lines = [
        f"# What gradients are worth, {date}",
        "",
        f"{len(every) - len(missed)} of {len(every)} marks met{told}",
        "How each part is measured stands at the head of its file, `benchmarks/gradient_<part>.py`. All figures: "
        "`result.json`.",
        "",
        *table(marks),
        "",
    ]
    for part, one in parts.items():
        lines += [*import_module(f"gradient_{part}").page(one["result"]), ""]
        note = f" {one['note']}" if "note" in one else ""  # written by hand where a run was not made in one go
        lines += [f"`{one['command']}`: {one['seconds'] / 60:.0f} minutes, seeds {one['seeds']}.{note}", ""]
        lines += ["Machine: " + "; ".join(f"{key} {_plain(value)}" for key, value in one["machine"].items()) + ".", ""]
    return lines


def table(marks: dict[str, Any]) -> list[str]:
    """Return the marks as a table."""
    rows = [["part", "mark", "target", "measured", ""], ["---"] * 5]
    for part, listed in marks.items():
        rows += [
            [part, one["name"], str(one["target"]), str(one["measured"]), "met" if one["met"] else "**missed**"]
            for one in listed
        ]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, flush=True)


def seeds_of(part: str, given: Sequence[int] | None, quick: bool) -> list[int]:
    """Return what was given, or the part's own seeds, or everybody's."""
    seeds = list(given or getattr(import_module(f"gradient_{part}"), "SEEDS", SEEDS))
    return seeds[:2] if quick and not given else seeds


def measured(part: str, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """Run one part; returns its result with what it needs to be read later."""
    began, machine = time.monotonic(), facts()
    result = import_module(f"gradient_{part}").run(list(seeds), quick, tell)
    arguments = " ".join(sys.argv[1:])
    command = f"python benchmarks/gradient.py {re.sub(r'--out[ =]+[^ ]+ ?', '', arguments)}".strip()  # names no place
    seconds = round(time.monotonic() - began)
    return {"command": command, "seconds": seconds, "seeds": list(seeds), "machine": machine, "result": result}


def main() -> None:
    """Run the parts, print their pages, and keep them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps")
    parser.add_argument("--record", action="store_true", help="keep the result under benchmarks/records/")
    parser.add_argument("--only", choices=there(), action="append", help="one part only; may be given again")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than a part's own, two at least")
    parser.add_argument("--page", action="store_true", help="run nothing; write today's page anew")
    parser.add_argument("--out", type=Path, help="keep the parts in this file as they end")
    parser.add_argument("--take", type=Path, help="run nothing; put the parts of such a file into today's record")
    options = parser.parse_args()
    if options.quick and (options.record or options.page or options.take):
        parser.error("--quick is a look and is not kept: leave out one of the two.")
    if options.seeds is not None and len(set(options.seeds)) < 2:
        parser.error("--seeds needs two different seeds at least, or there is no interval.")
    if options.page and not kept():
        parser.error("there is no record of today: run with --record first.")
    torch.set_num_threads(1)
    if options.page:
        return tell(str(keep(kept())))
    if options.take:
        return tell(str(keep(kept() | json.loads(options.take.read_text(encoding="utf-8")))))
    marks: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for part in PARTS:
        if part not in (options.only or there()):
            continue
        parts[part] = found = measured(part, seeds_of(part, options.seeds, options.quick), options.quick)
        module = import_module(f"gradient_{part}")
        marks[part] = module.marks(found["result"])
        tell("\n".join(module.page(found["result"])))
        if options.record:  # after every part: a run cut short leaves what it had
            tell(str(keep(kept() | {part: found})))
        if options.out:
            options.out.write_text(json.dumps(parts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    tell("\n".join(table(marks)))


if __name__ == "__main__":
    main()
