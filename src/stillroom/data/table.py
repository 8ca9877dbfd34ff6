"""The table of sources that a recipe can name, as text, so that none is imported before it is used."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, enough_memory, say
from stillroom.files import parse_json

if TYPE_CHECKING:
    from stillroom.contracts import Source

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

MEANINGS: dict[str, str] = {
    "augment": "how views of a text are made: mask, sample, shortest, longest, unit",
    "categorical": "columns of numbers that are categories all the same, such as a postcode's first digit",
    "channels": "3 is colour, 1 grey",
    "columns": "the columns to learn from; else all others",
    "encoding": "what a text file is saved in; a byte order mark overrules it",
    "flip": "views may be turned left to right",
    "label": "the column of labels, empty where a row has none; from Python also None: no labels at all",
    "noise": "views get normal noise of this deviation, as a share of 255",
    "of": "the source whose images are turned",
    "only": "keep the classes of these numbers alone, renumbered in that order",
    "pad": "views are cut anew from the image with so many pixels of border",
    "path": "the file or folder that holds the data",
    "seed": "of the splits and the views",
    "size": "images become a square of so many pixels",
    "test": "a count, or a share of the training rows, where the data has no test split of its own",
    "text": "the column of texts",
    "train": "at most so many training rows, each class in proportion",
    "validation": "a count, or a share of the training rows, where the data has no validation split of its own",
    "views": "how many views of each example there are, the plain one among them; a recipe says `record.views`",
    "without": "columns to leave out",
}
"""What each option of a source means, wherever it has one of that name."""


def options_of(use: str) -> dict[str, inspect.Parameter]:
    """Return the options of the source called ``use``, by name.

    Raises:
        DataError: there is no such source.
    """
    return dict(inspect.signature(_function(use)).parameters)


def written_options(use: str) -> dict[str, str | None]:
    """Return the options of a source with their defaults (None: needed), read from its file and not imported.

    A loader's file needs PyTorch; a list of what there is must not wait for that.
    """
    module, _, name = SOURCES[use].partition(":")
    path = Path(__file__).parent / f"{module.rpartition('.')[2]}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loader = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    needed = loader.args.args[: len(loader.args.args) - len(loader.args.defaults)]
    found: dict[str, str | None] = {one.arg: None for one in needed}
    found |= {
        one.arg: ast.unparse(default)
        for one, default in zip(loader.args.args[len(needed) :], loader.args.defaults, strict=True)
    }
    for one, value in zip(loader.args.kwonlyargs, loader.args.kw_defaults, strict=True):
        found[one.arg] = None if value is None else ast.unparse(value)
    return found


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


def named(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name``, ``name:path`` or ``name:path,key=value``, as the command line takes them: a source, its options.

    Raises:
        DataError: an unknown source or option, a value that cannot be read, or a path where there is none or needs one.
    """
    parts = re.split(r",(?=\s*\w+=)", text)
    name, _, path = parts[0].partition(":")
    allowed, options = options_of(name), {}
    for part in parts[1:]:
        key, _, value = part.partition("=")
        key = key.strip()
        if key in options:
            raise DataError(say(f"The option '{key}' of data '{name}' is given twice", f"'{text}'", "each once"))
        if key not in allowed:
            raise DataError(say(f"Unknown option of data '{name}'", f"'{key}'", list(allowed)))
        options[key] = _value(value.strip())
    if path and "path" not in allowed:
        raise DataError(say(f"Data '{name}' takes no path", f"'{path}'", f"--data {name}"))
    needed = allowed.get("path")
    if needed is not None and needed.default is needed.empty and not path and "path" not in options:
        raise DataError(say(f"Data '{name}' needs a path", f"'{name}'", f"{name}:PATH, for example {name}:pictures/"))
    return name, ({"path": path} if path else {}) | options


def _value(text: str) -> Any:
    """Return a number, true, false, null or a list as JSON writes them; all else is a text."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _function(use: str) -> Any:
    if use not in SOURCES:
        do = "From Python, tensors, arrays and Datasets can be given too."
        raise DataError(say("Unknown data", f"'{use}'", sorted(SOURCES), do))
    module, _, name = SOURCES[use].partition(":")
    return getattr(importlib.import_module(module), name)
