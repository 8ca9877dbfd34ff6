"""Files that are whole or absent: every artefact of Stillroom is written through here.

A file is written beside its place, flushed to the disk, renamed, and the folder's entry flushed too.
A *step* of work (a teacher, an arm, an export) is committed by its ``done.json``, written last.
``faultpoint`` names the moments at which the tests kill the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.errors import StoreError, UserError

DONE = "done.json"
_hits: dict[str, int] = {}


def faultpoint(name: str) -> None:
    """Do nothing, unless ``STILLROOM_FAULT`` is ``name`` or ``name:k``: then die at its k-th passing, unannounced.

    ``list:FILE`` kills nobody and adds each name to that file as it is passed.
    """
    wanted = os.environ.get("STILLROOM_FAULT")
    if not wanted:
        return
    if wanted.startswith("list:"):
        with open(wanted.removeprefix("list:"), "a", encoding="utf-8") as stream:
            stream.write(f"{name}\n")
        return
    point, _, count = wanted.rpartition(":")
    if not count.isdigit():
        point, count = wanted, "1"
    if point == name:
        _hits[name] = _hits.get(name, 0) + 1
        if _hits[name] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


def flush_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it and rename it into place, else remove it.

    Raises:
        UserError: the disk is full or the place may not be written.
    """
    handle, name = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        os.chmod(name, 0o644)
        faultpoint("file:opened")
        yield Path(name)
        with open(name, "rb+") as stream:
            os.fsync(stream.fileno())
        faultpoint("file:flushed")
        os.replace(name, path)
        name = ""
        flush_folder(path.parent)
        faultpoint("file:renamed")
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)


def refused(path: Path, error: OSError) -> UserError:
    """Translate an operating-system error about ``path`` into one that says what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder with --out, then run the same again",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder with --out",
        errno.EACCES: "permission was denied; choose a folder that you may write with --out",
        errno.EPERM: "permission was denied; choose a folder that you may write with --out",
        errno.ENOENT: "there is no such folder and none can be made there; choose another with --out",
        errno.EROFS: "the file system is read-only; choose another folder with --out",
        errno.ENOTDIR: "a part of that path is a file, not a folder; choose another folder with --out",
        errno.EISDIR: "a folder is in its place; move it away or choose another name",
        errno.EEXIST: "a file is in the place of a folder; move it away or choose another name",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; check the path and the disk")
    return UserError(f"Could not write {path}: {reason}. What was there before is untouched.")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented, sorted JSON; NaN and infinities are refused."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON from ``path``.

    Raises:
        StoreError: the file is absent or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"Missing file: {path} does not exist. Check the path, or make it again.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(
            f"Unreadable file: {path} is not valid JSON ({error}). Restore it, or make it again."
        ) from error


def fingerprint(value: Any) -> str:
    """Return a SHA-256 of ``value``'s canonical JSON (sorted keys, no spaces), as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- committed steps -------------------------------------------------------------------------------


def committed(folder: Path, inputs: str) -> dict[str, Any] | None:
    """Return what :func:`commit` noted if ``folder`` holds that step's finished work for ``inputs``, else None.

    The one judge of "is this artefact committed?": the mark must be there, carry the same fingerprint of
    inputs, and every file it names must still have the size it had.
    """
    mark = folder / DONE
    if not mark.is_file():
        return None
    try:
        note = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or note.get("inputs") != inputs:
        return None
    for name, size in note.get("files", {}).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return note


def commit(folder: Path, inputs: str, **note: Any) -> None:
    """Mark the step in ``folder`` as finished for ``inputs``; ``note`` is kept with the mark."""
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != DONE and not file.name.startswith(".")
    }
    faultpoint("commit:before")
    write_json(folder / DONE, {"inputs": inputs, "files": sizes, **note})
    faultpoint("commit:after")


def begin(folder: Path, inputs: str) -> None:
    """Make ``folder`` ready for the step with ``inputs``: another step's work there is moved to ``old/``, never lost.

    Unfinished work of the same inputs stays, so that it can be resumed.
    """
    begun = folder / "begun.json"
    if folder.is_dir() and any(folder.iterdir()):
        try:
            same = json.loads(begun.read_text(encoding="utf-8")).get("inputs") == inputs
        except (OSError, ValueError, AttributeError):
            same = False
        if not same:
            set_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    if not begun.is_file():
        write_json(begun, {"inputs": inputs})


def copy_step(source: Path, target: Path) -> None:
    """Copy a step's files, but not its marks, into ``target``.

    Raises:
        UserError: the place may not be written or is full.
    """
    try:
        for file in source.iterdir():
            if file.is_file() and file.name not in (DONE, "begun.json") and not file.name.startswith("."):
                shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise refused(target, error) from error


def publish(source: Path, target: Path, inputs: str) -> None:
    """Put a copy of a committed step at ``target``, whole or not at all, though others may do the same at once.

    A shared place that cannot be written stops nobody: the work is safe in ``source``.
    """
    if committed(target, inputs) is not None:
        return
    made = target.parent / f".{target.name}.{os.getpid()}.part"
    with contextlib.suppress(OSError, UserError):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        copy_step(source, made)
        commit(made, inputs)
        faultpoint("publish:ready")
        if target.exists() and committed(target, inputs) is None:
            set_aside(target)
        os.rename(made, target)
    shutil.rmtree(made, ignore_errors=True)


def sweep(folder: Path, older_than: float = 0.0) -> None:
    """Remove what killed processes left half-written below ``folder``.

    Parts that nobody touched for so many seconds.
    """
    for part in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime >= older_than:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def set_aside(folder: Path) -> Path:
    """Move ``folder`` into ``old/`` beside it, under the first free number, and return its new place."""
    old = folder.parent / "old"
    number = 1
    while (old / f"{folder.name}-{number}").exists():
        number += 1
    try:
        old.mkdir(parents=True, exist_ok=True)
        shutil.move(str(folder), str(old / f"{folder.name}-{number}"))
    except OSError as error:
        raise refused(old, error) from error
    return old / f"{folder.name}-{number}"


# --- the shared cache ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``STILLROOM_CACHE``, else ``~/.cache/stillroom`` (not created)."""
    return Path(os.environ.get("STILLROOM_CACHE") or Path.home() / ".cache" / "stillroom").expanduser()
