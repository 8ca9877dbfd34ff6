"""What the command evaluate --teachers does: which of several teachers suits a student, before any of them teaches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import ModelError, UserError, say
from stillroom.paths import is_file, is_folder

if TYPE_CHECKING:
    from torch import nn

    from stillroom.contracts import Source, Teacher
    from stillroom.models.bundle import Deployed
    from stillroom.suitability import Suitability

    Load = Callable[[Path], Deployed]
    Open = Callable[[str, Path | None], Source]
    Fits = Callable[[Deployed, Source], None]

MANIFEST, RECIPE = "manifest.json", "recipe.yaml"
GAP = 2  # between the columns of a table
MEASURED = (
    "In our measurements (13 teachers, two students) this order agreed with what the students reached at a rank "
    "correlation of 0.91, with and without labels alike, the teachers' own accuracy at 0.87 (the lead is within "
    "chance), GRACE at 0.16."
)


def evaluate_teachers(
    student: Path,
    teachers: Sequence[str],
    data: str,
    as_json: bool,
    *,
    load: Load,
    open_data: Open,
    fits: Fits,
    split: str = "test",
) -> None:
    """Say which teacher suits a student: a table, best first, and a sentence.

    Raises:
        UserError: a ``split`` is chosen, or the student or a teacher is not what it must be.
    """
    from stillroom.cli import screen
    from stillroom.progress import waiting
    from stillroom.suitability import suitability

    if split != "test":  # its default: a student looks at rows of train, and at others that were held out
        given, allowed = f"--split {split} beside it", "rows of train and validation, which are chosen for you"
        raise UserError(say("--teachers takes no split", given, allowed, "Leave --split out."))
    places = _places(teachers)
    with waiting("ranking teachers by the student's gradients") as told:
        source = open_data(data, _run_of([student, *places]))
        make = _student(student, source, load, fits)
        models = {str(place): _teacher(place, source, load, fits) for place in places}
        found = suitability(make, models, source, progress=told)
    sentence = advice(found)
    if as_json:
        facts = {"student": str(student), "data": getattr(source, "name", data), "best": found[0].teacher}
        screen.show_json(
            {**facts, "sentence": sentence, "measured": MEASURED, "teachers": [one.plain() for one in found]}
        )
        return
    _show(found)
    screen.out.print(f"{sentence}\n{MEASURED}", markup=False)


def advice(found: Sequence[Suitability]) -> str:
    """Return what a person should do with teachers that come best first."""
    first, second = found[0], found[1]
    ahead = sum(mine > theirs for mine, theirs in zip(first.each, second.each, strict=True))
    labels = "labels" if first.accuracy is not None else "the teachers' mean answer, for want of labels"
    if len(first.each) > 1 and ahead == len(first.each):
        text = f"Take {first.teacher}: the student's gradients foresee {100 * first.foreseen:.1f} % against {labels}"
        text += f", {100 * (first.foreseen - second.foreseen):.1f} points before the next."
    else:
        text = (
            f"{first.teacher} comes first ({100 * first.foreseen:.1f} % foreseen against {labels}), too close to "
            f"{second.teacher} to tell them apart: take either, or distil from both and compare."
        )
    return f"{text} The figure ranks teachers; it is not the accuracy that a student will reach."


def _show(found: Sequence[Suitability]) -> None:
    """Print the table so that no figure is cut: where names would leave too little room, they stand below it."""
    from stillroom.cli.screen import out, show_table

    columns = ["teacher", "foreseen", "starts", "accuracy", "agrees", "GRACE", "norm", "entropy"]
    rows = [
        [
            one.teacher,
            f"{100 * one.foreseen:.1f}",
            f"{100 * min(one.each):.1f}-{100 * max(one.each):.1f}",
            "-" if one.accuracy is None else f"{100 * one.accuracy:.1f}",
            f"{100 * one.agreement:.1f}",
            _short(one.grace),
            _short(one.gradient_norm),
            f"{one.entropy:.2f}",
        ]
        for one in found
    ]
    title = "Best teacher first, by the student's estimated accuracy; shares in %"
    width = sum(max(len(row[place]) for row in [columns, *rows]) + GAP for place in range(len(columns)))
    if width <= out.width:
        show_table(columns, rows, title)
        return
    show_table(columns, [[str(number), *row[1:]] for number, row in enumerate(rows, 1)], title)
    for number, one in enumerate(found, 1):
        out.print(f"{number}: {one.teacher}", markup=False)


def _short(value: float) -> str:
    """Return a figure in at most seven characters."""
    if 100 <= value < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if value < 100 else f"{value:.1e}"


# --- what was named ------------------------------------------------------------------------------------------


def _places(teachers: Sequence[str]) -> list[Path]:
    names = [name.strip() for entry in teachers for name in entry.split(",") if name.strip()]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"A teacher is named twice: got {', '.join(doubled)}. Name each once.")
    if len(names) < 2:
        do = "Name another: --teachers runs/a/teacher runs/b/teacher."
        raise UserError(say("There are too few teachers to rank", f"--teachers {' '.join(names)}", "two or more", do))
    for name in names:
        if not is_folder(Path(name)):
            allowed = "a bundle, a run folder (its student; its teacher is in RUN/teacher), or a store"
            raise UserError(say("There is no such teacher", f"'{name}', no folder", allowed, "Check the path."))
    return [Path(name) for name in names]


def _run_of(places: Sequence[Path]) -> Path | None:
    """Return the first run folder among these or above them: its recipe names data."""
    candidates = [one for place in places for one in (place, *place.absolute().parents[:2])]
    return next((one for one in candidates if is_file(one / RECIPE)), places[0])


def _teacher(place: Path, source: Source, load: Load, fits: Fits) -> Teacher | nn.Module:
    from stillroom.tasks import check_names

    if is_file(place / MANIFEST):
        from stillroom.store import Store

        store = Store.open(place)
        store.check(source)
        return store
    deployed = load(place)
    fits(deployed, source)
    check_names(deployed.classes, source.classes, str(place), numbers=False)
    return deployed


def _student(place: Path, source: Source, load: Load, fits: Fits) -> nn.Module | Callable[[], nn.Module]:
    """Return what makes the student afresh; a pretrained encoder is taken as it is."""
    from stillroom.models.zoo import build
    from stillroom.pipeline.recipes import class_count

    if not is_folder(place):
        return _of_the_zoo(str(place), source)
    deployed = load(place)
    fits(deployed, source)
    model, encode = deployed.config["model"], deployed.encode
    if model["use"] == "hugging-face":
        return deployed
    shape, classes = deployed.config["shape"], class_count(source)
    return lambda: _whole(build(model["use"], shape=shape, classes=classes, **model["options"]), encode)


def _whole(module: nn.Module, encode: nn.Module | None) -> nn.Module:
    from stillroom.models.bundle import Deployed

    return Deployed(module, encode)


def _of_the_zoo(text: str, source: Source) -> Callable[[], nn.Module]:
    """Read ``cnn`` or ``cnn:width=8,dropout=0.1``: a model of the zoo and its options."""
    import torch

    from stillroom.models.zoo import ZOO
    from stillroom.pipeline.making import Making
    from stillroom.pipeline.recipes import class_count
    from stillroom.recipe import Encode

    name, _, rest = text.partition(":")
    if name not in ZOO or name == "hugging-face":
        known = [one for one in ZOO if one != "hugging-face"]
        do = "Or give a bundle or a run folder."
        raise UserError(say("There is no such student, neither a folder nor a model", f"'{name}'", known, do))
    options: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?=\s*\w+=)", rest)):
        key, _, value = part.partition("=")
        key = key.strip()
        if key in options:
            allowed, do = f"each option of {name} once", "Keep one of them."
            raise ModelError(say(f"The option '{key}' is given twice", f"'{text}'", allowed, do))
        try:
            options[key] = json.loads(value)
        except ValueError as error:
            allowed = f"{name}:key=value, for example cnn:width=8 or mlp:hidden=[64]"
            raise ModelError(say("These options cannot be read", f"'{part}'", allowed)) from error
    made = Making(source, class_count(source)).zoo(name, options, Encode())
    made.make(0)  # what does not fit is said now
    return lambda: _whole(made.make(int(torch.randint(2**31, ()))), made.encode)
