"""The table of sources that a recipe can name, as text, so that none is imported before it is used."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, say

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
    source: Source = _function(use)(**options)
    return source


def _function(use: str) -> Any:
    if use not in SOURCES:
        do = "From Python, tensors, arrays and Datasets can be given too."
        raise DataError(say("Unknown data", f"'{use}'", sorted(SOURCES), do))
    module, _, name = SOURCES[use].partition(":")
    return getattr(importlib.import_module(module), name)
