"""A source of one's own: six members are enough, what else a run needs to know of it is derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import Batch
from stillroom.data.splits import checksum_of
from stillroom.errors import DataError, say
from stillroom.files import fingerprint

MEMBERS = ("__len__", "batch", "hashes", "show", "splits", "classes")


class Known:
    """A source of the six members as one that has a fingerprint; all else it has is passed on.

    The fingerprint is a SHA-256 of the number of examples, their hashes, and the names, types and shapes of the columns
    of the first one: equal for equal examples.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.splits: Mapping[str, Tensor] = {
            name: torch.as_tensor(rows, dtype=torch.int64) for name, rows in source.splits.items()
        }
        self.classes: Sequence[str] | None = source.classes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the examples are, from their hashes and the form of the first."""
        hashes = np.asarray(self.hashes(torch.arange(len(self))), dtype=np.uint64)
        first = self.batch(torch.zeros(1, 2, dtype=torch.int64)) if len(self) else {}
        form = {name: [str(value.dtype), list(value.shape[1:])] for name, value in first.items() if name != "id"}
        return fingerprint(
            {"rows": len(self), "hashes": checksum_of(torch.from_numpy(hashes.view(np.int64))), "columns": form}
        )

    def batch(self, ids: Tensor) -> Batch:
        """Return the columns of ``ids`` of the source beneath."""
        batch: Batch = self.source.batch(ids)
        return batch

    def hashes(self, examples: Tensor) -> NDArray[np.uint64]:
        """Return the hashes of the source beneath."""
        hashes: NDArray[np.uint64] = self.source.hashes(examples)
        return hashes

    def show(self, example: int) -> Any:
        """Show an example of the source beneath."""
        return self.source.show(example)


def known(source: Any) -> Known | None:
    """Return a source of the six members with a fingerprint; None where ``source`` is meant to be something else.

    Raises:
        DataError: it has ``batch`` and ``splits`` as sources have, and lacks other members.
    """
    if isinstance(source, Mapping) or not (callable(getattr(source, "batch", None)) and hasattr(source, "splits")):
        return None
    missing = [name for name in MEMBERS if not hasattr(source, name)]
    if missing:
        given = f"a {type(source).__name__} without {', '.join(missing)}"
        raise DataError(say("This is no whole source", given, ", ".join(MEMBERS), "Add what is missing."))
    return Known(source)


def check_source(source: Any) -> None:
    """Refuse what is no source where one must be given as it is.

    Raises:
        DataError: it has no splits or cannot give a batch.
    """
    if not hasattr(source, "splits") or not hasattr(source, "batch"):
        do = "Make one of arrays, tensors or a Dataset: stillroom.as_source((inputs, labels))."
        raise DataError(say("This is no source", type(source).__name__, "an object with batch and splits", do))
