"""Paths that people give: what is there is asked here, and what the system refuses is told in words.

``pathlib`` raises what the operating system says while it only looks (a name too long, a folder without rights, a home
that nobody has). Whoever is given a path asks ``is_file``, ``is_folder`` and ``exists`` of this file instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.errors import UserError, say
from stillroom.terminal import visible

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe, which is read without an end",
    stat.S_IFCHR: "a device, which is read without an end",
    stat.S_IFBLK: "a device, which is read without an end",
    stat.S_IFSOCK: "a socket",
}
REASONS = {
    errno.EACCES: ("permission was denied", "Ask who owns it, or choose a place that you may use."),
    errno.EPERM: ("permission was denied", "Ask who owns it, or choose a place that you may use."),
    errno.ENAMETOOLONG: ("the name is too long", "A name may have 255 bytes, a path 4,095: choose a shorter one."),
    errno.EIO: ("the disk could not be read", "Check the disk, or bring the file back from a copy."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n), or use fewer processes: --set jobs=1."),
    errno.ESTALE: ("the network folder has gone", "Connect it again."),
    errno.EISDIR: ("a folder is in its place", "Name a file."),
}


def expand(given: str | os.PathLike[str], what: str = "A path", error: type[UserError] = UserError) -> Path:
    """Return ``given`` as a path, ``~`` replaced by the home folder; ``what`` it is for begins the message.

    Raises:
        UserError: of the class ``error``, when it is empty, no text of UTF-8, or names a home that nobody has.
    """
    text = os.fspath(given)
    if not isinstance(text, str) or not text.strip():
        do = "Give one; '.' is the folder of now."
        raise error(say(f"{what} is empty", repr(text), "the path of a file or folder", do))
    _can_be_written(text, what, error)
    try:
        found = Path(text).expanduser()
    except RuntimeError as cause:
        whose = text.split("/")[0]
        given = f"'{text}'; this machine knows no home of {whose if len(whose) > 1 else 'yours (HOME is not set)'}"
        do = "Write the whole path, or set HOME."
        raise error(say(f"{what} begins with a home folder that is not there", given, "a whole path", do)) from cause
    _can_be_written(str(found), what, error)
    return found


def is_utf8(text: str) -> bool:
    """Whether a name can be written into a file: it has no half characters, which stand for bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _can_be_written(text: str, what: str, error: type[UserError]) -> None:
    if "\0" in text or not is_utf8(text):
        do = "Rename the file or folder, or reach it through a link with another name."
        raise error(say(f"{what} is not text in UTF-8", f"'{visible(text)}'", "names that can be written down", do))


def is_file(path: Path, error: type[UserError] = UserError) -> bool:
    """Whether an ordinary file is at ``path``.

    Raises:
        UserError: of the class ``error``, when the system does not let it be seen.
    """
    return stat.S_ISREG(_mode(path, error))


def is_folder(path: Path, error: type[UserError] = UserError) -> bool:
    """Whether a folder is at ``path``; raises as :func:`is_file` does."""
    return stat.S_ISDIR(_mode(path, error))


def exists(path: Path, error: type[UserError] = UserError) -> bool:
    """Whether anything is at ``path``; raises as :func:`is_file` does."""
    return bool(_mode(path, error))


def _mode(path: Path, error: type[UserError]) -> int:
    """Return what kind of thing is at ``path``, 0 for nothing."""
    try:
        return os.stat(path).st_mode
    except OSError as cause:
        if cause.errno in _NOT_THERE:
            return 0
        raise error(unreadable(path, cause)) from cause
    except ValueError as cause:  # a zero byte, or half a character
        raise error(say("This is no path", f"'{visible(str(path))}'", "text in UTF-8 without zero bytes")) from cause


def unreadable(path: Path, cause: OSError) -> str:
    """Say why the system does not give ``path``, and what to do."""
    known = REASONS.get(cause.errno or 0)
    reason, do = known or (cause.strerror or str(cause), "Check the path and the disk.")
    return f"Cannot read {visible(shorten(path))}: {reason}. {do}"


def shorten(path: Path) -> str:
    """Return a path for a message: the beginning and the end of one that is very long."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:120]}...{text[-120:]}"


def regular(path: Path, error: type[UserError] = UserError, most: int | None = None) -> None:
    """See that ``path`` can be read to its end: what is there is an ordinary file, of ``most`` bytes where given.

    A file that is absent is left to whoever opens it, who knows what to do about that.

    Raises:
        UserError: of the class ``error``, when it is a folder, a pipe, a device, a socket, too large or hidden.
    """
    mode = _mode(path, error)
    if mode and not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        do = "Name a file in it." if stat.S_ISDIR(mode) else "Write its content into a file, and name that."
        raise error(say(f"Cannot read {path}", kind, "an ordinary file", do))
    if mode and most is not None and (size := os.stat(path).st_size) > most:
        do = "Check that it is the right file."
        raise error(say(f"{path} is too large", f"{size:,} bytes", f"up to {most:,}", do))


@contextmanager
def reading(path: Path, error: type[UserError] = UserError, most: int | None = None) -> Iterator[None]:
    """Look at a file before it is opened, and tell in words what the system refuses meanwhile; absence is passed on.

    Raises:
        UserError: of the class ``error``, as :func:`regular`, or when the system does not give the file.
    """
    regular(path, error, most)
    try:
        yield
    except OSError as cause:
        if cause.errno not in REASONS:
            raise
        raise error(unreadable(path, cause)) from cause
