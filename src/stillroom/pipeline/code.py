"""Which code a result was made with: what is kept is used again only by the code that would make it anew."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from stillroom.paths import is_folder

MAKERS = (
    "data", "gradients", "losses", "models", "objectives", "store", "taps", "tasks",
    "checkpoint.py", "evaluate.py", "learner.py", "order.py", "randomness.py", "record.py", "settings.py",
    "teachers.py", "train.py", "utf8.py",
)  # fmt: skip


@functools.cache
def code_print(makers: tuple[str, ...] = MAKERS) -> str:
    """Return a SHA-256 of the source of everything that computes: a changed loss or model must not find old results."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in makers:
        place = root / name
        for file in sorted(place.rglob("*.py")) if is_folder(place) else [place]:
            digest.update(f"{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
