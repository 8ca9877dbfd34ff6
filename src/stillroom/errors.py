"""Everything Stillroom raises on purpose.

StillroomError
├── UserError            the input, the recipe or the call can be mended by its author (exit code 2)
│   ├── RecipeError      a recipe does not say what is needed; lists every mistake with its line
│   ├── DataError        examples, labels or files of examples are not as they must be
│   ├── TapError         a place in a model does not exist, was not seen, or is ambiguous
│   ├── LossError        tensors do not fit a loss, or an option is out of its range
│   ├── ModelError       a module does not answer as a teacher or student must
│   ├── StoreError       stored knowledge is missing, damaged, or belongs to something else
│   │   └── Damaged      a file that Stillroom wrote is not what was written
│   ├── TrainError       training cannot start or go on (a loss that is not finite, a full disk)
│   ├── ExportError      a model cannot be exported, or the export does not agree with it
│   └── MissingPart      an optional part of Stillroom is not installed
└── Bug                  Stillroom broke its own promise (exit code 1)

Every message has four parts in this order: what failed, what was given, what is allowed or
nearest, what to do. ``say`` joins them, so that no part is forgotten.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StillroomError(Exception):
    """Base of all errors that Stillroom raises on purpose."""


class UserError(StillroomError):
    """The author of the input can mend it; the command line exits with 2."""


class RecipeError(UserError):
    """A recipe is wrong; ``mistakes`` holds one message for each mistake."""

    def __init__(self, message: str, mistakes: Iterable[str] = ()) -> None:
        self.mistakes = tuple(mistakes) or (message,)
        super().__init__(message)


class DataError(UserError):
    """Examples, labels or files of examples are not as they must be."""


class TapError(UserError):
    """A place in a model does not exist, was not seen, or is ambiguous."""


class LossError(UserError):
    """Tensors do not fit a loss, or an option is out of its range."""


class ModelError(UserError):
    """A module does not answer as a teacher or student must."""


class StoreError(UserError):
    """Stored knowledge is missing, damaged, or belongs to something else."""


class Damaged(StoreError):
    """A file that Stillroom wrote is no longer what was written; what is missing of it is damaged too."""


class TrainError(UserError):
    """Training cannot start or cannot go on."""


class ExportError(UserError):
    """A model cannot be exported, or the export does not agree with it."""


class MissingPart(UserError):
    """An optional part of Stillroom is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'stillroom[{extra}]'"
        )


class Bug(StillroomError):
    """Stillroom broke its own promise; the command line exits with 1."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name closest to ``name``, or None when none is close."""
    found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return found[0] if found else None


def say(failed: str, given: object, allowed: Iterable[str] | str = (), do: str = "") -> str:
    """Compose a message: what failed, what was given, what is allowed (or nearest), what to do.

    ``allowed`` may be a sentence, or names: then the nearest one is suggested and all are listed.
    """
    parts = [f"{failed}: got {given}."]
    if isinstance(allowed, str):
        if allowed:
            parts.append(f"Allowed: {allowed}.")
    else:
        names = list(allowed)
        close = nearest(str(given).strip("'\""), names)
        if close:
            parts.append(f"Did you mean '{close}'?")
        if names:
            shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
            parts.append(f"Allowed: {shown}.")
    if do:
        parts.append(do)
    return " ".join(parts)
