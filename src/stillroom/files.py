"""Files that are whole or absent: every artefact of Stillroom is written through here.

A file is written beside its place, flushed to the disk, renamed, and the folder's entry flushed too.
A *step* of work (a teacher, an arm, an export) is committed by its ``done.json``, written last: it holds the SHA-256 of
each of its files and of itself, and both are compared when the step is used. What does not match is moved to ``old/``
and made again, and a note says so. ``faultpoint`` names the moments at which the tests kill the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import Damaged, StoreError, UserError, say
from stillroom.paths import exists, expand, is_file, is_folder, reading, shorten, unreadable

DONE, BEGUN, OLD = "done.json", "begun.json", "old"
SEAL = "checksum"  # the key of a JSON file that holds the fingerprint of all its other keys
CACHE = "STILLROOM_CACHE"
LARGEST = 64 * 2**20  # bytes of a JSON file: what Stillroom writes is far smaller
DEEPEST = 100  # lists and blocks in each other
SETTLED = 50_000_000  # nanoseconds: a file changed more recently may change again without another time of change
_hits: dict[str, int] = {}
_known: dict[tuple[int, int], tuple[tuple[int, int, int], str]] = {}
_told: set[str] = set()
_pending: list[str] = []


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
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = str(path.parent / f".{path.name}.{os.urandom(4).hex()}.part")
        os.close(os.open(wanted, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask takes its part
        name = wanted
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
    """Translate an operating-system error about writing ``path`` into one that says what to do about that place."""
    choose = _another(path)
    reasons = {
        errno.ENOSPC: f"the disk is full; free some space or {choose}, then run the same again",
        errno.EDQUOT: f"the disk quota is used up; free some space or {choose}",
        errno.EACCES: f"permission was denied; choose a folder that you may write: {choose}",
        errno.EPERM: f"permission was denied; choose a folder that you may write: {choose}",
        errno.ENOENT: f"there is no such folder and none can be made there; {choose}",
        errno.EROFS: f"the file system is read-only; {choose}",
        errno.ENOTDIR: f"a part of that path is a file, not a folder; {choose}",
        errno.EISDIR: f"a folder is in its place; move it away or {choose}",
        errno.EEXIST: f"a file is in the place of a folder; move it away or {choose}",
        errno.ENAMETOOLONG: f"the name is too long; {choose}, with a shorter name",
        errno.EFBIG: f"a file may not grow so large here (ulimit -f, or the file system); {choose}",
        errno.EMFILE: "too many files are open; raise the limit (ulimit -n) or use fewer processes (--set jobs=1)",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; check the path and the disk")
    return UserError(f"Could not write {shorten(path)}: {reason}. What was there before is untouched.")


def _another(path: Path) -> str:
    """Say how another place is chosen: the cache by the environment, all else on the command line."""
    try:
        shared = path.absolute().is_relative_to(cache_folder().absolute())
    except (UserError, OSError):
        shared = False
    if shared:
        return f"set {CACHE} to another folder (the cache that all runs share lies there)"
    return "choose another folder with --out"


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write ``value`` as indented, sorted JSON; a ``sealed`` dictionary gets a checksum, which :func:`unseal` compares.

    Raises:
        UserError: a number in it is NaN or infinite, or the place may not be written.
    """
    for place, number in _not_finite(value):
        do = "Look for a training that went astray (lower train.lr, set train.clip) or an input that is not finite."
        raise UserError(
            say(f"{path} was not written: a number is not finite", f"{number} at '{place}'", "finite numbers", do)
        )
    if sealed:
        plain = json.loads(json.dumps(value))  # as it is read back: keys are texts, tuples are lists
        value = {**plain, SEAL: fingerprint(plain)}
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Yield where in ``value`` a number is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place.removeprefix("."), value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _not_finite(part, f"{place}.{number}")


def read_json(path: Path, *, most: int = LARGEST) -> Any:
    """Read JSON from ``path``, of at most so many bytes.

    Raises:
        StoreError: the file is absent, cannot be read, is too large, or is not JSON.
    """
    try:
        with reading(path, StoreError, most):
            content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"Missing file: {path} does not exist. Check the path, or make it again.") from error
    except OSError as error:
        raise StoreError(unreadable(path, error)) from error
    try:
        return parse_json(content, strict=True)
    except ValueError as error:
        raise StoreError(
            f"Unreadable file: {path} is not valid JSON ({error}). Restore it, or make it again."
        ) from error


def read_json_or(path: Path, default: Any) -> Any:
    """Read JSON from ``path``; ``default`` where nothing of that kind is there to be read."""
    try:
        return read_json(path)
    except StoreError:
        return default


def parse_json(content: str | bytes, *, strict: bool = False) -> Any:
    """Return what JSON says, within bounds that no honest file passes; ``strict`` knows no NaN and no infinity.

    Raises:
        ValueError: it is not JSON, is no UTF-8, is nested too deeply, or has a number of thousands of digits.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    deep = ValueError(f"nested deeper than {DEEPEST} levels")
    try:
        value = json.loads(text, parse_constant=_no_constant) if strict else json.loads(text)
    except RecursionError:
        raise deep from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number of thousands of digits") from None
        raise
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inside = (child for one in level for child in (one.values() if isinstance(one, dict) else one))
        level = [child for child in inside if isinstance(child, dict | list)]
    if level:
        raise deep
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def fingerprint(value: Any) -> str:
    """Return a SHA-256 of ``value``'s canonical JSON (sorted keys, no spaces), as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def unseal(path: Path, value: Any, *, needed: bool = True) -> dict[str, Any]:
    """Return what was read from ``path`` without its checksum, after comparing it.

    Where it is not ``needed``, what was written before files had checksums is good as it is.

    Raises:
        Damaged: it does not match its checksum, or has none.
    """
    kept = {key: part for key, part in value.items() if key != SEAL} if isinstance(value, dict) else {}
    seal = value.get(SEAL) if isinstance(value, dict) else None
    if (needed or seal is not None or not kept) and seal != fingerprint(kept):
        raise Damaged(f"Damaged file: {path} does not match its checksum. Restore it, or make it again.")
    return kept


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote as sealed.

    Raises:
        Damaged: the file is absent, is not JSON, or does not match its checksum.
    """
    try:
        return unseal(path, read_json(path))
    except Damaged:
        raise
    except (StoreError, ValueError, RecursionError) as error:
        raise Damaged(f"Damaged file: {path} cannot be read ({error}). Restore it, or make it again.") from error


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_checksum(path: Path) -> str:
    """Return :func:`checksum`, computed once a process while size, times and inode of the file stay the same.

    Raises:
        OSError: there is no such file, or it may not be read.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    place, held = (state.st_dev, state.st_ino), (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if place in _known and _known[place][0] == held:
        return _known[place][1]
    found = checksum(path)
    if time.time_ns() - max(held[1:]) > SETTLED:
        _known[place] = (held, found)
    return found


# --- notes -----------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Tell a person, once a run, of what was mended or not trusted; it is also kept until :func:`take_notes`."""
    if text not in _told:
        _told.add(text)
        _pending.append(text)
        logging.getLogger("stillroom").warning("note: %s", text)


def take_notes() -> list[str]:
    """Return what was told since this was last asked."""
    taken = list(_pending)
    _pending.clear()
    return taken


@contextlib.contextmanager
def notes_of_a_run() -> Iterator[None]:
    """Forget at the end what was told, so that the next run of this process is told again."""
    try:
        yield
    finally:
        _told.intersection_update(_pending)


# --- committed steps -------------------------------------------------------------------------------


def committed(folder: Path, inputs: str) -> dict[str, Any] | None:
    """Return what :func:`commit` noted if ``folder`` holds that step's finished work for ``inputs``, else None.

    The one judge of "is this artefact committed?": the mark must be there and whole, carry the same fingerprint of
    inputs, and every file it names must still have the content it had.
    """
    found = _noted(folder, inputs)
    return None if found is None or _changed(folder, found) else found


def _noted(folder: Path, inputs: str) -> dict[str, Any] | None:
    """Return the mark of a step with these inputs, None where there is none or it is not whole."""
    try:
        found = read_sealed(folder / DONE) if is_file(folder / DONE) else {}
    except (Damaged, OSError):
        return None
    files = found.get("files")
    good = isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
    return found if good and found.get("inputs") == inputs else None


def _changed(folder: Path, found: Mapping[str, Any]) -> str:
    """Return what is no longer as it was committed, or nothing."""
    for name, digest in found["files"].items():
        try:
            if known_checksum(folder / name) != digest:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read"
    return ""


def damage(folder: Path, inputs: str) -> str:
    """Return what is wrong with the finished work in ``folder``, or nothing."""
    found = _noted(folder, inputs)
    return f"{DONE} is damaged" if found is None else _changed(folder, found)


def commit(folder: Path, inputs: str, **also: Any) -> None:
    """Mark the step in ``folder`` as finished for ``inputs``; ``also`` is kept with the mark."""
    digests = {
        str(file.relative_to(folder)): known_checksum(file)
        for file in sorted(folder.rglob("*"))
        if is_file(file)
        and file.name not in (DONE, BEGUN)
        and not file.name.startswith(".")
        and OLD not in file.relative_to(folder).parts[:-1]
    }
    faultpoint("commit:before")
    write_json(folder / DONE, {"inputs": inputs, "files": digests, **also}, sealed=True)
    faultpoint("commit:after")


def begin(folder: Path, inputs: str) -> None:
    """Make ``folder`` ready for the step with ``inputs``: another step's work there is moved to ``old/``, never lost.

    Unfinished work of the same inputs stays, so that it can be resumed; finished work that was damaged since is moved
    to ``old/`` too, with a note.
    """
    begun = folder / BEGUN
    if is_folder(folder) and any(folder.iterdir()):
        try:
            same = exists(begun) and read_json(begun).get("inputs") == inputs
        except (StoreError, ValueError, RecursionError, AttributeError):
            heal(folder, f"{begun} is damaged")
        else:
            if not same:
                set_aside(folder)
            elif os.path.lexists(folder / DONE) and (why := damage(folder, inputs)):
                heal(folder, f"{folder} was damaged ({why})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    if not is_file(begun):
        write_json(begun, {"inputs": inputs})


def copy_step(source: Path, target: Path) -> None:
    """Copy a committed step's files, but not its marks, into ``target``, flushed and compared with their checksums.

    Raises:
        Damaged: a file is no longer as it was committed.
        UserError: the place may not be written or is full.
    """
    found = read_sealed(source / DONE)
    try:
        for name, digest in found["files"].items():
            if Path(name).name != name:
                continue
            with open(source / name, "rb") as read, open(target / name, "wb") as written:
                shutil.copyfileobj(read, written)
                written.flush()
                os.fsync(written.fileno())
            if checksum(target / name) != digest:
                raise Damaged(f"Damaged file: {source / name} does not match its checksum. Make it again.")
        flush_folder(target)
    except OSError as error:
        raise refused(target, error) from error


def sweep(folder: Path, older_than: float = 0.0) -> None:
    """Remove what killed processes left half-written below ``folder``.

    Parts that nobody touched for so many seconds.
    """
    for part in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime >= older_than:
                shutil.rmtree(part) if is_folder(part) else part.unlink()


def set_aside(folder: Path) -> Path:
    """Move ``folder`` (or a file) into ``old/`` beside it, under the first free number, and return its new place."""
    old = folder.parent / OLD
    number = 1
    while os.path.lexists(old / f"{folder.name}-{number}"):
        number += 1
    try:
        old.mkdir(parents=True, exist_ok=True)
        shutil.move(str(folder), str(old / f"{folder.name}-{number}"))
    except OSError as error:
        raise refused(old, error) from error
    return old / f"{folder.name}-{number}"


def heal(place: Path, what: str | Damaged) -> None:
    """Move away what is damaged but can be made again, and say ``what`` was wrong with it: nothing is lost."""
    try:
        aside = set_aside(place)
    except UserError:
        if os.path.lexists(place):  # else another process was faster
            raise
        return
    note(f"{str(what).partition('. ')[0]}; moved to {aside}, and made again.")


# --- the shared cache ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``STILLROOM_CACHE``, else ``~/.cache/stillroom`` (not created).

    Raises:
        UserError: the variable is empty or names no folder, or it is not set and there is no home folder.
    """
    given = os.environ.get(CACHE)
    if given is not None:
        return expand(given, CACHE)
    try:
        return expand("~/.cache/stillroom")
    except UserError as error:
        raise UserError(
            "There is no place for the cache: got no home folder (HOME is not set, and this user has no name here). "
            f"Set {CACHE} to a folder that you may write."
        ) from error
