"""From panels to a recipe: what was found out about a model chooses how it is distilled, each choice with a reason."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from torch import Tensor, nn

from stillroom.contracts import Finding
from stillroom.errors import Bug
from stillroom.mining import Panel, Subject
from stillroom.recipe import Recipe, read_recipe

BESIDE = 0.25  # of a softened answer, that should lie beside its top class
STABLE = 0.8  # of a measure that is 1 for always the same
COOLEST, WARMEST, STEP = 1.0, 8.0, 0.5  # temperatures of kd to choose from
LEAST, MOST, ROUND = 0.05, 0.5, 0.05  # the part of labels in the weight of labels and kd
LOST = 0.01  # of recall: less is not told
TOLD = 20  # suspected examples that are listed
WIDTH = 118

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Choices:
    """Values by their place in the recipe; ``reasons`` by the same places, or by one with no value of its own."""

    values: dict[Path, Any] = field(default_factory=dict)
    reasons: dict[Path, str] = field(default_factory=dict)


def mined_recipe(recipe: Recipe, panels: Mapping[str, Panel], subject: Subject, student: Subject | None) -> Panel:
    """Return panel 9: ``recipe`` with the choices that ``panels`` give a reason for, as the file ``recipe.yaml``.

    What no panel speaks of stays as it was. The same recipe serves as control: run both.

    Raises:
        Bug: the recipe that was written does not read as what was chosen.
    """
    choices = choose(recipe, panels, subject.logits("train"), student)
    resolved = recipe.resolved()
    text = as_yaml(_changed(resolved, choices.values), choices.reasons)
    if read_recipe(text).resolved() != _changed(resolved, choices.values):
        raise Bug("a mined recipe does not read as what was chosen")
    differ = {_dotted(place): [_at(resolved, place), value] for place, value in choices.values.items()}
    numbers: dict[str, Any] = {"choices": {key: {"was": was, "is": value} for key, (was, value) in differ.items()}}
    numbers["reasons"] = {_dotted(place): why for place, why in choices.reasons.items()}
    return Panel("recipe", [_finding(numbers, panels, text)], numbers, {"recipe.yaml": text.encode()})


def choose(recipe: Recipe, panels: Mapping[str, Panel], logits: Tensor, student: Subject | None) -> Choices:
    """Return what the panels give a reason for. ``logits`` (rows, classes) are the model's answers to training rows.

    See :func:`temperature`, :func:`labels_part` and ``_width`` for the rules.
    """
    resolved, found = recipe.resolved(), Choices()
    found.values[("name",)] = f"{recipe.name}-mined"
    found.reasons[("name",)] = f"A folder of its own, beside that of '{recipe.name}', to be compared with it."
    numbers = {name: panel.numbers for name, panel in panels.items()}
    warm = temperature(numbers.get("answers", {}), numbers.get("similarity", {}), logits)
    part = labels_part(numbers.get("answers", {}))
    for place, objectives in _lists(resolved):
        if warm is not None:
            _warm(found, place, objectives, *warm)
        if part is not None:
            _weigh(found, place, objectives, *part)
    _width(found, resolved, numbers.get("layers", {}), student)
    _remarks(found, numbers)
    return found


def temperature(answers: Mapping[str, Any], alike: Mapping[str, Any], logits: Tensor) -> tuple[float, str] | None:
    """Return kd's temperature and why; None where no validation label says how sure the model should be.

    It is at least the one that repairs the model's calibration: the nearer a teacher's probabilities are to the true
    ones, the less a student's risk varies (Menon et al. 2021, https://proceedings.mlr.press/v139/menon21a.html). Where
    the classes it finds alike are the same on other draws of the examples, so that what lies beside the top class is
    knowledge and no noise, it is raised until a quarter of the softened answer to training rows lies there (what is to
    be taught: Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531). The quarter is our own, not of a paper.
    """
    repairing = answers.get("temperature")
    if repairing is None:
        return None
    chosen = min(WARMEST, max(COOLEST, math.ceil(repairing / STEP - 0.5) * STEP))
    why = f"{repairing:.2f} repairs the teacher's calibration"
    again = alike.get("pairs_again")
    if again is None or again < STABLE:
        why += "; which classes it finds alike "
        why += "is not known" if again is None else f"changes with the examples ({100 * again:.0f} % stay)"
        return chosen, f"{why}, so no more is asked for: {100 * beside(logits, chosen):.0f} % lie beside the top class."
    while chosen < WARMEST and beside(logits, chosen) < BESIDE:
        chosen += STEP
    why += f"; at {chosen:g}, {100 * beside(logits, chosen):.0f} % of its answer to a training row lie beside the top "
    return (
        chosen,
        f"{why}class ({100 * beside(logits, 1.0):.0f} % at 1), and its likenesses are firm ({again:.2f} of 1).",
    )


def beside(logits: Tensor, warmth: float) -> float:
    """Return which part of the softened answers lies beside the top class, mean over rows."""
    return 1 - float((logits.double() / warmth).softmax(1).amax(1).mean())


def labels_part(answers: Mapping[str, Any]) -> tuple[float, str] | None:
    """Return the part of labels in the weight of labels and kd, and why; None where no accuracy is known.

    It is how often the teacher is wrong: there labels say what it cannot. Hinton, Vinyals and Dean 2015
    (https://arxiv.org/abs/1503.02531) found a considerably lower weight of labels best; this number for it is our own.
    """
    right = answers.get("accuracy")
    if right is None:
        return None
    part = round(min(MOST, max(LEAST, round((1 - right) / ROUND) * ROUND)), 2)
    return (
        part,
        f"The teacher is wrong on {100 * (1 - right):.1f} % of the test examples; labels get {100 * part:.0f} % ",
    )


def _warm(found: Choices, place: Path, objectives: Sequence[Mapping[str, Any]], warmth: float, why: str) -> None:
    for index, one in enumerate(objectives):
        if one["use"] == "kd":
            found.values[(*place, index, "temperature")] = warmth
            found.reasons[(*place, index, "temperature")] = why


def _weigh(found: Choices, place: Path, objectives: Sequence[Mapping[str, Any]], part: float, why: str) -> None:
    """Share the weight of one term on labels and one of kd anew, its sum as it was; ramps stay as they are."""
    at = {use: [index for index, one in enumerate(objectives) if one["use"] == use] for use in ("labels", "kd")}
    if any(len(places) != 1 for places in at.values()):
        return
    labels, kd = at["labels"][0], at["kd"][0]
    given = [objectives[index]["weight"] for index in (labels, kd)]
    if not all(isinstance(one, int | float) and one > 0 for one in given):
        return
    whole = float(sum(given))
    found.values[(*place, labels, "weight")] = round(whole * part, 4)
    found.values[(*place, kd, "weight")] = round(whole * (1 - part), 4)
    found.reasons[(*place, labels, "weight")] = f"{why}of the weight."


def _width(found: Choices, resolved: Mapping[str, Any], layers: Mapping[str, Any], student: Subject | None) -> None:
    """Widen a student whose last features are fewer than the directions the model uses; never narrow it.

    Directions of the last features bound a student from below. They say nothing of how narrow its other layers may be.
    """
    wanted, own = layers.get("suggested_width"), resolved["student"]
    linear = [] if student is None or student.module is None else student.module.modules()
    wide = [part.in_features for part in linear if isinstance(part, nn.Linear)]
    if not wanted or not wide or wide[-1] >= wanted:
        return
    key = next((key for key in ("hidden", "width") if key in own), None)
    if key is None:
        return
    given, factor = own[key], wanted / wide[-1]
    grown = [*given[:-1], math.ceil(given[-1] * factor)] if isinstance(given, list) else math.ceil(given * factor)
    found.values[("student", key)] = grown
    found.reasons[("student", key)] = (
        f"The teacher's last features use {wanted} directions (95 % of what varies); the student had {wide[-1]}."
    )


def _remarks(found: Choices, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """What a recipe cannot do yet is told beside the key it belongs to."""
    suspects = numbers.get("examples", {}).get("suspects") or []
    told = [one.get("example", one) if isinstance(one, Mapping) else one for one in suspects]
    said = []
    if told:
        more = f" and {len(told) - TOLD} more" if len(told) > TOLD else ""
        said.append(
            f"Labels to look at, for a recipe cannot leave examples out: {', '.join(map(str, told[:TOLD]))}{more}."
        )
    lost = [row for row in numbers.get("students", {}).get("classes") or [] if row["lost"] > LOST][:3]
    if lost:
        each = ", ".join(f"{row['class']} ({100 * row['lost']:.1f} points)" for row in lost)
        said.append(f"The student lost most on {each}: more examples of these would help most.")
    if said:
        found.reasons[("data",)] = " ".join(said)


def _lists(resolved: Mapping[str, Any]) -> list[tuple[Path, list[dict[str, Any]]]]:
    """Every list of objectives, with its place."""
    found: list[tuple[Path, list[dict[str, Any]]]] = [(("objectives",), resolved["objectives"])]
    found += [
        (("arms", name, key), arm[key])
        for name, arm in resolved.get("arms", {}).items()
        for key in ("objectives", "add")
        if arm.get(key)
    ]
    stages = enumerate(resolved.get("stages", []))
    return found + [(("stages", at, "objectives"), one["objectives"]) for at, one in stages if one.get("objectives")]


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
        found += [] if why is None else textwrap.wrap(why, WIDTH - 12, initial_indent="# ", subsequent_indent="# ")
        lead = f"{_flow(key)}:" if isinstance(value, Mapping) else "-"
        line = f"{lead} {_flow(part)}"
        deep = any(len(other) > len(place) and other[: len(place)] == place for other in reasons)
        if not (part and isinstance(part, Mapping | list)) or (not deep and len(line) <= WIDTH - 12):
            found.append(line)
            continue
        inner = _lines(part, reasons, place)
        if lead == "-" and not inner[0].startswith("#"):
            lead, inner = f"- {inner[0]}", inner[1:]
        found += [lead, *(f"  {one}" for one in inner)]
    return found


def _flow(value: Any) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 1 << 20
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue().removesuffix("...\n").strip()


def _changed(value: Any, choices: Mapping[Path, Any], where: Path = ()) -> Any:
    if where in choices:
        return choices[where]
    if isinstance(value, Mapping):
        return {key: _changed(part, choices, (*where, key)) for key, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, choices, (*where, index)) for index, part in enumerate(value)]
    return value


def _at(value: Any, place: Path) -> Any:
    for key in place:
        value = value[key]
    return value


def _dotted(place: Path) -> str:
    return ".".join(map(str, place))


# --- what to do ----------------------------------------------------------------------------------------


def _finding(numbers: Mapping[str, Any], panels: Mapping[str, Panel], text: str) -> Finding:
    changed = {key: one for key, one in numbers["choices"].items() if key != "name" and one["was"] != one["is"]}
    if changed:
        each = "; ".join(f"{key} {_flow(one['was'])} -> {_flow(one['is'])}" for key, one in list(changed.items())[:6])
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
