"""From the text of a recipe to a tree that knows its lines: YAML 1.2 without anything that could surprise or do harm.

Anchors, tags, directives and depth are refused from the parser's events, before anything is built.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
)
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as Parsed

from stillroom.errors import RecipeError
from stillroom.paths import reading

LARGEST = 64 * 1024
DEEPEST = 40
SHOWN = 50
_RESOLVED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}


@dataclass(eq=False)
class Node:
    """A value of the recipe with its place: ``where`` as the author wrote it, ``origin`` a line or ``--set``."""

    value: Any
    where: str = ""
    line: int = 0
    origin: str = ""

    @property
    def items(self) -> dict[str, Node]:
        """The keys of a block; empty when this is no block."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> Any:
        """Return the value as plain dictionaries, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


class Mistakes:
    """What is wrong with a recipe, gathered so that all of it is told at once, in the order of the lines.

    ``taken`` holds (block, key) of wrong values that were taken away, so that nobody calls them missing.
    """

    def __init__(self) -> None:
        self._found: dict[str, int] = {}
        self.taken: set[tuple[Node, str]] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, node: Node, text: str) -> None:
        """Note a mistake at a node; the same mistake seen twice (by two arms) is told once."""
        parts = [part for part in (node.origin, node.where, text) if part]
        self._found.setdefault(": ".join(parts), node.line)

    def refuse(self, title: str) -> None:
        """Raise what was found, if anything.

        Raises:
            RecipeError: with one message for each mistake.
        """
        if not self._found:
            return
        lines = sorted(self._found, key=lambda text: self._found[text])
        told = lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise RecipeError(f"{title} has {count}:\n" + "\n".join(f"  {line}" for line in told), lines)


def below(where: str, step: str | int) -> str:
    """Return the written path of a child: ``objectives[1].use``."""
    if isinstance(step, int):
        return f"{where}[{step}]"
    return f"{where}.{step}" if where else step


# --- reading ---------------------------------------------------------------------------------------


def read_file(path: Path) -> str:
    """Return a recipe file's text.

    Raises:
        RecipeError: the file is absent, not readable, too large, or not UTF-8 text.
    """
    try:
        with reading(path, RecipeError), open(path, "rb") as stream:
            content = stream.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise RecipeError(
            f"Missing recipe: {path} does not exist. Check the path, or make one with: stillroom new"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"Unreadable recipe: {path} ({getattr(error, 'strerror', None) or error}). "
            "Give the path of a YAML file that you may read."
        ) from error
    check_size(len(content), str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"Not a text file: {path} is not UTF-8 at byte {error.start}. "
            "A recipe is a YAML text file; save it as UTF-8."
        ) from error


def check_size(size: int, title: str) -> None:
    """Refuse a recipe that is larger than any recipe needs to be."""
    if size > LARGEST:
        raise RecipeError(
            f"Too large: {title} has more than {LARGEST // 1024} KiB. A recipe is a short text; "
            "check that this is the right file."
        )


def read_tree(text: str, title: str = "The recipe") -> Node:
    """Read YAML 1.2 into a tree with lines.

    Raises:
        RecipeError: the text is not YAML, or uses what a recipe may not: anchors, tags, merge keys, ...
    """
    check_size(len(text.encode("utf-8", "surrogatepass")), title)
    mistakes = Mistakes()
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_events(yaml.parse(io.StringIO(text)), mistakes)
        mistakes.refuse(title)
        parsed = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        mistakes.add(_at(mark.line + 1 if mark else 1), _explain(error))
        mistakes.refuse(title)
    except YAMLError as error:
        mistakes.add(_at(1), f"not YAML text: {' '.join(str(error).split())}")
        mistakes.refuse(title)
    root = _at(1)
    if parsed is not None:
        root.value = _value(yaml, parsed, root, mistakes)
    mistakes.refuse(title)
    return root


def _at(line: int, where: str = "") -> Node:
    return Node(None, where, line, f"line {line}")


def _explain(error: MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error).split())
    if "\\t" in problem:
        return "a tab cannot indent or separate here; use spaces"
    context = f" ({' '.join(str(error.context).split())})" if error.context else ""
    return f"not YAML: {problem}{context}; check indentation, quotes and colons"


def _check_events(events: Iterator[Event], mistakes: Mistakes) -> None:
    depth = documents = 0
    for event in events:
        node = _at(event.start_mark.line + 1)
        if isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                mistakes.add(node, f"nested deeper than {DEEPEST} levels; a recipe needs about five")
                return
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        elif isinstance(event, DocumentStartEvent):
            documents += 1
            if event.version or event.tags:
                mistakes.add(node, "directives (%YAML, %TAG) are not allowed; a recipe is YAML 1.2")
            if documents > 1:
                mistakes.add(node, "a second document begins here; a recipe is one document, take '---' away")
        if isinstance(event, NodeEvent):
            _check_node(event, node, mistakes)


def _check_node(event: Event, node: Node, mistakes: Mistakes) -> None:
    anchor = getattr(event, "anchor", None)
    if isinstance(event, AliasEvent) or anchor:
        mistakes.add(node, f"anchors and aliases (&{anchor}, *{anchor}) are not allowed; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None:
        mistakes.add(node, f"tags ({tag}) are not allowed; write the plain value")


def _value(yaml: YAML, parsed: Parsed, node: Node, mistakes: Mistakes) -> Any:
    if isinstance(parsed, MappingNode):
        return _block(yaml, parsed, node, mistakes)
    if isinstance(parsed, SequenceNode):
        children = []
        for index, part in enumerate(parsed.value):
            child = _at(part.start_mark.line + 1, below(node.where, index))
            child.value = _value(yaml, part, child, mistakes)
            children.append(child)
        return children
    assert isinstance(parsed, ScalarNode)
    if parsed.tag not in _RESOLVED:
        return str(parsed.value)
    try:
        value = yaml.constructor.construct_object(parsed)
    except (ValueError, YAMLError):
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.add(node, f"{shorten(parsed.value)} is not a number that a recipe may hold; write a finite number")
    return value


def _block(yaml: YAML, parsed: MappingNode, node: Node, mistakes: Mistakes) -> dict[str, Node]:
    block: dict[str, Node] = {}
    for key, part in parsed.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            mistakes.add(_at(line, node.where), "a key must be a word, got a list or a block; put braces in quotes")
            continue
        child = _at(line, below(node.where, str(key.value)))
        if str(key.tag).endswith(":merge"):
            mistakes.add(child, "merge keys (<<) are not allowed; write the keys out")
        elif str(key.tag) in _RESOLVED:
            mistakes.add(child, f"a key must be text, got {key.value or 'nothing'}; put it in quotes")
        elif key.value in block:
            mistakes.add(child, f"the key is given twice; it is on line {block[key.value].line} too")
        else:
            block[key.value] = child
        child.value = _value(yaml, part, child, mistakes)
    return block


def shorten(value: object) -> str:
    """Return a value as an author wrote it, cut to a length that fits a line."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif value is None:
        text = "nothing"
    else:
        text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def tree_of(value: Any, where: str = "", origin: str = "") -> Node:
    """Make a tree from plain Python values, for recipes that are written in Python.

    Raises:
        RecipeError: a value is none that YAML could hold.
    """
    node = Node(value, where, 0, origin)
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise RecipeError(f"{where or 'recipe'}: a key must be text, got {wrong[0]!r}")
        node.value = {key: tree_of(child, below(where, key), origin) for key, child in value.items()}
    elif isinstance(value, list | tuple):
        node.value = [tree_of(child, below(where, index), origin) for index, child in enumerate(value)]
    elif isinstance(value, Path):
        node.value = str(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: {value} is not a number that a recipe may hold; write a finite number")
    elif value is not None and not isinstance(value, str | int | float):
        raise RecipeError(f"{where}: got a {type(value).__name__}; a recipe holds text, numbers, lists and blocks")
    return node
