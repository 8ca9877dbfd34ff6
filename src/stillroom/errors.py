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

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator


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


# --- memory --------------------------------------------------------------------------------------------

_TOO_MUCH = (
    "allocate memory",  # PyTorch's allocator, the system, the loader of libraries
    "not enough memory",
    "out of memory",
    "failed to map segment",  # a library that finds no room
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "calculation overflowed",  # PyTorch, of sizes that no machine has
    "multiplication overflow",
    "array is too big",
    "maximum allowed dimension",
    "malloc of size",  # Arrow
)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python, PyTorch, NumPy, Arrow, a library or the system says it."""
    if isinstance(error, StillroomError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    known = isinstance(error, RuntimeError | ImportError | ValueError | OSError)
    return known and "static tls" not in text and any(part in text for part in _TOO_MUCH)


@contextlib.contextmanager
def enough_memory(doing: str, do: str, error: type[UserError] = UserError) -> Iterator[None]:
    """Say what was being done when memory ran out, and what to ``do`` about it there.

    Raises:
        UserError: of the class ``error``, when memory runs out inside.
    """
    try:
        yield
    except Exception as cause:
        if not out_of_memory(cause):
            raise
        raise error(no_memory(cause, doing, do)) from cause


def no_memory(error: BaseException, doing: str = "", do: str = "") -> str:
    """Return the message for memory that ran out, as :func:`out_of_memory` recognises it."""
    told = " ".join(str(error).split())[:200].rstrip(".") or "more than this machine has"
    when = f" {doing}" if doing else ""
    do = do or "Close other programs, raise the limit (ulimit -v), or use a larger machine."
    return f"Not enough memory{when}: got {told}. {do}"
