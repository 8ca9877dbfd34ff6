"""Checking a recipe block by block: each is read as far as it can be, so that all mistakes are told at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stillroom.recipe.mistakes import check, choose, unknown_keys
from stillroom.recipe.models import (
    RESERVED_ARMS,
    Arm,
    Data,
    DistilledData,
    Evaluate,
    Objective,
    Stage,
    Student,
    Teacher,
)
from stillroom.recipe.overrides import merged
from stillroom.recipe.schema import Tables, block_of
from stillroom.recipe.text import Mistakes, Node, shorten
from stillroom.settings import Settings, Synthesis, Training

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,63}")
_NAMED = "letters, digits and . _ + = -, beginning with a letter or digit, at most 64 of them"
HF = "hugging-face"  # how the zoo calls the encoders that come from a folder
_DATA = ("use", "labels", "unlabelled", "leave_out")
_MODEL = ("model", "encode")
_OBJECTIVE = ("use", "student", "teacher", "weight", "connector", "every", "part", "name")
_ELSEWHERE = {"views": "views are chosen in one place: record: {views: 4}"}
_SHARED = {
    "teacher": "arms share one teacher; write a second recipe, or several under 'teachers'",
    "teachers": "arms share their teachers; write a second recipe",
    "seeds": "arms are compared seed by seed, so they share the seeds; set them for the whole recipe",
    "control": "the control is common to all arms; set it for the whole recipe",
    "record": "arms read what is recorded once for all; set it for the whole recipe",
    "trials": "every arm gets as many trials; set them for the whole recipe",
}
_LABELS_ONLY = "arms share their data; only 'labels' and 'unlabelled' may differ"


@dataclass
class Reading:
    """What was read: values, and beside them the nodes that say on which line they stand."""

    root: Node
    tables: Tables
    mistakes: Mistakes
    objectives: dict[int, tuple[Node, Objective]] = field(default_factory=dict)
    whole: bool = True

    def note(self, node: Node, text: str) -> None:
        """Note a mistake."""
        self.mistakes.add(node, text)

    def data(self, node: Node | None) -> Data | None:
        """Read a ``data`` block."""
        if node is None or (use := choose(node, "use", self.tables.sources, "data", self.mistakes)) is None:
            return None
        if "views" in node.items:
            self.note(node.value.pop("views"), _ELSEWHERE["views"])
        return self._flat(node, "sources", use, Data, _DATA)

    @property
    def models(self) -> dict[str, Any]:
        """The models that ``model:`` may name: those that need no folder."""
        return {name: maker for name, maker in self.tables.models.items() if name != HF}

    def student(self, node: Node | None) -> Student | None:
        """Read a ``student`` block."""
        if node is None or (model := choose(node, "model", self.models, "model", self.mistakes)) is None:
            return None
        found: Student | None = self._flat(node, "models", model, Student, _MODEL)
        return found

    def teacher(self, node: Node) -> Teacher | None:
        """Read one teacher: a model to train, an encoder to train further, a bundle to load or a store."""
        if not isinstance(node.value, dict):
            self.note(
                node,
                "must be a block such as {model: resnet}, {hf: folder}, {load: folder} or {store: folder}, "
                f"got {shorten(node.value)}",
            )
            return None
        ways = [way for way in ("model", "hf", "load", "store") if way in node.value]
        if len(ways) > 1:
            self.note(node, f"{' and '.join(ways)} are given; a teacher comes from one of them")
            return None
        if not ways or ways == ["model"]:
            model = choose(node, "model", self.models, "model", self.mistakes)
            return None if model is None else self._flat(node, "models", model, Teacher, (*_MODEL, "train"))
        if ways == ["hf"]:
            return self._flat(node, "models", HF, Teacher, ("hf", "encode", "train"))
        return self._flat(node, None, "", Teacher, tuple(ways))

    def _flat(self, node: Node, kind: Any, name: str, base: type[Any], keys: tuple[str, ...]) -> Any:
        """Check a block against ``keys`` of ``base`` and the options of what it names; give ``base`` back."""
        model = self.tables.block(kind, name, base, keys) if kind else block_of(None, base, keys)
        values = check(node, model, self.mistakes)
        if values is None:
            return None
        given = {key: getattr(values, key) for key in type(values).model_fields}
        options = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key not in keys
        }
        return base(**{key: given[key] for key in keys}, **({"options": options} if kind else {}))

    def objective(self, node: Node) -> Objective | None:
        """Read one objective; the same node, met again in another arm, is read once."""
        if id(node) in self.objectives:
            return self.objectives[id(node)][1]
        use = choose(node, "use", self.tables.losses, "objective", self.mistakes)
        found = None if use is None else self._flat(node, "losses", use, Objective, _OBJECTIVE)
        if found is not None:
            self.objectives[id(node)] = (node, found)
        return found

    def list_of(self, node: Node | None, read: Callable[[Node], Any]) -> list[Any]:
        """Read a list, entry by entry; entries that cannot be read are left out and the recipe is not whole."""
        if node is None:
            return []
        if not isinstance(node.value, list):
            self.note(node, f"must be a list of blocks (lines that begin with '-'), got {shorten(node.plain())}")
            self.whole = False
            return []
        found = [read(child) for child in node.value]
        self.whole = self.whole and None not in found
        return [one for one in found if one is not None]

    def block(self, node: Node | None, model: type[Settings]) -> Any:
        """Read a block that names nothing; absent, it has its defaults."""
        return model() if node is None else check(node, model, self.mistakes)

    def evaluate(self, node: Node | None) -> Evaluate | None:
        """Read ``evaluate``: a list of other tasks, each ``name``, ``name:path`` or a block as ``data`` is."""
        if node is None or not isinstance(node.value, dict):
            if node is not None:
                self.note(node, f"must be a block such as {{on: [digits]}}, got {shorten(node.plain())}")
                self.whole = False
            return None
        unknown_keys(node, Evaluate.model_fields, self.mistakes)
        tasks = self.list_of(node.items.get("on"), lambda one: self.data(_source(one)))
        if any(task.leave_out is not None for task in tasks):
            self.note(
                node, "examples are left out of the data that is learnt from, not of other tasks; take leave_out away"
            )
        plain = Node(
            {key: value for key, value in node.items.items() if key != "on"}, node.where, node.line, node.origin
        )
        rest = check(plain, block_of(None, Evaluate, ("rows",)), self.mistakes)
        return None if rest is None else Evaluate(on=tuple(tasks), rows=rest.rows)

    def distilled(self, node: Node | None) -> DistilledData | None:
        """Read ``distilled_data``: how examples are made, and the network they are made on."""
        if node is None:
            return None
        if not isinstance(node.value, dict):
            self.note(node, f"must be a block such as {{per_class: 10}}, got {shorten(node.plain())}")
            self.whole = False
            return None
        unknown_keys(node, (*Synthesis.model_fields, "network"), self.mistakes)
        network = self.student(node.items.get("network"))
        rest = {key: value for key, value in node.items.items() if key in Synthesis.model_fields}
        making = check(Node(rest, node.where, node.line, node.origin), Synthesis, self.mistakes)
        if making is None or (network is None and "network" in node.items):
            self.whole = False
            return None
        return DistilledData(making=making, network=network)

    def names(self, node: Node | None, kind: str) -> dict[str, Node]:
        """Return the entries of a block whose keys the author chose, those with a usable name."""
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self.note(node, f"must be a block with a name for each {kind}, got {shorten(node.plain())}")
            return {}
        good: dict[str, Node] = {}
        for name, child in node.value.items():
            if not NAME.fullmatch(name):
                self.note(child, f"'{shorten(name)}' cannot be the name of a folder; allowed: {_NAMED}")
            elif name.lower() in {other.lower() for other in good}:
                self.note(child, "differs from another name by upper and lower case alone; choose another name")
            elif kind == "arm" and name in RESERVED_ARMS:
                self.note(child, f"'{name}' is a name the results use themselves; choose another name")
            else:
                good[name] = child
        return good

    # --- blocks that change other blocks ---------------------------------------------------------

    def stage(self, node: Node) -> Stage | None:
        """Read one stage."""
        if not self._changes(node, ("student", "objectives", "train"), {}):
            return None
        parts = node.items
        return Stage(
            student=self._laid(parts, "student", self.student),
            objectives=tuple(self.list_of(parts["objectives"], self.objective)) if "objectives" in parts else None,
            train=self._laid(parts, "train", lambda block: self.block(block, Training)),
        )

    def arm(self, node: Node) -> Arm | None:
        """Read one arm: its blocks are laid over the recipe's, and the result is checked."""
        if node.value is None:
            return Arm()
        if not self._changes(node, tuple(Arm.model_fields), _SHARED):
            return None
        parts = node.items
        if "data" in parts:
            own = [*parts["data"].items] if (base := self.root.items.get("data")) is None else ["use", *base.items]
            own.append("leave_out")
            unknown_keys(parts["data"], ("labels", "unlabelled"), self.mistakes, dict.fromkeys(own, _LABELS_ONLY))
        return Arm(
            objectives=tuple(self.list_of(parts["objectives"], self.objective)) if "objectives" in parts else None,
            add=tuple(self.list_of(parts.get("add"), self.objective)),
            data=self._laid(parts, "data", self.data),
            student=self._laid(parts, "student", self.student),
            train=self._laid(parts, "train", lambda block: self.block(block, Training)),
            distilled_data=self._laid(parts, "distilled_data", self.distilled),
        )

    def _changes(self, node: Node, allowed: tuple[str, ...], reasons: dict[str, str]) -> bool:
        if not isinstance(node.value, dict):
            self.note(node, f"must be a block of what differs, {{}} for nothing, got {shorten(node.plain())}")
            return False
        unknown_keys(node, allowed, self.mistakes, reasons)
        return True

    def _laid(self, parts: dict[str, Node], key: str, read: Callable[[Node], Any]) -> Any:
        """Read the block ``key`` laid over the recipe's own, or None where the arm does not change it."""
        if key not in parts:
            return None
        found = read(merged(self.root.items.get(key), parts[key]))
        self.whole = self.whole and found is not None
        return found


def _source(node: Node) -> Node:
    """Return ``name`` or ``name:path`` as the block it stands for."""
    if not isinstance(node.value, str):
        return node
    name, _, path = node.value.partition(":")
    parts = {"use": name} | ({"path": path} if path else {})
    return Node(
        {key: Node(part, node.where, node.line, node.origin) for key, part in parts.items()},
        node.where,
        node.line,
        node.origin,
    )
