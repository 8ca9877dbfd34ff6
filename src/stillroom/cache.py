"""The cache that all runs of a user share: finished steps, put there whole, and taken from there only if trusted.

What others own or may write is not trusted: whoever could change it would decide the results of others. The folder is
made for this user alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from stillroom.errors import Damaged, UserError
from stillroom.files import (
    cache_folder,
    commit,
    committed,
    copy_step,
    damage,
    faultpoint,
    flush_folder,
    heal,
    note,
    refused,
)
from stillroom.paths import is_folder

OTHERS_WRITE, OTHERS = 0o022, 0o077


def cached(kind: str, inputs: str) -> Path:
    """Return where the cache keeps what was made of ``inputs``: ``teachers``, ``jobs``, ``knowledge``, ..."""
    return own_cache() / kind / inputs[:2] / inputs


def from_cache(kind: str, folder: Path, inputs: str) -> bool:
    """Bring a finished step from the cache into ``folder`` and commit it there; False where there is none to trust."""
    kept = cached(kind, inputs)
    if untrusted(kept) or committed(kept, inputs) is None:
        return False
    try:
        copy_step(kept, folder)
    except Damaged:
        return False
    commit(folder, inputs)
    return True


def publish(source: Path, target: Path, inputs: str) -> None:
    """Put a copy of a committed step at ``target``, whole or not at all: see :func:`share`."""
    share(target, inputs, lambda made: copy_step(source, made))


def share(target: Path, inputs: str, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a step's files, and put them at ``target``, whole or not at all: others may do so at once.

    What stands there damaged, or may be somebody else's work, is moved to ``old/``. A shared place that cannot be
    written stops nobody.
    """
    if not untrusted(target) and committed(target, inputs) is not None:
        return
    made = target.parent / f".{target.name}.{os.getpid()}.part"
    with contextlib.suppress(OSError, UserError):
        shutil.rmtree(made, ignore_errors=True)
        private(made)
        fill(made)
        commit(made, inputs)
        faultpoint("publish:ready")
        if os.path.lexists(target):
            if why := untrusted(target):
                heal(target, f"{target} is not trusted ({why})")
            elif why := damage(target, inputs):
                heal(target, f"{target} was damaged ({why})")
        os.rename(made, target)
        flush_folder(target.parent)
    shutil.rmtree(made, ignore_errors=True)


def private(folder: Path) -> None:
    """Make ``folder``, and those above it that are missing, for this user alone."""
    for place in (*reversed(folder.parents), folder):
        if not is_folder(place):
            place.mkdir(mode=0o700, exist_ok=True)


def untrusted(entry: Path) -> str:
    """Return why what lies at ``entry`` in the cache may be somebody else's work, or nothing (also where nothing is).

    It must be ours or the system's, and writable by nobody else.
    """
    try:
        state = os.lstat(entry)
        why = _open_to_others(state)
        if why or not stat.S_ISDIR(state.st_mode) or not state.st_mode & OTHERS:
            return why
        found = ((file.name, _open_to_others(os.lstat(file))) for file in sorted(entry.iterdir()))
        return next((f"{name} {one}" for name, one in found if one), "")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"


def _open_to_others(state: os.stat_result) -> str:
    if stat.S_ISLNK(state.st_mode):
        return "is a link"
    if state.st_uid not in (0, os.geteuid()):
        return f"belongs to user {state.st_uid}"
    return f"may be written by others, mode {stat.S_IMODE(state.st_mode):o}" if state.st_mode & OTHERS_WRITE else ""


def own_cache() -> Path:
    """Return the cache folder, or a folder of this user's in it where others may write to it.

    Raises:
        UserError: that one is not this user's either.
    """
    root = cache_folder()
    try:
        why = _open_to_others(root.stat())
    except OSError:  # not made yet, or nothing can be made there: whoever writes says so
        return root
    if not why:
        return root
    inner = root / f"user-{os.geteuid()}"
    do = "Set STILLROOM_CACHE to a folder that only you may write."
    if others := untrusted(inner):
        raise UserError(f"The cache cannot be trusted: {root} {why}, and {inner} {others}. {do}")
    note(f"The cache {root} {why}: nothing is taken from it, and {inner} is used. {do}")
    return inner


def check_cache() -> Path:
    """See that the cache can be written, before work begins whose result is kept there; return its folder.

    Raises:
        UserError: it cannot be made or written, or is not this user's.
    """
    folder = own_cache()
    try:
        private(folder)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0" * 4096)
    except OSError as error:
        raise refused(folder, error) from error
    return folder
