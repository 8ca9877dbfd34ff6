"""Changes laid over a recipe's tree: ``--set path=value``, and what an arm says differs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillroom.errors import RecipeError, nearest
from stillroom.recipe.text import Mistakes, Node, below, read_tree, tree_of

ORIGIN = "--set"
_CHOICES = ("use", "model", "load", "store")
_EITHER = {"steps": "epochs", "epochs": "steps"}


def merged(base: Node | None, over: Node) -> Node:
    """Lay ``over`` upon ``base``, block by block; lists and plain values are replaced.

    A block that chooses another ``use`` or ``model`` starts afresh, since the options belonged to the old choice;
    ``steps`` and ``epochs`` displace each other.
    """
    if base is None or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if any(key in over.value and _differs(base.items.get(key), over.value[key]) for key in _CHOICES):
        return over
    together = dict(base.value)
    for key, child in over.value.items():
        if child.value is not None:
            together.pop(_EITHER.get(key, ""), None)
        together[key] = merged(together.get(key), child)
    return Node(together, over.where, over.line, over.origin)


def _differs(before: Node | None, after: Node) -> bool:
    return before is None or before.value != after.value


def apply(root: Node, assignments: Sequence[str]) -> None:
    """Lay each ``a.b.c=value`` over the tree; lists are entered by number: ``objectives.1.temperature=2``.

    Keys that do not exist are set all the same: the check that follows names them and the nearest one.

    Raises:
        RecipeError: an assignment has no path or value, its value is not YAML, or a list has no such entry.
    """
    mistakes = Mistakes()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        steps = re.sub(r"\[(\d+)\]", r".\1", path.strip()).split(".")
        if not equals or not all(steps):
            mistakes.add(Node(None, "", 0, f"{ORIGIN} {assignment}"), "write it as path=value, such as train.steps=200")
            continue
        try:
            value = read_tree(text, f"{ORIGIN} {assignment}").plain()
        except RecipeError as error:
            for mistake in error.mistakes:
                mistakes.add(Node(None, "", 0, f"{ORIGIN} {assignment}"), mistake)
            continue
        _assign(root, steps, value, mistakes)
    mistakes.refuse(ORIGIN)


def _assign(node: Node, steps: list[str], value: object, mistakes: Mistakes) -> None:
    """Walk down to the last step, making blocks on the way, and put the value there."""
    while len(steps) > 1:
        if isinstance(node.value, list):
            position = _position(node, steps[0], mistakes)
            if position is None:
                return
            node, steps = node.value[position], steps[1:]
            continue
        if not isinstance(node.value, dict):
            node.value, node.origin, node.line = {}, ORIGIN, 0
        size = next((n for n in range(len(steps) - 1, 0, -1) if ".".join(steps[:n]) in node.value), 1)
        key, steps = ".".join(steps[:size]), steps[size:]
        node = node.value.setdefault(key, Node(None, below(node.where, key), 0, ORIGIN))
    if isinstance(node.value, list):
        position = _position(node, steps[0], mistakes)
        if position is not None:
            node.value[position] = tree_of(value, below(node.where, position), ORIGIN)
        return
    if not isinstance(node.value, dict):
        node.value, node.origin, node.line = {}, ORIGIN, 0
    if value is not None:
        node.value.pop(_EITHER.get(steps[0], ""), None)
    node.value[steps[0]] = tree_of(value, below(node.where, steps[0]), ORIGIN)


def _position(node: Node, step: str, mistakes: Mistakes) -> int | None:
    """Return which entry of a list a step names: its number, or an objective's ``name`` or ``use``."""
    if step.isdigit() and int(step) < len(node.value):
        return int(step)
    names = [_name(child) for child in node.value]
    if names.count(step) == 1:
        return names.index(step)
    close = nearest(step, [name for name in names if name])
    hint = f"; did you mean '{close}'?" if close else ""
    mistakes.add(
        Node(None, below(node.where, step), 0, ORIGIN),
        f"no such entry; allowed: a number from 0 to {len(node.value) - 1}, or a name that stands once{hint}",
    )
    return None


def _name(node: Node) -> str:
    found = node.items.get("name") or node.items.get("use")
    return str(found.value) if found else ""
