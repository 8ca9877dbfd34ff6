"""``read_recipe``: a file, a text or a mapping becomes a Recipe, or all its mistakes are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import RecipeError
from stillroom.recipe.blocks import NAME, Reading
from stillroom.recipe.mistakes import check, unknown_keys
from stillroom.recipe.models import MAIN, Arm, Objective, Recipe, Record, Stage, Teacher
from stillroom.recipe.overrides import apply
from stillroom.recipe.schema import Tables, block_of, shipped
from stillroom.recipe.text import Mistakes, Node, read_file, read_tree, tree_of
from stillroom.recipe.tiny import tiny as made_tiny
from stillroom.settings import Training

_SIMPLE = ("name", "control", "seeds", "export", "jobs", "device", "trials")
_NEEDED = {
    "data": "such as {use: fashion-mnist-sample}",
    "student": "such as {model: cnn}",
    "objectives": "such as [{use: labels}, {use: kd}]",
}
KEYS = tuple(Recipe.model_fields)


def read_recipe(
    source: str | Path | Mapping[str, Any],
    *,
    set: Sequence[str] = (),  # noqa: A002 - the word of the command line
    tiny: bool = False,
    name: str | None = None,
    tables: Tables | None = None,
) -> Recipe:
    """Read a recipe from a path, from YAML text (a ``str`` with a line break, or with ``: ``) or from a mapping.

    ``set`` holds overrides such as ``train.steps=200``; ``tiny`` keeps the code path and cuts the work: 256 rows,
    20 steps, one seed. ``name`` is used when the recipe names itself nowhere; else the file's stem is.

    Raises:
        RecipeError: ``mistakes`` has every mistake, each with its line, in their order.
    """
    root, title, stem = _tree(source)
    if isinstance(root.value, dict):
        apply(root, set)
    mistakes = Mistakes()
    recipe = _read(root, tables or shipped(), mistakes, name or stem)
    mistakes.refuse(title)
    if recipe is None:
        raise RecipeError(f"{title} could not be read, though no mistake was found. Please report this recipe.")
    return made_tiny(recipe) if tiny else recipe


def _tree(source: str | Path | Mapping[str, Any]) -> tuple[Node, str, str]:
    """Return the tree, a title for messages, and a name."""
    if isinstance(source, Mapping):
        return tree_of(source), "The recipe", "recipe"
    if isinstance(source, str) and (not source or "\n" in source or ": " in source or source.lstrip()[:1] in "{["):
        root, title, stem = read_tree(source.removeprefix("\ufeff")), "The recipe", "recipe"
    else:
        path = Path(source)
        root, title, stem = read_tree(read_file(path), f"The recipe {path}"), f"The recipe {path}", path.stem
    if not isinstance(root.value, dict):
        given = "nothing" if root.value in (None, "") else "a list" if isinstance(root.value, list) else "a plain value"
        raise RecipeError(
            f"{title} is no recipe: got {given}. Allowed: keys such as data, student, objectives, train. "
            "Begin with a shipped one: stillroom new"
        )
    return root, title, stem


def _read(root: Node, tables: Tables, mistakes: Mistakes, name: str) -> Recipe | None:
    """Read every block; None when some block is missing or beyond mending (its mistakes are noted)."""
    from stillroom.recipe.meaning import Meaning, named

    unknown_keys(root, KEYS, mistakes)
    for key, example in _NEEDED.items():
        if key not in root.items:
            mistakes.add(Node(None, "", root.line, root.origin), f"'{key}' is missing; add '{key}:' {example}")
    top = root.items
    reading = Reading(root, tables, mistakes)
    data, student = reading.data(top.get("data")), reading.student(top.get("student"))
    teachers = _teachers(reading)
    objectives = _pairs(reading, reading.list_of(top.get("objectives"), reading.objective))
    train, record = reading.block(top.get("train"), Training), reading.block(top.get("record"), Record)
    evaluate, distilled = reading.evaluate(top.get("evaluate")), reading.distilled(top.get("distilled_data"))
    simple = Node({key: top[key] for key in _SIMPLE if key in top}, "", root.line, root.origin)
    simple.value.setdefault("name", Node(_fitting(name)))
    values = check(simple, block_of(None, Recipe, _SIMPLE), mistakes)
    arms = {key: reading.arm(node) for key, node in reading.names(top.get("arms"), "arm").items()}
    stages = reading.list_of(top.get("stages"), reading.stage)

    meaning = Meaning(reading, teachers)
    meaning.build(top.get("student"), student)
    for key, teacher in (teachers or {}).items():
        meaning.build(_teacher_node(root, key), teacher)
    if "name" in top and values is not None and not NAME.fullmatch(values.name):
        mistakes.add(
            top["name"],
            f"'{values.name}' cannot be the name of a folder; "
            "allowed: letters, digits and . _ + = -, beginning with a letter or digit",
        )
    _check_arms(meaning, arms, objectives, (data, student, train, distilled))
    meaning.rest(record, values, data)
    if data is None or student is None or None in (teachers, train, record, values, *arms.values()):
        return None
    if len(mistakes) or not reading.whole:
        return None
    base = named(objectives)
    taken = [one.name for one in base if one.name]
    return Recipe(
        **{key: getattr(values, key) for key in _SIMPLE},
        data=data,
        student=student,
        train=train,
        record=record,
        evaluate=evaluate,
        distilled_data=distilled,
        teacher=(teachers or {}).get(""),
        teachers={} if "" in (teachers or {}) else teachers or {},
        objectives=base,
        arms={key: _named_arm(arm, taken) for key, arm in arms.items() if arm is not None} or {MAIN: Arm()},
        stages=tuple(_named_stage(stage) for stage in stages),
    )


def _fitting(name: str) -> str:
    """Return a file's stem as a name that fits a folder."""
    kept = "".join(letter if NAME.fullmatch(f"a{letter}") else "-" for letter in name).lstrip("._+=-")
    return kept[:64] or "recipe"


def _teachers(reading: Reading) -> dict[str, Teacher] | None:
    """Return the teachers by name ("" for a single one), or None when one is named and could not be read."""
    top = reading.root.items
    if "teacher" in top and "teachers" in top:
        reading.note(top["teachers"], "'teacher' and 'teachers' are given; keep one of them")
    if "teacher" in top:
        teacher = reading.teacher(top["teacher"])
        return None if teacher is None else {"": teacher}
    found = {name: reading.teacher(node) for name, node in reading.names(top.get("teachers"), "teacher").items()}
    good = {name: teacher for name, teacher in found.items() if teacher is not None}
    whole = "teachers" not in top or (len(good) > 0 and len(good) == len(top["teachers"].items))
    if "teachers" in top and top["teachers"].value == {}:
        reading.note(top["teachers"], "there is no teacher in it; name one, or take 'teachers' away")
    return good if whole else None


def _teacher_node(root: Node, name: str) -> Node | None:
    return root.items.get("teacher") if name == "" else root.items["teachers"].items.get(name)


def _pairs(reading: Reading, objectives: Sequence[Objective]) -> list[tuple[Node, Objective]]:
    """Return objectives with their nodes."""
    nodes = {id(objective): node for node, objective in reading.objectives.values()}
    return [(nodes[id(objective)], objective) for objective in objectives]


def _check_arms(meaning: Any, arms: Mapping[str, Arm | None], base: list[tuple[Node, Objective]], common: Any) -> None:
    """Check the recipe's own lines and each arm's; what arms share is told once."""
    reading, (data, student, train, distilled) = meaning.reading, common
    nodes = reading.root.items["arms"].items if "arms" in reading.root.items else {}
    views: list[tuple[Node | None, Arm]] = [(nodes[name], arm) for name, arm in arms.items() if arm is not None]
    seen: list[Objective] = []
    for node, arm in views or [(reading.root.items.get("objectives"), Arm())]:
        mine = base if arm.objectives is None else _pairs(reading, arm.objectives)
        pairs = [*mine, *_pairs(reading, arm.add)]
        seen += [objective for _, objective in pairs]
        changed = arm.student or student
        if node is not None:
            meaning.build(node.items.get("student"), arm.student)
        for at, objective in pairs:
            meaning.objective(at, objective, changed)
        if reading.whole and (node is not None):
            at = node if arm.objectives is not None or arm.add else reading.root.items.get("objectives")
            meaning.arm(at, pairs, arm.data or data, arm.train or train)
        if reading.whole and (made := arm.distilled_data or distilled) is not None:
            own = node.items.get("distilled_data") if node is not None else None
            meaning.distilled(own or reading.root.items.get("distilled_data"), pairs, made, arm.data or data)
    if reading.whole:
        meaning.transfer(seen, train)


def _named_arm(arm: Arm, taken: Sequence[str]) -> Arm:
    from stillroom.recipe.meaning import named

    own = None if arm.objectives is None else named([(Node(None), one) for one in arm.objectives])
    used = list(taken) if own is None else [one.name for one in own if one.name]
    return arm.model_copy(update={"objectives": own, "add": named([(Node(None), one) for one in arm.add], used)})


def _named_stage(stage: Stage) -> Stage:
    from stillroom.recipe.meaning import named

    if stage.objectives is None:
        return stage
    return stage.model_copy(update={"objectives": named([(Node(None), one) for one in stage.objectives])})
