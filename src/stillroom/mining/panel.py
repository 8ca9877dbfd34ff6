"""What a way of mining gives: findings that a person reads, numbers for scripts, files to use further."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.contracts import Finding, Progress


@dataclass(frozen=True)
class Panel:
    """One way of mining, done: ``findings`` in reading order, each with its control; ``numbers`` as plain JSON values.

    ``files`` are artefacts by name, to be written beside the report. ``notes`` say what was left out to keep to the
    budget, or why there is nothing to show.
    """

    name: str
    findings: Sequence[Finding] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    notes: Sequence[str] = ()


@dataclass
class Budget:
    """How much time a panel may take, and whom to tell how far it is."""

    seconds: float = 30.0
    progress: Progress = lambda done, of, what: None
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when they are used up."""
        return max(0.0, self.seconds - (time.monotonic() - self.began))

    def rows(self, rows: int, timed: int, seconds: float, *, share: float = 1.0) -> int:
        """Return how many of ``rows`` fit into what is left, when ``timed`` of them took ``seconds``."""
        if seconds <= 0:
            return rows
        return max(1, min(rows, int(share * self.left * timed / seconds)))


Mine = Callable[..., Panel]
"""A panel is a function ``(subject, budget) -> Panel``; that of students takes them as a third."""
