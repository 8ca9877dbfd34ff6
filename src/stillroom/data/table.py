"""The table of sources that a recipe can name, as text, so that none is imported before it is used."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from stillroom.contracts import Source
from stillroom.errors import DataError, enough_memory, say

SOURCES: dict[str, str] = {
    "breast-cancer": "stillroom.data.tables:breast_cancer",
    "digits": "stillroom.data.images:digits",
    "fashion-mnist": "stillroom.data.images:fashion_mnist",
    "fashion-mnist-sample": "stillroom.data.images:fashion_mnist_sample",
    "images": "stillroom.data.images:folder",
    "mnist": "stillroom.data.images:mnist",
    "movie-reviews-sample": "stillroom.data.text_files:movie_reviews_sample",
    "npz": "stillroom.data.images:npz",
    "reviews-zh-sample": "stillroom.data.text_files:reviews_zh_sample",
    "rotations": "stillroom.data.derived:rotations",
    "table": "stillroom.data.tables:table",
    "text": "stillroom.data.text_files:text",
}


def options_of(use: str) -> dict[str, inspect.Parameter]:
    """Return the options of the source called ``use``, by name.

    Raises:
        DataError: there is no such source.
    """
    return dict(inspect.signature(_function(use)).parameters)


def open_source(use: str, **options: Any) -> Source:
    """Open the source called ``use`` with its loader's options.

    Raises:
        DataError: an unknown source or option, an option that is needed and absent, or data that is not as it must be.
    """
    allowed = options_of(use)
    for option in options:
        if option not in allowed:
            raise DataError(say(f"Unknown option of data '{use}'", f"'{option}'", list(allowed)))
    for option, parameter in allowed.items():
        if parameter.default is parameter.empty and option not in options:
            raise DataError(say(f"Data '{use}' needs '{option}'", "none", "", f"Add '{option}' to 'data'."))
    do = "Give a file with fewer rows, smaller pictures or fewer columns; a damaged file may also claim too much."
    with enough_memory(f"to read data '{use}'", do, DataError):
        source: Source = _function(use)(**options)
    return source


def _function(use: str) -> Any:
    if use not in SOURCES:
        do = "From Python, tensors, arrays and Datasets can be given too."
        raise DataError(say("Unknown data", f"'{use}'", sorted(SOURCES), do))
    module, _, name = SOURCES[use].partition(":")
    return getattr(importlib.import_module(module), name)
