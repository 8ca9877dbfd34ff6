"""From panels to a recipe: the file that distils a model anew, with a reason beside each change."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from stillroom.contracts import Finding
from stillroom.errors import Bug
from stillroom.mining import Panel, Subject
from stillroom.pipeline.mined_choices import Path, choose
from stillroom.recipe import Recipe, read_recipe

WIDTH = 118
MADE = "# Mined by Stillroom"
"""How the file begins: what does so may be written over."""


def mined_recipe(recipe: Recipe, panels: Mapping[str, Panel], subject: Subject, student: Subject | None) -> Panel:
    """Return panel 9: ``recipe`` with the choices that ``panels`` give a reason for, as the file ``recipe.yaml``.

    What no panel speaks of stays as it was. The same recipe serves as control: run both.

    Raises:
        Bug: the recipe that was written does not read as what was chosen.
    """
    choices = choose(recipe, panels, subject, student)
    resolved = recipe.resolved()
    wanted = changed(resolved, choices.values)
    text = f"{MADE} from the recipe '{recipe.name}': a comment says why a value was changed.\n"
    text += as_yaml(wanted, choices.reasons)
    if read_recipe(text).resolved() != wanted:
        raise Bug("a mined recipe does not read as what was chosen")
    differ = {_dotted(place): [_at(resolved, place), value] for place, value in choices.values.items()}
    numbers: dict[str, Any] = {"choices": {key: {"was": was, "is": value} for key, (was, value) in differ.items()}}
    numbers["reasons"] = {_dotted(place): why for place, why in choices.reasons.items()}
    return Panel("recipe", [_finding(numbers, panels, text)], numbers, {"recipe.yaml": text.encode()})


# --- as text -------------------------------------------------------------------------------------------


def as_yaml(value: Mapping[str, Any], reasons: Mapping[Path, str]) -> str:
    """Return values as YAML text with each reason as a comment above its key."""
    return "\n".join(_lines(value, reasons, ())) + "\n"


def _lines(value: Any, reasons: Mapping[Path, str], where: Path) -> list[str]:
    """The lines of a block; each level is two blanks deeper, an entry of a list begins with a dash."""
    found: list[str] = []
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, part in entries:
        place = (*where, key)
        why = reasons.get(place)
        found += [] if why is None else _comment(why)
        lead = f"{_flow(key)}:" if isinstance(value, Mapping) else "-"
        line = f"{lead} {_flow(part)}"
        deep = any(len(other) > len(place) and other[: len(place)] == place for other in reasons)
        if not (part and isinstance(part, Mapping | list)) or (not deep and len(line) <= WIDTH - 12):
            found.append(line)
            continue
        if not deep and isinstance(part, list) and all(isinstance(one, int | float) for one in part):
            found += [lead, *textwrap.wrap(_flow(part), WIDTH - 12, initial_indent="  ", subsequent_indent="   ")]
            continue
        inner = _lines(part, reasons, place)
        if lead == "-" and not inner[0].startswith("#"):
            lead, inner = f"- {inner[0]}", inner[1:]
        found += [lead, *(f"  {one}" for one in inner)]
    return found


def _comment(text: str) -> list[str]:
    """A text as lines of comment; a number stays beside its per cent sign."""
    kept = text.replace(" %", "\0%")
    lines = textwrap.wrap(kept, WIDTH - 12, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _flow(value: Any) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 1 << 20
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue().removesuffix("...\n").strip()


def changed(value: Any, choices: Mapping[Path, Any], where: Path = ()) -> Any:
    """Return a recipe's plain values with the chosen ones in their places; keys that are not there yet are added."""
    if where in choices:
        return choices[where]
    if isinstance(value, Mapping):
        found = {key: changed(part, choices, (*where, key)) for key, part in value.items()}
        new = {place[-1]: part for place, part in choices.items() if place[:-1] == where and place[-1] not in value}
        return found | new
    if isinstance(value, list):
        return [changed(part, choices, (*where, index)) for index, part in enumerate(value)]
    return value


def _at(value: Any, place: Path) -> Any:
    """The value at a place, None where there is none."""
    for key in place:
        if isinstance(value, Mapping) and key not in value:
            return None
        value = value[key]
    return value


def _dotted(place: Path) -> str:
    return ".".join(map(str, place))


# --- what to do ----------------------------------------------------------------------------------------


def _finding(numbers: Mapping[str, Any], panels: Mapping[str, Panel], text: str) -> Finding:
    changed = {key: one for key, one in numbers["choices"].items() if key != "name" and one["was"] != one["is"]}
    if changed:
        each = "; ".join(f"{key} {_short(one['was'])} -> {_short(one['is'])}" for key, one in list(changed.items())[:6])
        count = len(changed)
        sentence = f"What was found changes {count} value{'s' * (count > 1)} of the recipe: {each}. "
        sentence += "Run recipe/recipe.yaml and compare it with the run you have."
    else:
        sentence = "What was found gives no reason to change the recipe."
    sentence += _tree(panels)
    control = "The recipe as it was: only its name and the values with a reason differ. Whether they help is not known "
    return Finding(
        "What to do with this",
        sentence,
        float(len(changed)),
        control + "before both were run over the same seeds.",
        {"kind": "text", "text": text},
    )


def _short(value: Any) -> str:
    """A value as one reads it in a sentence."""
    if value is None:
        return "none"
    return f"{len(value):,} numbers" if isinstance(value, list) and len(value) > 4 else _flow(value)


def _tree(panels: Mapping[str, Panel]) -> str:
    """The rules as a student to be deployed, beside the student there is."""
    panel = panels.get("rules")
    if panel is None or "rules.py" not in panel.files:
        return ""
    told, size = panel.numbers, len(panel.files["rules.py"])
    said = f" A student that needs no library is rules/rules.py: {told['rules']} rules, {size / 1000:.1f} kB, "
    said += f"the model's answer on {100 * told['fidelity']:.1f} % of examples it did not see"
    right = (told.get("accuracy") or {}).get("tree")
    said += "" if right is None else f", right on {100 * right:.1f} %"
    pupils = panels["students"].numbers if "students" in panels else {}
    kept = pupils.get("arms", {}).get(pupils.get("main"), {})
    if "agreement" in kept:
        said += f"; '{pupils['main']}' gives the model's answer on {100 * kept['agreement']['mean']:.1f} %"
        said += f", right on {100 * kept['accuracy']['mean']:.1f} %" if "accuracy" in kept else ""
    return f"{said}."
