"""Training examples that nobody is to learn from: named in a recipe, or in a file that was made by looking at them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stillroom.contracts import Source
from stillroom.data.splits import checksum_of, name_ids
from stillroom.errors import DataError, StoreError, say
from stillroom.files import read_json
from stillroom.paths import expand


def examples_in(given: Sequence[int] | str | Path) -> list[int]:
    """Return example numbers, sorted, each once: of a list, or of a JSON file.

    A file holds a list of numbers, or of blocks with the key ``example``, such as mining's ``suspects.json``.

    Raises:
        DataError: the file is absent, is no JSON, or holds something else.
    """
    listed: Any = given
    allowed = "a JSON list of example numbers, or of blocks with the key 'example'"
    if isinstance(given, str | Path):
        try:
            listed = read_json(expand(given, "'leave_out'", StoreError))
        except StoreError as error:
            raise DataError(f"The examples to leave out cannot be read. {error}") from error
        if not isinstance(listed, list):
            raise DataError(
                say("This file names no examples to leave out", f"{type(listed).__name__} in {given}", allowed)
            )
    found: list[Any] = [one.get("example") if isinstance(one, dict) else one for one in listed]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise DataError(say("An example to leave out has no number", f"{one!r}", allowed))
    return sorted(set(found))


def without(source: Source, examples: Sequence[int]) -> Source:
    """Return ``source`` without some of its training rows; validation and test stay. ``left_out`` says how many.

    Raises:
        DataError: an example is no training row, or none would be left.
    """
    gone, train = torch.tensor(sorted(set(examples)), dtype=torch.int64), source.splits["train"]
    strangers = gone[~torch.isin(gone, train)]
    if len(strangers):
        raise DataError(
            say(
                "Only training examples can be left out",
                f"{name_ids(strangers)}{_where(source, int(strangers[0]))}",
                f"numbers of the {len(train):,} training rows",
                "Take them out of data.leave_out, or make the list anew for this data.",
            )
        )
    kept = train[~torch.isin(train, gone)]
    if not len(kept):
        raise DataError(say("No training example is left", f"{len(gone):,} left out of {len(train):,}", "fewer"))
    fewer = copy.copy(source)
    fewer.splits = {**source.splits, "train": kept}  # type: ignore[misc]
    fewer.left_out = len(gone)  # type: ignore[attr-defined]
    return fewer


def _where(source: Source, example: int) -> str:
    if example >= len(source):
        return f" of {len(source):,} (from 0 to {len(source) - 1:,})"
    among = next((name for name, rows in source.splits.items() if bool((rows == example).any())), None)
    return f", the first in {among}" if among else ", the first in no split (a copy, or not chosen by 'train')"


def rows_told(source: Source) -> str:
    """Return how many rows each split has, and how many training rows were left out, as one line."""
    gone = getattr(source, "left_out", 0)
    parts = [f"{len(rows):,} {name}" for name, rows in source.splits.items()]
    return ", ".join(parts) + (f" ({gone:,} left out of train)" if gone else "")


def rows_print(source: Source) -> dict[str, str]:
    """Return a text for each split that changes when its rows do, for fingerprints."""
    return {name: checksum_of(rows.sort().values) if len(rows) else "" for name, rows in source.splits.items()}
