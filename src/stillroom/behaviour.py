"""What a person's own functions and classes do, as a fingerprint: weights and names alone do not tell.

A network whose ``forward`` was changed has the weights and the ``repr`` that it had; a changed loss keeps its name.
Without this, results that were kept would be taken for those of the changed code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

from torch import nn

KNOWN = ("builtins", "stillroom", "torch")  # these have versions of their own
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def behaviour(*things: Any) -> str:
    """Return a SHA-256 of what functions, classes and modules of foreign code compute; "" where all is known code.

    Byte code, constants, defaults, and what they use of their own file: functions, classes, plain values. Comments and
    places in the file do not matter; another version of Python gives another answer.
    """
    digest, seen = hashlib.sha256(), set[int]()
    for thing in things:
        for part in _kinds(thing) if isinstance(thing, nn.Module) else [thing]:
            _look(part, digest, seen)
    return digest.hexdigest() if seen else ""


def _kinds(module: nn.Module) -> list[type]:
    return list(dict.fromkeys(type(part) for part in module.modules()))


def _foreign(thing: Any) -> bool:
    return str(getattr(thing, "__module__", None) or "").split(".")[0] not in KNOWN


def _look(thing: Any, digest: Any, seen: set[int]) -> None:
    """Add one thing and, once each, what it leads to."""
    thing = getattr(thing, "__func__", getattr(thing, "fget", thing)) or thing
    if isinstance(thing, PLAIN):
        digest.update(repr(thing).encode())
        return
    if isinstance(thing, tuple | frozenset):  # what may change meanwhile (lists, dictionaries) says nothing of the code
        for part in thing if isinstance(thing, tuple) else sorted(thing, key=repr):
            _look(part, digest, seen)
        return
    if not isinstance(thing, type | FunctionType) or id(thing) in seen or not _foreign(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, type):
        for parent in filter(_foreign, thing.__mro__):
            for name, value in sorted(vars(parent).items()):
                if name not in ("__module__", "__doc__", "__annotations__"):
                    digest.update(name.encode())
                    _look(value, digest, seen)
        return
    cells = tuple(cell.cell_contents for cell in thing.__closure__ or () if _filled(cell))
    for value in (thing.__defaults__ or (), tuple(sorted((thing.__kwdefaults__ or {}).items())), cells):
        _look(value, digest, seen)
    for name in _code(thing.__code__, digest):
        value = thing.__globals__.get(name)
        if isinstance(value, PLAIN) or getattr(value, "__module__", None) == thing.__module__:
            _look(value, digest, seen)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is bound later
        return False


def _code(code: CodeType, digest: Any) -> Iterable[str]:
    """Add byte code and constants, those of functions within too; return the names used."""
    digest.update(code.co_code)
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _code(constant, digest)
        else:
            _look(constant, digest, set())
    digest.update(repr(names).encode())
    return names
