#!/usr/bin/env python3
"""Write docs/losses.md from the losses, their signatures and docstrings: python scripts/make_loss_table.py

Doing it twice changes nothing. With --check nothing is written, and the exit code is 1 where the page is not current.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stillroom.files import write_bytes
from stillroom.losses import LOSSES
from stillroom.objectives import signature

PAGE = Path(__file__).parent.parent / "docs" / "losses.md"
COLUMNS = ("loss", "what it is", "reads", "options", "source")
TITLES = {
    "response": "Answers",
    "decoupled": "Answers taken apart",
    "divergences": "Divergences, token by token",
    "features": "Representations",
    "attention": "Attention",
    "memory": "Memory",
    "gradients": "Derivatives",
    "relations": "Relations between examples",
    "penalties": "Penalties on weights",
}
BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
LINK = re.compile(r"https?://[^\s)]+[^\s).,;:]")
TOP = """# The losses

Each is a pure function of tensors in `stillroom.losses` and a name in a recipe: `{use: dkd, beta: 2, weight: 1}`.
Shown are what it reads and its options with their defaults, which are those of the authors' released code or of the
toolbox that restates it; the docstring of each (`help(stillroom.losses.dkd)`) says which, and where paper and code
differ. Every one is compared with its formula, written a second time in another way, in `tests/parity/`.

Shapes: B examples, C classes or channels, D features, T time or tokens, N rows of the bank. Logits, features and
derivatives at the inputs are found by themselves; maps, tokens, states and explanations want a place:
`student: block3, teacher: layer3`, or `student: memory@h`, `block3@gradcam`, `logits@gradient(wrt=embed)`.
*connected* means that a linear map, trained with the student and thrown away after, stands between two widths; *free*
that the two sides need not agree in the last axes or the number of channels; *equal* that they must. This page is
written by `scripts/make_loss_table.py`.
"""
AXES = {"example": "B", "class": "C", "feature": "D", "channel": "C", "height": "H", "width": "W", "time": "T"}
AXES |= {"token": "T", "way": "ways"}
FITS = {"connect": "connected", "free": "free", "equal": "equal"}


def page() -> str:
    """Return the whole page."""
    parts = [TOP]
    for module, title in _titles().items():
        rows = [_row(name, loss) for name, loss in LOSSES.items() if _module(loss) == module]
        head = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"
        parts.append(f"\n## {title}\n\n{head}" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "".join(parts)


def _titles() -> dict[str, str]:
    """Return the heading of each file of losses; a new file comes last, under its own name."""
    found = {_module(loss): _module(loss).capitalize() for loss in LOSSES.values()}
    return {
        **{module: title for module, title in TITLES.items() if module in found},
        **{module: title for module, title in found.items() if module not in TITLES},
    }


def _module(loss: Callable[..., Any]) -> str:
    return loss.__module__.rsplit(".", 1)[-1]


def _row(name: str, loss: Callable[..., Any]) -> list[str]:
    text = inspect.getdoc(loss) or ""
    first = " ".join(text.split("\n\n")[0].split())
    first = re.sub(r":\w+:`([^`]+)`", r"`\1`", first).replace("``", "`").replace("||", "‖")
    first = first.replace("|", "\\|").replace("*", "\\*")
    links = dict.fromkeys(LINK.findall(text))
    return [f"`{name}`", first, _reads(loss), _options(loss), ", ".join(f"[{_label(link)}]({link})" for link in links)]


def _label(link: str) -> str:
    label = link.removeprefix("https://").removeprefix("arxiv.org/abs/").removeprefix("doi.org/")
    return label if len(label) < 40 else label.split("/")[0]


def _reads(loss: Callable[..., Any]) -> str:
    """Return the kinds of tensors by side, how they must fit, and the columns, banks and masks beside them."""
    reads, found = signature(loss), []
    ours = reads.sides("student") or reads.sides("parameters")
    kind = ours[0].kind
    if kind is not None:
        axes = ", ".join(AXES.get(axis, axis) for axis in kind.axes)
        shape = f"{kind.name} ({axes})" if axes else "the student's weights"
        found.append(shape + (f", {FITS[kind.fit]}" if reads.sides("teacher") else ""))
    found += [slot.kind.name for slot in ours[1:] if slot.kind is not None]
    found += [f"`{slot.name}`" for slot in reads.sides("column")]
    found += ["a bank (N, D)" for _ in reads.sides("bank")]
    found += ["masks"] * any(slot.mask and slot.side in ("student", "teacher") for slot in reads.slots)
    return "; ".join(found)


def _options(loss: Callable[..., Any]) -> str:
    hints = typing.get_type_hints(loss, include_extras=True)
    found = []
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = "none" if parameter.default is None else f"{parameter.default:g}"
            bounds = ", ".join(_bounds(hints[parameter.name]))
            found.append(f"`{parameter.name}` {default}" + (f" ({bounds})" if bounds else ""))
    return "<br>".join(found)


def _bounds(hint: Any) -> list[str]:
    """Return "> 0" and the like from an annotation, also from one part of a union."""
    found = []
    for note in getattr(hint, "__metadata__", ()):
        for limit in getattr(note, "metadata", ()):
            found += [form.format(f"{getattr(limit, key):g}") for key, form in BOUNDS.items() if hasattr(limit, key)]
    return found or [one for part in typing.get_args(hint) for one in _bounds(part)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or only compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is not current")
    given = parser.parse_args(arguments)
    made = page()
    if given.check:
        current = given.page.exists() and given.page.read_text(encoding="utf-8") == made
        if not current:
            print(f"{given.page} is not current: run python scripts/make_loss_table.py", file=sys.stderr)
        return 0 if current else 1
    write_bytes(given.page, made.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
