"""Which keys a block may have: the recipe's own, and the options in the signature of the function it names."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, create_model

from stillroom.errors import Bug
from stillroom.settings import Settings

SUPPLIED = ("shape", "classes", "views", "config")
"""Options that a run fills in itself: shape and classes from the data, views from ``record``, config from a folder."""


class _Block(Settings):
    model_config = ConfigDict(arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Tables:
    """What a recipe may name. ``probe`` builds a zoo model without memory, ``(name, options) -> module``."""

    losses: Mapping[str, Callable[..., Any]]
    sources: Mapping[str, Callable[..., Any] | str]
    models: Mapping[str, Callable[..., Any]]
    probe: Callable[[str, Mapping[str, Any]], Any] | None = None
    _blocks: dict[tuple[str, str], type[Settings]] = field(default_factory=dict)

    def block(
        self, kind: Literal["losses", "sources", "models"], name: str, base: type[Settings], keys: Sequence[str]
    ) -> type[Settings]:
        """Return the model of a block: ``keys`` of ``base`` and the options of the function called ``name``."""
        place = (base.__name__, name)
        if place not in self._blocks:
            self._blocks[place] = block_of(function_of(getattr(self, kind)[name]), base, keys)
        return self._blocks[place]


def shipped() -> Tables:
    """Return what Stillroom ships; this is what loads PyTorch."""
    from stillroom.data import SOURCES
    from stillroom.losses import LOSSES
    from stillroom.models.zoo import ZOO, empty, example_shape

    def probe(name: str, options: Mapping[str, Any]) -> Any:
        return empty(name, shape=example_shape(name), classes=10, **options)

    return Tables(LOSSES, SOURCES, ZOO, probe)


def function_of(entry: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return a table's function; an entry ``module:function`` is imported now."""
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), name))


def options_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return (annotation, default) of each keyword-only parameter that a recipe may set; ``...`` for no default."""
    parameters = inspect.signature(function).parameters.values()
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    options = {}
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in SUPPLIED:
            hint, default = hints.get(parameter.name, Any), parameter.default
            options[parameter.name] = (hint, ... if default is parameter.empty else _as_read(hint, default))
    return options


def _as_read(annotation: Any, default: Any) -> Any:
    """Return a default as it would be read (5 where a float is meant as 5.0), so that fingerprints agree."""
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(default)


def block_of(function: Callable[..., Any] | None, base: type[Settings], keys: Sequence[str]) -> type[Settings]:
    """Make a flat model of ``keys`` from ``base`` and a function's options.

    Raises:
        Bug: an option has the name of a key.
    """
    hints = typing.get_type_hints(base, include_extras=True)
    fields: dict[str, Any] = {}
    for key in keys:
        default = base.model_fields[key]
        fields[key] = (hints[key], ... if default.is_required() else default.get_default(call_default_factory=False))
    options: dict[str, Any] = dict(options_of(function)) if function is not None else {}
    if clash := set(options) & set(fields):
        raise Bug(f"options of {function} have the names of a recipe's keys: {', '.join(sorted(clash))}")
    return create_model(base.__name__, __base__=_Block, **{**fields, **options})
