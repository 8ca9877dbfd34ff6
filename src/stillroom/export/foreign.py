"""Manners with the packages that write and run graphs: are they there, what do they say, and not so loud."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator

from stillroom.errors import MissingPart


def need() -> None:
    """Raises MissingPart for the first package of the ``export`` part that is not there."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPart(package, "export", "Writing an ONNX graph") from error


def first_line(error: Exception) -> str:
    """Return the line of a foreign error that says something, short enough to be read."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from writing to the console; their warnings concern their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
