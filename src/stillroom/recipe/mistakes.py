"""From a block of the tree to its values: mistakes are told in plain words, then mended as they were meant."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stillroom.errors import nearest
from stillroom.recipe.text import Mistakes, Node, shorten
from stillroom.settings import Settings

_PASSES = 12
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def check(node: Node, model: type[Settings], mistakes: Mistakes) -> Any:
    """Return the values of a block as ``model``, or None when they cannot be had; mistakes are noted.

    Unknown keys are renamed to the nearest one or taken away, wrong values are taken away, so that one reading
    finds all the mistakes.
    """
    for _ in range(_PASSES):
        try:
            return model.model_validate_json(json.dumps(node.plain()), strict=True)
        except ValidationError as failure:
            errors = failure.errors(include_url=False)
        if _mend_keys(node, model, errors, mistakes):
            continue
        if not _take_away(node, errors, mistakes):
            return None
    return None


def unknown_keys(
    node: Node, allowed: Iterable[str], mistakes: Mistakes, reasons: Mapping[str, str] | None = None
) -> None:
    """Note keys of a block that are not allowed; each is renamed to the nearest that is still free, or taken away."""
    names = list(allowed)
    for key in [key for key in node.items if key not in names]:
        _mend_key(node, key, names, mistakes, (reasons or {}).get(key))


def _mend_key(node: Node, key: str, names: Sequence[str], mistakes: Mistakes, reason: str | None = None) -> None:
    child = node.value.pop(key)
    close = None if reason else nearest(key, [name for name in names if name not in node.value])
    given = nearest(key, names)
    if reason:
        mistakes.add(child, reason)
    elif given and given in node.value and close is None:
        mistakes.add(child, f"unknown key; did you mean '{given}'? It is given already")
    elif close:
        mistakes.add(child, f"unknown key; did you mean '{close}'?")
        node.value[close] = child
    else:
        mistakes.add(child, f"unknown key; allowed: {', '.join(names)}")


def choose(node: Node, key: str, table: Iterable[str], kind: str, mistakes: Mistakes) -> str | None:
    """Return which of ``table`` a block names under ``key``: the nearest one when it is misspelt, else None.

    The misspelt name is replaced in the tree.
    """
    names = sorted(table)
    if not isinstance(node.value, dict):
        example = node.value if node.value in names else names[0]
        mistakes.add(node, f"must be a block of keys such as {{{key}: {example}}}, got {_given(node)}")
        return None
    if key not in node.value:
        close = nearest(key, node.value)
        if close is None:
            mistakes.add(node, f"'{key}' is missing; allowed: {', '.join(names)}")
            return None
        _mend_key(node, close, [key], mistakes)
    child = node.value[key]
    if isinstance(child.value, str) and child.value in names:
        return child.value
    given = shorten(child.value) if not isinstance(child.value, dict | list) else "a list or block"
    near = nearest(given, names)
    hint = f"did you mean '{near}'?" if near else f"allowed: {', '.join(names)}"
    mistakes.add(child, f"unknown {kind} '{given}'; {hint}")
    if near:
        child.value = near
    return near


# --- pydantic's errors -------------------------------------------------------------------------------


def _mend_keys(node: Node, model: type[Settings], errors: Sequence[ErrorDetails], mistakes: Mistakes) -> bool:
    mended = False
    for error in errors:
        if error["type"] != "extra_forbidden":
            continue
        parent, key = find(node, error["loc"][:-1]), str(error["loc"][-1])
        if key in parent.items:
            _mend_key(parent, key, keys_of(_model_at(model, error["loc"][:-1])), mistakes)
            mended = True
    return mended


def _take_away(node: Node, errors: Sequence[ErrorDetails], mistakes: Mistakes) -> bool:
    """Note the errors and take their values out of the tree; False when that cannot make the block whole."""
    groups: dict[int, tuple[Node, list[ErrorDetails]]] = {}
    whole = True
    for error in errors:
        place = find(node, error["loc"])
        if error["type"] == "too_short" and place.value:
            continue  # pydantic counts the entries that fit; those that do not have a message of their own
        if error["type"] == "missing":
            key = str(error["loc"][-1])
            whole = False
            if (place, key) not in mistakes.taken:
                mistakes.add(place, f"'{key}' is missing")
            continue
        groups.setdefault(id(place), (place, []))[1].append(error)
    for place, found in groups.values():
        mistakes.add(place, words(place, found))
        whole = _remove(node, place, mistakes) and whole
    return whole


def _remove(root: Node, node: Node, mistakes: Mistakes) -> bool:
    """Take a node out of the tree below ``root``; of a list, the whole list goes."""
    for key, child in list(root.items.items()):
        if child is node or (isinstance(child.value, list) and _holds(child, node)):
            del root.value[key]
            mistakes.taken.add((root, key))
            return True
        if _remove(child, node, mistakes):
            return True
    return False


def _holds(node: Node, wanted: Node) -> bool:
    children = node.value if isinstance(node.value, list) else node.items.values()
    return any(child is wanted or _holds(child, wanted) for child in children)


def find(node: Node, location: Iterable[str | int]) -> Node:
    """Walk pydantic's location through the tree; tags of unions and missing keys are not in it: skip them."""
    for step in location:
        if isinstance(step, str) and step in node.items:
            node = node.value[step]
        elif isinstance(step, int) and isinstance(node.value, list) and step < len(node.value):
            node = node.value[step]
    return node


def _model_at(model: type[BaseModel], location: Iterable[str | int]) -> type[BaseModel]:
    """Return the model of the block at a location; an annotation holds one model at most."""
    for step in location:
        for name, field in model.model_fields.items():
            if step == (field.alias or name):
                model = _model_in(field.annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return a block's keys as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def words(node: Node, errors: Sequence[ErrorDetails]) -> str:
    """Say what is wrong with a value, when it fits none of the kinds it may be."""
    wanted: dict[str, None] = {}
    hint = ""
    for error in errors:
        context = error.get("ctx", {})
        kind = error["type"]
        if kind == "value_error":
            return str(context["error"])
        if kind in _KINDS:
            wanted[f"must be {_KINDS[kind]}"] = None
        elif kind in _BOUNDS:
            word, name = _BOUNDS[kind]
            bound = context[name]
            wanted[f"must be {word} {bound:,}" if isinstance(bound, int) else f"must be {word} {bound:g}"] = None
        elif kind == "too_long":
            wanted[f"must have at most {context['max_length']:,} entries"] = None
        elif kind == "literal_error":
            wanted[f"must be {context['expected']}"] = None
            near = nearest(str(node.value), re.findall(r"'([^']*)'", context["expected"]))
            hint = f" (did you mean '{near}'?)" if near else hint
        elif kind in ("too_short", "string_too_short"):
            wanted["must not be empty"] = None
        else:
            wanted[error["msg"][:1].lower() + error["msg"][1:]] = None
    joined = list(wanted)[0] + "".join(f" or {more.removeprefix('must be ')}" for more in list(wanted)[1:])
    return f"{joined}, got {_given(node)}{hint or _advice(node, errors)}"


def _given(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a block of keys"
    if isinstance(node.value, list):
        return f"a list of {len(node.value):,}" if node.value else "an empty list"
    return f"the text '{shorten(node.value)}'" if isinstance(node.value, str) else shorten(node.value)


def _advice(node: Node, errors: Sequence[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if isinstance(node.value, str):
        if "bool_type" in kinds and node.value.lower() in ("yes", "no", "on", "off", "y", "n", "true", "false"):
            meant = "true" if node.value.lower() in ("yes", "on", "y", "true") else "false"
            return f" (write {meant}, without quotes)"
        if kinds & {"int_type", "float_type"} and re.fullmatch(r"[-+.\d]+([eE][-+]?\d+)?", node.value):
            return " (take the quotes away)"
    if "string_type" in kinds and not isinstance(node.value, dict | list | None):
        return " (put it in quotes)"
    return ""
