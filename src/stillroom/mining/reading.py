"""Which layers of a model are read, and what they show of each example: one vector, all layers by one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.mining.cka import LAYERS, as_rows, layers_of, spread
from stillroom.mining.subject import Subject

CANDIDATES = 24  # layers that are tried
FEW = 4  # examples by which a layer is tried


def read_once(subject: Subject, most: int = LAYERS) -> list[str]:
    """Return the taps of the layers that can be read together, evenly spread; a few examples show which.

    Left out are layers that are used for their weights alone or several times in a pass, and such as show the same of
    every example, as an embedding of places does.
    """
    few = subject.examples("train")[:FEW]
    found = []
    for path in layers_of(subject.opened, CANDIDATES):
        for tap in (path, f"{path}[0]"):  # a layer of a transformer may give its states as the first of several
            try:
                shown = vectors(subject, [tap], few)[tap]
            except (StillroomError, RuntimeError):
                continue
            if _tells_apart(shown):
                found.append(tap)
            break
    return spread(found, most)


def _tells_apart(shown: Tensor) -> bool:
    return len(shown) < 2 or bool((shown - shown[:1]).abs().max() > 1e-6 * shown.abs().max())


def vectors(subject: Subject, taps: Sequence[str], examples: Tensor) -> dict[str, Tensor]:
    """Return what each tap shows of examples, (N, width): means over places of a map, over real steps of a text."""
    last = {tap for tap in taps if isinstance(_layer(subject.opened, tap), nn.Conv1d)}  # its steps come last

    def take(tap: str, value: Tensor, mask: Tensor | None) -> Tensor:
        if tap in last and value.dim() == 3:
            return value.mean(2)
        return as_rows(value, mask)

    return subject.rows(taps, examples, take)


def _layer(module: nn.Module, tap: str) -> nn.Module | None:
    try:
        return module.get_submodule(tap.partition("[")[0])
    except AttributeError:
        return None


__all__ = ["read_once", "vectors"]
